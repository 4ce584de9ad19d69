package hashlist

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"

	"github.com/modsign/modsign/internal/module"
)

// Proofs reports whether modules carry proofs in the place of signatures.
func (e *Embedded) Proofs() bool { return e.Format() == FormatMerkle }

// Decide decides about a module as a kernel with these hashes does. The module comes
// without what is appended to it: for a Merkle tree that is the proof, of which Decide
// takes the signature data. errno is 0 if the kernel trusts the module for its hash.
// Otherwise it is the error inside the kernel, and dmesg the line that is logged with it.
//
// The hashes are those of package verify's Keyring.AddHashes.
func (e *Embedded) Decide(payload io.Reader, proof []byte) (errno syscall.Errno, dmesg string, err error) {
	if e == nil {
		return 0, "", errNoHashes
	}
	if e.Root != nil {
		return e.Root.decide(payload, proof)
	}
	hash, _, err := Sum(payload)
	if err != nil {
		return 0, "", err
	}
	if !slices.Contains(e.Hashes, hash) {
		return syscall.ENOKEY, "", nil
	}
	return 0, "", nil
}

// decide follows module_hash_proven of the patch (kernel/module/hashes.c).
func (r *Root) decide(payload io.Reader, proof []byte) (errno syscall.Errno, dmesg string, err error) {
	parsed, err := ParseProof(proof)
	if err != nil || uint64(len(parsed.Siblings)) != uint64(r.Levels) {
		return syscall.ENOPKG, fmt.Sprintf("module hashes: the proof is that of another kernel: "+
			"it has %d bytes, and the tree %d levels", len(proof), r.Levels), nil
	}
	if payload == nil {
		return 0, "", errors.New("no module is given")
	}
	leaf := NewLeaf(parsed.Position)
	if _, err := module.Copy(leaf, payload); err != nil {
		return 0, "", err
	}
	if r.Check(Hash(leaf.Sum(nil)), parsed) != nil {
		return syscall.ENOKEY, "module hashes: the module is none of those that this kernel was built with", nil
	}
	return 0, "", nil
}
