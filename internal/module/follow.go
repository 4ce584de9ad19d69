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

// FindLoadable examines at most maxLinked directories through links, and each under at
// most maxNames names. Ten directories with links to each other have millions of names,
// and a link out of the tree may lead to a whole system.
const (
	maxLinked = 1 << 16
	maxNames  = 64
)

// errNotRegular reports a FIFO, a device or a socket.
var errNotRegular = errors.New("not a regular file")

// Loadable lists the modules that depmod would find.
type Loadable struct {
	Entries []Entry
	// Skipped lists links to directories that FindLoadable, like depmod, does not
	// follow: build and source, which lead to whole kernel trees.
	Skipped []string
}

// FindLoadable lists the modules below paths that depmod would find, and modprobe may
// load. It works like [Find], but also follows symbolic links, and resolves them in
// root. A file with several names is listed under each. FindLoadable does not enter a
// directory from within itself, so circular links end. A link or another file that is
// not regular, with the name of a module, is an Entry with Err set if it does not lead
// to a file.
func FindLoadable(root *Root, paths []string) (*Loadable, error) {
	w := walker{root: root, seen: make(map[string]bool), names: make(map[string]int)}
	for _, path := range paths {
		if root == nil { // the error of Stat has the path as given
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

// A walker walks directories as depmod does.
type walker struct {
	root    *Root
	top     string                 // the path walked, as given
	realTop string                 // canonical
	chain   []string               // the canonical paths of the directories above
	seen    map[string]bool        // listed names, below canonical tops
	once    map[string]bool        // if not nil: directories to examine under one name only
	skip    func(real string) bool // if not nil: reports directories not to examine
	linked  int                    // number of directories found through links
	names   map[string]int         // number of names of each
	found   Loadable
}

// add lists a name unless it is already listed: paths may contain each other.
func (w *walker) add(name string, e Entry) {
	if !w.seen[name] {
		w.seen[name] = true
		w.found.Entries = append(w.found.Entries, e)
	}
}

// put is add for an entry with a path below the top.
func (w *walker) put(e Entry) {
	e.Rel = e.Path
	if w.top != "" {
		e.Rel, _ = filepath.Rel(w.top, e.Path) // Path begins with top
	}
	w.add(filepath.Join(w.realTop, e.Rel), e)
}

// dir walks the directory with the name path and the canonical path real. linked
// reports that a link leads there.
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

// file returns the entry of a file that has the name of a module and is not a link.
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

// link follows the link with the given name and the canonical path at.
func (w *walker) link(name, at string) error {
	real, info, err := follow(w.root, at)
	switch {
	case err == nil && info.IsDir():
		if base := filepath.Base(name); base == "build" || base == "source" {
			w.found.Skipped = append(w.found.Skipped, name)
			return nil
		}
		return w.dir(name, real, true)
	case errors.Is(err, fs.ErrPermission): // the target is unknown
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

// renamedError replaces the path in err by name.
func renamedError(err error, name string) error {
	if p, ok := err.(*fs.PathError); ok {
		return &fs.PathError{Op: p.Op, Path: name, Err: p.Err}
	}
	return err
}

// follow returns the target of the link at a canonical path.
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

// Follow returns the entry of the file at path. Real is set if the path leads over a
// link, or if root resolves links in it.
func Follow(root *Root, path string) Entry {
	e := Entry{Path: path, Rel: filepath.Base(path)}
	if root == nil {
		if info, err := os.Lstat(path); err != nil || info.Mode()&fs.ModeSymlink == 0 {
			return e // opening the file reports what is wrong
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

// Open opens the module of an entry, also through links that were followed. The entry's
// name tells the compression, as for kmod.
func (e Entry) Open(ctx context.Context, limits Limits) (*File, error) {
	path, name := e.Path, filepath.Base(e.Path)
	switch {
	case e.Err != nil:
		return nil, e.Err
	case e.Real != "":
		path = e.Real
		if !IsName(name) { // the link itself was given
			name = filepath.Base(path)
		}
	}
	m, err := openPath(ctx, path, name, limits)
	if p, ok := err.(*fs.PathError); ok && p.Path == path {
		err = renamedError(err, e.Path)
	}
	return m, err
}

// Behind lists the modules that links below a tree lead to, as FindLoadable does, with
// each directory once. It leaves out modules in the directories inside, which are
// canonical paths. links are paths as [Find] reports them.
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

// within reports whether path is dir or lies below dir.
func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}
