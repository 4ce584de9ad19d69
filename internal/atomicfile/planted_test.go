package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/modsign/modsign/internal/dirfd"
)

// planted creates various things at a path. outside is the path of a file outside of
// the tree.
var planted = map[string]func(path, outside string) error{
	"a symbolic link": func(path, outside string) error { return os.Symlink(outside, path) },
	"a FIFO":          func(path, _ string) error { return syscall.Mkfifo(path, 0o666) },
	"a socket":        func(path, _ string) error { return syscall.Mknod(path, syscall.S_IFSOCK|0o666, 0) },
	"a directory":     func(path, _ string) error { return os.Mkdir(path, 0o777) },
}

// newTree creates a tree, and beside it a directory with a file that must not change.
func newTree(t *testing.T) (tree *dirfd.Dir, outside string) {
	t.Helper()
	base := t.TempDir()
	path := filepath.Join(base, "tree")
	outside = filepath.Join(base, "outside")
	err := errors.Join(os.Mkdir(path, 0o755), os.Mkdir(outside, 0o755),
		os.WriteFile(filepath.Join(outside, "file"), []byte("precious"), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	if tree, err = dirfd.Open(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		tree.Close()
		if text, all := read(t, filepath.Join(outside, "file")), names(t, outside); text != "precious" || all != "file" {
			t.Errorf("outside of the tree is %q among %s", text, all)
		}
		for _, pattern := range []string{".modsign-*", "*/.modsign-*"} {
			if left, _ := filepath.Glob(filepath.Join(path, pattern)); len(left) > 0 {
				t.Errorf("%v is left", left)
			}
		}
	})
	return tree, outside
}

// below calls do with the directory of a path below the tree, and with the path's last
// name.
func below(tree *dirfd.Dir, path string, do func(dir *dirfd.Dir, name string) error) error {
	dir, err := tree.OpenDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return do(dir, filepath.Base(path))
}

// TestOwnFile reads, writes, moves and removes files whose names modsign makes up.
func TestOwnFile(t *testing.T) {
	tree, _ := newTree(t)
	for _, path := range []string{"top", ".own/below"} {
		if err := below(tree, path, func(dir *dirfd.Dir, name string) error {
			_, err := dir.ReadFile(name, 10)
			return err
		}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s before it is there: %v", path, err)
		}
		dir, err := tree.MakeDir(filepath.Dir(path))
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		name := filepath.Base(path)
		for _, text := range []string{"first", "second"} {
			if err := WriteIn(dir, name, []byte(text), 0o600, text == "first"); err != nil {
				t.Fatal(err)
			}
			if got, err := dir.ReadFile(name, 10); string(got) != text || err != nil {
				t.Errorf("%s is %q (%v)", path, got, err)
			}
		}
		if info, err := os.Stat(tree.Path(path)); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v (%v)", path, info, err)
		}
		if _, err := dir.ReadFile(name, 5); err == nil || err.Error() != tree.Path(path)+": has more than 5 bytes" {
			t.Errorf("%s in five bytes: %v", path, err)
		}
		if err := dir.Rename(name, "other"); err != nil || dir.Exists(name) || !dir.Exists("other") {
			t.Errorf("%s did not move: %v", path, err)
		}
		for range 2 {
			if err := dir.Clear("other"); err != nil {
				t.Error(err)
			}
		}
	}
	for _, to := range []string{"/nowhere", "elsewhere"} {
		if err := Symlink(tree, "link", to); err != nil {
			t.Fatal(err)
		}
		if got, err := tree.Readlink("link"); got != to || err != nil {
			t.Errorf("link leads to %s (%v)", got, err)
		}
	}
}

// TestPlanted plants something else at the file's name, and at the directory's.
func TestPlanted(t *testing.T) {
	for what, plant := range planted {
		t.Run(what, func(t *testing.T) {
			tree, outside := newTree(t)
			err := errors.Join(os.Mkdir(tree.Path("own"), 0o777), plant(tree.Path("own/file"), filepath.Join(outside, "file")))
			if err == nil && what != "a directory" {
				err = plant(tree.Path("gone"), outside)
			}
			if err != nil {
				t.Fatal(err)
			}
			read := func(dir *dirfd.Dir, name string) error {
				_, err := dir.ReadFile(name, 100)
				return err
			}
			write := func(dir *dirfd.Dir, name string) error { return WriteIn(dir, name, []byte("x"), 0o644, false) }
			link := func(dir *dirfd.Dir, name string) error { return Symlink(dir, name, "/nowhere") }
			errs := map[string]error{"read own/file": below(tree, "own/file", read),
				"write own/file": below(tree, "own/file", write)}
			if what != "a symbolic link" {
				errs["link own/file"] = below(tree, "own/file", link)
			}
			if what != "a directory" {
				errs["work in gone"] = below(tree, "gone/file", func(dir *dirfd.Dir, name string) error {
					t.Errorf("%s is open", dir.Path(name))
					return errors.Join(read(dir, name), write(dir, name), link(dir, name), dir.Clear(name))
				})
				_, errs["make gone"] = tree.MakeDir("gone")
				_, errs["make below gone"] = tree.MakeDir("gone/new")
				_, errs["open gone"] = dirfd.OpenOwn(tree.Path("gone"))
			}
			for how, err := range errs {
				culprit := tree.Path("own/file")
				if strings.HasSuffix(how, "gone") {
					culprit = tree.Path("gone")
				}
				if _, ok := errors.AsType[*dirfd.PlantedError](err); !ok ||
					!strings.HasPrefix(err.Error(), culprit+": is "+what+" instead of ") {
					t.Errorf("%s: %v", how, err)
				}
			}
			// Clear removes it.
			if err := below(tree, "own/file", (*dirfd.Dir).Clear); err != nil || names(t, tree.Path("own")) != "" {
				t.Errorf("%v: left is %s", err, names(t, tree.Path("own")))
			}
		})
	}
}

// TestSwapped replaces an open directory with a link: the work continues in the
// directory, and not behind the link.
func TestSwapped(t *testing.T) {
	tree, outside := newTree(t)
	own, err := tree.MakeDir("own")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if err := errors.Join(os.Rename(tree.Path("own"), tree.Path("moved")),
		os.Symlink(outside, tree.Path("own"))); err != nil {
		t.Fatal(err)
	}
	if text, err := own.ReadFile("file", 100); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file outside of the tree was opened: %q (%v)", text, err)
	}
	if err := own.Rename("file", "stolen"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file outside of the tree was moved: %v", err)
	}
	if err := errors.Join(own.Clear("file"), WriteIn(own, "new", []byte("x"), 0o644, true),
		Symlink(own, "link", "x")); err != nil {
		t.Error(err)
	}
	if all := names(t, tree.Path("moved")); all != "link new" {
		t.Errorf("the directory that was opened holds %q", all)
	}
}
