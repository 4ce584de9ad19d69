package hashlist

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"math/bits"
)

// Series is the version of the patch series that defines the tree. Version 4 of the
// series has the same tree.
const Series = "v5 of 2026-05-05"

// The bytes that keep a leaf from being taken for a node.
const (
	leafPrefix = 0x01
	nodePrefix = 0x02
)

// NewLeaf returns a hash for the leaf at a position in modules.order. Write the module to
// it: its sum, 32 bytes, is the [Hash] of the leaf.
func NewLeaf(position uint32) hash.Hash {
	h := leafDigest{sha256.New(), position}
	h.begin()
	return h
}

// leafDigest is a hash that begins with a prefix, also after Reset.
type leafDigest struct {
	hash.Hash
	position uint32
}

func (l leafDigest) begin() {
	l.Write(binary.BigEndian.AppendUint32([]byte{leafPrefix}, l.position))
}

func (l leafDigest) Reset() {
	l.Hash.Reset()
	l.begin()
}

func node(left, right Hash) Hash {
	var b [1 + 2*sha256.Size]byte
	b[0] = nodePrefix
	copy(b[1:], left[:])
	copy(b[1+sha256.Size:], right[:])
	return sha256.Sum256(b[:])
}

// levels returns how many times the hashes of n modules are paired.
func levels(n int) int {
	if n < 2 {
		return n
	}
	return bits.Len(uint(n - 1))
}

// A Tree is a Merkle tree over the modules of a kernel.
type Tree struct {
	rows [][]Hash // the leaves first; each row has half as many as the one before, rounded up
}

// NewTree returns the tree over leaves in the order of modules.order. It keeps the slice.
func NewTree(leaves []Hash) *Tree {
	t := &Tree{rows: [][]Hash{leaves}}
	for range levels(len(leaves)) {
		row := t.rows[len(t.rows)-1]
		above := make([]Hash, (len(row)+1)/2)
		for i := range above {
			above[i] = node(row[2*i], sibling(row, 2*i))
		}
		t.rows = append(t.rows, above)
	}
	return t
}

// sibling returns the hash that another is paired with: the last of an odd number is
// paired with itself.
func sibling(row []Hash, i int) Hash {
	if i^1 < len(row) {
		return row[i^1]
	}
	return row[i]
}

// Root is the part of the tree that a kernel has.
type Root struct {
	Levels uint32
	Hash   Hash // zeros if there are no modules
}

// RootSize is the length of a [Root] in the section .module_hashes.
const RootSize = 4 + sha256.Size

// Root returns the root of the tree.
func (t *Tree) Root() Root {
	if t.size() == 0 {
		return Root{}
	}
	top := t.rows[len(t.rows)-1]
	return Root{Levels: uint32(len(t.rows) - 1), Hash: top[0]}
}

// Append appends the root as struct module_hashes_root, in the byte order of the
// kernel.
func (r Root) Append(b []byte, order binary.AppendByteOrder) []byte {
	return append(order.AppendUint32(b, r.Levels), r.Hash[:]...)
}

// ParseRoot is the inverse of [Root.Append]. More levels than a tree with positions of 32
// bits can have are an error: the bytes are no root, or have the other byte order.
func ParseRoot(b []byte, order binary.ByteOrder) (Root, error) {
	if order == nil {
		return Root{}, errNoOrder
	}
	if len(b) != RootSize {
		return Root{}, fmt.Errorf("root of a Merkle tree: must have %d bytes, not %d", RootSize, len(b))
	}
	r := Root{Levels: order.Uint32(b), Hash: Hash(b[4:])}
	if r.Levels > maxLevels {
		return Root{}, fmt.Errorf("root of a Merkle tree: %d levels, but at most %d are possible", r.Levels, maxLevels)
	}
	return r, nil
}

const maxLevels = 32

// A Proof leads from one module to the root.
type Proof struct {
	Position uint32
	Siblings []Hash // from the leaf up: the audit path
}

// size returns the number of leaves.
func (t *Tree) size() int {
	if t == nil || len(t.rows) == 0 {
		return 0
	}
	return len(t.rows[0])
}

// Prove returns the proof of the module at a position. Without a module there it returns
// the zero Proof, which is the proof of no module.
func (t *Tree) Prove(position int) Proof {
	if position < 0 || position >= t.size() {
		return Proof{}
	}
	p := Proof{Position: uint32(position)}
	for _, row := range t.rows[:len(t.rows)-1] {
		p.Siblings = append(p.Siblings, sibling(row, position))
		position /= 2
	}
	return p
}

// Append appends the proof as struct module_hashes_proof, the signature data of a
// module with id_type 3.
func (p Proof) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, p.Position)
	for _, h := range p.Siblings {
		b = append(b, h[:]...)
	}
	return b
}

// ParseProof is the inverse of [Proof.Append].
func ParseProof(b []byte) (Proof, error) {
	if len(b) < 4 || (len(b)-4)%sha256.Size != 0 || (len(b)-4)/sha256.Size > maxLevels {
		return Proof{}, fmt.Errorf("proof: must have 4 bytes and %d for each of up to %d levels, not %d",
			sha256.Size, maxLevels, len(b))
	}
	p := Proof{Position: binary.BigEndian.Uint32(b)}
	for b = b[4:]; len(b) > 0; b = b[sha256.Size:] {
		p.Siblings = append(p.Siblings, Hash(b[:sha256.Size]))
	}
	return p, nil
}

// Errors of [Root.Check].
var (
	// ErrLevels reports a proof for a tree of another size. The kernel returns ENOPKG.
	ErrLevels = errors.New("the proof is for a tree of another size")
	// ErrForeign reports a module that the tree does not have, or not at that position. The
	// kernel returns ENOKEY.
	ErrForeign = errors.New("the kernel was not built with this module")
)

// Check returns nil if a module belongs to the tree. leaf is the hash of the module, made
// by [NewLeaf] with the position of the proof. Check decides like module_hashes_verify of
// the series (kernel/module/hashes.c).
func (r Root) Check(leaf Hash, p Proof) error {
	if uint64(len(p.Siblings)) != uint64(r.Levels) {
		return fmt.Errorf("%w: %d levels instead of %d", ErrLevels, len(p.Siblings), r.Levels)
	}
	position, is := p.Position, leaf
	for _, other := range p.Siblings {
		if position%2 == 0 {
			is = node(is, other)
		} else {
			is = node(other, is)
		}
		position /= 2
	}
	if is != r.Hash || r.Hash == (Hash{}) { // no tree has that root: nobody has set it
		return ErrForeign
	}
	return nil
}
