package verify

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// TestCertificateFiles has files of certificates that verify takes as sign does, and
// such that it refuses instead of trusting less than they hold.
func TestCertificateFiles(t *testing.T) {
	t.Parallel()
	a, b := testmod.NewKey(t, "ecdsa:p256"), testmod.NewKey(t, "ecdsa:p384")
	for name, test := range map[string]struct {
		data []byte
		want int
	}{
		"two":              {slices.Concat(a.CertPEM, b.CertPEM), 2},
		"key between":      {slices.Concat(a.CertPEM, a.KeyPEM, b.CertPEM), 2},
		"BOM":              {slices.Concat([]byte("\xef\xbb\xbf"), a.CertPEM), 1},
		"X509 CERTIFICATE": {bytes.ReplaceAll(a.CertPEM, []byte(" CERT"), []byte(" X509 CERT")), 1},
		"DER of two":       {slices.Concat(a.Certificate.Raw, b.Certificate.Raw), 2},
	} {
		keys := new(Keyring)
		if err := keys.AddFile(testmod.WriteFile(t, "certs", test.data)); err != nil || keys.Len() != test.want {
			t.Errorf("%s: %d certificates, %v", name, keys.Len(), err)
		}
	}
	for name, test := range map[string]struct {
		data []byte
		want string
	}{
		"one cut off":     {slices.Concat(a.CertPEM[:200], []byte("\n"), b.CertPEM), "at line 1 is damaged"},
		"no line breaks":  {bytes.ReplaceAll(a.CertPEM, []byte("\n"), []byte(" ")), "lost its line breaks"},
		"a key":           {a.KeyPEM, "neither PEM certificates nor DER"},
		"empty":           {nil, "empty"},
		"more than 4 MiB": {make([]byte, 5<<20), "more than"},
	} {
		keys := new(Keyring)
		path := testmod.WriteFile(t, "certs", test.data)
		err := keys.AddFile(path)
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Count(err.Error(), path) != 1 ||
			keys.Len() != 0 {
			t.Errorf("%s: %d certificates, %v", name, keys.Len(), err)
		}
	}
}
