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
	var h [elfHeaderSize64]byte
	n := min(size, int64(len(h)))
	if err := readFull(r, h[:n], 0); err != nil {
		return err
	}
	switch {
	case size == 0:
		return fmt.Errorf("%w: file is empty", ErrNotModule)
	case string(h[:min(n, 4)]) != elf.ELFMAG[:min(n, 4)]:
		return fmt.Errorf("%w: not an ELF file", ErrNotModule)
	case n < elfHeaderSize32:
		return fmt.Errorf("%w: cut off within the ELF header, at %d bytes", ErrNotModule, size)
	}

	var order binary.ByteOrder = binary.LittleEndian
	switch elf.Data(h[elf.EI_DATA]) {
	case elf.ELFDATA2LSB:
	case elf.ELFDATA2MSB:
		order = binary.BigEndian
	default:
		return fmt.Errorf("%w: unknown ELF byte order %d", ErrNotModule, h[elf.EI_DATA])
	}
	if t := elf.Type(order.Uint16(h[16:])); t != elf.ET_REL {
		return fmt.Errorf("%w: ELF type %v instead of a relocatable object (ET_REL)", ErrNotModule, t)
	}

	var tableAt uint64
	var entrySize, wantSize, count uint64
	switch elf.Class(h[elf.EI_CLASS]) {
	case elf.ELFCLASS32:
		tableAt = uint64(order.Uint32(h[32:]))
		entrySize, count, wantSize = uint64(order.Uint16(h[46:])), uint64(order.Uint16(h[48:])), elfSectionSize32
	case elf.ELFCLASS64:
		if n < elfHeaderSize64 {
			return fmt.Errorf("%w: cut off within the ELF header, at %d bytes", ErrNotModule, size)
		}
		tableAt = order.Uint64(h[40:])
		entrySize, count, wantSize = uint64(order.Uint16(h[58:])), uint64(order.Uint16(h[60:])), elfSectionSize64
	default:
		return fmt.Errorf("%w: unknown ELF class %d", ErrNotModule, h[elf.EI_CLASS])
	}
	if tableAt == 0 {
		return fmt.Errorf("%w: ELF file without sections", ErrNotModule)
	}
	if entrySize != wantSize {
		return fmt.Errorf("%w: ELF section headers of %d bytes instead of %d", ErrNotModule, entrySize, wantSize)
	}
	return checkSections(r, uint64(size), order, tableAt, entrySize, count)
}

// chunks are buffers for section headers, reused for thousands of modules.
var chunks = sync.Pool{New: func() any { return new([64 * elfSectionSize64]byte) }}

// checkSections checks the section headers, a few at a time. A count of 0 means that
// the count does not fit the ELF header and is in the first section header.
func checkSections(r io.ReaderAt, size uint64, order binary.ByteOrder, tableAt, entrySize, count uint64) error {
	chunk := chunks.Get().(*[64 * elfSectionSize64]byte)
	defer chunks.Put(chunk)
	for first := uint64(0); first < max(count, 1); {
		at := tableAt + first*entrySize
		if at < tableAt || at > size || size-at < entrySize {
			return fmt.Errorf("%w: cut off: section header %d at offset %d is beyond the end at %d", ErrNotModule, first, at,
				size)
		}
		n := min(max(count, 1)-first, uint64(len(chunk))/entrySize, (size-at)/entrySize)
		if err := readFull(r, chunk[:n*entrySize], int64(at)); err != nil {
			return err
		}
		for i := range n {
			s := chunk[i*entrySize:]
			kind := elf.SectionType(order.Uint32(s[4:]))
			var offset, length uint64
			if entrySize == elfSectionSize32 {
				offset, length = uint64(order.Uint32(s[16:])), uint64(order.Uint32(s[20:]))
			} else {
				offset, length = order.Uint64(s[24:]), order.Uint64(s[32:])
			}
			if first+i == 0 {
				if count == 0 {
					count = length // each header is checked against the size
				}
				continue
			}
			if kind == elf.SHT_NULL || kind == elf.SHT_NOBITS {
				continue
			}
			if offset > size || size-offset < length {
				return fmt.Errorf("%w: cut off: section %d (offset %d, %d bytes) reaches beyond the end at %d",
					ErrNotModule, first+i, offset, length, size)
			}
		}
		first += n
	}
	return nil
}
