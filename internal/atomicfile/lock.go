package atomicfile

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/dirfd"
)

// A Lock keeps other runs of this program out of files and whole directories. It is
// flock(2) on files of its own in a private directory, one for each file or directory
// that is locked, named after its device and inode: flock on the things themselves
// could be had by everybody who may read them, who could so keep root from signing.
// The directories above are locked for sharing, so that a lock on a directory and one
// on something below it exclude each other, and neighbours do not. The lock ends with
// the process.
//
// The private directory is /run/modsign for root, and for others one of theirs below
// /tmp, /run/user or their home. Root locks what belongs to another user in the
// directory of that user too, so that root and the owner of a tree exclude each other.
// Two users who may both write to a third one's tree do not; but each replaces modules
// whole, and leaves the other's temporary files alone (see [InUse]).
type Lock struct {
	dirs   map[int]*dirfd.Dir // of the lock files, by user; nil where there is none
	files  []lockFile
	held   map[lockID]int  // LOCK_EX or LOCK_SH; one file may have several names
	given  map[string]bool // locked whole
	shared map[string]bool // locked for sharing, as they lie above

	// Unsupported says that no locks can be had, so that nobody is kept out.
	Unsupported bool
}

type lockFile struct {
	*os.File
	dir  *dirfd.Dir
	name string
}

// lockID is a lock file: of what, and in whose directory.
type lockID struct {
	inode
	user int
}

type inode struct{ dev, ino uint64 }

// A LockedError reports that another run holds a lock.
type LockedError struct {
	Path   string
	Holder string // "modsign (pid 42)", as far as it can be known
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("%s is in use by %s", e.Path, e.Holder)
}

// NewLock locks each path, which must exist, or returns a [*LockedError] at
// once. A path below another of them is locked by that. Paths that are only
// read are locked for sharing: other readers may come, and writers to a part of
// a directory, but nobody who writes to the whole.
func NewLock(written, read []string) (*Lock, error) {
	l := newLock()
	for _, set := range []struct {
		paths []string
		how   int
	}{{written, unix.LOCK_EX}, {read, unix.LOCK_SH}} {
		paths, err := realPaths(set.paths)
		if err != nil {
			l.Unlock()
			return nil, err
		}
		for _, path := range paths {
			if err := l.add(path, set.how); err != nil {
				l.Unlock()
				return nil, err
			}
		}
	}
	return l, nil
}

// Wait calls lock, which is [NewLock] or [LockName], until nobody else holds what it
// locks or the context ends. It calls waiting, once, with the first holder; waiting may
// be nil.
func Wait(ctx context.Context, lock func() (*Lock, error), waiting func(*LockedError)) (*Lock, error) {
	for first := true; ; first = false {
		l, err := lock()
		locked, ok := errors.AsType[*LockedError](err)
		if !ok {
			return l, err
		}
		if first && waiting != nil {
			waiting(locked)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func newLock() *Lock {
	return &Lock{dirs: make(map[int]*dirfd.Dir), held: make(map[lockID]int), given: make(map[string]bool), shared: make(map[string]bool)}
}

// LockName locks a name in a directory, whether or not there is a file of that name,
// or returns a [*LockedError] at once. It is for files that runs on different modules
// have in common.
func LockName(path string) (*Lock, error) {
	info, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	base := fnv.New64a()
	base.Write([]byte(filepath.Base(path)))
	l := newLock()
	if err := l.flockAs(path, info, fmt.Sprintf("-%x", base.Sum64()), unix.LOCK_EX); err != nil {
		l.Unlock()
		return nil, err
	}
	return l, nil
}

// privateDir opens the directory of a user's lock files, nil if there can be none.
// What another user has put in its place is passed over.
func privateDir(uid int) *dirfd.Dir {
	var names []string
	if uid == 0 {
		names = append(names, "/run/modsign")
	}
	for i := range 8 {
		names = append(names, fmt.Sprintf("/tmp/.modsign-lock-%d.%d", uid, i))
	}
	if uid == os.Geteuid() { // root makes nothing where another user could exchange it
		names = append(names, fmt.Sprintf("/run/user/%d/modsign", uid))
		if home, err := os.UserHomeDir(); err == nil {
			names = append(names, filepath.Join(home, ".modsign-lock"))
		}
	}
	for _, name := range names {
		if err := makePrivate(name, uid); err != nil {
			continue
		}
		dir, err := dirfd.OpenOwn(name)
		if err != nil {
			continue
		}
		if st, err := dir.Lstat("."); err == nil && int(st.Uid) == uid && st.Mode&0o077 == 0 {
			return dir
		}
		dir.Close()
	}
	return nil
}

// makePrivate makes a directory that may be there. Root makes it for another user in
// /tmp alone, where only root can exchange what is root's.
func makePrivate(name string, uid int) error {
	err := os.Mkdir(name, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil && uid != os.Geteuid() {
		err = os.Lchown(name, uid, -1)
	}
	return err
}

// realPaths returns the paths without links, a folder before what is in it.
func realPaths(paths []string) ([]string, error) {
	var real []string
	for _, path := range paths {
		path, err := filepath.EvalSymlinks(path)
		if err == nil {
			path, err = filepath.Abs(path)
		}
		if err != nil {
			return nil, err
		}
		real = append(real, path)
	}
	slices.Sort(real)
	return real, nil
}

// covers reports whether path or a folder above it is locked whole.
func (l *Lock) covers(path string) bool {
	for !l.given[path] {
		above := filepath.Dir(path)
		if above == path {
			return false
		}
		path = above
	}
	return true
}

func (l *Lock) add(path string, how int) error {
	if l.covers(path) || how == unix.LOCK_SH && l.shared[path] {
		return nil
	}
	for dir := path; dir != filepath.Dir(dir); {
		dir = filepath.Dir(dir)
		if l.shared[dir] || l.given[dir] {
			break // and so is all above it
		}
		l.shared[dir] = true
		if err := l.flock(dir, unix.LOCK_SH); err != nil {
			return err
		}
	}
	if how == unix.LOCK_EX {
		l.given[path] = true
	} else {
		l.shared[path] = true
	}
	return l.flock(path, how)
}

func (l *Lock) flock(path string, how int) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return l.flockAs(path, info, "", how)
}

// flockAs locks what info is of, in the directory of this user and in that of its
// owner.
func (l *Lock) flockAs(path string, info fs.FileInfo, suffix string, how int) error {
	st := info.Sys().(*syscall.Stat_t)
	users := []int{os.Geteuid()}
	if users[0] == 0 && st.Uid != 0 {
		users = append(users, int(st.Uid))
	}
	for _, user := range users {
		id := lockID{inode{uint64(st.Dev), st.Ino}, user}
		if l.held[id] == how || l.held[id] == unix.LOCK_EX {
			continue
		}
		dir, known := l.dirs[user]
		if !known {
			dir = privateDir(user)
			l.dirs[user] = dir
		}
		if dir == nil {
			l.Unsupported = l.Unsupported || user == users[0]
			continue
		}
		f, err := l.flockIn(dir, fmt.Sprintf("%x-%x%s.lock", id.dev, id.ino, suffix), user, how)
		if locked, ok := err.(*LockedError); ok {
			locked.Path = path
		}
		if err != nil {
			return err
		}
		if f == nil {
			l.Unsupported = l.Unsupported || user == users[0]
			continue
		}
		l.files = append(l.files, *f)
		l.held[id] = how
	}
	return nil
}

// patience is how long a lock is waited for that another process has. That process may
// be about to remove the lock file, and not get to run for a while on a busy machine.
const patience = 500 * time.Millisecond

// flockIn locks a file in a directory of lock files, which is nil where that cannot be
// had: no space is left, say.
func (l *Lock) flockIn(dir *dirfd.Dir, name string, user, how int) (*lockFile, error) {
	for waited := time.Duration(0); ; {
		f, err := openLock(dir, name, user)
		if err != nil {
			return nil, nil
		}
		switch err := flockRetry(int(f.Fd()), how|unix.LOCK_NB); {
		case err == unix.EWOULDBLOCK && waited < patience:
			// It may be about to be removed, which takes the whole lock for a moment.
			f.Close()
			pause := min(max(waited/4, 200*time.Microsecond), 20*time.Millisecond)
			time.Sleep(pause)
			waited += pause
			continue
		case err == unix.EWOULDBLOCK:
			holder := holderOf(f)
			f.Close()
			return nil, &LockedError{Holder: holder}
		case err != nil:
			f.Close()
			return nil, nil
		}
		locked := &lockFile{f, dir, name}
		if locked.removed() {
			f.Close() // by the one who had it before
			continue
		}
		return locked, nil
	}
}

// openLock opens a lock file, which belongs to the user whose directory it is in. What
// that user may have put there instead is an error: root changes the owner of nothing
// but the file that it has just made.
func openLock(dir *dirfd.Dir, name string, user int) (*os.File, error) {
	f, err := dir.Open(name, unix.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = dir.Open(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			return openLock(dir, name, user)
		}
		if err == nil && user != os.Geteuid() {
			err = f.Chown(user, -1)
		}
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || int(info.Sys().(*syscall.Stat_t).Uid) != user) {
		err = fmt.Errorf("%s: not a lock file of this user", dir.Path(name))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// removed reports whether the name is no longer that of the file.
func (f *lockFile) removed() bool {
	opened, err := inodeOf(f.File)
	if err != nil {
		return true
	}
	named, err := f.dir.Lstat(f.name)
	return err != nil || opened != inode{uint64(named.Dev), named.Ino}
}

func inodeOf(f *os.File) (inode, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return inode{}, &fs.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	return inode{uint64(st.Dev), st.Ino}, nil
}

func flockRetry(fd, how int) error {
	for {
		if err := unix.Flock(fd, how); err != unix.EINTR {
			return err
		}
	}
}

// Unlock lets go of everything.
func (l *Lock) Unlock() {
	for _, f := range l.files {
		// Who else shares it, or has just opened it, finds it removed or keeps it.
		if flockRetry(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && !f.removed() {
			_ = f.dir.Remove(f.name)
		}
		// Not left to Close alone: a child of this process that has not come to its exec
		// yet has the file, and so the lock, too.
		_ = flockRetry(int(f.Fd()), unix.LOCK_UN)
		f.Close()
	}
	l.files = nil
	for _, dir := range l.dirs {
		if dir != nil {
			dir.Close()
		}
	}
	clear(l.dirs)
}

// holderOf finds who locks a file in /proc/locks, whose lines are
//
//	1: FLOCK  ADVISORY  WRITE 1234 fe:00:567 0 EOF
func holderOf(f *os.File) string {
	const unknown = "another process"
	id, err := inodeOf(f)
	if err != nil {
		return unknown
	}
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return unknown
	}
	defer locks.Close()
	inode := ":" + strconv.FormatUint(id.ino, 10)
	for lines := bufio.NewScanner(locks); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) < 6 || words[1] != "FLOCK" || !strings.HasSuffix(words[5], inode) {
			continue
		}
		if pid, err := strconv.Atoi(words[4]); err == nil && pid > 0 && pid != os.Getpid() {
			if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil {
				return fmt.Sprintf("%s (pid %d)", strings.TrimSpace(string(name)), pid)
			}
		}
	}
	return unknown
}
