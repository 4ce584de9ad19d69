package vmlinux

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/modsign/modsign/internal/pe"
)

// opener opens an image, and the images inside of it.
type opener struct {
	limit int64 // bytes that a decompressed layer may have
	depth int   // layers that are open
}

// maxDepth is the largest number of images inside of one another. A zboot image in a
// unified kernel image that is compressed has three.
const maxDepth = 4

// format is a kind of file that contains a kernel, recognized by its first bytes.
type format struct {
	name   string
	match  func(head []byte) bool
	open   func(o *opener, r io.ReaderAt, size int64, head []byte) (kernel *body, packing string, err error)
	refuse string // what to use instead of an unsupported image; else empty
}

// headSize is the number of bytes that formats check at the beginning of a file.
const headSize = 0x10010

const giveVmlinux = "use the vmlinux that the image was made from"

// open opens the image in r and returns the kernel and its packing.
func (o *opener) open(r io.ReaderAt, size int64) (*body, string, error) {
	if o.depth++; o.depth > maxDepth {
		return nil, "", errors.New("too many images inside of one another")
	}
	head := make([]byte, min(size, headSize))
	if _, err := r.ReadAt(head, 0); err != nil && err != io.EOF {
		return nil, "", err
	}
	f := formatOf(head)
	if f == nil && o.depth > 1 {
		return nil, "", errors.New("what it contains is not a kernel image")
	}
	if f == nil {
		return nil, "", errors.New("not a kernel image: use a vmlinux, or the image that boots, such as /boot/vmlinuz-RELEASE")
	}
	if f.refuse != "" {
		return nil, "", fmt.Errorf("%s is not supported: %s", f.name, f.refuse)
	}
	kernel, packing, err := f.open(o, r, size, head)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", f.name, err)
	}
	return kernel, packing, nil
}

// formatOf returns the first format that matches. The order matters: some formats are
// special cases of others (all EFI images begin with MZ).
func formatOf(head []byte) *format {
	at := func(offset int, magic string) func([]byte) bool {
		return func(head []byte) bool {
			return len(head) >= offset && bytes.HasPrefix(head[offset:], []byte(magic))
		}
	}
	formats := []format{
		{name: "vmlinux", match: at(0, "\x7fELF"), open: openVmlinux},
		{name: "bzImage", match: at(0x202, "HdrS"), open: openBzImage},
		{name: "unified kernel image", match: isUKI, open: openUKI},
		{name: "EFI zboot", match: at(4, "zimg"), open: openZboot},
		{name: "arm64 Image", match: at(56, "ARM\x64"), open: openFlat("arm64 Image", elf.EM_AARCH64)},
		{name: "RISC-V Image", match: at(56, "RSC\x05"), open: openFlat("RISC-V Image", elf.EM_RISCV)},
		{name: "LoongArch Image", match: isLoongArch, open: openFlat("LoongArch Image", elf.EM_LOONGARCH)},
		{name: "arm zImage", match: at(0x24, "\x18\x28\x6f\x01"), open: openZImage(binary.LittleEndian)},
		{name: "arm zImage", match: at(0x24, "\x01\x6f\x28\x18"), open: openZImage(binary.BigEndian)},
		{name: "s390 image", match: at(0x10008, "S390EP"), open: openS390},
		{name: "a U-Boot uImage", match: at(0, "\x27\x05\x19\x56"), refuse: giveVmlinux},
		{name: "a U-Boot FIT image", match: at(0, "\xd0\x0d\xfe\xed"), refuse: giveVmlinux},
		{name: "an EFI program without a kernel", match: at(0, "MZ"), refuse: giveVmlinux},
	}
	for _, c := range compressions() {
		formats = append(formats, format{name: c.name, match: at(0, c.magic), open: openCompressed})
	}
	for i := range formats {
		if formats[i].match(head) {
			return &formats[i]
		}
	}
	return nil
}

// openVmlinux opens an ELF file: the kernel itself, or a powerpc zImage around it.
func openVmlinux(o *opener, r io.ReaderAt, size int64, _ []byte) (*body, string, error) {
	kernel, err := newELF(r, size)
	if err != nil {
		return nil, "", err
	}
	inner, err := kernel.section(".kernel:vmlinux.strip")
	if errors.Is(err, ErrNoSection) {
		return kernel, "vmlinux", nil
	}
	if err != nil {
		return nil, "", err
	}
	kernel, packing, err := o.open(memory(inner.Data), int64(len(inner.Data)))
	if err != nil {
		return nil, "", fmt.Errorf("the powerpc zImage's section .kernel:vmlinux.strip: %w", err)
	}
	return kernel, "powerpc zImage: " + packing, nil
}

// openCompressed opens an image that is compressed as a whole.
func openCompressed(o *opener, r io.ReaderAt, size int64, head []byte) (*body, string, error) {
	c := compressionOf(head)
	image, err := c.decompress(io.NewSectionReader(r, 0, size), -1, o.limit)
	if err != nil {
		return nil, "", err
	}
	kernel, packing, err := o.open(image, int64(len(image)))
	return kernel, packing + ", " + c.name, err
}

// openFlat opens an Image whose header tells the byte order.
func openFlat(name string, machine elf.Machine) func(*opener, io.ReaderAt, int64, []byte) (*body, string, error) {
	return func(_ *opener, r io.ReaderAt, size int64, head []byte) (*body, string, error) {
		const flags, loadOffset = 24, 8
		if len(head) < 64 {
			return nil, "", errors.New("the header is cut short")
		}
		// Without EFI, an Image does not tell how long it is.
		inHeader, sections := pe.Sections(memory(head))
		for _, s := range sections {
			if err := checkPayload(s.Off, s.Size, size); s.Size > 0 && err != nil {
				return nil, "", fmt.Errorf("section %s: %w", s.Name, err)
			}
		}
		big := machine != elf.EM_LOONGARCH && head[flags]&1 != 0
		// RISC-V without EFI: 32-bit kernels are loaded 4 MiB behind the start of
		// memory, and others at other places.
		narrow := inHeader == machineRISCV32 || inHeader == machineLoongArch32 || machine == elf.EM_RISCV && inHeader == 0 &&
			binary.LittleEndian.Uint64(head[loadOffset:]) == 4<<20
		return newFlat(r, size, machine, big, !narrow), name, nil
	}
}

// newFlat returns the kernel in a flat binary, whose address is not known.
func newFlat(r io.ReaderAt, size int64, machine elf.Machine, big, wide bool) *body {
	var order binary.ByteOrder = binary.LittleEndian
	if big {
		order = binary.BigEndian
	}
	f := &body{r: r, size: size, machine: machine, order: order, wide: wide, flat: true, segments: []segment{{size: size}}}
	f.align, f.intAlign = alignments(machine)
	return f
}

// openZboot opens the Image in an EFI zboot image.
func openZboot(o *opener, r io.ReaderAt, size int64, head []byte) (*body, string, error) {
	if len(head) < 16 {
		return nil, "", errors.New("the header is cut short")
	}
	start, length := int64(binary.LittleEndian.Uint32(head[8:])), int64(binary.LittleEndian.Uint32(head[12:]))
	if err := checkPayload(start, length, size); err != nil {
		return nil, "", err
	}
	kernel, packing, err := o.open(io.NewSectionReader(r, start, length), length)
	if err != nil {
		return nil, "", fmt.Errorf("the payload at offset %d: %w", start, err)
	}
	return kernel, "EFI zboot: " + packing, nil
}

// checkPayload returns an error if a payload is not within the file.
func checkPayload(start, length, size int64) error {
	if start > size || length > size-start {
		return fmt.Errorf(
			"the payload, %d bytes at offset %d, reaches beyond the end of the file (%d bytes); the file may be cut short",
			length, start, size)
	}
	if length < 16 {
		return fmt.Errorf("a payload of %d bytes contains no kernel", length)
	}
	return nil
}

// bzImagePayload returns the place of the payload in an x86 boot image.
func bzImagePayload(size int64, head []byte) (start, length int64, err error) {
	if len(head) < 0x250 || binary.LittleEndian.Uint16(head[0x1fe:]) != 0xaa55 {
		return 0, 0, errors.New("the boot sector's signature is missing; the file may be cut short")
	}
	if protocol := binary.LittleEndian.Uint16(head[0x206:]); protocol < 0x208 {
		return 0, 0, fmt.Errorf("boot protocol %d.%02d (a kernel before 2.6.26) does not tell where the kernel is: %s",
			protocol>>8, protocol&0xff, giveVmlinux)
	}
	sectors := int64(cmp.Or(head[0x1f1], 4))
	start = (sectors+1)*512 + int64(binary.LittleEndian.Uint32(head[0x248:]))
	length = int64(binary.LittleEndian.Uint32(head[0x24c:]))
	return start, length, checkPayload(start, length, size)
}

// openBzImage opens the vmlinux in an x86 boot image.
func openBzImage(o *opener, r io.ReaderAt, size int64, head []byte) (*body, string, error) {
	start, length, err := bzImagePayload(size, head)
	if err != nil {
		return nil, "", err
	}
	kernel, name, err := o.unpack(r, start, length)
	if err != nil {
		return nil, "", err
	}
	packing := "bzImage, " + name
	vmlinux, err := newELF(kernel, int64(len(kernel)))
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", name, err)
	}
	return vmlinux, packing, nil
}

// unpack decompresses a payload that ends with its uncompressed size, unless it is an ELF
// file. It returns the name of the compression.
func (o *opener) unpack(r io.ReaderAt, start, length int64) (memory, string, error) {
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
		return kernel, "not compressed", err
	}
	c := compressionOf(magic)
	if c == nil {
		return nil, "", fmt.Errorf("the payload at offset %d begins with % x: "+
			"neither an ELF file nor a compression that the kernel supports", start, magic[:8])
	}
	if !c.sized {
		length -= 4
	}
	kernel, err := c.decompress(io.NewSectionReader(r, start, length), int64(binary.LittleEndian.Uint32(tail)), o.limit)
	if err != nil {
		return nil, "", fmt.Errorf("%s payload at offset %d: %w", c.name, start, err)
	}
	return kernel, c.name, nil
}

// openZImage opens the kernel in an arm zImage, whose header is in that byte order.
func openZImage(order binary.ByteOrder) func(*opener, io.ReaderAt, int64, []byte) (*body, string, error) {
	return func(o *opener, r io.ReaderAt, size int64, head []byte) (*body, string, error) {
		if len(head) < 0x40 || order.Uint32(head[0x34:]) != 0x45454545 {
			return nil, "", errors.New("a kernel before 4.15 does not tell where the kernel is: " + giveVmlinux)
		}
		image, err := readAll(r, size)
		if err != nil {
			return nil, "", err
		}
		table := int64(order.Uint32(head[0x38:]))
		if table > size-12 || order.Uint32(image[table+4:]) != 0x5a534c4b {
			return nil, "", fmt.Errorf("no table at offset %d; the file may be cut short", table)
		}
		end := int64(order.Uint32(image[table+8:])) + 4
		if end < table+12 || end > size {
			return nil, "", fmt.Errorf("the payload ends at offset %d, and the file has %d bytes; the file may be cut short",
				end, size)
		}
		kernel, name, err := o.search(image, table, []int64{end}, 1)
		if err != nil {
			return nil, "", err
		}
		if kernel == nil {
			return nil, "", fmt.Errorf("no compressed kernel ends at offset %d", end)
		}
		big := binary.BigEndian.Uint32(head[0x30:]) == 0x04030201
		return newFlat(kernel, int64(len(kernel)), elf.EM_ARM, big, false), "arm zImage, " + name, nil
	}
}

// s390Trailer ends an s390 image that Secure Boot can start.
const s390Trailer = "\x00\x00\x00\x20zIPL"

// openS390 opens the kernel in an s390 bzImage or image.
func openS390(o *opener, r io.ReaderAt, size int64, _ []byte) (*body, string, error) {
	image, err := readAll(r, size)
	if err != nil {
		return nil, "", err
	}
	end, trailer := len(image), bytes.LastIndex(image, []byte(s390Trailer))
	if trailer >= 0 {
		end = trailer
	}
	end = len(bytes.TrimRight(image[:end], "\x00"))
	// The upper bytes of the size may be zeros too.
	var ends []int64
	for i := range min(4, len(image)-end+1) {
		ends = append(ends, int64(end+i))
	}
	const boot = 0x11000 // the head and the parameters, of which later kernels have more
	kernel, name, failed := o.search(image, boot, ends, 8)
	if kernel != nil {
		return newFlat(kernel, int64(len(kernel)), elf.EM_S390, true, true), "s390 bzImage, " + name, nil
	}
	whole := newFlat(image, size, elf.EM_S390, true, true)
	release, err := whole.release()
	switch {
	case err != nil:
		return nil, "", err
	case release != "" && trailer >= 0:
		return whole, "s390 image", nil
	case failed != nil:
		return nil, "", fmt.Errorf("no whole kernel in it; the file may be cut short: %w", failed)
	}
	return nil, "", errors.New("no kernel in it; the file may be cut short")
}

// maxSearch is the limit of streams that a search tries to decompress.
const maxSearch = 32

// search searches image, from the offset start, for the beginning of a payload that ends
// at one of the offsets. It returns nil if there is none. Only an exact stream of the right
// size counts.
func (o *opener) search(image memory, start int64, ends []int64, align int64) (memory, string, error) {
	var found []int64
	for _, c := range compressions() {
		for at := start; at < int64(len(image)); {
			i := bytes.Index(image[at:], []byte(c.kbuild))
			if i < 0 {
				break
			}
			if at += int64(i); at%align == 0 {
				found = append(found, at)
			}
			at++
			if len(found) > maxSearch {
				return nil, "", errors.New("too much of the image looks like a compressed kernel: " + giveVmlinux)
			}
		}
	}
	slices.Sort(found)
	var failed error
	for _, at := range found {
		for _, end := range ends {
			if end-at < 16 {
				continue
			}
			kernel, name, err := o.unpack(image, at, end-at)
			if err == nil {
				return kernel, name, nil
			}
			failed = err
		}
	}
	return nil, "", failed
}

// readAll reads a whole file that the format needs in one piece.
func readAll(r io.ReaderAt, size int64) (memory, error) {
	if m, ok := r.(memory); ok {
		return m, nil
	}
	if size > maxKernel {
		return nil, fmt.Errorf("%d bytes exceed the size of a kernel", size)
	}
	return readExactly(io.NewSectionReader(r, 0, size), size)
}
