package verify

import (
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/modsign/modsign/internal/vmlinux"
)

// An Image is an open kernel image: a vmlinux, an Image, or a boot image of any architecture,
// also a unified kernel image. It is decompressed once, by [OpenImage] or [ReadImage], and in
// memory while it is open. [Keyring.AddOpened] trusts what is built into it.
type Image struct {
	name  string
	r     io.ReaderAt
	size  int64
	file  io.Closer // nil if r is the caller's
	image *vmlinux.Image

	config     []byte // that came with the image
	configName string
}

// OpenImage opens the image in a file. Close it.
func OpenImage(path string) (*Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", path)
	}
	var im *Image
	if err == nil {
		im, err = ReadImage(path, f, info.Size())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	im.file = f
	return im, nil
}

// ReadImage opens an image of size bytes that may be no file. name is what errors and
// Result.Source call it. r has to stay good until the image is closed.
func ReadImage(name string, r io.ReaderAt, size int64) (*Image, error) {
	if r == nil || size < 0 {
		return nil, errors.New("no kernel image is given")
	}
	image, err := vmlinux.New(r, size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &Image{name: name, r: r, size: size, image: image}, nil
}

// Close closes the image. It may be nil.
func (im *Image) Close() error {
	if im == nil || im.file == nil {
		return nil
	}
	return im.file.Close()
}

// Name is the path of the image, or the name that [ReadImage] was given.
func (im *Image) Name() string { return im.name }

// Content returns the image as it is stored, of size bytes.
func (im *Image) Content() (r io.ReaderAt, size int64) { return im.r, im.size }

// Release returns the kernel's release, as uname -r prints it, or nothing if the image does not
// tell.
func (im *Image) Release() (string, error) { return named(im, im.image.Release) }

// Vermagic returns what the tag vermagic of a module has to be for this kernel, or nothing if the
// image does not tell (include/linux/vermagic.h).
func (im *Image) Vermagic() (string, error) { return named(im, im.image.Vermagic) }

// Machine returns the machine of the kernel, and its byte order.
func (im *Image) Machine() (elf.Machine, binary.ByteOrder) { return im.image.Machine() }

// Config returns the text of the kernel's configuration, and what to call it: that which came
// with the image ([Image.AddConfig]), or that inside it (CONFIG_IKCONFIG, kernel/configs.c). It
// is nil if there is none.
func (im *Image) Config() (text []byte, name string, err error) {
	if im.config != nil {
		return im.config, im.configName, nil
	}
	text, err = named(im, im.image.Config)
	if errors.Is(err, vmlinux.ErrNoConfig) {
		return nil, "", nil
	}
	return text, im.name, err
}

// AddConfig tells the configuration that comes with the image, as in its package. name is what to
// call it.
func (im *Image) AddConfig(name string, text []byte) {
	im.config, im.configName = text, cmp.Or(name, im.name)
}

// named gives the errors of a read the name of the image.
func named[T any](im *Image, read func() (T, error)) (T, error) {
	v, err := read()
	if err != nil {
		err = fmt.Errorf("%s: %w", im.name, err)
	}
	return v, err
}
