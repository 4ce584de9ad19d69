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

// Proofs are those of all modules of a tree, each by the name of its module. It is a
// sign.Prover.
type Proofs struct {
	root   Root
	proofs map[string]Proof
}

// NewProofs returns the proofs of modules with these names and leaves, in the order of
// modules.order. A name without a leaf gets no proof.
func NewProofs(names []string, leaves []Hash) *Proofs {
	tree := NewTree(leaves)
	p := &Proofs{root: tree.Root(), proofs: make(map[string]Proof, len(names))}
	for i, name := range names[:min(len(names), len(leaves))] {
		p.proofs[name] = tree.Prove(i)
	}
	return p
}

// Root is what the kernel has to have.
func (p *Proofs) Root() Root {
	if p == nil {
		return Root{}
	}
	return p.root
}

// proof finds the proof of a module.
func (p *Proofs) proof(name string) (Proof, bool) {
	if p == nil {
		return Proof{}, false
	}
	proof, ok := p.proofs[name]
	return proof, ok
}

// NewHash begins the leaf of a module.
func (p *Proofs) NewHash(name string) hash.Hash {
	proof, _ := p.proof(name) // Proof says that there is none
	return NewLeaf(proof.Position)
}

// Proof returns the proof of a module, as it stands in the place of a signature. It is
// an error when the module is another than the proof is for.
func (p *Proofs) Proof(name string, leaf []byte) ([]byte, error) {
	proof, ok := p.proof(name)
	if !ok {
		return nil, errors.New("it is none of the modules that the tree of hashes was made of")
	}
	if len(leaf) != sha256.Size {
		return nil, fmt.Errorf("the hash of a leaf has %d bytes, not %d", sha256.Size, len(leaf))
	}
	if err := p.root.Check(Hash(leaf), proof); err != nil {
		return nil, fmt.Errorf("it is not the module that was hashed: %w", err)
	}
	return proof.Append(nil), nil
}

// proofFile is where the proof of a module lies, beside it.
func proofFile(module string) string { return strings.TrimSuffix(module, ".ko") + ".merkle" }

// Trailer is what a module is made one with a proof by: it is appended to the
// module, and is what a .merkle file holds. It is nil for a module without a proof.
func (p *Proofs) Trailer(name string) []byte {
	proof, ok := p.proof(name)
	if !ok {
		return nil
	}
	return module.AppendSignature(nil, module.TypeMerkle, proof.Append(nil))
}

// Write writes the trailer of each module beside it, below a directory: to
// dummy.merkle of dummy.ko. A file that holds it already is left alone; anything but a
// file of that name is refused, and no symbolic link below the directory is followed.
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

// ReadProofs is the inverse of [Proofs.Write]: it reads the proofs of modules, for a
// kernel that has the root.
func ReadProofs(dir string, names []string, root Root) (*Proofs, error) {
	p := &Proofs{root: root, proofs: make(map[string]Proof, len(names))}
	for _, name := range names {
		path := filepath.Join(dir, proofFile(name))
		trailer, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		// A byte stands for the module: a trailer alone is none.
		file := bytes.NewReader(append([]byte{0}, trailer...))
		layer, err := module.Check(file, file.Size(), module.TypeMerkle)
		if err == nil && layer.Offset != 1 {
			err = errors.New("it is not a proof and nothing else")
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
