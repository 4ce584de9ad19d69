package module

import (
	"fmt"
	"os"
	"path/filepath"

	securejoin "github.com/cyphar/filepath-securejoin"
)

// A Root is the root directory of another system: an image, say, or what a build is
// staged in. Links in it lead to where they would lead after chroot(2). The nil Root
// stands for the machine's own.
type Root struct {
	dir  string // as the user spelled it
	real string // absolute and without links
}

// NewRoot returns the root directory dir, and nil where that is the machine's own by
// its name.
func NewRoot(dir string) (*Root, error) {
	if dir == "" || filepath.Clean(dir) == "/" {
		return nil, nil
	}
	real, err := realPath(dir)
	if err != nil {
		return nil, err
	}
	r := &Root{filepath.Clean(dir), real}
	// Clean takes link/.. for nothing, and the system does not.
	given, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	if cleaned, err := os.Stat(r.dir); err != nil || !os.SameFile(given, cleaned) {
		r.dir = real
	}
	return r, nil
}

// Resolve returns where a path of the system leads to, as a path that holds no link
// below the root directory, and begins with that as it was spelled. What does not exist
// is left as it is.
func (r *Root) Resolve(path string) (string, error) {
	if r == nil {
		return realPath("/" + path)
	}
	joined, err := securejoin.SecureJoin(r.real, path)
	if err != nil {
		return "", err
	}
	rel, err := filepath.Rel(r.real, joined)
	if err != nil {
		return "", err
	}
	return filepath.Join(r.dir, rel), nil
}

// Canonical returns the one name of what lies at a path that begins with the root
// directory. All links are resolved in it, and for the nil Root it is absolute.
func (r *Root) Canonical(path string) (string, error) {
	if r == nil {
		return realPath(path)
	}
	rel, err := filepath.Rel(r.dir, path)
	if err == nil && filepath.IsLocal(rel) {
		return r.Resolve(rel)
	}
	// It may have been spelled in another way.
	real, err := realPath(path)
	if err != nil {
		return "", err
	}
	if rel, err := filepath.Rel(r.real, real); err == nil && filepath.IsLocal(rel) {
		return r.Resolve(rel)
	}
	return "", fmt.Errorf("%s does not lie below the root directory %s", path, r.dir)
}

// Target returns the canonical path of what a symbolic link leads to that holds text
// and lies in dir, a canonical path.
func (r *Root) Target(dir, text string) (string, error) {
	switch {
	case filepath.IsAbs(text):
		return r.Resolve(text)
	case r == nil:
		return realPath(dir + "/" + text)
	}
	rel, err := filepath.Rel(r.dir, dir)
	if err != nil {
		return "", err
	}
	return r.Resolve(rel + "/" + text) // not cleaned: see NewRoot
}

// realPath is a path without links, and absolute. It has to exist.
func realPath(path string) (string, error) {
	if !filepath.IsAbs(path) {
		wd, err := os.Getwd()
		if err != nil {
			return "", err
		}
		path = wd + "/" + path
	}
	return filepath.EvalSymlinks(path)
}
