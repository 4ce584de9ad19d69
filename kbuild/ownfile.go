package kbuild

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/modsign/modsign/internal/treedir"
)

// maxOwnFile bounds what is read of a file of ours.
const maxOwnFile = 4 << 20

// An ownFile has a name that modsign made up, in a tree that may be another user's: it
// is a regular file below real directories, or refused.
type ownFile struct {
	tree string // as its user spelled it
	name string
}

func (f ownFile) String() string { return filepath.Join(f.tree, f.name) }

// in opens the tree for as long as something is done to the file.
func (f ownFile) in(do func(*treedir.Dir) error) error {
	dir, err := treedir.Open(f.tree)
	if err != nil {
		return err
	}
	defer dir.Close()
	return do(dir)
}

func (f ownFile) read() (text []byte, err error) {
	err = f.in(func(dir *treedir.Dir) error {
		text, err = dir.ReadFile(f.name, maxOwnFile)
		return err
	})
	return text, err
}

// write writes the file, and makes the tree and the directory that it is in.
func (f ownFile) write(text string, mode fs.FileMode) error {
	if err := os.MkdirAll(f.tree, 0o777); err != nil {
		return err
	}
	return f.in(func(dir *treedir.Dir) error { return dir.WriteFile(f.name, []byte(text), mode, false) })
}

// rename moves the file within its tree.
func (f ownFile) rename(to string) error {
	return f.in(func(dir *treedir.Dir) error { return dir.Rename(f.name, to) })
}

// remove removes the file if it is there, and the directory .modsign with its last.
func (f ownFile) remove() error {
	if !exists(f.tree) {
		return nil
	}
	return f.in(func(dir *treedir.Dir) error {
		if err := dir.Remove(f.name); err != nil {
			return err
		}
		if filepath.Dir(f.name) == Dir {
			_ = dir.Remove(Dir) // fails while something is left in it
		}
		return nil
	})
}

// exists reports whether there is anything at the name, a link to nowhere too.
func (f ownFile) exists() bool {
	return f.in(func(dir *treedir.Dir) error {
		_, err := dir.Lstat(f.name)
		return err
	}) == nil
}

// state tells what the file is.
func (f ownFile) state() (State, error) {
	var text []byte
	err := f.in(func(dir *treedir.Dir) (err error) {
		if _, err = dir.Lstat(f.name); err == nil {
			text, err = dir.ReadFile(f.name, maxOwnFile)
		}
		return err
	})
	_, planted := errors.AsType[*treedir.PlantedError](err)
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

// link tells what the file is where a link is not refused: it is another's, and is
// looked at or moved itself.
func (f ownFile) link() (State, error) {
	state, err := f.state()
	if state == Foreign {
		return state, nil
	}
	return state, err
}

// WriteHashList writes HashList, whole.
func WriteHashList(objtree string, text []byte) error {
	return ownFile{objtree, HashList}.write(string(text), 0o666)
}

// Remove removes a file of ours from an object tree if it is there, as Certificate.
func Remove(objtree, name string) error {
	return ownFile{objtree, name}.in(func(dir *treedir.Dir) error { return dir.Remove(name) })
}

// RemoveReceipts removes all that key agents have left in an object tree.
func RemoveReceipts(objtree string) error {
	return ownFile{objtree, Dir}.in(func(dir *treedir.Dir) error {
		names, err := dir.Names(Dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		for _, name := range names {
			if receipt, _ := filepath.Match("receipt-*.json", name); receipt {
				err = errors.Join(err, dir.Remove(filepath.Join(Dir, name)))
			}
		}
		return err
	})
}
