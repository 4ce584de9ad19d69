package pkcs11

import (
	"strings"
	"testing"
)

func TestParseURI(t *testing.T) {
	t.Parallel()
	u, err := ParseURI("Pkcs11:token=My%20token%3b;object=a&b;id=%00%fF;slot-id=3;library-version=2.6;type=private;x-y=" +
		"?pin-source=file:/etc/a%20b&module-path=/usr/lib/x.so&x-z=1&x-z=2")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"token": "My token;", "object": "a&b", "id": "\x00\xff", "slot-id": "3", "library-version": "2.6", "type": "private",
	} {
		if got := u.path[name]; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if u.PINSource != "/etc/a b" || u.ModulePath != "/usr/lib/x.so" {
		t.Errorf("%+v", u)
	}
	for uri, want := range map[string]string{
		"pkcs11:":                                     "",
		"pkcs11:?module-name=softhsm":                 "",
		"pkcs11:token=":                               "",
		"pkcs11:?pin-value=%00a":                      "",
		"pkcs12:token=a":                              "not a pkcs11: URI",
		"pkcs11:token=a;token=b":                      "attribute token stands twice",
		"pkcs11:tokens=a":                             `unknown attribute "tokens"`,
		"pkcs11:token=a;":                             "attribute number 2 is not of the form NAME=VALUE",
		"pkcs11:token":                                "attribute number 1 is not of the form",
		"pkcs11:token=a b":                            "attribute token: character 2 of the value has to be percent-encoded",
		"pkcs11:token=a/b":                            "attribute token: character 2",
		"pkcs11:token=%4":                             "attribute token: % without two hexadecimal digits",
		"pkcs11:token=%zz":                            "attribute token: % without two hexadecimal digits",
		"pkcs11:token=%+1":                            "attribute token: % without two hexadecimal digits",
		"pkcs11:token=%ff":                            "attribute token: value is not text in UTF-8",
		"pkcs11:object=%00":                           "attribute object: value is not text",
		"pkcs11:type=cert":                            "attribute type: a private key is wanted",
		"pkcs11:slot-id=x":                            "attribute slot-id: not a number",
		"pkcs11:library-version=2.x":                  "attribute library-version: not of the form MAJOR.MINOR",
		"pkcs11:pin-source=/x":                        "attribute pin-source belongs behind the question mark",
		"pkcs11:?token=x":                             "attribute token belongs before the question mark",
		"pkcs11:?pin-source=|id":                      "attribute pin-source: modsign runs no program for a PIN",
		"pkcs11:?pin-source=file:x":                   "attribute pin-source: not of the form file:/PATH",
		"pkcs11:?module-path=x.so":                    "attribute module-path: not an absolute path",
		"pkcs11:?module-name=../x":                    "attribute module-name: not the name of a file",
		"pkcs11:?module-name=-v":                      "attribute module-name: not the name of a file",
		"pkcs11:?module-path=/x&module-name=y":        "module-path and module-name exclude each other",
		"pkcs11:?pin-value=1&pin-source=/x":           "pin-source and pin-value exclude each other",
		"pkcs11:?pin-value=12&34=5":                   "unknown attribute after pin-value",
		"pkcs11:token=" + strings.Repeat("a", maxURI): "URI has more than",
	} {
		_, err := ParseURI(uri)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", uri, err, want)
		}
	}
}

func FuzzParseURI(f *testing.F) {
	f.Add("pkcs11:token=My%20token;id=%01%02;object=a;type=private?pin-source=file:/x&module-path=/y")
	f.Add("PKCS11:slot-id=18446744073709551616;library-version=1.256?pin-value=%31%26&x-a=b")
	f.Add("pkcs11:;;=%")
	f.Fuzz(func(t *testing.T, text string) {
		u, err := ParseURI(text)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\x00\n\x1b") {
				t.Errorf("control characters in %q", err)
			}
			return
		}
		// What is written is read back.
		again, err := ParseURI(format(u.path, pathAttributes...))
		if err != nil {
			t.Fatalf("%q: %v", format(u.path, pathAttributes...), err)
		}
		for name, value := range u.path {
			if again.path[name] != value {
				t.Errorf("%s was %q and is %q", name, value, again.path[name])
			}
		}
	})
}
