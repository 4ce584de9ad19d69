package elfstrip

import (
	"debug/elf"
)

// DebugFile returns the file with the module's debug information, as objcopy
// --only-keep-debug writes it. All section headers keep their indices, so symbols and
// relocations need no change. Sections that the kernel loads lose their contents, and
// so do their relocations.
func (f *File) DebugFile() (*Image, error) {
	if !f.HasDebugInfo() {
		return nil, ErrNoDebug
	}
	if err := f.checkLayout(); err != nil {
		return nil, err
	}
	out := make([]*outSection, len(f.sections))
	for i := range f.sections {
		t := f.sections[i]
		if isTable := t.kind == elf.SHT_SYMTAB || t.kind == elf.SHT_STRTAB || t.kind == elf.SHT_SYMTAB_SHNDX ||
			t.kind == elf.SHT_GROUP; isTable && t.has(elf.SHF_ALLOC) {
			return nil, shape("section %d (%s) is a table that is allocated", i, t.label)
		}
		if i > 0 && f.isEmptied(&t) {
			t.kind = elf.SHT_NOBITS
		}
		out[i] = &outSection{section: t, src: t.off}
	}
	m := &Image{f: f}
	at := uint64(f.layout.header)
	for _, o := range out[1:] {
		// A section without contents takes no padding.
		if o.kind != elf.SHT_NOBITS && o.kind != elf.SHT_NULL {
			at = alignUp(at, max(o.align, 1))
		}
		o.off = at
		m.copy(at, o.src, o.length())
		at += o.length()
	}
	return m, f.finishImage(m, out, f.shstrndx, at)
}

// isEmptied reports whether a section loses its contents in the debug file. Notes keep
// theirs, because of the build ID.
func (f *File) isEmptied(s *section) bool {
	if s.isRel() && uint64(s.info) < uint64(len(f.sections)) && f.sections[s.info].has(elf.SHF_ALLOC) {
		return true
	}
	return s.has(elf.SHF_ALLOC) && s.kind != elf.SHT_NOTE
}
