package dirfd

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// both runs a test with and without openat2(2).
func both(t *testing.T, test func(t *testing.T)) {
	t.Run("openat2", test)
	t.Run("openat", func(t *testing.T) {
		was := noOpenat2.Swap(true)
		defer noOpenat2.Store(was)
		test(t)
	})
}

func openTemp(t *testing.T) (*Dir, string) {
	t.Helper()
	path := t.TempDir()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, path
}

func TestOpenDir(t *testing.T) {
	both(t, func(t *testing.T) {
		d, path := openTemp(t)
		err := errors.Join(
			os.MkdirAll(filepath.Join(path, "a/b/c"), 0o755),
			os.Symlink("a", filepath.Join(path, "link")),
			os.Symlink("/", filepath.Join(path, "a/root")),
			os.WriteFile(filepath.Join(path, "a/file"), nil, 0o644))
		if err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			rel string
			err error
		}{
			{"", nil}, {".", nil}, {"a", nil}, {"a/b/c", nil},
			{"link", ErrLink}, {"link/b", ErrLink}, {"a/root", ErrLink}, {"a/root/tmp", ErrLink},
			{"none", fs.ErrNotExist}, {"a/none/b", fs.ErrNotExist},
		} {
			sub, err := d.OpenDir(test.rel)
			if !errors.Is(err, test.err) {
				t.Errorf("%s: %v, want %v", test.rel, err, test.err)
			}
			if err != nil {
				continue
			}
			if want := filepath.Join(path, test.rel); sub.Path("") != want {
				t.Errorf("%s is called %s", want, sub.Path(""))
			}
			there, err1 := sub.Lstat(".")
			is, err2 := os.Stat(filepath.Join(path, test.rel))
			if err1 != nil || err2 != nil || there.Ino != inode(is) {
				t.Errorf("%s is another directory: %v, %v", test.rel, err1, err2)
			}
			sub.Close()
		}
		for rel, want := range map[string]string{
			"link":       "link: is a symbolic link",
			"link/b":     "link: is a symbolic link",
			"a/root/tmp": "a/root: is a symbolic link",
			"a/file":     "a/file: is a regular file",
			"a/file/b":   "a/file: is a regular file",
		} {
			want = filepath.Join(path, want) + " instead of a directory; inspect and remove it"
			sub, err := d.OpenDir(rel)
			if _, planted := errors.AsType[*PlantedError](err); !planted || err.Error() != want {
				t.Errorf("%s: %v (%v), want %s", rel, sub, err, want)
			}
		}
		for _, rel := range []string{"..", "a/../..", "/", "/etc"} {
			if sub, err := d.OpenDir(rel); err == nil {
				sub.Close()
				t.Errorf("%s can be opened", rel)
			}
		}
	})
}

// TestOpenOwn has symbolic links in the path, which OpenOwn follows, and at its end.
func TestOpenOwn(t *testing.T) {
	_, path := openTemp(t)
	err := errors.Join(
		os.MkdirAll(filepath.Join(path, "real/own"), 0o755),
		os.WriteFile(filepath.Join(path, "real/file"), nil, 0o644),
		os.Symlink("real", filepath.Join(path, "way")),
		os.Symlink("own", filepath.Join(path, "real/link")))
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Join(path, "real/own"))
	for name, real := range map[string]string{
		filepath.Join(path, "way/own"): "real/own", filepath.Join(path, "real/own") + "/": "real/own",
		".": "real/own", "..": "real", "../own": "real/own", "../../way/own": "real/own",
	} {
		d, err := OpenOwn(name)
		if err != nil {
			t.Error(err)
			continue
		}
		info, err := d.Info(".")
		want, err2 := os.Stat(filepath.Join(path, real))
		if err != nil || err2 != nil || !os.SameFile(info, want) {
			t.Errorf("%s is another directory: %v, %v", name, err, err2)
		}
		if d.Path("x") != filepath.Join(name, "x") {
			t.Errorf("x in %s is called %s", name, d.Path("x"))
		}
		d.Close()
	}
	for name, want := range map[string]string{
		filepath.Join(path, "way"): "a symbolic link", "../link/": "a symbolic link", "../file": "a regular file",
	} {
		d, err := OpenOwn(name)
		planted, ok := errors.AsType[*PlantedError](err)
		if !ok || planted.Path != filepath.Clean(name) || planted.What != want || planted.Want != "a directory" {
			t.Errorf("%s: %v (%v)", name, d, err)
		}
		if errors.Is(err, ErrLink) != (want == "a symbolic link") {
			t.Errorf("%s is a link, or not: %v", name, err)
		}
	}
	if _, err := OpenOwn("../none"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func inode(info fs.FileInfo) uint64 { return info.Sys().(*syscall.Stat_t).Ino }

func TestMakeDir(t *testing.T) {
	both(t, func(t *testing.T) {
		d, path := openTemp(t)
		outside := t.TempDir()
		if err := os.Symlink(outside, filepath.Join(path, "link")); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			sub, err := d.MakeDir("x/y/z")
			if err != nil {
				t.Fatal(err)
			}
			sub.Close()
		}
		if info, err := os.Stat(filepath.Join(path, "x/y/z")); err != nil || !info.IsDir() {
			t.Error(err)
		}
		for _, rel := range []string{"link", "link/new"} {
			if _, err := d.MakeDir(rel); !errors.Is(err, ErrLink) {
				t.Errorf("%s: %v", rel, err)
			}
		}
		if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
			t.Errorf("behind the link there is %v (%v)", left, err)
		}
	})
}

func TestFiles(t *testing.T) {
	d, path := openTemp(t)
	victim := filepath.Join(t.TempDir(), "victim")
	err := errors.Join(
		os.WriteFile(victim, []byte("x"), 0o600),
		os.Symlink(victim, filepath.Join(path, "link")),
		os.Symlink("nowhere", filepath.Join(path, "dangling")),
		unix.Mkfifo(filepath.Join(path, "fifo"), 0o600),
		os.Mkdir(filepath.Join(path, "dir"), 0o755),
		os.WriteFile(filepath.Join(path, "file"), nil, 0o644))
	if err != nil {
		t.Fatal(err)
	}
	for name, fine := range map[string]bool{"link": false, "dangling": false, "fifo": false, "dir": false, "file": true,
		"none": true} {
		if err := d.CheckFile(name); (err == nil) != fine {
			t.Errorf("CheckFile(%s): %v", name, err)
		} else if _, planted := errors.AsType[*PlantedError](err); planted == fine {
			t.Errorf("CheckFile(%s): %v", name, err)
		}
	}
	for name, there := range map[string]bool{"link": true, "dangling": false, "file": true, "none": false} {
		if d.Exists(name) != there {
			t.Errorf("Exists(%s) is not %v", name, there)
		}
	}
	for _, flags := range []int{os.O_RDONLY, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_CREATE} {
		if f, err := d.Open("link", flags, 0o600); !errors.Is(err, ErrLink) {
			t.Errorf("a link is opened: %v %v", f, err)
		}
	}
	if f, err := d.Open("fifo", os.O_RDONLY, 0); err != nil { // without waiting for a writer
		t.Error(err)
	} else {
		f.Close()
	}
	if is, err := d.Readlink("link"); err != nil || is != victim {
		t.Errorf("%q, %v", is, err)
	}
	if info, err := d.Info("link"); err == nil && info.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("Info follows a link: %v", info.Mode())
	}
	for name, want := range map[string]error{"link": ErrLink, "none": fs.ErrNotExist} {
		if data, err := d.ReadFile(name, 10); !errors.Is(err, want) {
			t.Errorf("%s: %q (%v)", name, data, err)
		}
	}
	if names, err := d.Names(); err != nil || len(names) != 5 {
		t.Errorf("%q, %v", names, err)
	}
	if err := errors.Join(d.Sync(), d.SyncFS(), d.Rename("file", "renamed"), d.Remove("renamed")); err != nil {
		t.Error(err)
	}
}
