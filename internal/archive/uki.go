package archive

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
)

// A PE section, as its table has it.
type peSection struct {
	name     string
	at, size int64 // in the file
}

// peSections returns the sections of a PE file (the PE format, "Section Table"), or nil if it
// is none. At 0x3c is the offset of "PE\0\0", the COFF header of 20 bytes follows: at 2 the
// number of sections, at 16 the size of the optional header, which follows. Then come 40
// bytes for each section: the name in 8, the size in memory, the address, the size and the
// offset in the file.
func peSections(r io.ReaderAt, head []byte) []peSection {
	if len(head) < 0x40 || string(head[:2]) != "MZ" {
		return nil
	}
	at := int64(binary.LittleEndian.Uint32(head[0x3c:]))
	var coff [24]byte
	if _, err := r.ReadAt(coff[:], at); err != nil || string(coff[:4]) != "PE\x00\x00" {
		return nil
	}
	n, optional := int(binary.LittleEndian.Uint16(coff[6:])), int64(binary.LittleEndian.Uint16(coff[20:]))
	table := make([]byte, 40*n)
	if _, err := r.ReadAt(table, at+int64(len(coff))+optional); err != nil && err != io.EOF {
		return nil
	}
	var sections []peSection
	for ; len(table) > 0; table = table[40:] {
		s := peSection{name: strings.TrimRight(string(table[:8]), "\x00")}
		inMemory, inFile := binary.LittleEndian.Uint32(table[8:]), binary.LittleEndian.Uint32(table[16:])
		s.at, s.size = int64(binary.LittleEndian.Uint32(table[20:])), int64(inFile)
		if inMemory > 0 { // without the padding in the file
			s.size = min(s.size, int64(inMemory))
		}
		sections = append(sections, s)
	}
	return sections
}

func isUKI(r io.ReaderAt, head []byte) bool {
	for _, s := range peSections(r, head) {
		if s.name == ".linux" {
			return true
		}
	}
	return false
}

// uki reads a unified kernel image.
func (w *walk) uki(section *io.SectionReader) error {
	head := make([]byte, min(section.Size(), headSize))
	if _, err := section.ReadAt(head, 0); err != nil && err != io.EOF {
		return err
	}
	for _, s := range peSections(section, head) {
		if s.name != ".linux" && s.name != ".initrd" && s.name != ".ucode" {
			continue
		}
		if s.at > section.Size() || s.size > section.Size()-s.at {
			return fmt.Errorf("section %s of %d bytes at byte %d is cut off: %w", s.name, s.size, s.at, io.ErrUnexpectedEOF)
		}
		content := io.NewSectionReader(section, s.at, s.size)
		if s.name == ".linux" {
			if err := w.emit(&File{Name: s.name, Mode: 0o644, Size: s.size, content: content}); err != nil {
				return err
			}
			continue
		}
		if err := w.initramfs(content); err != nil {
			return fmt.Errorf("section %s: %w", s.name, err)
		}
	}
	return nil
}
