package verify_test

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/sign"
	"github.com/modsign/modsign/verify"
)

// An importer, which has no more than the package's own names.

// trusting is a keyring with one certificate, and a module that it trusts.
func trusting(t testing.TB) (keys *verify.Keyring, trusted string) {
	t.Helper()
	key := testmod.NewKey(t, "ecdsa:p256")
	_, cert := key.Files(t)
	keys = new(verify.Keyring)
	if err := keys.AddFile(cert); err != nil {
		t.Fatal(err)
	}
	signer, err := sign.NewSigner(key.Private, key.Certificate, sign.SignerOptions{Hash: crypto.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	trusted = testmod.WriteFile(t, "good.ko", testmod.ELF())
	if err := sign.File(t.Context(), signer, trusted, "", sign.FileOptions{}); err != nil {
		t.Fatal(err)
	}
	return keys, trusted
}

// An error is nil only if every module is trusted, and says what it is about.
func TestOutcome(t *testing.T) {
	t.Parallel()
	keys, good := trusting(t)
	unsigned := testmod.WriteFile(t, "unsigned.ko", testmod.ELF())
	missing := filepath.Join(filepath.Dir(unsigned), "missing.ko")
	misnamed := testmod.WriteFile(t, "plain.ko.xz", testmod.ELF())
	text := testmod.WriteFile(t, "text.ko", []byte("text"))
	data, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	data[len(testmod.ELF())-1] ^= 1
	changed := testmod.WriteFile(t, "changed.ko", data)
	for _, test := range []struct {
		keys                *verify.Keyring
		paths               []string
		refused, unreadable bool
		says                string
	}{
		{keys, nil, false, false, ""},
		{keys, []string{good, good}, false, false, ""},
		{keys, []string{good, unsigned}, true, false, "the kernel would refuse 1 of 2 modules: " + unsigned + ": not signed"},
		{keys, []string{changed, good, unsigned}, true, false, "the kernel would refuse 2 of 3 modules: " + changed + ": bad signature: "},
		{keys, []string{missing, good}, false, true, "1 of 2 modules could not be read: open " + missing + ": "},
		{keys, []string{missing, unsigned}, true, true, "the kernel would refuse 1 of 2 modules: " + unsigned + ": not signed; 1 of 2 modules could not be read: "},
		{keys, []string{text}, true, false, ""},
		{keys, []string{misnamed}, true, false, ""},
		{new(verify.Keyring), []string{good}, true, false, "unknown key"},
	} {
		for _, report := range []func(verify.Result){nil, func(verify.Result) {}} {
			err := verify.Tree(t.Context(), test.keys, test.paths, verify.Options{}, report)
			if errors.Is(err, verify.ErrRefused) != test.refused || errors.Is(err, verify.ErrIncomplete) != test.unreadable || (err != nil) != (test.refused || test.unreadable) {
				t.Errorf("%q: %v", test.paths, err)
			}
			if err != nil && (!strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "\n")) {
				t.Errorf("%q: %q, want %q", test.paths, err, test.says)
			}
		}
	}
	err = verify.Tree(t.Context(), keys, []string{missing, misnamed}, verify.Options{}, nil)
	if wrong, ok := errors.AsType[*verify.MisnamedError](err); !ok || wrong.Right != "plain.ko" || wrong.Is != sign.None || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what the first modules ended with is not found in %v", err)
	}
	if _, err := verify.Inspect(t.Context(), misnamed, 0); err == nil {
		t.Error("described a module with a wrong name")
	} else if _, ok := errors.AsType[*verify.MisnamedError](err); !ok {
		t.Error(err)
	}

	// Many of them make no long error.
	paths := make([]string, 300)
	for i := range paths {
		paths[i] = unsigned
	}
	if err := verify.Tree(t.Context(), keys, paths, verify.Options{}, nil); !strings.HasSuffix(err.Error(), "; and 290 more") {
		t.Errorf("%q", err)
	}
	// An interrupt is the context's cause.
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	if err := verify.Tree(ctx, keys, paths, verify.Options{Jobs: 1}, func(verify.Result) { cancel(cause) }); !errors.Is(err, cause) || errors.Is(err, verify.ErrRefused) {
		t.Errorf("interrupted: %v", err)
	}
}

// What is nil or makes no sense is an error.
func TestNothing(t *testing.T) {
	t.Parallel()
	keys, good := trusting(t)
	if err := verify.Tree(t.Context(), nil, []string{good}, verify.Options{}, nil); err == nil {
		t.Error("verified without a Keyring")
	}
	if err := verify.Tree(t.Context(), nil, nil, verify.Options{}, nil); err == nil {
		t.Error("verified nothing without a Keyring")
	}
	if r := verify.File(t.Context(), nil, good); r.Verdict != verify.Unreadable || r.Err == nil {
		t.Errorf("%+v", r)
	}
	if r := verify.File(t.Context(), new(verify.Keyring), good); r.Verdict != verify.UnknownKey || r.Err == nil {
		t.Errorf("%+v", r)
	}
	for _, opts := range []verify.Options{{Jobs: -1}, {MaxSize: -1}} {
		if err := verify.Tree(t.Context(), keys, []string{good}, opts, nil); err == nil || !strings.Contains(err.Error(), "Options.") {
			t.Errorf("%+v: %v", opts, err)
		}
	}
	if _, err := verify.Inspect(t.Context(), good, -1); err == nil {
		t.Error("described with a negative limit")
	}
	var none *verify.Keyring
	if err := errors.Join(none.AddFile(good)); err == nil {
		t.Error("added a file to no Keyring")
	}
	if err := none.AddImage(good); err == nil {
		t.Error("added an image to no Keyring")
	}
	if text := fmt.Sprint(none.Len(), none.Names(), none.Warnings(), none.Holds(nil)); text != "0 [] [] false" {
		t.Errorf("no Keyring has %s", text)
	}
}
