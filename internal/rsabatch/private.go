package rsabatch

import (
	"crypto/rsa"
	"math/big"
)

const (
	windowBits = 4 // of the exponent for one multiplication
	tableSize  = 1 << windowBits
)

// private is a private key in the form of this arithmetic.
type private struct {
	engine engine
	size   int // of a signature in bytes

	n    *modulus
	p, q *factor
	qInv []uint64 // 1/q mod p, times R
	qR   []uint64 // q mod n, times R of n
}

// factor is one of the two primes.
type factor struct {
	*modulus
	exponent []uint8  // windows of d mod p-1, the most significant first
	cube     []uint64 // R^3 mod p
}

// newPrivate computes what depends on the key alone. Package crypto/rsa has checked and
// precomputed it.
func newPrivate(key *rsa.PrivateKey, e engine) *private {
	size := key.Size()
	limbs := primeLimbs(size * 8)
	k := &private{engine: e, size: size}
	scratch := newVector(2 * limbs)
	prime := func(p, exponent *big.Int) *factor {
		f := &factor{modulus: newModulus(p.FillBytes(make([]byte, size/2)), limbs), cube: newVector(limbs)}
		for _, b := range exponent.FillBytes(make([]byte, size/2)) {
			f.exponent = append(f.exponent, b>>windowBits, b&(1<<windowBits-1))
		}
		e.mul(f.cube, f.square, f.square, f.modulus, scratch[:len(f.cube)])
		return f
	}
	k.p = prime(key.Primes[0], key.Precomputed.Dp)
	k.q = prime(key.Primes[1], key.Precomputed.Dq)
	k.n = newModulus(key.N.FillBytes(make([]byte, size)), 2*limbs)

	k.qInv = fill(limbsOf(key.Precomputed.Qinv.FillBytes(make([]byte, size/2)), limbs), limbs)
	e.mul(k.qInv, k.qInv, k.p.square, k.p.modulus, scratch[:len(k.qInv)])
	k.qR = fill(lane(k.q.vector, 0), 2*limbs)
	e.mul(k.qR, k.qR, k.n.square, k.n, scratch)
	return k
}

// primeLimbs is the length of the primes of a key with so many bits, in limbs. At least
// 16 bits of it remain free.
func primeLimbs(bits int) int {
	return (bits/2 + tileBits - 1) / tileBits * tileLimbs
}

// workspace is the memory of one batch.
type workspace struct {
	low, high  []uint64 // of the messages
	x, y       []uint64
	modP, modQ []uint64
	quotient   []uint64
	table      []uint64
	product    []uint64 // as long as n, as are the two that follow
	wide       []uint64
	scratch    []uint64
}

func newWorkspace(limbs int) *workspace {
	one := func() []uint64 { return newVector(limbs) }
	two := func() []uint64 { return newVector(2 * limbs) }
	return &workspace{
		low: one(), high: one(), x: one(), y: one(), modP: one(), modQ: one(), quotient: one(),
		table: newVector(tableSize * limbs), product: two(), wide: two(), scratch: two(),
	}
}

// power applies the key to messages, at most eight, each as long as the key and below
// its modulus. It returns numbers of the same size.
func (k *private) power(messages [][]byte, w *workspace) [][]byte {
	limbs := k.p.limbs()
	clear(w.low) // lanes that are not used
	clear(w.high)
	for i, message := range messages {
		number := limbsOf(message, 2*limbs)
		setLane(w.low, i, number[:limbs])
		setLane(w.high, i, number[limbs:])
	}
	k.exponentiate(w.modP, k.p, w)
	k.exponentiate(w.modQ, k.q, w)

	// h = (modP-modQ)/q mod p, and the result is modQ + h*q. q is below 2*p.
	add(w.x, w.modP, k.p.vector)
	add(w.x, w.x, k.p.vector)
	sub(w.x, w.x, w.modQ)
	k.engine.mul(w.x, w.x, k.qInv, k.p.modulus, w.quotient)
	reduce(w.x, k.p.vector, w.y)
	copy(w.wide, w.x)
	clear(w.wide[len(w.x):])
	k.engine.mul(w.product, w.wide, k.qR, k.n, w.scratch)
	reduce(w.product, k.n.vector, w.scratch)
	add(w.product, w.product, w.modQ)

	results := make([][]byte, len(messages))
	for i := range results {
		results[i] = bytesOf(lane(w.product, i), k.size)
	}
	return results
}

// exponentiate sets z to the messages to the power of the exponent, mod f.
func (k *private) exponentiate(z []uint64, f *factor, w *workspace) {
	e, m := k.engine, f.modulus
	entry := func(i int) []uint64 { return w.table[i*len(z) : (i+1)*len(z)] }

	// The message times R is low*R + high*R*R. The sum is below 4*m, for which there are
	// bits enough.
	message := entry(1)
	e.mul(message, w.low, f.square, m, w.quotient)
	e.mul(z, w.high, f.cube, m, w.quotient)
	add(message, message, z)
	e.mul(entry(0), f.unit, f.square, m, w.quotient)
	for i := 2; i < tableSize; i += 2 {
		e.sqr(entry(i), entry(i/2), m, w.quotient)
		e.mul(entry(i+1), entry(i), message, m, w.quotient)
	}

	e.choose(z, w.table, uint64(f.exponent[0]))
	for _, digit := range f.exponent[1:] {
		for range windowBits {
			e.sqr(z, z, m, w.quotient)
		}
		e.choose(w.y, w.table, uint64(digit))
		e.mul(z, z, w.y, m, w.quotient)
	}
	e.mul(z, z, f.unit, m, w.quotient)
	reduce(z, f.vector, w.y)
}
