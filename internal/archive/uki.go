package archive

import (
	"fmt"
	"io"

	"github.com/modsign/modsign/internal/pe"
)

func isUKI(r io.ReaderAt) bool {
	_, sections := pe.Sections(r)
	for _, s := range sections {
		if s.Name == ".linux" {
			return true
		}
	}
	return false
}

// uki reads a unified kernel image.
func (w *walk) uki(section *io.SectionReader) error {
	_, sections := pe.Sections(section)
	if len(sections) == 0 {
		return fmt.Errorf("its sections cannot be read: %w", io.ErrUnexpectedEOF)
	}
	for _, s := range sections {
		if s.Name != ".linux" && s.Name != ".initrd" && s.Name != ".ucode" {
			continue
		}
		if s.Off > section.Size() || s.Size > section.Size()-s.Off {
			return fmt.Errorf("section %s of %d bytes at byte %d is cut off: %w", s.Name, s.Size, s.Off, io.ErrUnexpectedEOF)
		}
		content := io.NewSectionReader(section, s.Off, s.Size)
		if s.Name == ".linux" {
			if err := w.emit(&File{Name: s.Name, Mode: 0o644, Size: s.Size, content: content}); err != nil {
				return err
			}
			continue
		}
		if err := w.initramfs(content); err != nil {
			return fmt.Errorf("section %s: %w", s.Name, err)
		}
	}
	return nil
}
