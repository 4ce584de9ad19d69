package elfstrip

import (
	"slices"
	"strings"
)

// stringTable is a string table of the input.
type stringTable struct {
	data   string
	off    uint64 // of the table in the file
	budget uint64 // remaining length that the names may have together
}

// stringTable reads a string table that is used for count names. Names may overlap,
// since one may be the tail of another. Only a hostile file has names that are together
// many times as long as the table. The limit keeps the work linear in the size of the
// file.
func (f *File) stringTable(s *section, count int) (*stringTable, error) {
	b, err := f.contents(s)
	if err != nil {
		return nil, err
	}
	return &stringTable{string(b), s.off, 256*uint64(count) + 16*uint64(len(b))}, nil
}

// at returns the name at an offset of the table.
func (t *stringTable) at(off uint32) (string, error) {
	if uint64(off) >= uint64(len(t.data)) {
		if off == 0 {
			return "", nil // an empty table has the empty name
		}
		return "", malformed(t.off, "name at %#x of a string table of %#x bytes", off, len(t.data))
	}
	rest := t.data[off:]
	if uint64(len(rest)) > t.budget {
		rest = rest[:t.budget]
	}
	n := strings.IndexByte(rest, 0)
	if n < 0 && len(rest) < len(t.data)-int(off) {
		return "", shape("names that overlap one another too much")
	}
	if n < 0 {
		return "", malformed(t.off+uint64(off), "a name without an end in the string table at %#x", t.off)
	}
	t.budget -= uint64(n)
	return rest[:n], nil
}

// stringBuilder builds a string table as BFD does: each string once, in the order in
// which they were added, except strings that are the tail of another.
type stringBuilder struct {
	ids     map[string]uint32
	strings []string // by id; the first is the empty one
	offsets []uint32 // by id, after build
}

func newStringBuilder(capacity int) *stringBuilder {
	b := &stringBuilder{ids: make(map[string]uint32, capacity), strings: make([]string, 1, capacity+1)}
	b.ids[""] = 0
	return b
}

// add returns the id of a string.
func (b *stringBuilder) add(s string) uint32 {
	id, ok := b.ids[s]
	if !ok {
		id = uint32(len(b.strings))
		b.strings = append(b.strings, s)
		b.ids[s] = id
	}
	return id
}

// build returns the table, and sets the offsets. Sorted from their ends, a string comes
// right before those of which it is the tail.
func (b *stringBuilder) build() []byte {
	sorted := make([]uint32, len(b.strings)-1)
	for i := range sorted {
		sorted[i] = uint32(i + 1)
	}
	slices.SortFunc(sorted, func(x, y uint32) int { return compareReversed(b.strings[x], b.strings[y]) })
	host := make([]uint32, len(b.strings)) // the string that contains it as its tail, 0 for none
	var last uint32
	for _, id := range slices.Backward(sorted) {
		if last != 0 && strings.HasSuffix(b.strings[last], b.strings[id]) {
			host[id] = last
		} else {
			last = id
		}
	}
	b.offsets = make([]uint32, len(b.strings))
	table := []byte{0}
	for id, s := range b.strings {
		if id != 0 && host[id] == 0 {
			b.offsets[id] = uint32(len(table))
			table = append(append(table, s...), 0)
		}
	}
	for id, s := range b.strings {
		if h := host[id]; h != 0 {
			b.offsets[id] = b.offsets[h] + uint32(len(b.strings[h])-len(s))
		}
	}
	return table
}

// compareReversed compares two strings read from their ends.
func compareReversed(a, b string) int {
	i, j := len(a), len(b)
	for i > 0 && j > 0 {
		i, j = i-1, j-1
		if a[i] != b[j] {
			return int(a[i]) - int(b[j])
		}
	}
	return i - j
}
