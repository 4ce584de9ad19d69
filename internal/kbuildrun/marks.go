package kbuildrun

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// unfinished lists the directories of installs under way, a line each: from before the
// first module is installed until the last one is signed.
const unfinished = Dir + "/unfinished"

// Unfinished returns the directories in which an interrupted install may have left
// unsigned modules. Directories that are gone do not count.
func Unfinished(objtree string) ([]string, error) {
	text, err := ownFile{objtree, unfinished}.read()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	dirs := slices.DeleteFunc(strings.Split(string(text), "\n"), func(dir string) bool {
		_, err := os.Lstat(dir)
		return dir == "" || err != nil
	})
	return dirs, err
}

// MarkInstallStarted notes that modules are about to be installed to a directory, which
// need not exist yet.
func MarkInstallStarted(objtree, dir string) error { return note(objtree, dir, true) }

// MarkInstallDone notes that all modules in the directory are signed.
func MarkInstallDone(objtree, dir string) error { return note(objtree, dir, false) }

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
