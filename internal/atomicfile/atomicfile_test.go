package atomicfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/testmod"
)

func write(t *testing.T, f *File, data string) {
	t.Helper()
	if _, err := f.WriteString(data); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// names lists a directory.
func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

func TestCommit(t *testing.T) {
	for _, durable := range []bool{false, true} {
		target := testmod.WriteFile(t, "a.ko", []byte("old"))
		f, err := Create(target, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		temp := filepath.Base(f.Name())
		if strings.Contains(temp, ".ko") || !IsTemp(temp) || !IsTempFor(temp, "a.ko") || IsTempFor(temp, "b.ko") {
			t.Errorf("the temporary name is %s", temp)
		}
		write(t, f, "new")
		if got := read(t, target); got != "old" {
			t.Errorf("before Commit the target is %q", got)
		}
		if err := f.Commit(durable); err != nil {
			t.Fatal(err)
		}
		f.Abort()
		if got := read(t, target); got != "new" {
			t.Errorf("after Commit the target is %q", got)
		}
		if all := names(t, filepath.Dir(target)); all != "a.ko" {
			t.Errorf("the directory holds %s", all)
		}
	}
}

func TestAbort(t *testing.T) {
	target := testmod.WriteFile(t, "a.ko", []byte("old"))
	f, err := Create(target, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	write(t, f, "new")
	if err := f.AlsoAt(filepath.Join(filepath.Dir(target), "b.ko")); err != nil {
		t.Fatal(err)
	}
	f.Abort()
	if got, all := read(t, target), names(t, filepath.Dir(target)); got != "old" || all != "a.ko" {
		t.Errorf("after Abort the target is %q, and the directory holds %s", got, all)
	}
}

func TestAlsoAt(t *testing.T) {
	a := testmod.WriteFile(t, "a.ko", []byte("old"))
	b := filepath.Join(filepath.Dir(a), "sub", "b.ko")
	if err := os.Mkdir(filepath.Dir(b), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(a, b); err != nil {
		t.Fatal(err)
	}
	f, err := Create(a, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	write(t, f, "new")
	if err := f.AlsoAt(b); err != nil {
		t.Fatal(err)
	}
	sub, err := dirfd.Open(filepath.Dir(b))
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	left, err := Leftovers(sub, []string{"b.ko"})
	if err != nil || len(left) != 1 {
		t.Errorf("beside b.ko lie %q (%v)", left, err)
	}
	if err := f.Commit(false); err != nil {
		t.Fatal(err)
	}
	one, err1 := os.Stat(a)
	two, err2 := os.Stat(b)
	if err1 != nil || err2 != nil || !os.SameFile(one, two) || read(t, b) != "new" {
		t.Errorf("not the same file: %v %v", err1, err2)
	}
}

func TestInherit(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give files away")
	}
	old := testmod.WriteFile(t, "a.ko", []byte("old"))
	attributes := map[string]string{"user.note": "kept", "user.big": strings.Repeat("x", 2000),
		"security.ima": "\x01signature", "security.evm": "\x02mac"}
	for name, value := range attributes {
		if err := unix.Setxattr(old, name, []byte(value), 0); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	when := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
	if err := errors.Join(os.Chown(old, 1234, 5678), os.Chmod(old, 0o4751|fs.ModeSetuid),
		os.Chtimes(old, when, when)); err != nil {
		t.Fatal(err)
	}
	mode := fs.FileMode(0o640)
	tests := []struct {
		name string
		opts Inherit
		mode fs.FileMode
	}{
		{"all", Inherit{}, 0o751 | fs.ModeSetuid},
		{"mode given", Inherit{Mode: &mode}, mode},
		{"attested", Inherit{Attest: true}, 0o751 | fs.ModeSetuid},
		{"new time", Inherit{NewMTime: true}, 0o751 | fs.ModeSetuid},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			from, err := os.Open(old)
			if err != nil {
				t.Fatal(err)
			}
			defer from.Close()
			info, err := from.Stat()
			if err != nil {
				t.Fatal(err)
			}
			target := filepath.Join(t.TempDir(), "b.ko")
			f, err := Create(target, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Abort()
			write(t, f, "new")
			attested, err := f.Inherit(from, info, test.opts)
			if err != nil || attested == test.opts.Attest {
				t.Fatalf("attested %v, error %v", attested, err)
			}
			if err := f.Commit(false); err != nil {
				t.Fatal(err)
			}
			got, err := os.Stat(target)
			if err != nil {
				t.Fatal(err)
			}
			st := got.Sys().(*syscall.Stat_t)
			if got.Mode() != test.mode || st.Uid != 1234 || st.Gid != 5678 {
				t.Errorf("mode %v, owner %d:%d", got.Mode(), st.Uid, st.Gid)
			}
			if got.ModTime().Equal(when) == test.opts.NewMTime {
				t.Errorf("time of modification is %v", got.ModTime())
			}
			for name, want := range attributes {
				if strings.HasPrefix(name, "security.") && !test.opts.Attest {
					want = ""
				}
				var buf [4096]byte
				n, err := unix.Getxattr(target, name, buf[:])
				if err != nil && want != "" || err == nil && string(buf[:n]) != want {
					t.Errorf("%s is %q (%v)", name, buf[:max(n, 0)], err)
				}
			}
		})
	}
}

// An access control list is an attribute too, and setting the mode must not change it.
func TestInheritACL(t *testing.T) {
	setfacl, getfacl := testmod.Program(t, "setfacl", "acl"), testmod.Program(t, "getfacl", "acl")
	old := testmod.WriteFile(t, "a.ko", []byte("old"))
	testmod.Run(t, setfacl, "-m", "u:1234:r,g:55:rw,m::rw", old)
	from, err := os.Open(old)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(filepath.Dir(old), "b.ko")
	f, err := Create(target, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Abort()
	if _, err := f.Inherit(from, info, Inherit{}); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(false); err != nil {
		t.Fatal(err)
	}
	want := testmod.Run(t, getfacl, "-cpn", old)
	if got := testmod.Run(t, getfacl, "-cpn", target); string(got) != string(want) ||
		!strings.Contains(string(want), "user:1234:r--") {
		t.Errorf("the list is\n%swant\n%s", got, want)
	}
}

// TestLockHelper is the other process of TestLock.
func TestLockHelper(t *testing.T) {
	paths := os.Getenv("ATOMICFILE_LOCK")
	if paths == "" {
		return
	}
	if os.Getenv("ATOMICFILE_NOBODY") != "" {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)); err != nil {
			t.Fatal(err)
		}
	}
	written, read, _ := strings.Cut(paths, ";")
	_, err := NewLock(strings.Fields(written), strings.Fields(read))
	var locked *LockedError
	if errors.As(err, &locked) {
		os.Stdout.WriteString("locked: " + locked.Holder + "\n")
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	os.Stdout.WriteString("free\n")
	if os.Getenv("ATOMICFILE_HOLD") != "" {
		io.Copy(io.Discard, os.Stdin)
	}
}

const nobody = 65534

// lockHelper returns another process that locks paths.
func lockHelper(paths string, env ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], "-test.run=^TestLockHelper$")
	// The race detector sleeps for a second when a process ends.
	cmd.Env = append(append(os.Environ(), "GORACE=atexit_sleep_ms=0", "ATOMICFILE_LOCK="+paths), env...)
	return cmd
}

// Root and the owner of a tree exclude each other; an unrelated user excludes neither.
func TestLockOfTwoUsers(t *testing.T) {
	testmod.Slow(t, "every locked tree is waited for")
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be another user too")
	}
	base, err := os.MkdirTemp("", "modsign-lock-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	theirs, ours := filepath.Join(base, "theirs"), filepath.Join(base, "ours")
	err = errors.Join(os.Chmod(base, 0o755), os.MkdirAll(filepath.Join(theirs, "sub"), 0o755), os.Mkdir(ours, 0o755),
		os.Chown(theirs, nobody, nobody), os.Chown(filepath.Join(theirs, "sub"), nobody, nobody))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		root, nobody string
		free         bool
	}{
		{theirs, theirs, false},
		{theirs, theirs + "/sub", false},
		{theirs + "/sub", theirs, false},
		{ours, ours, true}, // the user nobody cannot write there
		{ours, theirs, true},
	} {
		lock, err := NewLock([]string{test.root}, nil)
		if err != nil || lock.Unsupported {
			t.Fatalf("%+v: %v", test, err)
		}
		out, err := lockHelper(test.nobody+";", "ATOMICFILE_NOBODY=1").Output()
		if err != nil {
			t.Fatalf("%+v: %v", test, err)
		}
		if test.free != strings.HasPrefix(string(out), "free") || !test.free && !strings.Contains(string(out), "(pid ") {
			t.Errorf("root has %s, and nobody %s: %s", test.root, test.nobody, out)
		}
		lock.Unlock()

		cmd := lockHelper(test.nobody+";", "ATOMICFILE_NOBODY=1", "ATOMICFILE_HOLD=1")
		stdin, err1 := cmd.StdinPipe()
		stdout, err2 := cmd.StdoutPipe()
		if err := errors.Join(err1, err2, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(stdout, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		lock, err = NewLock([]string{test.root}, nil)
		if _, locked := errors.AsType[*LockedError](err); locked == test.free || err != nil && !locked {
			t.Errorf("nobody has %s, and root %s: %v", test.nobody, test.root, err)
		}
		if lock != nil {
			lock.Unlock()
		}
		stdin.Close()
		cmd.Wait()
	}
}

func TestLockName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cert")
	lock, err := LockName(path)
	if err != nil {
		t.Fatal(err)
	}
	if other, err := LockName(path + "2"); err != nil {
		t.Error(err)
	} else {
		other.Unlock()
	}
	if _, err := LockName(path); err == nil {
		t.Error("two locks on one name")
	}
	lock.Unlock()
	if lock, err = LockName(path); err != nil {
		t.Error(err)
	} else {
		lock.Unlock()
	}
}

// A similar name that somebody else has chosen is not a temporary name.
func TestIsTemp(t *testing.T) {
	for name, is := range map[string]bool{
		tempName("a.ko"): true, ".modsign-mine.tmp": false, ".modsign-0123456789abcdef-0123456789abcdef.tmp": true,
		".modsign-0123456789abcdef_0123456789abcdef.tmp": false, ".modsign-0123456789abcdeF-0123456789abcdef.tmp": false,
	} {
		if IsTemp(name) != is {
			t.Errorf("IsTemp(%q) is not %v", name, is)
		}
	}
}

// Another user's temporary file that cannot be opened may be in use.
func TestInUseOfAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be another user too")
	}
	base, err := os.MkdirTemp("", "modsign-use-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	dir, err := dirfd.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	f, err := CreateIn(dir, "a.ko", 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Abort()
	temp := filepath.Base(f.Name())
	if !InUse(dir, temp) {
		t.Error("a file that is being written is not in use")
	}
	runtime.LockOSThread() // and never unlock it: the thread ends with the test
	if err := errors.Join(os.Chmod(base, 0o777), unix.Setfsuid(nobody)); err != nil {
		t.Fatal(err)
	}
	if !InUse(dir, temp) {
		t.Error("nobody takes root's file for one that is not in use")
	}
	unix.Setfsuid(0)
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	for _, sub := range []string{"a/b/c", "a/d", "e"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"a/x.ko", "a/y.ko"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	at := func(names string) []string {
		var paths []string
		for _, name := range strings.Fields(names) {
			paths = append(paths, filepath.Join(dir, name))
		}
		return paths
	}
	tests := []struct {
		written, read           string // of this process
		otherWritten, otherRead string
		free                    bool
	}{
		{"a", "", "a", "", false},
		{"a", "", "e", "", true},
		{"a", "", "a/b/c", "", false},
		{"a/b", "", "a", "", false},
		{"a/b", "", "a/d", "", true},
		{"a/b", "", ".", "", false},
		{"a a/b a/x.ko", "", "a/y.ko", "", false},
		{"a/x.ko", "", "a/y.ko", "", true},
		{"a/x.ko", "", "a/x.ko", "", false},
		{"a/x.ko", "", "a", "", false},
		{"e", "a", "", "a", true},
		{"e", "a", "a", "", false},
		{"e", "a", "a/b", "", true}, // a reader detects changes itself
		{"e", "a", "", "a/b e/.", false},
		{"a/b e", "a", "", "a/d", true},
	}
	for _, test := range testmod.Few(tests, 6) { // a locked one is waited for
		lock, err := NewLock(at(test.written), at(test.read))
		if err != nil {
			t.Fatalf("%+v: %v", test, err)
		}
		cmd := lockHelper(strings.Join(at(test.otherWritten), " ") + ";" + strings.Join(at(test.otherRead), " "))
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%+v: %v", test, err)
		}
		said, _, _ := strings.Cut(string(out), "\n")
		if test.free != (said == "free") {
			t.Errorf("%+v: %s", test, said)
		}
		if !test.free && !strings.Contains(said, "(pid ") {
			t.Errorf("%+v: the holder is not named: %s", test, said)
		}
		lock.Unlock()
	}
	lock, err := NewLock(at("."), nil)
	if err != nil {
		t.Fatalf("after all is unlocked: %v", err)
	}
	lock.Unlock()
	if _, err := NewLock(at("nowhere"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a path that is not there: %v", err)
	}
}

// TestLockBeingRemoved holds a lock file like a process that is about to remove the
// file and does not run for a while.
func TestLockBeingRemoved(t *testing.T) {
	path := t.TempDir()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	dir := privateDir(os.Geteuid())
	if dir == nil {
		t.Fatal("no directory for locks")
	}
	defer dir.Close()
	name := fmt.Sprintf("%x-%x.lock", uint64(st.Dev), st.Ino)
	f, err := openLock(dir, name, os.Geteuid())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := flockRetry(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		lock, err := NewLock(nil, []string{path})
		if err == nil {
			lock.Unlock()
		}
		got <- err
	}()
	time.Sleep(patience / 5)
	if err := dir.Remove(name); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := <-got; err != nil {
		t.Errorf("a lock that was about to be removed: %v", err)
	}
}
