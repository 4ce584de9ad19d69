package terminal

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestPrintable(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ text, want string }{
		{"a/b.ko: not signed", "a/b.ko: not signed"},
		{"a\nmodsign: signed", `a\nmodsign: signed`},
		{"\x1b[2Jü", `\x1b[2Jü`},
		{"it's\t'", `it's\t'`},
		{"\xff\x9b2J.ko", `\xff\x9b2J.ko`},
		{"\u009b2J\n\ufffd", `\u009b2J\n` + "\ufffd"},
		{"\u202eok.ver", `\u202eok.ver`},
		{"a\u2028b", `a\u2028b`},
		{"pkcs11:token=a;pin-value=1234;x=y", "pkcs11:token=a;pin-value=(not shown);x=y"},
		{"open -----BEGIN PRIVATE KEY-----\nMIIE", "open (a private key, not shown)"},
		{"-----BEGIN CERTIFICATE-----", "-----BEGIN CERTIFICATE-----"},
	} {
		if got := Printable(test.text); got != test.want {
			t.Errorf("%q becomes %q, want %q", test.text, got, test.want)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	for _, seed := range []string{
		"a\nb", "\x1b[K", "\x9b2J", "\u202ea", "pin-value=1&", "-----BEGIN RSA PRIVATE KEY-----\x00secret", "\xff'\\",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got := Printable(text)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, moves) {
			t.Errorf("%q becomes %q", text, got)
		}
		if !strings.Contains(text, "-----BEGIN") && !strings.Contains(text, "pin-value=") &&
			utf8.ValidString(text) && !strings.ContainsFunc(text, moves) && got != text {
			t.Errorf("%q becomes %q", text, got)
		}
	})
}

// TestLostResults: what cannot be written is not passed over.
func TestLostResults(t *testing.T) {
	t.Parallel()
	full := errors.New("disk full")
	var words bytes.Buffer
	term := New(strings.NewReader(""), failing{full}, &words, false)
	if err := term.Stream(func(w io.Writer) error { _, err := io.WriteString(w, "a list"); return err }); err != nil {
		t.Error(err)
	}
	if err := term.Close(); !errors.Is(err, full) || words.String() != "modsign: cannot write the result: disk full\n" {
		t.Errorf("%v, and %q is said", err, words.String())
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }
