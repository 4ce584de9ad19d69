package hashlist

// A Change is a module in which two lists differ.
type Change struct {
	Path     string
	Old, New *Module // nil if the list has no module with that path
}

// Diff compares two lists. It returns the modules that were removed or have another hash,
// in the order of the first list, and then those that were added, in the order of the
// second. reordered reports whether the modules of both lists have another order, which
// makes another section and another tree. A nil list is an empty one.
func Diff(a, b *List) (changes []Change, reordered bool) {
	a, b = orEmpty(a), orEmpty(b)
	was, is := byPath(a), byPath(b)
	var kept []string
	for i := range a.Modules {
		old := &a.Modules[i]
		now := is[old.Path]
		if now != nil {
			kept = append(kept, old.Path)
		}
		if now == nil || now.Hash != old.Hash {
			changes = append(changes, Change{old.Path, old, now})
		}
	}
	for i := range b.Modules {
		now := &b.Modules[i]
		if was[now.Path] == nil {
			changes = append(changes, Change{Path: now.Path, New: now})
			continue
		}
		reordered = reordered || kept[0] != now.Path
		kept = kept[1:]
	}
	return changes, reordered
}

func orEmpty(l *List) *List {
	if l == nil {
		return new(List)
	}
	return l
}

func byPath(l *List) map[string]*Module {
	m := make(map[string]*Module, len(l.Modules))
	for i := range l.Modules {
		m[l.Modules[i].Path] = &l.Modules[i]
	}
	return m
}
