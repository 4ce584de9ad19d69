// Package elfstrip takes debug information out of kernel modules, and keeps it
// in files of its own where that is wanted: what strip --strip-debug, objcopy
// --only-keep-debug and objcopy --add-gnu-debuglink do, without running them.
//
// # Format
//
// Source: the System V ABI, "Object Files", and include/uapi/linux/elf.h. A
// module is a relocatable object, ET_REL, of 32 or 64 bits and either byte
// order:
//
//	header           52 or 64 bytes: where the section headers are, and how many
//	contents         of each section, aligned, in any order
//	section headers  40 or 64 bytes each; the first is no section
//
// Sections refer to one another by index: relocations (.rela.text) to the symbol
// table and to what they are for (.text), the symbol table (.symtab) to the
// table of its names (.strtab), a group to its members. Symbols refer to the
// section that they are defined in, relocations to symbols. So who takes out
// sections has to number everything anew. The names of sections are in a table
// too (.shstrtab).
//
// Where there are more sections than 16 bits can number, the null section has
// their number, and a table of type SHT_SYMTAB_SHNDX the sections of the
// symbols.
//
// # Strip
//
// [File.Strip] makes byte for byte what strip --strip-debug of binutils 2.40
// makes, that is:
//
//   - Sections that are not loaded and whose name begins with .debug, .zdebug,
//     .gnu.debuglto_.debug_, .gnu.linkonce.wi., .line or .stab, or is
//     .gdb_index, go, with their relocations, and groups that have no other
//     members.
//   - Symbols in these go, and those that name files (STT_FILE). Those that name
//     sections (STT_SECTION) stay where a relocation or a group needs them,
//     without name. All others stay, in order.
//   - Groups come first, then all other sections in order, each followed by its
//     relocations, then .symtab, .symtab_shndx, .strtab and .shstrtab. A section
//     comes before its relocations even where it did not. Relocations without an
//     entry go.
//   - Their contents are in the file in the same order, but relocations after
//     .strtab. All padding is zero.
//   - The tables of names have each name once, in the order of first use, and
//     names that are the tail of another name not at all: .text is the end of
//     .rela.text.
//
// A module that has been stripped stays as it is. With a link,
//
//	.gnu_debuglink   name of the debug file, a zero byte, zeros up to a multiple of 4,
//	                 CRC-32 of the debug file in the byte order of the module
//
// comes last of what is not a table. objcopy leaves a link that is there already
// as it is; Strip replaces it. A module of a linker with other habits is laid out
// anew even where it has nothing to take out.
//
// Livepatches have relocations that are loaded, of the flag SHF_RELA_LIVEPATCH, for
// symbols in the section SHN_LIVEPATCH. They stay where they are, with the new numbers
// of their symbols. binutils takes them for ordinary ones and loses their symbols where
// a section has no others.
//
// Where binutils corrects or loses something that the kernel would not notice,
// so do we: the alignment of a section whose address is not aligned so, the size
// of entries of arrays of functions, absolute symbols of value zero in
// relocations. Bytes differ in one case: of the type of a relocation of 64 bits,
// binutils keeps as many bits as the machine has types, and Strip all.
//
// # Refusals
//
// What modules do not have is refused with [ErrShape]: program headers, more
// than one symbol table, sections that overlap or are inactive, types and flags
// of sections other than the usual, a link or information in sections that
// should have none, relocations that are loaded (but those of livepatches) or for a section
// without contents, or needed symbols of sections that go; thread-local symbols
// and other types, bindings and special sections of symbols that modules do not
// have. Numbers that point out of where they should point are errors of another
// kind: the file is broken.
//
// # Debug files
//
// [File.DebugFile] keeps all section headers with their indices. Sections that
// the kernel loads have type SHT_NOBITS and no contents, but notes keep theirs,
// the build ID among them. Relocations of loaded sections lose their contents
// too, as with eu-strip -f, where objcopy keeps them: they are half of many a
// module, and without contents to relocate nothing reads them. All else stays as
// it is. readelf and eu-readelf read these files without complaint, gdb and
// addr2line find lines in them. eu-elflint takes the sections without contents
// for errors, as it does with those of objcopy and eu-strip.
//
// # Memory
//
// In memory are section headers, the symbols and their names, and relocations
// that stay. Contents are copied as the output is read, and debug information
// that goes is never read.
//
// The package does not sign, and does not look for the signature that may follow
// a module: what it is given ends with the ELF file.
package elfstrip

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// ErrShape says that a file is well formed, but of a shape that kernel modules
// don't have and this package does not rewrite. The strip program may do it.
var ErrShape = errors.New("not the shape of a kernel module")

// ErrNoDebug says that a module has no debug information to make a file of.
var ErrNoDebug = errors.New("no debug information")

func shape(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrShape, fmt.Sprintf(format, args...))
}

func malformed(offset uint64, format string, args ...any) error {
	return fmt.Errorf("malformed ELF file at offset %#x: %s", offset, fmt.Sprintf(format, args...))
}

// Constants that debug/elf does not have.
const (
	shfRelaLivepatch = 0x00100000      // SHF_RELA_LIVEPATCH of include/uapi/linux/elf.h
	shnLivepatch     = 0xff20          // SHN_LIVEPATCH: of symbols that the kernel looks up when it patches
	shfGNURetain     = 0x00200000      // SHF_GNU_RETAIN: of the attribute retain, as functions for BPF have it
	shfMIPSNoStrip   = 0x08000000      // SHF_MIPS_NOSTRIP, of .MIPS.options
	stbGNUUnique     = elf.SymBind(10) // STB_GNU_UNIQUE
	grpComdat        = 1               // GRP_COMDAT
)

// layout is what the two classes have different.
type layout struct {
	header, section, symbol, rel, rela int // sizes
	word                               int // size of an address, and alignment of tables
}

var layouts = map[elf.Class]layout{
	elf.ELFCLASS32: {header: 52, section: 40, symbol: 16, rel: 8, rela: 12, word: 4},
	elf.ELFCLASS64: {header: 64, section: 64, symbol: 24, rel: 16, rela: 24, word: 8},
}

// section is a section header, with its name looked up.
type section struct {
	label   string
	name    uint32
	kind    elf.SectionType
	flags   uint64
	addr    uint64
	off     uint64
	size    uint64
	link    uint32
	info    uint32
	align   uint64
	entsize uint64
}

func (s *section) has(flag elf.SectionFlag) bool { return s.flags&uint64(flag) != 0 }

// isLivepatch reports whether a section has relocations for the kernel to apply when
// what they are about is loaded (Documentation/livepatch/module-elf-format.rst).
func (s *section) isLivepatch() bool {
	return s.isRel() && s.has(elf.SHF_ALLOC) && s.flags&shfRelaLivepatch != 0
}

// IsLivepatch reports whether the module is a livepatch. strip of binutils loses the
// symbols of its relocations where a section has no other ones.
func (f *File) IsLivepatch() bool {
	return slices.ContainsFunc(f.sections, func(s section) bool { return s.isLivepatch() })
}

func (s *section) isRel() bool { return s.kind == elf.SHT_REL || s.kind == elf.SHT_RELA }

// length is how many bytes of the file the section takes.
func (s *section) length() uint64 {
	if s.kind == elf.SHT_NOBITS || s.kind == elf.SHT_NULL {
		return 0
	}
	return s.size
}

// File is an ELF relocatable object, of which the headers have been read.
type File struct {
	r        io.ReaderAt
	size     uint64
	class    elf.Class
	order    binary.ByteOrder
	machine  elf.Machine
	layout   layout
	header   []byte // as it stands in the file
	shoff    uint64
	shstrndx uint32
	sections []section // the first is the null section
}

// Parse reads the headers of an ELF relocatable object of size bytes. What comes
// after, a signature, is not to be part of it.
func Parse(r io.ReaderAt, size int64) (*File, error) {
	f := &File{r: r, size: uint64(max(size, 0))}
	if err := f.parseHeader(); err != nil {
		return nil, err
	}
	if err := f.parseSections(); err != nil {
		return nil, err
	}
	return f, f.parseNames()
}

func (f *File) parseHeader() error {
	var ident [elf.EI_NIDENT]byte
	if f.size < uint64(len(ident)) {
		return fmt.Errorf("not an ELF file: it has %d bytes", f.size)
	}
	if err := f.readAt(ident[:], 0); err != nil {
		return err
	}
	if string(ident[:4]) != elf.ELFMAG {
		return fmt.Errorf("not an ELF file: it begins with % x", ident[:4])
	}
	f.class = elf.Class(ident[elf.EI_CLASS])
	var ok bool
	if f.layout, ok = layouts[f.class]; !ok {
		return malformed(elf.EI_CLASS, "unknown class %d", ident[elf.EI_CLASS])
	}
	switch elf.Data(ident[elf.EI_DATA]) {
	case elf.ELFDATA2LSB:
		f.order = binary.LittleEndian
	case elf.ELFDATA2MSB:
		f.order = binary.BigEndian
	default:
		return malformed(elf.EI_DATA, "unknown byte order %d", ident[elf.EI_DATA])
	}
	if v := ident[elf.EI_VERSION]; v != byte(elf.EV_CURRENT) {
		return malformed(elf.EI_VERSION, "unknown version %d", v)
	}
	if f.size < uint64(f.layout.header) {
		return malformed(0, "the file has %d bytes, its header %d", f.size, f.layout.header)
	}
	f.header = make([]byte, f.layout.header)
	if err := f.readAt(f.header, 0); err != nil {
		return err
	}
	if t := elf.Type(f.order.Uint16(f.header[16:])); t != elf.ET_REL {
		return fmt.Errorf("not a relocatable ELF object but %v", t)
	}
	if v := f.order.Uint32(f.header[20:]); v != uint32(elf.EV_CURRENT) {
		return malformed(20, "unknown version %d", v)
	}
	f.machine = elf.Machine(f.order.Uint16(f.header[18:]))
	return nil
}

// tail is the offset of e_ehsize in the header: the 16-bit fields at its end.
func (f *File) tail() int { return f.layout.header - 12 }

// parseSections reads the table of section headers. There the counts that
// 16 bits cannot hold stand in the null section.
func (f *File) parseSections() error {
	tail := f.tail()
	half := func(i int) uint32 { return uint32(f.order.Uint16(f.header[tail+2*i:])) }
	f.shoff = f.word(f.header[f.shoffAt():])
	ehsize, phnum, shentsize := half(0), half(2), half(3)
	count, shstrndx := uint64(half(4)), half(5)
	if int(ehsize) != f.layout.header {
		return malformed(uint64(tail), "header size %d instead of %d", ehsize, f.layout.header)
	}
	if phnum != 0 {
		return shape("it has %d program headers", phnum)
	}
	if f.shoff == 0 {
		return malformed(uint64(f.shoffAt()), "no section headers")
	}
	if int(shentsize) != f.layout.section {
		return malformed(uint64(tail+6), "size of section headers %d instead of %d", shentsize, f.layout.section)
	}
	if f.shoff > f.size || f.size-f.shoff < uint64(shentsize) {
		return malformed(uint64(f.shoffAt()), "section headers at %#x, past the end of the file", f.shoff)
	}
	first := make([]byte, shentsize)
	if err := f.readAt(first, f.shoff); err != nil {
		return err
	}
	null := f.decode(first)
	if count == 0 {
		count = null.size
	}
	if shstrndx == uint32(elf.SHN_XINDEX) {
		shstrndx = null.link
	}
	if null.kind != elf.SHT_NULL {
		return malformed(f.shoff+4, "the first section is of type %v, not SHT_NULL", null.kind)
	}
	if count > (f.size-f.shoff)/uint64(shentsize) || count > math.MaxUint32 {
		return malformed(f.shoff, "%d section headers, more than the file holds", count)
	}
	if uint64(shstrndx) >= count {
		return malformed(uint64(tail+10), "section names in section %d of %d", shstrndx, count)
	}
	f.shstrndx = shstrndx
	table, err := f.read(f.shoff, count*uint64(shentsize))
	if err != nil {
		return err
	}
	f.sections = make([]section, count)
	for i := range f.sections {
		s := &f.sections[i]
		*s = f.decode(table[i*int(shentsize):])
		if n := s.length(); n > f.size || s.off > f.size-n {
			return malformed(f.sectionAt(i), "section %d has %#x bytes at %#x, past the end of the file", i, s.size, s.off)
		}
	}
	return nil
}

func (f *File) parseNames() error {
	s := &f.sections[f.shstrndx]
	if s.kind != elf.SHT_STRTAB {
		return malformed(f.sectionAt(int(f.shstrndx)), "section names in a section of type %v", s.kind)
	}
	names, err := f.stringTable(s, len(f.sections))
	if err != nil {
		return err
	}
	for i := range f.sections[1:] {
		s := &f.sections[i+1]
		if s.label, err = names.at(s.name); err != nil {
			return fmt.Errorf("%w (the name of section %d)", err, i+1)
		}
	}
	return nil
}

// sectionAt is the offset of a section header in the file.
func (f *File) sectionAt(i int) uint64 { return f.shoff + uint64(i*f.layout.section) }

// shoffAt is the offset of e_shoff in the header.
func (f *File) shoffAt() int { return 24 + 2*f.layout.word }

// word reads an address or a length.
func (f *File) word(b []byte) uint64 {
	if f.class == elf.ELFCLASS32 {
		return uint64(f.order.Uint32(b))
	}
	return f.order.Uint64(b)
}

func (f *File) putWord(b []byte, v uint64) {
	if f.class == elf.ELFCLASS32 {
		f.order.PutUint32(b, uint32(v))
	} else {
		f.order.PutUint64(b, v)
	}
}

func (f *File) decode(b []byte) section {
	w := f.layout.word
	return section{
		name:    f.order.Uint32(b),
		kind:    elf.SectionType(f.order.Uint32(b[4:])),
		flags:   f.word(b[8:]),
		addr:    f.word(b[8+w:]),
		off:     f.word(b[8+2*w:]),
		size:    f.word(b[8+3*w:]),
		link:    f.order.Uint32(b[8+4*w:]),
		info:    f.order.Uint32(b[12+4*w:]),
		align:   f.word(b[16+4*w:]),
		entsize: f.word(b[16+5*w:]),
	}
}

func (f *File) encode(b []byte, s *section) {
	w := f.layout.word
	f.order.PutUint32(b, s.name)
	f.order.PutUint32(b[4:], uint32(s.kind))
	f.putWord(b[8:], s.flags)
	f.putWord(b[8+w:], s.addr)
	f.putWord(b[8+2*w:], s.off)
	f.putWord(b[8+3*w:], s.size)
	f.order.PutUint32(b[8+4*w:], s.link)
	f.order.PutUint32(b[12+4*w:], s.info)
	f.putWord(b[16+4*w:], s.align)
	f.putWord(b[16+5*w:], s.entsize)
}

// readAt fills b from the file. The file has been found to be that long, so that
// its end coming sooner is an error of its own.
func (f *File) readAt(b []byte, off uint64) error {
	n, err := f.r.ReadAt(b, int64(off))
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("reading %d bytes at offset %#x: %w", len(b), off, err)
}

// read reads a range that is known to lie in the file.
func (f *File) read(off, n uint64) ([]byte, error) {
	if n > math.MaxInt {
		return nil, fmt.Errorf("%d bytes at offset %#x do not fit in memory", n, off)
	}
	b := make([]byte, n)
	return b, f.readAt(b, off)
}

func (f *File) contents(s *section) ([]byte, error) { return f.read(s.off, s.length()) }

// isDebug reports whether a section is one of those that BFD takes for debug
// information, by name alone.
func (s *section) isDebug() bool {
	switch s.kind {
	case elf.SHT_REL, elf.SHT_RELA, elf.SHT_GROUP, elf.SHT_SYMTAB, elf.SHT_SYMTAB_SHNDX:
		return false // that depends on what they are about
	}
	if s.has(elf.SHF_ALLOC) || !strings.HasPrefix(s.label, ".") {
		return false
	}
	for _, prefix := range []string{".debug", ".zdebug", ".gnu.debuglto_.debug_", ".gnu.linkonce.wi.", ".line", ".stab"} {
		if strings.HasPrefix(s.label, prefix) {
			return true
		}
	}
	return s.label == ".gdb_index"
}

// HasDebugInfo reports whether the file holds debug information: one of the
// sections that [File.Strip] takes out, .debug_info first of all, with contents.
func (f *File) HasDebugInfo() bool {
	return slices.ContainsFunc(f.sections, func(s section) bool {
		return s.length() > 0 && s.isDebug()
	})
}

// DebugNames returns the names of the sections that [File.Strip] takes out, in
// the order of the file, without their relocations.
func (f *File) DebugNames() []string {
	var names []string
	for i := range f.sections {
		if s := &f.sections[i]; s.isDebug() {
			names = append(names, s.label)
		}
	}
	return names
}

// buildIDSection is where the linker puts the build ID.
const buildIDSection = ".note.gnu.build-id"

// maxBuildID is far above the 20 bytes of a SHA-1.
const maxBuildID = 1 << 10

// BuildID returns the contents of the note NT_GNU_BUILD_ID, nil where there is
// none.
func (f *File) BuildID() ([]byte, error) {
	for i := range f.sections {
		s := &f.sections[i]
		if s.label != buildIDSection || s.kind != elf.SHT_NOTE {
			continue
		}
		if s.size > maxBuildID {
			return nil, malformed(f.sectionAt(i), "%s has %d bytes", s.label, s.size)
		}
		b, err := f.contents(s)
		if err != nil {
			return nil, err
		}
		if id, err := f.buildID(b, s); id != nil || err != nil {
			return id, err
		}
	}
	return nil, nil
}

// buildID goes through the notes of a section: the lengths of name and
// description, the type, then both, each padded to 4 bytes.
func (f *File) buildID(notes []byte, s *section) ([]byte, error) {
	const ntGNUBuildID = 3
	at := s.off
	for len(notes) >= 12 {
		name, desc, kind := uint64(f.order.Uint32(notes)), uint64(f.order.Uint32(notes[4:])), f.order.Uint32(notes[8:])
		body := notes[12:]
		padded := alignUp(name, 4)
		if padded > uint64(len(body)) || desc > uint64(len(body))-padded {
			return nil, malformed(at, "a note with a name of %d and a description of %d bytes does not fit in %s", name, desc, s.label)
		}
		if kind == ntGNUBuildID && bytes.Equal(body[:name], []byte("GNU\x00")) && desc > 0 {
			return bytes.Clone(body[padded : padded+desc]), nil
		}
		whole := min(padded+alignUp(desc, 4), uint64(len(body)))
		notes, at = body[whole:], at+12+whole
	}
	return nil, nil
}

func alignUp(n, to uint64) uint64 { return (n + to - 1) &^ (to - 1) }
