package rsabatch

import (
	"crypto/rsa"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// These tests compare the processor with the emulator, bit for bit, and need neither
// math/big nor crypto/rsa for it, whose assembly a CPU under test may spoil as well.

// processor returns the processor's engine, if it has one. Elsewhere there is nothing to
// compare: all other tests run the same assembly in the emulator.
func processor(t testing.TB) (e engine, ok bool) {
	e, err := hardware()
	if err != nil {
		t.Logf("only the emulator runs: %v", err)
	}
	return e, err == nil
}

func TestProcessorLikeEmulator(t *testing.T) {
	chip, ok := processor(t)
	if !ok {
		return
	}
	program := emulator(t)
	r := rand.New(rand.NewPCG(3, 3))
	patterns := []func() uint64{
		func() uint64 { return r.Uint64() & limbMask },
		func() uint64 { return limbMask },
		func() uint64 { return 0 },
		func() uint64 { return limbMask - r.Uint64()&1 },
		func() uint64 { return r.Uint64() & 1 },
		func() uint64 { return r.Uint64() & r.Uint64() & r.Uint64() & limbMask },
	}
	random := func(v []uint64) {
		for j := range lanes {
			pattern := patterns[r.IntN(len(patterns))]
			for i := j; i < len(v); i += lanes {
				v[i] = pattern()
			}
			v[len(v)-lanes+j] >>= 16 // x*y < R*m is not needed for the same result
		}
	}
	for _, tiles := range []int{1, 2, 3, 4, 5, 6, 8} {
		limbs := tiles * tileLimbs
		x, y, q, got, want := newVector(limbs), newVector(limbs), newVector(limbs), newVector(limbs), newVector(limbs)
		m := &modulus{vector: newVector(limbs), negInv: newVector(1)}
		for round := range testmod.Rounds(500, 10) {
			random(x)
			random(y)
			random(m.vector)
			for j := range lanes {
				m.vector[j] |= 1
				m.negInv[j] = r.Uint64() & limbMask
			}
			chip.mul(got, x, y, m, q)
			program.mul(want, x, y, m, q)
			if !slices.Equal(got, want) {
				t.Fatalf("product of %d limbs, round %d", limbs, round)
			}
			chip.sqr(got, x, m, q)
			program.sqr(want, x, m, q)
			if !slices.Equal(got, want) {
				t.Fatalf("square of %d limbs, round %d", limbs, round)
			}
		}
		table := newVector(tableSize * limbs)
		random(table)
		for i := range uint64(tableSize + 1) {
			chip.choose(got, table, i)
			program.choose(want, table, i)
			if !slices.Equal(got, want) {
				t.Fatalf("entry %d of %d limbs", i, limbs)
			}
		}
	}
}

// TestProcessorPower compares whole operations. The numbers are no key, which matters to
// neither of the two.
func TestProcessorPower(t *testing.T) {
	chip, ok := processor(t)
	if !ok {
		return
	}
	program := emulator(t)
	r := rand.New(rand.NewPCG(4, 4))
	number := func(size int) *big.Int {
		out := make([]byte, size)
		for i := range out {
			out[i] = byte(r.Uint32())
		}
		out[0] |= 0x80
		out[size-1] |= 1
		return new(big.Int).SetBytes(out)
	}
	for _, bits := range testmod.Few(sizes, 1) {
		size := bits / 8
		key := &rsa.PrivateKey{
			PublicKey: rsa.PublicKey{N: number(size), E: 65537}, Primes: []*big.Int{number(size / 2), number(size / 2)},
			Precomputed: rsa.PrecomputedValues{Dp: number(size / 2), Dq: number(size / 2), Qinv: number(size / 2)},
		}
		var messages [][]byte
		for range lanes {
			message := number(size).Bytes()
			message[0] = 0
			messages = append(messages, message)
		}
		var results [2][][]byte
		for i, e := range []engine{chip, program} {
			k := newPrivate(key, e)
			results[i] = k.power(messages, newWorkspace(k.p.limbs()))
		}
		for i := range messages {
			if !slices.Equal(results[0][i], results[1][i]) {
				t.Errorf("%d bits: lane %d", bits, i)
			}
		}
	}
}
