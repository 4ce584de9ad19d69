package keygen

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// access says who can access the file of a private key. The zero value is its owner
// alone.
type access struct {
	mode     fs.FileMode // permission bits; 0 for anything but a regular file
	gid      int
	acl      bool // there is an ACL, with more users or groups than the mode shows
	mine     bool // this user may change the mode
	readOnly bool // nobody may: the mount is read-only
}

func accessTo(f *os.File) (access, error) {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return access{}, err
	}
	a := access{mode: info.Mode().Perm()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		a.gid = int(st.Gid)
		a.mine = os.Geteuid() == 0 || os.Geteuid() == int(st.Uid)
	}
	_, err = unix.Fgetxattr(int(f.Fd()), "system.posix_acl_access", nil)
	a.acl = err == nil || errors.Is(err, unix.ERANGE)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err == nil {
		a.readOnly = fs.Flags&unix.ST_RDONLY != 0
	}
	return a, nil
}

// check refuses a private key that others can access. With a POSIX ACL the mode's
// group bits are its mask, so an entry that lets somebody in shows here too.
//
// A group that is not the user's primary one was given the key on purpose: root reads a
// key of root:akmods, mode 0640. The primary group may have got it by a careless umask.
func (a access) check(data []byte, note func(string)) error {
	if _, err := findKey(data); err != nil && !isOpenPGPKey(data) || a.mode&0o077 == 0 {
		return nil
	}
	if a.mode&0o077 == 0o040 && a.gid != os.Getgid() && !a.acl {
		note(fmt.Sprintf("private key is readable for its group %d too: its mode is %04o", a.gid, a.mode))
		return nil
	}
	return &LoadError{Reason: ErrInsecure, Err: &InsecureError{Mode: a.mode, NotOwner: !a.mine, ReadOnly: a.readOnly}}
}
