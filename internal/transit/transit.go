// Package transit signs digests with a key in the transit secrets engine of Vault or
// OpenBao, over HTTPS.
//
// [Open] returns a [Key]. Calls of Sign that wait at the same time share a request: up to
// four requests are under way, with up to 512 digests each, and no call waits for
// others to come.
//
// The token goes into the header of a request and nowhere else. A redirect is followed from
// HTTPS to HTTPS alone: see [Config].
package transit

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/modsign/modsign/internal/batch"
)

const (
	// maxBatch is the largest number of digests in a request. Vault's own limit is the size
	// of a request, 32 MiB.
	maxBatch    = 512
	maxRequests = 4       // under way at once; the server makes the signatures of one one after the other
	maxAnswer   = 4 << 20 // bytes; maxBatch signatures of RSA-4096 have less than 1 MiB
)

// Config says where a key is, and how to get there.
type Config struct {
	// Address is the URL of the server. The token goes to it, and to a server that it
	// redirects to: from https to https alone, where the other server is verified in the
	// same way. A standby of a cluster redirects to the active server, and has the token
	// already.
	Address *url.URL
	Mount   string // the path of the engine, such as transit
	Name    string // of the key
	Version int    // of the key; 0 stands for that of Public, or else the latest

	Token     string // may be empty for an agent on this machine that adds its own
	Namespace string // may be empty

	// Transport makes the requests. It must not follow a redirect.
	Transport http.RoundTripper

	Public crypto.PublicKey // of the certificate
	Note   func(string)     // takes remarks for people; not nil
}

// A Key is a crypto.Signer for a key in the engine. Several goroutines may use it at once.
type Key struct {
	c       Config
	version int
	ctx     context.Context
	cancel  context.CancelCauseFunc
	pause   func(context.Context, time.Duration) error
	noted   sync.Once // that requests are repeated
	lost    atomic.Bool

	mu      sync.Mutex
	waiting []*request
	running int // requests
	done    sync.WaitGroup
}

// request is a signature that somebody waits for.
type request struct {
	hash      string
	digest    []byte
	signature []byte
	err       error
	done      chan struct{}
}

// Open finds out which version of the key has the public key. It is no error that the token
// may not read the key: then the server signs with the latest version. The Key is good until
// ctx ends or Close is called.
func Open(ctx context.Context, c Config) (*Key, error) {
	k := newKey(ctx, c)
	if err := k.find(); err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

func newKey(ctx context.Context, c Config) *Key {
	k := &Key{c: c, version: c.Version, pause: pause}
	k.ctx, k.cancel = context.WithCancelCause(ctx)
	return k
}

// Public returns the public key of the certificate, which every signature has to fit.
func (k *Key) Public() crypto.PublicKey { return k.c.Public }

// BatchSize returns how many calls of Sign make sense at once for each processor, of which
// callers have some in excess: all together fill the requests.
func (k *Key) BatchSize() int {
	return batch.SizeFor(runtime.GOMAXPROCS(0), maxRequests*maxBatch)
}

// Lost reports whether a request has failed for good. Those for other modules would, too.
func (k *Key) Lost() bool { return k.lost.Load() }

// Close ends the requests under way.
func (k *Key) Close() error {
	k.mu.Lock() // nobody begins a request after that
	k.cancel(errors.New("key is closed"))
	k.mu.Unlock()
	k.done.Wait()
	if t, ok := k.c.Transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
	return nil
}

// The names of hashes in the engine. A digest comes with its hash's name, since it goes into
// an RSA signature.
var hashNames = map[crypto.Hash]string{
	crypto.SHA1:   "sha1",
	crypto.SHA224: "sha2-224", crypto.SHA256: "sha2-256", crypto.SHA384: "sha2-384", crypto.SHA512: "sha2-512",
	crypto.SHA3_224: "sha3-224", crypto.SHA3_256: "sha3-256", crypto.SHA3_384: "sha3-384", crypto.SHA3_512: "sha3-512",
}

// Sign returns a signature of the digest, which nobody has checked.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	hash, ok := hashNames[opts.HashFunc()]
	if !ok || len(digest) != opts.HashFunc().Size() {
		return nil, fmt.Errorf("transit engines do not sign digests of %v", opts.HashFunc())
	}
	r := &request{hash: hash, digest: bytes.Clone(digest), done: make(chan struct{})}
	k.mu.Lock()
	if k.ctx.Err() != nil {
		k.mu.Unlock()
		return nil, context.Cause(k.ctx)
	}
	k.waiting = append(k.waiting, r)
	if k.running < maxRequests {
		k.running++
		k.done.Go(k.work)
	}
	k.mu.Unlock()
	select {
	case <-r.done:
		return r.signature, r.err
	case <-k.ctx.Done():
		return nil, context.Cause(k.ctx)
	}
}

// work sends requests as long as somebody waits.
func (k *Key) work() {
	for {
		batch := k.next()
		if batch == nil {
			return
		}
		k.sign(batch)
	}
}

// next takes those that wait, of one hash, since a request is of one.
func (k *Key) next() []*request {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.waiting) == 0 {
		k.running--
		return nil
	}
	n := 1
	for n < min(len(k.waiting), maxBatch) && k.waiting[n].hash == k.waiting[0].hash {
		n++
	}
	batch := k.waiting[:n:n]
	k.waiting = k.waiting[n:]
	return batch
}

type signRequest struct {
	KeyVersion int         `json:"key_version,omitempty"`
	Hash       string      `json:"hash_algorithm"`
	Prehashed  bool        `json:"prehashed"`
	Algorithm  string      `json:"signature_algorithm,omitempty"`
	Marshaling string      `json:"marshaling_algorithm"`
	Batch      []batchItem `json:"batch_input"`
}

type batchItem struct {
	Input []byte `json:"input"`
}

// sign signs a batch and wakes those who wait for it.
func (k *Key) sign(batch []*request) {
	body := signRequest{KeyVersion: k.version, Hash: batch[0].hash, Prehashed: true, Marshaling: "asn1"}
	if _, ok := k.c.Public.(*rsa.PublicKey); ok {
		body.Algorithm = "pkcs1v15"
	}
	for _, r := range batch {
		body.Batch = append(body.Batch, batchItem{r.digest})
	}
	results, err := k.post(body)
	for i, r := range batch {
		if r.err = err; err == nil {
			r.signature, r.err = results[i].Signature, results[i].err(k.clean)
		}
		close(r.done)
	}
}

func (k *Key) post(body signRequest) ([]result, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	answer, err := k.call(maxTries, http.MethodPost, "sign", data)
	if err != nil {
		k.lost.Store(true)
		return nil, k.explain(err)
	}
	return decodeResults(answer, len(body.Batch), k.version)
}

// explain adds a hint to an answer with an error, where there is something to do.
func (k *Key) explain(err error) error {
	e, ok := errors.AsType[*answerError](err)
	if !ok {
		return err
	}
	hint := ""
	switch message := strings.ToLower(e.message); {
	case e.status == http.StatusForbidden && k.c.Token == "", strings.Contains(message, "missing client token"):
		hint = "no token is given: set VAULT_TOKEN, or log in with vault login"
	case e.status == http.StatusForbidden:
		hint = fmt.Sprintf("the token has expired, or its policy lacks: path %q { capabilities = [\"update\"] }",
			k.c.Mount+"/sign/"+k.c.Name)
	case strings.Contains(message, "no handler for route"), strings.Contains(message, "route entry not found"):
		hint = "the engines that are there: vault secrets list"
	case e.status == http.StatusNotFound, strings.Contains(message, "key not found"):
		hint = "the keys that are there: vault list " + k.c.Mount + "/keys"
	case e.status == http.StatusServiceUnavailable && strings.Contains(message, "sealed"):
		hint = "vault operator unseal"
	}
	return withHint(err, hint)
}

// path returns the path of an operation on the key.
func (k *Key) path(operation string) string {
	var b strings.Builder
	b.WriteString("/v1/")
	for part := range strings.SplitSeq(k.c.Mount, "/") {
		b.WriteString(url.PathEscape(part) + "/")
	}
	return b.String() + operation + "/" + url.PathEscape(k.c.Name)
}

// clean makes text of the server's fit for a message: short, printable, without the token.
func (k *Key) clean(text string) string {
	if k.c.Token != "" {
		text = strings.ReplaceAll(text, k.c.Token, "TOKEN")
	}
	const limit = 300
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' || 0x80 <= r && r < 0xa0 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, " "))
	if clean = strings.Join(strings.Fields(clean), " "); len(clean) > limit {
		clean = strings.ToValidUTF8(clean[:limit], "") + " ..."
	}
	return clean
}

func (k *Key) newRequest(ctx context.Context, method string, target *url.URL, body []byte) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, method, target.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("X-Vault-Request", "true") // an agent may refuse requests without it
	r.Header.Set("User-Agent", "modsign")
	if k.c.Token != "" {
		r.Header.Set("X-Vault-Token", k.c.Token)
	}
	if k.c.Namespace != "" {
		r.Header.Set("X-Vault-Namespace", k.c.Namespace)
	}
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/json")
	}
	return r, nil
}
