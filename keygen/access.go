package keygen

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// access is who can get at the file of a private key. The zero value is nobody
// but its owner.
type access struct {
	mode     fs.FileMode // its bits for group and others; 0 of what is no regular file
	gid      int
	acl      bool // more users or groups than the mode tells of
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

// check refuses a private key that others can get at. With a POSIX ACL the mode's
// group bits are its mask, so an entry that lets somebody in shows here too.
//
// A group that was given the key on purpose is none of the user's own: root reads
// a key of root:akmods, mode 0640. Where it is the user's primary group, everybody
// in it may have got the key by a careless umask.
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
