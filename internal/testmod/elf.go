package testmod

import (
	"debug/elf"
	"encoding/binary"
	"io/fs"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// ELF is a small module-shaped ELF file: relocatable, 64 bit, little endian.
func ELF() []byte { return ELFOf(64, binary.LittleEndian) }

// ByteOrder is binary.LittleEndian or binary.BigEndian.
type ByteOrder interface {
	binary.ByteOrder
	binary.AppendByteOrder
}

// ELFOf is a relocatable ELF file of 32 or 64 bit with the sections .text,
// .modinfo, .bss and .shstrtab. Its section headers come last, so that it cannot
// be cut off anywhere without loss.
func ELFOf(class int, order ByteOrder) []byte {
	names := "\x00.text\x00.modinfo\x00.bss\x00.shstrtab\x00"
	headerSize, sectionSize := 64, 64
	if class == 32 {
		headerSize, sectionSize = 52, 40
	}
	type section struct {
		name string
		kind elf.SectionType
		data string
		size int // where there is no data
	}
	sections := []section{
		{"", elf.SHT_NULL, "", 0},
		{".text", elf.SHT_PROGBITS, strings.Repeat("\xc3", 48), 0},
		{".modinfo", elf.SHT_PROGBITS, "license=GPL\x00name=made\x00vermagic=6.12.0 SMP \x00", 0},
		{".bss", elf.SHT_NOBITS, "", 4096},
		{".shstrtab", elf.SHT_STRTAB, names, 0},
	}
	var body []byte
	var table []byte
	// word is an address or a length: 4 or 8 bytes.
	word := func(b []byte, v int) []byte {
		if class == 32 {
			return order.AppendUint32(b, uint32(v))
		}
		return order.AppendUint64(b, uint64(v))
	}
	for _, s := range sections {
		at, size := headerSize+len(body), s.size
		if s.data != "" {
			body, size = append(body, s.data...), len(s.data)
		}
		if s.kind == elf.SHT_NULL {
			at = 0
		}
		table = order.AppendUint32(table, uint32(strings.Index(names, s.name+"\x00")))
		table = order.AppendUint32(table, uint32(s.kind))
		table = word(word(word(word(table, 0), 0), at), size) // flags, address, offset, size
		table = order.AppendUint32(order.AppendUint32(table, 0), 0)
		table = word(word(table, 1), 0)
	}
	ident := [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)}
	machine := elf.EM_X86_64
	if class == 32 {
		ident[elf.EI_CLASS], machine = byte(elf.ELFCLASS32), elf.EM_ARM
	}
	if order == ByteOrder(binary.BigEndian) {
		ident[elf.EI_DATA], machine = byte(elf.ELFDATA2MSB), elf.EM_S390
	}
	b := slices.Clone(ident[:])
	b = order.AppendUint16(b, uint16(elf.ET_REL))
	b = order.AppendUint16(b, uint16(machine))
	b = order.AppendUint32(b, uint32(elf.EV_CURRENT))
	b = word(word(word(b, 0), 0), headerSize+len(body)) // entry, program headers, section headers
	b = order.AppendUint32(b, 0)
	for _, v := range []int{headerSize, 0, 0, sectionSize, len(sections), len(sections) - 1} {
		b = order.AppendUint16(b, uint16(v))
	}
	return slices.Concat(b, body, table)
}

// Testdata returns the paths of the repository's own modules, every one of
// testdata/modules.
func Testdata(t testing.TB) []string {
	t.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("no caller")
	}
	var found []string
	err := filepath.WalkDir(
		filepath.Join(filepath.Dir(file), "../../testdata/modules"),
		func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && strings.Contains(d.Name(), ".ko") {
				found = append(found, path)
			}
			return err
		},
	)
	if err != nil || len(found) == 0 {
		t.Fatalf("no modules in testdata/modules (%v)", err)
	}
	return found
}
