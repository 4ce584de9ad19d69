package module

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
)

// Facts are what a kernel compares with itself after it has checked the signature of a
// module (kernel/module/main.c, kernel/module/version.c), and what tells how the file was
// made.
type Facts struct {
	Machine elf.Machine
	Order   binary.ByteOrder
	Wide    bool     // 64 bit
	Tags    []string // as of [Modinfo]
	BuildID []byte   // of the linker (.note.gnu.build-id), nil if there is none
	Debug   bool     // it has debug information
	Symbols int      // the number of symbol tables: the kernel wants one
	Struct  uint64   // size of struct module in it, in bytes; 0 without the section

	// Versioned tells that it has versions of symbols, perhaps none of them.
	Versioned bool
	Versions  []SymbolVersion // of the symbols that it needs, in its order
}

// SymbolVersion is the version of a symbol that a module was built for (CONFIG_MODVERSIONS).
type SymbolVersion struct {
	Name string
	CRC  uint32
}

// Limits of sections, in bytes. The largest modules need some thousand symbols.
const (
	maxVersions = 4 << 20
	maxNote     = 4 << 10
)

const (
	sectionModinfo  = ".modinfo"
	sectionStruct   = ".gnu.linkonce.this_module"
	sectionVersions = "__versions"
	sectionCRCs     = "__version_ext_crcs"
	sectionNames    = "__version_ext_names"
	sectionBuildID  = ".note.gnu.build-id"
	sectionDebug    = ".debug_info"
)

// ReadFacts reads the facts of a module of size bytes. Errors wrap [ErrNotModule]. ReadFacts
// reads only headers and small sections.
func ReadFacts(r io.ReaderAt, size int64) (*Facts, error) {
	e, err := readHeader(r, size)
	if err != nil {
		return nil, err
	}
	found, err := e.named(r, sectionModinfo, sectionStruct, sectionVersions, sectionCRCs, sectionNames, sectionBuildID,
		sectionDebug)
	if err != nil {
		return nil, err
	}
	f := &Facts{Machine: e.machine, Order: e.order, Wide: e.wide, Debug: len(found[sectionDebug]) > 0}
	if err := e.eachSection(r, func(_ uint64, s section) {
		if s.kind == elf.SHT_SYMTAB {
			f.Symbols++
		}
	}); err != nil {
		return nil, err
	}
	content := func(name string, limit uint64) []byte {
		if err != nil || len(found[name]) == 0 {
			return nil
		}
		s := found[name][0]
		if s.kind == elf.SHT_NOBITS || s.flags&uint64(elf.SHF_COMPRESSED) != 0 {
			err = fmt.Errorf("%w: section %s without plain content", ErrNotModule, name)
			return nil
		}
		b, failed := s.read(r, limit)
		if failed != nil {
			err = fmt.Errorf("%w: section %s: %w", ErrNotModule, name, failed)
		}
		return b
	}
	f.Tags = tags(content(sectionModinfo, maxModinfo))
	f.BuildID = buildID(content(sectionBuildID, maxNote), e.order)
	if crcs := content(sectionCRCs, maxVersions); crcs != nil {
		f.Versioned = true
		f.Versions = extendedVersions(crcs, content(sectionNames, maxVersions), e.order)
	} else if versions := content(sectionVersions, maxVersions); versions != nil {
		f.Versioned = true
		f.Versions = e.versions(versions)
	}
	if err != nil {
		return nil, err
	}
	if s := found[sectionStruct]; len(s) > 0 {
		f.Struct = s[0].size
	}
	return f, nil
}

// Tag returns the value of the first tag of a name, as the kernel's get_modinfo does.
func (f *Facts) Tag(name string) (value string, ok bool) {
	for _, tag := range f.Tags {
		if value, ok := strings.CutPrefix(tag, name+"="); ok {
			return value, true
		}
	}
	return "", false
}

// versions reads an array of struct modversion_info: an unsigned long, and a name that fills
// it to 64 bytes.
func (e *header) versions(b []byte) (versions []SymbolVersion) {
	const size = 64
	for ; len(b) >= size; b = b[size:] {
		crc, name := e.order.Uint32(b), b[4:size]
		if e.wide {
			crc, name = uint32(e.order.Uint64(b)), b[8:size]
		}
		text, _, _ := bytes.Cut(name, []byte{0})
		versions = append(versions, SymbolVersion{string(text), crc})
	}
	return versions
}

// extendedVersions reads the two sections of CONFIG_EXTENDED_MODVERSIONS: 32 bits for each
// symbol, and the names one after the other.
func extendedVersions(crcs, names []byte, order binary.ByteOrder) (versions []SymbolVersion) {
	for ; len(crcs) >= 4; crcs = crcs[4:] {
		name, rest, ok := bytes.Cut(names, []byte{0})
		if !ok {
			break
		}
		versions, names = append(versions, SymbolVersion{string(name), order.Uint32(crcs)}), rest
	}
	return versions
}

// buildID reads the note of the linker: lengths of name and descriptor, the type, and both.
func buildID(b []byte, order binary.ByteOrder) []byte {
	const header, owner = 12, "GNU\x00"
	if len(b) < header+len(owner) || order.Uint32(b) != uint32(len(owner)) || order.Uint32(b[8:]) != 3 ||
		string(b[header:header+len(owner)]) != owner {
		return nil
	}
	n, rest := order.Uint32(b[4:]), b[header+len(owner):]
	if n == 0 || uint64(n) > uint64(len(rest)) {
		return nil
	}
	return rest[:n:n]
}

// End returns where the ELF file of a module ends, of which size bytes are there: behind its
// last section or its section headers.
func End(r io.ReaderAt, size int64) (int64, error) {
	e, err := readHeader(r, size)
	if err != nil {
		return 0, err
	}
	var end, count uint64
	if err := e.eachSection(r, func(i uint64, s section) {
		count = i + 1
		if i > 0 && s.kind != elf.SHT_NULL && s.kind != elf.SHT_NOBITS {
			end = max(end, s.offset+s.size)
		}
	}); err != nil {
		return 0, err
	}
	return int64(max(end, e.tableAt+count*e.entrySize)), nil
}
