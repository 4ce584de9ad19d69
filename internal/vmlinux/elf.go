package vmlinux

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Limits for the tables of a file. A kernel has fewer than ten segments and a hundred
// sections.
const (
	maxSegments = 1 << 10
	maxSections = 1 << 14
)

// body is the part of a kernel, an ELF file or a flat binary, that this package needs:
// where its memory is in the file, and the addresses of a few symbols. debug/elf is, by its own documentation,
// not hardened against hostile files (an index in a header may make it panic), and its
// Symbols holds every name of a kernel at once.
type body struct {
	r       io.ReaderAt
	size    int64 // of the file, in bytes
	machine elf.Machine
	order   binary.ByteOrder
	wide    bool // ELFCLASS64: an unsigned long has 8 bytes
	flat    bool // a flat binary: one segment, at address 0 in the place of its own
	// What .align 8 and .align 4 are in the kernel's assembler files, in bytes.
	align, intAlign int
	head            elf.Header64 // only the fields that are needed
	segments        []segment
	symtab          section // zero if the file is stripped
	strtab          section
}

// segment is the part of a PT_LOAD segment that the file holds.
type segment struct {
	addr uint64
	off  int64
	size int64
}

type section struct{ off, size int64 }

// newELF reads the headers of a final kernel, ET_EXEC or ET_DYN.
func newELF(r io.ReaderAt, size int64) (*body, error) {
	f := &body{r: r, size: size}
	ident, err := f.read(0, elf.EI_NIDENT)
	if err != nil || string(ident[:4]) != elf.ELFMAG {
		return nil, errors.New("not an ELF file")
	}
	switch data := elf.Data(ident[elf.EI_DATA]); data {
	case elf.ELFDATA2LSB:
		f.order = binary.LittleEndian
	case elf.ELFDATA2MSB:
		f.order = binary.BigEndian
	default:
		return nil, fmt.Errorf("unknown ELF data encoding %d", data)
	}
	switch class := elf.Class(ident[elf.EI_CLASS]); class {
	case elf.ELFCLASS32:
	case elf.ELFCLASS64:
		f.wide = true
	default:
		return nil, fmt.Errorf("unknown ELF class %d", class)
	}

	var h elf.Header64
	if f.wide {
		err = f.decode(0, &h)
	} else {
		var n elf.Header32
		err = f.decode(0, &n)
		h = elf.Header64{
			Type: n.Type, Machine: n.Machine, Phoff: uint64(n.Phoff), Phentsize: n.Phentsize, Phnum: n.Phnum,
			Shoff: uint64(n.Shoff), Shentsize: n.Shentsize, Shnum: n.Shnum,
			Shstrndx: n.Shstrndx,
		}
	}
	if err != nil {
		return nil, fmt.Errorf("ELF header: %w", err)
	}
	switch elf.Type(h.Type) {
	case elf.ET_EXEC, elf.ET_DYN:
	case elf.ET_REL:
		return nil, errors.New("a relocatable ELF file (a module, or vmlinux.o), not a linked kernel: use the vmlinux")
	default:
		return nil, fmt.Errorf("an ELF file of type %d, not a kernel", h.Type)
	}
	if h.Phnum > maxSegments || h.Shnum > maxSections {
		return nil, fmt.Errorf("ELF file with %d segments and %d sections: not a kernel", h.Phnum, h.Shnum)
	}
	f.head = h
	f.machine = elf.Machine(h.Machine)
	f.align, f.intAlign = alignments(f.machine)
	for i := range uint64(h.Phnum) {
		if err := f.addSegment(h.Phoff + i*uint64(h.Phentsize)); err != nil {
			return nil, fmt.Errorf("program header %d: %w", i, err)
		}
	}
	if len(f.segments) == 0 {
		return nil, errors.New("ELF file without loadable segments: not a kernel")
	}
	var loaded int64
	for _, s := range f.segments {
		loaded += s.size
	}
	if loaded > size {
		return nil, fmt.Errorf("ELF file of %d bytes that loads %d: its segments overlap", size, loaded)
	}
	slices.SortStableFunc(f.segments, func(a, b segment) int { return cmp.Compare(a.addr, b.addr) })
	if err := f.findSymtab(); err != nil {
		return nil, fmt.Errorf("section headers: %w", err)
	}
	return f, nil
}

// alignments returns what the assembler makes of .align 8 and .align 4, in bytes: a number
// of bytes for some machines, the exponent of one for the others.
func alignments(machine elf.Machine) (eight, four int) {
	switch machine {
	case elf.EM_X86_64, elf.EM_386, elf.EM_S390, elf.EM_SPARCV9, elf.EM_SPARC, elf.EM_SPARC32PLUS, elf.EM_PARISC,
		elf.EM_68K:
		return 8, 4
	}
	return 1 << 8, 1 << 4
}

func (f *body) addSegment(off uint64) error {
	var p elf.Prog64
	if f.wide {
		if err := f.decode(off, &p); err != nil {
			return err
		}
	} else {
		var n elf.Prog32
		if err := f.decode(off, &n); err != nil {
			return err
		}
		p = elf.Prog64{Type: n.Type, Vaddr: uint64(n.Vaddr), Off: uint64(n.Off), Filesz: uint64(n.Filesz)}
	}
	if elf.ProgType(p.Type) != elf.PT_LOAD || p.Filesz == 0 {
		return nil
	}
	s, err := f.inFile(p.Off, p.Filesz)
	if err != nil {
		return err
	}
	f.segments = append(f.segments, segment{addr: p.Vaddr, off: s.off, size: s.size})
	return nil
}

// findSymtab finds .symtab and its strings by their types, without names.
func (f *body) findSymtab() error {
	for i := range uint64(f.head.Shnum) {
		sym, err := f.header(i)
		if err != nil {
			return err
		}
		if elf.SectionType(sym.Type) != elf.SHT_SYMTAB || sym.Flags&uint64(elf.SHF_COMPRESSED) != 0 {
			continue
		}
		if sym.Link >= uint32(f.head.Shnum) {
			return fmt.Errorf("the symbol table's strings are in section %d of %d", sym.Link, f.head.Shnum)
		}
		str, err := f.header(uint64(sym.Link))
		if err != nil {
			return err
		}
		if f.symtab, err = f.inFile(sym.Off, sym.Size); err != nil {
			return fmt.Errorf("symbol table: %w", err)
		}
		if f.strtab, err = f.inFile(str.Off, str.Size); err != nil {
			return fmt.Errorf("symbol names: %w", err)
		}
		return nil
	}
	return nil
}

// inFile returns a range of the file. A range beyond the end is an error.
func (f *body) inFile(off, size uint64) (section, error) {
	if off > uint64(f.size) || size > uint64(f.size)-off {
		return section{}, fmt.Errorf(
			"%d bytes at offset %d reach beyond the end of the file (%d bytes); the file may be cut short",
			size, off, f.size)
	}
	return section{int64(off), int64(size)}, nil
}

// read returns bytes of the file, which the caller must not change.
func (f *body) read(off, size int64) ([]byte, error) {
	if _, err := f.inFile(uint64(off), uint64(size)); err != nil {
		return nil, err
	}
	if size > maxKernel {
		return nil, fmt.Errorf("%d bytes at offset %d exceed the size of a kernel", size, off)
	}
	if m, ok := f.r.(memory); ok {
		return m[off : off+size : off+size], nil
	}
	b := make([]byte, size)
	if _, err := f.r.ReadAt(b, off); err != nil && err != io.EOF {
		return nil, err
	}
	return b, nil
}

func (f *body) decode(off uint64, v any) error {
	s, err := f.inFile(off, uint64(binary.Size(v)))
	if err != nil {
		return err
	}
	b, err := f.read(s.off, s.size)
	if err != nil {
		return err
	}
	_, err = binary.Decode(b, f.order, v)
	return err
}

// memory is a decompressed kernel. Its type avoids copies: a segment is a slice of it.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m).ReadAt(p, off)
}

// word reads an unsigned long of the target from the beginning of b, which may be too
// short.
func (f *body) word(b []byte) (uint64, bool) {
	switch {
	case f.wide && len(b) >= 8:
		return f.order.Uint64(b), true
	case !f.wide && len(b) >= 4:
		return uint64(f.order.Uint32(b)), true
	}
	return 0, false
}

// at returns the size bytes in the file for an address.
func (f *body) at(addr, size uint64) ([]byte, error) {
	off, err := f.offsetOf(addr, size)
	if err != nil {
		return nil, err
	}
	return f.read(off, int64(size))
}

// offsetOf returns the offset in the file for an address.
func (f *body) offsetOf(addr, size uint64) (int64, error) {
	for _, s := range f.segments {
		if into := addr - s.addr; addr >= s.addr && into <= uint64(s.size) && size <= uint64(s.size)-into {
			return s.off + int64(into), nil
		}
	}
	return 0, fmt.Errorf("the file has no contents for %d bytes at address %#x", size, addr)
}

// symbol is the address and size of an object in the kernel's memory.
type symbol struct{ addr, size uint64 }

// symbols looks up global symbols in .symtab. A name that is defined twice with
// different addresses is an error, because the right one is unknown.
func (f *body) symbols(names []string) (map[string]symbol, error) {
	found := make(map[string]symbol)
	entry := int64(elf.Sym32Size)
	if f.wide {
		entry = elf.Sym64Size
	}
	n := f.symtab.size / entry
	strings, err := f.read(f.strtab.off, f.strtab.size)
	if err != nil {
		return nil, err
	}
	table, err := f.read(f.symtab.off, f.symtab.size)
	if err != nil {
		return nil, err
	}
	for i := range n {
		b := table[i*entry:][:entry]
		name := f.order.Uint32(b)
		if uint64(name) >= uint64(len(strings)) {
			continue
		}
		at := slices.IndexFunc(names, func(want string) bool {
			s := strings[name:]
			return len(s) > len(want) && s[len(want)] == 0 && string(s[:len(want)]) == want
		})
		if at < 0 {
			continue
		}
		var s symbol
		var info byte
		var shndx uint16
		if f.wide {
			info, shndx = b[4], f.order.Uint16(b[6:])
			s = symbol{f.order.Uint64(b[8:]), f.order.Uint64(b[16:])}
		} else {
			info, shndx = b[12], f.order.Uint16(b[14:])
			s = symbol{uint64(f.order.Uint32(b[4:])), uint64(f.order.Uint32(b[8:]))}
		}
		if elf.ST_BIND(info) != elf.STB_GLOBAL || elf.SectionIndex(shndx) == elf.SHN_UNDEF {
			continue
		}
		if old, ok := found[names[at]]; ok && old != s {
			return nil, fmt.Errorf("symbol %s is defined twice, at %#x and %#x", names[at], old.addr, s.addr)
		}
		found[names[at]] = s
	}
	return found, nil
}
