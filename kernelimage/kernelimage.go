// Package kernelimage changes kernel images after their build.
//
// [AddCertificate] puts a certificate into the room that a kernel with
// CONFIG_SYSTEM_EXTRA_CERTIFICATE keeps for it, so that a kernel that was built elsewhere
// trusts a key for its modules. It does what the kernel's scripts/insert-sys-cert does to
// a vmlinux, and does it to boot images too.
package kernelimage

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/vmlinux"
)

// Errors of [AddCertificate].
var (
	// ErrNoReserve reports a kernel without CONFIG_SYSTEM_EXTRA_CERTIFICATE.
	ErrNoReserve = vmlinux.ErrNoReserve
	// ErrSigned reports an image that is signed for Secure Boot.
	ErrSigned = vmlinux.ErrSigned
	// ErrNoRoom reports a boot image whose compressed kernel would become larger.
	ErrNoRoom = vmlinux.ErrNoRoom
	// ErrWrapped reports an image of a kind that AddCertificate cannot make anew.
	ErrWrapped = errors.New("a certificate goes into a vmlinux, a bare Image or an x86 bzImage alone")
)

// NoReserveError is [ErrNoReserve] with the processor of the kernel, on which it depends what
// else there is: the machine owner keys of shim are for PCs and arm64.
type NoReserveError struct{ Machine elf.Machine }

func (e *NoReserveError) Error() string { return ErrNoReserve.Error() }

func (e *NoReserveError) Unwrap() error { return ErrNoReserve }

// Options are the options of [AddCertificate]. The zero value adds to the image itself.
type Options struct {
	// Output is the file to write instead of the image, which stays as it is. A symbolic link
	// is followed, as that of the image is, and a device or a FIFO written into.
	Output string
	// Replace removes the certificates that were added before, as scripts/insert-sys-cert
	// does.
	Replace bool
	// SystemMap is the System.map of the same build, for an image without symbols.
	SystemMap string
	// DropSignature allows an image with a signature for Secure Boot, and removes the
	// signature, which the change makes invalid.
	DropSignature bool
}

// Added says what [AddCertificate] has done.
type Added struct {
	Packing string // the kind of the image, for example "bzImage, zstd"
	Used    int    // bytes of the room with certificates
	Room    int    // size of the room, in bytes
	Changed bool   // false if the certificate was there already; nothing is written then
	Dropped bool   // whether a signature for Secure Boot was removed
	// Removed are the certificates that were there before, with Replace: concatenated DER.
	Removed []byte
	// Links is the number of other hard links of an image that was replaced. They still have
	// the old contents.
	Links int
}

// AddCertificate adds a certificate to those that the kernel in an image trusts. The image
// is a vmlinux, a flat Image without anything around it, or an x86 bzImage; the error of
// others is [ErrWrapped]. The room comes from the kernel's symbols, else from
// Options.SystemMap, else from a search.
//
// A bzImage's kernel is unpacked and compressed anew, with the method of its build and the
// programs that Kbuild uses; its place in the image stays the same, as other code follows
// it. What is added makes the stream larger. For gzip, the programs libdeflate-gzip and
// pigz make smaller ones than gzip does, and xz does with other options. The error of the
// other compressions is [ErrNoRoom].
//
// The new file replaces the old one as a whole. It has the old one's mode, owner and
// attributes, without those that attest the old contents.
func AddCertificate(ctx context.Context, path string, cert *x509.Certificate, o Options) (*Added, error) {
	if cert == nil {
		return nil, errors.New("no certificate is given")
	}
	// The file itself, so that it is not the link that is replaced.
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	in, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err == nil {
		var added *Added
		if added, err = add(ctx, in, info, path, cert.Raw, o); err == nil {
			return added, nil
		}
	}
	var named *fs.PathError
	if errors.As(err, &named) {
		return nil, err
	}
	return nil, fmt.Errorf("%s: %w", path, err)
}

func add(ctx context.Context, in *os.File, info fs.FileInfo, path string, der []byte, o Options) (*Added, error) {
	image, err := vmlinux.New(in, info.Size())
	if err != nil {
		return nil, err
	}
	reserve, err := find(image, o.SystemMap)
	if errors.Is(err, ErrNoReserve) {
		machine, _ := image.Machine()
		return nil, &NoReserveError{machine}
	}
	if err != nil {
		return nil, err
	}
	added := &Added{Packing: image.Packing(), Room: reserve.Size}
	certs := reserve.Certificates
	switch {
	case holds(certs, der) && (!o.Replace || len(certs) == len(der)):
		added.Used = len(certs)
		return added, nil
	case o.Replace:
		added.Removed, certs = certs, nil
	}
	certs = append(certs, der...)
	edits, err := reserve.Fill(certs)
	if err != nil {
		return nil, err
	}
	signed, err := vmlinux.Signed(in, info.Size())
	if err != nil {
		return nil, err
	}
	if signed && !o.DropSignature {
		return nil, ErrSigned
	}
	added.Used, added.Changed, added.Dropped = len(certs), true, signed
	target := path
	if o.Output != "" {
		target = o.Output
	} else if st, ok := info.Sys().(*syscall.Stat_t); ok {
		added.Links = int(st.Nlink) - 1
	}
	if image.Bare() && !signed {
		return added, write(target, in, info, o, func(out io.Writer) error {
			return writeEdited(out, in, info.Size(), edits)
		})
	}
	made, err := remake(ctx, image, in, info.Size(), edits, o.DropSignature)
	if err != nil {
		return nil, err
	}
	return added, write(target, in, info, o, func(out io.Writer) error {
		_, err := out.Write(made)
		return err
	})
}

// find finds the room in an image, with a System.map if one is given.
func find(image *vmlinux.Image, systemMap string) (*vmlinux.Reserve, error) {
	if systemMap != "" {
		f, err := os.Open(systemMap)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if err := image.UseSystemMap(f); err != nil {
			return nil, fmt.Errorf("%s: %w", systemMap, err)
		}
	}
	return image.Reserve()
}

// holds reports whether a list has a certificate.
func holds(certs, der []byte) bool {
	for len(certs) >= 4 {
		n := 4 + int(certs[2])<<8 + int(certs[3])
		if n > len(certs) {
			break
		}
		if bytes.Equal(certs[:n], der) {
			return true
		}
		certs = certs[n:]
	}
	return false
}

// maxImage is the size limit of an image that is made anew, in bytes.
const maxImage = 1 << 30

// remake returns an image with a changed kernel.
func remake(ctx context.Context, image *vmlinux.Image, in io.ReaderAt, size int64, edits []vmlinux.Edit, signed bool) (
	[]byte, error,
) {
	if !image.Bare() && !image.Repackable() {
		return nil, fmt.Errorf("%w: this is %s", ErrWrapped, image.Packing())
	}
	if size > maxImage {
		return nil, fmt.Errorf("%d bytes exceed the size of a kernel image", size)
	}
	whole := make([]byte, size)
	if _, err := in.ReadAt(whole, 0); err != nil && err != io.EOF {
		return nil, err
	}
	if image.Bare() {
		for _, e := range edits {
			copy(whole[e.Offset:], e.Data)
		}
		return vmlinux.Unsign(whole)
	}
	changed, err := image.Kernel()
	if err != nil {
		return nil, err
	}
	for _, e := range edits {
		copy(changed[e.Offset:], e.Data)
	}
	return vmlinux.Repack(whole, changed, signed, func(method string, effort int) ([]byte, error) {
		return compressKernel(ctx, method, effort, changed)
	})
}

// write writes what contents writes to the target: over a link, into a device or a FIFO, and
// as a new file in the place of a regular one.
func write(target string, in *os.File, info fs.FileInfo, o Options, contents func(io.Writer) error) error {
	return atomicfile.StreamOutput(target, func(w io.Writer) error {
		out, replaces := w.(*atomicfile.File)
		if !replaces {
			return contents(w)
		}
		if err := out.Chmod(0o600); err != nil { // until it is known who may read it
			return err
		}
		if err := contents(out); err != nil {
			return err
		}
		inherit := atomicfile.Inherit{NewMTime: true, BestEffort: o.Output != "", NewOwner: o.Output != ""}
		_, err := out.Inherit(in, info, inherit)
		return err
	}, true)
}

// writeEdited writes size bytes of in with edits, from front to back.
func writeEdited(w io.Writer, in io.ReaderAt, size int64, edits []vmlinux.Edit) error {
	edits = slices.SortedFunc(slices.Values(edits), func(a, b vmlinux.Edit) int { return cmp.Compare(a.Offset, b.Offset) })
	at := int64(0)
	for _, e := range edits {
		if _, err := io.Copy(w, io.NewSectionReader(in, at, e.Offset-at)); err != nil {
			return err
		}
		if _, err := w.Write(e.Data); err != nil {
			return err
		}
		at = e.Offset + int64(len(e.Data))
	}
	_, err := io.Copy(w, io.NewSectionReader(in, at, size-at))
	return err
}
