package hashlist_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/sign"
)

// An importer, which has no more than the package's own names.

// An error is nil only if every module is trusted, and says what it is about.
func TestOutcome(t *testing.T) {
	t.Parallel()
	hash, size, err := hashlist.Sum(bytes.NewReader(testmod.ELF()))
	if err != nil {
		t.Fatal(err)
	}
	list := &hashlist.List{Release: "6.12.0", Modules: []hashlist.Module{{Path: "a.ko", Size: size, Hash: hash}}}
	verify := func(ctx context.Context, files map[string][]byte, opts hashlist.VerifyOptions) (hashlist.Summary, error) {
		dir := t.TempDir()
		for name, data := range files {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return hashlist.NewReference(list).Verify(ctx, dir, opts)
	}
	good := testmod.ELF()
	for _, test := range []struct {
		files           map[string][]byte
		refused, unread bool
		says            string
	}{
		{map[string][]byte{"a.ko": good}, false, false, ""},
		{map[string][]byte{"a.ko": append(testmod.ELF(), 0)}, true, false, "1 of 1 modules are not trusted: "},
		{map[string][]byte{"a.ko": good, "b.ko": append(testmod.ELF(), 0)}, true, false, "b.ko: extra"},
		{nil, true, false, "a.ko: missing"},
		{map[string][]byte{"a.ko": good, "b.ko.xz": good}, true, true, "b.ko.xz: name and content disagree"},
	} {
		summary, err := verify(t.Context(), test.files, hashlist.VerifyOptions{})
		if errors.Is(err, hashlist.ErrRefused) != test.refused || errors.Is(err, hashlist.ErrIncomplete) != test.unread ||
			(err != nil) != test.refused ||
			(summary.Refused() > 0) != test.refused {
			t.Errorf("%v: %v", summary, err)
		}
		if err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%v: %q, want %q", summary, err, test.says)
		}
		if _, ok := errors.AsType[*hashlist.MisnamedError](err); ok != test.unread {
			t.Errorf("%v: %v", summary, err)
		}
	}
	files := make(map[string][]byte)
	for i := range 100 {
		files[fmt.Sprintf("%d.ko", i)] = []byte("text")
	}
	if _, err := verify(t.Context(), files, hashlist.VerifyOptions{}); err == nil ||
		!strings.HasSuffix(err.Error(), "; and 91 more") {
		t.Errorf("%q", err)
	}
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	if _, err := verify(
		ctx, files, hashlist.VerifyOptions{Jobs: 1, Result: func(hashlist.Result) { cancel(cause) }},
	); !errors.Is(err, cause) ||
		errors.Is(err, hashlist.ErrRefused) {
		t.Errorf("interrupted: %v", err)
	}
	if _, err := hashlist.NewReference(list).Verify(
		t.Context(), filepath.Join(t.TempDir(), "none"), hashlist.VerifyOptions{},
	); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// What was never made, or is nil, is an error or nothing, and no panic.
func TestNothing(t *testing.T) {
	t.Parallel()
	ctx, dir := t.Context(), t.TempDir()
	ignore := func(_ any, err error) error { return err }
	for name, f := range map[string]func() error{
		"Verify without a reference": func() error {
			return ignore((*hashlist.Reference)(nil).Verify(ctx, dir, hashlist.VerifyOptions{}))
		},
		"Verify of a zero reference": func() error {
			return ignore(new(hashlist.Reference).Verify(ctx, dir, hashlist.VerifyOptions{}))
		},
		"Verify with no list": func() error {
			return ignore(hashlist.NewReference(nil).Verify(ctx, dir, hashlist.VerifyOptions{}))
		},
		"Verify with jobs that are no many": func() error {
			return ignore(hashlist.NewReference(new(hashlist.List)).Verify(ctx, dir, hashlist.VerifyOptions{Jobs: -1}))
		},
		"NewKernelReference of nothing": func() error { return ignore(hashlist.NewKernelReference(nil, nil)) },
		"Write of no list":              func() error { return (*hashlist.List)(nil).Write(io.Discard) },
		"Write of a zero list":          func() error { return new(hashlist.List).Write(io.Discard) },
		"Sum of nothing":                func() error { _, _, err := hashlist.Sum(nil); return err },
		"Embed of nothing":              func() error { return ignore(hashlist.Embed(dir, nil)) },
		"CheckRoom of nothing":          func() error { return new(hashlist.Kernel).CheckRoom(nil) },
		"ParseSection without an order": func() error {
			return ignore(hashlist.ParseSection(make([]byte, hashlist.RootSize), nil))
		},
		"WriteSection of nothing": func() error {
			return (*hashlist.Embedded)(nil).WriteSection(filepath.Join(dir, "s"), binary.LittleEndian)
		},
		"WriteSection without an order": func() error {
			return new(hashlist.Embedded).WriteSection(filepath.Join(dir, "s"), nil)
		},
		"WriteSource of nothing": func() error {
			return (*hashlist.Embedded)(nil).WriteSource(filepath.Join(dir, "s.c"))
		},
		"WriteSource to a text": func() error {
			return new(hashlist.Embedded).WriteSource(filepath.Join(dir, "s.txt"))
		},
		"Write of no proofs": func() error { return (*hashlist.Proofs)(nil).Write(dir) },
		"Proof of no proofs": func() error {
			return ignore((*hashlist.Proofs)(nil).Proof("a.ko", make([]byte, 32)))
		},
		"Proof of a short leaf": func() error {
			return ignore(hashlist.NewProofs([]string{"a.ko"}, make([]hashlist.Hash, 1)).Proof("a.ko", nil))
		},
		"Proof without a leaf": func() error {
			return ignore(hashlist.NewProofs([]string{"a.ko", "b.ko"}, make([]hashlist.Hash, 1)).Proof("b.ko", make([]byte, 32)))
		},
		"a position that there is not": func() error {
			tree := hashlist.NewTree(make([]hashlist.Hash, 2))
			return tree.Root().Check(hashlist.Hash{}, tree.Prove(2))
		},
		"a position below the first": func() error {
			tree := hashlist.NewTree(make([]hashlist.Hash, 2))
			return tree.Root().Check(hashlist.Hash{}, tree.Prove(-1))
		},
	} {
		if err := f(); err == nil || err.Error() == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("%v was written", left)
	}

	var none *hashlist.Embedded
	var kernel hashlist.Kernel
	var proofs *hashlist.Proofs
	text := fmt.Sprint(
		none, none.Blank(), none.Append(nil, nil), kernel.Order(), kernel.Has(none), proofs.Root(), proofs.Trailer("a.ko"),
		new(hashlist.Tree).Root(), (*hashlist.List)(nil).Embedded(),
	)
	if !strings.HasPrefix(text, "nothing true []") {
		t.Errorf("%q", text)
	}
	one := &hashlist.List{Modules: []hashlist.Module{{Path: "a.ko"}}}
	if changes, reordered := hashlist.Diff(nil, one); len(changes) != 1 || reordered {
		t.Errorf("%v, %v", changes, reordered)
	}
	proofs.NewHash("a.ko").Write(nil)
	// Nothing is not trusted.
	for _, summary := range []hashlist.Summary{nil, {hashlist.Trusted: 0}} {
		if text := summary.String(); text != "no module" {
			t.Errorf("%q", text)
		}
	}
	if text := (hashlist.Summary{hashlist.Trusted: 1}).String(); text != "all trusted" {
		t.Errorf("%q", text)
	}
}

// Proofs serve a sign.Tree, and a hash can be begun again.
func TestHashesBeginAgain(t *testing.T) {
	t.Parallel()
	var _ sign.Prover = new(hashlist.Proofs)
	for _, h := range []interface {
		io.Writer
		Reset()
		Sum([]byte) []byte
	}{hashlist.NewLeaf(7), new(hashlist.Proofs).NewHash("a.ko")} {
		io.WriteString(h, "module")
		want := h.Sum(nil)
		h.Reset()
		io.WriteString(h, "module")
		if got := h.Sum(nil); !bytes.Equal(got, want) {
			t.Errorf("%x, and first %x", got, want)
		}
	}
}
