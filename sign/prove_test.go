package sign

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"hash"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
)

// named hashes a name before the module, and gives its sum for a proof.
type named struct{ refuse string }

func (named) NewHash(name string) hash.Hash {
	h := sha256.New()
	h.Write([]byte(name))
	return h
}

func (n named) Proof(name string, sum []byte) ([]byte, error) {
	if name == n.refuse {
		return nil, errors.New("there is none")
	}
	return sum, nil
}

// Every name gets the proof of its own, whatever form the module has and whichever
// names the file had.
func TestProve(t *testing.T) {
	root, whole := t.TempDir(), testmod.ELF()
	proven := func(name string) []byte {
		sum := sha256.Sum256(append([]byte(name), whole...))
		return module.AppendSignature(bytes.Clone(whole), module.TypeMerkle, sum[:])
	}
	var names []string
	for _, f := range allFormats {
		name := "d/" + f.String() + ".ko"
		put(t, filepath.Join(root, name+f.Suffix()), compressed(t, f, whole))
		names = append(names, name)
	}
	signed := module.AppendSignature(bytes.Clone(whole), module.TypePKCS7, []byte("an older one"))
	put(t, filepath.Join(root, "d/signed.ko"), signed)
	link, outside := filepath.Join(root, "link.ko"), filepath.Join(t.TempDir(), "outside.ko")
	if err := errors.Join(os.Link(filepath.Join(root, "d/none.ko"), link), os.Link(link, outside)); err != nil {
		t.Fatal(err)
	}
	names = append(names, "d/signed.ko", "link.ko")
	for _, extend := range []bool{false, true} {
		tree, err := Open(t.Context(), Source{Roots: []string{root}, Names: names})
		if err != nil {
			t.Fatal(err)
		}
		summary, err := tree.Prove(t.Context(), named{}, ProveOptions{WriteOptions: WriteOptions{Extend: extend}})
		tree.Close()
		if err != nil || summary.Signed != len(names) || summary.Failed != 0 {
			t.Fatalf("%+v, %v", summary, err)
		}
		for i, name := range names {
			f := allFormats[0]
			if i < len(allFormats) {
				f = allFormats[i]
			}
			if got := decompressed(t, f, read(t, filepath.Join(root, name+f.Suffix()))); !bytes.Equal(got, proven(name)) {
				t.Errorf("extend %v: %s has not the proof of its own", extend, name)
			}
		}
		if !bytes.Equal(read(t, outside), whole) {
			t.Error("a name outside has been written to")
		}
	}
	// Copies that were just made are made longer.
	fresh := filepath.Join(root, "fresh.ko")
	put(t, fresh, whole)
	before, err := os.Stat(fresh)
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(root, "bad.ko"), whole)
	tree, err := Open(t.Context(), Source{Roots: []string{root}, Names: []string{"fresh.ko", "bad.ko"}})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	var failed []string
	summary, err := tree.Prove(
		t.Context(),
		named{refuse: "bad.ko"},
		ProveOptions{WriteOptions: WriteOptions{Extend: true, Report: Report{Result: func(r Result) {
			if r.Err != nil {
				failed = append(failed, r.Name)
			}
		}}}},
	)
	if !errors.Is(err, ErrIncomplete) || summary.Signed != 1 || summary.Failed != 1 ||
		!slices.Equal(failed, []string{"bad.ko"}) {
		t.Errorf("%+v, %v, failed %q", summary, err, failed)
	}
	after, err := os.Stat(fresh)
	if err != nil || !os.SameFile(before, after) || !bytes.Equal(read(t, fresh), proven("fresh.ko")) {
		t.Errorf("fresh.ko is another file, or not proven (%v)", err)
	}
	if !bytes.Equal(read(t, filepath.Join(root, "bad.ko")), whole) {
		t.Error("a module without a proof has changed")
	}
}
