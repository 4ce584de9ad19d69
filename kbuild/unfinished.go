package kbuild

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
)

// unfinished lists the folders to which modules were being installed, a line
// each, from before the first module until the last one is signed.
const unfinished = Dir + "/unfinished"

// Unfinished returns the folders that hold modules which an interrupted run may
// have left unsigned. Folders that are gone do not count.
func Unfinished(objtree string) ([]string, error) {
	text, err := ownFile{objtree, unfinished}.read()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	dirs := slices.DeleteFunc(strings.Split(string(text), "\n"), func(dir string) bool { return dir == "" || !exists(dir) })
	return dirs, err
}

// Begin notes that modules are about to be installed to a folder. As long as it is
// not there, there is nothing to remind of.
func Begin(objtree, dir string) error { return note(objtree, dir, true) }

// End notes that they are all signed.
func End(objtree, dir string) error { return note(objtree, dir, false) }

func note(objtree, dir string, begun bool) error {
	dirs, err := Unfinished(objtree)
	if err != nil {
		return err
	}
	dirs = slices.DeleteFunc(dirs, func(d string) bool { return d == dir })
	if begun {
		dirs = append(dirs, dir)
	}
	file := ownFile{objtree, unfinished}
	if len(dirs) == 0 {
		return file.remove()
	}
	return file.write(strings.Join(dirs, "\n")+"\n", 0o644)
}
