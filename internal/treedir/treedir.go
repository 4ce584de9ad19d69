// Package treedir reads and writes the files whose names modsign makes up itself, in
// a directory tree that may belong to somebody else.
//
// Root signs in trees of other users, who can put a symbolic link, a FIFO or a device
// at any name. The path of the tree is as its caller spelled it, and links in it are
// followed. Below it nothing is followed: every name leads to a regular file in a real
// directory, or it is refused. The names are resolved from a descriptor of the tree
// (os.Root), so that a link which comes later cannot lead out of it either.
package treedir

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// A Dir is an open directory tree.
type Dir struct {
	root *os.Root
	path string
}

// PlantedError reports something at a name of modsign's own that modsign did not make.
type PlantedError struct {
	Path string
	What string // a symbolic link
	Want string // a regular file
}

func (e *PlantedError) Error() string {
	return fmt.Sprintf("%s: is %s, and has to be %s: look at it, and remove it", e.Path, e.What, e.Want)
}

// Open opens a tree. Links in its path are followed.
func Open(path string) (*Dir, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fullError(path, "", err)
	}
	return &Dir{root, path}, nil
}

// OpenReal opens a tree whose own name is one that modsign made up: its last element
// is no link.
func OpenReal(path string) (*Dir, error) {
	path = filepath.Clean(path)
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if err := want(path, info, fs.ModeDir); err != nil {
		return nil, err
	}
	d, err := Open(path)
	if err != nil {
		return nil, err
	}
	if opened, err := d.root.Stat("."); err != nil || !os.SameFile(info, opened) {
		d.Close()
		return nil, &PlantedError{path, "no longer what it was", "a directory"}
	}
	return d, nil
}

// Close closes the directory.
func (d *Dir) Close() error { return d.root.Close() }

// Path is the path of a name.
func (d *Dir) Path(name string) string { return filepath.Join(d.path, name) }

// Info describes the directory itself.
func (d *Dir) Info() (fs.FileInfo, error) {
	info, err := d.root.Stat(".")
	return info, fullError(d.path, "", err)
}

// want returns an error unless a file is of a type: 0 for regular files.
func want(path string, info fs.FileInfo, kind fs.FileMode) error {
	if info.Mode().Type() == kind {
		return nil
	}
	e := &PlantedError{Path: path, What: "no regular file", Want: "a regular file"}
	if kind == fs.ModeDir {
		e.What, e.Want = "no directory", "a directory"
	}
	switch mode := info.Mode(); {
	case mode&fs.ModeSymlink != 0:
		e.What = "a symbolic link"
	case mode&fs.ModeDevice != 0:
		e.What = "a device"
	case mode&fs.ModeNamedPipe != 0:
		e.What = "a FIFO"
	case mode&fs.ModeSocket != 0:
		e.What = "a socket"
	case mode.IsDir():
		e.What = "a directory"
	}
	return e
}

// parents checks that all directories above a name are real ones, and makes those
// that are missing where make says so.
func (d *Dir) parents(name string, make bool) error {
	for i := range len(name) {
		if name[i] != '/' {
			continue
		}
		dir := name[:i]
		info, err := d.root.Lstat(dir)
		if make && errors.Is(err, fs.ErrNotExist) {
			if err = d.root.Mkdir(dir, 0o777); err == nil || errors.Is(err, fs.ErrExist) {
				info, err = d.root.Lstat(dir)
			}
		}
		if err != nil {
			return fullError(d.path, dir, err)
		}
		if err := want(d.Path(dir), info, fs.ModeDir); err != nil {
			return err
		}
	}
	return nil
}

// Lstat describes a file, which may be of any type.
func (d *Dir) Lstat(name string) (fs.FileInfo, error) {
	if err := d.parents(name, false); err != nil {
		return nil, err
	}
	info, err := d.root.Lstat(name)
	return info, fullError(d.path, name, err)
}

// Exists reports whether there is a regular file of that name.
func (d *Dir) Exists(name string) bool {
	info, err := d.Lstat(name)
	return err == nil && info.Mode().IsRegular()
}

// regular describes a file that has to be a regular one.
func (d *Dir) regular(name string) (fs.FileInfo, error) {
	info, err := d.Lstat(name)
	if err == nil {
		err = want(d.Path(name), info, 0)
	}
	return info, err
}

// ReadFile reads a file of at most max bytes.
func (d *Dir) ReadFile(name string, max int64) ([]byte, error) {
	if _, err := d.regular(name); err != nil {
		return nil, err
	}
	// Somebody may put something else there now.
	f, err := d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fullError(d.path, name, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fullError(d.path, name, err)
	}
	if err := want(d.Path(name), info, 0); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, fullError(d.path, name, err)
	}
	if int64(len(data)) > max {
		return nil, fmt.Errorf("%s: has more than %d bytes", d.Path(name), max)
	}
	return data, nil
}

// WriteFile writes a file whole, in the place of the regular file that may be there:
// who opens the name gets the old one or the new one. The mode is perm less the umask.
// With durable the file, and then its name, are on disk when WriteFile returns.
func (d *Dir) WriteFile(name string, data []byte, perm fs.FileMode, durable bool) error {
	if err := d.parents(name, true); err != nil {
		return err
	}
	if _, err := d.regular(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	temp := tempName(name)
	f, err := d.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return fullError(d.path, name, err)
	}
	_, err = f.Write(data)
	if err == nil && durable {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = d.root.Rename(temp, name)
	}
	if err != nil {
		return errors.Join(fullError(d.path, name, err), d.root.Remove(temp))
	}
	if durable {
		return d.sync(filepath.Dir(name))
	}
	return nil
}

// Symlink makes a link, in the place of one that may be there.
func (d *Dir) Symlink(to, name string) error {
	switch info, err := d.Lstat(name); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case info.Mode()&fs.ModeSymlink == 0:
		e := want(d.Path(name), info, fs.ModeSymlink).(*PlantedError)
		e.Want = "a symbolic link"
		return e
	}
	temp := tempName(name)
	if err := d.root.Symlink(to, temp); err != nil {
		return fullError(d.path, name, err)
	}
	if err := d.root.Rename(temp, name); err != nil {
		return errors.Join(fullError(d.path, name, err), d.root.Remove(temp))
	}
	return nil
}

// Readlink returns where a link leads.
func (d *Dir) Readlink(name string) (string, error) {
	to, err := d.root.Readlink(name)
	return to, fullError(d.path, name, err)
}

// Remove removes a file, a link or an empty directory, if it is there.
func (d *Dir) Remove(name string) error {
	err := d.parents(name, false)
	if err == nil {
		err = fullError(d.path, name, d.root.Remove(name))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Rename moves a file or a link itself, in the place of what may be there.
func (d *Dir) Rename(from, to string) error {
	if err := d.parents(from, false); err != nil {
		return err
	}
	if err := d.parents(to, false); err != nil {
		return err
	}
	return fullError(d.path, from, d.root.Rename(from, to))
}

// Names lists a directory below the tree, "." for the tree itself.
func (d *Dir) Names(name string) ([]string, error) {
	if err := d.parents(name+"/", false); err != nil {
		return nil, err
	}
	f, err := d.root.Open(name)
	if err != nil {
		return nil, fullError(d.path, name, err)
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

func (d *Dir) sync(name string) error {
	f, err := d.root.Open(name)
	if err != nil {
		return fullError(d.path, name, err)
	}
	return errors.Join(f.Sync(), f.Close())
}

// tempName is a name beside another, which depmod and its like do not look at.
func tempName(name string) string {
	return filepath.Join(filepath.Dir(name), ".modsign-"+rand.Text()+".tmp")
}

// fullError is an error of os.Root with the whole path.
func fullError(dir, name string, err error) error {
	if err == nil {
		return nil
	}
	path := filepath.Join(dir, name)
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return &fs.PathError{Op: strings.TrimSuffix(e.Op, "at"), Path: path, Err: e.Err}
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return &fs.PathError{Op: strings.TrimSuffix(e.Op, "at"), Path: path, Err: e.Err}
	}
	return fmt.Errorf("%s: %w", path, err)
}
