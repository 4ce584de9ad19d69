// Package vaulttest is a server that speaks the part of Vault's API that signing needs, as it
// is documented, and refuses what Vault and OpenBao refuse. It is for tests alone: it is not
// Vault, and keeps its keys in memory.
package vaulttest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A Server is the handler of the API.
type Server struct {
	Mount     string // the path of the engine
	Token     string // that it takes
	Namespace string // that the engine is in
	SignsOnly bool   // the token's policy does not let it read keys

	// Intercept, if not nil, may answer a request instead: then it returns true.
	Intercept func(w http.ResponseWriter, r *http.Request) bool

	mu       sync.Mutex
	keys     map[string]*key
	requests []Request
}

// A Request is one that the server got.
type Request struct {
	Method, Path string
	Digests      int
}

type key struct {
	kind     string
	versions []version
	least    int
}

type version struct {
	private crypto.Signer // nil for a symmetric key
	made    time.Time
}

// New returns a server with the engine at transit.
func New(token string) *Server {
	return &Server{Mount: "transit", Token: token, keys: make(map[string]*key)}
}

// Add makes a key of a type, as its first version.
func (s *Server) Add(name, kind string) (crypto.PublicKey, error) {
	private, err := generate(kind)
	if err != nil {
		return nil, err
	}
	return s.AddVersion(name, kind, private), nil
}

// AddVersion adds a version of a key, as rotating and importing do.
func (s *Server) AddVersion(name, kind string, private crypto.Signer) crypto.PublicKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.keys[name]
	if k == nil {
		k = &key{kind: kind}
		s.keys[name] = k
	}
	k.versions = append(k.versions, version{private, time.Now()})
	if private == nil {
		return nil
	}
	return private.Public()
}

// Rotate makes a new version of a key.
func (s *Server) Rotate(name string) (crypto.PublicKey, error) {
	s.mu.Lock()
	kind := s.keys[name].kind
	s.mu.Unlock()
	return s.Add(name, kind)
}

// Retire sets the least version that signs.
func (s *Server) Retire(name string, least int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[name].least = least
}

// Requests returns the requests so far.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.requests...)
}

func generate(kind string) (crypto.Signer, error) {
	switch kind {
	case "rsa-2048", "rsa-3072", "rsa-4096":
		bits, _ := strconv.Atoi(kind[4:])
		return rsa.GenerateKey(rand.Reader, bits)
	case "ecdsa-p256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ecdsa-p384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ecdsa-p521":
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "ed25519":
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return private, err
	case "aes256-gcm96":
		return nil, nil
	}
	return nil, fmt.Errorf("unknown key type %s", kind)
}

// Refuse answers with errors in the API's form.
func Refuse(w http.ResponseWriter, status int, messages ...string) {
	reply(w, status, map[string][]string{"errors": append([]string{}, messages...)})
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client may be gone
}

func data(w http.ResponseWriter, body any) {
	reply(w, http.StatusOK, map[string]any{
		"request_id": "00000000-0000-0000-0000-000000000000", "lease_id": "", "renewable": false, "lease_duration": 0,
		"data": body, "wrap_info": nil, "warnings": nil, "auth": nil,
	})
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 32<<20))
	if err != nil {
		Refuse(w, http.StatusRequestEntityTooLarge, "request body too large")
		return
	}
	var sign signBody
	decoded := json.Unmarshal(body, &sign)
	s.mu.Lock()
	s.requests = append(s.requests, Request{r.Method, r.URL.Path, len(sign.Batch)})
	s.mu.Unlock()
	if s.Intercept != nil && s.Intercept(w, r) {
		return
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/v1/")
	if !ok {
		Refuse(w, http.StatusNotFound)
		return
	}
	switch token := r.Header.Get("X-Vault-Token"); {
	case r.Header.Get("X-Vault-Namespace") != s.Namespace, token == "", token != s.Token:
		Refuse(w, http.StatusForbidden, "permission denied")
		return
	}
	path, ok = strings.CutPrefix(path, s.Mount+"/")
	if !ok {
		Refuse(w, http.StatusNotFound, fmt.Sprintf("no handler for route %q. route entry not found.", path))
		return
	}
	operation, rest, _ := strings.Cut(path, "/")
	name, hash, _ := strings.Cut(rest, "/")
	switch {
	case operation == "keys" && r.Method == http.MethodGet && hash == "":
		s.read(w, name)
	case operation == "keys" && isWrite(r) && hash == "rotate":
		if _, err := s.Rotate(name); err != nil {
			Refuse(w, http.StatusInternalServerError, err.Error())
			return
		}
		w.WriteHeader(http.StatusNoContent)
	case operation == "sign" && isWrite(r):
		if decoded != nil {
			Refuse(w, http.StatusBadRequest, "error parsing JSON")
			return
		}
		if hash != "" {
			sign.Hash = hash
		}
		s.sign(w, name, sign)
	default:
		Refuse(w, http.StatusMethodNotAllowed, "unsupported operation")
	}
}

func isWrite(r *http.Request) bool { return r.Method == http.MethodPost || r.Method == http.MethodPut }

func (s *Server) key(name string) *key {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.keys[name]
	if k == nil {
		return nil
	}
	found := *k
	return &found
}

func (s *Server) read(w http.ResponseWriter, name string) {
	k := s.key(name)
	switch {
	case s.SignsOnly:
		Refuse(w, http.StatusForbidden, "1 error occurred:\n\t* permission denied\n\n")
		return
	case k == nil:
		Refuse(w, http.StatusNotFound)
		return
	}
	keys := make(map[string]any)
	for i, v := range k.versions {
		number := strconv.Itoa(i + 1)
		switch private := v.private.(type) {
		case nil:
			keys[number] = v.made.Unix()
		case ed25519.PrivateKey:
			keys[number] = map[string]any{
				"creation_time": v.made, "name": "ed25519",
				"public_key": base64.StdEncoding.EncodeToString(private.Public().(ed25519.PublicKey)),
			}
		default:
			der, err := x509.MarshalPKIXPublicKey(private.Public())
			if err != nil {
				Refuse(w, http.StatusInternalServerError, err.Error())
				return
			}
			keys[number] = map[string]any{
				"creation_time": v.made, "name": k.kind, "certificate_chain": "",
				"public_key": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})),
			}
		}
	}
	data(w, map[string]any{
		"name": name, "type": k.kind, "latest_version": len(k.versions), "min_available_version": 0,
		"min_decryption_version": 1, "min_encryption_version": k.least, "deletion_allowed": false, "derived": false,
		"exportable": false, "allow_plaintext_backup": false, "imported_key": false, "auto_rotate_period": 0,
		"supports_encryption": strings.HasPrefix(k.kind, "rsa") || strings.HasPrefix(k.kind, "aes"),
		"supports_decryption": strings.HasPrefix(k.kind, "rsa") || strings.HasPrefix(k.kind, "aes"),
		"supports_derivation": !strings.HasPrefix(k.kind, "rsa"), "supports_signing": !strings.HasPrefix(k.kind, "aes"),
		"keys": keys,
	})
}

type signBody struct {
	Version    int                 `json:"key_version"`
	Hash       string              `json:"hash_algorithm"`
	Prehashed  bool                `json:"prehashed"`
	Algorithm  string              `json:"signature_algorithm"`
	Marshaling string              `json:"marshaling_algorithm"`
	Input      string              `json:"input"`
	Batch      []map[string]string `json:"batch_input"`
}

var hashes = map[string]crypto.Hash{
	"": crypto.SHA256, "sha1": crypto.SHA1, "sha2-224": crypto.SHA224, "sha2-256": crypto.SHA256,
	"sha2-384": crypto.SHA384, "sha2-512": crypto.SHA512, "sha3-224": crypto.SHA3_224, "sha3-256": crypto.SHA3_256,
	"sha3-384": crypto.SHA3_384, "sha3-512": crypto.SHA3_512,
}

func (s *Server) sign(w http.ResponseWriter, name string, b signBody) {
	hash, ok := hashes[b.Hash]
	k := s.key(name)
	switch {
	case !ok:
		Refuse(w, http.StatusBadRequest, fmt.Sprintf("invalid hash algorithm %q", b.Hash))
		return
	case b.Marshaling != "" && b.Marshaling != "asn1" && b.Marshaling != "jws":
		Refuse(w, http.StatusBadRequest, fmt.Sprintf("invalid marshaling type %q", b.Marshaling))
		return
	case k == nil:
		Refuse(w, http.StatusBadRequest, "signing key not found")
		return
	case k.versions[0].private == nil:
		Refuse(w, http.StatusBadRequest, fmt.Sprintf("key type %s does not support signing", k.kind))
		return
	}
	items := b.Batch
	if items == nil {
		items = []map[string]string{{"input": b.Input}}
	}
	if len(items) == 0 {
		Refuse(w, http.StatusBadRequest, "missing batch input to process")
		return
	}
	type result struct {
		Signature  string `json:"signature,omitempty"`
		KeyVersion int    `json:"key_version"`
		Error      string `json:"error,omitempty"`
		Reference  string `json:"reference"`
	}
	results := make([]result, len(items))
	for i, item := range items {
		signature, number, err := k.sign(item, hash, &b)
		if err != nil {
			results[i] = result{Error: err.Error(), Reference: item["reference"]}
			continue
		}
		results[i] = result{Signature: signature, KeyVersion: number, Reference: item["reference"]}
	}
	if b.Batch != nil {
		data(w, map[string]any{"batch_results": results})
		return
	}
	if results[0].Error != "" {
		Refuse(w, http.StatusBadRequest, results[0].Error)
		return
	}
	data(w, results[0])
}

func (k *key) sign(item map[string]string, hash crypto.Hash, b *signBody) (signature string, number int, err error) {
	text, ok := item["input"]
	if !ok {
		return "", 0, errors.New("missing input")
	}
	input, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return "", 0, fmt.Errorf("unable to decode input as base64: %w", err)
	}
	number = b.Version
	if number == 0 {
		number = len(k.versions)
	}
	switch {
	case number < 0:
		return "", 0, errors.New("requested version for signing is negative")
	case number > len(k.versions):
		return "", 0, errors.New("requested version for signing is higher than the latest key version")
	case number < k.least:
		return "", 0, errors.New("requested version for signing is less than the minimum encryption key version")
	}
	if !b.Prehashed {
		h := hash.New()
		h.Write(input)
		input = h.Sum(nil)
	}
	var raw []byte
	switch private := k.versions[number-1].private.(type) {
	case *rsa.PrivateKey:
		switch b.Algorithm {
		case "", "pss":
			raw, err = rsa.SignPSS(rand.Reader, private, hash, input, nil)
		case "pkcs1v15":
			raw, err = rsa.SignPKCS1v15(rand.Reader, private, hash, input)
		default:
			err = fmt.Errorf("unsupported rsa signature algorithm %s", b.Algorithm)
		}
	case *ecdsa.PrivateKey:
		// The real one ignores the algorithm here; who sends it expects what it does not get.
		if b.Algorithm != "" {
			err = errors.New("signature_algorithm is for RSA keys")
			break
		}
		raw, err = ecdsa.SignASN1(rand.Reader, private, input)
	default:
		err = errors.New("unsupported key type")
	}
	if err != nil {
		return "", 0, err
	}
	return fmt.Sprintf("vault:v%d:%s", number, base64.StdEncoding.EncodeToString(raw)), number, nil
}
