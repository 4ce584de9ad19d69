package transit

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// result is one of the results of a batch: a signature or an error.
type result struct {
	Signature []byte
	message   string
}

func (r result) err(clean func(string) string) error {
	if r.Signature != nil {
		return nil
	}
	return fmt.Errorf("server does not sign: %s", clean(r.message))
}

var errAnswer = errors.New("answer of the server is not that of a transit engine")

// decodeResults decodes the answer to a batch of n digests, to be signed by a version of the
// key, or by any if version is 0. The results are in the order of the digests.
func decodeResults(data []byte, n, version int) ([]result, error) {
	var answer struct {
		Data struct {
			Results []struct {
				Signature string `json:"signature"`
				Error     string `json:"error"`
			} `json:"batch_results"`
		} `json:"data"`
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, errAnswer
	}
	if got := len(answer.Data.Results); got != n {
		return nil, fmt.Errorf("server returned %d results for %d digests", got, n)
	}
	results := make([]result, n)
	for i, r := range answer.Data.Results {
		if r.Signature == "" {
			if results[i].message = r.Error; r.Error == "" {
				results[i].message = "no signature and no error"
			}
			continue
		}
		signature, by, err := parseSignature(r.Signature)
		switch {
		case err != nil:
			return nil, err
		case version != 0 && by != version:
			return nil, fmt.Errorf("server signed with version %d of the key, not with %d", by, version)
		}
		results[i].Signature = signature
	}
	return results, nil
}

// parseSignature parses "vault:vVERSION:BASE64".
func parseSignature(text string) (signature []byte, version int, err error) {
	rest, ok := strings.CutPrefix(text, "vault:v")
	number, encoded, found := strings.Cut(rest, ":")
	if !ok || !found {
		return nil, 0, errors.New("signature in the server's answer is not of the form vault:vN:BASE64")
	}
	version, err = strconv.Atoi(number)
	if err != nil || version < 1 {
		return nil, 0, errors.New("signature in the server's answer is of no version of the key")
	}
	signature, err = base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil || len(signature) == 0 {
		return nil, 0, errors.New("signature in the server's answer is not in base64")
	}
	return signature, version, nil
}

// description is what the server tells about a key.
type description struct {
	kind     string
	latest   int
	least    int // the least version that signs
	versions map[int]crypto.PublicKey
}

const maxVersions = 10000

// decodeKey decodes the description of a key. A version without a public key that can be
// parsed is left out.
func decodeKey(data []byte) (*description, error) {
	var answer struct {
		Data struct {
			Type   string                     `json:"type"`
			Latest int                        `json:"latest_version"`
			Least  int                        `json:"min_encryption_version"`
			Keys   map[string]json.RawMessage `json:"keys"`
		} `json:"data"`
	}
	if err := json.Unmarshal(data, &answer); err != nil || answer.Data.Type == "" || len(answer.Data.Keys) > maxVersions {
		return nil, errAnswer
	}
	d := &description{
		kind: answer.Data.Type, latest: answer.Data.Latest, least: answer.Data.Least,
		versions: make(map[int]crypto.PublicKey),
	}
	for name, raw := range answer.Data.Keys {
		version, err := strconv.Atoi(name)
		if err != nil || version < 1 {
			return nil, errAnswer
		}
		var key struct {
			Public string `json:"public_key"`
		}
		if json.Unmarshal(raw, &key) != nil {
			continue // a symmetric key has the time here that it was made
		}
		block, _ := pem.Decode([]byte(key.Public))
		if block == nil {
			continue
		}
		if public, err := x509.ParsePKIXPublicKey(block.Bytes); err == nil {
			d.versions[version] = public
		}
	}
	return d, nil
}

// find reads the key, if the token may, and chooses the version that has the public key.
func (k *Key) find() error {
	data, err := k.call(openTries, http.MethodGet, "keys", nil)
	if e, ok := err.(*answerError); ok && e.status == http.StatusForbidden && k.c.Token != "" {
		return nil // a policy may allow to sign and no more
	}
	if e, ok := errors.AsType[*connectionError](err); ok && !e.final {
		return withHint(err, "set VAULT_ADDR, if the server is another one")
	}
	if err != nil {
		return k.explain(err)
	}
	d, err := decodeKey(data)
	if err != nil {
		return err
	}
	version, err := d.choose(k.c.Public, k.c.Version)
	if err != nil {
		return k.explainVersion(err, version)
	}
	if version != d.latest && k.c.Version == 0 {
		k.c.Note(fmt.Sprintf("the certificate is of version %d of the key; the latest is version %d", version, d.latest))
	}
	k.version = version
	return nil
}

var errRetired = errors.New("the server does not sign with that version any more")

// choose returns the version to sign with: the one of the public key, which must be the one
// that is asked for, if one is.
func (d *description) choose(public crypto.PublicKey, asked int) (int, error) {
	if len(d.versions) == 0 {
		return 0, fmt.Errorf("key is of type %.40q; modsign signs with RSA and ECDSA keys (P-256, P-384, P-521) of a server",
			d.kind)
	}
	version := 0
	known := slices.Sorted(maps.Keys(d.versions))
	for _, v := range slices.Backward(known) { // the same key may have been imported twice
		if key, ok := d.versions[v].(interface{ Equal(crypto.PublicKey) bool }); ok && key.Equal(public) {
			version = v
			break
		}
	}
	switch {
	case version == 0 && len(known) == 1:
		return 0, fmt.Errorf("public key of the key (%.40s) is not the certificate's", d.kind)
	case version == 0:
		return 0, fmt.Errorf("none of the key's %d versions (%d to %d, %.40s) has the certificate's public key",
			len(known), known[0], known[len(known)-1], d.kind)
	case asked != 0 && asked != version:
		return 0, fmt.Errorf("the certificate is of version %d of the key, not of version %d", version, asked)
	case version < d.least:
		return version, fmt.Errorf("the certificate is of version %d of the key, and min_encryption_version is %d: %w",
			version, d.least, errRetired)
	}
	return version, nil
}

func (k *Key) explainVersion(err error, version int) error {
	hint := "give the certificate of this key with --cert"
	if errors.Is(err, errRetired) {
		hint = fmt.Sprintf("vault write %s/keys/%s/config min_encryption_version=%d", k.c.Mount, k.c.Name, version)
	} else if bytes.Contains([]byte(err.Error()), []byte("is of type")) {
		return err
	}
	return withHint(err, hint)
}
