package explain

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"math"
)

// elfFile is a module as the kernel reads it: with its own class and byte order.
type elfFile struct {
	io.ReaderAt
	size     uint64
	wide     bool
	order    binary.ByteOrder
	header   sectionTable
	sections []section
}

// sectionTable is what the ELF header says of the section headers.
type sectionTable struct {
	offset                  uint64
	entrySize, count, names uint16
}

// section is what the kernel checks of a section header.
type section struct {
	name, kind, link          uint32
	flags, addr, offset, size uint64
}

// check does what the kernel does with the section headers before it looks for a section by its
// name (kernel/module/main.c). The line is what it logs if it refuses them. check reads at most
// 4 MiB: there are 65,535 sections at most.
func (f *elfFile) check(v version) (line string, err error) {
	if err := f.readHeader(); err != nil {
		return "", err
	}
	h, entry := f.header, uint64(40)
	if f.wide {
		entry = 64
	}
	switch {
	case uint64(h.entrySize) != entry:
		return "Invalid ELF section header size", nil
	case h.offset >= f.size || uint64(h.count)*entry > f.size-h.offset:
		return "Invalid ELF section header overflow", nil
	}
	table := make([]byte, uint64(h.count)*entry)
	if _, err := f.ReadAt(table, int64(h.offset)); err != nil && err != io.EOF {
		return "", err
	}
	f.sections = make([]section, h.count)
	for i := range f.sections {
		f.sections[i] = f.decode(table[uint64(i)*entry:])
	}
	if v != (version{}) && !v.since(6, 12) { // elf_validity_check
		if line, err := f.nameTable(false); line != "" || err != nil {
			return line, err
		}
		return f.contents(true), nil
	}
	// elf_validity_cache_sechdrs, _secstrings, and _index_str
	if line := f.contents(false); line != "" {
		return line, nil
	}
	if line, err := f.nameTable(true); line != "" || err != nil {
		return line, err
	}
	for i, s := range f.sections {
		if s.kind != uint32(elf.SHT_NULL) && uint64(s.name) >= f.sections[h.names].size {
			return fmt.Sprintf("Invalid ELF section name in module (section %d type %d)", i, s.kind), nil
		}
	}
	return "", nil
}

func (f *elfFile) readHeader() error {
	var b [64]byte
	if _, err := f.ReadAt(b[:min(f.size, 64)], 0); err != nil && err != io.EOF {
		return err
	}
	u16 := f.order.Uint16
	f.header = sectionTable{uint64(f.order.Uint32(b[32:])), u16(b[46:]), u16(b[48:]), u16(b[50:])}
	if f.wide {
		f.header = sectionTable{f.order.Uint64(b[40:]), u16(b[58:]), u16(b[60:]), u16(b[62:])}
	}
	return nil
}

func (f *elfFile) decode(b []byte) section {
	u32, u64 := f.order.Uint32, f.order.Uint64
	if f.wide {
		return section{name: u32(b), kind: u32(b[4:]), flags: u64(b[8:]), addr: u64(b[16:]), offset: u64(b[24:]),
			size: u64(b[32:]), link: u32(b[40:])}
	}
	return section{name: u32(b), kind: u32(b[4:]), flags: uint64(u32(b[8:])), addr: uint64(u32(b[12:])),
		offset: uint64(u32(b[16:])), size: uint64(u32(b[20:])), link: u32(b[24:])}
}

// inside reports whether a section is in the file (validate_section_offset).
func (f *elfFile) inside(s section) bool {
	return s.offset <= math.MaxUint64-s.size && s.offset+s.size <= f.size
}

// contents checks where the sections are. old is for kernels before 6.12, which look at links
// and names here too.
func (f *elfFile) contents(old bool) string {
	for i, s := range f.sections {
		kind := elf.SectionType(s.kind)
		switch {
		case i == 0:
			if kind != elf.SHT_NULL || s.size != 0 || s.addr != 0 {
				return fmt.Sprintf("ELF Spec violation: section 0 type(%d)!=SH_NULL or non-zero len or addr", s.kind)
			}
		case kind == elf.SHT_NULL || kind == elf.SHT_NOBITS:
		case old && kind == elf.SHT_SYMTAB && (s.link == 0 || s.link >= uint32(f.header.count)):
			return f.badLink(s.link)
		case !f.inside(s):
			return fmt.Sprintf("Invalid ELF section in module (section %d type %d)", i, s.kind)
		case old && s.flags&uint64(elf.SHF_ALLOC) != 0 && uint64(s.name) >= f.sections[f.header.names].size:
			return fmt.Sprintf("Invalid ELF section name in module (section %d type %d)", i, s.kind)
		}
	}
	return ""
}

// nameTable checks the section with the names of sections. Its type counts since 6.12.
func (f *elfFile) nameTable(typed bool) (line string, err error) {
	h := f.header
	if h.names == 0 || h.names >= h.count {
		return fmt.Sprintf("Invalid ELF section name index: %d || e_shstrndx (%d) >= e_shnum (%d)", h.names, h.names,
			h.count), nil
	}
	s := f.sections[h.names]
	switch {
	case typed && elf.SectionType(s.kind) != elf.SHT_STRTAB:
		return fmt.Sprintf("Invalid ELF section name table type: %d", s.kind), nil
	case !f.inside(s):
		return fmt.Sprintf("Invalid ELF section hdr(type %d)", s.kind), nil
	case s.size == 0:
		return "empty section name table", nil
	}
	var last [1]byte
	if _, err := f.ReadAt(last[:], int64(s.offset+s.size-1)); err != nil && err != io.EOF {
		return "", err
	}
	if last[0] != 0 {
		return "ELF Spec violation: section name table isn't null terminated", nil
	}
	return "", nil
}

// badLink is the line about a symbol table without its names.
func (f *elfFile) badLink(link uint32) string {
	return fmt.Sprintf("Invalid ELF sh_link!=SHN_UNDEF(%d) or (sh_link(%d) >= hdr->e_shnum(%d)", int32(link),
		int32(link), f.header.count)
}

// kernelELF is the module as the kernel reads it. Without knowing the kernel's machine, it is
// as the module says.
func (j *judge) kernelELF(size int64) *elfFile {
	f := &elfFile{ReaderAt: j.content, size: uint64(size), wide: true, order: binary.LittleEndian}
	var ident [6]byte
	_, _ = j.content.ReadAt(ident[:min(size, 6)], 0) // a file without a header was refused before
	if f.wide = elf.Class(ident[elf.EI_CLASS]) != elf.ELFCLASS32; elf.Data(ident[elf.EI_DATA]) == elf.ELFDATA2MSB {
		f.order = binary.BigEndian
	}
	if j.ignoresIdent() {
		f.ReaderAt, f.wide, f.order = x86Ident{j.content}, true, binary.LittleEndian
	}
	return f
}

// ignoresIdent reports whether the kernel does not look at the class and byte order that a
// module claims (elf_check_arch in arch/x86 and arch/arm64).
func (j *judge) ignoresIdent() bool {
	return j.machine == elf.EM_X86_64 || j.machine == elf.EM_AARCH64 && j.order == binary.LittleEndian
}

// x86Ident is a file that claims the class and byte order that such a kernel takes it for.
type x86Ident struct{ io.ReaderAt }

func (r x86Ident) ReadAt(b []byte, at int64) (int, error) {
	n, err := r.ReaderAt.ReadAt(b, at)
	for i, claim := range map[int64]byte{elf.EI_CLASS: byte(elf.ELFCLASS64), elf.EI_DATA: byte(elf.ELFDATA2LSB)} {
		if at <= i && i-at < int64(n) {
			b[i-at] = claim
		}
	}
	return n, err
}
