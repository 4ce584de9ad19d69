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

// SectionName is the section of vmlinux that holds the hashes.
const SectionName = ".module_hashes"

// Embedded holds the hashes that a kernel has built in: a list, or the root of a tree.
type Embedded struct {
	Hashes []Hash // in the order of modules.order, unless there is a Root
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

// String describes the hashes for people.
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

// Blank reports whether the section still holds the zeros that the kernel was linked
// with, so that it trusts no module. A list without room for hashes is not blank.
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

// Append appends the content of the section, in the byte order of the kernel.
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

// ParseSection is the inverse of [Embedded.Append]. It tells the formats apart by their
// size: that of a root is not a multiple of that of a hash.
func ParseSection(b []byte, order binary.ByteOrder) (*Embedded, error) {
	if len(b) == RootSize {
		root, err := ParseRoot(b, order)
		if err != nil {
			return nil, err
		}
		return &Embedded{Root: &root}, nil
	}
	if len(b)%sha256.Size != 0 {
		return nil, fmt.Errorf("section %s of %d bytes: it must have %d, or %d for each module",
			SectionName, len(b), RootSize, sha256.Size)
	}
	e := &Embedded{Hashes: make([]Hash, len(b)/sha256.Size)}
	for i := range e.Hashes {
		e.Hashes[i] = Hash(b[i*sha256.Size:])
	}
	return e, nil
}

// ErrNoSection reports a kernel that was built without CONFIG_MODULE_HASHES.
var ErrNoSection = errors.New("no section " + SectionName + ": the kernel was built without CONFIG_MODULE_HASHES")

// A Kernel is a kernel image with hashes: a vmlinux, or a boot image with one inside, as on
// x86. A flat binary, as the Image of arm64 is, does not tell where it has them.
type Kernel struct {
	Release  string // as uname -r prints it; empty if the image does not tell
	Embedded *Embedded

	section *vmlinux.Section
	packing string
}

// OpenKernel reads the hashes that a kernel image has built in. For an image without, the
// error is [ErrNoSection].
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

// Embed replaces the hashes of a linked vmlinux, and returns the kernel as it was before.
// It writes nothing if the section has another size, which is an error, or holds these
// hashes already. It replaces the file as a whole. The new file has the time of
// modification of the old one, so that make has nothing to do again.
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
		return nil, fmt.Errorf("%s is a %s: use the vmlinux that it was made from", path, old.packing)
	}
	if err := old.CheckRoom(e); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if old.Has(e) {
		return old, nil
	}
	return old, overwrite(path, old.bytes(e), old.section.Offset)
}

// Order returns the byte order of the kernel, or nil for a Kernel that was not opened.
func (k *Kernel) Order() binary.ByteOrder {
	if k == nil || k.section == nil {
		return nil
	}
	return k.section.Order
}

func (k *Kernel) bytes(e *Embedded) []byte {
	return e.Append(nil, k.section.Order.(binary.AppendByteOrder))
}

// Has reports whether a kernel has exactly these hashes.
func (k *Kernel) Has(e *Embedded) bool {
	return e != nil && k != nil && k.section != nil && bytes.Equal(k.section.Data, k.bytes(e))
}

// CheckRoom returns an error if hashes do not fit into the section of a kernel.
func (k *Kernel) CheckRoom(e *Embedded) error {
	if k == nil || k.Embedded == nil {
		return errors.New("the kernel was not opened with OpenKernel")
	}
	if e == nil {
		return errNoHashes
	}
	room := k.Embedded
	switch {
	case room.Format() != e.Format():
		return fmt.Errorf("the kernel is built for a %s (CONFIG_MODULE_HASHES_*), not for a %s",
			formatWords[room.Format()], formatWords[e.Format()])
	case len(room.Hashes) != len(e.Hashes):
		return fmt.Errorf("the kernel was linked with room for %d hashes, but there are %d modules: "+
			"remove vmlinux and run make again", len(room.Hashes), len(e.Hashes))
	}
	return nil
}

// overwrite replaces a file by a copy with other bytes at an offset.
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
