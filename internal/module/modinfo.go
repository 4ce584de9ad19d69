package module

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
)

const (
	// A module has a few KB of each; more is no honest one.
	maxModinfo      = 1 << 20
	maxSectionNames = 16 << 20
)

// Modinfo returns the tags of a module of size bytes, such as "license=GPL": the strings of
// its section .modinfo, in their order. A module without that section has none. More than
// one is an error, because readers of the module would disagree about which one counts, as
// are headers that do not make sense. Errors wrap [ErrNotModule]. Modinfo reads only the
// headers and the section.
func Modinfo(r io.ReaderAt, size int64) ([]string, error) {
	e, err := readHeader(r, size)
	if err != nil {
		return nil, err
	}
	sections, err := e.named(r, ".modinfo")
	if err != nil {
		return nil, err
	}
	found := sections[".modinfo"]
	switch {
	case len(found) == 0:
		return nil, nil
	case len(found) > 1:
		return nil, fmt.Errorf("%w: %d sections .modinfo", ErrNotModule, len(found))
	case found[0].kind == elf.SHT_NOBITS || found[0].flags&uint64(elf.SHF_COMPRESSED) != 0:
		return nil, fmt.Errorf("%w: section .modinfo without plain content", ErrNotModule)
	}
	info, err := found[0].read(r, maxModinfo)
	if err != nil {
		return nil, fmt.Errorf("%w: section .modinfo: %w", ErrNotModule, err)
	}
	return tags(info), nil
}

// tags splits a section .modinfo.
func tags(info []byte) (tags []string) {
	for tag := range bytes.SplitSeq(info, []byte{0}) {
		if len(tag) > 0 { // the linker pads
			tags = append(tags, string(tag))
		}
	}
	return tags
}

// named returns the sections of some names, in their order.
func (e *header) named(r io.ReaderAt, wanted ...string) (map[string][]section, error) {
	var first, names section
	if err := e.eachSection(r, func(i uint64, s section) {
		if i == 0 {
			first = s
		}
		if i == e.namesIndex(first) {
			names = s
		}
	}); err != nil {
		return nil, err
	}
	if names.kind != elf.SHT_STRTAB {
		return nil, fmt.Errorf("%w: no names of sections", ErrNotModule)
	}
	text, err := names.read(r, maxSectionNames)
	if err != nil {
		return nil, fmt.Errorf("%w: section names: %w", ErrNotModule, err)
	}
	found := make(map[string][]section)
	err = e.eachSection(r, func(i uint64, s section) {
		for _, name := range wanted {
			if i > 0 && isNamed(text, s.name, name) {
				found[name] = append(found[name], s)
			}
		}
	})
	return found, err
}

// isNamed reports whether a string begins at an offset of a table of strings.
func isNamed(table []byte, at uint32, name string) bool {
	return uint64(at) < uint64(len(table)) && bytes.HasPrefix(table[at:], append([]byte(name), 0))
}

// section is what a section header says.
type section struct {
	name         uint32 // offset in the names
	kind         elf.SectionType
	flags        uint64
	offset, size uint64
	link         uint32
}

// read reads the content of a section of at most limit bytes.
func (s *section) read(r io.ReaderAt, limit uint64) ([]byte, error) {
	if s.size > limit {
		return nil, fmt.Errorf("%d bytes, more than %d", s.size, limit)
	}
	content := make([]byte, s.size)
	return content, readFull(r, content, int64(s.offset))
}

func (e *header) decode(b []byte) section {
	s := section{name: e.order.Uint32(b), kind: elf.SectionType(e.order.Uint32(b[4:]))}
	if e.entrySize == elfSectionSize32 {
		s.flags = uint64(e.order.Uint32(b[8:]))
		s.offset, s.size = uint64(e.order.Uint32(b[16:])), uint64(e.order.Uint32(b[20:]))
		s.link = e.order.Uint32(b[24:])
	} else {
		s.flags = e.order.Uint64(b[8:])
		s.offset, s.size = e.order.Uint64(b[24:]), e.order.Uint64(b[32:])
		s.link = e.order.Uint32(b[40:])
	}
	return s
}

// namesIndex is the index of the section with the names of sections, which is in the first
// section header if it does not fit the ELF header.
func (e *header) namesIndex(first section) uint64 {
	if e.names == uint16(elf.SHN_XINDEX) {
		return uint64(first.link)
	}
	return uint64(e.names)
}
