// Package elfstrip removes debug information from kernel modules, and can write it to
// separate files. It does what strip --strip-debug, objcopy --only-keep-debug and
// objcopy --add-gnu-debuglink do, without running them.
//
// Call [Parse] first, then [File.Strip] for the stripped module and [File.DebugFile]
// for the debug information.
//
// # Format
//
// Source: the System V ABI, "Object Files", and include/uapi/linux/elf.h. A module is a
// relocatable object, ET_REL, of 32 or 64 bits and either byte order:
//
//	header           52 or 64 bytes: where the section headers are, and how many
//	contents         of each section, aligned, in any order
//	section headers  40 or 64 bytes each; the first is no section
//
// Sections refer to one another by index: relocations (.rela.text) to the symbol table
// and to the section that they apply to (.text), the symbol table (.symtab) to the
// table of its names (.strtab), a group to its members. Symbols refer to the section
// that defines them, and relocations to symbols. Removing sections therefore renumbers
// everything. The names of sections are in a table too (.shstrtab).
//
// If 16 bits cannot hold the number of sections, the null section holds it, and a table
// of type SHT_SYMTAB_SHNDX holds the sections of the symbols.
//
// # Strip
//
// [File.Strip] writes byte for byte what strip --strip-debug of binutils 2.40 writes:
//
//   - It removes sections that are not loaded and whose name begins with .debug,
//     .zdebug, .gnu.debuglto_.debug_, .gnu.linkonce.wi., .line or .stab, or is
//     .gdb_index, with their relocations, and groups that have no other members.
//   - It removes symbols in these sections, and those that name files (STT_FILE).
//     Symbols that name sections (STT_SECTION) stay, without a name, if a
//     relocation or a group needs them. All other symbols stay, in order.
//   - Groups come first, then all other sections in order, each followed by its
//     relocations, then .symtab, .symtab_shndx, .strtab and .shstrtab. A section
//     comes before its relocations even if it did not. Relocations without an
//     entry are removed.
//   - The contents are in the file in the same order, but relocations come after
//     .strtab. All padding is zero.
//   - The tables of names contain each name once, in the order of first use. A name
//     that is the tail of another name is not stored separately: .text is the end
//     of .rela.text.
//
// A stripped module stays unchanged. With a link, Strip adds
//
//	.gnu_debuglink   name of the debug file, a zero byte, zeros up to a multiple of 4,
//	                 CRC-32 of the debug file in the byte order of the module
//
// as the last section that is not a table. objcopy does not change an existing link;
// Strip replaces it. Strip also rewrites a module with the layout of another linker if
// there is nothing to remove.
//
// Livepatches have loaded relocations with the flag SHF_RELA_LIVEPATCH, for symbols in
// the section SHN_LIVEPATCH. They stay in place, with the new numbers of their symbols.
// binutils treats them as ordinary relocations, and removes their symbols if a section
// has no others.
//
// If binutils corrects or loses something that does not affect the kernel, Strip does
// the same: the alignment of a section whose address is not aligned, the size of
// entries of arrays of functions, absolute symbols of value zero in relocations. The
// bytes differ in one case: binutils keeps only as many bits of the type of a 64-bit
// relocation as the machine has types, and Strip keeps all.
//
// # Unsupported shapes
//
// The package rejects with [ErrShape] what modules do not have: program headers, more
// than one symbol table, sections that overlap or are inactive, unusual types and flags
// of sections, a link or information in sections that should have none, loaded
// relocations (except those of livepatches), relocations for a section without
// contents, needed symbols of removed sections, thread-local symbols, and other types,
// bindings and special sections of symbols that modules do not have. Numbers that point
// to nothing are errors of another kind: the file is broken.
//
// # Debug files
//
// [File.DebugFile] keeps all section headers with their indices. Sections that the
// kernel loads get the type SHT_NOBITS and no contents, except notes such as the build
// ID. The relocations of loaded sections lose their contents too, as with eu-strip -f.
// objcopy keeps them, but they are half of many modules, and nothing reads them without
// the contents that they relocate. Everything else stays. readelf and eu-readelf read
// these files without complaint, and gdb and addr2line find lines in them. eu-elflint
// reports sections without contents as errors, as it does for the files of objcopy and
// eu-strip.
//
// # Memory
//
// Section headers, symbols, their names and the relocations that stay are held in
// memory. Contents are copied while the output is read. Removed debug information is
// never read.
//
// The package does not sign, and does not handle the signature that may follow a
// module: its input ends with the ELF file.
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

// ErrShape reports a well-formed file with a shape that kernel modules do not have and
// that this package does not rewrite. The strip program may support it.
var ErrShape = errors.New("not the shape of a kernel module")

// ErrNoDebug reports that a module has no debug information.
var ErrNoDebug = errors.New("no debug information")

func shape(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrShape, fmt.Sprintf(format, args...))
}

func malformed(offset uint64, format string, args ...any) error {
	return fmt.Errorf("malformed ELF file at offset %#x: %s", offset, fmt.Sprintf(format, args...))
}

// These constants are missing in debug/elf.
const (
	shfRelaLivepatch = 0x00100000      // SHF_RELA_LIVEPATCH of include/uapi/linux/elf.h
	shnLivepatch     = 0xff20          // SHN_LIVEPATCH: symbols that the kernel looks up when it patches
	shfGNURetain     = 0x00200000      // SHF_GNU_RETAIN: from the attribute retain, such as on functions for BPF
	shfMIPSNoStrip   = 0x08000000      // SHF_MIPS_NOSTRIP, of .MIPS.options
	stbGNUUnique     = elf.SymBind(10) // STB_GNU_UNIQUE
	grpComdat        = 1               // GRP_COMDAT
)

// layout holds the differences between the two classes.
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

// isLivepatch reports whether a section has relocations that the kernel applies when
// the patched object is loaded (Documentation/livepatch/module-elf-format.rst).
func (s *section) isLivepatch() bool {
	return s.isRel() && s.has(elf.SHF_ALLOC) && s.flags&shfRelaLivepatch != 0
}

// isLivepatch reports whether the module is a livepatch.
func (f *File) isLivepatch() bool {
	return slices.ContainsFunc(f.sections, func(s section) bool { return s.isLivepatch() })
}

func (s *section) isRel() bool { return s.kind == elf.SHT_REL || s.kind == elf.SHT_RELA }

// length returns the number of bytes that the section takes in the file.
func (s *section) length() uint64 {
	if s.kind == elf.SHT_NOBITS || s.kind == elf.SHT_NULL {
		return 0
	}
	return s.size
}

// File is an ELF relocatable object whose headers have been read.
type File struct {
	r        io.ReaderAt
	size     uint64
	class    elf.Class
	order    binary.ByteOrder
	machine  elf.Machine
	layout   layout
	header   []byte // as in the file
	shoff    uint64
	shstrndx uint32
	sections []section // the first is the null section
}

// Parse reads the headers of an ELF relocatable object of size bytes, without the
// signature that may follow it.
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
		return fmt.Errorf("not an ELF file: only %d bytes", f.size)
	}
	if err := f.readAt(ident[:], 0); err != nil {
		return err
	}
	if string(ident[:4]) != elf.ELFMAG {
		return fmt.Errorf("not an ELF file: the first bytes are % x", ident[:4])
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

// tail returns the offset of e_ehsize in the header, the first of the 16-bit fields at
// its end.
func (f *File) tail() int { return f.layout.header - 12 }

// parseSections reads the section headers. Counts that do not fit 16 bits are in the
// null section.
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
		return shape("%d program headers", phnum)
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

// sectionAt returns the offset of a section header in the file.
func (f *File) sectionAt(i int) uint64 { return f.shoff + uint64(i*f.layout.section) }

// shoffAt returns the offset of e_shoff in the header.
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

// readAt fills b from the file. The range is inside the file, so an early end is an
// error of its own.
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

// read reads a range that lies inside the file.
func (f *File) read(off, n uint64) ([]byte, error) {
	if n > math.MaxInt {
		return nil, fmt.Errorf("%d bytes at offset %#x do not fit in memory", n, off)
	}
	b := make([]byte, n)
	return b, f.readAt(b, off)
}

func (f *File) contents(s *section) ([]byte, error) { return f.read(s.off, s.length()) }

// isDebug reports whether BFD treats a section as debug information, by its name alone.
func (s *section) isDebug() bool {
	switch s.kind {
	case elf.SHT_REL, elf.SHT_RELA, elf.SHT_GROUP, elf.SHT_SYMTAB, elf.SHT_SYMTAB_SHNDX:
		return false // that depends on the section that they apply to
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

// HasDebugInfo reports whether the file has debug information: a section with contents
// that [File.Strip] removes, such as .debug_info.
func (f *File) HasDebugInfo() bool {
	return slices.ContainsFunc(f.sections, func(s section) bool {
		return s.length() > 0 && s.isDebug()
	})
}

// DebugNames returns the names of the sections that [File.Strip] removes, in the order
// of the file, without their relocations.
func (f *File) DebugNames() []string {
	var names []string
	for i := range f.sections {
		if s := &f.sections[i]; s.isDebug() {
			names = append(names, s.label)
		}
	}
	return names
}

// buildIDSection is the section in which the linker stores the build ID.
const buildIDSection = ".note.gnu.build-id"

// maxBuildID is a limit in bytes, far above the 20 bytes of a SHA-1.
const maxBuildID = 1 << 10

// BuildID returns the contents of the note NT_GNU_BUILD_ID, or nil if there is none.
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

// buildID searches the notes of a section: the lengths of name and description, the
// type, then both, each padded to 4 bytes.
func (f *File) buildID(notes []byte, s *section) ([]byte, error) {
	const ntGNUBuildID = 3
	at := s.off
	for len(notes) >= 12 {
		name, desc, kind := uint64(f.order.Uint32(notes)), uint64(f.order.Uint32(notes[4:])), f.order.Uint32(notes[8:])
		body := notes[12:]
		padded := alignUp(name, 4)
		if padded > uint64(len(body)) || desc > uint64(len(body))-padded {
			return nil, malformed(at, "a note with a name of %d and a description of %d bytes does not fit in %s", name, desc,
				s.label)
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
