// Package vmlinux opens kernel images and reads the certificates that are built into
// them: those whose module signatures the kernel accepts, and those that it rejects.
//
// Call [Open] and then [Image.Certificates].
//
// # Images
//
// The package reads the kernel's ELF file, vmlinux, or the flat binary that objcopy makes
// of it for some architectures, Image. Both come plain, compressed as a whole (vmlinuz,
// Image.gz), or inside of other images. It tells them by their contents, never by their
// names, and opens one inside of another, at most four deep.
//
// x86 bzImage (Documentation/arch/x86/boot.rst) begins with real-mode code that contains
// the setup header; all numbers are little-endian:
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
// uncompressed size as a little-endian u32 (scripts/Makefile.lib, size_append). A gzip
// stream already ends with that number and gets no second one. In the images below, a
// payload has the same form unless they say otherwise.
//
// arm64 and RISC-V Image (arch/arm64/kernel/head.S, arch/riscv/include/asm/image.h), a
// flat binary with a little-endian header:
//
//	0x18  u64  flags; bit 0: the kernel is big-endian
//	0x38       "ARM\x64" or "RSC\x05"
//	0x3c  u32  offset of a PE header, with CONFIG_EFI
//
// Only the sections of the PE header tell whether the file is whole.
//
// LoongArch Image (arch/loongarch/kernel/head.S), a flat binary. Its header is that of a
// PE file with a number of Linux, which zboot images and others have too: the machine in
// the PE header distinguishes them.
//
//	0x00       "MZ"
//	0x38  u32  0x818223cd
//	0x3c  u32  offset of the PE header: "PE\0\0", u16 machine 0x6264 or 0x6232
//
// EFI zboot image (drivers/firmware/efi/libstub/zboot-header.S), a PE file whose
// payload is an Image. The payload's length does not count the size behind it.
//
//	0x00       "MZ"
//	0x04       "zimg"
//	0x08  u32  offset of the payload
//	0x0c  u32  length of the payload
//
// arm zImage (arch/arm/boot/compressed/head.S and vmlinux.lds.S), 32-bit code around
// a payload that is a flat binary. A table tells where the payload ends, and the
// package searches for its beginning. The numbers are in the byte order of the magic
// number, which is little-endian but in kernels with CONFIG_CPU_ENDIAN_BE32.
//
//	0x24  u32  0x016f2818
//	0x30  u32  0x04030201 in the byte order of the kernel's data
//	0x34  u32  0x45454545, since Linux 4.15
//	0x38  u32  offset of the table: u32 words after this one, u32 0x5a534c4b,
//	           u32 offset of the last word of the payload, its uncompressed size
//
// s390 bzImage (arch/s390/boot/vmlinux.lds.S), which nothing describes. The payload, a
// flat binary, is the last but zeros and the trailer of Secure Boot, and 8-aligned; a
// signature in the form of a module's may follow. The package searches for the payload.
// In an image without one (CONFIG_KERNEL_UNCOMPRESSED) it takes the whole file for the
// kernel, if the trailer shows that the file is whole.
//
//	0x10008  "S390EP"
//	...      the payload, then zeros
//	-0x08    u64, big-endian, 0x207a49504c
//
// powerpc zImage (arch/powerpc/boot/wrapper), an ELF file whose section
// .kernel:vmlinux.strip is the vmlinux, mostly compressed.
//
// A unified kernel image (https://uapi-group.org/specifications/specs/unified_kernel_image)
// is a PE file whose section .linux is any of these images. It may have several of them,
// one for each profile, and which one boots is decided then: the package opens it if all
// are the same, and refuses it otherwise.
//
// A U-Boot uImage or FIT image, and an arm Image, which has no header, are refused.
//
// A flat binary has neither sections nor symbols, nor does it tell its address:
// [Image.Section] fails with [ErrFlat], and a System.map helps because the first byte of
// the kernel is at _text, or on RISC-V at _start.
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
// This is x86 and s390. For arm, powerpc, RISC-V and LoongArch, the assembler takes the same
// numbers for exponents: 8 is 256 bytes there, and 4 is 16.
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
// variables or the MOK list. A kernel image is trusted input. Still, no image makes the
// package panic, or take time or memory that is not proportional to the size of the
// image.
package vmlinux

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// Image is an open kernel image. Its methods are safe for concurrent use, except
// UseSystemMap and Close.
type Image struct {
	packing string
	bare    bool // the file is the kernel itself
	// repackable is true of an x86 bzImage that nothing is around.
	repackable bool
	body       *body
	closer     io.Closer         // the file, if it is read as needed
	mapped     map[string]symbol // symbols from a System.map
}

// Open opens the kernel image at path. It reads a vmlinux or a flat Image from the file as
// needed. It decompresses other images into memory, where the kernel stays while the Image is in
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
	if _, inMemory := im.body.r.(memory); inMemory {
		return im, file.Close()
	}
	im.closer = file
	return im, nil
}

// New opens a kernel image of size bytes. If the image is a vmlinux or a flat Image, plain
// or in a unified kernel image, the Image reads r as long as it is in use. It never closes
// r.
func New(r io.ReaderAt, size int64) (*Image, error) {
	o := opener{limit: min(maxKernel, max(size, 0)*maxRatio+1<<20)}
	kernel, packing, err := o.open(r, size)
	if err != nil {
		return nil, err
	}
	bare := packing == "vmlinux" || kernel.flat && !strings.Contains(packing, ", ") && !strings.Contains(packing, ": ")
	head := make([]byte, min(size, headSize))
	if _, err := r.ReadAt(head, 0); err != nil && err != io.EOF {
		return nil, err
	}
	return &Image{packing: packing, bare: bare, repackable: formatOf(head).name == "bzImage", body: kernel}, nil
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

// Packing describes the kind of the image, for example "vmlinux", "bzImage, zstd",
// "arm64 Image, gzip" or "UKI: EFI zboot: arm64 Image, zstd".
func (im *Image) Packing() string { return im.packing }
