// Package atomicfile replaces files whole: whoever opens the name gets the old
// file or the new one, at any moment, also after a kill.
//
// A new file is written beside the one it replaces, under a temporary name that
// says which that is:
//
//	.modsign-<16 hex digits: FNV-1a of the file's base name>-<random>.tmp
//
// It contains no ".ko", since depmod and dracut take whatever does. A kill
// leaves the temporary file behind; who holds the lock of the tree (see [Lock])
// may take it for dead, and knows by its name what it was to become. Where
// several hard links are replaced by one new file, each gets its temporary name
// first, and all are renamed after: a kill in between leaves the new file under
// names of both kinds, so that the next run can bring it to its end.
//
// A file's directory is opened once, and all is done in it by name: see
// [dirfd.Dir]. A symbolic link in the place of the file is never followed.
//
// The package is not for writing into files, and does not create directories.
package atomicfile

import (
	"errors"
	"fmt"
	"hash/fnv"
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

// File is a new file on its way to replace another.
type File struct {
	*os.File
	names []pending // until they are renamed
}

// pending is a temporary name, and what it is to become.
type pending struct {
	dir          *dirfd.Dir
	temp, target string
	owned        bool // dir is closed with the file
}

func (p *pending) path() string { return p.dir.Path(p.target) }

func (p *pending) close() {
	if p.owned {
		p.dir.Close()
	}
}

// Create begins the file that is to stand at target, which need not exist yet.
// Symbolic links to its directory are followed, and no other. Its mode is perm less
// the umask, until [File.Inherit] or Chmod says otherwise.
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

// CreateIn is [Create] for a name in an open directory, which has to stay open until
// Commit or Abort.
//
// The temporary file is locked (flock(2)) until then: who clears away what killed
// runs have left knows by it that this one is in use.
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
		_ = flockRetry(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) // not every file system has locks
		return &File{File: f, names: []pending{p}}, nil
	}
}

// failedAt names the target in an error: of the two names, it is the one that means
// something to people.
func failedAt(target string, err error) error {
	if failed, ok := errors.AsType[*fs.PathError](err); ok {
		return &fs.PathError{Op: "replace", Path: target, Err: failed.Err}
	}
	return err
}

// WriteOutput writes what a user has asked to have at a path: whole, where a link leads
// to, and as it is into what is no regular file, such as a pipe. durable is as in
// File.Commit.
func WriteOutput(path string, data []byte, durable bool) error {
	if info, err := os.Stat(path); err == nil {
		if !info.Mode().IsRegular() {
			return os.WriteFile(path, data, 0o666)
		}
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return err
		}
	}
	return WriteFile(path, data, 0o666, durable)
}

// WriteFile writes a file whole, in the place of the regular file that may be there;
// anything else of that name is a [dirfd.PlantedError], and a symbolic link is not
// followed. perm and durable are as in [Create] and [File.Commit].
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
	if err := dir.CheckFile(target); err != nil {
		return err
	}
	f, err := CreateIn(dir, target, perm)
	if err != nil {
		return err
	}
	defer f.Abort()
	if _, err := f.Write(data); err != nil {
		return failedAt(dir.Path(target), err)
	}
	return failedAt(dir.Path(target), f.Commit(durable))
}

func tempName(target string) string {
	return fmt.Sprintf("%s%016x", tempStem(target), rand.Uint64()) + tempSuffix
}

// tempStem is what the names of all temporary files for a target begin with.
func tempStem(target string) string {
	h := fnv.New64a()
	h.Write([]byte(target))
	return fmt.Sprintf("%s%016x-", tempPrefix, h.Sum64())
}

// IsTemp reports whether a base name is that of a temporary file of this
// package.
func IsTemp(name string) bool {
	hex, ok := strings.CutPrefix(name, tempPrefix)
	hex, end := strings.CutSuffix(hex, tempSuffix)
	return ok && end && len(hex) == 33 && hex[16] == '-' && strings.Trim(hex, "0123456789abcdef-") == ""
}

// IsTempFor reports whether the temporary file of a name was to become target, the
// base name of another in its directory.
func IsTempFor(name, target string) bool {
	return IsTemp(name) && strings.HasPrefix(name, tempStem(target))
}

// Leftovers lists the temporary files in a directory that were to become one of the
// targets, which are base names.
func Leftovers(dir *dirfd.Dir, targets []string) ([]string, error) {
	names, err := dir.Names()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(names, func(name string) bool {
		return !IsTemp(name) || !slices.ContainsFunc(targets, func(target string) bool { return IsTempFor(name, target) })
	}), nil
}

// InUse reports whether the temporary file of a name may be in the hands of another
// process: it is locked, or another user's whose lock cannot be seen.
func InUse(dir *dirfd.Dir, name string) bool {
	f, err := dir.Open(name, unix.O_RDONLY, 0)
	if err != nil {
		return errors.Is(err, fs.ErrPermission)
	}
	defer f.Close()
	return flockRetry(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == unix.EWOULDBLOCK
}

// AlsoAt makes the file replace one more name: both will be hard links of one
// another.
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

// Commit closes the file and gives it its names, each in one step. With durable
// the file, and then its name, are on disk before Commit returns. After an error
// the names that were not reached are those of the old file still, and no
// temporary file is left.
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
		// Where two targets are one file by two ways, a bind mount say, rename(2) has
		// nothing to do, and leaves the second temporary name.
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

// Abort closes the file and removes it. After Commit it does nothing.
func (f *File) Abort() {
	for _, p := range f.names {
		_ = p.dir.Remove(p.temp)
		p.close()
	}
	f.names = nil
	f.Close()
}
