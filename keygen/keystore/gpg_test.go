package keystore

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	_ "crypto/sha3"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/batch"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen"
)

// gpgHome is a home of GnuPG with its own agent.
type gpgHome struct {
	environ []string
	dir     string
}

// newGPGHome makes a home in a directory with a short path, since an agent's socket is in it.
func newGPGHome(t *testing.T) *gpgHome {
	t.Helper()
	for _, program := range []string{"gpg", "gpg-agent", "gpgconf"} {
		testmod.Program(t, program, "gnupg")
	}
	dir, err := os.MkdirTemp("/tmp", "gpg")
	if err != nil {
		t.Fatal(err)
	}
	h := &gpgHome{dir: dir}
	h.environ = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "GNUPGHOME=") }),
		"GNUPGHOME="+dir)
	t.Cleanup(func() {
		_ = h.command("gpgconf", "--kill", "all").Run() // it may be gone
		os.RemoveAll(dir)
	})
	return h
}

func (h *gpgHome) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = h.environ
	return cmd
}

// newKey makes a key and returns its URI. Without a passphrase nobody is asked.
func (h *gpgHome) newKey(t *testing.T, algorithm, passphrase string) string {
	t.Helper()
	cmd := h.command("gpg", "--batch", "--pinentry-mode", "loopback", "--passphrase", passphrase,
		"--quick-gen-key", algorithm, algorithm, "sign", "never")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := h.command("gpg", "--list-secret-keys", "--with-keygrip", "="+algorithm).Output()
	grips := regexp.MustCompile(`Keygrip = ([0-9A-F]{40})`).FindSubmatch(out)
	if err != nil || grips == nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return "gpg:" + string(grips[1])
}

func (h *gpgHome) options(cert *x509.Certificate) Options {
	return Options{Certificate: cert, Environ: h.environ, LookupEnv: os.LookupEnv}
}

// certify makes a certificate of a key, signed by the key in the agent itself.
func (h *gpgHome) certify(t *testing.T, uri string) *x509.Certificate {
	t.Helper()
	key, err := openGPG(t.Context(), uri, h.options(new(x509.Certificate)))
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "modsign test key of gpg-agent"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), SubjectKeyId: []byte{1, 2, 3, 4},
		SignatureAlgorithm: x509.SHA512WithRSA,
	}
	if keygen.KeyName(key.Public())[:3] != "rsa" {
		template.SignatureAlgorithm = x509.ECDSAWithSHA512
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// TestGPG signs with keys of a real agent.
func TestGPG(t *testing.T) {
	t.Parallel()
	h := newGPGHome(t)
	for _, algorithm := range testmod.Few([]string{"rsa2048", "nistp384", "nistp256", "nistp521", "rsa4096"}, 2) {
		uri := h.newKey(t, algorithm, "")
		cert := h.certify(t, uri)
		key, err := Open(t.Context(), strings.ToLower(uri), h.options(cert))
		if err != nil {
			t.Fatal(err)
		}
		for _, hash := range []crypto.Hash{
			crypto.SHA1, crypto.SHA224, crypto.SHA256, crypto.SHA384, crypto.SHA512,
			crypto.SHA3_256, crypto.SHA3_384, crypto.SHA3_512,
		} {
			_, err := key.Sign(nil, make([]byte, hash.Size()), hash)
			want := ""
			switch least := map[string]int{"nistp256": 32, "nistp384": 48, "nistp521": 64}[algorithm]; {
			case hash.Size() < least:
				want = "no digest as short as"
			case least == 0 && strings.HasPrefix(hash.String(), "SHA3"):
				want = "makes no valid RSA signatures"
			}
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("%s, %v: %v, want %q", algorithm, hash, err, want)
			}
		}
		if err := batch.Each(t.Context(), 50, 8, func(i int) error {
			digest := sha512.Sum512([]byte{byte(i)})
			_, err := key.Sign(nil, digest[:], crypto.SHA512)
			return err
		}); err != nil {
			t.Errorf("%s: %v", algorithm, err)
		}
		if err := key.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestGPGRefusals has what users run into with a real agent.
func TestGPGRefusals(t *testing.T) {
	t.Parallel()
	h := newGPGHome(t)
	uri, other := h.newKey(t, "nistp256", ""), h.newKey(t, "nistp384", "")
	cert := h.certify(t, uri)
	for name, c := range map[string]struct {
		uri  string
		cert *x509.Certificate
		want string
	}{
		"no certificate": {uri, nil, keygen.ErrNoCertificate.Error()},
		"mismatch":       {other, cert, keygen.ErrMismatch.Error()},
		"no key":         {"gpg:" + strings.Repeat("0", 40), cert, "gpg-agent has no key of this keygrip"},
		"ed25519":        {h.newKey(t, "ed25519", ""), cert, `key is on the curve "Ed25519"`},
		"no keygrip":     {"gpg:me", cert, "want gpg:KEYGRIP"},
	} {
		key, err := Open(t.Context(), c.uri, h.options(c.cert))
		if err == nil {
			key.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), c.uri+": ") {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	// A key that nobody can be asked about: there is no terminal, and the agent's pinentry
	// is a program that fails.
	locked := h.newKey(t, "rsa2048", "horse-battery")
	conf := "pinentry-program /bin/false\ndefault-cache-ttl 0\nmax-cache-ttl 0\n"
	if err := os.WriteFile(h.dir+"/gpg-agent.conf", []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	testmod.Run(t, "env", "GNUPGHOME="+h.dir, "gpgconf", "--kill", "gpg-agent")
	key, err := openGPG(t.Context(), locked, h.options(cert))
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	digest := sha256.Sum256(nil)
	_, err = key.Sign(nil, digest[:], crypto.SHA256)
	if err == nil || !strings.HasPrefix(err.Error(), "gpg-agent: No pinentry") {
		t.Errorf("no pinentry: %v", err)
	}
}

// TestGPGKilled kills the agent while it signs.
func TestGPGKilled(t *testing.T) {
	t.Parallel()
	h := newGPGHome(t)
	uri := h.newKey(t, "rsa2048", "")
	cert := h.certify(t, uri)
	key, err := Open(t.Context(), uri, h.options(cert))
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	var kill sync.Once
	digest := sha256.Sum256(nil)
	err = batch.Each(t.Context(), 1000, 4, func(i int) error {
		if i == 20 {
			kill.Do(func() {
				if err := h.command("gpgconf", "--kill", "gpg-agent").Run(); err != nil {
					t.Error(err)
				}
			})
		}
		_, err := key.Sign(nil, digest[:], crypto.SHA256)
		return err
	})
	e, ok := errors.AsType[*Error](err)
	if !ok || !e.Lost() || !strings.Contains(err.Error(), "gpg-agent has closed the connection") {
		t.Errorf("%v", err)
	}
	// The next run starts an agent.
	again, err := Open(t.Context(), uri, h.options(cert))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := again.Sign(nil, digest[:], crypto.SHA256); err != nil {
		t.Error(err)
	}
}

// TestGPGInterrupt ends the context while the agent waits for a passphrase.
func TestGPGInterrupt(t *testing.T) {
	testmod.Slow(t, "it waits for an agent that does not answer")
	t.Parallel()
	h := newGPGHome(t)
	uri := h.newKey(t, "rsa2048", "horse-battery")
	asked := h.dir + "/asked"
	pinentry := "#!/bin/sh\n: >" + asked + "\nexec sleep 600\n"
	if err := os.WriteFile(h.dir+"/pinentry", []byte(pinentry), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.dir+"/gpg-agent.conf", []byte("pinentry-program "+h.dir+"/pinentry\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	testmod.Run(t, "env", "GNUPGHOME="+h.dir, "gpgconf", "--kill", "gpg-agent") // which has the passphrase
	ctx, cancel := context.WithCancelCause(t.Context())
	key, err := openGPG(ctx, uri, h.options(new(x509.Certificate)))
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	cause := errors.New("interrupted")
	go func() {
		for t.Context().Err() == nil {
			if _, err := os.Stat(asked); err == nil {
				cancel(cause)
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	digest := sha256.Sum256(nil)
	errs := make(chan error)
	for range 3 {
		go func() {
			_, err := key.Sign(nil, digest[:], crypto.SHA256)
			errs <- err
		}()
	}
	for range 3 {
		if err := <-errs; !errors.Is(err, cause) {
			t.Errorf("%v, want the cause", err)
		}
	}
}

// TestGPGPinentry has a pinentry that writes down what it is asked.
func TestGPGPinentry(t *testing.T) {
	testmod.Slow(t, "it waits for a pinentry")
	t.Parallel()
	for name, c := range map[string]struct{ answer, want string }{
		"passphrase": {"D horse-battery", ""},
		"cancelled":  {"ERR 83886179 Operation cancelled", "gpg-agent: Operation cancelled"},
	} {
		h := newGPGHome(t)
		uri := h.newKey(t, "rsa2048", "horse-battery")
		log := h.dir + "/log"
		end := "echo OK"
		if c.want != "" {
			end = ":"
		}
		pinentry := "#!/bin/sh\necho OK\nwhile read -r line; do\necho \"$line\" >>" + log + "\n" +
			"case $line in GETPIN*) echo '" + c.answer + "'; " + end + ";; *) echo OK;; esac\ndone\n"
		if err := os.WriteFile(h.dir+"/pinentry", []byte(pinentry), 0o700); err != nil {
			t.Fatal(err)
		}
		conf := "pinentry-program " + h.dir + "/pinentry\n"
		if err := os.WriteFile(h.dir+"/gpg-agent.conf", []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
		testmod.Run(t, "env", "GNUPGHOME="+h.dir, "gpgconf", "--kill", "gpg-agent")
		o := h.options(new(x509.Certificate))
		o.LookupEnv = func(name string) (string, bool) {
			value, ok := map[string]string{"GPG_TTY": "/dev/pts/77", "TERM": "vt\n52"}[name]
			return value, ok
		}
		key, err := openGPG(t.Context(), uri, o)
		if err != nil {
			t.Fatal(err)
		}
		defer key.Close()
		digest := sha256.Sum256(nil)
		for range 5 {
			_, err := key.Sign(nil, digest[:], crypto.SHA256)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want)) {
				t.Errorf("%s: %v, want %q", name, err, c.want)
			}
		}
		asked, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		text := string(asked)
		if strings.Count(text, "GETPIN") != 1 || !strings.Contains(text, "OPTION ttyname=/dev/pts/77\n") ||
			!strings.Contains(text, "modsign signs kernel modules%0Awith the key "+uri[4:]) {
			t.Errorf("%s: the pinentry was asked\n%s", name, text)
		}
	}
}

// TestPinentryOptions has the terminal of a process whose user has not set GPG_TTY.
func TestPinentryOptions(t *testing.T) {
	t.Parallel()
	lookup := func(name string) (string, bool) {
		value, ok := map[string]string{"TERM": "xterm", "DISPLAY": ":0\nKILLAGENT", "WAYLAND_DISPLAY": "w"}[name]
		return value, ok
	}
	got := pinentryOptions(lookup, "/dev/pts/3")
	if want := []string{"ttyname=/dev/pts/3", "ttytype=xterm", "putenv=WAYLAND_DISPLAY=w"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
