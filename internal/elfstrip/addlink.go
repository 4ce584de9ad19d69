package elfstrip

import (
	"debug/elf"
	"fmt"
	"strings"
)

// check returns an error if the name is not a valid name of a debug file.
func (l *Link) check() error {
	if l.Name == "" || strings.IndexByte(l.Name, 0) >= 0 {
		return fmt.Errorf("not a name of a debug file: %q", l.Name)
	}
	return nil
}

// AddLink returns the file with a section .gnu_debuglink, which replaces an existing
// one. Use it for files that another program has stripped because [File.Strip] does
// not: it accepts any shape and renumbers nothing. The new section comes last.
// Everything else stays in place, except the names of sections and the section headers,
// which are written anew after the section.
func (f *File) AddLink(link *Link) (*Image, error) {
	if err := link.check(); err != nil {
		return nil, err
	}
	names, err := f.contents(&f.sections[f.shstrndx])
	if err != nil {
		return nil, err
	}
	out := make([]*outSection, len(f.sections))
	var section *outSection
	for i, s := range f.sections {
		out[i] = &outSection{section: s}
		if i > 0 && s.label == linkSection {
			section = out[i]
		}
	}
	m := &Image{f: f}
	at := f.size
	if f.sectionAt(len(f.sections)) == f.size { // their usual place
		at = f.shoff
	}
	m.copy(uint64(f.layout.header), uint64(f.layout.header), at-uint64(f.layout.header))
	place := func(o *outSection, data []byte) {
		at = alignUp(at, max(o.align, 1))
		o.off, o.size = at, uint64(len(data))
		m.add(at, data)
		at += o.size
	}
	if section == nil {
		section = &outSection{}
		section.name = uint32(len(names) + 1)
		place(out[f.shstrndx], append(names, "\x00"+linkSection+"\x00"...))
		out = append(out, section)
	}
	section.kind, section.align, section.flags = elf.SHT_PROGBITS, 4, 0
	place(section, link.encode(f))
	return m, f.finishImage(m, out, f.shstrndx, at)
}
