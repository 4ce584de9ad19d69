package vmlinux

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Machine returns the machine of the kernel, and its byte order.
func (im *Image) Machine() (elf.Machine, binary.ByteOrder) { return im.body.machine, im.body.order }

// maxVermagic is the limit of a vermagic, in bytes. The longest are about 150, with a seed of
// CONFIG_RANDSTRUCT.
const maxVermagic = 512

// Vermagic returns what the tag vermagic of a module must be for this kernel
// (include/linux/vermagic.h): the release, a space, and flags with a space after each. It is
// empty if the image does not have it.
func (im *Image) Vermagic() (string, error) {
	release, err := im.Release()
	if err != nil || release == "" {
		return "", err
	}
	begin := []byte(release + " ")
	for _, s := range im.body.segments {
		data, err := im.body.read(s.off, s.size)
		if err != nil {
			return "", err
		}
		for at := 0; ; {
			i := bytes.Index(data[at:], begin)
			if i < 0 {
				break
			}
			at += i
			// The banner and others have the release within a text.
			before := at > 0 && data[at-1] >= ' ' && data[at-1] <= '~'
			text, _, ended := bytes.Cut(data[at:min(len(data), at+maxVermagic)], []byte{0})
			if !before && ended && text[len(text)-1] == ' ' && isVermagic(text[len(begin):]) {
				return string(text), nil
			}
			at += len(begin)
		}
	}
	return "", nil
}

// isVermagic reports whether a text can be the flags of a vermagic.
func isVermagic(flags []byte) bool {
	return !bytes.ContainsFunc(flags, func(r rune) bool {
		return !strings.ContainsRune(" _-.", r) && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	})
}

// ErrNoConfig reports an image without its configuration, as one of a kernel without
// CONFIG_IKCONFIG is.
var ErrNoConfig = errors.New("the image does not hold its configuration")

// maxConfig is the limit of a configuration, in bytes. The largest are some 300 KB.
const maxConfig = 4 << 20

// Config returns the configuration of the kernel, which CONFIG_IKCONFIG puts into it:
// "IKCFG_ST", a gzip stream, and "IKCFG_ED" (kernel/configs.c).
func (im *Image) Config() ([]byte, error) {
	begin := []byte("IKCFG_ST\x1f\x8b\x08")
	for _, s := range im.body.segments {
		data, err := im.body.read(s.off, s.size)
		if err != nil {
			return nil, err
		}
		i := bytes.Index(data, begin)
		if i < 0 {
			continue
		}
		r, err := gzip.NewReader(bytes.NewReader(data[i+len("IKCFG_ST"):]))
		if err != nil {
			return nil, fmt.Errorf("configuration in the image: %w", err)
		}
		r.Multistream(false)
		config, err := io.ReadAll(io.LimitReader(r, maxConfig+1))
		switch {
		case err != nil:
			return nil, fmt.Errorf("configuration in the image: %w", err)
		case len(config) > maxConfig:
			return nil, fmt.Errorf("configuration in the image: more than %d bytes", maxConfig)
		}
		return config, nil
	}
	return nil, ErrNoConfig
}
