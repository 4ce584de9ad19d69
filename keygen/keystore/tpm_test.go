package keystore

import (
	"crypto"
	"crypto/sha512"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen"
)

// environ is an environment of one variable.
func environ(name, value string) func(string) (string, bool) {
	return func(n string) (string, bool) { return value, n == name }
}

// A key is made in the TPM, gets a certificate, is written, loaded and used, each with what
// the packages have for other keys, too.
func TestTPM(t *testing.T) {
	t.Parallel()
	env := environ("TPM2TOOLS_TCTI", testmod.StartSWTPM(t).TCTI)
	const secret = "horse-battery"
	for _, a := range []keygen.Algorithm{keygen.RSA2048, keygen.ECDSAP256, keygen.ECDSAP384} {
		key, err := NewTPM(t.Context(), env, a, []byte(secret))
		if err != nil {
			t.Fatal(err)
		}
		made, err := keygen.Certify(key, keygen.DefaultTemplate())
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "key.pem")
		if err := errors.Join(made.WriteFile(path), made.Close()); err != nil {
			t.Fatal(err)
		}
		if keygen.KeyName(made.Certificate.PublicKey) != a.String() {
			t.Errorf("%v is a key %s", a, keygen.KeyName(made.Certificate.PublicKey))
		}

		asked := 0
		answer := secret
		options := keygen.LoadOptions{
			Passphrase: func() ([]byte, error) { asked++; return []byte(answer), nil },
			OpenTPM:    TPM(t.Context(), env),
		}
		pair, err := keygen.Load(path, "", options)
		if err != nil || asked != 1 {
			t.Fatal(err, asked)
		}
		digest := sha512.Sum512([]byte("module"))
		signature, err := pair.Signer.Sign(nil, digest[:], crypto.SHA512)
		if err != nil || !cms.Verifies(pair.Certificate.PublicKey, crypto.SHA512, digest[:], signature) {
			t.Errorf("%v: %v", a, err)
		}
		again := filepath.Join(t.TempDir(), "again.pem")
		if err := errors.Join(pair.WriteFile(again), pair.Close()); err != nil {
			t.Error(err)
		}
		one, _ := os.ReadFile(path)
		two, _ := os.ReadFile(again)
		if len(one) == 0 || string(one) != string(two) {
			t.Error("a key that is loaded is written in another way")
		}

		// One question and one try for a wrong passphrase, none for a wrong certificate.
		asked, answer = 0, "wrong-secret"
		_, err = keygen.Load(path, "", options)
		if !errors.Is(err, keygen.ErrWrongPassphrase) || asked != 1 || strings.Contains(err.Error(), answer) {
			t.Errorf("%v: %v, asked %d times", a, err, asked)
		}
		asked = 0
		_, cert := testmod.NewKey(t, "ecdsa:p256").Files(t)
		if _, err := keygen.Load(path, cert, options); !errors.Is(err, keygen.ErrMismatch) || asked != 0 {
			t.Errorf("another certificate: %v, asked %d times", err, asked)
		}
		options.Passphrase = nil
		if _, err := keygen.Load(path, "", options); !errors.Is(err, keygen.ErrNoPassphrase) {
			t.Errorf("no passphrase: %v", err)
		}
	}
}

// What no TPM makes is refused before one is looked for. Without a variable it is the
// machine's own.
func TestNoTPM(t *testing.T) {
	t.Parallel()
	for _, a := range []keygen.Algorithm{keygen.RSA3072, keygen.RSA4096, keygen.ECDSAP521} {
		if _, err := NewTPM(t.Context(), nil, a, nil); err == nil || !strings.Contains(err.Error(), "not for TPMs") {
			t.Errorf("%v: %v", a, err)
		}
	}
	if _, err := os.Stat("/dev/tpmrm0"); err == nil {
		return // nothing is to be made in a real one
	}
	for _, env := range []func(string) (string, bool){nil, environ("TPM2TOOLS_TCTI", ""), environ("OTHER", "x")} {
		if _, err := NewTPM(t.Context(), env, keygen.ECDSAP256, nil); err == nil ||
			!strings.Contains(err.Error(), "/dev/tpmrm0") {
			t.Error(err)
		}
	}
}
