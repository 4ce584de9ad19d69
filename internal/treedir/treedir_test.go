package treedir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// planted are what somebody may put at a name. Each gets the path of a file outside of
// the tree, and says what it is.
var planted = map[string]func(path, outside string) error{
	"a symbolic link": func(path, outside string) error { return os.Symlink(outside, path) },
	"a FIFO":          func(path, _ string) error { return syscall.Mkfifo(path, 0o666) },
	"a socket":        func(path, _ string) error { return syscall.Mknod(path, syscall.S_IFSOCK|0o666, 0) },
	"a directory":     func(path, _ string) error { return os.Mkdir(path, 0o777) },
}

// newTree is a tree and, beside it, a directory with a file that nothing may touch.
func newTree(t *testing.T) (d *Dir, outside string) {
	t.Helper()
	base := t.TempDir()
	outside = filepath.Join(base, "outside")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(base, "tree"), 0o755),
		os.Mkdir(outside, 0o755),
		os.WriteFile(filepath.Join(outside, "file"), []byte("precious"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	d, err := Open(filepath.Join(base, "tree"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.Close()
		names, _ := os.ReadDir(outside)
		if text, err := os.ReadFile(filepath.Join(outside, "file")); err != nil || string(text) != "precious" || len(names) != 1 {
			t.Errorf("outside of the tree is %q (%v) among %v", text, err, names)
		}
		left, _ := filepath.Glob(filepath.Join(base, "tree", ".modsign-*"))
		if len(left) > 0 {
			t.Errorf("%v is left", left)
		}
	})
	return d, outside
}

func TestFile(t *testing.T) {
	d, _ := newTree(t)
	for _, name := range []string{"top", ".own/below"} {
		if _, err := d.ReadFile(name, 10); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s before it is there: %v", name, err)
		}
		for _, text := range []string{"first", "second"} {
			if err := d.WriteFile(name, []byte(text), 0o600, text == "first"); err != nil {
				t.Fatal(err)
			}
			if got, err := d.ReadFile(name, 10); string(got) != text || err != nil {
				t.Errorf("%s is %q (%v)", name, got, err)
			}
		}
		if info, err := os.Stat(d.Path(name)); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v (%v)", name, info.Mode(), err)
		}
		if _, err := d.ReadFile(name, 5); err == nil || err.Error() != d.Path(name)+": has more than 5 bytes" {
			t.Errorf("%s in five bytes: %v", name, err)
		}
		if err := d.Rename(name, name+".old"); err != nil || d.Exists(name) || !d.Exists(name+".old") {
			t.Errorf("%s did not move: %v", name, err)
		}
		for range 2 {
			if err := d.Remove(name + ".old"); err != nil {
				t.Error(err)
			}
		}
	}
	if err := d.Remove("never/was"); err != nil {
		t.Error(err)
	}
	for _, to := range []string{"/nowhere", "elsewhere"} {
		if err := d.Symlink(to, "link"); err != nil {
			t.Fatal(err)
		}
		if got, err := d.Readlink("link"); got != to || err != nil {
			t.Errorf("link leads to %s (%v)", got, err)
		}
	}
}

// TestPlanted has something else at the name, and in the place of the directory.
func TestPlanted(t *testing.T) {
	for what, plant := range planted {
		t.Run(what, func(t *testing.T) {
			d, outside := newTree(t)
			if err := os.Mkdir(d.Path("own"), 0o777); err != nil {
				t.Fatal(err)
			}
			if err := plant(d.Path("own/file"), filepath.Join(outside, "file")); err != nil {
				t.Fatal(err)
			}
			if what != "a directory" {
				if err := plant(d.Path("gone"), outside); err != nil {
					t.Fatal(err)
				}
			}
			for name, culprit := range map[string]string{"own/file": "own/file", "gone/file": "gone"} {
				if what == "a directory" && culprit == "gone" {
					continue
				}
				_, read := d.ReadFile(name, 100)
				errs := map[string]error{"read": read, "write": d.WriteFile(name, []byte("x"), 0o644, false)}
				if what != "a symbolic link" || culprit == "gone" {
					errs["link"] = d.Symlink("/nowhere", name)
				}
				if culprit == "gone" {
					errs["remove"], errs["rename"] = d.Remove(name), d.Rename(name, "own/other")
					_, errs["list"] = d.Names("gone")
					_, errs["open"] = OpenReal(d.Path("gone"))
				}
				for how, err := range errs {
					if _, ok := errors.AsType[*PlantedError](err); !ok || !strings.HasPrefix(err.Error(), d.Path(culprit)+": is "+what+", and has to be ") {
						t.Errorf("%s %s: %v", how, name, err)
					}
				}
			}
			// The thing itself can be taken away.
			if err := d.Remove("own/file"); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSwapped has a directory turn into a link after it was looked at: what is left
// to the race is kept in the tree by the system.
func TestSwapped(t *testing.T) {
	d, outside := newTree(t)
	if err := os.Symlink(outside, d.Path("own")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.root.OpenFile("own/file", os.O_RDWR, 0); err == nil {
		t.Error("the file outside of the tree was opened")
	}
	if err := d.root.Rename("own/file", "stolen"); err == nil {
		t.Error("the file outside of the tree was moved")
	}
}
