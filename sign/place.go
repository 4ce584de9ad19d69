package sign

import (
	"context"
	"path/filepath"

	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/module"
)

// place is where a file is, or is to be: a path below an open directory that the user
// has named, on which no symbolic link is followed. Without a base it is a path that
// the user has spelled.
type place struct {
	base *dirfd.Dir
	rel  string // below base; without one the path itself
}

// placeBelow is a place below a directory, which is nil in a dry run where it is not there
// yet.
func placeBelow(base *dirfd.Dir, spelled, rel string) place {
	if base == nil {
		return place{nil, filepath.Join(spelled, rel)}
	}
	return place{base, rel}
}

// path is the place for people.
func (p place) path() string {
	if p.base == nil {
		return p.rel
	}
	return p.base.Path(p.rel)
}

// name is the base name.
func (p place) name() string { return filepath.Base(p.rel) }

// dir is the directory of the place, as a key.
func (p place) dir() place { return p.renamed(filepath.Dir) }

// beside is another name in the same directory.
func (p place) beside(name string) place {
	return p.renamed(func(path string) string { return filepath.Join(filepath.Dir(path), name) })
}

// renamed is the same place under another path.
func (p place) renamed(f func(string) string) place { return place{p.base, f(p.rel)} }

// open opens the directory of the place.
func (p place) open() (*dirfd.Dir, error) {
	if p.base == nil {
		return dirfd.Open(filepath.Dir(p.rel))
	}
	return p.base.OpenDir(filepath.Dir(p.rel))
}

// make is open, and makes the directories below the base that are not there.
func (p place) make() (*dirfd.Dir, error) {
	if p.base == nil {
		return p.open()
	}
	return p.base.MakeDir(filepath.Dir(p.rel))
}

// read opens the module of the place for who does nothing but read it.
func (p place) read(ctx context.Context, limits module.Limits) (*module.File, error) {
	if p.base == nil {
		return module.Open(ctx, p.rel, limits)
	}
	return module.OpenBelow(ctx, p.base, p.rel, limits)
}

// in calls f with the directory of the place, and the name there.
func (p place) in(f func(dir *dirfd.Dir, name string) error) error {
	dir, err := p.open()
	if err != nil {
		return err
	}
	defer dir.Close()
	return f(dir, p.name())
}

// bases are the directories of a run that the user has named, open for as long as it
// lasts: whatever becomes of their paths, the work is done in them.
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
func (b *bases) of(e *module.Entry) place {
	if base := b.roots[e.Base]; e.Base != "" && base != nil {
		return place{base, e.Rel}
	}
	return place{nil, e.Path}
}
