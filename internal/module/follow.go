package module

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// The directories that are looked at over links are at most maxLinked, and each under
// at most maxNames names: links to each other's directories make millions of names of
// ten directories, and a link out of the tree may lead to a whole system.
const (
	maxLinked = 1 << 16
	maxNames  = 64
)

// errNotRegular says that a file is a FIFO, a device or a socket.
var errNotRegular = errors.New("not a regular file")

// Loadable are the modules that depmod would find.
type Loadable struct {
	Entries []Entry
	// Skipped are links to directories which were not followed, as depmod does not:
	// build and source, which lead to whole kernel trees.
	Skipped []string
}

// FindLoadable lists what depmod would take for modules below paths, so that modprobe
// may load it: as [Find], and over symbolic links too, which are resolved in root. A
// file with several names is listed under each of them. A directory is not looked at
// within itself, so that links in a circle end. A link with the name of a module that
// leads nowhere is an Entry with Err set, and so is what has the name of a module and
// is no file.
func FindLoadable(root *Root, paths []string) (*Loadable, error) {
	w := walker{root: root, seen: make(map[string]bool), names: make(map[string]int)}
	for _, path := range paths {
		if root == nil { // whose error has the path as it was spelled
			if _, err := os.Stat(path); err != nil {
				return nil, err
			}
		}
		real, err := root.Canonical(path)
		if err != nil {
			return nil, err
		}
		info, err := os.Stat(real)
		if err != nil {
			return nil, renamedError(err, path)
		}
		if !info.IsDir() {
			dir, err := root.Canonical(filepath.Dir(path))
			if err != nil {
				return nil, err
			}
			e := Follow(root, path)
			e.Root, e.Info = true, info
			w.add(filepath.Join(dir, e.Rel), e)
			continue
		}
		w.top, w.realTop = path, real
		if err := w.dir(path, real, false); err != nil {
			return nil, err
		}
	}
	return &w.found, nil
}

// A walker goes through directories as depmod does.
type walker struct {
	root    *Root
	top     string                 // the path that is walked, as it was given
	realTop string                 // canonical
	chain   []string               // the canonical paths of the directories on the way
	seen    map[string]bool        // names that are listed, below canonical tops
	once    map[string]bool        // when not nil: directories to look at under one name alone
	skip    func(real string) bool // when not nil: directories not to look at
	linked  int                    // directories that links led to
	names   map[string]int         // of each of them
	found   Loadable
}

// add lists what has a name, unless it is listed: paths may lie in each other.
func (w *walker) add(name string, e Entry) {
	if !w.seen[name] {
		w.seen[name] = true
		w.found.Entries = append(w.found.Entries, e)
	}
}

// put is add for what has a path below the top.
func (w *walker) put(e Entry) {
	e.Rel = e.Path
	if w.top != "" {
		e.Rel, _ = filepath.Rel(w.top, e.Path) // which begins with it
	}
	w.add(filepath.Join(w.realTop, e.Rel), e)
}

// dir walks the directory that is called path and lies at real. linked says that a
// link is on the way.
func (w *walker) dir(path, real string, linked bool) error {
	if slices.Contains(w.chain, real) || w.once[real] || w.skip != nil && w.skip(real) {
		return nil
	}
	if w.once != nil {
		w.once[real] = true
	}
	if linked {
		w.names[real]++
		if w.linked++; w.linked > maxLinked {
			return fmt.Errorf("%s: symbolic links lead to more than %d directories", path, maxLinked)
		}
		if w.names[real] > maxNames {
			return fmt.Errorf("%s: symbolic links lead to this directory under more than %d names", path, maxNames)
		}
	}
	w.chain = append(w.chain, real)
	defer func() { w.chain = w.chain[:len(w.chain)-1] }()
	list, err := os.ReadDir(real)
	if err != nil {
		w.put(Entry{Path: path, Err: renamedError(err, path)})
	}
	for _, d := range list {
		name, at := filepath.Join(path, d.Name()), filepath.Join(real, d.Name())
		var err error
		switch {
		case d.IsDir():
			err = w.dir(name, at, linked)
		case d.Type()&fs.ModeSymlink != 0:
			err = w.link(name, at)
		case IsName(d.Name()):
			w.put(file(name, at, linked, d))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// file is what has the name of a module and is no link.
func file(name, at string, linked bool, d fs.DirEntry) Entry {
	e := Entry{Path: name}
	switch info, err := d.Info(); {
	case err != nil:
		e.Err = err
		return e
	case !info.Mode().IsRegular():
		e.Err = errNotRegular
		return e
	default:
		e.Info = info
	}
	if linked {
		e.Real = at
	}
	return e
}

// link follows the link that is called name and lies at the canonical path at.
func (w *walker) link(name, at string) error {
	real, info, err := follow(w.root, at)
	switch {
	case err == nil && info.IsDir():
		if base := filepath.Base(name); base == "build" || base == "source" {
			w.found.Skipped = append(w.found.Skipped, name)
			return nil
		}
		return w.dir(name, real, true)
	case errors.Is(err, fs.ErrPermission): // who knows what is there
		w.put(Entry{Path: name, Err: renamedError(err, name)})
	case !IsName(filepath.Base(name)):
	case err != nil:
		w.put(Entry{Path: name, Err: renamedError(err, name)})
	case !info.Mode().IsRegular():
		w.put(Entry{Path: name, Err: errNotRegular})
	default:
		w.put(Entry{Path: name, Info: info, Real: real})
	}
	return nil
}

// renamedError is an error of a file that goes by another name.
func renamedError(err error, name string) error {
	if p, ok := err.(*fs.PathError); ok {
		return &fs.PathError{Op: p.Op, Path: name, Err: p.Err}
	}
	return err
}

// follow returns what the link at a canonical path leads to.
func follow(root *Root, at string) (real string, info fs.FileInfo, err error) {
	text, err := os.Readlink(at)
	if err != nil {
		return "", nil, err
	}
	real, err = root.Target(filepath.Dir(at), text)
	if err == nil {
		info, err = os.Lstat(real)
	} else if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = p
	} else {
		err = &fs.PathError{Op: "open", Path: at, Err: syscall.ELOOP}
	}
	if err != nil {
		why := err
		if p, ok := errors.AsType[*fs.PathError](err); ok {
			why = p.Err
		}
		return "", nil, &fs.PathError{Op: "open", Path: at, Err: fmt.Errorf("symbolic link to %s: %w", text, why)}
	}
	return real, info, nil
}

// Follow returns the entry of a file that is given by its path, with Real set where
// that leads over a link, or where the links on the way are those of root.
func Follow(root *Root, path string) Entry {
	e := Entry{Path: path, Rel: filepath.Base(path)}
	if root == nil {
		if info, err := os.Lstat(path); err != nil || info.Mode()&fs.ModeSymlink == 0 {
			return e // what is wrong, opening it says
		}
	}
	dir, err := root.Canonical(filepath.Dir(path))
	if err != nil {
		e.Err = renamedError(err, path)
		return e
	}
	e.Real = filepath.Join(dir, e.Rel)
	if info, err := os.Lstat(e.Real); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		if e.Real, _, err = follow(root, e.Real); err != nil {
			e.Err = renamedError(err, path)
		}
	}
	if e.Real == path {
		e.Real = ""
	}
	return e
}

// Open opens the module of an entry, wherever the links lead that were followed. The
// name that promises a compression is the entry's, as it is for kmod.
func (e Entry) Open(ctx context.Context, limits Limits) (*File, error) {
	path, name := e.Path, filepath.Base(e.Path)
	switch {
	case e.Err != nil:
		return nil, e.Err
	case e.Real != "":
		path = e.Real
		if !IsName(name) { // a link that was given by itself
			name = filepath.Base(path)
		}
	}
	m, err := openPath(ctx, path, name, limits)
	if p, ok := err.(*fs.PathError); ok && p.Path == path {
		err = renamedError(err, e.Path)
	}
	return m, err
}

// Behind lists the modules that links below a tree lead to, as FindLoadable does, but
// not those in directories that lie in one of inside, which are canonical paths, and
// each directory once. links are paths as [Find] tells them.
func Behind(root *Root, links []string, inside []string) ([]Entry, error) {
	w := walker{root: root, seen: make(map[string]bool), names: make(map[string]int), once: make(map[string]bool)}
	w.skip = func(real string) bool {
		return slices.ContainsFunc(inside, func(dir string) bool { return within(dir, real) })
	}
	for _, name := range links {
		dir, err := root.Canonical(filepath.Dir(name))
		if err != nil {
			return nil, err
		}
		if err := w.link(name, filepath.Join(dir, filepath.Base(name))); err != nil {
			return nil, err
		}
	}
	return w.found.Entries, nil
}

// within reports whether a path is dir or lies in it.
func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}
