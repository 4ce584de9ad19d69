package sign

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/module"
)

// Links are what a run comes upon below its roots and does not work on.
type Links struct {
	Found     int      // symbolic links, none of which is followed to a module
	Renamed   int      // of them: lead to the new name of a module now
	Behind    []string // names of modules that links lead to, and that are not worked on
	Irregular []string // FIFOs, devices and sockets with the name of a module
}

// A link is a symbolic link of a tree. It is not followed to what is signed, but it is
// not forgotten either: modprobe would follow it, and where a module gets another name,
// so has the link that leads to it.
type link struct {
	at   location
	dir  string // canonical path of its directory
	text string // what it holds
	to   string // canonical path of what it leads to; empty where it leads nowhere
}

// links are those of a tree.
type links struct {
	system    *module.Root
	all       []*link
	irregular []string // that have the name of a module, and are neither files nor links
	// by holds the links by the one name, canonical but for itself, that they hold.
	by map[string][]*link

	mu      sync.Mutex // for what follows
	renamed int
	moved   map[string]string // modules that have another name now, by the canonical old one
	gone    map[*link]bool    // that are in place again, under this name or another
	why     map[*link]error   // that could not be made to follow
}

// add takes what [module.Find] comes upon beside modules, at a location.
func (l *links) add(e module.Entry, at location, kind fs.FileMode) {
	switch {
	case kind.IsRegular() || atomicfile.IsTemp(filepath.Base(e.Path)):
	case kind&fs.ModeSymlink != 0:
		l.all = append(l.all, &link{at: at})
	case module.IsName(filepath.Base(e.Path)):
		l.irregular = append(l.irregular, e.Path)
	}
}

// open looks at where the links lead.
func (l *links) open(source *Source) error {
	if len(l.all) == 0 {
		return nil
	}
	var err error
	if l.system, err = module.NewRoot(source.Root); err != nil {
		return err
	}
	l.by, l.moved, l.gone, l.why = make(map[string][]*link), make(map[string]string), make(map[*link]bool), make(map[*link]error)
	for _, ln := range l.all {
		if ln.dir, err = l.system.Canonical(filepath.Dir(ln.at.path())); err != nil {
			return err
		}
		err = ln.at.in(func(dir *dirfd.Dir, name string) (err error) {
			ln.text, err = dir.Readlink(name)
			return err
		})
		if errors.Is(err, fs.ErrNotExist) {
			continue // gone since
		} else if err != nil {
			return err
		}
		if to, err := l.system.Target(ln.dir, ln.text); err == nil {
			ln.to = to
		}
		// Not filepath.Split, which is no friend of what ends in a slash.
		dir, base := ".", ln.text
		if i := strings.LastIndex(ln.text, "/"); i >= 0 {
			dir, base = ln.text[:i+1], ln.text[i+1:]
		}
		if at, err := l.system.Target(ln.dir, dir); err == nil && base != "" && base != "." && base != ".." {
			next := filepath.Join(at, base)
			l.by[next] = append(l.by[next], ln)
		}
	}
	return nil
}

// behind lists the modules that the links lead to and that are none of the entries.
func (l *links) behind(roots []string, entries []module.Entry) ([]string, error) {
	if len(l.all) == 0 {
		return nil, nil
	}
	known := make(map[string]bool, len(entries))
	dirs := make(map[string]string)
	for _, e := range entries {
		dir := filepath.Dir(e.Path)
		if dirs[dir] == "" {
			real, err := l.system.Canonical(dir)
			if err != nil {
				continue // gone since
			}
			dirs[dir] = real
		}
		known[filepath.Join(dirs[dir], filepath.Base(e.Path))] = true
	}
	var inside []string
	for _, root := range roots {
		if real, err := l.system.Canonical(root); err == nil {
			inside = append(inside, real)
		}
	}
	paths := make([]string, len(l.all))
	for i, ln := range l.all {
		paths[i] = ln.at.path()
	}
	found, err := module.Behind(l.system, paths, inside)
	if err != nil {
		return nil, err
	}
	var unknown []string
	for _, e := range found {
		if e.Err != nil || !known[e.Real] {
			unknown = append(unknown, e.Path)
		}
	}
	return unknown, nil
}

// openLinks looks at the links of the tree, and at what they lead to.
func (t *Tree) openLinks() (err error) {
	if t.source.Names != nil {
		if !t.source.renames() || t.source.elsewhere() {
			return nil
		}
		// Other names are none of the run's business, but for links to what it renames.
		_, err := module.Find(t.source.Roots, func(e module.Entry, kind fs.FileMode) { t.symlinks.add(e, t.bases.of(&e), kind) })
		if err != nil {
			return err
		}
		return t.symlinks.open(&t.source)
	}
	if err := t.symlinks.open(&t.source); err != nil {
		return err
	}
	t.behind, err = t.symlinks.behind(t.source.Roots, t.entries)
	return err
}

// Links tells of the links of the tree, as they are so far.
func (t *Tree) Links() Links {
	return Links{Found: len(t.symlinks.all), Renamed: t.symlinks.renamed, Behind: t.behind, Irregular: t.symlinks.irregular}
}

// countLinks completes a summary.
func (t *Tree) countLinks(s *Summary) {
	s.Links = t.Links()
	s.Notes = append(s.Notes, t.symlinks.dangling()...)
}

// String says what is there besides modules, where nothing else is.
func (l *links) String() string {
	var b strings.Builder
	if n := len(l.all); n > 0 {
		names := l.all[0].at.path()
		if n > 1 {
			names += ", ..."
		}
		fmt.Fprintf(&b, "; symbolic links are not followed, and there are %d (%s)", n, names)
	}
	if n := len(l.irregular); n > 0 {
		fmt.Fprintf(&b, "; %s is not a regular file", l.irregular[0])
	}
	return b.String()
}

// follow has the links that lead to a module follow it to another name in its
// directory, before the old name goes. Links that lead to links come last, and the old
// ones go in the opposite order: at no time one leads nowhere. What goes wrong is for
// notes to say.
func (l *links) follow(from, to string) {
	if len(l.all) == 0 {
		return
	}
	dir, err := l.system.Canonical(filepath.Dir(from))
	if err != nil {
		return // gone, and dangling says so
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	from = filepath.Join(dir, filepath.Base(from))
	l.moved[from] = to
	type step struct{ from, to string } // a canonical path, and another base name
	var old []*link
	for steps := []step{{from, filepath.Base(to)}}; len(steps) > 0; steps = steps[1:] {
		for _, ln := range l.by[steps[0].from] {
			name := ln.nameFor(steps[0].to)
			if err := ln.relink(name, steps[0].to); err != nil {
				l.why[ln] = err
				continue
			}
			l.gone[ln] = true
			l.renamed++
			if is := ln.at.name(); name != is {
				old = append(old, ln)
				steps = append(steps, step{filepath.Join(ln.dir, is), name})
			}
		}
	}
	for _, ln := range slices.Backward(old) {
		if err := ln.remove(); err != nil {
			l.gone[ln], l.why[ln] = false, err
		}
	}
}

// nameFor is what a link is called when it leads to another base name: what has the
// name of a module has the suffix of the module.
func (ln *link) nameFor(to string) string {
	name := ln.at.name()
	if !module.IsName(name) {
		return name
	}
	return module.BaseName(name) + compress.FromName(to).Suffix()
}

// relink makes the link anew, with this name, for another base name of what it leads to.
func (ln *link) relink(name, to string) error {
	text := ln.text[:strings.LastIndex(ln.text, "/")+1] + to
	err := ln.at.in(func(dir *dirfd.Dir, old string) error { return atomicfile.Relink(dir, old, name, text) })
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already", ln.at.beside(name).path())
	}
	return err
}

func (ln *link) remove() error {
	return ln.at.in(func(dir *dirfd.Dir, name string) error { return atomicfile.Unlink(dir, name, ln.text) })
}

// dangling names the links that led to modules which have other names now, and that
// did not follow.
func (l *links) dangling() []string {
	var notes []string
	for _, ln := range l.all {
		to, moved := l.moved[ln.to]
		if !moved || l.gone[ln] {
			continue
		}
		if _, err := os.Lstat(ln.to); err == nil {
			continue // what the module was called is there after all
		}
		note := fmt.Sprintf("warning: the symbolic link %s leads nowhere now: the module is %s", ln.at.path(), to)
		if why := l.why[ln]; why != nil {
			note += fmt.Sprintf(" (%v)", why)
		}
		notes = append(notes, note)
	}
	return notes
}
