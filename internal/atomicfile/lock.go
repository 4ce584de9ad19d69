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

// A Lock keeps other runs of this program out of files and whole directories. It holds
// flock(2) locks on its own files in a private directory. Each locked file or directory
// has one, named after its device and inode. Anyone who may read a file can flock it,
// so a lock on the module itself would let any user keep root from signing. A Lock also
// takes a shared lock on every directory above: a lock on a directory and a lock on
// something below it exclude each other, and locks on siblings do not. The lock ends
// with the process.
//
// The private directory is /run/modsign for root. Other users have one below /tmp,
// /run/user or their home directory. When root locks what belongs to another user, it
// also takes the lock in that user's directory, so that root and the owner of a tree
// exclude each other. Two users who may both write to a third user's tree do not
// exclude each other, but each replaces whole modules and leaves the other's temporary
// files alone (see [InUse]).
type Lock struct {
	dirs   map[int]*dirfd.Dir // by user; nil if that user has none
	files  []lockFile
	held   map[lockID]int  // LOCK_EX or LOCK_SH; by inode, because a file may have several names
	given  map[string]bool // exclusively locked
	shared map[string]bool // locked for sharing, as directories above

	// Unsupported reports that no lock files can be created, so nobody is kept out.
	Unsupported bool
}

type lockFile struct {
	*os.File
	dir  *dirfd.Dir
	name string
}

// lockID identifies a lock file: the inode that it locks, and the user whose directory
// holds it.
type lockID struct {
	inode
	user int
}

type inode struct{ dev, ino uint64 }

// A LockedError reports that another run holds a lock.
type LockedError struct {
	Path   string
	Holder string // such as "modsign (pid 42)", or "another process" if unknown
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("%s: in use by %s", e.Path, e.Holder)
}

// NewLock locks each path, which must exist, or returns a [*LockedError] at once. A
// lock on a path covers the paths below it. Paths in read are locked for sharing: other
// readers, and writers to part of a directory, may run at the same time, but no writer
// to the whole directory.
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

// Wait calls lock, which is [NewLock] or [LockName], until it succeeds, fails for
// another reason than a lock, or the context ends. It calls waiting once, with the
// first holder; waiting may be nil.
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
	return &Lock{
		dirs:   make(map[int]*dirfd.Dir),
		held:   make(map[lockID]int),
		given:  make(map[string]bool),
		shared: make(map[string]bool),
	}
}

// LockName locks a name in a directory, whether or not the file exists, or returns a
// [*LockedError] at once. Runs on different modules use it for the files that they
// share.
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

// privateDir opens the directory of a user's lock files. It returns nil if there is
// none, and skips a name that another user has taken.
func privateDir(uid int) *dirfd.Dir {
	var names []string
	if uid == 0 {
		names = append(names, "/run/modsign")
	}
	for i := range 8 {
		names = append(names, fmt.Sprintf("/tmp/.modsign-lock-%d.%d", uid, i))
	}
	if uid == os.Geteuid() { // root creates nothing that another user could replace
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

// makePrivate creates a directory if it does not exist. Root creates another user's
// directory only in /tmp, where only root can replace root's files.
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

// realPaths returns the paths without symbolic links, a directory before its contents.
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

// covers reports whether path or a directory above it is exclusively locked.
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
			break // and so are the directories above
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

// flockAs locks the file that info describes, in the directory of this user and in that
// of the file's owner.
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

// patience is how long flockIn retries a lock that another process holds. That process
// may be about to remove the lock file, and a busy machine may delay it.
const patience = 500 * time.Millisecond

// flockIn locks a file in a directory of lock files. It returns nil if it cannot create
// the lock file, for example because the disk is full.
func (l *Lock) flockIn(dir *dirfd.Dir, name string, user, how int) (*lockFile, error) {
	for waited := time.Duration(0); ; {
		f, err := openLock(dir, name, user)
		if err != nil {
			return nil, nil
		}
		switch err := flockRetry(int(f.Fd()), how|unix.LOCK_NB); {
		case err == unix.EWOULDBLOCK && waited < patience:
			// The holder may be about to remove the file, which takes an exclusive
			// lock.
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
			f.Close() // by its previous holder
			continue
		}
		return locked, nil
	}
}

// openLock opens or creates a lock file. The file must belong to the user whose
// directory holds it; anything else that the user put there is an error. Root changes
// the owner only of the file that it has just created.
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

// removed reports whether the name no longer refers to the file.
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

// Unlock releases all locks.
func (l *Lock) Unlock() {
	for _, f := range l.files {
		// Remove the file if nobody shares it; who has just opened it finds it removed
		// and retries.
		if flockRetry(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && !f.removed() {
			_ = f.dir.Remove(f.name)
		}
		// Close alone is not enough: a child of this process that has forked and not
		// yet called exec shares the file, and so holds the lock.
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

// holderOf looks up the holder of a file's lock in /proc/locks, whose lines are
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
