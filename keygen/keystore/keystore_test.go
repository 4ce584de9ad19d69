package keystore

import (
	"strings"
	"testing"
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
