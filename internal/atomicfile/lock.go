package atomicfile

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A Lock keeps others out of files and whole folders. It is flock(2) on the
// files and folders themselves: it needs no file of its own, works where
// nothing may be written, and ends with the process. The folders above are
// locked for sharing, so that a lock on a folder and one on something below it
// exclude each other, and neighbours do not.
type Lock struct {
	files  []*os.File
	held   map[inode]int   // LOCK_EX or LOCK_SH; one file may have several names
	given  map[string]bool // locked whole
	shared map[string]bool // locked for sharing, as they lie above

	// Unsupported says that a file system knows no locks, so that nobody is kept out
	// of what lies there.
	Unsupported bool
}

type inode struct{ dev, ino uint64 }

// A LockedError says that somebody else holds a lock.
type LockedError struct {
	Path   string
	Holder string // "modsign (pid 42)", as far as it can be known
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("%s is in use by %s: wait until it has ended, then run again", e.Path, e.Holder)
}

// NewLock locks each path, which must exist, or returns a [*LockedError] at
// once. A path below another of them is locked by that. Paths that are only
// read are locked for sharing: other readers may come, and writers to a part of
// a folder, but nobody who writes to the whole.
func NewLock(written, read []string) (*Lock, error) {
	l := &Lock{held: make(map[inode]int), given: make(map[string]bool), shared: make(map[string]bool)}
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
	for {
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			// What one may not read one cannot lock, and cannot sign either: whoever
			// comes to it will say so.
			if errors.Is(err, fs.ErrPermission) {
				return nil
			}
			return err
		}
		id, err := inodeOf(f)
		if err != nil || l.held[id] == how || l.held[id] == unix.LOCK_EX {
			f.Close()
			return err
		}
		switch err := flockRetry(int(f.Fd()), how|unix.LOCK_NB); {
		case err == unix.EWOULDBLOCK:
			holder := holderOf(f)
			f.Close()
			return &LockedError{Path: path, Holder: holder}
		case err != nil: // NFS without its lock daemon, say
			f.Close()
			l.Unsupported = true
			return nil
		}
		if replaced(f, path) {
			release(f) // its next version may be in somebody else's hands
			continue
		}
		l.files = append(l.files, f)
		l.held[id] = how
		return nil
	}
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

// replaced reports whether path is no longer the file that was opened.
func replaced(f *os.File, path string) bool {
	opened, err1 := f.Stat()
	named, err2 := os.Stat(path)
	return err1 != nil || err2 == nil && !os.SameFile(opened, named)
}

// Unlock lets go of everything.
func (l *Lock) Unlock() {
	for _, f := range l.files {
		release(f)
	}
	l.files = nil
}

// release does not leave it to Close alone: a child of this process that has not
// come to its exec yet has the file, and so the lock, too.
func release(f *os.File) {
	_ = flockRetry(int(f.Fd()), unix.LOCK_UN)
	f.Close()
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
