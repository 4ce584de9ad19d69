// Package vmlinux opens kernel images and reads out of them the certificates
// that the kernel was built with: those it accepts module signatures of, and
// those it was told to refuse.
//
// # Images
//
// What is read is the kernel's ELF file, vmlinux. It is given as it is, or
// compressed as a whole (as some distributions ship it), or as the payload of
// an x86 bzImage, the file called vmlinuz in /boot. A bzImage
// (Documentation/arch/x86/boot.rst) begins with real-mode code that carries the
// setup header; all numbers are little-endian:
//
//	0x1f1  u8   setup_sects, sectors of 512 bytes after the first; 0 means 4
//	0x1fe  u16  0xaa55
//	0x202       "HdrS"
//	0x206  u16  boot protocol; the payload is described from 2.08 on
//	0x248  u32  payload_offset, from the end of the setup sectors
//	0x24c  u32  payload_length
//
// The payload is the stripped vmlinux, followed by relocations where the kernel
// is relocatable, and compressed by what CONFIG_KERNEL_GZIP, _BZIP2, _LZMA, _XZ,
// _LZO, _LZ4 or _ZSTD says; its magic number tells. Kbuild appends the
// uncompressed size as a u32 (scripts/Makefile.lib, size_append). A gzip stream
// ends with that number anyway and gets no second one.
//
// # Lists
//
// certs/system_certificates.S and certs/revocation_certificates.S lay the lists
// out in the kernel's read-only data. A list is DER certificates one after the
// other; an unsigned long has 8 or 4 bytes and, like int, the target's order:
//
//	align 8  system_certificate_list:      the module signing key's certificates,
//	                                       then CONFIG_SYSTEM_TRUSTED_KEYS
//	         system_extra_cert:            CONFIG_SYSTEM_EXTRA_CERTIFICATE_SIZE bytes that
//	                                       scripts/insert-sys-cert may fill, zero until then
//	align 4  system_extra_cert_used:       int
//	align 8  system_certificate_list_size: unsigned long, the extra certificate included
//	align 8  module_cert_size:             unsigned long, the first part of the list
//
//	align 8  revocation_certificate_list:
//	align 8  revocation_certificate_list_size: unsigned long
//
// The two system_extra lines are there with CONFIG_SYSTEM_EXTRA_CERTIFICATE
// alone; module_cert_size and the revocation list came with Linux 5.13. The
// padding is zero. The kernel's loader (x509_load_certificate_list) takes
// certificates that begin with the bytes 30 82, a SEQUENCE with a length of two
// bytes; at anything else it stops and drops the rest of the list.
// CONFIG_SYSTEM_BLACKLIST_HASH_LIST becomes an array of pointers to strings,
// "tbs:" or "bin:" and a digest in lower-case hexadecimal.
//
// Addresses come from the symbol table, else from a System.map, else the lists
// are looked for by their layout ([Image.Certificates] tells how, and where it
// refuses to guess).
//
// # What it is not
//
// The package does not check certificates, does not read the initramfs, the
// UEFI variables or the MOK list, and knows no boot image of other
// architectures than x86: it names them and asks for the vmlinux. A kernel
// image is trusted input by its nature; all the same nothing in one makes the
// package panic, or take memory or time that is not proportional to the image.
package vmlinux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// Image is an opened kernel image. Its methods may be called concurrently,
// except for UseSystemMap and Close.
type Image struct {
	packing string
	elf     *kernelELF
	closer  io.Closer         // the file, when it is read from as needed
	mapped  map[string]symbol // what a System.map says
}

// Open opens a kernel image in a file. A vmlinux is read from the file as
// needed. Other images are decompressed into memory, where the kernel stays
// until the Image is no longer used; while it decompresses, the window of the
// decoder comes on top, at most as much again.
func Open(path string) (*Image, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	var im *Image
	if err == nil {
		im, err = New(file, info.Size())
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if _, inMemory := im.elf.r.(memory); inMemory {
		return im, file.Close()
	}
	im.closer = file
	return im, nil
}

// New opens a kernel image of size bytes. The Image reads r as long as it is in
// use when the image is a vmlinux; it never closes it.
func New(r io.ReaderAt, size int64) (*Image, error) {
	head := make([]byte, min(size, headSize))
	if _, err := r.ReadAt(head, 0); err != nil && err != io.EOF {
		return nil, err
	}
	f := formatOf(head)
	if f == nil {
		return nil, errors.New("not a kernel image: give a vmlinux, or an x86 vmlinuz")
	}
	im := &Image{packing: f.name}
	if f.unpack != nil {
		kernel, packing, err := f.unpack(r, size, head)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		im.packing = packing
		r, size = kernel, int64(len(kernel))
	}
	if f.refuse != "" {
		return nil, fmt.Errorf("%s, which this version does not read: %s", f.name, f.refuse)
	}
	var err error
	if im.elf, err = newELF(r, size); err != nil {
		return nil, fmt.Errorf("%s: %w", im.packing, err)
	}
	return im, nil
}

// Close closes the file that Open opened.
func (im *Image) Close() error {
	if im.closer == nil {
		return nil
	}
	closer := im.closer
	im.closer = nil
	return closer.Close()
}

// Packing says for people what the image is, for example "bzImage, zstd" or
// "vmlinux".
func (im *Image) Packing() string { return im.packing }

// format is a kind of file that holds a kernel, known by its beginning.
type format struct {
	name   string
	match  func(head []byte) bool
	unpack func(r io.ReaderAt, size int64, head []byte) (kernel memory, packing string, err error)
	refuse string // what to do instead, for what is known but not read
}

// headSize is how much of a file the formats look at, in bytes.
const headSize = 0x10010

const giveVmlinux = "give the vmlinux that it was made from"

// formatOf finds the first format that matches; order matters where one kind of
// file is a special case of another (all EFI images begin with MZ).
func formatOf(head []byte) *format {
	at := func(offset int, magic string) func([]byte) bool {
		return func(head []byte) bool {
			return len(head) >= offset && bytes.HasPrefix(head[offset:], []byte(magic))
		}
	}
	formats := []format{
		{name: "vmlinux", match: at(0, "\x7fELF")},
		{name: "bzImage", match: at(0x202, "HdrS"), unpack: unpackBzImage},
		{name: "an EFI zboot image", match: at(4, "zimg"), refuse: giveVmlinux},
		{name: "an arm64 Image", match: at(56, "ARM\x64"), refuse: giveVmlinux},
		{name: "a RISC-V Image", match: at(56, "RSC\x05"), refuse: giveVmlinux},
		{name: "a LoongArch image", match: at(56, "\xcd\x23\x82\x81"), refuse: giveVmlinux},
		{name: "an arm zImage", match: at(0x24, "\x18\x28\x6f\x01"), refuse: giveVmlinux},
		{name: "an s390 image", match: at(0x10008, "S390EP"), refuse: giveVmlinux},
		{name: "a U-Boot uImage", match: at(0, "\x27\x05\x19\x56"), refuse: giveVmlinux},
		{name: "a U-Boot FIT image", match: at(0, "\xd0\x0d\xfe\xed"), refuse: giveVmlinux},
		{name: "an EFI program that is not a kernel (a unified kernel image?)", match: at(0, "MZ"),
			refuse: "give its kernel (objcopy -O binary --only-section=.linux), or the vmlinux"},
	}
	for _, c := range compressions() {
		formats = append(formats, format{name: "vmlinux, " + c.name, match: at(0, c.magic), unpack: unpackWhole})
	}
	for i := range formats {
		if formats[i].match(head) {
			return &formats[i]
		}
	}
	return nil
}

// unpackWhole decompresses a compressed file whole; what it holds must be a
// vmlinux.
func unpackWhole(r io.ReaderAt, size int64, head []byte) (memory, string, error) {
	c := compressionOf(head)
	kernel, err := c.decompress(io.NewSectionReader(r, 0, size), -1)
	if err != nil {
		return nil, "", err
	}
	inner := formatOf(kernel[:min(len(kernel), headSize)])
	switch {
	case inner == nil:
		return nil, "", errors.New("what was compressed is not a kernel image")
	case inner.refuse != "":
		return nil, "", fmt.Errorf("it holds %s, which this version does not read: %s", inner.name, inner.refuse)
	case inner.unpack != nil:
		return nil, "", fmt.Errorf("it holds %s: decompress it first", inner.name)
	}
	return kernel, inner.name + ", " + c.name, nil
}

// unpackBzImage decompresses the payload of an x86 boot image.
func unpackBzImage(r io.ReaderAt, size int64, head []byte) (memory, string, error) {
	if len(head) < 0x250 || binary.LittleEndian.Uint16(head[0x1fe:]) != 0xaa55 {
		return nil, "", errors.New("the boot sector's signature is missing: cut short?")
	}
	if protocol := binary.LittleEndian.Uint16(head[0x206:]); protocol < 0x208 {
		return nil, "", fmt.Errorf("boot protocol %d.%02d (a kernel before 2.6.26) does not say where the kernel lies: %s",
			protocol>>8, protocol&0xff, giveVmlinux)
	}
	sectors := int64(head[0x1f1])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*512 + int64(binary.LittleEndian.Uint32(head[0x248:]))
	length := int64(binary.LittleEndian.Uint32(head[0x24c:]))
	if start > size || length > size-start {
		return nil, "", fmt.Errorf("the payload, %d bytes at offset %d, reaches beyond the end of the file (%d bytes): cut short?", length, start, size)
	}
	if length < 16 {
		return nil, "", fmt.Errorf("a payload of %d bytes holds no kernel", length)
	}

	// The payload's first bytes tell its compression, its last four what comes out.
	magic, tail := make([]byte, 16), make([]byte, 4)
	if _, err := r.ReadAt(magic, start); err != nil {
		return nil, "", err
	}
	if _, err := r.ReadAt(tail, start+length-4); err != nil && err != io.EOF {
		return nil, "", err
	}
	if bytes.HasPrefix(magic, []byte("\x7fELF")) {
		kernel, err := readExactly(io.NewSectionReader(r, start, length), length)
		return kernel, "bzImage, not compressed", err
	}
	c := compressionOf(magic)
	if c == nil {
		return nil, "", fmt.Errorf("the payload at offset %d begins with % x: neither an ELF file nor a compression that the kernel knows", start, magic[:8])
	}
	if !c.sized {
		length -= 4
	}
	kernel, err := c.decompress(io.NewSectionReader(r, start, length), int64(binary.LittleEndian.Uint32(tail)))
	if err != nil {
		return nil, "", fmt.Errorf("%s payload at offset %d: %w", c.name, start, err)
	}
	return kernel, "bzImage, " + c.name, nil
}
