package pkcs11

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/modsign/modsign/internal/keyfile"
	"github.com/modsign/modsign/internal/testmod"
)

// A bench is a SoftHSM and how to get to it.
type bench struct {
	*testmod.SoftHSM
	config Config
	notes  []string
}

func newBench(t *testing.T, labels ...string) *bench {
	t.Helper()
	b := &bench{SoftHSM: testmod.NewSoftHSM(t, labels...)}
	b.config = Config{
		Program: testmod.Program(t, "p11-kit", "p11-kit"),
		Environ: b.Environ(),
		PIN:     func() ([]byte, error) { return []byte(testmod.PIN), nil },
		Note:    func(note string) { b.notes = append(b.notes, note) },
	}
	return b
}

// open opens the key of a URI in the SoftHSM, until the test ends.
func (b *bench) open(t *testing.T, uri string) *Key {
	t.Helper()
	// The context of the test ends before its cleanup, which would be an interrupt: a server
	// may then still log in to a token that SoftHSM shows to nobody else meanwhile.
	key, err := b.tryOpen(context.WithoutCancel(t.Context()), uri)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { key.Close() })
	return key
}

func (b *bench) tryOpen(ctx context.Context, uri string) (*Key, error) {
	if b.config.ServerAddress == "" && !strings.Contains(uri, "module-") {
		separator := "?"
		if strings.Contains(uri, "?") {
			separator = "&"
		}
		uri += separator + "module-path=" + b.Module
	}
	u, err := ParseURI(uri)
	if err != nil {
		return nil, err
	}
	return Open(ctx, u, b.config)
}

// wantError checks an error and its hint, and that neither holds the PIN.
func wantError(t *testing.T, err error, want, wantHint string) {
	t.Helper()
	hint := ""
	if e, ok := errors.AsType[*keyfile.HintError](err); ok {
		hint = e.Hint
	}
	if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(hint, wantHint) {
		t.Errorf("error %v, hint %q; want %q, %q", err, hint, want, wantHint)
	}
	if err != nil && strings.Contains(err.Error()+hint, testmod.PIN) {
		t.Errorf("the PIN is in %v, %s", err, hint)
	}
}

var algorithms = []string{"rsa:2048", "rsa:4096", "ecdsa:p256", "ecdsa:p384", "ecdsa:p521"}

// TestSign signs with keys of all kinds, through each version of p11-kit, by a child and
// by a socket.
func TestSign(t *testing.T) {
	t.Parallel()
	const token = "modules"
	b := newBench(t, token)
	for i, algorithm := range algorithms {
		b.Import(t, token, algorithm, fmt.Sprintf("%02x", i+1), testmod.NewKey(t, algorithm))
	}
	for _, kit := range testmod.Few(testmod.P11Kits(t), 1) {
		t.Run(kit.Name, func(t *testing.T) {
			b := *b
			b.config.Program = filepath.Join(kit.Dir, "p11-kit")
			for _, way := range []string{"child", "socket"} {
				if way == "socket" {
					b.config.ServerAddress = b.Serve(t, b.config.Program, token)
				}
				for i, algorithm := range algorithms {
					t.Run(way+"/"+algorithm, func(t *testing.T) {
						k := b.open(t, fmt.Sprintf("PKCS11:token=%s;id=%%%02X;type=private", token, i+1))
						signAll(t, k, testmod.NewKey(t, algorithm).Private)
					})
				}
			}
		})
	}
}

// signAll signs with every hash, several times at once.
func signAll(t *testing.T, k *Key, private crypto.Signer) {
	t.Helper()
	if public := private.Public().(interface{ Equal(crypto.PublicKey) bool }); !public.Equal(k.Public()) {
		t.Fatalf("public key is %v", k.Public())
	}
	var group sync.WaitGroup
	for hash := range digestAlgorithms {
		group.Go(func() {
			digest := make([]byte, hash.Size())
			rand.Read(digest)
			signature, err := k.Sign(nil, digest, hash)
			if err != nil {
				t.Error(err)
				return
			}
			switch private := private.(type) {
			case *rsa.PrivateKey:
				if want, err := private.Sign(nil, digest, hash); err != nil || string(signature) != string(want) {
					t.Errorf("%v: the signature is not that of the key in a file (%v)", hash, err)
				}
			case *ecdsa.PrivateKey:
				if !ecdsa.VerifyASN1(&private.PublicKey, digest, signature) {
					t.Errorf("%v: the signature is wrong", hash)
				}
			}
		})
	}
	group.Wait()
}

// TestFind is about URIs that name no key, or more than one.
func TestFind(t *testing.T) {
	t.Parallel()
	b := newBench(t, "first", "second")
	key := testmod.NewKey(t, "ecdsa:p256")
	b.Import(t, "first", "twin", "01", key)
	b.Import(t, "first", "twin", "02", testmod.NewKey(t, "ecdsa:p384"))
	b.Import(t, "first", "other", "03", key)
	for _, test := range []struct{ uri, want, hint string }{
		{"pkcs11:token=third", "no such token", "the tokens that are there: pkcs11:model=SoftHSM%20v2;manufacturer=SoftHSM%20project;serial="},
		{"pkcs11:token=first;serial=1", "no such token", "token=second"},
		{"pkcs11:object=twin", "the URI names 2 tokens", "name one of them: pkcs11:model="},
		{"pkcs11:token=first;object=none", "no such private key in the token", ";id=%03;object=other"},
		{"pkcs11:token=second", "no such private key in the token", "the private keys that are there: none"},
		{"pkcs11:token=first;object=twin", "the URI names 2 private keys", "name one of them: pkcs11:token=first;serial="},
		{"pkcs11:token=first;object=twin;id=%04", "no such private key", ""},
		{"pkcs11:token=first;object=other;library-manufacturer=Other", "no such token", ""},
		{"pkcs11:token=first?module-path=/nowhere/p11.so", "p11-kit remote /nowhere/p11.so: ended (exit status 1)",
			"P11_KIT_DEBUG=lib p11-kit remote '/nowhere/p11.so' </dev/null"},
		{"pkcs11:token=first?module-name=nowhere", "p11-kit remote nowhere.so: ended (exit status 1)",
			"P11_KIT_DEBUG=lib p11-kit remote 'nowhere.so' </dev/null"},
	} {
		_, err := b.tryOpen(t.Context(), test.uri)
		wantError(t, err, test.want, test.hint)
	}
	for _, uri := range []string{
		"pkcs11:token=first;object=twin;id=%02",
		"pkcs11:token=first;object=other;library-manufacturer=SoftHSM;library-description=Implementation%20of%20PKCS11",
		"pkcs11:token=first;id=%03;manufacturer=SoftHSM%20project;model=SoftHSM%20v2;x-ours=1?x-ours=2",
	} {
		b.open(t, uri)
	}
	b.config.Program = ""
	_, err := b.tryOpen(t.Context(), "pkcs11:token=first;object=other")
	wantError(t, err, "the program p11-kit is missing", "apt-get install p11-kit")
}

// TestConfigured finds a token through the modules that p11-kit is configured to load, and
// through the one of PKCS11_MODULE_PATH.
func TestConfigured(t *testing.T) {
	t.Parallel()
	b := newBench(t, "conf")
	b.Import(t, "conf", "k", "01", testmod.NewKey(t, "ecdsa:p256"))
	for _, kit := range testmod.P11Kits(t) {
		b.config.Program = filepath.Join(kit.Dir, "p11-kit")
		for _, module := range []string{"", b.Module} {
			b.config.ModulePath = module
			for _, uri := range []string{"pkcs11:object=k", "pkcs11:token=conf"} {
				u, err := ParseURI(uri)
				if err != nil {
					t.Fatal(err)
				}
				k, err := Open(t.Context(), u, b.config)
				if err != nil {
					t.Errorf("%s, %q: %v", kit.Name, module, err)
					continue
				}
				signAll(t, k, testmod.NewKey(t, "ecdsa:p256").Private)
				k.Close()
			}
		}
	}
}

// TestPIN is about the ways of a PIN, and that a wrong one is tried once.
func TestPIN(t *testing.T) {
	t.Parallel()
	b := newBench(t, "modules")
	b.Import(t, "modules", "k", "01", testmod.NewKey(t, "ecdsa:p256"))
	const uri = "pkcs11:token=modules;object=k"
	calls := 0
	answer := func(pin string, err error) func() ([]byte, error) {
		return func() ([]byte, error) { calls++; return []byte(pin), err }
	}
	b.config.PIN = answer("wrong-"+testmod.PIN, nil)
	_, err := b.tryOpen(t.Context(), uri)
	wantError(t, err, "wrong PIN: C_Login: CKR_PIN_INCORRECT, and the token has fewer tries left than it allows",
		"correct the PIN: modsign tries it once a run")
	if calls != 1 {
		t.Errorf("asked for the PIN %d times", calls)
	}
	b.config.PIN = answer("", nil)
	_, err = b.tryOpen(t.Context(), uri)
	wantError(t, err, "the token wants a PIN, and there is none", "")
	no := errors.New("no PIN today")
	b.config.PIN = answer("", no)
	if _, err = b.tryOpen(t.Context(), uri); err != no {
		t.Errorf("error %v, want that of the caller", err)
	}

	file := testmod.WriteFile(t, "pin file", []byte(testmod.PIN+"\nmore\n"))
	source := strings.ReplaceAll(file, " ", "%20")
	b.config.PIN = nil
	b.open(t, uri+"?pin-source=file:"+source)
	b.open(t, uri+"?pin-source=file://"+source)
	b.open(t, uri+"?pin-source="+source)
	if len(b.notes) != 0 {
		t.Errorf("notes: %q", b.notes)
	}
	_, err = b.tryOpen(t.Context(), uri+"?pin-source=file:/nowhere")
	wantError(t, err, "pin-source: open /nowhere: no such file", "")
	b.open(t, uri+"?pin-value="+testmod.PIN)
	notes := strings.Join(b.notes, "\n")
	if len(b.notes) != 1 || !strings.Contains(notes, "list of processes") || strings.Contains(notes, testmod.PIN) {
		t.Errorf("notes: %q", b.notes)
	}
	_, err = b.tryOpen(t.Context(), uri)
	wantError(t, err, "the token wants a PIN, and there is none", "")
}

// TestCertificate takes the certificate from the token.
func TestCertificate(t *testing.T) {
	t.Parallel()
	b := newBench(t, "modules")
	key, other := testmod.NewKey(t, "ecdsa:p256"), testmod.NewKey(t, "ecdsa:p384")
	b.Import(t, "modules", "with", "01", key)
	b.ImportCertificate(t, "modules", "with", "01", key.Certificate)
	b.ImportCertificate(t, "modules", "another's", "01", other.Certificate)
	b.Import(t, "modules", "without", "02", key)
	k := b.open(t, "pkcs11:token=modules;object=with")
	if k.Certificate() == nil || !k.Certificate().Equal(key.Certificate) {
		t.Errorf("certificate %v", k.Certificate())
	}
	if k := b.open(t, "pkcs11:token=modules;object=without"); k.Certificate() != nil {
		t.Errorf("certificate %v", k.Certificate())
	}
	// Without the public key object, the certificate says it.
	b.Tool(t, "modules", "--delete-object", "--type", "pubkey", "--id", "01")
	b.Tool(t, "modules", "--delete-object", "--type", "pubkey", "--id", "02")
	k = b.open(t, "pkcs11:token=modules;object=with")
	if k.Certificate() == nil {
		t.Error("no certificate")
	}
	_, err := b.tryOpen(t.Context(), "pkcs11:token=modules;object=without")
	wantError(t, err, "the token has neither the public half of the key nor a certificate", "give the file of")
	b.config.Certificate = key.Certificate
	signAll(t, b.open(t, "pkcs11:token=modules;object=without"), key.Private)
}

// TestAlwaysAuthenticate signs with a key for which the token wants the PIN each time.
func TestAlwaysAuthenticate(t *testing.T) {
	t.Parallel()
	b := newBench(t, "modules")
	key := testmod.NewKey(t, "rsa:2048")
	file, _ := key.Files(t)
	b.Tool(t, "modules", "--write-object", file, "--type", "privkey", "--id", "01", "--label", "k",
		"--always-auth", "--usage-sign")
	b.config.Certificate = key.Certificate
	k := b.open(t, "pkcs11:token=modules;object=k")
	if !k.always || k.BatchSize() != 1 {
		t.Errorf("always %v, %d connections", k.always, k.BatchSize())
	}
	signAll(t, k, key.Private)
}

// children returns the processes that this one has started with p11-kit.
func children(t *testing.T) []int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	ours := fmt.Sprintf("\nPPid:\t%d\n", os.Getpid())
	var found []int
	for _, dir := range dirs {
		status, _ := os.ReadFile(filepath.Join(dir, "status"))
		if strings.Contains(string(status), ours) && strings.Contains(string(status), "p11-kit") {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			found = append(found, pid)
		}
	}
	return found
}

// signUntilError signs with several goroutines until each has an error, and calls during
// after the first signature.
func signUntilError(t *testing.T, k *Key, during func()) []error {
	t.Helper()
	errs := make([]error, 8)
	var once sync.Once
	var group sync.WaitGroup
	digest := sha512.Sum384([]byte("digest"))
	for i := range errs {
		group.Go(func() {
			for errs[i] == nil {
				_, errs[i] = k.Sign(nil, digest[:], crypto.SHA384)
				once.Do(during)
			}
		})
	}
	group.Wait()
	return errs
}

// TestDeath kills the program of the module. It runs alone: it looks at the children of
// this process.
func TestDeath(t *testing.T) {
	b := newBench(t, "modules")
	b.Import(t, "modules", "k", "01", testmod.NewKey(t, "ecdsa:p384"))
	k := b.open(t, "pkcs11:token=modules;object=k")
	for _, err := range signUntilError(t, k, func() {
		k.openMore() // if no call has
		k.opening.Wait()
		for _, pid := range children(t) {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}) {
		wantError(t, err, "p11-kit remote "+b.Module+": ended (signal: killed)", "")
	}
	k.Close()
	if left := children(t); len(left) != 0 {
		t.Errorf("children are left: %v", left)
	}
}

// TestInterrupt ends the context while the program of the module does not answer.
func TestInterrupt(t *testing.T) {
	testmod.Slow(t, "it waits for a program that is stopped")
	b := newBench(t, "modules")
	b.Import(t, "modules", "k", "01", testmod.NewKey(t, "ecdsa:p384"))
	ctx, cancel := context.WithCancelCause(t.Context())
	interrupted := errors.New("interrupted")
	k, err := b.tryOpen(ctx, "pkcs11:token=modules;object=k")
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range signUntilError(t, k, func() {
		k.openMore() // if no call has
		k.opening.Wait()
		for _, pid := range children(t) {
			syscall.Kill(pid, syscall.SIGSTOP)
		}
		cancel(interrupted)
	}) {
		if err != interrupted {
			t.Errorf("error %v, want %v", err, interrupted)
		}
	}
	k.Close()
	if left := children(t); len(left) != 0 {
		t.Errorf("children are left: %v", left)
	}
	if _, err := b.tryOpen(ctx, "pkcs11:token=modules;object=k"); err != interrupted {
		t.Errorf("error %v, want %v", err, interrupted)
	}
	b.config.ServerAddress = "unix:path=/nowhere"
	_, err = b.tryOpen(t.Context(), "pkcs11:token=modules;object=k")
	wantError(t, err, "p11-kit server at /nowhere: no such file or directory", "start p11-kit server")
}

// TestClose ends what was started.
func TestClose(t *testing.T) {
	b := newBench(t, "modules")
	b.Import(t, "modules", "k", "01", testmod.NewKey(t, "ecdsa:p256"))
	k := b.open(t, "pkcs11:token=modules;object=k")
	if len(children(t)) == 0 {
		t.Error("no child")
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	if _, err := k.Sign(nil, make([]byte, 32), crypto.SHA256); err != errClosed {
		t.Errorf("error %v", err)
	}
	if left := children(t); len(left) != 0 {
		t.Errorf("children are left: %v", left)
	}
	if slices.ContainsFunc(k.pin, func(b byte) bool { return b != 0 }) {
		t.Error("the PIN is still in memory")
	}
}
