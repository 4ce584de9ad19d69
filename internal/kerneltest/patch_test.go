//go:build kerneltest

package kerneltest

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/kbuildrun"
	"github.com/modsign/modsign/internal/testmod"
)

// TestPatchRealSource patches a copy of the kernel's source whose files are the
// source's own, by hard links, and takes the patch out again.
func TestPatchRealSource(t *testing.T) {
	source := Source(t)
	dir, err := os.MkdirTemp(filepath.Dir(source), "patch-") // on its file system
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	copied := filepath.Join(dir, "linux")
	testmod.Run(t, "cp", "-al", source, copied)
	p, err := kbuildrun.OpenPatch(copied)
	if err != nil {
		t.Fatal(err)
	}
	names := fileNames(t, copied)

	// files are the patched ones, those that it makes being empty.
	files := func(root string) (all [][]byte) {
		for _, name := range regexp.MustCompile(`(?m)^\+\+\+ b/(.*)$`).FindAllSubmatch(p.Text(), -1) {
			text, err := os.ReadFile(filepath.Join(root, string(name[1])))
			if err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			all = append(all, text)
		}
		return all
	}
	before := files(source)
	unharmed := func() {
		t.Helper()
		if !slices.EqualFunc(files(source), before, bytes.Equal) {
			t.Fatalf("%s, which has hard links to the same files, has been patched too: remove it", source)
		}
	}

	if state, err := p.Apply(); err != nil || !state.Absent() {
		t.Fatalf("Apply: %v, %v", state, err)
	}
	unharmed()
	if state, err := p.State(); err != nil || !state.Applied() {
		t.Errorf("after Apply: %v, %v", state, err)
	}
	added := slices.DeleteFunc(fileNames(t, copied), func(name string) bool {
		_, found := slices.BinarySearch(names, name)
		return found
	})
	if got, want := strings.Join(added, " "), "include/linux/module_hashes.h kernel/module/hashes.c"; got != want {
		t.Errorf("Apply has made %s, and should have made %s", got, want)
	}
	if state, err := p.Revert(); err != nil || !state.Applied() {
		t.Fatalf("Revert: %v, %v", state, err)
	}
	unharmed()
	if !slices.EqualFunc(files(copied), before, bytes.Equal) || !slices.Equal(fileNames(t, copied), names) {
		t.Error("Revert has not left the source as it was")
	}
}

// fileNames are the names of all files below a folder, sorted.
func fileNames(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}
