package keyctl

import (
	"errors"
	"maps"
	"os"
	"strings"
	"testing"
)

func TestKeyrings(t *testing.T) {
	t.Parallel()
	rings, err := Keyrings(strings.NewReader(`01c965e3 I------     1 perm 0f0b0000     0     0 keyring   .blacklist: empty
1323d5d6 I--Q---     1 perm 0c030000     0 65534 keyring   .user_reg: 2
24873b49 I--Q---     2 perm 1f3f0000     0 65534 keyring   _uid.0: empty
0b1f2f3c I------     1 perm 1f030000     0     0 asymmetri Debian Secure Boot CA: 6ccece7e: X509.rsa 1c9bb1ea []
zzzzzzzz I------     1 perm 1f0b0000     0     0 keyring   .platform: 7
2e1c37e9 I------
2e1c37e9 I------     1 perm 1f0b0000     0     0 keyring   .builtin_trusted_keys: 1
`))
	want := map[string]int{".blacklist": 0x01c965e3, ".user_reg": 0x1323d5d6, ".builtin_trusted_keys": 0x2e1c37e9}
	if err != nil || !maps.Equal(rings, want) {
		t.Errorf("got %v, %v; want %v", rings, err, want)
	}
}

// The running kernel, as far as this process may look: a keyring is read or has a problem.
func TestRead(t *testing.T) {
	t.Parallel()
	contents, problems := Read(".builtin_trusted_keys", ".blacklist", ".no such keyring")
	if len(contents)+len(problems) != 3 || problems[".no such keyring"] == nil {
		t.Fatalf("got %v, %v", contents, problems)
	}
	if os.Geteuid() != 0 && !errors.Is(problems[".blacklist"], ErrHidden) {
		t.Errorf("an ordinary user reads .blacklist: %v, %v", contents, problems)
	}
}

func TestSplit(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][2]string{
		"asymmetric;0;0;1f030000;A: b; c: 0011": {"asymmetric", "A: b; c: 0011"},
		"keyring;0;0;1f0b0000;.machine":         {"keyring", ".machine"},
		"odd":                                   {"", "odd"},
	} {
		if kind, description := split(text); [2]string{kind, description} != want {
			t.Errorf("%q: %q, %q", text, kind, description)
		}
	}
}

func FuzzKeyrings(f *testing.F) {
	f.Add("01c965e3 I------     1 perm 0f0b0000     0     0 keyring   .blacklist: empty\n")
	f.Add("2e1c37e9 I------     1 perm 1f0b0000     0     0 keyring   .builtin_trusted_keys: 1\n")
	f.Fuzz(func(t *testing.T, text string) {
		rings, err := Keyrings(strings.NewReader(text))
		for name, id := range rings {
			if err == nil && (id < 0 || !strings.Contains(text, name)) {
				t.Fatalf("%q: %d", name, id)
			}
		}
	})
}
