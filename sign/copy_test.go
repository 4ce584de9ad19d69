package sign

import (
	"bytes"
	"crypto"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/testmod"
)

// makeBuild makes a build with modules that have several names, behind links too, and
// returns its directory and the names.
func makeBuild(t *testing.T) (build string, names []string) {
	t.Helper()
	build = filepath.Join(t.TempDir(), "build")
	then := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, mode := range map[string]fs.FileMode{"a.ko": 0o644, "sub/b.ko": 0o600, "real/c.ko": 0o755} {
		path := filepath.Join(build, name)
		put(t, path, append(testmod.ELF(), name...))
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, then, then); err != nil {
			t.Fatal(err)
		}
	}
	put(t, filepath.Join(build, "sub/b.ko.xz"), []byte("no module"))
	if err := os.Link(filepath.Join(build, "a.ko"), filepath.Join(build, "twin.ko")); err != nil {
		t.Fatal(err)
	}
	symlink(t, "../a.ko", filepath.Join(build, "sub/link.ko"))
	symlink(t, "real", filepath.Join(build, "behind"))
	return build, []string{"twin.ko", "sub/b.ko", "behind/c.ko", "sub/link.ko", "a.ko"}
}

// TestCopy compares with what cp and sign-file make of a build's modules.
func TestCopy(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	cp, signFile := testmod.Program(t, "cp", "coreutils"), testmod.SignFile(t)
	key, cert := testmod.NewKey(t, "rsa:2048").Files(t)
	for _, format := range []Format{None, XZ} {
		build, names := makeBuild(t)
		before := snapshot(t, build)
		for _, out := range []string{filepath.Join(t.TempDir(), "out"), filepath.Join(build, "debian/tmp")} {
			stock := filepath.Join(t.TempDir(), "stock")
			for _, name := range names {
				if err := os.MkdirAll(filepath.Join(stock, filepath.Dir(name)), 0o777); err != nil {
					t.Fatal(err)
				}
				testmod.Run(t, cp, filepath.Join(build, name), filepath.Join(stock, name))
				testmod.Run(t, signFile, "sha256", key, cert, filepath.Join(stock, name))
			}
			start := time.Now().Add(-time.Second)
			summary, results := sign(t, signer, Source{
				Roots: []string{build}, Names: names, Output: out, Below: "kernel", Copy: true, Compress: format,
			}, Options{})
			if summary.Signed != len(names) || len(summary.StaleIndexes) != 0 || len(summary.Notes) != 0 {
				t.Errorf("%+v", summary)
			}
			for i, name := range names {
				path := filepath.Join(out, "kernel", name+format.Suffix())
				if results[i].Output != path || results[i].LinkOf != "" {
					t.Errorf("%s: %+v", name, results[i])
				}
				info, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				want, err := os.Stat(filepath.Join(stock, name))
				if err != nil {
					t.Fatal(err)
				}
				if info.Mode() != want.Mode() || info.ModTime().Before(start) || info.Sys().(*syscall.Stat_t).Nlink != 1 {
					t.Errorf("%s: %v, %v", name, info.Mode(), info.ModTime())
				}
				if got := decompressed(t, format, read(t, path)); !bytes.Equal(got, read(t, filepath.Join(stock, name))) {
					t.Errorf("%s is not the signed module", name)
				}
			}
		}
		if err := os.RemoveAll(filepath.Join(build, "debian")); err != nil {
			t.Fatal(err)
		}
		unchanged(t, "the build", build, before, false)
	}
}

// TestCopyUnsigned compares with what cp alone makes of a build's modules.
func TestCopyUnsigned(t *testing.T) {
	cp := testmod.Program(t, "cp", "coreutils")
	build, names := makeBuild(t)
	out, stock := t.TempDir(), t.TempDir()
	for range 2 { // over what is there too
		for _, name := range names {
			if err := os.MkdirAll(filepath.Join(stock, filepath.Dir(name)), 0o777); err != nil {
				t.Fatal(err)
			}
			testmod.Run(t, cp, filepath.Join(build, name), filepath.Join(stock, name))
		}
		summary, _ := sign(t, nil, Source{Roots: []string{build}, Names: names, Output: out, Copy: true}, Options{})
		if summary.Skipped != len(names) {
			t.Errorf("%+v", summary)
		}
		for _, name := range names {
			info, err := os.Stat(filepath.Join(out, name))
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.Stat(filepath.Join(stock, name))
			if err != nil {
				t.Fatal(err)
			}
			same := bytes.Equal(read(t, filepath.Join(out, name)), read(t, filepath.Join(stock, name)))
			if info.Mode() != want.Mode() || !same {
				t.Errorf("%s has mode %v, and by cp %v; the same bytes: %t", name, info.Mode(), want.Mode(), same)
			}
		}
		for _, dir := range []string{out, stock} {
			if err := os.Chmod(filepath.Join(dir, "a.ko"), 0o604); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestCopyDefaultList has a directory whose default access list decides on the mode.
func TestCopyDefaultList(t *testing.T) {
	signer, signFile := newSigner(t, "rsa:2048", crypto.SHA256, false), testmod.SignFile(t)
	key, cert := testmod.NewKey(t, "rsa:2048").Files(t)
	setfacl := testmod.Program(t, "setfacl", "acl")
	build, _ := makeBuild(t)
	out, stock := t.TempDir(), t.TempDir()
	for _, dir := range []string{out, stock} {
		testmod.Run(t, setfacl, "-d", "-m", "u::rw,g::rw,o::-", dir)
	}
	put(t, filepath.Join(stock, "a.ko"), read(t, filepath.Join(build, "a.ko")))
	testmod.Run(t, signFile, "sha256", key, cert, filepath.Join(stock, "a.ko"))
	sign(t, signer, Source{Roots: []string{build}, Names: []string{"a.ko"}, Output: out, Copy: true}, Options{})
	got, err := os.Stat(filepath.Join(out, "a.ko"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.Stat(filepath.Join(stock, "a.ko"))
	if err != nil {
		t.Fatal(err)
	}
	if got.Mode() != want.Mode() {
		t.Errorf("mode is %v, and by sign-file %v", got.Mode(), want.Mode())
	}
}

// TestCopyOver has the output of an earlier run: a plain file is replaced by a new one, and
// other forms of the module go.
func TestCopyOver(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	build, names := makeBuild(t)
	out := t.TempDir()
	source := Source{Roots: []string{build}, Names: names[:1], Output: out, Copy: true}
	files := func() string {
		var all []string
		for _, path := range slices.Sorted(maps.Keys(snapshot(t, out))) {
			info, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().IsRegular() {
				all = append(all, fmt.Sprintf("%s %o", filepath.Base(path), info.Mode().Perm()))
			}
		}
		return fmt.Sprint(all)
	}
	put(t, filepath.Join(out, "twin.ko"), []byte("older"))
	put(t, filepath.Join(out, "twin.ko.zst"), []byte("older"))
	put(t, filepath.Join(out, "twin.ko.bak"), []byte("someone's"))
	if err := os.Chmod(filepath.Join(out, "twin.ko"), 0o604); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		format Format
		want   string
		notes  int
	}{
		{None, "[twin.ko 644 twin.ko.bak 644]", 1},
		{None, "[twin.ko 644 twin.ko.bak 644]", 0},
		{XZ, "[twin.ko.bak 644 twin.ko.xz 644]", 1},
		{XZ, "[twin.ko.bak 644 twin.ko.xz 644]", 0},
		{None, "[twin.ko 644 twin.ko.bak 644]", 1},
	} {
		source.Compress = test.format
		summary, _ := sign(t, signer, source, Options{})
		if got := files(); got != test.want || len(summary.Notes) != test.notes {
			t.Errorf("%v: %s, want %s; %q", test.format, got, test.want, summary.Notes)
		}
		path := filepath.Join(out, "twin.ko"+test.format.Suffix())
		if got := decompressed(t, compress.FromName(path), read(t, path)); !bytes.Equal(got,
			signed(t, signer, read(t, filepath.Join(build, "a.ko")))) {
			t.Errorf("%v: not the signed module", test.format)
		}
	}
}

// TestCopyKeepsForms has other forms of a module that may be somebody else's.
func TestCopyKeepsForms(t *testing.T) {
	signer := newSigner(t, "ecdsa:p256", crypto.SHA256, false)
	build, names := makeBuild(t)
	out := t.TempDir()
	other := filepath.Join(out, "twin.ko.zst")
	put(t, other, []byte("somebody else's"))
	summary, _ := sign(t, signer, Source{
		Roots: []string{build}, Names: names[:1], Output: out, Copy: true, KeepForms: true,
	}, Options{})
	want := []string{"warning: " + other + " exists beside twin.ko: remove the outdated one"}
	if summary.Signed != 1 || !slices.Equal(summary.Notes, want) || string(read(t, other)) != "somebody else's" {
		t.Errorf("%+v, want the notes %q", summary, want)
	}
}

// TestCopyFails has names that cannot be copied among others: they fail alone.
func TestCopyFails(t *testing.T) {
	signer := newSigner(t, "ecdsa:p256", crypto.SHA256, false)
	build, names := makeBuild(t)
	symlink(t, "nowhere", filepath.Join(build, "dangling.ko"))
	symlink(t, "sub", filepath.Join(build, "directory.ko"))
	if err := unix.Mkfifo(filepath.Join(build, "fifo.ko"), 0o666); err != nil {
		t.Fatal(err)
	}
	bad := []string{"gone.ko", "none/gone.ko", "a.ko/b.ko", "dangling.ko", "directory.ko", "fifo.ko"}
	out := t.TempDir()
	summary, results := sign(t, signer, Source{
		Roots: []string{build}, Names: append(bad, names...), Output: out, Copy: true,
	}, Options{})
	if summary.Signed != len(names) || summary.Failed != len(bad) {
		t.Errorf("%+v", summary)
	}
	for i, name := range bad {
		if r := results[i]; r.Err == nil || r.Name != name || r.Path == "" {
			t.Errorf("%s: %+v", name, r)
		}
		if _, err := os.Lstat(filepath.Join(out, name)); err == nil {
			t.Errorf("%s is there", name)
		}
	}
}

// TestCopyRefuses has sources that cannot be copied.
func TestCopyRefuses(t *testing.T) {
	build, _ := makeBuild(t)
	out := filepath.Join(t.TempDir(), "out")
	for name, source := range map[string]Source{
		"none":      {Output: out},
		"no output": {Names: []string{"a.ko"}},
		"above":     {Names: []string{"a.ko"}, Output: out, Below: "../x"},
		"itself":    {Names: []string{"a.ko"}, Output: build},
		"not plain": {Names: []string{"sub/b.ko.xz"}, Output: out},
	} {
		source.Roots, source.Copy = []string{build}, true
		if tree, err := Open(t.Context(), source); err == nil {
			tree.Close()
			t.Errorf("%s: no error", name)
		}
	}
}

// TestCopySwapped has somebody exchange a directory of the output with a link all the time:
// nothing is written behind the link.
func TestCopySwapped(t *testing.T) {
	signer := newSigner(t, "ecdsa:p256", crypto.SHA256, false)
	build, names := makeBuild(t)
	dir := t.TempDir()
	out, victim := filepath.Join(dir, "out"), filepath.Join(dir, "victim")
	for _, name := range []string{"sub/b.ko", "twin.ko.xz"} {
		put(t, filepath.Join(victim, name), []byte("somebody else's"))
	}
	put(t, filepath.Join(out, "kernel/sub/other"), nil)
	symlink(t, victim, filepath.Join(out, "link"))
	before := snapshot(t, victim)
	var stop atomic.Bool
	ended := make(chan error)
	go func() {
		a, b := filepath.Join(out, "kernel"), filepath.Join(out, "link")
		for !stop.Load() {
			if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	done, refused := 0, 0
	for range testmod.Rounds(200, 40) {
		tree, err := Open(t.Context(), Source{
			Roots: []string{build}, Names: names, Output: out, Below: "kernel", Copy: true,
		})
		if err != nil {
			continue
		}
		s, _ := tree.Sign(t.Context(), signer, Options{WriteOptions: WriteOptions{Sync: SyncNone}})
		done, refused = done+s.Signed, refused+s.Failed
		tree.Close()
	}
	stop.Store(true)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if done == 0 || refused == 0 {
		t.Errorf("%d copied and %d refused: nothing was tried", done, refused)
	}
	unchanged(t, "somebody else's directory", victim, before, true)
}
