package cms

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// payload is the signed content of the messages in testdata.
var payload = []byte("the payload of a module")

func digestOf(data []byte) func(Hash) ([]byte, error) {
	return func(h Hash) ([]byte, error) { return sum(h, data), nil }
}

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// testfiles returns the names of the files with this suffix, at least one.
func testfiles(t testing.TB, suffix string) []string {
	t.Helper()
	names, err := filepath.Glob("testdata/*" + suffix)
	if err != nil || len(names) < 10 {
		t.Fatalf("%d files in testdata with suffix %s (%v): run testdata/make.sh", len(names), suffix, err)
	}
	for i := range names {
		names[i] = filepath.Base(names[i])
	}
	return names
}

func certificate(t testing.TB, name string) *Certificate {
	t.Helper()
	c, err := ParseCertificate(testdata(t, name+".x509"))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return c
}

// keyring returns the certificates from testdata whose names are in one string.
func keyring(t testing.TB, names string) *Keyring {
	t.Helper()
	var certs []*Certificate
	for name := range strings.FieldsSeq(names) {
		certs = append(certs, certificate(t, name))
	}
	return NewKeyring(certs...)
}

func parse(t testing.TB, der []byte) *Message {
	t.Helper()
	m, err := Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// wantError fails the test unless err is an *Error of this kind and errno. For errno 0,
// err must be nil.
func wantError(t testing.TB, err error, kind Kind, errno syscall.Errno) *Error {
	t.Helper()
	if errno == 0 {
		if err != nil {
			t.Errorf("error %v, want none", err)
		}
		return nil
	}
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Errno != errno || e.Kind != kind {
		t.Errorf("got %v, want %v with errno %v", describe(err), kind, errno)
		return nil
	}
	if e.Reason == "" || !errors.Is(err, errno) {
		t.Errorf("%#v: no reason, or errors.Is does not see the errno", e)
	}
	return e
}

func describe(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind.String() + ", " + e.Errno.Error() + ": " + e.Reason
	}
	if err == nil {
		return "no error"
	}
	return "another error: " + err.Error()
}

// tlv returns an element with a DER length.
func tlv(tag byte, contents ...[]byte) []byte {
	all := slices.Concat(contents...)
	return append(header(tag, len(all)), all...)
}

func seq(contents ...[]byte) []byte { return tlv(tagSequence, contents...) }
func set(contents ...[]byte) []byte { return tlv(tagSet, contents...) }
func oid(contents string) []byte    { return tlv(tagOID, []byte(contents)) }
func integer(b ...byte) []byte      { return tlv(tagInteger, b) }

// indefinite returns a constructed element of indefinite length.
func indefinite(tag byte, contents ...[]byte) []byte {
	return slices.Concat([]byte{tag, 0x80}, slices.Concat(contents...), []byte{0, 0})
}

// replaceOnce replaces the only occurrence of old.
func replaceOnce(t testing.TB, der, old, new []byte) []byte {
	t.Helper()
	if n := bytes.Count(der, old); n != 1 {
		t.Fatalf("%x occurs %d times in %x", old, n, der)
	}
	return bytes.Replace(der, old, new, 1)
}

func TestKind(t *testing.T) {
	t.Parallel()
	for k, want := range map[Kind]string{Malformed: "malformed", Unsupported: "unsupported", UnknownKey: "unknown key",
		BadSignature: "bad signature", Revoked: "revoked", 9: "Kind(9)"} {
		if k.String() != want {
			t.Errorf("%q, want %q", k, want)
		}
	}
}

// The rules of kernels before those of Newest.
var (
	linux61  = RulesOf(6, 1, false)
	linux612 = RulesOf(6, 12, false)
)
