package keygen_test

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/keygen"
)

// A Pair that lacks a half is an error, and writes nothing.
func TestPairIsNotWhole(t *testing.T) {
	t.Parallel()
	good, err := keygen.Generate(keygen.ECDSAP256, keygen.DefaultTemplate())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, pair := range map[string]*keygen.Pair{
		"nil":             nil,
		"zero":            {},
		"no certificate":  {Signer: good.Signer},
		"not parsed":      {Signer: good.Signer, Certificate: new(x509.Certificate)},
		"no key":          {Certificate: good.Certificate},
		"a nil RSA key":   {Signer: (*rsa.PrivateKey)(nil), Certificate: good.Certificate},
		"a nil ECDSA key": {Signer: (*ecdsa.PrivateKey)(nil), Certificate: good.Certificate},
	} {
		path := filepath.Join(dir, "key.pem")
		if err := pair.WritePEM(io.Discard); err == nil {
			t.Errorf("%s: WritePEM wrote it", name)
		}
		if err := pair.WriteFile(path); err == nil {
			t.Errorf("%s: WriteFile wrote it", name)
		}
		if pair == nil || pair.Certificate == nil || pair.Certificate.Raw == nil {
			if err := pair.WriteCertificate(path, keygen.PEM); err == nil {
				t.Errorf("%s: WriteCertificate wrote it", name)
			}
		}
	}
	if err := good.WriteCertificate(filepath.Join(dir, "cert"), keygen.Encoding(2)); err == nil ||
		!strings.Contains(err.Error(), "Encoding(2)") {
		t.Errorf("an encoding that there is not: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("%v was written", left)
	}
}

// Every value has a String, and one that is none is no key.
func TestUnknownValues(t *testing.T) {
	t.Parallel()
	for i := range 256 {
		for _, s := range []string{keygen.Algorithm(i).String(), keygen.Encoding(i).String()} {
			if s == "" || i > 9 && !strings.Contains(s, fmt.Sprint(i)) {
				t.Errorf("%d: %q", i, s)
			}
		}
	}
	if keygen.PEM.String() != "PEM" || keygen.DER.String() != "DER" {
		t.Errorf("%v, %v", keygen.PEM, keygen.DER)
	}
	for _, a := range []keygen.Algorithm{0, 10, 255} {
		if pair, err := keygen.Generate(a, keygen.DefaultTemplate()); err == nil || pair != nil {
			t.Errorf("%v: %v", a, err)
		}
	}
}
