package transit

import (
	"context"
	"crypto"
	"crypto/rand"
	_ "crypto/sha3"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/batch"
	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/keyfile"
	"github.com/modsign/modsign/internal/vaulttest"
)

const testToken = "hvs.secret-of-the-tests"

// peer is a server and how to reach it.
type peer struct {
	*vaulttest.Server
	config Config
	notes  *notes
}

type notes struct {
	mu   sync.Mutex
	text strings.Builder
}

func (n *notes) add(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.text.WriteString(text + "\n")
}

func (n *notes) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.text.String()
}

// newPeer starts a server with a key of a type, called modules.
func newPeer(t *testing.T, kind string) *peer {
	t.Helper()
	p := &peer{Server: vaulttest.New(testToken), notes: new(notes)}
	public, err := p.Add("modules", kind)
	if err != nil {
		t.Fatal(err)
	}
	server := quiet(httptest.NewUnstartedServer(p))
	server.StartTLS()
	t.Cleanup(server.Close)
	p.config = Config{
		Address: parse(t, server.URL), Mount: "transit", Name: "modules", Token: testToken,
		Transport: server.Client().Transport, Public: public, Note: p.notes.add,
	}
	return p
}

// quiet keeps what a server says about its clients out of the output.
func quiet(s *httptest.Server) *httptest.Server {
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	return s
}

func parse(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// open opens the key. It waits before no further try.
func (p *peer) open(t *testing.T) (*Key, error) {
	t.Helper()
	k := newKey(t.Context(), p.config)
	k.pause = func(ctx context.Context, _ time.Duration) error { return context.Cause(ctx) }
	t.Cleanup(func() { k.Close() })
	return k, k.find()
}

func (p *peer) mustOpen(t *testing.T) *Key {
	t.Helper()
	k, err := p.open(t)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func digestOf(h crypto.Hash, n int) []byte {
	hash := h.New()
	fmt.Fprint(hash, n)
	return hash.Sum(nil)
}

func signOne(k *Key, h crypto.Hash, n int) error {
	digest := digestOf(h, n)
	signature, err := k.Sign(rand.Reader, digest, h)
	if err == nil && !cms.Verifies(k.Public(), h, digest, signature) {
		return errors.New("wrong signature")
	}
	return err
}

func TestSign(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"rsa-2048", "rsa-3072", "rsa-4096", "ecdsa-p256", "ecdsa-p384", "ecdsa-p521"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			k := newPeer(t, kind).mustOpen(t)
			for h := range hashNames {
				if err := signOne(k, h, 1); err != nil {
					t.Errorf("%v: %v", h, err)
				}
			}
		})
	}
}

// TestRequests counts the requests of a kernel's modules.
func TestRequests(t *testing.T) {
	t.Parallel()
	p := newPeer(t, "ecdsa-p256")
	k := p.mustOpen(t)
	before := len(p.Requests())
	const modules = 4000
	err := batch.Each(t.Context(), modules, batch.Filling(runtime.GOMAXPROCS(0), k.BatchSize()), func(i int) error {
		return signOne(k, crypto.SHA256, i)
	})
	if err != nil {
		t.Fatal(err)
	}
	requests := p.Requests()[before:]
	digests, most := 0, 0
	for _, r := range requests {
		digests += r.Digests
		most = max(most, r.Digests)
	}
	t.Logf("%d digests in %d requests, %d in the largest", digests, len(requests), most)
	if digests != modules || most > maxBatch || len(requests) > 100 {
		t.Errorf("%d digests in %d requests of at most %d", digests, len(requests), most)
	}
}

// TestPartialFailure lets the server refuse one digest of a batch.
func TestPartialFailure(t *testing.T) {
	t.Parallel()
	p := newPeer(t, "ecdsa-p256")
	k := p.mustOpen(t)
	good := digestOf(crypto.SHA256, 1)
	sent := []*request{
		{hash: "sha2-256", digest: good, done: make(chan struct{})},
		{hash: "sha2-256", digest: digestOf(crypto.SHA256, 2), done: make(chan struct{})},
	}
	p.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		io.WriteString(w, `{"data":{"batch_results":[{"error":"quota of `+testToken+` is used up\n"},`+
			`{"signature":"vault:v1:QUJD"}]}}`)
		return true
	}
	k.sign(sent)
	if err := sent[0].err; err == nil || err.Error() != "server does not sign: quota of TOKEN is used up" {
		t.Errorf("first: %v", err)
	}
	if sent[1].err != nil || string(sent[1].signature) != "ABC" {
		t.Errorf("second: %q, %v", sent[1].signature, sent[1].err)
	}
}

// TestRefusals has what users run into, and what they are told.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		prepare    func(t *testing.T, p *peer)
		want, hint string
	}{
		"token": {func(_ *testing.T, p *peer) { p.config.Token = "hvs.other" },
			"", `path "transit/sign/modules" { capabilities = ["update"] }`},
		"no token": {func(_ *testing.T, p *peer) { p.config.Token = "" },
			"server answers 403 Forbidden: permission denied", "set VAULT_TOKEN"},
		"mount": {func(_ *testing.T, p *peer) { p.config.Mount = "other/engine" },
			`no handler for route "other/engine/keys/modules"`, "vault secrets list"},
		"key": {func(_ *testing.T, p *peer) { p.config.Name = "other" },
			"server answers 404 Not Found", "vault list transit/keys"},
		"key, sign only": {func(_ *testing.T, p *peer) { p.config.Name, p.SignsOnly = "other", true },
			"server answers 400 Bad Request: signing key not found", "vault list transit/keys"},
		"namespace": {func(_ *testing.T, p *peer) { p.Namespace = "team" }, "permission denied", "the token has expired"},
		"symmetric": {func(_ *testing.T, p *peer) { p.config.Name = "aes"; _, _ = p.Add("aes", "aes256-gcm96") },
			`key is of type "aes256-gcm96"`, ""},
		"ed25519": {func(_ *testing.T, p *peer) { p.config.Name = "ed"; _, _ = p.Add("ed", "ed25519") },
			`key is of type "ed25519"`, ""},
		"other key": {func(_ *testing.T, p *peer) { p.config.Name = "rsa"; _, _ = p.Add("rsa", "rsa-2048") },
			"public key of the key (rsa-2048) is not the certificate's", "--cert"},
		"other key of two versions": {func(_ *testing.T, p *peer) {
			p.config.Name = "two"
			_, _ = p.Add("two", "ecdsa-p256")
			_, _ = p.Rotate("two")
		}, "none of the key's 2 versions (1 to 2, ecdsa-p256) has the certificate's public key", "--cert"},
		"version": {func(_ *testing.T, p *peer) { p.config.Version = 2; _, _ = p.Rotate("modules") },
			"the certificate is of version 1 of the key, not of version 2", "--cert"},
		"retired": {func(_ *testing.T, p *peer) { _, _ = p.Rotate("modules"); p.Retire("modules", 2) },
			"the certificate is of version 1 of the key, and min_encryption_version is 2",
			"vault write transit/keys/modules/config min_encryption_version=1"},
		"version that is not there": {func(_ *testing.T, p *peer) { p.config.Version, p.SignsOnly = 7, true },
			"server does not sign: requested version for signing is higher than the latest key version", ""},
		"sealed": {func(_ *testing.T, p *peer) {
			p.Intercept = func(w http.ResponseWriter, _ *http.Request) bool {
				vaulttest.Refuse(w, http.StatusServiceUnavailable, "Vault is sealed")
				return true
			}
		}, "server answers 503 Service Unavailable: Vault is sealed (given up after 3 tries)", "vault operator unseal"},
		"no API": {func(_ *testing.T, p *peer) {
			p.Intercept = func(w http.ResponseWriter, _ *http.Request) bool {
				io.WriteString(w, "<html>Welcome</html>")
				return true
			}
		}, "answer of the server is not that of a transit engine", ""},
		"endless": {func(_ *testing.T, p *peer) {
			p.Intercept = func(w http.ResponseWriter, _ *http.Request) bool {
				_, _ = io.CopyN(w, zeros{}, maxAnswer+10)
				return true
			}
		}, "answer of the server has more than 4194304 bytes", ""},
		"http server": {func(t *testing.T, p *peer) {
			plain := httptest.NewServer(p)
			t.Cleanup(plain.Close)
			p.config.Address = parse(t, strings.Replace(plain.URL, "http:", "https:", 1))
		}, "no answer from 127.0.0.1:", "the server speaks plain HTTP"},
		"unknown CA": {func(_ *testing.T, p *peer) { p.config.Transport = &http.Transport{} },
			"certificate signed by unknown authority", "VAULT_CACERT"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, "ecdsa-p384")
			c.prepare(t, p)
			k, err := p.open(t)
			if err == nil {
				err = signOne(k, crypto.SHA384, 1)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v; want %q", err, c.want)
			}
			hint := ""
			if e, ok := errors.AsType[*keyfile.HintError](err); ok {
				hint = e.Hint
			}
			if (hint == "") != (c.hint == "") || !strings.Contains(hint, c.hint) {
				t.Errorf("%v: hint %q, want %q", err, hint, c.hint)
			}
			if strings.Contains(err.Error()+hint+p.notes.String(), "hvs.") {
				t.Errorf("the token is in %q, %q or %q", err, hint, p.notes)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// TestRotated signs with the version of the certificate, not with the latest.
func TestRotated(t *testing.T) {
	t.Parallel()
	p := newPeer(t, "rsa-2048")
	if _, err := p.Rotate("modules"); err != nil {
		t.Fatal(err)
	}
	k := p.mustOpen(t)
	if err := signOne(k, crypto.SHA512, 1); err != nil || k.version != 1 {
		t.Errorf("version %d: %v", k.version, err)
	}
	if want := "the certificate is of version 1 of the key; the latest is version 2\n"; p.notes.String() != want {
		t.Errorf("notes %q, want %q", p.notes, want)
	}
	// Where the token may sign alone, the latest version signs, or the one that is asked for.
	p.SignsOnly = true
	if err := signOne(p.mustOpen(t), crypto.SHA512, 1); err == nil || err.Error() != "wrong signature" {
		t.Errorf("the latest version: %v", err)
	}
	p.config.Version = 1
	if err := signOne(p.mustOpen(t), crypto.SHA512, 1); err != nil {
		t.Error(err)
	}
}

func refuse(status int, messages ...string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) { vaulttest.Refuse(w, status, messages...) }
}

// TestRetries lets requests fail a few times.
func TestRetries(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fail  func(w http.ResponseWriter, r *http.Request)
		tries int32 // until there is an error; 0: it passes
	}{
		"429":     {refuse(429, "rate limit quota exceeded"), 0},
		"412":     {refuse(412), 0},
		"500":     {refuse(500, "internal error"), 0},
		"502":     {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>Bad Gateway", 502) }, 0},
		"503":     {refuse(503, "Vault is sealed"), 0},
		"dropped": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 0},
		"half": {func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, `{"data":{"batch_results":[`)
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, 0},
		"400": {refuse(400, "bad"), 1},
		"403": {refuse(403, "permission denied"), 1},
		"404": {refuse(404), 1},
		"501": {refuse(501, "Vault is not initialized"), 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, "ecdsa-p256")
			k := p.mustOpen(t)
			var tries atomic.Int32
			p.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
				if tries.Add(1) > maxTries-1 {
					return false
				}
				c.fail(w, r)
				return true
			}
			err := signOne(k, crypto.SHA256, 1)
			if c.tries == 0 && (err != nil || tries.Load() != maxTries) {
				t.Errorf("%d tries: %v", tries.Load(), err)
			}
			if c.tries != 0 && (err == nil || tries.Load() != c.tries) {
				t.Errorf("%d tries: %v", tries.Load(), err)
			}
			if want := c.tries != 0; k.Lost() != want {
				t.Errorf("lost: %v, want %v", k.Lost(), want)
			}
			if c.tries == 0 && strings.Count(p.notes.String(), "trying again") != 1 {
				t.Errorf("notes %q, want one of trying again", p.notes)
			}
		})
	}
}

// TestRetryAfter checks that the server's word about the pause counts, up to a bound.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	p := newPeer(t, "ecdsa-p256")
	k := p.mustOpen(t)
	var pauses []time.Duration
	k.pause = func(_ context.Context, d time.Duration) error { pauses = append(pauses, d); return nil }
	after := "30"
	p.Intercept = func(w http.ResponseWriter, _ *http.Request) bool {
		if len(pauses) > 0 {
			return false
		}
		w.Header().Set("Retry-After", after)
		vaulttest.Refuse(w, 429, "slow down")
		return true
	}
	if err := signOne(k, crypto.SHA256, 1); err != nil {
		t.Error(err)
	}
	if len(pauses) != 1 || pauses[0] != 30*time.Second {
		t.Errorf("pauses %v, want 30s once", pauses)
	}
	after = "3600"
	pauses = nil
	if err := signOne(k, crypto.SHA256, 1); err == nil || len(pauses) != 0 {
		t.Errorf("pauses %v, error %v; an hour is too long", pauses, err)
	}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "5": 5 * time.Second, "-1": 0, "x": 0, "99999": time.Hour,
		now.Add(7 * time.Second).Format(http.TimeFormat): 7 * time.Second, now.Add(-time.Hour).Format(http.TimeFormat): 0,
	} {
		if got := retryAfter(text, now); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

// TestRedirects sends a standby's clients to the active server.
func TestRedirects(t *testing.T) {
	t.Parallel()
	active := newPeer(t, "ecdsa-p256")
	client := active.config.Transport
	redirect := func(target string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", target+r.URL.Path)
			w.WriteHeader(http.StatusTemporaryRedirect)
		})
	}
	toActive := redirect(active.config.Address.String())
	var stolen atomic.Bool
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { stolen.Store(true) }))
	t.Cleanup(plain.Close)
	for name, c := range map[string]struct {
		start   func(http.Handler) *httptest.Server
		handler http.Handler
		want    string
	}{
		"https to https": {httptest.NewTLSServer, toActive, ""},
		"https to http":  {httptest.NewTLSServer, redirect(plain.URL), "the token does not follow there"},
		"http to https":  {httptest.NewServer, toActive, "the token does not follow there"},
		"http to http":   {httptest.NewServer, redirect(plain.URL), "the token does not follow there"},
		"endless":        {httptest.NewTLSServer, redirect(""), "server redirects more than 2 times"},
		"nowhere":        {httptest.NewTLSServer, redirect("https://user:secret@host"), "redirects to what is no address"},
		"no location": {httptest.NewTLSServer, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusPermanentRedirect)
		}), "server answers 308"},
		"moved for good": {httptest.NewTLSServer, http.RedirectHandler("/ui/", http.StatusMovedPermanently),
			"server answers 301 Moved Permanently"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			standby := c.start(c.handler)
			t.Cleanup(standby.Close)
			p := *active
			p.config.Address, p.config.Transport = parse(t, standby.URL), client
			k, err := p.open(t)
			if err == nil {
				err = signOne(k, crypto.SHA256, 1)
			}
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v, want %q", err, c.want)
			case stolen.Load():
				t.Error("the token went to another host over plain HTTP")
			}
		})
	}
}

// TestInterrupt ends the context while the server thinks.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	p := newPeer(t, "ecdsa-p256")
	ctx, cancel := context.WithCancelCause(t.Context())
	k, err := Open(ctx, p.config)
	if err != nil {
		t.Fatal(err)
	}
	arrived, release := make(chan struct{}), make(chan struct{})
	p.Intercept = func(_ http.ResponseWriter, r *http.Request) bool {
		close(arrived)
		<-release
		return true
	}
	t.Cleanup(func() { close(release) })
	cause := errors.New("interrupted")
	go func() {
		<-arrived
		cancel(cause)
	}()
	if err := signOne(k, crypto.SHA256, 1); !errors.Is(err, cause) {
		t.Errorf("%v, want the cause", err)
	}
	if err := signOne(k, crypto.SHA256, 2); !errors.Is(err, cause) {
		t.Errorf("afterwards: %v, want the cause", err)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
}
