// Package dirfd works on files by an open directory and a name in it, so that
// nobody who can rename directories or plant symbolic links on the way can turn the
// work to other files.
//
// A [Dir] that [Open] returns is the directory that a user has named; links on that
// path are followed. From there on nothing is: [Dir.OpenDir] and [Dir.MakeDir]
// refuse a path that leads over a symbolic link, and the methods that take a name
// act on the directory entry itself. [OpenOwn] is for a directory whose own name is
// one that modsign makes up.
//
// What is to be read or entered is opened first and judged then, as a name may stand for
// another thing a moment after a look at it. Something of another kind than it has to be
// gives a [PlantedError].
//
// It uses openat2(2) where the kernel has it (Linux 5.6), and else opens one
// component after the other.
package dirfd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrLink reports a path below a directory that leads over a symbolic link.
var ErrLink = errors.New("a symbolic link, which is not followed here")

// PlantedError reports a name at which modsign makes files or directories of its own,
// and something of another kind stands. A symbolic link is an [ErrLink], too.
type PlantedError struct {
	Path string
	What string // a symbolic link
	Want string // a regular file
}

func (e *PlantedError) Error() string {
	return fmt.Sprintf("%s: is %s, and has to be %s: look at it, and remove it", e.Path, e.What, e.Want)
}

func (e *PlantedError) Is(target error) bool {
	return target == ErrLink && e.What == kind(unix.S_IFLNK)
}

// kind is a type of file in words.
func kind(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "a regular file"
	case unix.S_IFDIR:
		return "a directory"
	case unix.S_IFLNK:
		return "a symbolic link"
	case unix.S_IFBLK, unix.S_IFCHR:
		return "a device"
	case unix.S_IFIFO:
		return "a FIFO"
	case unix.S_IFSOCK:
		return "a socket"
	}
	return "of an unknown kind"
}

// Dir is an open directory. Its methods may be called by several goroutines, and
// none of them after Close.
type Dir struct {
	fd   int // O_PATH: no permission to read the directory is needed
	path string
}

// Open opens the directory at path, following symbolic links.
func Open(path string) (*Dir, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return &Dir{fd, filepath.Clean(path)}, nil
}

// OpenReal opens the directory at an absolute path that holds no symbolic link, as
// [filepath.EvalSymlinks] returns it. A link that has come since is an error.
func OpenReal(path string) (*Dir, error) {
	root, err := Open("/")
	if err != nil {
		return nil, err
	}
	defer root.Close()
	d, err := root.OpenDir(strings.TrimPrefix(filepath.Clean(path), "/"))
	if err != nil {
		return nil, err
	}
	d.path = path
	return d, nil
}

// OpenOwn opens the directory at a path whose last name is modsign's own: links on the
// way there are followed, and that name is none.
func OpenOwn(path string) (*Dir, error) {
	working := Dir{unix.AT_FDCWD, "."}
	return working.child(filepath.Clean(path), false)
}

// Close closes the directory.
func (d *Dir) Close() error { return unix.Close(d.fd) }

// Path is the path of a name in the directory, for people: the directory may have
// moved since it was opened.
func (d *Dir) Path(name string) string { return join(d.path, name) }

// join is filepath.Join for clean paths, and cheaper: it is called for every module.
func join(dir, name string) string {
	switch {
	case name == "" || name == ".":
		return dir
	case dir == ".":
		return name
	case dir == "/":
		return dir + name
	}
	return dir + "/" + name
}

func (d *Dir) failed(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: d.Path(name), Err: err}
}

// noOpenat2 is set when openat2(2) turns out to be missing or forbidden.
var noOpenat2 atomic.Bool

// OpenDir opens a directory below this one: rel is a clean relative path without
// "..", and "." or empty for the directory itself. A component that is no directory
// gives a [PlantedError].
func (d *Dir) OpenDir(rel string) (*Dir, error) {
	if rel == "" {
		rel = "."
	}
	if !filepath.IsLocal(rel) {
		return nil, d.failed("open", rel, errors.New("not a path below this directory"))
	}
	fd, err := d.beneath(rel, unix.O_PATH|unix.O_DIRECTORY)
	switch err {
	case nil:
		return &Dir{fd, d.Path(rel)}, nil
	case unix.ENOSYS:
		return d.descend(rel, false)
	}
	return nil, d.failed("open", rel, err)
}

// OpenBelow opens a file below this directory for reading. It is [Dir.OpenDir] and
// [Dir.Open] in one call of the system.
func (d *Dir) OpenBelow(rel string) (*os.File, error) {
	fd, err := d.beneath(rel, unix.O_RDONLY|unix.O_NONBLOCK)
	switch err {
	case nil:
		return os.NewFile(uintptr(fd), d.Path(rel)), nil
	case unix.ENOSYS:
		dir, err := d.OpenDir(filepath.Dir(rel))
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		return dir.Open(filepath.Base(rel), unix.O_RDONLY, 0)
	}
	return nil, d.failed("open", rel, err)
}

// beneath is openat2(2) without symbolic links. ENOSYS stands for every error that does
// not occur, or tells more, where one component is opened after the other.
func (d *Dir) beneath(rel string, flags uint64) (int, error) {
	if noOpenat2.Load() || !filepath.IsLocal(rel) {
		return -1, unix.ENOSYS
	}
	fd, err := retry(func() (int, error) {
		return unix.Openat2(d.fd, rel, &unix.OpenHow{
			Flags:   flags | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
	})
	switch err {
	case unix.EAGAIN, unix.ELOOP, unix.ENOTDIR: // something was renamed on the way, or is no directory
		err = unix.ENOSYS
	case unix.ENOSYS, unix.EPERM:
		noOpenat2.Store(true)
		err = unix.ENOSYS
	}
	return fd, err
}

// MakeDir is [Dir.OpenDir], and makes the directories that are not there, with mode
// 0777 less the umask.
func (d *Dir) MakeDir(rel string) (*Dir, error) {
	below, err := d.OpenDir(rel)
	if !errors.Is(err, fs.ErrNotExist) {
		return below, err
	}
	return d.descend(rel, true)
}

// descend opens one component after the other.
func (d *Dir) descend(rel string, create bool) (*Dir, error) {
	at := d
	for name := range strings.SplitSeq(filepath.Clean(rel), "/") {
		next, err := at.child(name, create)
		if at != d {
			at.Close()
		}
		if err != nil {
			return nil, err
		}
		at = next
	}
	return at, nil
}

func (d *Dir) child(name string, create bool) (*Dir, error) {
	if create && name != "." {
		if err := unix.Mkdirat(d.fd, name, 0o777); err != nil && err != unix.EEXIST {
			return nil, d.failed("mkdir", name, err)
		}
	}
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err == unix.ENOTDIR || err == unix.ELOOP {
		if err := d.check(name, unix.S_IFDIR); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, d.failed("open", name, err)
	}
	return &Dir{fd, d.Path(name)}, nil
}

// Open opens a file in the directory. A symbolic link is not followed, whatever the
// flags, and a FIFO does not block.
func (d *Dir) Open(name string, flags int, perm fs.FileMode) (*os.File, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, uint32(perm.Perm()))
	})
	if err == unix.ELOOP {
		return nil, d.failed("open", name, ErrLink)
	}
	if err != nil {
		return nil, d.failed("open", name, err)
	}
	return os.NewFile(uintptr(fd), d.Path(name)), nil
}

// ReadFile reads a regular file of at most max bytes.
func (d *Dir) ReadFile(name string, max int64) ([]byte, error) {
	f, err := d.Open(name, unix.O_RDONLY, 0)
	if err != nil {
		if planted := d.CheckFile(name); planted != nil { // a socket cannot be opened, say
			return nil, planted
		}
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := d.judge(name, info.Sys().(*syscall.Stat_t).Mode, unix.S_IFREG); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > max {
		return nil, fmt.Errorf("%s: has more than %d bytes", d.Path(name), max)
	}
	return data, nil
}

// Lstat describes what a name stands for, be it a link.
func (d *Dir) Lstat(name string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	_, err := retry(func() (int, error) {
		return 0, unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	if err != nil {
		return nil, d.failed("lstat", name, err)
	}
	return &st, nil
}

// Info is [Dir.Lstat] in the form of [os.Lstat].
func (d *Dir) Info(name string) (fs.FileInfo, error) {
	f, err := d.Open(name, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Stat()
}

// Exists reports whether a name stands for something, and a link for something
// that is there.
func (d *Dir) Exists(name string) bool { return unix.Faccessat(d.fd, name, unix.F_OK, 0) == nil }

// CheckFile returns a [PlantedError] when a name stands for something that is no
// regular file: what modsign writes under names of its own choice replaces nothing else.
func (d *Dir) CheckFile(name string) error { return d.check(name, unix.S_IFREG) }

// CheckLink is CheckFile for a symbolic link that modsign makes.
func (d *Dir) CheckLink(name string) error { return d.check(name, unix.S_IFLNK) }

func (d *Dir) check(name string, want uint32) error {
	st, err := d.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return d.judge(name, st.Mode, want)
}

// judge returns an error unless what has a name is of the wanted type.
func (d *Dir) judge(name string, mode, want uint32) error {
	if mode&unix.S_IFMT == want {
		return nil
	}
	return &PlantedError{d.Path(name), kind(mode), kind(want)}
}

// Names returns the names of all that is in the directory.
func (d *Dir) Names() ([]string, error) {
	f, err := d.reopen()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// Remove removes a name that is not a directory's.
func (d *Dir) Remove(name string) error {
	return d.failed("remove", name, unix.Unlinkat(d.fd, name, 0))
}

// RemoveDir removes an empty directory, and nothing else of that name.
func (d *Dir) RemoveDir(name string) error {
	return d.failed("remove", name, unix.Unlinkat(d.fd, name, unix.AT_REMOVEDIR))
}

// Clear removes what a name stands for, if it is there: a file, a link, or a directory
// that is empty.
func (d *Dir) Clear(name string) error {
	err := d.Remove(name)
	if errors.Is(err, unix.EISDIR) {
		err = d.RemoveDir(name)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Rename gives what a name stands for another name, replacing what has it.
func (d *Dir) Rename(from, to string) error {
	return d.failed("rename", to, unix.Renameat(d.fd, from, d.fd, to))
}

// RenameNew is [Dir.Rename], and replaces nothing: a name that is there is
// [fs.ErrExist].
func (d *Dir) RenameNew(from, to string) error {
	err := unix.Renameat2(d.fd, from, d.fd, to, unix.RENAME_NOREPLACE)
	if err == unix.EINVAL || err == unix.ENOSYS { // not every file system knows that
		if err = unix.Linkat(d.fd, from, d.fd, to, 0); err == nil {
			err = unix.Unlinkat(d.fd, from, 0)
		}
	}
	return d.failed("rename", to, err)
}

// Lchown changes the owner of what a name stands for, be it a link.
func (d *Dir) Lchown(name string, uid, gid uint32) error {
	return d.failed("chown", name, unix.Fchownat(d.fd, name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW))
}

// Link gives a file a second name in another directory, which must be on the same
// file system.
func (d *Dir) Link(name string, to *Dir, as string) error {
	return to.failed("link", as, unix.Linkat(d.fd, name, to.fd, as, 0))
}

// Symlink makes a symbolic link that leads to target.
func (d *Dir) Symlink(target, name string) error {
	return d.failed("symlink", name, unix.Symlinkat(target, d.fd, name))
}

// Readlink returns where a symbolic link leads to.
func (d *Dir) Readlink(name string) (string, error) {
	buf := make([]byte, 4096) // PATH_MAX: a longer one cannot be made
	n, err := unix.Readlinkat(d.fd, name, buf)
	if err != nil {
		return "", d.failed("readlink", name, err)
	}
	return string(buf[:n]), nil
}

// SetMTime sets a file's time of modification, and leaves the time of access.
func (d *Dir) SetMTime(name string, mtime unix.Timespec) error {
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, mtime}
	return d.failed("utimensat", name, unix.UtimesNanoAt(d.fd, name, times, unix.AT_SYMLINK_NOFOLLOW))
}

// Sync waits until the directory's names are on disk.
func (d *Dir) Sync() error {
	f, err := d.reopen()
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// SyncFS waits until all that was written to the directory's file system is on
// disk.
func (d *Dir) SyncFS() error {
	f, err := d.reopen()
	if err != nil {
		return err
	}
	defer f.Close()
	return d.failed("syncfs", "", unix.Syncfs(int(f.Fd())))
}

// reopen opens the directory for what an O_PATH descriptor does not do.
func (d *Dir) reopen() (*os.File, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, d.failed("open", "", err)
	}
	return os.NewFile(uintptr(fd), d.path), nil
}

// retry calls f again when a signal has interrupted it.
func retry(f func() (int, error)) (int, error) {
	for {
		if n, err := f(); err != unix.EINTR {
			return n, err
		}
	}
}
