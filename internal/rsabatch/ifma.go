//go:build amd64 && !purego

package rsabatch

import "golang.org/x/sys/cpu"

// ifma is the engine of processors with AVX-512 IFMA.
type ifma struct{}

// hardware returns the engine of this processor, if it has one.
func hardware() (engine, error) {
	// Package cpu also asks whether the system saves these registers.
	if !cpu.X86.HasAVX512F || !cpu.X86.HasAVX512DQ || !cpu.X86.HasAVX512IFMA {
		return nil, ErrProcessor
	}
	return ifma{}, nil
}

func (ifma) mul(z, x, y []uint64, m *modulus, q []uint64) {
	sameLength(m, z, x, y, q)
	montMul(&z[0], &x[0], &y[0], &m.vector[0], &q[0], &m.negInv[0], m.tiles())
}

func (ifma) sqr(z, x []uint64, m *modulus, q []uint64) {
	sameLength(m, z, x, q)
	montSqr(&z[0], &x[0], &m.vector[0], &q[0], &m.negInv[0], m.tiles())
}

func (ifma) choose(z, table []uint64, index uint64) {
	if len(z)%tileWords != 0 || len(table)%len(z) != 0 {
		panic("rsabatch: a table of another length")
	}
	choose(&z[0], &table[0], index, len(table)/len(z), len(z)/tileWords)
}

// sameLength keeps the assembly, which knows one length, within its arguments.
func sameLength(m *modulus, vectors ...[]uint64) {
	for _, v := range vectors {
		if len(v) != len(m.vector) || len(v)%tileWords != 0 {
			panic("rsabatch: a vector of another length")
		}
	}
}
