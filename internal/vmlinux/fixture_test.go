package vmlinux

import (
	"bytes"
	"cmp"
	"compress/gzip"
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
	flat   func(memory []byte) []byte // makes an Image of the memory, if the kernel is a flat one
}

var targets = []target{
	{"amd64", "", []string{"--64"}, []string{"-m", "elf_x86_64"}, ".quad", 0xffffffff81000000, nil},
	{"i386", "", []string{"--32"}, []string{"-m", "elf_i386"}, ".long", 0xc1000000, nil},
	{"s390x", "s390x-linux-gnu-", []string{"-m64"}, []string{"-m", "elf64_s390"}, ".quad", 0x100000, nil},
	{"s390", "s390x-linux-gnu-", []string{"-m31"}, []string{"-m", "elf_s390"}, ".long", 0x100000, nil},
	{"arm64", "aarch64-linux-gnu-", nil, nil, ".quad", 0xffff800080000000, makeArm64Image},
	{"armhf", "arm-linux-gnueabihf-", nil, nil, ".long", 0xc0008000, makeZImage},
}

func (g target) tool(t testing.TB, name string) string {
	if g.prefix != "" {
		return testmod.Program(t, g.prefix+name, "binutils-"+strings.TrimSuffix(g.prefix, "-"))
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
		line(".align %d", boundary)
		line(".globl %s", name)
		line(".type %s, %%object", name)
		line("%s:", name)
	}

	line(".section .text, \"ax\"")
	line(".globl _start\n_start: .fill %d, 1, 0", headRoom)
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
		line(".globl %s\n.type %[1]s, %%object\n%[1]s:", symExtra)
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
		line(".balign 8\nblacklist_hashes:")
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
	line(".align 8\n%s", cmp.Or(k.after, ".fill 16, 1, 0"))
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
	if g.flat == nil {
		testmod.Run(t, g.tool(t, "objcopy"), "-R", ".comment", "-S", vmlinux, stripped)
	} else {
		testmod.Run(t, g.tool(t, "objcopy"), "-O", "binary", "-R", ".comment", "-S", vmlinux, stripped)
		memory, err := os.ReadFile(stripped)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(stripped, g.flat(memory), 0o644); err != nil {
			t.Fatal(err)
		}
	}
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
		binary.Write(&b, order, elf.Header64{Ident: ident, Type: uint16(elf.ET_EXEC),
			Machine: uint16(elf.EM_X86_64), Version: 1,
			Phoff: 64, Phentsize: 56,
			Phnum: 1})
		binary.Write(&b, order, elf.Prog64{Type: uint32(elf.PT_LOAD), Off: 120, Vaddr: addr, Filesz: uint64(len(data)),
			Memsz: uint64(len(data))})
	} else {
		binary.Write(&b, order, elf.Header32{Ident: ident, Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_386), Version: 1,
			Phoff: 52, Phentsize: 32,
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

// headRoom is the length of zeros at the beginning of a flat binary, for a header.
const headRoom = 256

// Makers of an Image of a flat binary.
func makeArm64Image(memory []byte) []byte { return makeImage(memory, "ARM\x64", 0xaa64) }
func makeLoongArch(memory []byte) []byte  { return makeImage(memory, "\xcd\x23\x82\x81", 0x6264) }
func makeRISCV32(memory []byte) []byte    { return makeImage(memory, "RSC\x05", machineRISCV32) }

func makeImage(memory []byte, magic string, machine uint16) []byte {
	image := bytes.Clone(memory)
	copy(image, makePE(machine, []string{".text"}, nil)[:0x80+24+40])
	binary.LittleEndian.PutUint32(image[0x80+24+16:], uint32(len(image)))
	binary.LittleEndian.PutUint32(image[0x80+24+20:], 0)
	copy(image[56:], magic)
	return image
}

// makeZImage puts a flat binary into an arm zImage.
func makeZImage(memory []byte) []byte { return makeZImageOf(gzipOf(memory), binary.LittleEndian) }

func makeZImageOf(payload []byte, order binary.ByteOrder) []byte {
	const table, code = 0x44, "\x1f\x8b\x08\x00 and other things that begin no stream"
	words := []uint32{0x24 / 4: 0x016f2818, 0x30 / 4: 0x04030201, 0x34 / 4: 0x45454545, 0x38 / 4: table,
		table / 4: 6, table/4 + 1: 0x5a534c4b, table/4 + 2: table + 28 + uint32(len(code)+len(payload)) - 4, table/4 + 6: 0}
	var image []byte
	for _, word := range words {
		image, _ = binary.Append(image, order, word)
	}
	return join(image, []byte(code), payload, make([]byte, 512))
}

// makeS390 puts a payload into an s390 bzImage.
func makeS390(payload []byte) []byte {
	image := make([]byte, 0x11800)
	copy(image[0x10008:], "S390EP")
	image = append(image, payload...)
	image = append(image, make([]byte, 4096-(len(image)+8)%4096)...)
	return append(image, s390Trailer...)
}

// makePE makes a PE file for a machine whose sections follow its header.
func makePE(machine uint16, names []string, contents ...[]byte) []byte {
	const at = 0x80
	head := make([]byte, at+24+40*len(names))
	copy(head, "MZ")
	head[0x3c] = at
	copy(head[at:], "PE\x00\x00")
	binary.LittleEndian.PutUint16(head[at+4:], machine)
	binary.LittleEndian.PutUint16(head[at+6:], uint16(len(names)))
	off := len(head)
	for i, name := range names {
		b := head[at+24+40*i:]
		copy(b, name)
		binary.LittleEndian.PutUint32(b[8:], uint32(len(contents[i])))
		binary.LittleEndian.PutUint32(b[16:], uint32(len(contents[i])))
		binary.LittleEndian.PutUint32(b[20:], uint32(off))
		off += len(contents[i])
	}
	return append(head, join(contents...)...)
}

// makeZboot puts the stream of an Image into an EFI zboot image.
func makeZboot(stream []byte) []byte {
	image := makePE(0xaa64, []string{".text"}, stream)
	copy(image[4:], "zimg")
	binary.LittleEndian.PutUint32(image[8:], uint32(len(image)-len(stream)))
	binary.LittleEndian.PutUint32(image[12:], uint32(len(stream)))
	copy(image[56:], "\xcd\x23\x82\x81")
	return append(image, "size"...)
}

// makeUKI puts a kernel into a unified kernel image.
func makeUKI(kernel []byte) []byte {
	return makePE(0x8664, []string{".text", ".osrel", ".linux", ".initrd"}, []byte("stub"), []byte("ID=none"), kernel,
		[]byte("070701"))
}

// makePowerpc puts a vmlinux, which may be compressed, into a powerpc zImage.
func makePowerpc(payload []byte) []byte {
	const names = "\x00.kernel:vmlinux.strip\x00.shstrtab\x00"
	image := makeELF(binary.LittleEndian, true, 0x4000000, join(payload, []byte(names)))
	start := uint64(len(image) - len(payload) - len(names))
	end := uint64(len(image))
	for _, s := range []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: start, Size: uint64(len(payload))},
		{Name: 23, Type: uint32(elf.SHT_STRTAB), Off: start + uint64(len(payload)), Size: uint64(len(names))},
	} {
		image, _ = binary.Append(image, binary.LittleEndian, s)
	}
	binary.LittleEndian.PutUint64(image[40:], end)
	for at, value := range map[int]uint16{18: uint16(elf.EM_PPC64), 58: 64, 60: 3, 62: 2} {
		binary.LittleEndian.PutUint16(image[at:], value)
	}
	return image
}

func gzipOf(data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(data)
	w.Close()
	return b.Bytes()
}

func withSize(stream []byte, size int) []byte {
	return binary.LittleEndian.AppendUint32(bytes.Clone(stream), uint32(size))
}
