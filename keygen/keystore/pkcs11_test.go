package keystore

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen"
)

// TestToken opens a key in a token, and looks for the PIN where others could see it.
func TestToken(t *testing.T) {
	hsm := testmod.NewSoftHSM(t, "kernel")
	key := testmod.NewKey(t, "ecdsa:p384")
	hsm.Import(t, "kernel", "modules", "01", key)
	environ := append(hsm.Environ(), "KBUILD_SIGN_PIN="+testmod.PIN)
	options := Options{
		LookupEnv: func(name string) (string, bool) {
			value := ""
			for _, variable := range environ {
				if v, ok := strings.CutPrefix(variable, name+"="); ok {
					value = v
				}
			}
			return value, value != ""
		},
		Environ:     environ,
		Certificate: key.Certificate,
		PIN:         func() ([]byte, error) { return []byte(testmod.PIN), nil },
	}
	uri := "PKCS11:token=kernel;object=modules?module-path=" + hsm.Module
	for _, test := range []string{uri, uri + "&pin-value=" + testmod.PIN, "pkcs11:token=kernel"} {
		k, err := Open(t.Context(), test, options)
		if err != nil {
			t.Fatal(err)
		}
		digest := sha256.Sum256([]byte("digest"))
		if _, err := k.Sign(nil, digest[:], crypto.SHA256); err != nil {
			t.Error(err)
		}
		if _, err := k.Sign(nil, digest[:], crypto.SHA3_256); err != nil {
			t.Error(err)
		}
		seen := 0
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		for _, dir := range dirs {
			status, _ := os.ReadFile(filepath.Join(dir, "status"))
			if !bytes.Contains(status, fmt.Appendf(nil, "\nPPid:\t%d\n", os.Getpid())) {
				continue
			}
			seen++
			for _, file := range []string{"cmdline", "environ"} {
				if data, _ := os.ReadFile(filepath.Join(dir, file)); bytes.Contains(data, []byte(testmod.PIN)) {
					t.Errorf("the PIN is in the child's %s", file)
				}
			}
		}
		if seen == 0 {
			t.Error("no child")
		}
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}

	options.PIN = func() ([]byte, error) { return nil, keygen.ErrNoPassphrase }
	_, err := Open(t.Context(), uri, options)
	if !errors.Is(err, keygen.ErrNoPassphrase) || !strings.Contains(err.Error(), ": the token wants a PIN, and") {
		t.Errorf("no PIN: %v", err)
	}
	options.PIN = func() ([]byte, error) { return []byte(testmod.PIN), nil }
	options.Certificate = testmod.NewKey(t, "ecdsa:p256").Certificate
	if _, err := Open(t.Context(), uri, options); !errors.Is(err, keygen.ErrMismatch) {
		t.Errorf("another's certificate: %v", err)
	}
	options.Certificate = nil
	if _, err := Open(t.Context(), uri, options); !errors.Is(err, keygen.ErrNoCertificate) {
		t.Errorf("no certificate: %v", err)
	}
	hsm.ImportCertificate(t, "kernel", "modules", "01", key.Certificate)
	k, err := Open(t.Context(), uri, options)
	if err != nil || !k.Certificate().Equal(key.Certificate) {
		t.Fatalf("certificate in the token: %v", err)
	}
	k.Close()
	environ = append(environ, "PATH=/nowhere:relative")
	_, err = Open(t.Context(), uri, options)
	if err == nil || !strings.Contains(err.Error(), "the program p11-kit is missing") {
		t.Errorf("no p11-kit: %v", err)
	}
}
