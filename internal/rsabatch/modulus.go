package rsabatch

// An engine is Montgomery arithmetic in eight lanes. [hardware] returns the processor's.
//
// R is 2^52 to the number of limbs. A product is x*y/R mod m, for x*y < R*m, and below
// 2*m. z may be x or y. q is scratch, as long as the others.
type engine interface {
	mul(z, x, y []uint64, m *modulus, q []uint64)
	sqr(z, x []uint64, m *modulus, q []uint64)
	// choose sets z to an entry of a table. It reads all of them.
	choose(z, table []uint64, index uint64)
}

// modulus is an odd number, the same in all lanes, and what is known of it.
type modulus struct {
	vector []uint64
	negInv []uint64 // -1/m mod 2^52, one limb
	square []uint64 // R^2 mod m, which takes a number into Montgomery's form
	unit   []uint64 // 1
}

func (m *modulus) limbs() int { return len(m.vector) / lanes }
func (m *modulus) tiles() int { return m.limbs() / tileLimbs }

// newModulus computes the constants of a big-endian odd number. It may be a secret.
func newModulus(number []byte, limbs int) *modulus {
	m := limbsOf(number, limbs)
	// Newton's method doubles the bits that are right: 3, 6, ... 96.
	inverse := m[0]
	for range 5 {
		inverse *= 2 - m[0]*inverse
	}
	return &modulus{
		vector: fill(m, limbs),
		negInv: fill([]uint64{-inverse & limbMask}, 1),
		square: fill(powerOfTwo(2*limbs*limbBits, m), limbs),
		unit:   fill([]uint64{1}, limbs),
	}
}

// powerOfTwo returns 2^n mod m by doubling.
func powerOfTwo(n int, m []uint64) []uint64 {
	power, less := make([]uint64, len(m)), make([]uint64, len(m))
	power[0] = 1
	for range n {
		carry, borrow := uint64(0), uint64(0)
		for i := range power {
			double := power[i]<<1 | carry
			carry = double >> limbBits
			power[i] = double & limbMask
			difference := power[i] - m[i] + borrow
			borrow = uint64(int64(difference) >> limbBits)
			less[i] = difference & limbMask
		}
		for i := range power {
			power[i] = power[i]&borrow | less[i]&^borrow
		}
	}
	return power
}
