package module

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// ErrNotModule reports that a file is not a kernel module: not an ELF file, not of type
// ET_REL, or truncated.
var ErrNotModule = errors.New("not a kernel module")

// The fields of the ELF header that are at the same offset in both classes.
const (
	elfHeaderSize32, elfHeaderSize64   = 52, 64
	elfSectionSize32, elfSectionSize64 = 40, 64
)

// ByteOrder returns the byte order of a module, and so of its kernel.
func ByteOrder(r io.ReaderAt) (binary.AppendByteOrder, error) {
	var ident [elf.EI_NIDENT]byte
	if err := readFull(r, ident[:], 0); err != nil {
		return nil, err
	}
	switch elf.Data(ident[elf.EI_DATA]) {
	case elf.ELFDATA2LSB:
		return binary.LittleEndian, nil
	case elf.ELFDATA2MSB:
		return binary.BigEndian, nil
	}
	return nil, fmt.Errorf("%w: unknown ELF byte order %d", ErrNotModule, ident[elf.EI_DATA])
}

// CheckELF returns an error unless a payload of size bytes is a complete ELF
// relocatable object of any machine: header, section headers and sections lie within
// it. CheckELF reads only the headers, in constant memory, because debug/elf is not
// made for hostile input. Its errors wrap [ErrNotModule]; the kernel returns ENOEXEC
// (elf_validity_check in kernel/module/main.c).
func CheckELF(r io.ReaderAt, size int64) error {
	e, err := readHeader(r, size)
	if err != nil {
		return err
	}
	return e.eachSection(r, func(uint64, section) {})
}

// header is what the ELF header says of the section headers.
type header struct {
	size      uint64 // of the file
	order     binary.ByteOrder
	tableAt   uint64
	entrySize uint64
	count     uint64 // 0: it is in the first section header
	names     uint16 // index of the section with their names
	machine   elf.Machine
	wide      bool // ELFCLASS64
}

func readHeader(r io.ReaderAt, size int64) (*header, error) {
	var h [elfHeaderSize64]byte
	n := min(size, int64(len(h)))
	if err := readFull(r, h[:n], 0); err != nil {
		return nil, err
	}
	switch {
	case size == 0:
		return nil, fmt.Errorf("%w: file is empty", ErrNotModule)
	case string(h[:min(n, 4)]) != elf.ELFMAG[:min(n, 4)]:
		return nil, fmt.Errorf("%w: not an ELF file", ErrNotModule)
	case n < elfHeaderSize32:
		return nil, fmt.Errorf("%w: cut off within the ELF header, at %d bytes", ErrNotModule, size)
	}

	e := &header{size: uint64(size), order: binary.LittleEndian}
	switch elf.Data(h[elf.EI_DATA]) {
	case elf.ELFDATA2LSB:
	case elf.ELFDATA2MSB:
		e.order = binary.BigEndian
	default:
		return nil, fmt.Errorf("%w: unknown ELF byte order %d", ErrNotModule, h[elf.EI_DATA])
	}
	if t := elf.Type(e.order.Uint16(h[16:])); t != elf.ET_REL {
		return nil, fmt.Errorf("%w: ELF type %v instead of a relocatable object (ET_REL)", ErrNotModule, t)
	}

	e.machine = elf.Machine(e.order.Uint16(h[18:]))
	e.wide = elf.Class(h[elf.EI_CLASS]) == elf.ELFCLASS64
	var wantSize uint64
	switch elf.Class(h[elf.EI_CLASS]) {
	case elf.ELFCLASS32:
		wantSize = elfSectionSize32
		e.tableAt, e.names = uint64(e.order.Uint32(h[32:])), e.order.Uint16(h[50:])
		e.entrySize, e.count = uint64(e.order.Uint16(h[46:])), uint64(e.order.Uint16(h[48:]))
	case elf.ELFCLASS64:
		if n < elfHeaderSize64 {
			return nil, fmt.Errorf("%w: cut off within the ELF header, at %d bytes", ErrNotModule, size)
		}
		wantSize = elfSectionSize64
		e.tableAt, e.names = e.order.Uint64(h[40:]), e.order.Uint16(h[62:])
		e.entrySize, e.count = uint64(e.order.Uint16(h[58:])), uint64(e.order.Uint16(h[60:]))
	default:
		return nil, fmt.Errorf("%w: unknown ELF class %d", ErrNotModule, h[elf.EI_CLASS])
	}
	if e.tableAt == 0 {
		return nil, fmt.Errorf("%w: ELF file without sections", ErrNotModule)
	}
	if e.entrySize != wantSize {
		return nil, fmt.Errorf("%w: ELF section headers of %d bytes instead of %d", ErrNotModule, e.entrySize, wantSize)
	}
	return e, nil
}

// chunks are buffers for section headers, reused for thousands of modules.
var chunks = sync.Pool{New: func() any { return new([64 * elfSectionSize64]byte) }}

// eachSection reads the section headers, a few at a time, checks each against the size of
// the file, and calls visit. A count of 0 means that the count does not fit the ELF header
// and is in the first section header.
func (e *header) eachSection(r io.ReaderAt, visit func(i uint64, s section)) error {
	chunk := chunks.Get().(*[64 * elfSectionSize64]byte)
	defer chunks.Put(chunk)
	count := e.count
	for first := uint64(0); first < max(count, 1); {
		at := e.tableAt + first*e.entrySize
		if at < e.tableAt || at > e.size || e.size-at < e.entrySize {
			return fmt.Errorf("%w: cut off: section header %d at offset %d is beyond the end at %d", ErrNotModule, first, at,
				e.size)
		}
		n := min(max(count, 1)-first, uint64(len(chunk))/e.entrySize, (e.size-at)/e.entrySize)
		if err := readFull(r, chunk[:n*e.entrySize], int64(at)); err != nil {
			return err
		}
		for i := range n {
			s := e.decode(chunk[i*e.entrySize:])
			switch {
			case first+i == 0:
				if count == 0 {
					count = s.size // each header is checked against the size
				}
			case s.kind == elf.SHT_NULL || s.kind == elf.SHT_NOBITS:
			case s.offset > e.size || e.size-s.offset < s.size:
				return fmt.Errorf("%w: cut off: section %d (offset %d, %d bytes) reaches beyond the end at %d",
					ErrNotModule, first+i, s.offset, s.size, e.size)
			}
			visit(first+i, s)
		}
		first += n
	}
	return nil
}
