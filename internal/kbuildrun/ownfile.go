package kbuildrun

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/dirfd"
)

// maxOwnFile is the most that modsign reads of a file of its own, in bytes.
const maxOwnFile = 4 << 20

// An ownFile has a name that modsign made up, in a tree that may belong to another user. It
// must be a regular file below real directories: a link is refused.
type ownFile struct {
	tree string // as its user spelled it
	name string
}

func (f ownFile) String() string { return filepath.Join(f.tree, f.name) }

// in calls do with the directory of the file and its name there.
func (f ownFile) in(do func(dir *dirfd.Dir, name string) error) error {
	return f.open((*dirfd.Dir).OpenDir, do)
}

// open is in, where below opens the directory in the tree.
func (f ownFile) open(below func(*dirfd.Dir, string) (*dirfd.Dir, error), do func(dir *dirfd.Dir, name string) error) error {
	tree, err := dirfd.Open(f.tree)
	if err != nil {
		return err
	}
	defer tree.Close()
	dir, err := below(tree, filepath.Dir(f.name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return do(dir, filepath.Base(f.name))
}

func (f ownFile) read() (text []byte, err error) {
	err = f.in(func(dir *dirfd.Dir, name string) (err error) {
		text, err = dir.ReadFile(name, maxOwnFile)
		return err
	})
	return text, err
}

// write writes the file, and makes the tree and the directory of the file.
func (f ownFile) write(text string, mode fs.FileMode) error {
	if err := os.MkdirAll(f.tree, 0o777); err != nil {
		return err
	}
	return f.open((*dirfd.Dir).MakeDir, func(dir *dirfd.Dir, name string) error {
		return atomicfile.WriteIn(dir, name, []byte(text), mode, false)
	})
}

// rename renames the file within its directory; if it is a link, the link itself.
func (f ownFile) rename(to string) error {
	return f.in(func(dir *dirfd.Dir, name string) error { return dir.Rename(name, filepath.Base(to)) })
}

// remove removes the file if it is there, and Dir with the last file in it.
func (f ownFile) remove() error {
	err := Remove(f.tree, f.name)
	if err == nil && filepath.Dir(f.name) == Dir {
		_ = ownFile{f.tree, Dir}.in((*dirfd.Dir).RemoveDir) // fails while something is left in it
	}
	return err
}

// exists reports whether anything has the name, be it a link to nowhere.
func (f ownFile) exists() bool {
	return f.in(func(dir *dirfd.Dir, name string) error {
		_, err := dir.Lstat(name)
		return err
	}) == nil
}

// state tells whose the file is. A link is an error.
func (f ownFile) state() (State, error) {
	text, err := f.read()
	_, planted := errors.AsType[*dirfd.PlantedError](err)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Absent, nil
	case planted:
		return Foreign, err
	case err != nil:
		return "", err
	case isStamped(text):
		return Ours, nil
	}
	return Foreign, nil
}

// link is state for what inspects or moves the name itself: a link is Foreign.
func (f ownFile) link() (State, error) {
	state, err := f.state()
	if state == Foreign {
		return state, nil
	}
	return state, err
}

// WriteHashList writes HashList in the object tree, whole.
func WriteHashList(objtree string, text []byte) error {
	return ownFile{objtree, HashList}.write(string(text), 0o666)
}

// Remove removes a file of modsign's, such as Certificate, from an object tree if it is
// there, or an empty directory of modsign's.
func Remove(objtree, name string) error {
	return unlessMissing(ownFile{objtree, name}.in((*dirfd.Dir).Clear))
}

// RemoveReceipts removes the receipts that key agents left in an object tree.
func RemoveReceipts(objtree string) error {
	beside := ownFile{objtree, Certificate}
	return unlessMissing(beside.in(func(dir *dirfd.Dir, _ string) error {
		names, err := dir.Names()
		for _, name := range names {
			if receipt, _ := filepath.Match("receipt-*.json", name); receipt {
				err = errors.Join(err, dir.Clear(name))
			}
		}
		return err
	}))
}

// unlessMissing drops the error of what is not there.
func unlessMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
