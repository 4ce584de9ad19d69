package hashlist

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
)

func payload(i int) []byte { return fmt.Appendf(nil, "module-%d\n", i) }

func leaf(position uint32, module []byte) Hash {
	h := NewLeaf(position)
	h.Write(module)
	return Hash(h.Sum(nil))
}

func leaves(n int) []Hash {
	l := make([]Hash, n)
	for i := range l {
		l[i] = leaf(uint32(i), payload(i))
	}
	return l
}

// The roots of trees over module-0, module-1 and so on, each with a line feed, of
// another implementation.
func TestKnownRoots(t *testing.T) {
	for n, want := range map[int]string{
		1: "5f1300bff2d16845", 2: "cdf131c4654c9c97", 3: "2f26f57830df50c3", 5: "a0c6908a671dbe4e",
	} {
		if got := NewTree(leaves(n)).Root(); !strings.HasPrefix(got.Hash.String(), want) {
			t.Errorf("%d modules: %v, want %s...", n, got.Hash, want)
		}
	}
}

// model is the root by its definition, from the top down: a tree of so many levels
// over the leaves from first on, where positions at the end repeat what is before
// them.
func model(l []Hash, levels, first int) Hash {
	if levels == 0 {
		return l[first]
	}
	half := 1 << (levels - 1)
	left := model(l, levels-1, first)
	right := left // nothing is there: the node is its own sibling
	if first+half < len(l) {
		right = model(l, levels-1, first+half)
	}
	var b []byte
	b = append(b, 2)
	b = append(b, left[:]...)
	b = append(b, right[:]...)
	return sha256.Sum256(b)
}

// Of every size the root is that of the model, and each module has a proof, which
// holds for no other module, position, root or size.
func TestProofs(t *testing.T) {
	for n := range 201 {
		all := leaves(n)
		tree := NewTree(slices.Clone(all))
		root := tree.Root()
		if n == 0 {
			if root != (Root{}) {
				t.Errorf("no modules: %+v", root)
			}
			continue
		}
		want := max(1, new(big.Int).SetUint64(uint64(n-1)).BitLen())
		if int(root.Levels) != want || root.Hash != model(all, want, 0) {
			t.Errorf("%d modules: %+v, want %d levels and %v", n, root, want, model(all, want, 0))
		}
		for i := range n {
			p := tree.Prove(i)
			if p.Position != uint32(i) {
				t.Fatalf("the proof of %d is for %d", i, p.Position)
			}
			if err := root.Check(all[i], p); err != nil {
				t.Errorf("%d of %d: %v", i, n, err)
			}
			b := p.Append(nil)
			if again, err := ParseProof(b); err != nil || again.Position != p.Position ||
				!slices.Equal(again.Siblings, p.Siblings) ||
				len(b) != 4+32*want {
				t.Errorf("%d of %d: %x, %v", i, n, b, err)
			}
			if err := root.Check(all[(i+1)%n], p); n > 1 && !errors.Is(err, ErrForeign) {
				t.Errorf("%d of %d: the proof holds for the next module: %v", i, n, err)
			}
			// At any other position the leaf is another one.
			for _, position := range []uint32{uint32(i) + 1, uint32(i) ^ 1, uint32(n), uint32(i) + 1<<want, 1 << 31} {
				other := Proof{Position: position, Siblings: p.Siblings}
				if position == uint32(i) {
					continue
				}
				if err := root.Check(leaf(position, payload(i)), other); !errors.Is(err, ErrForeign) {
					t.Errorf("%d of %d: proved at %d as well: %v", i, n, position, err)
				}
			}
			for _, siblings := range [][]Hash{p.Siblings[1:], append(slices.Clone(p.Siblings), Hash{}), nil} {
				if err := root.Check(all[i], Proof{p.Position, siblings}); !errors.Is(err, ErrLevels) {
					t.Errorf("%d of %d: proved with %d hashes: %v", i, n, len(siblings), err)
				}
			}
		}
	}
}

// Every flipped bit of a proof, of the root and of the module is refused.
func TestFlippedBits(t *testing.T) {
	for _, n := range []int{1, 2, 3, 7, 8, 9, 33} {
		all := leaves(n)
		tree := NewTree(slices.Clone(all))
		root := tree.Root()
		for _, i := range []int{0, n / 2, n - 1} {
			proof := tree.Prove(i).Append(nil)
			for bit := range len(proof) * 8 {
				b := slices.Clone(proof)
				b[bit/8] ^= 1 << (bit % 8)
				p, err := ParseProof(b)
				if err != nil {
					t.Fatal(err)
				}
				if err := root.Check(leaf(p.Position, payload(i)), p); !errors.Is(err, ErrForeign) {
					t.Errorf("%d of %d, bit %d of the proof: %v", i, n, bit, err)
				}
			}
			data := root.Append(nil, binary.LittleEndian)
			for bit := 32; bit < len(data)*8; bit++ {
				b := slices.Clone(data)
				b[bit/8] ^= 1 << (bit % 8)
				r, err := ParseRoot(b, binary.LittleEndian)
				if err != nil {
					t.Fatal(err)
				}
				if err := r.Check(all[i], tree.Prove(i)); !errors.Is(err, ErrForeign) {
					t.Errorf("%d of %d, bit %d of the root: %v", i, n, bit, err)
				}
			}
			content := payload(i)
			for bit := range len(content) * 8 {
				b := slices.Clone(content)
				b[bit/8] ^= 1 << (bit % 8)
				if err := root.Check(leaf(uint32(i), b), tree.Prove(i)); !errors.Is(err, ErrForeign) {
					t.Errorf("%d of %d, bit %d of the module: %v", i, n, bit, err)
				}
			}
		}
	}
}

// A Root that nobody has set accepts nothing.
func TestZeroRoot(t *testing.T) {
	if err := (Root{}).Check(Hash{}, Proof{}); !errors.Is(err, ErrForeign) {
		t.Errorf("error is %v", err)
	}
}

func TestRootBytes(t *testing.T) {
	r := NewTree(leaves(5)).Root()
	for order, first := range map[binary.AppendByteOrder]byte{binary.LittleEndian: 3, binary.BigEndian: 0} {
		b := r.Append(nil, order)
		if len(b) != RootSize || b[0] != first || hex.EncodeToString(b[4:]) != r.Hash.String() {
			t.Errorf("%v: %x", order, b)
		}
		if again, err := ParseRoot(b, order.(binary.ByteOrder)); err != nil || again != r {
			t.Errorf("%v: %+v, %v", order, again, err)
		}
		if _, err := ParseRoot(b[1:], order.(binary.ByteOrder)); err == nil {
			t.Error("a root without its first byte")
		}
	}
	// Of the other byte order the levels are beyond all trees.
	if _, err := ParseRoot(r.Append(nil, binary.BigEndian), binary.LittleEndian); err == nil ||
		!strings.Contains(err.Error(), "levels") {
		t.Errorf("the other byte order: %v", err)
	}
	for _, n := range []int{0, 3, 5, 35, 37, 4 + 33*32} {
		if _, err := ParseProof(make([]byte, n)); err == nil {
			t.Errorf("a proof of %d bytes", n)
		}
	}
}

func BenchmarkTree(b *testing.B) {
	all := leaves(4230)
	for b.Loop() {
		tree := NewTree(all)
		for i := range all {
			tree.Prove(i)
		}
	}
}
