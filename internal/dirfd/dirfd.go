// Package dirfd works by name in an open directory, so that nobody who renames
// directories or plants symbolic links can redirect the work to other files.
//
// [Open] opens a directory that the user has named, and follows the symbolic links in
// that path. Below it no link is followed: [Dir.OpenDir] and [Dir.MakeDir] reject a
// path that leads over a symbolic link, and the methods that take a name act on the
// directory entry itself. [OpenOwn] opens a directory whose last name modsign makes up.
//
// Methods open a file or directory first and check it then, because a name may refer to
// something else a moment after a check. A file of the wrong type is a [PlantedError].
//
// The package uses openat2(2) if the kernel has it (Linux 5.6 and later), and else
// opens one component after the other.
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

// ErrLink reports a path that leads over a symbolic link below an open directory.
var ErrLink = errors.New("symbolic link is not followed here")

// PlantedError reports something of the wrong type at a name that modsign makes up. If
// it is a symbolic link, the error is also [ErrLink].
type PlantedError struct {
	Path string
	What string // such as "a symbolic link"
	Want string // such as "a regular file"
}

func (e *PlantedError) Error() string {
	return fmt.Sprintf("%s: is %s instead of %s; inspect and remove it", e.Path, e.What, e.Want)
}

func (e *PlantedError) Is(target error) bool {
	return target == ErrLink && e.What == kind(unix.S_IFLNK)
}

// kind describes the file type in mode.
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

// Dir is an open directory. Its methods are safe for concurrent use, but not after
// Close.
type Dir struct {
	fd   int // O_PATH: needs no permission to read the directory
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

// OpenReal opens the directory at an absolute path without symbolic links, such as
// [filepath.EvalSymlinks] returns. A link that has appeared in the path is an error.
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

// OpenOwn opens the directory at a path whose last name modsign makes up. It follows
// symbolic links in the path, but not at the last name.
func OpenOwn(path string) (*Dir, error) {
	working := Dir{unix.AT_FDCWD, "."}
	return working.child(filepath.Clean(path), false)
}

// Close closes the directory.
func (d *Dir) Close() error { return unix.Close(d.fd) }

// Path returns the path of a name in the directory for messages. The directory may have
// moved since it was opened.
func (d *Dir) Path(name string) string { return join(d.path, name) }

// join is a cheaper filepath.Join for clean paths; it runs for every module.
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

// noOpenat2 is set once openat2(2) turns out to be missing or forbidden.
var noOpenat2 atomic.Bool

// OpenDir opens a directory below this one. rel is a clean relative path without "..";
// "." and "" are the directory itself. A component that is not a directory is a
// [PlantedError].
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

// OpenBelow opens a file below this directory for reading. It does the work of
// [Dir.OpenDir] and [Dir.Open] in one system call.
func (d *Dir) OpenBelow(rel string) (*os.File, error) {
	fd, err := d.OpenBelowFD(rel)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), d.Path(rel)), nil
}

// OpenBelowFD is [Dir.OpenBelow] without the two system calls by which an [os.File] finds
// out that it cannot be polled. The caller must close the file descriptor.
func (d *Dir) OpenBelowFD(rel string) (int, error) {
	fd, err := d.beneath(rel, unix.O_RDONLY|unix.O_NONBLOCK)
	switch err {
	case nil:
		return fd, nil
	case unix.ENOSYS:
		dir, err := d.OpenDir(filepath.Dir(rel))
		if err != nil {
			return -1, err
		}
		defer dir.Close()
		return dir.openFD(filepath.Base(rel), unix.O_RDONLY, 0)
	}
	return -1, d.failed("open", rel, err)
}

// beneath calls openat2(2) and allows no symbolic links. It returns ENOSYS whenever
// opening one component after the other may succeed or give a better error.
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
	case unix.EAGAIN, unix.ELOOP, unix.ENOTDIR: // renamed meanwhile, or not a directory
		err = unix.ENOSYS
	case unix.ENOSYS, unix.EPERM:
		noOpenat2.Store(true)
		err = unix.ENOSYS
	}
	return fd, err
}

// MakeDir is [Dir.OpenDir] that creates missing directories with mode 0777 less the
// umask.
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

// Open opens a file in the directory. It never follows a symbolic link, whatever the
// flags, and does not block on a FIFO.
func (d *Dir) Open(name string, flags int, perm fs.FileMode) (*os.File, error) {
	fd, err := d.openFD(name, flags, perm)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), d.Path(name)), nil
}

func (d *Dir) openFD(name string, flags int, perm fs.FileMode) (int, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, uint32(perm.Perm()))
	})
	if err == unix.ELOOP {
		err = ErrLink
	}
	return fd, d.failed("open", name, err)
}

// ReadFile reads a regular file of at most max bytes.
func (d *Dir) ReadFile(name string, max int64) ([]byte, error) {
	f, err := d.Open(name, unix.O_RDONLY, 0)
	if err != nil {
		if planted := d.CheckFile(name); planted != nil { // for example a socket, which cannot be opened
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

// Lstat describes the directory entry, and does not follow a symbolic link.
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

// Info returns the result of [Dir.Lstat] as [os.Lstat] does.
func (d *Dir) Info(name string) (fs.FileInfo, error) {
	f, err := d.Open(name, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Stat()
}

// Exists reports whether the name exists. For a symbolic link it reports whether the
// link's target exists.
func (d *Dir) Exists(name string) bool { return unix.Faccessat(d.fd, name, unix.F_OK, 0) == nil }

// CheckFile returns a [PlantedError] if the name exists and is not a regular file:
// modsign replaces nothing else with files whose names it makes up.
func (d *Dir) CheckFile(name string) error { return d.check(name, unix.S_IFREG) }

// CheckLink is [Dir.CheckFile] for a symbolic link that modsign makes.
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

// judge returns an error unless mode is of the wanted file type.
func (d *Dir) judge(name string, mode, want uint32) error {
	if mode&unix.S_IFMT == want {
		return nil
	}
	return &PlantedError{d.Path(name), kind(mode), kind(want)}
}

// Names returns the names of all directory entries.
func (d *Dir) Names() ([]string, error) {
	f, err := d.reopen()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// Remove removes a name that is not a directory.
func (d *Dir) Remove(name string) error {
	return d.failed("remove", name, unix.Unlinkat(d.fd, name, 0))
}

// RemoveDir removes an empty directory.
func (d *Dir) RemoveDir(name string) error {
	return d.failed("remove", name, unix.Unlinkat(d.fd, name, unix.AT_REMOVEDIR))
}

// Clear removes a file, a symbolic link or an empty directory, if the name exists.
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

// Rename renames from to to, and replaces what has that name.
func (d *Dir) Rename(from, to string) error {
	return d.failed("rename", to, unix.Renameat(d.fd, from, d.fd, to))
}

// RenameNew is [Dir.Rename], but replaces nothing: an existing name is [fs.ErrExist].
func (d *Dir) RenameNew(from, to string) error {
	err := unix.Renameat2(d.fd, from, d.fd, to, unix.RENAME_NOREPLACE)
	if err == unix.EINVAL || err == unix.ENOSYS { // not every file system supports RENAME_NOREPLACE
		if err = unix.Linkat(d.fd, from, d.fd, to, 0); err == nil {
			err = unix.Unlinkat(d.fd, from, 0)
		}
	}
	return d.failed("rename", to, err)
}

// Lchown changes the owner of a directory entry, and does not follow a symbolic link.
func (d *Dir) Lchown(name string, uid, gid uint32) error {
	return d.failed("chown", name, unix.Fchownat(d.fd, name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW))
}

// Link creates a hard link to the file in another directory on the same file system.
func (d *Dir) Link(name string, to *Dir, as string) error {
	return to.failed("link", as, unix.Linkat(d.fd, name, to.fd, as, 0))
}

// Symlink creates a symbolic link to target.
func (d *Dir) Symlink(target, name string) error {
	return d.failed("symlink", name, unix.Symlinkat(target, d.fd, name))
}

// Readlink returns the target of a symbolic link.
func (d *Dir) Readlink(name string) (string, error) {
	buf := make([]byte, 4096) // PATH_MAX: no link is longer
	n, err := unix.Readlinkat(d.fd, name, buf)
	if err != nil {
		return "", d.failed("readlink", name, err)
	}
	return string(buf[:n]), nil
}

// SetMTime sets a file's modification time and leaves its access time unchanged.
func (d *Dir) SetMTime(name string, mtime unix.Timespec) error {
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, mtime}
	return d.failed("utimensat", name, unix.UtimesNanoAt(d.fd, name, times, unix.AT_SYMLINK_NOFOLLOW))
}

// Sync flushes the directory's names to disk.
func (d *Dir) Sync() error {
	f, err := d.reopen()
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// SyncFS flushes the directory's whole file system to disk.
func (d *Dir) SyncFS() error {
	f, err := d.reopen()
	if err != nil {
		return err
	}
	defer f.Close()
	return d.failed("syncfs", "", unix.Syncfs(int(f.Fd())))
}

// reopen opens the directory for operations that an O_PATH descriptor does not support.
func (d *Dir) reopen() (*os.File, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, d.failed("open", "", err)
	}
	return os.NewFile(uintptr(fd), d.path), nil
}

// retry repeats f while a signal interrupts it.
func retry(f func() (int, error)) (int, error) {
	for {
		if n, err := f(); err != unix.EINTR {
			return n, err
		}
	}
}
