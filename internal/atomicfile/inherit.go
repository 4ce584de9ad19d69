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

// Inherit selects what a new file takes over from the old one. The zero value takes
// everything that does not depend on the content.
type Inherit struct {
	Mode       *fs.FileMode // if not nil, replaces the old file's mode
	NewMTime   bool         // do not copy the modification time
	Attest     bool         // keep security.ima and security.evm, which attest the old content
	BestEffort bool         // ignore owners and attributes that this user may not set
	NewOwner   bool         // do not copy the owner
}

// An OwnerError reports that a new file cannot get the owner of the file that it
// replaces. Only root may change owners, and in some containers not even root.
type OwnerError struct {
	UID, GID uint32
	Err      error
}

func (e *OwnerError) Error() string {
	return fmt.Sprintf("cannot keep the owner %d:%d: %v", e.UID, e.GID, e.Err)
}

func (e *OwnerError) Unwrap() error { return e.Err }

// Inherit copies the mode, owner, extended attributes (access control lists among them)
// and modification time of old, whose fs.FileInfo is info. Call it after the last
// write. attested reports that old had attributes that Inherit left out because they
// attest the old content.
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
	// Set the owner first: changing it clears bits of the mode.
	if is.Uid != was.Uid || is.Gid != was.Gid {
		err := error(unix.EPERM)
		if !opts.NewOwner {
			err = f.Chown(int(was.Uid), int(was.Gid))
		}
		if err != nil && !opts.BestEffort && !opts.NewOwner {
			return false, &OwnerError{was.Uid, was.Gid, err}
		}
		if err != nil { // like cp -p: the bits were meant for another owner
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

// SetMTime sets the modification time and leaves the access time unchanged.
func (f *File) SetMTime(mtime unix.Timespec) error {
	return setMTime(f.File, mtime, f.names[0].dir, f.names[0].temp)
}

// setMTime uses the descriptor, which cannot refer to another file. Kernels before 5.8
// do not accept an empty path here; for them setMTime uses the name.
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
	// The new file may have the directory's default list, which is not the old file's.
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
			continue // removed meanwhile, or not visible to this user
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

// setXattr sets an attribute of the file unless the file already has it: a security
// label is often inherited from the directory, and few users may set one.
func (f *File) setXattr(name string, value []byte, modeGiven bool) error {
	if modeGiven && name == accessList {
		return nil // the list only repeats the old mode
	}
	if has, err := getXattr(int(f.Fd()), name); err == nil && bytes.Equal(has, value) {
		return nil
	}
	return unix.Fsetxattr(int(f.Fd()), name, value, 0)
}

// removeXattr removes an attribute if it exists.
func (f *File) removeXattr(name string) error {
	err := unix.Fremovexattr(int(f.Fd()), name)
	if err == nil || errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return f.failed("fremovexattr", err)
}

// listXattrs returns the names of a file's attributes, each followed by a NUL byte. On
// a file system without attributes it returns none.
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
