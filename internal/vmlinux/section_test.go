package vmlinux

import (
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// TestSections compares the sections of every kind of image with debug/elf.
func TestSections(t *testing.T) {
	t.Parallel()
	found := 0
	for name, data := range images(t) {
		im, err := New(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		if im.body.flat {
			continue
		}
		reference, err := elf.NewFile(io.NewSectionReader(im.body.r, 0, im.body.size))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range reference.Sections[1:] {
			if s.Type == elf.SHT_NOBITS {
				continue
			}
			want, err := s.Data()
			if err != nil {
				t.Fatal(err)
			}
			got, err := im.Section(s.Name)
			if err != nil || !bytes.Equal(got.Data, want) || got.Offset != int64(s.Offset) || got.Order != reference.ByteOrder {
				t.Errorf("%s: %s: %+v, %v", name, s.Name, got, err)
			}
			found++
		}
		for _, none := range []string{".", ".no such section", ".shstrta", "shstrtab"} {
			if s, err := im.Section(none); !errors.Is(err, ErrNoSection) {
				t.Errorf("%s: section %q: %+v, %v", name, none, s, err)
			}
		}
	}
	if found < 10 {
		t.Errorf("%d sections", found)
	}
}

func TestReleaseOfRealKernels(t *testing.T) {
	testmod.Decodes(t, "it decompresses whole kernels")
	t.Parallel()
	for _, kernel := range testmod.Few(testmod.Kernels(t), 1) {
		im, err := Open(kernel.Image)
		if err != nil {
			t.Fatal(err)
		}
		if release, err := im.Release(); err != nil || release != kernel.Version {
			t.Errorf("%s: %q, %v; want %q", kernel.Image, release, err, kernel.Version)
		}
		if s, err := im.Section(".rodata"); err != nil || len(s.Data) < 1<<20 {
			t.Errorf("%s: .rodata: %v", kernel.Image, err)
		}
		im.Close()
	}
}
