package sign

import (
	"context"
	"path/filepath"

	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/module"
)

// A location is where a file is, or is to be: a path below an open directory that the
// user named, on which no symbolic link is followed. Without a base it is a path as the
// user spelled it.
type location struct {
	base *dirfd.Dir
	rel  string // below base; without one the path itself
}

// locationBelow is a location below a directory, which is nil in a dry run that would make it.
func locationBelow(base *dirfd.Dir, spelled, rel string) location {
	if base == nil {
		return location{nil, filepath.Join(spelled, rel)}
	}
	return location{base, rel}
}

// path is the location for people.
func (l location) path() string {
	if l.base == nil {
		return l.rel
	}
	return l.base.Path(l.rel)
}

// name is the base name.
func (l location) name() string { return filepath.Base(l.rel) }

// dir is the directory of the location, as a key.
func (l location) dir() location { return l.renamed(filepath.Dir) }

// beside is another name in the same directory.
func (l location) beside(name string) location {
	return l.renamed(func(path string) string { return filepath.Join(filepath.Dir(path), name) })
}

// renamed is the location with another path.
func (l location) renamed(f func(string) string) location { return location{l.base, f(l.rel)} }

// open opens the directory of the location.
func (l location) open() (*dirfd.Dir, error) {
	if l.base == nil {
		return dirfd.Open(filepath.Dir(l.rel))
	}
	return l.base.OpenDir(filepath.Dir(l.rel))
}

// make is open, and makes the directories below the base that do not exist.
func (l location) make() (*dirfd.Dir, error) {
	if l.base == nil {
		return l.open()
	}
	return l.base.MakeDir(filepath.Dir(l.rel))
}

// read opens the module for reading alone, in one system call where there is a base.
func (l location) read(ctx context.Context, limits module.Limits) (*module.File, error) {
	if l.base == nil {
		return module.Open(ctx, l.rel, limits)
	}
	return module.OpenBelow(ctx, l.base, l.rel, limits)
}

// in calls f with the directory of the location, and the name there.
func (l location) in(f func(dir *dirfd.Dir, name string) error) error {
	dir, err := l.open()
	if err != nil {
		return err
	}
	defer dir.Close()
	return f(dir, l.name())
}

// bases are the directories that the user named, open as long as the tree is: the work
// is done in them, whatever becomes of their paths.
type bases struct {
	roots  map[string]*dirfd.Dir // as they are spelled; those that are directories
	output *dirfd.Dir
	debug  *dirfd.Dir
}

func (b *bases) close() {
	for _, dir := range b.roots {
		dir.Close()
	}
	for _, dir := range []*dirfd.Dir{b.output, b.debug} {
		if dir != nil {
			dir.Close()
		}
	}
	*b = bases{}
}

// of is where an entry is.
func (b *bases) of(e *module.Entry) location {
	if base := b.roots[e.Base]; e.Base != "" && base != nil {
		return location{base, e.Rel}
	}
	return location{nil, e.Path}
}
