// Package atomicfile replaces whole files: a reader sees the old file or the new one at
// any moment, also after a kill.
//
// [Create] writes the new file beside the file that it replaces, and [File.Commit]
// renames it. The temporary name identifies the target:
//
//	.modsign-<16 hex digits: FNV-1a of the file's base name>-<random>.tmp
//
// The name contains no ".ko" because depmod and dracut read every file with that in its
// name. A kill leaves the temporary file behind. The next holder of the tree's lock
// (see [Lock]) may remove it, and its name says which file it was to replace. When one
// new file replaces several hard links, each link gets a temporary name first, and then
// all are renamed. After a kill in between, the new file has names of both kinds, so
// the next run can finish the replacement.
//
// The package opens a file's directory once and then works by name in that directory;
// see [dirfd.Dir]. It never follows a symbolic link at the target.
//
// The package does not write into existing files and does not create directories.
package atomicfile

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/dirfd"
)

const (
	tempPrefix = ".modsign-"
	tempSuffix = ".tmp"
)

// File is a new file that will replace another.
type File struct {
	*os.File
	names []pending // not yet renamed
}

// pending is a temporary name and the target that it will be renamed to.
type pending struct {
	dir          *dirfd.Dir
	temp, target string
	owned        bool // close dir with the file
}

func (p *pending) path() string { return p.dir.Path(p.target) }

func (p *pending) close() {
	if p.owned {
		p.dir.Close()
	}
}

// Create creates the file that Commit renames to target, which need not exist. It
// follows symbolic links to the directory, but none at target. The mode is perm less
// the umask unless [File.Inherit] or Chmod changes it.
func Create(target string, perm fs.FileMode) (*File, error) {
	dir, err := dirfd.Open(filepath.Dir(target))
	if err != nil {
		return nil, failedAt(target, err)
	}
	f, err := CreateIn(dir, filepath.Base(target), perm)
	if err != nil {
		dir.Close()
		return nil, failedAt(target, err)
	}
	f.names[0].owned = true
	return f, nil
}

// CreateIn is [Create] for a name in an open directory, which must stay open until
// Commit or Abort.
//
// The temporary file stays locked (flock(2)) until then, so that a run which cleans up
// after killed runs can tell that it is in use.
func CreateIn(dir *dirfd.Dir, target string, perm fs.FileMode) (*File, error) {
	for {
		p := pending{dir: dir, temp: tempName(target), target: target}
		f, err := dir.Open(p.temp, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, perm)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return nil, failedAt(p.path(), err)
		}
		_ = flockRetry(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) // not every file system supports locks
		return &File{File: f, names: []pending{p}}, nil
	}
}

// failedAt replaces the temporary name in an error by the target, which the user knows.
func failedAt(target string, err error) error {
	if failed, ok := errors.AsType[*fs.PathError](err); ok {
		return &fs.PathError{Op: "replace", Path: target, Err: failed.Err}
	}
	return err
}

// WriteOutput writes an output file that the user has named. It follows symbolic links
// and replaces a regular file as a whole; it writes directly into anything else, such
// as a pipe. durable is as in [File.Commit].
func WriteOutput(path string, data []byte, durable bool) error {
	return StreamOutput(path, whole(data), durable)
}

// StreamOutput is [WriteOutput] of what write writes. If write fails, a regular file stays
// as it was. The writer is a [*File] if a regular file is replaced or made, and no *File if
// it is written directly.
func StreamOutput(path string, write func(io.Writer) error, durable bool) error {
	if info, err := os.Stat(path); err == nil {
		if !info.Mode().IsRegular() {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
			if err != nil {
				return err
			}
			err = write(f)
			return errors.Join(err, f.Close())
		}
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return err
		}
	}
	dir, err := dirfd.Open(filepath.Dir(path))
	if err != nil {
		return failedAt(path, err)
	}
	defer dir.Close()
	return streamIn(dir, filepath.Base(path), write, 0o666, durable)
}

func whole(data []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	}
}

// WriteFile replaces a regular file, or creates the file. Anything else at that name is
// a [dirfd.PlantedError], also a symbolic link, which WriteFile never follows. perm and
// durable are as in [Create] and [File.Commit].
func WriteFile(target string, data []byte, perm fs.FileMode, durable bool) error {
	dir, err := dirfd.Open(filepath.Dir(target))
	if err != nil {
		return failedAt(target, err)
	}
	defer dir.Close()
	return WriteIn(dir, filepath.Base(target), data, perm, durable)
}

// WriteIn is [WriteFile] for a name in an open directory.
func WriteIn(dir *dirfd.Dir, target string, data []byte, perm fs.FileMode, durable bool) error {
	return streamIn(dir, target, whole(data), perm, durable)
}

func streamIn(dir *dirfd.Dir, target string, write func(io.Writer) error, perm fs.FileMode, durable bool) error {
	if err := dir.CheckFile(target); err != nil {
		return err
	}
	f, err := CreateIn(dir, target, perm)
	if err != nil {
		return err
	}
	defer f.Abort()
	if err := write(f); err != nil {
		return failedAt(dir.Path(target), err)
	}
	return failedAt(dir.Path(target), f.Commit(durable))
}

func tempName(target string) string {
	return fmt.Sprintf("%s%016x", tempStem(target), rand.Uint64()) + tempSuffix
}

// tempStem returns the prefix of all temporary names for a target.
func tempStem(target string) string {
	h := fnv.New64a()
	h.Write([]byte(target))
	return fmt.Sprintf("%s%016x-", tempPrefix, h.Sum64())
}

// IsTemp reports whether a base name is a temporary name of this package.
func IsTemp(name string) bool {
	hex, ok := strings.CutPrefix(name, tempPrefix)
	hex, end := strings.CutSuffix(hex, tempSuffix)
	return ok && end && len(hex) == 33 && hex[16] == '-' && strings.Trim(hex, "0123456789abcdef-") == ""
}

// IsTempFor reports whether name is a temporary name for target, a base name in the
// same directory.
func IsTempFor(name, target string) bool {
	return IsTemp(name) && strings.HasPrefix(name, tempStem(target))
}

// Leftovers lists the temporary files in a directory for the targets, which are base
// names.
func Leftovers(dir *dirfd.Dir, targets []string) ([]string, error) {
	names, err := dir.Names()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(names, func(name string) bool {
		isFor := func(target string) bool { return IsTempFor(name, target) }
		return !IsTemp(name) || !slices.ContainsFunc(targets, isFor)
	}), nil
}

// InUse reports whether another process may be writing the temporary file: the file is
// locked, or belongs to another user and cannot be opened.
func InUse(dir *dirfd.Dir, name string) bool {
	f, err := dir.Open(name, unix.O_RDONLY, 0)
	if err != nil {
		return errors.Is(err, fs.ErrPermission)
	}
	defer f.Close()
	return flockRetry(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == unix.EWOULDBLOCK
}

// AlsoAt makes Commit replace one more name with the same file, as a hard link.
func (f *File) AlsoAt(target string) error {
	dir, err := dirfd.Open(filepath.Dir(target))
	if err != nil {
		return failedAt(target, err)
	}
	if err := f.AlsoIn(dir, filepath.Base(target)); err != nil {
		dir.Close()
		return err
	}
	f.names[len(f.names)-1].owned = true
	return nil
}

// AlsoIn is [File.AlsoAt] for a name in an open directory.
func (f *File) AlsoIn(dir *dirfd.Dir, target string) error {
	p := pending{dir: dir, temp: tempName(target), target: target}
	if err := f.names[0].dir.Link(f.names[0].temp, dir, p.temp); err != nil {
		return failedAt(p.path(), err)
	}
	f.names = append(f.names, p)
	return nil
}

// Commit closes the file and renames it to each of its targets. If durable is set, the
// file and its names are on disk when Commit returns. After an error, the targets not
// yet renamed still have the old file, and no temporary file is left.
func (f *File) Commit(durable bool) error {
	defer f.Abort()
	if durable {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	several := len(f.names) > 1
	for len(f.names) > 0 {
		p := f.names[0]
		if err := p.dir.Rename(p.temp, p.target); err != nil {
			return err
		}
		// If two targets are the same file through two paths, such as a bind mount,
		// rename(2) does nothing and leaves the second temporary name.
		if several {
			_ = p.dir.Remove(p.temp)
		}
		f.names = f.names[1:]
		if durable {
			if err := p.dir.Sync(); err != nil {
				p.close()
				return err
			}
		}
		p.close()
	}
	return nil
}

// Abort closes and removes the file. After Commit it does nothing.
func (f *File) Abort() {
	for _, p := range f.names {
		_ = p.dir.Remove(p.temp)
		p.close()
	}
	f.names = nil
	f.Close()
}
