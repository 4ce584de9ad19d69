package hashlist

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/vmlinux"
)

// SectionName is the section of vmlinux that has the hashes.
const SectionName = ".module_hashes"

// Embedded is what a kernel has of the hashes of its modules: a list, or a root.
type Embedded struct {
	Hashes []Hash // in the order of modules.order, where there is no Root
	Root   *Root
}

// Format is a form in which a kernel has the hashes of its modules, as the end of
// CONFIG_MODULE_HASHES_LIST and CONFIG_MODULE_HASHES_MERKLE spells it.
type Format string

const (
	FormatList   Format = "list"   // the hashes themselves
	FormatMerkle Format = "merkle" // the root of a Merkle tree: see [Tree]
)

var formatWords = map[Format]string{FormatList: "list", FormatMerkle: "Merkle tree"}

// Format returns the form of the hashes.
func (e *Embedded) Format() Format {
	if e != nil && e.Root != nil {
		return FormatMerkle
	}
	return FormatList
}

// String says for people what it is.
func (e *Embedded) String() string {
	switch {
	case e == nil:
		return "nothing"
	case e.Blank():
		return "zeros, as it was linked"
	case e.Root != nil:
		return fmt.Sprintf("the root %.16s... of a tree of height %d", e.Root.Hash, e.Root.Levels)
	}
	return fmt.Sprintf("a list of %d hashes", len(e.Hashes))
}

// Blank reports whether there are still the zeros that the kernel was linked with, so
// that it trusts no module. It is false for a list that has room for none.
func (e *Embedded) Blank() bool {
	if e == nil {
		return true
	}
	if e.Root != nil {
		return *e.Root == Root{}
	}
	for _, h := range e.Hashes {
		if h != (Hash{}) {
			return false
		}
	}
	return len(e.Hashes) > 0
}

// Append appends what the section holds, in the byte order of the kernel.
func (e *Embedded) Append(b []byte, order binary.AppendByteOrder) []byte {
	if e == nil {
		return b
	}
	if e.Root != nil {
		return e.Root.Append(b, order)
	}
	for _, h := range e.Hashes {
		b = append(b, h[:]...)
	}
	return b
}

// ParseSection is the inverse of [Embedded.Append]. The size tells which format it is:
// that of a root is no multiple of that of a hash.
func ParseSection(b []byte, order binary.ByteOrder) (*Embedded, error) {
	if len(b) == RootSize {
		root, err := ParseRoot(b, order)
		if err != nil {
			return nil, err
		}
		return &Embedded{Root: &root}, nil
	}
	if len(b)%sha256.Size != 0 {
		return nil, fmt.Errorf("a section %s has %d bytes, or %d for each module: not %d", SectionName, RootSize, sha256.Size, len(b))
	}
	e := &Embedded{Hashes: make([]Hash, len(b)/sha256.Size)}
	for i := range e.Hashes {
		e.Hashes[i] = Hash(b[i*sha256.Size:])
	}
	return e, nil
}

// ErrNoSection says that a kernel is built without CONFIG_MODULE_HASHES.
var ErrNoSection = errors.New("it has no section " + SectionName + ": a kernel with CONFIG_MODULE_HASHES has one")

// A Kernel is an image with hashes: a vmlinux, or a boot image that modsign verify
// reads.
type Kernel struct {
	Release  string // as uname -r has it; empty where the image does not say
	Embedded *Embedded

	section *vmlinux.Section
	packing string
}

// OpenKernel reads what a kernel has of its modules' hashes. A kernel without has
// [ErrNoSection].
func OpenKernel(path string) (*Kernel, error) {
	image, err := vmlinux.Open(path)
	if err != nil {
		return nil, err
	}
	defer image.Close()
	k, err := newKernel(image)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

func newKernel(image *vmlinux.Image) (*Kernel, error) {
	section, err := image.Section(SectionName)
	if errors.Is(err, vmlinux.ErrNoSection) {
		return nil, ErrNoSection
	}
	if err != nil {
		return nil, err
	}
	k := &Kernel{section: section, packing: image.Packing()}
	if k.Embedded, err = ParseSection(section.Data, section.Order); err != nil {
		return nil, err
	}
	k.Release, err = image.Release()
	return k, err
}

// Embed writes hashes over those of a linked vmlinux, and returns the kernel as it was
// before. Nothing is written when the section is of another size, or when it holds
// these hashes already. The file is written anew, whole, and has the time of
// modification of the old one: make has nothing to do again for it.
func Embed(path string, e *Embedded) (*Kernel, error) {
	if e == nil {
		return nil, errNoHashes
	}
	// The file itself, so that it is not the link that is replaced.
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	old, err := OpenKernel(path)
	if err != nil {
		return nil, err
	}
	if old.packing != "vmlinux" {
		return nil, fmt.Errorf("%s is a %s: give the vmlinux, before the boot image is made of it", path, old.packing)
	}
	if err := old.CheckRoom(e); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if old.Has(e) {
		return old, nil
	}
	return old, overwrite(path, old.bytes(e), old.section.Offset)
}

// Order is the byte order of the kernel; nil for a Kernel that was not opened.
func (k *Kernel) Order() binary.ByteOrder {
	if k == nil || k.section == nil {
		return nil
	}
	return k.section.Order
}

func (k *Kernel) bytes(e *Embedded) []byte {
	return e.Append(nil, k.section.Order.(binary.AppendByteOrder))
}

// Has reports whether a kernel has just these hashes.
func (k *Kernel) Has(e *Embedded) bool {
	return e != nil && k != nil && k.section != nil && bytes.Equal(k.section.Data, k.bytes(e))
}

// CheckRoom returns an error if hashes do not fit into the section of a kernel.
func (k *Kernel) CheckRoom(e *Embedded) error {
	if k == nil || k.Embedded == nil {
		return errors.New("the kernel was not opened: OpenKernel does so")
	}
	if e == nil {
		return errNoHashes
	}
	room := k.Embedded
	switch {
	case room.Format() != e.Format():
		return fmt.Errorf("the kernel is built for a %s (CONFIG_MODULE_HASHES_*), and this is a %s", formatWords[room.Format()], formatWords[e.Format()])
	case len(room.Hashes) != len(e.Hashes):
		return fmt.Errorf("the kernel was linked with room for %d hashes, and there are %d modules: remove vmlinux and run make again", len(room.Hashes), len(e.Hashes))
	}
	return nil
}

// overwrite replaces a file by one with other bytes at an offset.
func overwrite(path string, data []byte, offset int64) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := atomicfile.Create(path, 0o600)
	if err != nil {
		return err
	}
	defer out.Abort()
	if _, err := io.Copy(out.File, in); err != nil {
		return err
	}
	if _, err := out.WriteAt(data, offset); err != nil {
		return err
	}
	if _, err := out.Inherit(in, info, atomicfile.Inherit{}); err != nil {
		return err
	}
	return out.Commit(false)
}
