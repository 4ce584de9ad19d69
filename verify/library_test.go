package verify_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/hashlist"
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
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing.ko")
	if err := os.Symlink("nowhere", missing); err != nil {
		t.Fatal(err)
	}
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
		roots               []string
		refused, unreadable bool
		says                string
	}{
		{keys, []string{good}, false, false, ""},
		{keys, []string{good, good}, false, false, ""},
		{keys, []string{good, unsigned}, true, false, "the kernel would refuse 1 of 2 modules: " + unsigned + ": not signed"},
		{
			keys, []string{changed, good, unsigned}, true, false,
			"the kernel would refuse 2 of 3 modules: " + changed + ": bad signature: ",
		},
		{keys, []string{dir, good}, false, true, "1 of 2 modules could not be read: open " + missing + ": "},
		{
			keys, []string{dir, unsigned}, true, true,
			"the kernel would refuse 1 of 2 modules: " + unsigned + ": not signed; 1 of 2 modules could not be read: ",
		},
		{keys, []string{text}, true, false, ""},
		{keys, []string{misnamed}, true, false, ""},
		{new(verify.Keyring), []string{good}, true, false, "unknown key"},
	} {
		for _, report := range []func(verify.Result){nil, func(verify.Result) {}} {
			_, err := verify.Tree(t.Context(), test.keys, test.roots, verify.Options{Result: report})
			if errors.Is(err, verify.ErrRefused) != test.refused || errors.Is(err, verify.ErrIncomplete) != test.unreadable ||
				(err != nil) != (test.refused || test.unreadable) {
				t.Errorf("%q: %v", test.roots, err)
			}
			if err != nil && (!strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "\n")) {
				t.Errorf("%q: %q, want %q", test.roots, err, test.says)
			}
		}
	}
	_, err = verify.Tree(t.Context(), keys, []string{dir, misnamed}, verify.Options{})
	if wrong, ok := errors.AsType[*verify.MisnamedError](err); !ok || wrong.Right != "plain.ko" || wrong.Is != sign.None ||
		!errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what the first modules ended with is not found in %v", err)
	}
	if _, err := verify.Inspect(t.Context(), misnamed); err == nil {
		t.Error("described a module with a wrong name")
	} else if _, ok := errors.AsType[*verify.MisnamedError](err); !ok {
		t.Error(err)
	}

	// Many of them make no long error.
	many := []string{t.TempDir()}
	for i := range 300 {
		if err := os.WriteFile(filepath.Join(many[0], fmt.Sprint(i, ".ko")), testmod.ELF(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := verify.Tree(t.Context(), keys, many, verify.Options{}); !strings.HasSuffix(
		err.Error(),
		"; and 290 more",
	) {
		t.Errorf("%q", err)
	}
	// An interrupt is the context's cause.
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	if _, err := verify.Tree(
		ctx, keys, many, verify.Options{Jobs: 1, Result: func(verify.Result) { cancel(cause) }},
	); !errors.Is(err, cause) ||
		errors.Is(err, verify.ErrRefused) {
		t.Errorf("interrupted: %v", err)
	}
}

// What is nil or makes no sense is an error.
func TestNothing(t *testing.T) {
	t.Parallel()
	keys, good := trusting(t)
	if _, err := verify.Tree(t.Context(), nil, []string{good}, verify.Options{}); err == nil {
		t.Error("verified without a Keyring")
	}
	if _, err := verify.Tree(t.Context(), nil, nil, verify.Options{}); err == nil {
		t.Error("verified nothing without a Keyring")
	}
	if r := verify.File(t.Context(), nil, good); r.Verdict != verify.Unreadable || r.Err == nil {
		t.Errorf("%+v", r)
	}
	if r := verify.File(t.Context(), new(verify.Keyring), good); r.Verdict != verify.UnknownKey || r.Err == nil {
		t.Errorf("%+v", r)
	}
	for _, opts := range []verify.Options{{Jobs: -1}, {MaxSize: -1}} {
		if _, err := verify.Tree(t.Context(), keys, []string{good}, opts); err == nil ||
			!strings.Contains(err.Error(), "Options.") {
			t.Errorf("%+v: %v", opts, err)
		}
		if _, err := verify.InspectTree(t.Context(), []string{good}, opts, nil); err == nil ||
			!strings.Contains(err.Error(), "Options.") {
			t.Errorf("described with %+v: %v", opts, err)
		}
	}
	// No module is no success.
	for _, roots := range [][]string{nil, {t.TempDir()}} {
		if s, err := verify.Tree(t.Context(), keys, roots, verify.Options{}); !errors.Is(err, verify.ErrNoModules) ||
			s.Modules != 0 ||
			s.String() != "no module" {
			t.Errorf("%q: %v, %v", roots, s, err)
		}
		if _, err := verify.InspectTree(t.Context(), roots, verify.Options{}, nil); !errors.Is(err, verify.ErrNoModules) {
			t.Errorf("%q: %v", roots, err)
		}
	}
	if _, err := verify.Tree(
		t.Context(), keys, []string{filepath.Join(t.TempDir(), "none")}, verify.Options{},
	); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	var none *verify.Keyring
	if err := none.AddFile(good); err == nil {
		t.Error("added a file to no Keyring")
	}
	if err := none.AddImage(good); err == nil {
		t.Error("added an image to no Keyring")
	}
	if err := none.AddHashes(new(hashlist.Embedded)); err == nil {
		t.Error("added hashes to no Keyring")
	}
	if err := new(verify.Keyring).AddHashes(nil); err == nil {
		t.Error("added no hashes")
	}
	hashed := new(verify.Keyring)
	if err := errors.Join(hashed.AddHashes(new(hashlist.Embedded)), hashed.AddHashes(new(hashlist.Embedded))); err == nil {
		t.Error("added the hashes of two kernels")
	}
	if none.Hashed() || none.HashesOnly() {
		t.Error("no Keyring has hashes")
	}
	if text := fmt.Sprint(none.Len(), none.Names(), none.Warnings(), none.Holds(nil)); text != "0 [] [] false" {
		t.Errorf("no Keyring has %s", text)
	}
}

// A certificate in memory trusts what it trusts in a file.
func TestAdd(t *testing.T) {
	t.Parallel()
	for _, algorithm := range []string{"rsa:2048", "ecdsa:p256", "ecdsa:p521"} {
		key := testmod.NewKey(t, algorithm)
		keys := new(verify.Keyring)
		if err := keys.Add(key.Certificate, "release key"); err != nil || keys.Len() != 1 ||
			!keys.Holds(key.Certificate.Raw) {
			t.Fatalf("%s: %d certificates, %v", algorithm, keys.Len(), err)
		}
		signer, err := sign.NewSigner(key.Private, key.Certificate, sign.SignerOptions{Hash: crypto.SHA256})
		if err != nil {
			t.Fatal(err)
		}
		path := testmod.WriteFile(t, "m.ko", testmod.ELF())
		if err := sign.File(t.Context(), signer, path, "", sign.FileOptions{}); err != nil {
			t.Fatal(err)
		}
		if r := verify.File(t.Context(), keys, path); r.Verdict != verify.Trusted || r.Source != "release key" {
			t.Errorf("%s: %+v", algorithm, r)
		}
	}
	var none *verify.Keyring
	keys := new(verify.Keyring)
	good := testmod.NewKey(t, "ecdsa:p256").Certificate
	damaged := *good
	damaged.Raw = good.Raw[:len(good.Raw)-1]
	for name, err := range map[string]error{
		"no keyring":      none.Add(good, ""),
		"no certificate":  keys.Add(nil, ""),
		"a made-up one":   keys.Add(new(x509.Certificate), ""),
		"one that is cut": keys.Add(&damaged, ""),
	} {
		if err == nil {
			t.Error(name)
		}
	}
	if keys.Len() != 0 {
		t.Errorf("%d certificates", keys.Len())
	}
}

// What makes no sense has no verdict.
func TestModuleOfNothing(t *testing.T) {
	t.Parallel()
	keys, good := trusting(t)
	data, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	r := bytes.NewReader(data)
	if got := verify.Module(r, r.Size(), keys); got.Verdict != verify.Trusted || got.Err != nil || got.Path != "" ||
		got.Signer == "" {
		t.Errorf("%+v", got)
	}
	for name, got := range map[string]verify.Result{
		"no keyring":  verify.Module(r, r.Size(), nil),
		"no content":  verify.Module(nil, 1, keys),
		"negative":    verify.Module(r, -1, keys),
		"beyond":      verify.Module(r, r.Size()+1, keys),
		"much beyond": verify.Module(r, 1<<40, keys),
	} {
		if got.Verdict != verify.Unreadable || got.Err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got := verify.Module(r, 0, keys); got.Verdict != verify.NotSigned {
		t.Errorf("empty: %+v", got)
	}
}
