package rsabatch

import (
	"crypto/sha512"
	"fmt"
	"math/big"
	"slices"
)

// selfTest compares the arithmetic with package math/big, for all lengths, with public
// numbers: the smallest and the largest ones in some lanes, and arbitrary ones in the others.
func selfTest(e engine) error {
	for _, tiles := range []int{2, 3, 4, 6, 8} {
		if err := selfTestLength(e, tiles); err != nil {
			return fmt.Errorf("%w: %d limbs: %w", ErrSelfTest, tiles*tileLimbs, err)
		}
	}
	return nil
}

func selfTestLength(e engine, tiles int) error {
	size := (tiles*tileBits - 16) / 8 // bytes
	arbitrary := func(n int) *big.Int {
		var out []byte
		for i := byte(0); len(out) < size; i++ {
			sum := sha512.Sum512([]byte{byte(tiles), byte(n), i})
			out = append(out, sum[:]...)
		}
		return new(big.Int).SetBytes(out[:size])
	}
	number := arbitrary(0)
	number.SetBit(number.SetBit(number, 0, 1), size*8-1, 1)
	m := newModulus(number.Bytes(), tiles*tileLimbs)
	top := new(big.Int).Sub(number, big.NewInt(1))
	twice := new(big.Int).Add(number, top) // the largest that occurs
	factors := [lanes][2]*big.Int{
		{new(big.Int), top}, {big.NewInt(1), twice}, {top, top}, {twice, twice}, {twice, number},
		{arbitrary(1), arbitrary(2)}, {arbitrary(3), big.NewInt(2)}, {arbitrary(4), arbitrary(5)},
	}
	var x, y, z, q = newVector(m.limbs()), newVector(m.limbs()), newVector(m.limbs()), newVector(m.limbs())
	for j, pair := range factors {
		setLane(x, j, limbsOf(pair[0].Bytes(), m.limbs()))
		setLane(y, j, limbsOf(pair[1].Bytes(), m.limbs()))
	}
	same := func(name string, second int) error {
		for j, pair := range factors {
			want := montgomery(pair[0], pair[second], number, tiles*tileBits)
			if !slices.Equal(lane(z, j), limbsOf(want.Bytes(), m.limbs())) {
				return fmt.Errorf("%s in lane %d", name, j)
			}
		}
		return nil
	}
	e.mul(z, x, y, m, q)
	if err := same("product", 1); err != nil {
		return err
	}
	e.sqr(z, x, m, q)
	if err := same("square", 0); err != nil {
		return err
	}
	table := slices.Concat(y, q, x, y)
	for i, want := range [][]uint64{y, q, x, y} {
		if e.choose(z, table, uint64(i)); !slices.Equal(z, want) {
			return fmt.Errorf("entry %d of a table", i)
		}
	}
	return nil
}

// montgomery returns what mul computes: (x*y + (-x*y/m mod R) * m) / R.
func montgomery(x, y, m *big.Int, bits int) *big.Int {
	r := new(big.Int).Lsh(big.NewInt(1), uint(bits))
	product := new(big.Int).Mul(x, y)
	q := new(big.Int).ModInverse(m, r)
	q.Mul(q, product).Neg(q).Mod(q, r)
	return product.Add(product, q.Mul(q, m)).Rsh(product, uint(bits))
}
