package vmlinux

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// target is a machine for which the tests link kernels.
type target struct {
	name   string
	prefix string   // prefix of the binutils
	as     []string // options
	ld     []string
	word   string // the assembler's unsigned long
	base   uint64
}

var targets = []target{
	{"amd64", "", []string{"--64"}, []string{"-m", "elf_x86_64"}, ".quad", 0xffffffff81000000},
	{"i386", "", []string{"--32"}, []string{"-m", "elf_i386"}, ".long", 0xc1000000},
	{"s390x", "s390x-linux-gnu-", []string{"-m64"}, []string{"-m", "elf64_s390"}, ".quad", 0x100000},
	{"s390", "s390x-linux-gnu-", []string{"-m31"}, []string{"-m", "elf_s390"}, ".long", 0x100000},
}

func (g target) tool(t testing.TB, name string) string {
	if g.prefix != "" {
		return testmod.Program(t, g.prefix+name, "binutils-s390x-linux-gnu")
	}
	return testmod.Program(t, name, "binutils")
}

// kernel describes the contents of a made kernel. The lists are concatenated
// certificates.
type kernel struct {
	module, trusted []byte
	reserve         int    // CONFIG_SYSTEM_EXTRA_CERTIFICATE_SIZE, 0 without it
	extra           []byte // as added by insert-sys-cert
	revoked         []byte
	noRevocation    bool   // without CONFIG_SYSTEM_REVOCATION_LIST
	old             bool   // before 5.13: no module_cert_size, and noRevocation
	after           string // assembler source; zeros if empty
	hashes          []string
	text            []byte
}

// source returns the kernel's assembler source. The lists are in the order of
// certs/Makefile, with the blacklist between them.
func (k kernel) source(t testing.TB, dir string, g target) string {
	var s strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&s, format+"\n", args...) }
	blobs := 0
	blob := func(b []byte) {
		if len(b) == 0 {
			return
		}
		name := filepath.Join(dir, fmt.Sprintf("blob%d", blobs))
		blobs++
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
		line(".incbin %q", name)
	}
	object := func(boundary int, name string) {
		line(".balign %d", boundary)
		line(".globl %s", name)
		line(".type %s, @object", name)
		line("%s:", name)
	}

	line(".section .text, \"ax\"")
	line(".globl _start\n_start: .long 0")
	blob(k.text)
	line(".section .rodata, \"a\"")
	line(".asciz \"Loading compiled-in X.509 certificates\\n\"")
	if !k.noRevocation && !k.old {
		line(".asciz \"\\0015Loading compiled-in revocation X.509 certificates\\n\"")
	}
	for i, hash := range k.hashes {
		line("hash%d: .asciz %q", i, hash)
	}

	line(".section .init.rodata, \"a\"")
	line(".balign 16\n.byte 1,2,3")
	object(8, symList)
	line("__cert_list_start:")
	blob(k.module)
	line("__module_cert_end:")
	blob(k.trusted)
	line("__cert_list_end:")
	if k.reserve > 0 {
		line(".globl %s\n.type %[1]s, @object\n%[1]s:", symExtra)
		blob(k.extra)
		line(".fill %d, 1, 0", k.reserve-len(k.extra))
		line(".size %s, %d", symExtra, k.reserve)
		object(4, symExtraUsed)
		line(".long %d", len(k.extra))
	}
	object(8, symListSize)
	line("%s __cert_list_end - __cert_list_start + %d", g.word, len(k.extra))
	if !k.old {
		object(8, symModuleSize)
		line("%s __module_cert_end - __cert_list_start", g.word)
		object(8, "blacklist_hashes")
		for i := range k.hashes {
			line("%s hash%d", g.word, i)
		}
		line("%s 0", g.word)
	}
	if !k.noRevocation && !k.old {
		object(8, symRevoked)
		line("__revocation_list_start:")
		blob(k.revoked)
		line("__revocation_list_end:")
		object(8, symRevokedSize)
		line("%s __revocation_list_end - __revocation_list_start", g.word)
	}
	line(".balign 8\n%s", cmp.Or(k.after, ".fill 16, 1, 0"))
	return s.String()
}

// layout is a linker script that, like the kernel's, places the lists in .init.data.
const layout = `SECTIONS {
	. = BASE;
	.text : { *(.text) }
	. = ALIGN(4096);
	.rodata : { *(.rodata) }
	. = ALIGN(4096);
	.init.data : { LONG(0) *(.init.data) *(.init.rodata) }
	.bss : { . = . + 64; }
	/DISCARD/ : { *(.note.*) }
}
`

// link assembles and links a kernel. It returns the vmlinux, the same without symbols,
// and its System.map.
func (k kernel) link(t testing.TB, g target) (vmlinux, stripped, systemMap string) {
	t.Helper()
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	for name, content := range map[string]string{
		"kernel.S":   k.source(t, dir, g),
		"kernel.lds": strings.ReplaceAll(layout, "BASE", fmt.Sprintf("%#x", g.base)),
	} {
		if err := os.WriteFile(file(name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	vmlinux, stripped, systemMap = file("vmlinux"), file("vmlinux.bin"), file("System.map")
	testmod.Run(t, g.tool(t, "as"), append(g.as, "-o", file("kernel.o"), file("kernel.S"))...)
	testmod.Run(t, g.tool(t, "ld"), append(g.ld, "--no-warn-rwx-segments", "-T", file("kernel.lds"), "-o", vmlinux,
		file("kernel.o"))...)
	testmod.Run(t, g.tool(t, "objcopy"), "-R", ".comment", "-S", vmlinux, stripped)
	symbols := testmod.Run(t, g.tool(t, "nm"), "-n", vmlinux)
	if err := os.WriteFile(systemMap, symbols, 0o644); err != nil {
		t.Fatal(err)
	}
	return vmlinux, stripped, systemMap
}

// certOf returns the DER certificate of a throwaway key.
func certOf(t testing.TB, algorithm string) []byte {
	return testmod.NewKey(t, algorithm).Certificate.Raw
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// makeELF returns an ELF file that loads data at an address.
func makeELF(order binary.ByteOrder, wide bool, addr uint64, data []byte) []byte {
	ident := [elf.EI_NIDENT]byte{0: 0x7f, 1: 'E', 2: 'L', 3: 'F', elf.EI_CLASS: byte(elf.ELFCLASS32),
		elf.EI_DATA: byte(elf.ELFDATA2LSB), elf.EI_VERSION: 1}
	if order == binary.BigEndian {
		ident[elf.EI_DATA] = byte(elf.ELFDATA2MSB)
	}
	var b bytes.Buffer
	if wide {
		ident[elf.EI_CLASS] = byte(elf.ELFCLASS64)
		binary.Write(&b, order, elf.Header64{Ident: ident, Type: uint16(elf.ET_EXEC), Version: 1, Phoff: 64, Phentsize: 56,
			Phnum: 1})
		binary.Write(&b, order, elf.Prog64{Type: uint32(elf.PT_LOAD), Off: 120, Vaddr: addr, Filesz: uint64(len(data)),
			Memsz: uint64(len(data))})
	} else {
		binary.Write(&b, order, elf.Header32{Ident: ident, Type: uint16(elf.ET_EXEC), Version: 1, Phoff: 52, Phentsize: 32,
			Phnum: 1})
		binary.Write(&b, order, elf.Prog32{Type: uint32(elf.PT_LOAD), Off: 84, Vaddr: uint32(addr), Filesz: uint32(len(data)),
			Memsz: uint32(len(data))})
	}
	b.Write(data)
	return b.Bytes()
}

// makeBzImage puts a payload after a made-up setup header.
func makeBzImage(payload []byte) []byte {
	head := make([]byte, 0x400)
	head[0x1f1] = 1
	binary.LittleEndian.PutUint16(head[0x1fe:], 0xaa55)
	copy(head[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(head[0x206:], 0x20f)
	binary.LittleEndian.PutUint32(head[0x248:], 0)
	binary.LittleEndian.PutUint32(head[0x24c:], uint32(len(payload)))
	return append(head, payload...)
}

func withSize(stream []byte, size int) []byte {
	return binary.LittleEndian.AppendUint32(bytes.Clone(stream), uint32(size))
}
