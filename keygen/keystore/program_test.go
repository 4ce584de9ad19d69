package keystore

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"filippo.io/mldsa"

	"github.com/modsign/modsign/internal/keyfile"
	"github.com/modsign/modsign/internal/mldsamu"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen"
)

var examples = []string{"signer.sh", "signer.py"}

func example(name string) string { return filepath.Join("../../scripts/signer", name) }

// module is what package sign tells a key.
type module struct {
	crypto.Hash
	path string
	size int64
}

func (m module) Module() (string, int64) { return m.path, m.size }

// withKey is the environment of the examples.
func withKey(file string) []string { return append(os.Environ(), "SIGNER_KEY="+file) }

// TestProgram has the examples of docs/signer.md sign.
func TestProgram(t *testing.T) {
	t.Parallel()
	testmod.Program(t, "openssl", "openssl")
	testmod.Program(t, "python3", "python3")
	for _, name := range examples {
		for _, algorithm := range []string{"rsa:2048", "ecdsa:p256", "ecdsa:p384"} {
			t.Run(name+" "+algorithm, func(t *testing.T) {
				t.Parallel()
				key := testmod.NewKey(t, algorithm)
				file, _ := key.Files(t)
				k, err := Open(t.Context(), "exec:"+example(name), Options{
					Certificate: key.Certificate, Environ: withKey(file), Note: func(s string) { t.Error(s) },
				})
				if err != nil {
					t.Fatal(err)
				}
				if k.BatchSize() != 1 || k.Certificate() != key.Certificate {
					t.Errorf("batches of %d, %v", k.BatchSize(), k.Certificate())
				}
				var all sync.WaitGroup
				for _, opts := range []crypto.SignerOpts{
					module{crypto.SHA256, `a/"id":9,"hash":"x\.ko`, 7}, module{crypto.SHA512, "", 7}, crypto.SHA384, crypto.SHA3_256,
				} {
					all.Go(func() {
						digest := make([]byte, opts.HashFunc().Size())
						digest[0], digest[3] = 0xff, '\n'
						signature, err := k.Sign(nil, digest, opts)
						if err != nil { // Sign has checked it
							t.Errorf("%v: %v", opts, err)
							return
						}
						if algorithm != "rsa:2048" {
							return
						}
						want, err := key.Private.Sign(nil, digest, opts.HashFunc())
						if err != nil || string(signature) != string(want) {
							t.Errorf("%v: another signature than that of the key's file: %v", opts, err)
						}
					})
				}
				all.Wait()
				if err := k.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestProgramFails checks what is said of a program that cannot sign.
func TestProgramFails(t *testing.T) {
	t.Parallel()
	testmod.Program(t, "openssl", "openssl")
	testmod.Program(t, "python3", "python3")
	key, other := testmod.NewKey(t, "ecdsa:p256"), testmod.NewKey(t, "rsa:2048")
	file, _ := other.Files(t)
	digest := make([]byte, 32)
	for _, name := range examples {
		uri := "exec:" + example(name)
		wrong, err := Open(t.Context(), uri, Options{Certificate: key.Certificate, Environ: withKey(file)})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // it is one module's error, and not the key's end
			_, err := wrong.Sign(nil, digest, crypto.SHA256)
			if e, ok := errors.AsType[*Error](err); !ok || !errors.Is(err, ErrWrong) || e.URI != uri || e.Lost() {
				t.Errorf("%s: the key of another certificate: %v", name, err)
			}
		}
		if err := wrong.Close(); err != nil {
			t.Error(err)
		}
		missing, err := Open(t.Context(), uri, Options{Certificate: key.Certificate, Environ: withKey("/no/key")})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := missing.Sign(nil, digest, crypto.SHA256); err == nil ||
			!strings.HasPrefix(err.Error(), uri+": the program refuses: ") {
			t.Errorf("%s: no key: %v", name, err)
		}
		if err := missing.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := Open(t.Context(), "exec:"+example("signer.sh"), Options{}); !errors.Is(err, keygen.ErrNoCertificate) {
		t.Errorf("no certificate: %v", err)
	}
	_, err := Open(t.Context(), "exec:", Options{Certificate: key.Certificate})
	if hint, ok := errors.AsType[*keyfile.HintError](err); !ok || hint.Hint == "" {
		t.Errorf("no program: %v", err)
	}
}

// TestProgramLost checks that a run ends with its program, and what a program is given.
func TestProgramLost(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p256")
	path := filepath.Join(t.TempDir(), "signer")
	syscall.ForkLock.RLock() // no process that another test forks may hold it open for writing
	err := os.WriteFile(path, []byte(`#!/bin/sh
env | sort | head -n 3 | tr '\n' ' ' >&2
read -r hello
echo '{"message_type":"hello","version":1,"max_in_flight":100}'
read -r request
exit 1
`), 0o755)
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 9)
	k, err := Open(t.Context(), "exec:"+path, Options{
		Certificate: key.Certificate, Note: func(text string) { said <- text },
		Environ: []string{"KBUILD_SIGN_PIN=secret", "A=1", "KBUILD_SIGN_PIN=secret", "B=2", "PATH=" + os.Getenv("PATH")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if processors := runtime.GOMAXPROCS(0); k.BatchSize() != (100+processors+1)/(processors+2) {
		t.Errorf("batches of %d", k.BatchSize())
	}
	if _, err := k.Sign(nil, make([]byte, 32), crypto.SHA256); err == nil {
		t.Error("signed")
	} else if e, ok := errors.AsType[*Error](err); !ok || !e.Lost() {
		t.Errorf("not lost: %v", err)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	if text := <-said; !strings.HasPrefix(text, path+": A=1 B=2 P") {
		t.Errorf("its environment: %s", text)
	}
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if _, err := Open(ctx, "exec:"+path, Options{Certificate: key.Certificate}); !errors.Is(err, why) {
		t.Errorf("interrupted: %v", err)
	}
}

// TestProgramDocumented checks that docs/signer.md shows the examples as they are.
func TestProgramDocumented(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/signer.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range examples {
		text, err := os.ReadFile(example(name))
		if err != nil {
			t.Fatal(err)
		}
		var block strings.Builder
		for line := range strings.Lines(string(text)) {
			if line != "\n" {
				block.WriteString("    ")
			}
			block.WriteString(line)
		}
		if !strings.Contains(string(doc), "\n\n"+block.String()+"\n") {
			t.Errorf("docs/signer.md does not show scripts/signer/%s as it is", name)
		}
	}
}

// TestProgramMLDSA has the first example sign mu, changed as docs/signer.md says.
func TestProgramMLDSA(t *testing.T) {
	t.Parallel()
	openssl := testmod.OpenSSL35(t)
	key := testmod.NewKey(t, "mldsa:65")
	file, _ := key.Files(t)
	text, err := os.ReadFile(example("signer.sh"))
	if err != nil {
		t.Fatal(err)
	}
	const call = `openssl pkeyutl -sign -inkey "$SIGNER_KEY" -pkeyopt `
	program := testmod.WriteFile(t, "signer.sh", []byte(strings.Replace(string(text), call+`"digest:$hash"`,
		`{ cat >"$SIGNER_KEY.mu"; `+call+`mu:1 -in "$SIGNER_KEY.mu"; }`, 1)))
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(key.Certificate.Raw) // its key may be nil
	if err != nil {
		t.Fatal(err)
	}
	k, err := Open(t.Context(), "exec:"+program, Options{
		Certificate: cert, Note: func(s string) { t.Error(s) },
		Environ: append(withKey(file), "PATH="+filepath.Dir(openssl)+":"+os.Getenv("PATH")),
	})
	if err != nil {
		t.Fatal(err)
	}
	if !key.Certificate.PublicKey.(*mldsa.PublicKey).Equal(k.Public()) {
		t.Errorf("public key %T", k.Public())
	}
	digest := make([]byte, mldsamu.Size)
	digest[0], digest[3] = 0xff, '\n'
	for _, opts := range []crypto.SignerOpts{mldsamu.Mu65, module{mldsamu.Mu65, "a/x.ko", 7}} {
		if _, err := k.Sign(nil, digest, opts); err != nil { // Sign has checked it
			t.Error(err)
		}
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
}

// TestStoresWithoutMLDSA opens stores for a certificate with whose kind of key they cannot sign.
func TestStoresWithoutMLDSA(t *testing.T) {
	t.Parallel()
	for _, uri := range []string{"pkcs11:token=a;object=b", "vault:transit/a", "gpg:" + strings.Repeat("A", 40)} {
		_, err := Open(t.Context(), uri, Options{Certificate: testmod.NewKey(t, "mldsa:87").Certificate})
		hint, ok := errors.AsType[*keyfile.HintError](err)
		if !ok || !strings.Contains(err.Error(), uri+": certificate's key is ML-DSA-87") ||
			!strings.Contains(hint.Hint, "exec:") {
			t.Errorf("%s: %v", uri, err)
		}
	}
	_, err := NewTPM(t.Context(), nil, keygen.MLDSA65, nil)
	_, ok := errors.AsType[*keyfile.HintError](err)
	if !ok || !strings.HasPrefix(err.Error(), "mldsa:65 is not for TPMs") {
		t.Errorf("TPM: %v", err)
	}
}
