package mldsamu

import (
	"crypto/sha3"
	"crypto/subtle"
	"math/bits"
	"slices"
)

// IsExpanded reports whether an expanded private key, as FIPS 204 encodes it and OpenSSL
// writes it beside the seed, is that of this key. Unlike a signature, the answer takes a time
// that depends on the key: it is for files that one reads, and not for what others send.
func (k *PrivateKey) IsExpanded(expanded []byte) bool {
	return subtle.ConstantTimeCompare(k.expand(), expanded) == 1
}

// expand makes the expanded private key of the seed (FIPS 204, algorithms 6 and 24).
func (k *PrivateKey) expand() []byte {
	p := NewPublicKey(k.public)
	p.expandKey()
	h := sha3.NewSHAKE256()
	h.Write(k.key.Bytes())
	h.Write([]byte{byte(p.k), byte(p.l)})
	seeds := make([]byte, 32+64+32)
	h.Read(seeds)
	rho, secret, signing := seeds[:32], seeds[32:96], seeds[96:]

	s := make([]poly, p.l+p.k)
	for i := range s {
		s[i].sampleSmall(secret, byte(i), p.eta())
	}
	sk := slices.Concat(rho, signing, sha3.SumSHAKE256(k.public.Bytes(), Size))
	for i := range s {
		sk = append(sk, s[i].packBelow(p.eta(), bits.Len32(2*p.eta()))...)
	}
	s1, s2 := s[:p.l], s[p.l:]
	for i := range s1 {
		s1[i].transform()
	}
	var one poly
	for i := range one {
		one[i] = 1 // the transform of 1
	}
	for row := range p.k {
		t0 := p.product(row, s1, &one)
		for i := range t0 {
			t0[i] = add(t0[i], s2[row][i])
		}
		sk = append(sk, t0.packBelow(1<<(d-1), d)...)
	}
	return sk
}

// packBelow encodes how far coefficients are below a limit (FIPS 204, algorithm 17).
func (p *poly) packBelow(limit uint32, width int) []byte {
	var below poly
	for i := range p {
		below[i] = sub(limit, p[i])
	}
	return below.pack(width)
}

// sampleSmall makes a polynomial of a secret vector (FIPS 204, algorithms 15, 31 and 33).
func (p *poly) sampleSmall(seed []byte, index byte, eta uint32) {
	h := sha3.NewSHAKE256()
	h.Write(seed)
	h.Write([]byte{index, 0})
	b := make([]byte, 1)
	for i := 0; i < n; {
		h.Read(b)
		for _, x := range []uint32{uint32(b[0] & 15), uint32(b[0] >> 4)} {
			if i == n || x >= 15 || eta == 4 && x >= 9 {
				continue
			}
			if eta == 2 {
				x %= 5
			}
			p[i] = sub(eta, x)
			i++
		}
	}
}
