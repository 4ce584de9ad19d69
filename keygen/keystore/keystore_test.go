package keystore

import (
	"crypto"
	"crypto/sha256"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

func TestRedact(t *testing.T) {
	t.Parallel()
	for uri, want := range map[string]string{
		"pkcs11:token=a;object=b":                                    "",
		"pkcs11:token=a?module-path=/x.so&x-y=1":                     "",
		"vault:transit/key":                                          "",
		"pkcs11:token=a?pin-value=1234":                              "pkcs11:token=a?pin-value...",
		"pkcs11:token=a?pin-value=1234&module-path=/x.so":            "pkcs11:token=a?pin-value...&module-path=/x.so",
		"pkcs11:token=a?pin-value=12&34;module-path=/x.so&p-x=y":     "pkcs11:token=a?pin-value...;module-path=/x.so&p-x=y",
		"pkcs11:token=a;pin-value=12=34?5?6&module-name=x":           "pkcs11:token=a;pin-value...&module-name=x",
		"pkcs11:token=a?Pin-Value=1234":                              "pkcs11:token=a?pin-value...",
		"pkcs11:token=a?p%69n-value=1234":                            "pkcs11:token=a?pin-value...",
		"pkcs11:token=a? pin-value =1234":                            "pkcs11:token=a?pin-value...",
		"pkcs11:token=a?pin_value=1234":                              "pkcs11:token=a?pin-value...",
		"pkcs11:token=a?PIN=1234&module-path=/x.so":                  "pkcs11:token=a?pin-value...&module-path=/x.so",
		"pkcs11:pinvalue=1234":                                       "pkcs11:pin-value...",
		"pkcs11:token=a?pin-source=file:/pin":                        "",
		"vault:pins/spin":                                            "",
		"exec:./pin":                                                 "",
		"pkcs11:pin-value=1234":                                      "pkcs11:pin-value...",
		"pkcs11:pin-value=1234;token=a&pin-value=1234&pin-source=/x": "pkcs11:pin-value...&pin-value...&pin-source=/x",
		"pkcs11:token=a\x1b[2J\nb\xff":                               "pkcs11:token=a?[2J?b?",
	} {
		if want == "" {
			want = uri
		}
		if got := Redact(uri); got != want {
			t.Errorf("%q: %q, want %q", uri, got, want)
		}
	}
}

func FuzzRedact(f *testing.F) {
	f.Add("pkcs11:token=a?", "&module-path=/x")
	f.Add("pkcs11:", ";token=x")
	f.Add("PKCS11:token=%", "?&=;")
	f.Fuzz(func(t *testing.T, before, after string) {
		const pin = "5297\x01"
		for _, name := range []string{"pin-value=", "pin%2Dvalue=", "PIN-VALUE=", "pin=", "pinvalue="} {
			got := Redact(before + ";" + name + pin + after)
			if strings.Contains(got, "5297") && !strings.Contains(before+after, "5297") {
				t.Errorf("%q", got)
			}
			if strings.ContainsAny(got, "\x00\x01\n\x1b") {
				t.Errorf("control characters in %q", got)
			}
		}
	})
}

// sleepy is a store that signs when it is woken.
type sleepy struct {
	crypto.Signer
	awake chan struct{}
}

func (s sleepy) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	<-s.awake
	return s.Signer.Sign(rand, digest, opts)
}

func (s sleepy) Close() error { return nil }

// TestAwait waits for a store that says nothing until somebody has said so.
func TestAwait(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p256")
	awake := make(chan struct{})
	k := &Key{
		store: sleepy{key.Private, awake}, cert: key.Certificate, public: key.Private.Public(), patience: 1,
		slow: sync.OnceFunc(func() { close(awake) }), // a second remark would panic
	}
	digest := sha256.Sum256(nil)
	for range 3 {
		if _, err := k.Sign(nil, digest[:], crypto.SHA256); err != nil {
			t.Fatal(err)
		}
	}
}
