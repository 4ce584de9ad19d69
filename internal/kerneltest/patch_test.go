//go:build kerneltest

package kerneltest

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/kbuildrun"
	"github.com/modsign/modsign/internal/testmod"
)

// TestPatchRealSource patches copies of the kernels' sources whose files are hard links
// to the sources' files, and reverts the patches.
func TestPatchRealSource(t *testing.T) {
	for _, series := range []string{linux6, linux7} {
		t.Run(series, func(t *testing.T) { patchRealSource(t, series) })
	}
}

func patchRealSource(t *testing.T, series string) {
	source := SourceOf(t, series)
	dir, err := os.MkdirTemp(filepath.Dir(source), "patch-") // on the source's file system
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
	if !strings.HasPrefix(p.For, series) {
		t.Errorf("Linux %s gets the patch for %s", p.Version, p.For)
	}
	names := fileNames(t, copied)
	// Other programs have to apply it too, as the queues of distributions do.
	text := testmod.WriteFile(t, "module-hashes.patch", p.Text())
	for _, apply := range [][]string{
		{"patch", "-p1", "--fuzz=0", "--dry-run", "--directory=" + copied, "--input=" + text},
		{"git", "-C", copied, "apply", "--check", text},
	} {
		cmd := exec.Command(testmod.Program(t, apply[0], apply[0]), apply[1:]...)
		cmd.Env = append(cmd.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(copied)) // it is in no repository
		if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "fuzz") {
			t.Errorf("%q: %v: %s", apply, err, out)
		}
	}

	// files returns the patched files; those that the patch creates are empty before.
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
		t.Errorf("Apply created %s, want %s", got, want)
	}
	if state, err := p.Revert(); err != nil || !state.Applied() {
		t.Fatalf("Revert: %v, %v", state, err)
	}
	unharmed()
	if !slices.EqualFunc(files(copied), before, bytes.Equal) || !slices.Equal(fileNames(t, copied), names) {
		t.Error("Revert has not left the source as it was")
	}
}

// fileNames returns the sorted names of all files below a directory.
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
