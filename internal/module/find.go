package module

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// An Entry is a file that [Find] came upon.
type Entry struct {
	Path string      // the root as it was given, and the way from there
	Rel  string      // the way from the root; the base name where the root is the file
	Root bool        // whether it was given itself
	Info fs.FileInfo // nil when Err is set
	Err  error       // why it cannot be looked at: an unreadable folder, say
}

// Find lists the modules that roots name: each root that is a file, whatever
// its name, and every regular file below a root that is a folder and has the
// name of a module, in lexical order. A file that several roots lead to, be it
// through links, is listed once. A symbolic link is followed where it is given as a root, and
// nowhere else. other, when it is not nil, is told of the regular files below
// the roots that are no modules.
//
// A root that cannot be looked at is an error; what cannot be looked at below
// one is an Entry with Err set.
func Find(roots []string, other func(path string)) ([]Entry, error) {
	var found []Entry
	seen := make(map[string]bool)
	add := func(real string, e Entry) {
		if !seen[real] {
			seen[real] = true
			found = append(found, e)
		}
	}
	for _, root := range roots {
		info, err := os.Stat(root)
		if err != nil {
			return nil, err
		}
		real, err := filepath.EvalSymlinks(root)
		if err == nil {
			real, err = filepath.Abs(real)
		}
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			// The file itself, so that it is not the link that is replaced.
			path, err := resolve(root)
			if err != nil {
				return nil, err
			}
			add(real, Entry{Path: path, Rel: filepath.Base(path), Root: true, Info: info})
			continue
		}
		// A trailing slash makes WalkDir look behind a link.
		walked := strings.TrimRight(root, "/") + "/"
		err = filepath.WalkDir(walked, func(path string, d fs.DirEntry, err error) error {
			name := filepath.Join(root, strings.TrimPrefix(path, walked))
			rel, _ := filepath.Rel(root, name)
			if err != nil {
				add(filepath.Join(real, rel), Entry{Path: name, Rel: rel, Err: err})
				return nil
			}
			if !d.Type().IsRegular() {
				return nil
			}
			if !IsName(d.Name()) {
				if other != nil {
					other(name)
				}
				return nil
			}
			info, err := d.Info()
			add(filepath.Join(real, rel), Entry{Path: name, Rel: rel, Info: info, Err: err})
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// resolve returns the path of the file that path leads to. A path that ends in
// no link is left as it was spelled.
func resolve(path string) (string, error) {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&fs.ModeSymlink == 0 {
		return path, err
	}
	return filepath.EvalSymlinks(path)
}
