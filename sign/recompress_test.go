package sign

import (
	"crypto"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/testmod"
)

var allFormats = []compress.Format{compress.None, compress.Gzip, compress.XZ, compress.Zstd}

// Whatever form modules have, afterwards all have the one that is wanted, and other
// programs read it.
func TestRecompress(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	elf := testmod.ELF()
	want := signed(t, signer, elf)
	for _, format := range allFormats {
		for _, where := range []string{"in place", "output"} {
			t.Run(where+", "+format.String(), func(t *testing.T) {
				dir := t.TempDir()
				root, out := filepath.Join(dir, "root"), filepath.Join(dir, "root")
				source := Source{Roots: []string{root}, Compress: format, Recompress: true}
				if where == "output" {
					out = filepath.Join(dir, "out")
					source.Output = out
				}
				for _, f := range allFormats {
					put(t, filepath.Join(root, "d", f.String()+".ko"+f.Suffix()), compressed(t, f, elf))
				}
				if err := os.Link(filepath.Join(root, "d/xz.ko.xz"), filepath.Join(root, "link.ko.xz")); err != nil {
					t.Fatal(err)
				}
				before := snapshot(t, root)
				if s := mustSign(t, signer, source, Options{}); s.Signed != 5 {
					t.Errorf("%+v", s)
				}
				names := []string{"link"}
				for _, f := range allFormats {
					names = append(names, "d/"+f.String())
				}
				for _, name := range names {
					path := filepath.Join(out, name+".ko"+format.Suffix())
					if got := decompressed(t, format, read(t, path)); string(got) != string(want) {
						t.Errorf("%s is not the signed module", path)
					}
				}
				if !sameInode(t, filepath.Join(out, "link.ko"+format.Suffix()), filepath.Join(out, "d/xz.ko"+format.Suffix())) {
					t.Error("hard links have come apart")
				}
				if where == "output" {
					unchanged(t, "the input", root, before, true)
				}
				for path := range snapshot(t, out) {
					if strings.Contains(path, ".ko") && !strings.HasSuffix(path, ".ko"+format.Suffix()) {
						t.Errorf("%s is left over", path)
					}
				}
			})
		}
	}
}

// A killed run may have left a module in both forms: the old one is the one that is
// complete for sure.
func TestRecompressAgain(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	elf, dir := testmod.ELF(), t.TempDir()
	put(t, filepath.Join(dir, "a.ko.xz"), compressed(t, compress.XZ, elf))
	put(t, filepath.Join(dir, "a.ko"), elf)
	source := Source{Roots: []string{dir}, Recompress: true}
	if s := mustSign(t, signer, source, Options{}); s.Signed != 1 || s.Modules != 1 {
		t.Errorf("%+v", s)
	}
	if exists(t, filepath.Join(dir, "a.ko.xz")) ||
		string(read(t, filepath.Join(dir, "a.ko"))) != string(signed(t, signer, elf)) {
		t.Error("the old form is still there, or the new one is not")
	}
	// Which of two others is outdated nobody can tell.
	put(t, filepath.Join(dir, "a.ko.xz"), compressed(t, compress.XZ, elf))
	before := snapshot(t, dir)
	source.Compress = compress.Zstd
	tree, err := Open(t.Context(), source)
	if err == nil {
		tree.Close()
		t.Fatal("two modules become one")
	}
	if !strings.Contains(err.Error(), "a.ko and ") || !strings.Contains(err.Error(), "remove the outdated one") {
		t.Error(err)
	}
	unchanged(t, "two of one name", dir, before, true)
}
