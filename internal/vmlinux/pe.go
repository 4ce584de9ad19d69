package vmlinux

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/modsign/modsign/internal/pe"
)

// Machines in a PE header (include/linux/pe.h).
const (
	machineRISCV32     = 0x5032
	machineLoongArch32 = 0x6232
	machineLoongArch64 = 0x6264
)

func isLoongArch(head []byte) bool {
	machine, _ := pe.Sections(memory(head))
	return (machine == machineLoongArch64 || machine == machineLoongArch32) &&
		bytes.HasPrefix(head[56:], []byte("\xcd\x23\x82\x81"))
}

// linuxSections returns the kernels in a unified kernel image.
func linuxSections(head []byte) (kernels []pe.Section) {
	_, sections := pe.Sections(memory(head))
	for _, s := range sections {
		if s.Name == ".linux" {
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
		if err := checkPayload(s.Off, s.Size, size); err != nil {
			return nil, "", fmt.Errorf("section .linux: %w", err)
		}
		if len(kernels) == 1 {
			break
		}
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(r, s.Off, s.Size)); err != nil {
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
	kernel, packing, err := o.open(io.NewSectionReader(r, s.Off, s.Size), s.Size)
	if err != nil {
		return nil, "", fmt.Errorf("section .linux: %w", err)
	}
	return kernel, "UKI: " + packing, nil
}
