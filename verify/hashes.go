package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/vmlinux"
)

// Hashes are those that a kernel has of its modules (CONFIG_MODULE_HASHES). The field
// Embedded of a hashlist.Kernel has these methods.
type Hashes interface {
	// Proofs reports whether modules carry proofs in the place of signatures.
	Proofs() bool
	// Decide returns 0 if the kernel trusts a module for its hash, else the error inside
	// the kernel and what it logs. The module comes without what is appended to it. proof
	// is the signature data of a module with a proof.
	Decide(payload io.Reader, proof []byte) (errno syscall.Errno, dmesg string, err error)
}

// What the patch for CONFIG_MODULE_HASHES puts into a kernel.
const (
	hashSection = ".module_hashes"
	// A kernel without CONFIG_MODULE_SIG logs this about a signature. It may have
	// certificates all the same, for other uses.
	noSignatures = "module hashes: the module is signed, and this kernel accepts no signatures"
)

// hashLines are in what kernels with CONFIG_MODULE_HASHES log, one in each: a kernel with
// a tree, and one with a list.
var hashLines = []string{"module hashes: the ", "unsigned module that is not in the hash list"}

// AddHashes makes the keyring that of a kernel which trusts a module for its hash too.
// [Keyring.Hashed] tells that an image needs it. A keyring has the hashes of one kernel.
func (k *Keyring) AddHashes(h Hashes) error {
	switch {
	case k == nil:
		return errNoKeyring
	case h == nil:
		return errors.New("no hashes are given")
	case k.hashList != nil:
		return errors.New("the keyring has the hashes of a kernel already")
	}
	k.hashList = h
	return nil
}

// Hashed reports whether a kernel image of [Keyring.AddImage] has the hashes of its
// modules built in. Without [Keyring.AddHashes] no module is trusted for its hash.
func (k *Keyring) Hashed() bool { return k != nil && k.hashed }

// HashesOnly reports whether a kernel image of [Keyring.AddImage] accepts no signatures, but
// hashes alone.
func (k *Keyring) HashesOnly() bool { return k != nil && k.hashesOnly }

// addHashed notes what an image says of hashes.
func (k *Keyring) addHashed(image *vmlinux.Image) error {
	_, err := image.Section(hashSection)
	if errors.Is(err, vmlinux.ErrNoSection) {
		return nil
	}
	if errors.Is(err, vmlinux.ErrFlat) {
		// Its certificates are no answer alone if the kernel looks at hashes too.
		for _, line := range hashLines {
			found, failed := image.Contains(line)
			if failed != nil {
				return failed
			}
			if found {
				return fmt.Errorf("the kernel has hashes of its modules (CONFIG_MODULE_HASHES): %w", err)
			}
		}
		return nil
	}
	if err != nil {
		return err
	}
	k.hashed = true
	only, err := image.Contains(noSignatures)
	k.hashesOnly = k.hashesOnly || only
	return err
}

// types are the kinds of signature that the kernel looks at.
func (k *Keyring) types() []module.IDType {
	if k.hashList != nil && k.hashList.Proofs() {
		return []module.IDType{module.TypePKCS7, module.TypeMerkle}
	}
	return []module.IDType{module.TypePKCS7}
}

// lists reports whether the kernel searches a list for a module's hash, signed or not.
func (k *Keyring) lists() bool { return k.hashList != nil && !k.hashList.Proofs() }

// listed searches a kernel's list for the hash of a module without its signature. It
// reports whether the result is final.
func (r *Result) listed(ctx context.Context, keys *Keyring, m io.ReaderAt, size int64) bool {
	if !keys.lists() {
		return false
	}
	errno, _, err := keys.hashList.Decide(section(ctx, m, size), nil)
	if err != nil {
		r.Verdict, r.Err = Unreadable, err
		return true
	}
	if errno == 0 {
		r.byHash(m, size)
	}
	return errno == 0
}

// hashes follows mod_verify_sig up to the signature. It reports whether the result is
// final.
func (r *Result) hashes(ctx context.Context, keys *Keyring, m io.ReaderAt, outer module.Layer) bool {
	if outer.Info.IDType == module.TypeMerkle {
		r.proven(ctx, keys, m, outer)
		return true
	}
	if r.listed(ctx, keys, m, outer.Offset) {
		return true
	}
	if keys.hashesOnly {
		*r = r.refuse(Unsupported, syscall.ENOPKG, errors.New("the kernel accepts hashes and no signatures"), noSignatures)
	}
	return keys.hashesOnly
}

func (r *Result) proven(ctx context.Context, keys *Keyring, m io.ReaderAt, outer module.Layer) {
	proof, err := outer.Signature(m)
	if err != nil {
		r.Verdict, r.Err = Unreadable, err
		return
	}
	errno, dmesg, err := keys.hashList.Decide(section(ctx, m, outer.Offset), proof)
	switch {
	case err != nil:
		r.Verdict, r.Err = Unreadable, err
	case errno == 0:
		r.byHash(m, outer.Offset)
	default:
		*r = r.refuse(Foreign, errno, errors.New("the proof is not that of this module in this kernel"), dmesg)
	}
}

// byHash is the verdict on a module with the right hash, which may still be no module.
func (r *Result) byHash(m io.ReaderAt, size int64) {
	if err := module.CheckELF(m, size); err != nil {
		*r = r.refuse(Malformed, syscall.ENOEXEC, err)
		return
	}
	r.Verdict, r.ByHash = Trusted, true
}

func section(ctx context.Context, m io.ReaderAt, size int64) io.Reader {
	return module.Reader(ctx, io.NewSectionReader(m, 0, size))
}
