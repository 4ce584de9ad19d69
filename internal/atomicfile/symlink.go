package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/dirfd"
)

// Symlink makes the symbolic link name in dir hold text, in the place of the link that
// may be there; anything else of that name is a [dirfd.PlantedError].
func Symlink(dir *dirfd.Dir, name, text string) error {
	if err := dir.CheckLink(name); err != nil {
		return err
	}
	return newLink(dir, name, text, func(temp string) error { return dir.Rename(temp, name) })
}

// newLink makes a symbolic link of a temporary name, which put gives its own.
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

// Relink makes the symbolic link name in dir hold text, with the owner and the time of
// the link old, which lies there too. It replaces name if that is old itself, and
// nothing else: what has the name already is [fs.ErrExist], unless it is that link.
func Relink(dir *dirfd.Dir, old, name, text string) error {
	if is, err := dir.Readlink(name); old != name && err == nil && is == text {
		return nil
	}
	st, err := dir.Lstat(old)
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return fmt.Errorf("%s: no symbolic link any more", dir.Path(old))
	}
	return newLink(dir, name, text, func(temp string) error {
		// What it cannot have of the old one it does without.
		_ = dir.Lchown(temp, st.Uid, st.Gid)
		_ = dir.SetMTime(temp, st.Mtim)
		if old == name {
			return dir.Rename(temp, name)
		}
		return dir.RenameNew(temp, name)
	})
}

// Unlink removes the symbolic link name from dir if it still holds text.
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
