package hashlist

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/archive"
	"github.com/modsign/modsign/internal/testmod"
)

// TestVerifyArchive packs a directory of modules with its kernel, and compares the verdicts
// with those on the directory.
func TestVerifyArchive(t *testing.T) {
	t.Parallel()
	files := modules(t)
	dir, list := installed(t, files)
	order := slices.Sorted(maps.Keys(files))
	root := t.TempDir()
	lib := "lib/modules/" + release + "/"
	pack := func(name string) string {
		path := filepath.Join(t.TempDir(), name)
		testmod.Run(t, "tar", "-C", root, "-czf", path, ".")
		return path
	}
	for name, data := range files {
		put(t, root, lib+name, data)
	}
	put(t, root, lib+"modules.order", []byte(strings.Join(order, "\n")+"\n"))
	kernel := link(t, list.Embedded())
	image, err := os.ReadFile(kernel)
	if err != nil {
		t.Fatal(err)
	}
	put(t, root, "boot/vmlinux-"+release, image)
	byKernel, err := NewKernelReference(list.Embedded(), order)
	if err != nil {
		t.Fatal(err)
	}
	noNames, err := NewKernelReference(list.Embedded(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(dir string){
		func(string) {},
		func(dir string) { put(t, dir, "kernel/a.ko", append(bytes.Clone(files["kernel/a.ko"]), 0)) },
		func(dir string) { os.Remove(filepath.Join(dir, "kernel/fs/b.ko")) },
		func(dir string) { put(t, dir, "updates/x.ko", testmod.ELF()) },
		func(dir string) { put(t, dir, "updates/y.ko.gz", []byte("rubbish")) },
	} {
		change(dir)
		change(filepath.Join(root, lib))
		path := pack("package.tar.gz")
		for _, test := range []struct {
			name     string
			r, given *Reference
		}{
			{"list", NewReference(list), NewReference(list)}, {"kernel", byKernel, noNames}, {"its own kernel", byKernel, nil},
		} {
			want, _ := verdictsOn(t, test.r, dir)
			got := make(map[string]Verdict)
			summary, err := VerifyArchive(t.Context(), test.given, path, VerifyOptions{Result: func(r Result) {
				got[r.Name] = r.Verdict
				if r.Archive != path || r.Verdict != Missing && r.Path != lib+r.Name && r.Path != lib+r.Name+".gz" {
					t.Errorf("%s in %s", r.Path, r.Archive)
				}
			}})
			if !maps.Equal(got, want) || errors.Is(err, ErrRefused) != (summary.Refused() > 0) {
				t.Errorf("%s: error %v\ngot  %v\nwant %v", test.name, err, got, want)
			}
		}
	}
	// What the kernel loads for its signature.
	signed := func(io.ReaderAt, int64) string { return "somebody" }
	summary, err := VerifyArchive(t.Context(), nil, pack("signed.tar.gz"), VerifyOptions{SignedContent: signed})
	if summary[Signed] != 2 || summary[Failed] != 1 || !errors.Is(err, ErrIncomplete) {
		t.Errorf("%v, error %v", summary, err)
	}
	put(t, root, lib+"modules.order", []byte("kernel/a.ko\n"))
	if _, err := VerifyArchive(t.Context(), nil, pack("other.tar.gz"), VerifyOptions{}); err == nil ||
		!strings.Contains(err.Error(), "different builds") {
		t.Errorf("modules.order of another build: %v", err)
	}
	os.RemoveAll(filepath.Join(root, "boot"))
	_, err = VerifyArchive(t.Context(), nil, pack("none.tar.gz"), VerifyOptions{})
	if !errors.Is(err, archive.ErrNoKernel) {
		t.Errorf("no kernel: %v", err)
	}
	if _, err := VerifyArchive(t.Context(), new(Reference), pack("x.tar"), VerifyOptions{}); err == nil {
		t.Error("a reference of nothing is no error")
	}
	if _, err := VerifyArchive(t.Context(), nil, kernel, VerifyOptions{}); !errors.Is(err, archive.ErrNotArchive) {
		t.Errorf("no archive: %v", err)
	}
}
