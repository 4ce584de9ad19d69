package hashlist

import (
	"bytes"
	"fmt"
	"os"
)

// An ObjectTree is what [Built.Embed] changes in the object tree of a kernel, between the
// modules and the boot image. Package kbuild knows where these files are.
type ObjectTree struct {
	Vmlinux string // the linked kernel
	// BootFiles returns the files that were made from vmlinux: Embed removes them, so
	// that the next make makes them again. Nil stands for none.
	BootFiles func() ([]string, error)
	// WriteList, if it is not nil, stores the list as text. Embed calls it last, so
	// that the time of what it writes tells when all was done.
	WriteList func(text []byte) error
}

// Embed brings the vmlinux of an object tree up to date with its modules, and returns
// the kernel as it was before. For a Merkle tree it also writes the proof of each module
// beside it, as [Proofs.Write] does. If the kernel has these hashes already, vmlinux and
// the boot files stay as they are. The time of modification of vmlinux stays in any
// case. After a kill in the middle, the next run completes the work.
func (b *Built) Embed(t ObjectTree) (*Kernel, error) {
	e := b.Embedded()
	if e == nil {
		return nil, errNoHashes
	}
	if t.WriteList != nil && b.List == nil {
		return nil, errNoList
	}
	kernel, err := OpenKernel(t.Vmlinux)
	if err != nil {
		return nil, err
	}
	if err := kernel.CheckRoom(e); err != nil {
		return nil, fmt.Errorf("%s: %w", t.Vmlinux, err)
	}
	// Before vmlinux is written: after a kill in between, make still makes the boot image.
	if !kernel.Has(e) {
		if err := t.removeBootFiles(); err != nil {
			return nil, err
		}
	}
	if b.Leaves != nil {
		if err := b.Proofs().Write(b.Source.Dir); err != nil {
			return nil, err
		}
	}
	old, err := Embed(t.Vmlinux, e)
	if err != nil || t.WriteList == nil {
		return old, err
	}
	var text bytes.Buffer
	if err := b.List.Write(&text); err != nil {
		return nil, err
	}
	return old, t.WriteList(text.Bytes())
}

func (t *ObjectTree) removeBootFiles() error {
	if t.BootFiles == nil {
		return nil
	}
	stale, err := t.BootFiles()
	if err != nil {
		return err
	}
	for _, path := range stale {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}
