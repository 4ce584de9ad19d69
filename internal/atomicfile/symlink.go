package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/dirfd"
)

// Symlink creates the symbolic link name in dir with the target text. It replaces an
// existing symbolic link; anything else at that name is a [dirfd.PlantedError].
func Symlink(dir *dirfd.Dir, name, text string) error {
	if err := dir.CheckLink(name); err != nil {
		return err
	}
	return newLink(dir, name, text, func(temp string) error { return dir.Rename(temp, name) })
}

// newLink creates a symbolic link under a temporary name, and calls put to rename it.
func newLink(dir *dirfd.Dir, name, text string, put func(temp string) error) error {
	temp := tempName(name)
	if err := dir.Symlink(text, temp); err != nil {
		return failedAt(dir.Path(name), err)
	}
	err := put(temp)
	if err != nil {
		_ = dir.Remove(temp)
	}
	return err
}

// Relink creates the symbolic link name in dir with the target text, and with the owner
// and the modification time of the link old in the same directory. It replaces name
// only if that is old itself. Otherwise an existing name is [fs.ErrExist], unless it is
// already a link to text.
func Relink(dir *dirfd.Dir, old, name, text string) error {
	if is, err := dir.Readlink(name); old != name && err == nil && is == text {
		return nil
	}
	st, err := dir.Lstat(old)
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return fmt.Errorf("%s: no longer a symbolic link", dir.Path(old))
	}
	return newLink(dir, name, text, func(temp string) error {
		// Owner and time are kept as far as this user may set them.
		_ = dir.Lchown(temp, st.Uid, st.Gid)
		_ = dir.SetMTime(temp, st.Mtim)
		if old == name {
			return dir.Rename(temp, name)
		}
		return dir.RenameNew(temp, name)
	})
}

// Unlink removes the symbolic link name from dir if its target is still text.
func Unlink(dir *dirfd.Dir, name, text string) error {
	is, err := dir.Readlink(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && is != text {
		return nil
	}
	if err != nil {
		return err
	}
	return dir.Remove(name)
}
