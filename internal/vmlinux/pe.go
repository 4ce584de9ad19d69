package vmlinux

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
)

// Machines in a PE header (include/linux/pe.h).
const (
	machineRISCV32     = 0x5032
	machineLoongArch32 = 0x6232
	machineLoongArch64 = 0x6264
)

// peSection is a section of a PE file.
type peSection struct {
	name      string
	off, size int64 // in the file
}

// readPE reads the headers of a PE file (Microsoft's specification "PE Format"): at 0x3c
// the offset of "PE\0\0", then a file header of 20 bytes, an optional header whose size is
// in it, and section headers of 40 bytes. The machine is 0 if head does not begin a PE
// file. Headers beyond head count as none.
func readPE(head []byte) (machine uint16, sections []peSection) {
	if len(head) < 0x40 || string(head[:2]) != "MZ" {
		return 0, nil
	}
	at := uint64(binary.LittleEndian.Uint32(head[0x3c:]))
	if at+24 > uint64(len(head)) || string(head[at:at+4]) != "PE\x00\x00" {
		return 0, nil
	}
	file := head[at+4:]
	machine = binary.LittleEndian.Uint16(file)
	table := at + 24 + uint64(binary.LittleEndian.Uint16(file[16:]))
	for i := range uint64(binary.LittleEndian.Uint16(file[2:])) {
		if table+(i+1)*40 > uint64(len(head)) {
			break
		}
		b := head[table+i*40:]
		name, _, _ := bytes.Cut(b[:8], []byte{0})
		// The file may hold less than is loaded, or padding after it.
		size := binary.LittleEndian.Uint32(b[16:])
		if virtual := binary.LittleEndian.Uint32(b[8:]); virtual != 0 {
			size = min(size, virtual)
		}
		sections = append(sections, peSection{string(name), int64(binary.LittleEndian.Uint32(b[20:])), int64(size)})
	}
	return machine, sections
}

func isLoongArch(head []byte) bool {
	machine, _ := readPE(head)
	return (machine == machineLoongArch64 || machine == machineLoongArch32) &&
		bytes.HasPrefix(head[56:], []byte("\xcd\x23\x82\x81"))
}

// linuxSections returns the kernels in a unified kernel image.
func linuxSections(head []byte) (kernels []peSection) {
	_, sections := readPE(head)
	for _, s := range sections {
		if s.name == ".linux" {
			kernels = append(kernels, s)
		}
	}
	return kernels
}

func isUKI(head []byte) bool { return len(linuxSections(head)) > 0 }

// maxProfiles is the limit of kernels in a unified kernel image.
const maxProfiles = 64

// openUKI opens the kernel in a unified kernel image.
func openUKI(o *opener, r io.ReaderAt, size int64, head []byte) (*body, string, error) {
	kernels := linuxSections(head)
	if len(kernels) > maxProfiles {
		return nil, "", fmt.Errorf("%d kernels are more than the limit of %d", len(kernels), maxProfiles)
	}
	var first [sha256.Size]byte
	for i, s := range kernels {
		if err := checkPayload(s.off, s.size, size); err != nil {
			return nil, "", fmt.Errorf("section .linux: %w", err)
		}
		if len(kernels) == 1 {
			break
		}
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(r, s.off, s.size)); err != nil {
			return nil, "", err
		}
		if sum := [sha256.Size]byte(h.Sum(nil)); i == 0 {
			first = sum
		} else if sum != first {
			return nil, "", fmt.Errorf("%d profiles with different kernels, of which one is chosen when it boots: "+
				"use the kernel that the image was made from", len(kernels))
		}
	}
	s := kernels[0]
	kernel, packing, err := o.open(io.NewSectionReader(r, s.off, s.size), s.size)
	if err != nil {
		return nil, "", fmt.Errorf("section .linux: %w", err)
	}
	return kernel, "UKI: " + packing, nil
}
