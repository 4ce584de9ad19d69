package module

import (
	"fmt"
	"os"
	"path/filepath"

	securejoin "github.com/cyphar/filepath-securejoin"
)

// A Root is the root directory of another system, such as an image or the staging
// directory of a build. Links in it lead to where they would lead after chroot(2). The
// nil Root is the machine's own root directory.
type Root struct {
	dir  string // as the user gave it
	real string // absolute and without links
}

// NewRoot returns the root directory dir, or nil if that is the name of the machine's
// own.
func NewRoot(dir string) (*Root, error) {
	if dir == "" || filepath.Clean(dir) == "/" {
		return nil, nil
	}
	real, err := realPath(dir)
	if err != nil {
		return nil, err
	}
	r := &Root{filepath.Clean(dir), real}
	// Clean removes link/.., but the system follows the link.
	given, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	if cleaned, err := os.Stat(r.dir); err != nil || !os.SameFile(given, cleaned) {
		r.dir = real
	}
	return r, nil
}

// Resolve returns the path that a path of the system leads to. The result has no link
// below the root directory, and begins with that as given. Missing components are left
// as they are.
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

// Canonical returns the canonical path of the file at a path that begins with the root
// directory. All links in it are resolved, and for the nil Root it is absolute.
func (r *Root) Canonical(path string) (string, error) {
	if r == nil {
		return realPath(path)
	}
	rel, err := filepath.Rel(r.dir, path)
	if err == nil && filepath.IsLocal(rel) {
		return r.Resolve(rel)
	}
	// The root directory may be spelled in another way in path.
	real, err := realPath(path)
	if err != nil {
		return "", err
	}
	if rel, err := filepath.Rel(r.real, real); err == nil && filepath.IsLocal(rel) {
		return r.Resolve(rel)
	}
	return "", fmt.Errorf("%s: not below the root directory %s", path, r.dir)
}

// Target returns the canonical path of the target text of a symbolic link in dir, a
// canonical path.
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

// realPath returns the absolute path without links. The path must exist.
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
