package sign

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/modsign/modsign/internal/module"
)

// chooseTargets decides where the result of each entry goes.
func (t *Tree) chooseTargets() error {
	if t.source.renames() && t.source.Output == "" {
		if err := t.dropOutdated(); err != nil {
			return err
		}
	}
	t.targets = make([]location, len(t.entries))
	taken := make(map[string]string)
	for i, e := range t.entries {
		t.targets[i] = t.bases.of(&e)
		if t.source.Output == "" {
			continue
		}
		t.targets[i] = locationBelow(t.bases.output, t.source.Output, filepath.Join(t.source.Below, e.Rel))
		target := t.source.packedName(t.targets[i].path())
		if other, ok := taken[target]; ok {
			return fmt.Errorf("%s and %s would both become %s: give a common parent, or an output directory for each",
				other, e.Path, target)
		}
		taken[target] = e.Path
	}
	if t.source.Output == "" {
		return nil
	}
	return t.spareInputs()
}

// dropOutdated drops entries that another one is to replace: a killed run may have left
// both. They have to be the same module apart from signatures, or nobody can tell which
// is outdated. The new name has to be in a directory that is locked.
func (t *Tree) dropOutdated() error {
	forms := make(map[string][]int) // modules that differ in their suffix alone
	var names []string
	for i, e := range t.entries {
		if e.Root {
			return fmt.Errorf("%s: a single module is not compressed in place: give its directory, or an output directory",
				e.Path)
		}
		name := module.BaseName(e.Path)
		if forms[name] == nil {
			names = append(names, name)
		}
		forms[name] = append(forms[name], i)
	}
	replaced := make(map[int]bool)
	for _, name := range names {
		all := forms[name]
		if len(all) == 1 {
			continue
		}
		outdated, err := t.outdated(all)
		if err != nil {
			return err
		}
		if outdated >= 0 {
			replaced[outdated] = true
		}
	}
	kept := t.entries[:0]
	for i, e := range t.entries {
		if !replaced[i] {
			kept = append(kept, e)
		}
	}
	t.entries = kept
	return nil
}

// outdated returns the form of a module that another form is to replace, or -1 if each
// keeps its own name.
func (t *Tree) outdated(forms []int) (int, error) {
	var paths []string
	for _, i := range forms {
		paths = append(paths, t.entries[i].Path)
	}
	ambiguous := fmt.Errorf("%s are not the same module: remove the outdated one", enumerate(paths, "and"))
	if len(forms) > 2 {
		return -1, ambiguous
	}
	a, b := &t.entries[forms[0]], &t.entries[forms[1]]
	if same, err := samePayload(t.bases.of(a), t.bases.of(b)); err != nil || !same {
		return -1, ambiguous
	}
	packedA, packedB := t.source.packedName(a.Path), t.source.packedName(b.Path)
	switch {
	case packedA != packedB:
		return -1, nil
	case packedA == b.Path:
		t.notes = append(t.notes, fmt.Sprintf("%s replaces %s, the same module in another format", a.Path, b.Path))
		return forms[1], nil
	case packedB == a.Path:
		t.notes = append(t.notes, fmt.Sprintf("%s replaces %s, the same module in another format", b.Path, a.Path))
		return forms[0], nil
	default:
		return -1, fmt.Errorf("%s would both become %s: remove the outdated one", enumerate(paths, "and"), packedA)
	}
}

// spareInputs refuses a target that is a module of the tree: the output directory may be
// theirs under another path.
func (t *Tree) spareInputs() error {
	type name struct {
		dev, ino uint64 // of the directory
		base     string
	}
	dirs := make(map[string]*syscall.Stat_t) // nil where there is none
	nameOf := func(path string) (name, bool) {
		dir := filepath.Dir(path)
		st, known := dirs[dir]
		if !known {
			if info, err := os.Stat(dir); err == nil {
				st = info.Sys().(*syscall.Stat_t)
			}
			dirs[dir] = st
		}
		if st == nil {
			return name{}, false
		}
		return name{uint64(st.Dev), st.Ino, filepath.Base(path)}, true
	}
	inputs := make(map[name]bool)
	for _, e := range t.entries {
		if n, ok := nameOf(e.Path); ok {
			inputs[n] = true
		}
	}
	for i, target := range t.targets {
		for _, target := range []string{target.path(), t.source.packedName(target.path())} {
			if n, ok := nameOf(target); ok && inputs[n] {
				return fmt.Errorf("the output for %s would replace the input %s: choose another output directory, or sign in place",
					t.entries[i].Path, target)
			}
		}
	}
	return nil
}
