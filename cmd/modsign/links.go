package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/sign"
)

// skipped names links that a walk did not follow, since depmod does not. In the directory
// of a kernel's modules they are usual, and not worth a word.
func (u *ui) skipped(links []string) {
	var odd []string
	for _, link := range links {
		if !kbuild.IsModLib(filepath.Dir(link)) {
			odd = append(odd, link)
		}
	}
	if len(odd) > 0 {
		u.note("links called build or source are not followed, as depmod does not follow them: %s", some(odd))
	}
}

// linkNotes are the notes on what a run found besides modules. done is "signed", say.
func linkNotes(l sign.Links, done string) []string {
	var notes []string
	add := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	if n := l.Found - l.Renamed; n > 0 {
		add("%s not followed", plural(n, "symbolic link"))
	}
	if l.Renamed > 0 {
		add("%s renamed with the modules", plural(l.Renamed, "symbolic link"))
	}
	if n := len(l.Behind); n > 0 {
		add("warning: %s behind symbolic links not %s: %s", plural(n, "module"), done, some(l.Behind))
	}
	if n := len(l.Irregular); n > 0 {
		add("warning: %s not %s, as not regular files: %s", plural(n, "module name"), done, some(l.Irregular))
	}
	return notes
}

// some is the first of many names.
func some(names []string) string {
	const most = 5
	if len(names) > most {
		names = append(names[:most:most], "...")
	}
	return strings.Join(names, ", ")
}

// staleIndexes are the directories whose modules.dep has old names of modules.
type staleIndexes struct {
	found  map[string]bool
	looked map[string]string // directories, and the one of the modules.dep above
}

// add looks at the new name of a module.
func (x *staleIndexes) add(r sign.Result) {
	if r.Output == "" || filepath.Base(r.Output) == filepath.Base(r.Path) || !module.IsName(r.Output) {
		return
	}
	if x.found == nil {
		x.found, x.looked = make(map[string]bool), make(map[string]string)
	}
	if dir := x.above(filepath.Dir(r.Output)); dir != "" {
		x.found[dir] = true
	}
}

// above returns the directory with modules.dep that is dir or above it, or nothing.
func (x *staleIndexes) above(dir string) string {
	if found, ok := x.looked[dir]; ok {
		return found
	}
	found := ""
	if _, err := os.Lstat(filepath.Join(dir, "modules.dep")); err == nil {
		found = dir
	} else if parent := filepath.Dir(dir); parent != dir {
		found = x.above(parent)
	} else if dir == "." { // which has a parent all the same
		if abs, err := filepath.Abs(dir); err == nil {
			found = x.above(abs)
		}
	}
	x.looked[dir] = found
	return found
}

// hint names the commands that update modules.dep.
func (x *staleIndexes) hint(u *ui) {
	for _, dir := range slices.Sorted(maps.Keys(x.found)) {
		u.hint("%s lists old names of modules: %s", filepath.Join(dir, "modules.dep"), depmod(dir))
	}
}

// depmod is the command that updates a directory.
func depmod(dir string) string {
	abs, err := filepath.Abs(dir)
	if err != nil {
		abs = dir
	}
	version := filepath.Base(abs)
	base, ok := strings.CutSuffix(filepath.Dir(dir), "/lib/modules")
	if !ok {
		base, ok = strings.CutSuffix(filepath.Dir(abs), "/lib/modules")
	}
	switch {
	case !ok:
		return "run depmod on it"
	case base == "" || base == "/usr" && isLink("/lib"):
		return "depmod " + quote(version)
	}
	return "depmod -b " + quote(base, version)
}

func isLink(path string) bool {
	_, err := os.Readlink(path)
	return err == nil
}
