// Package pe finds the sections of PE files, such as EFI boot images and unified kernel images.
package pe

import (
	"bytes"
	"encoding/binary"
	"io"
)

// Section is a section of a PE file.
type Section struct {
	Name      string
	Off, Size int64 // in the file, without padding; they may lie beyond its end
}

// Sections reads the headers of a PE file (Microsoft's specification "PE Format"): at 0x3c the
// offset of "PE\0\0", then a file header of 20 bytes, an optional header whose size is in it,
// and section headers of 40 bytes. The machine is 0 if r is no PE file. Headers beyond the end
// of r count as none.
func Sections(r io.ReaderAt) (machine uint16, sections []Section) {
	var dos [0x40]byte
	if n, _ := r.ReadAt(dos[:], 0); n < len(dos) || string(dos[:2]) != "MZ" {
		return 0, nil
	}
	at := int64(binary.LittleEndian.Uint32(dos[0x3c:]))
	var file [24]byte
	if n, _ := r.ReadAt(file[:], at); n < len(file) || string(file[:4]) != "PE\x00\x00" {
		return 0, nil
	}
	machine = binary.LittleEndian.Uint16(file[4:])
	const header = 40
	table := make([]byte, header*int(binary.LittleEndian.Uint16(file[6:])))
	n, _ := r.ReadAt(table, at+int64(len(file))+int64(binary.LittleEndian.Uint16(file[20:])))
	for b := table[:n/header*header]; len(b) > 0; b = b[header:] {
		name, _, _ := bytes.Cut(b[:8], []byte{0})
		// The file may hold less than is loaded, or padding after it.
		size := binary.LittleEndian.Uint32(b[16:])
		if virtual := binary.LittleEndian.Uint32(b[8:]); virtual != 0 {
			size = min(size, virtual)
		}
		sections = append(sections, Section{string(name), int64(binary.LittleEndian.Uint32(b[20:])), int64(size)})
	}
	return machine, sections
}
