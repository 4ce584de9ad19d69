package hashlist

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/module"
)

// Proofs holds the proofs of all modules of a tree, by the names of the modules. It
// implements sign.Prover, with which package sign appends them to the modules.
type Proofs struct {
	root   Root
	proofs map[string]Proof
}

// NewProofs returns the proofs of modules with these names and leaves, both in the order of
// modules.order. A name without a leaf gets no proof.
func NewProofs(names []string, leaves []Hash) *Proofs {
	tree := NewTree(leaves)
	p := &Proofs{root: tree.Root(), proofs: make(map[string]Proof, len(names))}
	for i, name := range names[:min(len(names), len(leaves))] {
		p.proofs[name] = tree.Prove(i)
	}
	return p
}

// Root returns the root that the kernel must have.
func (p *Proofs) Root() Root {
	if p == nil {
		return Root{}
	}
	return p.root
}

// proof returns the proof of a module.
func (p *Proofs) proof(name string) (Proof, bool) {
	if p == nil {
		return Proof{}, false
	}
	proof, ok := p.proofs[name]
	return proof, ok
}

// NewHash returns a hash for the leaf of a module: see [NewLeaf].
func (p *Proofs) NewHash(name string) hash.Hash {
	proof, _ := p.proof(name) // without a proof, method Proof fails
	return NewLeaf(proof.Position)
}

// Proof returns the proof of a module, as it is appended in the place of a signature. leaf
// is the sum of [Proofs.NewHash]: if it is not that of the module that was hashed, Proof
// returns an error.
func (p *Proofs) Proof(name string, leaf []byte) ([]byte, error) {
	proof, ok := p.proof(name)
	if !ok {
		return nil, errors.New("not one of the modules in the Merkle tree")
	}
	if len(leaf) != sha256.Size {
		return nil, fmt.Errorf("hash of a leaf: must have %d bytes, not %d", sha256.Size, len(leaf))
	}
	if err := p.root.Check(Hash(leaf), proof); err != nil {
		return nil, fmt.Errorf("module was changed after it was hashed: %w", err)
	}
	return proof.Append(nil), nil
}

// proofFile returns the name of the file beside a module that holds its proof.
func proofFile(module string) string { return strings.TrimSuffix(module, ".ko") + ".merkle" }

// Trailer returns the bytes to append to a module: its proof, and the marker behind it. A
// .merkle file holds the same. It returns nil for a module without a proof.
func (p *Proofs) Trailer(name string) []byte {
	proof, ok := p.proof(name)
	if !ok {
		return nil
	}
	return module.AppendSignature(nil, module.TypeMerkle, proof.Append(nil))
}

// Write writes the trailer of each module below dir to a file beside it: that of dummy.ko
// to dummy.merkle. It does not touch a file that holds the trailer already. It refuses to
// replace anything but a regular file, and follows no symbolic link below dir.
func (p *Proofs) Write(dir string) error {
	if p == nil {
		return errors.New("no proofs are given")
	}
	base, err := dirfd.Open(dir)
	if err != nil {
		return err
	}
	defer base.Close()
	for name := range p.proofs {
		if err := writeProof(base, proofFile(name), p.Trailer(name)); err != nil {
			return err
		}
	}
	return nil
}

func writeProof(base *dirfd.Dir, path string, trailer []byte) error {
	dir, err := base.OpenDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	name := filepath.Base(path)
	if f, err := dir.Open(name, os.O_RDONLY, 0); err == nil {
		is, err := io.ReadAll(io.LimitReader(f, int64(len(trailer))+1))
		f.Close()
		if err == nil && bytes.Equal(is, trailer) {
			return nil
		}
	}
	return atomicfile.WriteIn(dir, name, trailer, 0o644, false)
}

// ReadProofs is the inverse of [Proofs.Write]: it reads the proofs of the named modules
// for a kernel with this root.
func ReadProofs(dir string, names []string, root Root) (*Proofs, error) {
	p := &Proofs{root: root, proofs: make(map[string]Proof, len(names))}
	for _, name := range names {
		path := filepath.Join(dir, proofFile(name))
		trailer, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		// One byte stands for the module: a trailer without one is malformed.
		file := bytes.NewReader(append([]byte{0}, trailer...))
		layer, err := module.Check(file, file.Size(), module.TypeMerkle)
		if err == nil && layer.Offset != 1 {
			err = errors.New("not a proof alone")
		}
		var proof Proof
		if err == nil {
			var sig []byte
			if sig, err = layer.Signature(file); err == nil {
				proof, err = ParseProof(sig)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		p.proofs[name] = proof
	}
	return p, nil
}
