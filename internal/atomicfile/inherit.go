package atomicfile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/dirfd"
)

// Inherit says what a new file takes over from the old one. The zero value
// takes all that stays true of other bytes.
type Inherit struct {
	Mode       *fs.FileMode // instead of the old file's
	NewMTime   bool         // leave the time of modification at now
	Attest     bool         // keep security.ima and security.evm, although they attest the old bytes
	BestEffort bool         // for a copy elsewhere: owner and attributes only as far as one may
	NewOwner   bool         // leave the file to whoever runs this
}

// An OwnerError reports a file that cannot be given to the owner of the one that it
// is to replace: only root may give files away, and in a container without root's
// rights not even that.
type OwnerError struct {
	UID, GID uint32
	Err      error
}

func (e *OwnerError) Error() string {
	return fmt.Sprintf("cannot keep the owner %d:%d: %v", e.UID, e.GID, e.Err)
}

func (e *OwnerError) Unwrap() error { return e.Err }

// Inherit gives the file the mode, owner, extended attributes (access control
// lists among them) and time of modification of old, whose fs.FileInfo is info.
// It is to be called after the last write. attested says that old had attributes
// which were left behind because they attest its content.
func (f *File) Inherit(old *os.File, info fs.FileInfo, opts Inherit) (attested bool, err error) {
	was := info.Sys().(*syscall.Stat_t)
	var is unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &is); err != nil {
		return false, f.failed("fstat", err)
	}
	mode := info.Mode()
	if opts.Mode != nil {
		mode = *opts.Mode
	}
	// The owner first: a change of owner clears bits of the mode.
	if is.Uid != was.Uid || is.Gid != was.Gid {
		err := error(unix.EPERM)
		if !opts.NewOwner {
			err = f.Chown(int(was.Uid), int(was.Gid))
		}
		if err != nil && !opts.BestEffort && !opts.NewOwner {
			return false, &OwnerError{was.Uid, was.Gid, err}
		}
		if err != nil { // as cp -p: they were meant for another owner
			mode &^= fs.ModeSetuid | fs.ModeSetgid
		}
	}
	if err := f.Chmod(mode); err != nil {
		return false, err
	}
	if attested, err = f.copyXattrs(old, opts); err != nil {
		return attested, err
	}
	if !opts.NewMTime {
		if err := f.SetMTime(unix.Timespec(was.Mtim)); err != nil {
			return attested, err
		}
	}
	return attested, nil
}

// SetMTime sets the time of modification, and leaves the time of access.
func (f *File) SetMTime(mtime unix.Timespec) error {
	return setMTime(f.File, mtime, f.names[0].dir, f.names[0].temp)
}

// setMTime goes by the descriptor, which cannot be mistaken; kernels before 5.8 know
// no empty path here, and get the name.
func setMTime(f *os.File, mtime unix.Timespec, dir *dirfd.Dir, name string) error {
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, mtime}
	if err := unix.UtimesNanoAt(int(f.Fd()), "", times, unix.AT_EMPTY_PATH); err == nil {
		return nil
	}
	return dir.SetMTime(name, mtime)
}

// accessList is the attribute that holds an access control list.
const accessList = "system.posix_acl_access"

func (f *File) copyXattrs(old *os.File, opts Inherit) (attested bool, err error) {
	var buf [4096]byte
	names, err := listXattrs(int(old.Fd()), buf[:])
	if err != nil {
		return false, f.failed("flistxattr", err)
	}
	// The folder's default list is not the old file's.
	if !strings.Contains("\x00"+names, "\x00"+accessList+"\x00") || opts.Mode != nil {
		if err := f.removeXattr(accessList); err != nil {
			return false, err
		}
	}
	for name := range strings.SplitSeq(names, "\x00") {
		if name == "" {
			continue
		}
		if !opts.Attest && (name == "security.ima" || name == "security.evm") {
			attested = true
			continue
		}
		value, err := getXattr(int(old.Fd()), name)
		if errors.Is(err, unix.ENODATA) {
			continue // removed since, or not for us to see
		}
		if err == nil {
			err = f.setXattr(name, value, opts.Mode != nil)
		}
		if err != nil && !opts.BestEffort {
			return attested, fmt.Errorf("cannot keep the attribute %s: %w", name, err)
		}
	}
	return attested, nil
}

// setXattr gives the file an attribute, unless it has it already: a security
// label often comes with the folder, and only few may set one.
func (f *File) setXattr(name string, value []byte, modeGiven bool) error {
	if modeGiven && name == accessList {
		return nil // it is the old mode, in more words
	}
	if has, err := getXattr(int(f.Fd()), name); err == nil && bytes.Equal(has, value) {
		return nil
	}
	return unix.Fsetxattr(int(f.Fd()), name, value, 0)
}

// removeXattr takes an attribute away if it is there.
func (f *File) removeXattr(name string) error {
	err := unix.Fremovexattr(int(f.Fd()), name)
	if err == nil || errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return f.failed("fremovexattr", err)
}

// listXattrs returns the names of a file's attributes, a NUL byte after each. A
// file system without attributes has none.
func listXattrs(fd int, buf []byte) (string, error) {
	for {
		n, err := unix.Flistxattr(fd, buf)
		switch {
		case err == nil:
			return string(buf[:n]), nil
		case errors.Is(err, unix.ENOTSUP):
			return "", nil
		case !errors.Is(err, unix.ERANGE):
			return "", err
		}
		buf = make([]byte, 2*len(buf)) // the kernel's limit is 64 KiB
	}
}

func getXattr(fd int, name string) ([]byte, error) {
	var buf [512]byte
	n, err := unix.Fgetxattr(fd, name, buf[:])
	if err == nil {
		return buf[:n], nil
	}
	if !errors.Is(err, unix.ERANGE) {
		return nil, err
	}
	if n, err = unix.Fgetxattr(fd, name, nil); err != nil {
		return nil, err
	}
	value := make([]byte, n)
	if n, err = unix.Fgetxattr(fd, name, value); err != nil {
		return nil, err
	}
	return value[:n], nil
}

func (f *File) failed(op string, err error) error {
	return &fs.PathError{Op: op, Path: f.Name(), Err: err}
}
