package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Relink makes the symbolic link name in dir hold text, with the owner and the time of
// the link old, which lies there too. It replaces name if that is old itself, and
// nothing else: what has the name already is [fs.ErrExist], unless it is that link.
func Relink(dir *os.File, old, name, text string) error {
	fd := int(dir.Fd())
	if is, err := ReadLink(dir, name); old != name && err == nil && is == text {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, old, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathError("lstat", dir, old, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return fmt.Errorf("%s: no symbolic link any more", filepath.Join(dir.Name(), old))
	}
	temp := filepath.Base(tempName(name))
	if err := unix.Symlinkat(text, fd, temp); err != nil {
		return pathError("symlink", dir, name, err)
	}
	// What it cannot have of the old one it does without.
	unix.Fchownat(fd, temp, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
	unix.UtimesNanoAt(fd, temp, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
	if err := renameLink(fd, temp, name, old == name); err != nil {
		unix.Unlinkat(fd, temp, 0)
		return pathError("rename", dir, name, err)
	}
	return nil
}

func renameLink(fd int, temp, name string, replace bool) error {
	if replace {
		return unix.Renameat(fd, temp, fd, name)
	}
	err := unix.Renameat2(fd, temp, fd, name, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	// Not every file system knows that. A second name replaces nothing either.
	if err := unix.Linkat(fd, temp, fd, name, 0); err != nil {
		return err
	}
	return unix.Unlinkat(fd, temp, 0)
}

// ReadLink returns what the symbolic link name in dir holds.
func ReadLink(dir *os.File, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
	if err != nil {
		return "", pathError("readlink", dir, name, err)
	}
	return string(buf[:n]), nil
}

// Unlink removes the symbolic link name from dir if it still holds text.
func Unlink(dir *os.File, name, text string) error {
	is, err := ReadLink(dir, name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && is != text {
		return nil
	}
	if err != nil {
		return err
	}
	if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil {
		return pathError("remove", dir, name, err)
	}
	return nil
}

func pathError(op string, dir *os.File, name string, err error) error {
	return &fs.PathError{Op: op, Path: filepath.Join(dir.Name(), name), Err: err}
}
