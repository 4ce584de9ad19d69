package elfstrip

import (
	"debug/elf"
	"math"
	"slices"
)

// Link is the contents of a section .gnu_debuglink, which names the file with a
// module's debug information.
type Link struct {
	Name string // base name of the file
	CRC  uint32 // of the whole file: CRC-32 of IEEE 802.3, as in hash/crc32
}

// linkSection is the section in which debuggers look for a [Link].
const linkSection = ".gnu_debuglink"

func (l *Link) encode(f *File) []byte {
	b := make([]byte, alignUp(uint64(len(l.Name))+1, 4)+4)
	copy(b, l.Name)
	f.order.PutUint32(b[len(b)-4:], l.CRC)
	return b
}

// role is how Strip handles a section.
type role uint8

const (
	roleNull  role = iota
	roleData       // contents to copy
	roleRel        // relocations of another section
	rolePatch      // loaded relocations of a livepatch, which the kernel applies
	roleGroup      // list of sections that belong together
	roleTable      // rewritten: symbols, their names, the names of sections
)

// stripper is the state of one [File.Strip].
type stripper struct {
	f      *File
	role   []role
	keep   []bool
	relOf  []uint32 // by section: the section of its relocations, 0 for none
	number []uint32 // by section: its new index
	hasRel bool     // whether the input has any relocations, also of debug information

	livepatch bool // whether there are sections of rolePatch

	symtab, strtab, shndx uint32 // 0 for none
	rels                  []relocations
	groups                []group
	symbols               symbols
}

// Strip returns the file as strip --strip-debug writes it. With a link, it also has a
// section .gnu_debuglink, which replaces an existing one.
func (f *File) Strip(link *Link) (*Image, error) {
	if link != nil {
		if err := link.check(); err != nil {
			return nil, err
		}
	}
	n := len(f.sections)
	s := &stripper{f: f, role: make([]role, n), keep: make([]bool, n), relOf: make([]uint32, n), number: make([]uint32, n)}
	for _, step := range []func() error{f.checkLayout, s.classify, s.findTables, s.matchRelocations} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	for i := range f.sections {
		t := &f.sections[i]
		s.keep[i] = s.role[i] == rolePatch && t.size > 0 ||
			s.role[i] == roleData && !t.isDebug() && (link == nil || t.label != linkSection)
	}
	for _, step := range []func() error{s.readGroups, s.checkKept, s.readRelocations, s.readSymbols} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return s.plan(link)
}

// maxAlign is the largest supported alignment of a section: the largest pages that
// Linux uses for ordinary memory have 64 KiB.
const maxAlign = 1 << 20

// checkLayout rejects sections that share bytes with one another or with the headers,
// so that no output is much larger than its input. It also rejects invalid alignments.
func (f *File) checkLayout() error {
	type span struct {
		off, size uint64
		section   int // -1 for the header, 0 for the section headers
	}
	spans := []span{{0, uint64(f.layout.header), -1}, {f.shoff, uint64(len(f.sections) * f.layout.section), 0}}
	for i := range f.sections {
		s := &f.sections[i]
		if s.align&(s.align-1) != 0 || s.align > maxAlign {
			return shape("section %d (%s) has an alignment of %#x", i, s.label, s.align)
		}
		if i > 0 && s.length() > 0 {
			spans = append(spans, span{s.off, s.length(), i})
		}
	}
	slices.SortFunc(spans, func(a, b span) int {
		switch {
		case a.off < b.off:
			return -1
		case a.off > b.off:
			return 1
		}
		return 0
	})
	for i, b := range spans[1:] {
		if a := spans[i]; b.off-a.off < a.size {
			return shape("sections overlap at %#x: section %d and section %d "+
				"(0 for the section headers, -1 for the file's header)", b.off, a.section, b.section)
		}
	}
	return nil
}

// classify determines the role of each section from its type.
func (s *stripper) classify() error {
	for i := 1; i < len(s.role); i++ {
		t := &s.f.sections[i]
		s.role[i] = roleData
		switch t.kind {
		case elf.SHT_NULL:
			return shape("section %d is inactive", i)
		case elf.SHT_REL, elf.SHT_RELA:
			s.role[i] = roleRel
			if t.isLivepatch() {
				s.role[i], s.livepatch = rolePatch, true
			}
		case elf.SHT_GROUP:
			s.role[i] = roleGroup
		case elf.SHT_SYMTAB:
			if s.symtab != 0 {
				return shape("sections %d and %d are both symbol tables", s.symtab, i)
			}
			s.role[i], s.symtab = roleTable, uint32(i)
		case elf.SHT_SYMTAB_SHNDX:
			if s.shndx != 0 {
				return shape("sections %d and %d both extend the symbol table", s.shndx, i)
			}
			s.role[i], s.shndx = roleTable, uint32(i)
		}
		if uint32(i) == s.f.shstrndx {
			s.role[i] = roleTable
		}
		if s.role[i] == roleTable && t.has(elf.SHF_ALLOC) {
			return shape("section %d (%s) is a table that is allocated", i, t.label)
		}
	}
	return nil
}

// findTables follows the links from and to the symbol table.
func (s *stripper) findTables() error {
	f := s.f
	if s.symtab == 0 {
		if s.shndx != 0 {
			return malformed(f.sectionAt(int(s.shndx)), "section %d extends a symbol table, but there is none", s.shndx)
		}
		return nil
	}
	t := &f.sections[s.symtab]
	if t.entsize != uint64(f.layout.symbol) || t.size%t.entsize != 0 || t.size == 0 {
		return malformed(f.sectionAt(int(s.symtab)), "symbol table of %#x bytes with entries of %d instead of %d", t.size,
			t.entsize, f.layout.symbol)
	}
	if t.link == 0 || uint64(t.link) >= uint64(len(f.sections)) || f.sections[t.link].kind != elf.SHT_STRTAB {
		return malformed(f.sectionAt(int(s.symtab)), "names of symbols in section %d, which is no string table", t.link)
	}
	if f.sections[t.link].has(elf.SHF_ALLOC) {
		return shape("section %d (%s) is a table that is allocated", t.link, f.sections[t.link].label)
	}
	// The names of symbols and of sections may be in one table.
	s.strtab = t.link
	s.role[t.link] = roleTable
	if s.shndx == 0 {
		return nil
	}
	x := &f.sections[s.shndx]
	if x.link != s.symtab {
		return malformed(f.sectionAt(int(s.shndx)), "section %d extends section %d, but the symbol table is %d", s.shndx,
			x.link, s.symtab)
	}
	if x.size/4 != t.size/t.entsize || x.size%4 != 0 {
		return malformed(f.sectionAt(int(s.shndx)), "%#x bytes to extend a symbol table of %d symbols", x.size,
			t.size/t.entsize)
	}
	return nil
}

// matchRelocations finds the section to which each section of relocations applies.
func (s *stripper) matchRelocations() error {
	f := s.f
	for i := range f.sections {
		if s.role[i] != roleRel && s.role[i] != rolePatch {
			continue
		}
		t := &f.sections[i]
		patch := s.role[i] == rolePatch
		if !patch && t.flags&shfRelaLivepatch != 0 || patch && t.has(elf.SHF_GROUP) {
			return shape("section %d (%s) has relocations of a livepatch with flags %#x", i, t.label, t.flags)
		}
		if !patch && t.has(elf.SHF_ALLOC) {
			return shape("section %d (%s) has relocations and is allocated", i, t.label)
		}
		if s.symtab == 0 {
			return shape("section %d (%s) has relocations, but there is no symbol table", i, t.label)
		}
		if t.link != s.symtab {
			return malformed(f.sectionAt(i), "relocations of %s with symbols from section %d, but the symbol table is %d",
				t.label, t.link, s.symtab)
		}
		if t.info == 0 || uint64(t.info) >= uint64(len(f.sections)) {
			return malformed(f.sectionAt(i), "relocations of section %d of %d", t.info, len(f.sections))
		}
		if s.role[t.info] != roleData {
			return shape("section %d has relocations of section %d, which is of type %v", i, t.info, f.sections[t.info].kind)
		}
		if f.sections[t.info].kind == elf.SHT_NOBITS {
			return shape("section %d has relocations of section %d (%s), which has no contents", i, t.info,
				f.sections[t.info].label)
		}
		s.hasRel = true
		if patch {
			if of := &f.sections[t.info]; of.isDebug() || of.label == linkSection {
				return shape("section %d (%s) has relocations of a livepatch for section %d (%s), which does not stay", i, t.label,
					t.info, f.sections[t.info].label)
			}
			continue
		}
		if other := s.relOf[t.info]; other != 0 {
			return shape("sections %d and %d both have relocations of section %d (%s)", other, i, t.info,
				f.sections[t.info].label)
		}
		s.relOf[t.info] = uint32(i)
	}
	return nil
}

// keptFlags are flags that can be copied unchanged, including those that the processor
// defines.
const keptFlags = uint64(elf.SHF_WRITE | elf.SHF_ALLOC | elf.SHF_EXECINSTR | elf.SHF_MERGE | elf.SHF_STRINGS |
	elf.SHF_LINK_ORDER | elf.SHF_GROUP | elf.SHF_MASKPROC)

func (f *File) keptFlags() uint64 {
	flags := keptFlags
	if f.isGNU() {
		flags |= shfGNURetain
	}
	if f.machine == elf.EM_MIPS {
		flags |= shfMIPSNoStrip
	}
	return flags
}

// isGNU reports whether the header allows GNU extensions. BFD sets it if they are used.
func (f *File) isGNU() bool { return elf.OSABI(f.header[elf.EI_OSABI]) == elf.ELFOSABI_LINUX }

// checkKept rejects sections that stay, but that Strip cannot update correctly.
func (s *stripper) checkKept() error {
	f := s.f
	for i := range f.sections {
		if !s.keep[i] || s.role[i] != roleData {
			continue
		}
		t := &f.sections[i]
		switch {
		case t.kind >= elf.SHT_LOPROC && t.kind <= elf.SHT_HIPROC, t.kind == elf.SHT_GNU_ATTRIBUTES:
		case t.kind == elf.SHT_PROGBITS, t.kind == elf.SHT_NOBITS, t.kind == elf.SHT_NOTE, t.kind == elf.SHT_STRTAB,
			t.kind == elf.SHT_INIT_ARRAY, t.kind == elf.SHT_FINI_ARRAY, t.kind == elf.SHT_PREINIT_ARRAY:
		default:
			return shape("section %d (%s) is of type %v", i, t.label, t.kind)
		}
		if odd := t.flags &^ f.keptFlags(); odd != 0 {
			return shape("section %d (%s) has flags %#x", i, t.label, odd)
		}
		if t.entsize > math.MaxUint32 {
			return shape("section %d (%s) has entries of %#x bytes", i, t.label, t.entsize)
		}
		if t.info != 0 {
			return shape("section %d (%s) of type %v has information %d", i, t.label, t.kind, t.info)
		}
		if !t.has(elf.SHF_LINK_ORDER) {
			if t.link != 0 {
				return shape("section %d (%s) of type %v has a link to section %d", i, t.label, t.kind, t.link)
			}
			continue
		}
		if uint64(t.link) >= uint64(len(f.sections)) {
			return malformed(f.sectionAt(i), "%s is ordered by section %d of %d", t.label, t.link, len(f.sections))
		}
		if t.link != 0 && (s.role[t.link] != roleData || !s.keep[t.link]) {
			return shape("section %d (%s) is ordered by section %d (%s), which does not stay", i, t.label, t.link,
				f.sections[t.link].label)
		}
	}
	return nil
}

// outSection is a section of the output.
type outSection struct {
	section
	title uint32 // id of the name
	data  []byte // new contents, or
	src   uint64 // offset in the input
	late  bool   // placed after the copied contents
}

// plan lays out the output. Sections are numbered in the order of the input, groups
// before all others, relocations right after their sections; the tables come last.
func (s *stripper) plan(link *Link) (*Image, error) {
	f := s.f
	names := newStringBuilder(len(f.sections))
	// There is a symbol table without symbols if there are, or were, relocations.
	hasSymbols := len(s.symbols.kept) > 0 || s.hasRel
	if hasSymbols {
		names.add(".symtab")
		names.add(".strtab")
	}
	names.add(".shstrtab")
	out := []*outSection{{}}
	s.renumber(&out, names)
	if link != nil {
		data := link.encode(f)
		out = append(out, &outSection{section: section{kind: elf.SHT_PROGBITS, size: uint64(len(data)), align: 4},
			title: names.add(linkSection), data: data})
	}
	symtab := uint32(len(out))
	if hasSymbols {
		s.addSymbolTable(&out, names)
	}
	for i := range s.groups {
		s.finishGroup(&s.groups[i], out, symtab)
	}
	for _, r := range s.rels {
		if len(r.data) > 0 {
			o := out[s.number[r.section]]
			o.link, o.info = symtab, s.number[f.sections[r.section].info]
			r.renumber(s.symbols.target)
		}
	}
	table := &outSection{section: section{kind: elf.SHT_STRTAB, align: 1}, title: names.add(".shstrtab"), late: true}
	out = append(out, table)
	table.data = names.build()
	table.size = uint64(len(table.data))
	for _, o := range out[1:] {
		o.name = names.offsets[o.title]
	}
	return f.layOut(out)
}

// order returns the sections with contents, and the groups, in BFD's order. That is the
// order of the file, but a section comes before its relocations, and all groups come no
// later than after the first section that is a member of one.
func (s *stripper) order() []int {
	order := make([]int, 0, len(s.role))
	done := make([]bool, len(s.role))
	add := func(i int) {
		if !done[i] {
			done[i] = true
			order = append(order, i)
		}
	}
	for i, role := range s.role {
		if role == roleRel {
			i = int(s.f.sections[i].info)
		} else if role != roleData && role != rolePatch && role != roleGroup {
			continue
		}
		add(i)
		if s.role[i] == roleData && s.f.sections[i].has(elf.SHF_GROUP) &&
			len(s.groups) > 0 && !done[s.groups[len(s.groups)-1].section] {
			for _, g := range s.groups {
				add(g.section)
			}
		}
	}
	return order
}

// renumber assigns the new indices and creates the headers of the sections that stay.
func (s *stripper) renumber(out *[]*outSection, names *stringBuilder) {
	f := s.f
	data := make(map[uint32][]byte, len(s.rels))
	for _, r := range s.rels {
		data[r.section] = r.data
	}
	add := func(i int, o *outSection) {
		s.number[i] = uint32(len(*out))
		*out = append(*out, o)
	}
	order := s.order()
	for _, i := range order {
		if s.keep[i] && s.role[i] == roleGroup {
			add(i, &outSection{section: f.adjusted(i)})
		}
	}
	for _, i := range order {
		if !s.keep[i] {
			continue
		}
		t := &f.sections[i]
		if s.role[i] == roleGroup {
			(*out)[s.number[i]].title = names.add(t.label)
			continue
		}
		add(i, &outSection{section: f.adjusted(i), src: t.off, title: names.add(t.label), data: data[uint32(i)]})
		if rel := s.relOf[i]; rel != 0 && f.sections[rel].size > 0 {
			add(int(rel), s.relocationSection(t, rel, data[rel], names))
		}
	}
	for i := range f.sections {
		if o := s.number[i]; o != 0 && s.role[i] == roleData && (*out)[o].has(elf.SHF_LINK_ORDER) {
			(*out)[o].link = s.number[f.sections[i].link]
		}
	}
}

// adjusted returns a section header with the corrections that BFD makes.
func (f *File) adjusted(i int) section {
	s := f.sections[i]
	// An unaligned address shows that the alignment is smaller than stated.
	mask := max(s.align, 1) | s.addr
	s.align = mask & -mask
	switch s.kind {
	case elf.SHT_INIT_ARRAY, elf.SHT_FINI_ARRAY, elf.SHT_PREINIT_ARRAY:
		s.entsize = uint64(f.layout.word)
	}
	return s
}

func (s *stripper) relocationSection(of *section, i uint32, data []byte, names *stringBuilder) *outSection {
	t := &s.f.sections[i]
	prefix := ".rela"
	if t.kind == elf.SHT_REL {
		prefix = ".rel"
	}
	return &outSection{
		section: section{
			kind: t.kind, flags: uint64(elf.SHF_INFO_LINK) | of.flags&uint64(elf.SHF_GROUP),
			size: t.size, align: uint64(s.f.layout.word), entsize: t.entsize,
		},
		title: names.add(prefix + of.label), data: data, late: true,
	}
}

// addSymbolTable adds the symbols, their names and, if 16 bits cannot number the
// sections, the table that extends the symbols.
func (s *stripper) addSymbolTable(out *[]*outSection, names *stringBuilder) {
	f := s.f
	number := uint32(len(*out))
	symtab := &outSection{
		section: section{kind: elf.SHT_SYMTAB, info: s.symbols.locals, align: uint64(f.layout.word),
			entsize: uint64(f.layout.symbol)},
		title: names.add(".symtab"), late: true,
	}
	*out = append(*out, symtab)
	// BFD extends the table slightly earlier than necessary.
	extended := len(*out) > int(elf.SHN_LORESERVE)-2
	var shndx *outSection
	if extended {
		shndx = &outSection{
			section: section{kind: elf.SHT_SYMTAB_SHNDX, link: number, align: 4, entsize: 4},
			title:   names.add(".symtab_shndx"), late: true,
		}
		*out = append(*out, shndx)
	}
	strtab := &outSection{section: section{kind: elf.SHT_STRTAB, align: 1}, title: names.add(".strtab"), late: true}
	symtab.link = uint32(len(*out))
	*out = append(*out, strtab)
	var extension []byte
	symtab.data, extension, strtab.data = s.symbols.encode(f, s.number, extended)
	symtab.size, strtab.size = uint64(len(symtab.data)), uint64(len(strtab.data))
	if extended {
		shndx.data, shndx.size = extension, uint64(len(extension))
	}
}

// layOut assigns offsets to the sections: first the copied ones in order, then the
// symbols, then the relocations, then the names of the sections, and last the section
// headers.
func (f *File) layOut(out []*outSection) (*Image, error) {
	m := &Image{f: f}
	at := uint64(f.layout.header)
	place := func(o *outSection) {
		at = alignUp(at, max(o.align, 1))
		o.off = at
		at += o.length()
		if o.data != nil {
			m.add(o.off, o.data)
		} else {
			m.copy(o.off, o.src, o.length())
		}
	}
	for _, o := range out[1:] {
		if !o.late {
			place(o)
		}
	}
	for _, o := range out[1:] {
		if o.late && (o.kind == elf.SHT_SYMTAB || o.kind == elf.SHT_SYMTAB_SHNDX ||
			o.kind == elf.SHT_STRTAB && o != out[len(out)-1]) {
			place(o)
		}
	}
	for _, o := range out[1:] {
		if o.late && o.isRel() {
			place(o)
		}
	}
	place(out[len(out)-1])
	return m, f.finishImage(m, out, uint32(len(out)-1), at)
}

// finishImage adds the header and the section headers.
func (f *File) finishImage(m *Image, out []*outSection, shstrndx uint32, end uint64) error {
	shoff := alignUp(end, uint64(f.layout.word))
	header := slices.Clone(f.header)
	clear(header[elf.EI_PAD:elf.EI_NIDENT])
	f.putWord(header[f.shoffAt()-f.layout.word:], 0) // e_phoff
	f.putWord(header[f.shoffAt():], shoff)
	tail := header[f.tail():]
	count := uint64(len(out))
	out[0].size, out[0].link = 0, 0
	if count >= uint64(elf.SHN_LORESERVE) {
		out[0].size, count = count, 0
	}
	if shstrndx >= uint32(elf.SHN_LORESERVE) {
		out[0].link, shstrndx = shstrndx, uint32(elf.SHN_XINDEX)
	}
	for i, v := range []uint16{uint16(f.layout.header), 0, 0, uint16(f.layout.section), uint16(count), uint16(shstrndx)} {
		f.order.PutUint16(tail[2*i:], v)
	}
	table := make([]byte, len(out)*f.layout.section)
	for i, o := range out {
		f.encode(table[i*f.layout.section:], &o.section)
	}
	m.add(0, header)
	m.add(shoff, table)
	m.size = shoff + uint64(len(table))
	// Only padding can make the file larger.
	if m.size > 2*f.size+maxAlign {
		return shape("alignment would enlarge the file from %[2]d to %[1]d bytes", m.size, f.size)
	}
	if f.class == elf.ELFCLASS32 && m.size > math.MaxUint32 {
		return shape("the file would have %d bytes, too many for 32 bits", m.size)
	}
	return m.finish()
}
