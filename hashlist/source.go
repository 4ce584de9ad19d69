package hashlist

import (
	"encoding/binary"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/modsign/modsign/internal/atomicfile"
)

// WriteSection writes the content of the section to a file.
func (e *Embedded) WriteSection(path string, order binary.AppendByteOrder) error {
	switch {
	case e == nil:
		return errNoHashes
	case order == nil:
		return errNoOrder
	}
	return atomicfile.WriteOutput(path, e.Append(nil, order), false)
}

// IsSource reports whether [Embedded.WriteSource] accepts a file name: it ends in .c (C),
// .S or .s (assembler).
func IsSource(path string) bool {
	ext := filepath.Ext(path)
	return ext == ".c" || ext == ".S" || ext == ".s"
}

// WriteSource writes a source file that puts the hashes into a kernel when it is linked.
// The name of the file decides its language: see [IsSource]. C code includes
// linux/module_hashes.h of the patch for CONFIG_MODULE_HASHES.
func (e *Embedded) WriteSource(path string) error {
	switch {
	case e == nil:
		return errNoHashes
	case !IsSource(path):
		return fmt.Errorf("%s: the file name must end in .c (C), .S or .s (assembler)", path)
	}
	text := e.assembly()
	if filepath.Ext(path) == ".c" {
		text = e.c()
	}
	return atomicfile.WriteOutput(path, []byte(text), false)
}

func (e *Embedded) c() string {
	var b strings.Builder
	b.WriteString("/* Made by modsign hashlist. */\n#include <linux/module_hashes.h>\n\n")
	if e.Root != nil {
		fmt.Fprintf(&b, "const struct module_hashes_root module_hashes_root __section(%q) = {\n"+
			"\t.levels = %d,\n\t.hash = {\n%s\t},\n};\n",
			SectionName, e.Root.Levels, byteRows("\t\t", e.Root.Hash[:], ",\n"))
	} else {
		fmt.Fprintf(&b, "const u8 module_hashes[%d][%d] __section(%q) = {\n", len(e.Hashes), len(Hash{}), SectionName)
		for _, h := range e.Hashes {
			fmt.Fprintf(&b, "\t{\n%s\t},\n", byteRows("\t\t", h[:], ",\n"))
		}
		b.WriteString("};\n")
	}
	return b.String()
}

func (e *Embedded) assembly() string {
	var b strings.Builder
	fmt.Fprintf(&b, "/* Made by modsign hashlist. */\n\t.section %s, \"a\"\n\t.balign 8\n", SectionName)
	if e.Root != nil {
		fmt.Fprintf(&b, "\t.globl module_hashes_root\nmodule_hashes_root:\n\t.long %d\n%s", e.Root.Levels,
			byteRows("\t.byte ", e.Root.Hash[:], "\n"))
	} else {
		b.WriteString("\t.globl module_hashes\nmodule_hashes:\n")
		for _, h := range e.Hashes {
			b.WriteString(byteRows("\t.byte ", h[:], "\n"))
		}
	}
	return b.String()
}

// byteRows formats bytes as source, eight in a row.
func byteRows(before string, bytes []byte, after string) string {
	var b strings.Builder
	for i, c := range bytes {
		switch i % 8 {
		case 0:
			b.WriteString(before)
		default:
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "0x%02x", c)
		if i%8 == 7 {
			b.WriteString(after)
		}
	}
	return b.String()
}
