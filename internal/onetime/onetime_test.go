package onetime

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen"
)

func TestDefaultPath(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	module := filepath.Join(dir, "m.ko")
	put(t, module, testmod.ELF())
	for _, test := range []struct{ output, root, want string }{
		{"out", dir, "out"}, {"", dir, dir}, {"", module, dir},
	} {
		if got := DefaultPath(test.output, []string{test.root}); got != filepath.Join(test.want, "modsign-one-time.x509") {
			t.Errorf("%+v: %s", test, got)
		}
	}
}

// A certificate stays as long as a module may carry its signature.
func TestKeptAndForgotten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := DefaultPath(dir, nil)
	write := func(algorithm string) ([]byte, *Cert) {
		key := testmod.NewKey(t, algorithm)
		c := &Cert{Path: path}
		if err := c.Write(t.Context(), &keygen.Pair{Signer: key.Private, Certificate: key.Certificate}); err != nil {
			t.Fatal(err)
		}
		defer c.Unlock()
		return key.Certificate.Raw, c
	}
	first, c := write("ecdsa:p256")
	if len(c.Kept) != 0 {
		t.Errorf("the first run kept %q", c.Kept)
	}
	unreadable := filepath.Join(dir, "m.ko.xz")
	put(t, unreadable, []byte("not compressed"))
	second, c := write("ecdsa:p384")
	if len(c.Kept) != 1 {
		t.Fatalf("the second run kept %q", c.Kept)
	}
	if kept, err := os.ReadFile(c.Kept[0]); err != nil || !bytes.Equal(kept, first) {
		t.Errorf("kept %x, %v", kept, err)
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, second) {
		t.Errorf("wrote %x, %v", now, err)
	}
	if err := c.Forget(t.Context(), []string{dir}); err != nil || len(c.Kept) != 1 {
		t.Errorf("with a module that cannot be read: %q, %v", c.Kept, err)
	}
	put(t, filepath.Join(dir, "m.ko"), testmod.ELF())
	if err := os.Remove(unreadable); err != nil {
		t.Fatal(err)
	}
	old := c.Kept[0]
	if err := c.Forget(t.Context(), []string{dir}); err != nil || len(c.Kept) != 0 {
		t.Errorf("with a module that is not signed: %q, %v", c.Kept, err)
	}
	if _, err := os.Stat(old); !os.IsNotExist(err) {
		t.Errorf("%s is there: %v", old, err)
	}
}

func put(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}
