package sign

import (
	"os"
	"path/filepath"

	"github.com/modsign/modsign/internal/module"
)

// staleIndexes are the directories whose modules.dep has old names of modules.
type staleIndexes struct {
	found  map[string]bool
	looked map[string]string // directories, and the one of the modules.dep above
}

// add looks at the new name of a module.
func (x *staleIndexes) add(r Result) {
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
