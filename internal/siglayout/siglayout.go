// Package siglayout finds the files of detached signatures as vendors' signing services
// lay them out, one for each module of a tree.
//
// [Tree.Suffixed] is for signatures that have the names of their modules, and
// [Tree.Debian] for those that Debian's files.json lists.
package siglayout

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/modsign/modsign/internal/module"
)

// Tree is the modules that want signatures.
type Tree struct {
	Roots   []string // in which the modules were found
	Modules []module.Entry
}

// Files are the signature files of a tree.
type Files struct {
	Paths   []string // of each module, in the order of Tree.Modules
	Refused []error  // modules without a file, and files without a module
}

func (f *Files) refuse(format string, args ...any) {
	f.Refused = append(f.Refused, fmt.Errorf(format, args...))
}

// roots names the tree for people.
func (t *Tree) roots() string { return strings.Join(t.Roots, ", ") }

// Suffixed finds the signature of NAME.ko in NAME.ko and a suffix: below dir, as the module
// lies in the tree, or beside the module if dir is empty.
func (t *Tree) Suffixed(dir, suffix string) (*Files, error) {
	files := &Files{Paths: make([]string, len(t.Modules))}
	used := make(map[string]bool)
	for i, e := range t.Modules {
		path := module.BaseName(e.Path) + suffix
		if dir != "" {
			path = filepath.Join(dir, module.BaseName(e.Rel)+suffix)
		}
		files.Paths[i], used[path] = path, true
		if missing(path) {
			files.refuse("%s: no signature for this module (%s)", e.Path, path)
		}
	}
	dirs := []string{dir}
	if dir == "" {
		dirs = t.Roots
	}
	for _, dir := range dirs {
		if err := t.findUnused(files, dir, ".ko"+suffix, used); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// findUnused refuses signature files in dir that belong to no module.
func (t *Tree) findUnused(files *Files, dir, suffix string, used map[string]bool) error {
	info, err := os.Stat(dir)
	if err != nil || !info.IsDir() { // a single module is no directory
		return err
	}
	clean, err := module.CleanDir(dir) // as module.Find spells paths in it
	if err != nil {
		return err
	}
	return filepath.WalkDir(strings.TrimRight(clean, "/")+"/", func(at string, d fs.DirEntry, err error) error {
		path := filepath.Clean(at)
		if err == nil && strings.HasSuffix(path, suffix) && !used[path] {
			files.refuse("%s: signature without a module in %s", path, t.roots())
		}
		return err
	})
}

func missing(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// ReadFile reads a regular file of at most limit bytes.
func ReadFile(name string, limit int64) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: more than %d bytes", name, limit)
	}
	return b, err
}
