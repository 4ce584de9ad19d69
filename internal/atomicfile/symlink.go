package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/dirfd"
)

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
	temp := tempName(name)
	if err := dir.Symlink(text, temp); err != nil {
		return failedAt(dir.Path(name), err)
	}
	// What it cannot have of the old one it does without.
	_ = dir.Lchown(temp, st.Uid, st.Gid)
	_ = dir.SetMTime(temp, st.Mtim)
	if old == name {
		err = dir.Rename(temp, name)
	} else {
		err = dir.RenameNew(temp, name)
	}
	if err != nil {
		_ = dir.Remove(temp)
	}
	return err
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
