package elfstrip

import (
	"debug/elf"
	"encoding/binary"
	"slices"
)

// relocations are the relocations of a section that stays, as in the file.
type relocations struct {
	section uint32
	data    []byte
	entry   int
	order   binary.ByteOrder
	wide    bool // ELF64
	low     bool // MIPS, little endian: the symbol is in the first half of r_info
}

// symbol returns the symbol of the relocation that begins at i.
func (r *relocations) symbol(i int) uint32 {
	switch {
	case !r.wide:
		return r.order.Uint32(r.data[i+4:]) >> 8
	case r.low:
		return r.order.Uint32(r.data[i+8:])
	}
	return uint32(r.order.Uint64(r.data[i+8:]) >> 32)
}

func (r *relocations) setSymbol(i int, symbol uint32) {
	switch {
	case !r.wide:
		info := r.data[i+4:]
		r.order.PutUint32(info, symbol<<8|r.order.Uint32(info)&0xff)
	case r.low:
		r.order.PutUint32(r.data[i+8:], symbol)
	default:
		info := r.data[i+8:]
		r.order.PutUint64(info, uint64(symbol)<<32|r.order.Uint64(info)&0xffffffff)
	}
}

// renumber replaces each symbol number by its new number.
func (r *relocations) renumber(number []uint32) {
	for i := 0; i < len(r.data); i += r.entry {
		if symbol := r.symbol(i); symbol != 0 {
			r.setSymbol(i, number[symbol])
		}
	}
}

// readRelocations reads the relocations of the sections that stay and marks the symbols
// that they use.
func (s *stripper) readRelocations() error {
	f := s.f
	if s.symtab == 0 {
		return nil
	}
	count := f.sections[s.symtab].size / uint64(f.layout.symbol)
	s.symbols.used = make([]bool, count)
	for i := range f.sections {
		if s.role[i] != rolePatch && (s.role[i] != roleRel || !s.keep[f.sections[i].info]) {
			continue
		}
		t := &f.sections[i]
		entry := f.layout.rela
		if t.kind == elf.SHT_REL {
			entry = f.layout.rel
		}
		if t.entsize != uint64(entry) || t.size%t.entsize != 0 {
			return malformed(f.sectionAt(i), "%s has %#x bytes of relocations with entries of %d instead of %d", t.label, t.size,
				t.entsize, entry)
		}
		data, err := f.contents(t)
		if err != nil {
			return err
		}
		r := relocations{section: uint32(i), data: data, entry: entry, order: f.order, wide: f.class == elf.ELFCLASS64}
		r.low = r.wide && f.machine == elf.EM_MIPS && f.order == binary.ByteOrder(binary.LittleEndian)
		for at := 0; at < len(data); at += entry {
			symbol := r.symbol(at)
			if uint64(symbol) >= count {
				return malformed(t.off+uint64(at), "a relocation of %s needs symbol %d of %d", t.label, symbol, count)
			}
			s.symbols.used[symbol] = true
		}
		s.rels = append(s.rels, r)
	}
	return nil
}

// group is a section group: a word of flags, and the indices of its members.
type group struct {
	section int
	flags   uint32
	members []uint32
}

// readGroups reads the section groups, and keeps those with a member that stays.
func (s *stripper) readGroups() error {
	f := s.f
	member := make([]int, len(f.sections)) // group by section, 0 for none
	for i := range f.sections {
		if s.role[i] != roleGroup {
			continue
		}
		t := &f.sections[i]
		if t.entsize != 4 || t.size%4 != 0 || t.size == 0 {
			return malformed(f.sectionAt(i), "section group of %#x bytes with entries of %d instead of 4", t.size, t.entsize)
		}
		if s.symtab == 0 || t.link != s.symtab {
			return malformed(f.sectionAt(i), "section group with a symbol of section %d, but the symbol table is %d", t.link,
				s.symtab)
		}
		if t.flags != 0 {
			return shape("section group %d has flags %#x", i, t.flags)
		}
		b, err := f.contents(t)
		if err != nil {
			return err
		}
		g := group{section: i, flags: f.order.Uint32(b)}
		if g.flags&^grpComdat != 0 {
			return shape("section group %d has flags %#x in its contents", i, g.flags)
		}
		for at := 4; at < len(b); at += 4 {
			m := f.order.Uint32(b[at:])
			if m == 0 || uint64(m) >= uint64(len(f.sections)) {
				return malformed(t.off+uint64(at), "section group with section %d of %d", m, len(f.sections))
			}
			if member[m] != 0 || !f.sections[m].has(elf.SHF_GROUP) || s.role[m] != roleData && s.role[m] != roleRel {
				return shape("section group %[2]d lists section %[1]d, which is not a member of exactly one group", m, i)
			}
			member[m] = i
			g.members = append(g.members, m)
			s.keep[i] = s.keep[i] || s.keep[m]
		}
		s.groups = append(s.groups, g)
	}
	for i := range f.sections {
		if f.sections[i].has(elf.SHF_GROUP) && member[i] == 0 {
			return shape("section %d (%s) is marked as a group member, but no group lists the section", i, f.sections[i].label)
		}
		if rel := s.relOf[i]; rel != 0 && member[rel] != member[i] {
			return shape("section %d (%s) and its relocations are not of the same group", i, f.sections[i].label)
		}
	}
	return nil
}

// finishGroup writes the group with the new indices.
func (s *stripper) finishGroup(g *group, out []*outSection, symtab uint32) {
	if !s.keep[g.section] {
		return
	}
	o := out[s.number[g.section]]
	o.link, o.info = symtab, s.symbols.number[o.info]
	numbers := make([]uint32, 0, len(g.members))
	for _, m := range g.members {
		if n := s.number[m]; n != 0 {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	o.data = make([]byte, 4+4*len(numbers))
	s.f.order.PutUint32(o.data, g.flags)
	for i, n := range numbers {
		s.f.order.PutUint32(o.data[4+4*i:], n)
	}
	o.size = uint64(len(o.data))
}

// symbols are the symbols of the output.
type symbols struct {
	used   []bool   // by old number: whether a relocation or a group that stays needs it
	number []uint32 // by old number: the new one
	target []uint32 // by old number: the one for relocations to use
	kept   []symbol // without the null symbol
	locals uint32   // number of local symbols, with the null symbol
}

// symbol is an entry of the symbol table.
type symbol struct {
	name    string
	raw     []byte // as in the file
	section uint32 // 0 if raw is sufficient: undefined, absolute or common
}

// The offsets of a symbol's fields differ between the classes.
func (f *File) symbolInfo(raw []byte) byte {
	if f.class == elf.ELFCLASS32 {
		return raw[12]
	}
	return raw[4]
}

func (f *File) symbolValue(raw []byte) uint64 {
	if f.class == elf.ELFCLASS32 {
		return f.word(raw[4:])
	}
	return f.word(raw[8:])
}

func (f *File) shndxAt() int {
	if f.class == elf.ELFCLASS32 {
		return 14
	}
	return 6
}

// readSymbols determines which symbols stay.
func (s *stripper) readSymbols() error {
	f := s.f
	if s.symtab == 0 {
		return nil
	}
	t := &f.sections[s.symtab]
	table, err := f.contents(t)
	if err != nil {
		return err
	}
	var extension []byte
	if s.shndx != 0 {
		if extension, err = f.contents(&f.sections[s.shndx]); err != nil {
			return err
		}
	}
	count := len(table) / f.layout.symbol
	if uint64(t.info) > uint64(count) || t.info == 0 {
		return malformed(f.sectionAt(int(s.symtab)), "%d local symbols of %d", t.info, count)
	}
	names, err := f.stringTable(&f.sections[s.strtab], count)
	if err != nil {
		return err
	}
	for i := range s.groups {
		g := &s.groups[i]
		signature := f.sections[g.section].info
		if signature == 0 || uint64(signature) >= uint64(count) {
			return malformed(f.sectionAt(g.section), "section group named by symbol %d of %d", signature, count)
		}
		if s.keep[g.section] {
			s.symbols.used[signature] = true
		}
	}
	s.symbols.number, s.symbols.target = make([]uint32, count), make([]uint32, count)
	s.symbols.locals = 1
	for i := 1; i < count; i++ {
		y := symbol{raw: table[i*f.layout.symbol:][:f.layout.symbol]}
		at := t.off + uint64(i*f.layout.symbol)
		if y.section, err = s.symbolSection(i, y.raw, at, extension); err != nil {
			return err
		}
		if y.name, err = names.at(f.order.Uint32(y.raw)); err != nil {
			return err
		}
		keep, err := s.keepSymbol(i, &y)
		if err != nil {
			return err
		}
		if !keep {
			continue
		}
		s.symbols.kept = append(s.symbols.kept, y)
		s.symbols.number[i] = uint32(len(s.symbols.kept))
		// An absolute zero needs no symbol: BFD removes the symbol from relocations.
		if elf.SectionIndex(f.order.Uint16(y.raw[f.shndxAt():])) != elf.SHN_ABS || f.symbolValue(y.raw) != 0 {
			s.symbols.target[i] = s.symbols.number[i]
		}
		if i < int(t.info) {
			s.symbols.locals++
		}
	}
	return nil
}

// symbolSection returns the section that defines a symbol, 0 for none.
func (s *stripper) symbolSection(i int, raw []byte, at uint64, extension []byte) (uint32, error) {
	f := s.f
	index := uint32(f.order.Uint16(raw[f.shndxAt():]))
	switch elf.SectionIndex(index) {
	case elf.SHN_UNDEF, elf.SHN_ABS, elf.SHN_COMMON:
		return 0, nil
	case elf.SHN_XINDEX:
		if extension == nil {
			return 0, malformed(at, "the section of symbol %d is in a missing table", i)
		}
		index = f.order.Uint32(extension[4*i:])
	default:
		if index == shnLivepatch && s.livepatch {
			return 0, nil
		}
		if index >= uint32(elf.SHN_LORESERVE) {
			return 0, shape("symbol %d is in the special section %#x", i, index)
		}
	}
	if index == 0 || uint64(index) >= uint64(len(f.sections)) {
		return 0, malformed(at, "symbol %d is in section %d of %d", i, index, len(f.sections))
	}
	if r := s.role[index]; r != roleData && r != roleGroup {
		return 0, shape("symbol %d is in section %d, which is of type %v", i, index, f.sections[index].kind)
	}
	return index, nil
}

// keepSymbol reports whether a symbol stays. Symbols of removed sections and those that
// name files do not. Those that name sections stay if something needs them.
func (s *stripper) keepSymbol(i int, y *symbol) (bool, error) {
	f := s.f
	info := f.symbolInfo(y.raw)
	bind, kind := elf.ST_BIND(info), elf.ST_TYPE(info)
	special := elf.SectionIndex(f.order.Uint16(y.raw[f.shndxAt():]))
	local := i < int(f.sections[s.symtab].info)
	switch {
	case local != (bind == elf.STB_LOCAL):
		return false, shape("symbol %d (%s) has binding %v among symbols of other bindings", i, y.name, bind)
	case bind > elf.STB_WEAK && !(bind == stbGNUUnique && f.isGNU()):
		return false, shape("symbol %d (%s) is of binding %v", i, y.name, bind)
	case kind > elf.STT_FILE && !(kind == elf.STT_GNU_IFUNC && f.isGNU()):
		return false, shape("symbol %d (%s) is of type %v", i, y.name, kind)
	case (kind == elf.STT_SECTION || kind == elf.STT_FILE) && !local:
		return false, shape("symbol %d (%s) is of type %v and not local", i, y.name, kind)
	case kind == elf.STT_SECTION && y.section == 0:
		return false, shape("symbol %d names no section", i)
	case kind == elf.STT_FILE && special != elf.SHN_ABS:
		return false, shape("symbol %d (%s) names a file and a section", i, y.name)
	case bind == stbGNUUnique && special == elf.SHN_UNDEF, kind != elf.STT_OBJECT && special == elf.SHN_COMMON:
		return false, shape("symbol %d (%s) is of binding %v and type %v, but not defined", i, y.name, bind, kind)
	case local && (special == elf.SHN_UNDEF || special == elf.SHN_COMMON):
		return false, shape("symbol %d (%s) is local and not defined", i, y.name)
	}
	used := s.symbols.used[i]
	if y.section != 0 && !s.keep[y.section] {
		if used {
			return false, shape("symbol %d (%s) is needed, but section %d (%s) does not stay", i, y.name, y.section,
				f.sections[y.section].label)
		}
		return false, nil
	}
	switch kind {
	case elf.STT_FILE:
		if used {
			return false, shape("symbol %d (%s) names a file and is needed", i, y.name)
		}
		return false, nil
	case elf.STT_SECTION:
		y.name = ""
		return used, nil
	}
	return true, nil
}

// encode returns the symbol table, the table that extends it, and the names.
func (y *symbols) encode(f *File, number []uint32, extended bool) (table, extension, names []byte) {
	size := f.layout.symbol
	strtab := newStringBuilder(len(y.kept))
	ids := make([]uint32, len(y.kept))
	for i := range y.kept {
		ids[i] = strtab.add(y.kept[i].name)
	}
	names = strtab.build()
	table = make([]byte, size*(len(y.kept)+1))
	if extended {
		extension = make([]byte, 4*(len(y.kept)+1))
	}
	for i := range y.kept {
		raw := table[size*(i+1):][:size]
		copy(raw, y.kept[i].raw)
		f.order.PutUint32(raw, strtab.offsets[ids[i]])
		section := y.kept[i].section
		if section == 0 {
			continue
		}
		index := number[section]
		if index >= uint32(elf.SHN_LORESERVE) {
			f.order.PutUint32(extension[4*(i+1):], index)
			index = uint32(elf.SHN_XINDEX)
		}
		f.order.PutUint16(raw[f.shndxAt():], uint16(index))
	}
	return table, extension, names
}
