// Package vmlinux opens kernel images and reads the certificates that are built into
// them: those whose module signatures the kernel accepts, and those that it rejects.
//
// Call [Open] and then [Image.Certificates].
//
// # Images
//
// The package reads the kernel's ELF file, vmlinux. The file may be plain, compressed
// as a whole (as some distributions ship it), or the payload of an x86 bzImage, the
// file called vmlinuz in /boot. A bzImage (Documentation/arch/x86/boot.rst) begins with
// real-mode code that contains the setup header; all numbers are little-endian:
//
//	0x1f1  u8   setup_sects, sectors of 512 bytes after the first; 0 means 4
//	0x1fe  u16  0xaa55
//	0x202       "HdrS"
//	0x206  u16  boot protocol; the payload is described from 2.08 on
//	0x248  u32  payload_offset, from the end of the setup sectors
//	0x24c  u32  payload_length
//
// The payload is the stripped vmlinux, followed by relocations if the kernel is
// relocatable. It is compressed as CONFIG_KERNEL_GZIP, _BZIP2, _LZMA, _XZ, _LZO, _LZ4
// or _ZSTD selects; its magic number identifies the format. Kbuild appends the
// uncompressed size as a u32 (scripts/Makefile.lib, size_append). A gzip stream already
// ends with that number and gets no second one.
//
// # Lists
//
// certs/system_certificates.S and certs/revocation_certificates.S define the lists in
// the kernel's read-only data. A list is concatenated DER certificates. An unsigned
// long has 8 or 4 bytes and, like int, the target's byte order:
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
// The two system_extra lines exist only with CONFIG_SYSTEM_EXTRA_CERTIFICATE.
// module_cert_size and the revocation list exist since Linux 5.13. The padding is zero.
// The kernel's loader (x509_load_certificate_list) accepts certificates that begin with
// the bytes 30 82, a SEQUENCE with a length of two bytes. At anything else it stops and
// drops the rest of the list. CONFIG_SYSTEM_BLACKLIST_HASH_LIST becomes an array of
// pointers to strings, "tbs:" or "bin:" and a digest in lower-case hexadecimal.
//
// Addresses come from the symbol table, else from a System.map, else from a search for
// the layout of the lists; see [Image.Certificates].
//
// # What the package does not do
//
// The package does not check certificates, and does not read the initramfs, the UEFI
// variables or the MOK list. It detects boot images of other architectures than x86,
// and its error asks for the vmlinux. A kernel image is trusted input. Still, no image
// makes the package panic, or take time or memory that is not proportional to the size
// of the image.
package vmlinux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// Image is an open kernel image. Its methods are safe for concurrent use, except
// UseSystemMap and Close.
type Image struct {
	packing string
	elf     *kernelELF
	closer  io.Closer         // the file, if it is read as needed
	mapped  map[string]symbol // symbols from a System.map
}

// Open opens the kernel image at path. It reads a vmlinux from the file as needed. It
// decompresses other images into memory, where the kernel stays while the Image is in
// use. Decompression also needs the window of the decoder, at most as much memory
// again.
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

// New opens a kernel image of size bytes. If the image is a vmlinux, the Image reads r
// as long as it is in use. It never closes r.
func New(r io.ReaderAt, size int64) (*Image, error) {
	head := make([]byte, min(size, headSize))
	if _, err := r.ReadAt(head, 0); err != nil && err != io.EOF {
		return nil, err
	}
	f := formatOf(head)
	if f == nil {
		return nil, errors.New("not a kernel image: use a vmlinux, or an x86 vmlinuz")
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
		return nil, fmt.Errorf("%s is not supported: %s", f.name, f.refuse)
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

// Packing describes the kind of the image, for example "bzImage, zstd" or "vmlinux".
func (im *Image) Packing() string { return im.packing }

// format is a kind of file that contains a kernel, recognized by its first bytes.
type format struct {
	name   string
	match  func(head []byte) bool
	unpack func(r io.ReaderAt, size int64, head []byte) (kernel memory, packing string, err error)
	refuse string // what to use instead of an unsupported image; else empty
}

// headSize is the number of bytes that formats check at the beginning of a file.
const headSize = 0x10010

const giveVmlinux = "use the vmlinux that the image was made from"

// formatOf returns the first format that matches. The order matters: some formats are
// special cases of others (all EFI images begin with MZ).
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
		{name: "an EFI program that is not a kernel (perhaps a unified kernel image)", match: at(0, "MZ"),
			refuse: "use the kernel in the image (objcopy -O binary --only-section=.linux), or the vmlinux"},
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

// unpackWhole decompresses a whole compressed file, which must contain a vmlinux.
func unpackWhole(r io.ReaderAt, size int64, head []byte) (memory, string, error) {
	c := compressionOf(head)
	kernel, err := c.decompress(io.NewSectionReader(r, 0, size), -1)
	if err != nil {
		return nil, "", err
	}
	inner := formatOf(kernel[:min(len(kernel), headSize)])
	switch {
	case inner == nil:
		return nil, "", errors.New("the decompressed file is not a kernel image")
	case inner.refuse != "":
		return nil, "", fmt.Errorf("the decompressed file is %s, which is not supported: %s", inner.name, inner.refuse)
	case inner.unpack != nil:
		return nil, "", fmt.Errorf("the decompressed file is %s: decompress the outer file first", inner.name)
	}
	return kernel, inner.name + ", " + c.name, nil
}

// unpackBzImage decompresses the payload of an x86 boot image.
func unpackBzImage(r io.ReaderAt, size int64, head []byte) (memory, string, error) {
	if len(head) < 0x250 || binary.LittleEndian.Uint16(head[0x1fe:]) != 0xaa55 {
		return nil, "", errors.New("the boot sector's signature is missing; the file may be cut short")
	}
	if protocol := binary.LittleEndian.Uint16(head[0x206:]); protocol < 0x208 {
		return nil, "", fmt.Errorf("boot protocol %d.%02d (a kernel before 2.6.26) does not tell where the kernel is: %s",
			protocol>>8, protocol&0xff, giveVmlinux)
	}
	sectors := int64(head[0x1f1])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*512 + int64(binary.LittleEndian.Uint32(head[0x248:]))
	length := int64(binary.LittleEndian.Uint32(head[0x24c:]))
	if start > size || length > size-start {
		return nil, "", fmt.Errorf(
			"the payload, %d bytes at offset %d, reaches beyond the end of the file (%d bytes); the file may be cut short",
			length, start, size)
	}
	if length < 16 {
		return nil, "", fmt.Errorf("a payload of %d bytes contains no kernel", length)
	}

	// The payload's first bytes tell its compression, its last four the uncompressed
	// size.
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
		return nil, "", fmt.Errorf("the payload at offset %d begins with % x: "+
			"neither an ELF file nor a compression that the kernel supports", start, magic[:8])
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
