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
// The package is not for writing into files, and does not create folders.
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
)

const (
	tempPrefix = ".modsign-"
	tempSuffix = ".tmp"
)

// File is a new file on its way to replace another.
type File struct {
	*os.File
	temps   []string // the names it has, until they are renamed
	targets []string // what each of them is to become
}

// Create begins the file that is to stand at target, which need not exist yet.
// Its mode is perm less the umask, until [File.Inherit] or Chmod says otherwise.
func Create(target string, perm fs.FileMode) (*File, error) {
	for {
		name := tempName(target)
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, perm)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if failed, ok := errors.AsType[*fs.PathError](err); ok {
			// Of the two names the target is the one that means something to people.
			return nil, &fs.PathError{Op: "replace", Path: target, Err: failed.Err}
		}
		return &File{File: f, temps: []string{name}, targets: []string{target}}, nil
	}
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

// WriteFile writes a file whole, in the place of what may be there; perm and durable
// are as in [Create] and [File.Commit].
func WriteFile(target string, data []byte, perm fs.FileMode, durable bool) error {
	f, err := Create(target, perm)
	if err != nil {
		return err
	}
	defer f.Abort()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Commit(durable)
}

func tempName(target string) string {
	return filepath.Join(filepath.Dir(target), fmt.Sprintf("%s%016x", tempStem(target), rand.Uint64())+tempSuffix)
}

// tempStem is what the names of all temporary files for a target begin with.
func tempStem(target string) string {
	h := fnv.New64a()
	h.Write([]byte(filepath.Base(target)))
	return fmt.Sprintf("%s%016x-", tempPrefix, h.Sum64())
}

// IsTemp reports whether a base name is that of a temporary file of this
// package.
func IsTemp(name string) bool {
	return strings.HasPrefix(name, tempPrefix) && strings.HasSuffix(name, tempSuffix)
}

// IsTempFor reports whether the temporary file at path was to become target.
func IsTempFor(path, target string) bool {
	return filepath.Dir(path) == filepath.Dir(target) &&
		IsTemp(filepath.Base(path)) && strings.HasPrefix(filepath.Base(path), tempStem(target))
}

// Leftovers lists the temporary files that were to become one of the targets.
func Leftovers(targets []string) ([]string, error) {
	stems := make(map[string][]string) // by folder
	for _, target := range targets {
		dir := filepath.Dir(target)
		stems[dir] = append(stems[dir], tempStem(target))
	}
	var found []string
	for dir, stems := range stems {
		// Not filepath.Glob: a folder's name may hold its special characters.
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if IsTemp(e.Name()) && slices.ContainsFunc(stems, func(stem string) bool { return strings.HasPrefix(e.Name(), stem) }) {
				found = append(found, filepath.Join(dir, e.Name()))
			}
		}
	}
	return found, nil
}

// AlsoAt makes the file replace one more name: both will be hard links of one
// another.
func (f *File) AlsoAt(target string) error {
	name := tempName(target)
	if err := os.Link(f.temps[0], name); err != nil {
		return err
	}
	f.temps, f.targets = append(f.temps, name), append(f.targets, target)
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
	if err := f.Close(); err != nil {
		return err
	}
	several := len(f.temps) > 1
	for len(f.temps) > 0 {
		target := f.targets[0]
		if err := os.Rename(f.temps[0], target); err != nil {
			return err
		}
		// Where two targets are one file by two ways, a bind mount say, rename(2) has
		// nothing to do, and leaves the second temporary name.
		if several {
			os.Remove(f.temps[0])
		}
		f.temps, f.targets = f.temps[1:], f.targets[1:]
		if durable {
			if err := syncDir(filepath.Dir(target)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Abort closes the file and removes it. After Commit it does nothing.
func (f *File) Abort() {
	f.Close()
	for _, temp := range f.temps {
		os.Remove(temp)
	}
	f.temps, f.targets = nil, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// SyncFS waits until all that was written to the file system of dir is on disk.
func SyncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return &fs.PathError{Op: "syncfs", Path: dir, Err: err}
	}
	return nil
}
