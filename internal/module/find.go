package module

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/modsign/modsign/internal/compress"
)

// An Entry is a file that [Find] or [FindNames] found.
type Entry struct {
	Path string      // the root by its clean path, joined with Rel
	Base string      // the root as given, if it is a directory
	Rel  string      // the path below the root; the base name if the root is the file
	Also []string    // what Rel would be by the other roots that lead to the file
	Root bool        // whether the file itself was given as a root
	Info fs.FileInfo // nil if Err is set
	Err  error       // why the file cannot be examined, such as an unreadable directory
	Real string      // the real path if links were followed, else empty
}

// Find lists the modules in roots, in lexical order: each root that is a file, whatever
// its name, and every regular file with the name of a module below a root that is a
// directory. A file that several roots lead to, also through links, is listed once.
// Find follows a symbolic link only if it is a root; [FindLoadable] follows all of
// them. If other is not nil, Find calls it for everything else below the roots that is
// not a directory, such as other files, links and FIFOs.
//
// A root that cannot be examined is an error. A file below a root that cannot be
// examined is an Entry with Err set.
func Find(roots []string, other func(e Entry, kind fs.FileMode)) ([]Entry, error) {
	var found []Entry
	seen := make(map[string]int) // the index of each in found
	add := func(real string, e Entry) {
		if i, twice := seen[real]; twice {
			found[i].Also = append(found[i].Also, e.Rel)
			return
		}
		seen[real] = len(found)
		found = append(found, e)
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
			// Resolve a link, so that the file is replaced and not the link.
			path, err := resolve(root)
			if err != nil {
				return nil, err
			}
			add(real, Entry{Path: path, Rel: filepath.Base(path), Root: true, Info: info})
			continue
		}
		clean, err := CleanDir(root)
		if err != nil {
			return nil, err
		}
		// With a trailing slash, WalkDir follows a link.
		err = filepath.WalkDir(strings.TrimRight(clean, "/")+"/", func(path string, d fs.DirEntry, err error) error {
			name := filepath.Clean(path)
			rel, _ := filepath.Rel(clean, name)
			if err != nil {
				add(filepath.Join(real, rel), Entry{Path: name, Base: root, Rel: rel, Err: err})
				return nil
			}
			if !d.Type().IsRegular() || !IsName(d.Name()) {
				if other != nil && !d.IsDir() {
					other(Entry{Path: name, Base: root, Rel: rel}, d.Type())
				}
				return nil
			}
			info, err := d.Info()
			add(filepath.Join(real, rel), Entry{Path: name, Base: root, Rel: rel, Info: info, Err: err})
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// CleanDir returns a clean path of a directory. It is that of [filepath.Clean], unless ..
// behind a symbolic link leads elsewhere: then it is the real path.
func CleanDir(dir string) (string, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return "", err
	}
	clean := filepath.Clean(dir)
	if other, err := os.Stat(clean); err == nil && os.SameFile(info, other) {
		return clean, nil
	}
	return filepath.EvalSymlinks(dir)
}

// FindNames lists the modules with the given names below the directory root, such as
// drivers/net/dummy.ko, in the order of the names and each once. If there is no file of
// a name, FindNames takes the file with that name and the suffix of a compression. It
// examines nothing else below root.
//
// A name is an error if it leads out of root, over a symbolic link, to something other
// than a regular file, to nothing, or to several compressed files.
func FindNames(root string, names []string) ([]Entry, error) {
	return findNames(root, names, false)
}

// FollowNames is [FindNames] as cp(1) reads files: it follows symbolic links, to
// directories and to modules, and takes no compressed file for a plain one. An Entry
// behind a link has the Path that the link leads to, and no Base. A name that leads to
// nothing, or to something other than a regular file, is an Entry with Err set.
func FollowNames(root string, names []string) ([]Entry, error) {
	return findNames(root, names, true)
}

func findNames(root string, names []string, follow bool) ([]Entry, error) {
	real, err := filepath.EvalSymlinks(root)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	var missing []string
	seen := make(map[string]bool, len(names))
	dirs := map[string]bool{real: true} // directories known to be below root without links
	for _, name := range names {
		if !filepath.IsLocal(name) || !strings.HasSuffix(name, ".ko") {
			return nil, fmt.Errorf("%q does not name a module below %s; a valid name is like drivers/net/dummy.ko", name, root)
		}
		name = filepath.Clean(name)
		if seen[name] {
			continue
		}
		seen[name] = true
		switch err := checkDir(filepath.Join(real, filepath.Dir(name)), dirs); {
		case errors.Is(err, errLink) && follow:
			entries = append(entries, behindLink(filepath.Join(root, name), name))
			continue
		case errors.Is(err, fs.ErrNotExist), err != nil && follow:
			entries = append(entries, Entry{Path: filepath.Join(root, name), Rel: name, Err: err})
			continue
		case errors.Is(err, errLink):
			at, _ := filepath.EvalSymlinks(filepath.Join(real, filepath.Dir(name)))
			return nil, fmt.Errorf("%s: lies behind a symbolic link, in %s", filepath.Join(root, name), at)
		case err != nil:
			return nil, err
		}
		entries = append(entries, Entry{Rel: name})
	}
	// In parallel, because a tree has thousands of modules.
	var group sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	for w := range workers {
		group.Go(func() {
			for i := w; i < len(entries); i += workers {
				switch e := &entries[i]; {
				case e.Err != nil || e.Info != nil:
				case follow:
					*e = followed(root, e.Rel)
				default:
					*e = named(root, e.Rel)
				}
			}
		})
	}
	group.Wait()
	found := make([]Entry, 0, len(entries))
	for _, e := range entries {
		switch {
		case e.Err == nil || follow:
			found = append(found, e)
		case errors.Is(e.Err, fs.ErrNotExist):
			missing = append(missing, e.Rel)
		default:
			return nil, e.Err
		}
	}
	if len(missing) > 0 {
		list := strings.Join(missing[:min(len(missing), 3)], ", ")
		if len(missing) > 3 {
			list += ", ..."
		}
		return nil, fmt.Errorf("%d of %d modules missing from %s: %s", len(missing), len(seen), root, list)
	}
	return found, nil
}

var errLink = errors.New("a symbolic link")

// checkDir returns errLink unless every component of dir is a directory, starting from
// one in known. It adds to known.
func checkDir(dir string, known map[string]bool) error {
	if known[dir] {
		return nil
	}
	if err := checkDir(filepath.Dir(dir), known); err != nil {
		return err
	}
	info, err := os.Lstat(dir)
	if err == nil && info.Mode()&fs.ModeSymlink != 0 {
		if _, err = os.Stat(dir); err == nil {
			err = errLink
		}
	}
	if err == nil {
		known[dir] = true
	}
	return err
}

// named returns the entry for a name.
func named(root, name string) Entry {
	path := filepath.Join(root, name)
	suffix, info, err := lookUp(path)
	return ifRegular(Entry{Path: path + suffix, Base: root, Rel: name + suffix, Info: info, Err: err})
}

// followed returns the entry for the file that a name leads to. Its directory is below
// root without links.
func followed(root, name string) Entry {
	path := filepath.Join(root, name)
	info, err := os.Lstat(path)
	if err == nil && info.Mode()&fs.ModeSymlink != 0 {
		return behindLink(path, name)
	}
	return ifRegular(Entry{Path: path, Base: root, Rel: name, Info: info, Err: err})
}

// behindLink returns the entry for a name whose path leads over links.
func behindLink(path, name string) Entry {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return Entry{Path: path, Rel: name, Err: err}
	}
	info, err := os.Lstat(real)
	return ifRegular(Entry{Path: real, Rel: name, Info: info, Err: err})
}

func ifRegular(e Entry) Entry {
	if e.Err == nil && !e.Info.Mode().IsRegular() {
		e.Err = fmt.Errorf("%s: not a regular file", e.Path)
	}
	return e
}

// lookUp finds the module with a name ending in .ko, plain or in the only compressed
// form, and returns the suffix of its file name.
func lookUp(path string) (suffix string, info fs.FileInfo, err error) {
	var forms []string
	for f := compress.None; f <= compress.Zstd; f++ {
		form, err := os.Lstat(path + f.Suffix())
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return "", nil, err
		case f == compress.None:
			return "", form, nil
		}
		suffix, info = f.Suffix(), form
		forms = append(forms, filepath.Base(path+suffix))
	}
	switch len(forms) {
	case 0:
		return "", nil, fs.ErrNotExist
	case 1:
		return suffix, info, nil
	}
	return "", nil, fmt.Errorf("%s: %s exist; remove the outdated file", path, strings.Join(forms, " and "))
}

// resolve returns the path of the file that path leads to. It returns a path that does
// not end in a link unchanged.
func resolve(path string) (string, error) {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&fs.ModeSymlink == 0 {
		return path, err
	}
	return filepath.EvalSymlinks(path)
}
