package mldsamu

import (
	"bytes"
	"crypto"
	"crypto/sha3"
	"errors"
	"math/bits"

	"filippo.io/mldsa"
)

// parameters are a row of FIPS 204, table 1.
type parameters struct {
	mu         crypto.Hash
	k, l       int    // the matrix is k by l
	tau        int    // entries of the challenge that are not 0
	gamma1     uint32 // range of z
	gamma1Bits int    // in a packed coefficient of z
	gamma2     uint32 // range of the low part of w
	omega      int    // most hints
	challenge  int    // bytes of the hash that makes the challenge: lambda / 4
}

const (
	n = 256
	q = 1<<23 - 1<<13 + 1
	d = 13 // bits that are dropped of t
)

var (
	parameters44 = parameters{Mu44, 4, 4, 39, 1 << 17, 18, (q - 1) / 88, 80, 32}
	parameters65 = parameters{Mu65, 6, 5, 49, 1 << 19, 20, (q - 1) / 32, 55, 48}
	parameters87 = parameters{Mu87, 8, 7, 60, 1 << 19, 20, (q - 1) / 32, 75, 64}
)

func parametersOf(public *mldsa.PublicKey) *parameters {
	switch public.Parameters() {
	case mldsa.MLDSA44():
		return &parameters44
	case mldsa.MLDSA65():
		return &parameters65
	}
	return &parameters87
}

// eta is the largest coefficient of a secret vector.
func (p *parameters) eta() uint32 {
	if p == &parameters65 {
		return 4
	}
	return 2
}

// beta is the largest coefficient of the challenge times a secret vector.
func (p *parameters) beta() uint32 { return uint32(p.tau) * p.eta() }

func (p *parameters) signatureSize() int {
	return p.challenge + p.l*n*p.gamma1Bits/8 + p.omega + p.k
}

// poly is a polynomial, or its number theoretic transform. Coefficients are below q.
type poly [n]uint32

// expandKey computes the matrix and the rest that depends on the key alone.
func (p *PublicKey) expandKey() {
	encoded := p.key.Bytes()
	p.matrix, p.t1 = make([]poly, p.k*p.l), make([]poly, p.k)
	rho, t1 := encoded[:32], encoded[32:]
	for row := range p.k {
		for column := range p.l {
			p.matrix[row*p.l+column].sample(rho, byte(column), byte(row))
		}
		// FIPS 204, algorithm 23: 10 bits a coefficient, little endian.
		t := &p.t1[row]
		unpack(t1[row*n*10/8:], 10, func(i int, x uint32) { t[i] = x << d })
		t.transform()
	}
}

var (
	// ErrMalformed reports a signature that is one of no message.
	ErrMalformed = errors.New("malformed signature")
	// ErrMismatch reports a signature that is not one of the message, or by another key.
	ErrMismatch = errors.New("signature of another message or key")
)

// Verify checks a signature of the message with this mu. The error is ErrMalformed or
// ErrMismatch.
func (p *PublicKey) Verify(mu, signature []byte) error {
	if len(signature) != p.signatureSize() {
		return ErrMalformed
	}
	if len(mu) != Size {
		return ErrMismatch
	}
	p.expand.Do(p.expandKey)
	challenge, packed := signature[:p.challenge], signature[p.challenge:]
	z := make([]poly, p.l)
	limit := p.gamma1 - p.beta()
	small := true
	for i := range z {
		unpack(packed[i*n*p.gamma1Bits/8:], p.gamma1Bits, func(j int, x uint32) {
			if x <= p.gamma1-limit || x >= p.gamma1+limit { // gamma1 - x is too large
				small = false
			}
			z[i][j] = sub(p.gamma1, x)
		})
		z[i].transform()
	}
	hints, ok := p.unpackHints(packed[p.l*n*p.gamma1Bits/8:])
	if !small || !ok {
		return ErrMalformed
	}
	var c poly
	c.challenge(challenge, p.tau)
	c.transform()
	h := sha3.NewSHAKE256()
	h.Write(mu)
	for row := range p.k {
		product := p.product(row, z, &c)
		h.Write(p.highPart(&product, hints[row]))
	}
	sum := make([]byte, p.challenge)
	h.Read(sum)
	if !bytes.Equal(sum, challenge) {
		return ErrMismatch
	}
	return nil
}

// product returns a row of the matrix times z, less the row of t1 times c. All are
// transformed, and the result is not.
func (p *PublicKey) product(row int, z []poly, c *poly) (product poly) {
	w := p.matrix[row*p.l : (row+1)*p.l]
	for i := range product {
		var sum uint64 // at most 8 * 2^46
		for column := range w {
			sum += uint64(w[column][i]) * uint64(z[column][i])
		}
		sum += uint64(q-c[i]) * uint64(p.t1[row][i])
		product[i] = uint32(sum % q)
	}
	product.inverse()
	return product
}

// unpackHints reads, for each row, the indices of the coefficients whose high part is one
// off (FIPS 204, algorithm 21). There is one encoding of them only.
func (p *parameters) unpackHints(b []byte) ([][]byte, bool) {
	indices, ends := b[:p.omega], b[p.omega:]
	hints := make([][]byte, p.k)
	begin := 0
	for row, end := range ends {
		if int(end) < begin || int(end) > p.omega {
			return nil, false
		}
		hints[row] = indices[begin:end]
		for i := 1; i < len(hints[row]); i++ {
			if hints[row][i-1] >= hints[row][i] {
				return nil, false
			}
		}
		begin = int(end)
	}
	for _, index := range indices[begin:] {
		if index != 0 {
			return nil, false
		}
	}
	return hints, true
}

// highPart packs the high parts of a row, corrected by hints (FIPS 204, algorithms 40, 28).
func (p *parameters) highPart(w *poly, hints []byte) []byte {
	count := (q - 1) / (2 * p.gamma2) // of high parts: 44 or 16
	var high poly
	for i, x := range w {
		var low int32
		high[i], low = decompose(x, p.gamma2)
		if len(hints) > 0 && int(hints[0]) == i {
			hints = hints[1:]
			if low > 0 {
				high[i] = (high[i] + 1) % count
			} else {
				high[i] = (high[i] + count - 1) % count
			}
		}
	}
	return high.pack(bits.Len32(count - 1))
}

// pack encodes coefficients of so many bits, little endian.
func (p *poly) pack(width int) []byte {
	packed := make([]byte, 0, n*width/8)
	var buffer uint64
	filled := 0
	for _, x := range p {
		buffer |= uint64(x) << filled
		for filled += width; filled >= 8; filled -= 8 {
			packed = append(packed, byte(buffer))
			buffer >>= 8
		}
	}
	return packed
}

// decompose returns x as high * 2 gamma2 + low, where low is in (-gamma2, gamma2], except
// that q - 1 counts as -1 (FIPS 204, algorithm 36).
func decompose(x, gamma2 uint32) (high uint32, low int32) {
	low = int32(x % (2 * gamma2))
	if low > int32(gamma2) {
		low -= int32(2 * gamma2)
	}
	if int32(x)-low == q-1 {
		return 0, low - 1
	}
	return uint32(int32(x)-low) / (2 * gamma2), low
}

// unpack calls f for each of n numbers of so many bits, little endian.
func unpack(b []byte, width int, f func(i int, x uint32)) {
	var buffer uint64
	filled := 0
	for i := range n {
		for filled < width {
			buffer |= uint64(b[0]) << filled
			b, filled = b[1:], filled+8
		}
		f(i, uint32(buffer)&(1<<width-1))
		buffer, filled = buffer>>width, filled-width
	}
}

// sample makes an entry of the matrix (FIPS 204, algorithms 14 and 30).
func (p *poly) sample(rho []byte, column, row byte) {
	h := sha3.NewSHAKE128()
	h.Write(rho)
	h.Write([]byte{column, row})
	block := make([]byte, 168) // the rate, and a multiple of 3
	for i := 0; i < n; {
		h.Read(block)
		for b := block; len(b) > 0 && i < n; b = b[3:] {
			if x := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2]&0x7f)<<16; x < q {
				p[i] = x
				i++
			}
		}
	}
}

// challenge makes a polynomial with tau coefficients of 1 or -1 (FIPS 204, algorithm 29).
func (p *poly) challenge(seed []byte, tau int) {
	h := sha3.NewSHAKE256()
	h.Write(seed)
	var sign [8]byte
	h.Read(sign[:])
	for i := n - tau; i < n; i++ {
		j := make([]byte, 1)
		for h.Read(j); int(j[0]) > i; h.Read(j) {
		}
		p[i] = p[j[0]]
		p[j[0]] = 1
		if bit := i + tau - n; sign[bit/8]>>(bit%8)&1 == 1 {
			p[j[0]] = q - 1
		}
	}
}

// zetas are the powers of the 512th root of unity 1753, in the order in which the
// transform needs them (FIPS 204, appendix B).
var zetas = func() (z [n]uint32) {
	power := uint32(1)
	for i := range n {
		z[bits.Reverse8(uint8(i))] = power
		power = mul(power, 1753)
	}
	return z
}()

// transform is the number theoretic transform (FIPS 204, algorithm 41).
func (p *poly) transform() {
	m := 0
	for length := n / 2; length > 0; length /= 2 {
		for start := 0; start < n; start += 2 * length {
			m++
			a, b := p[start:start+length], p[start+length:start+2*length]
			for i := range a {
				t := mul(zetas[m], b[i])
				a[i], b[i] = add(a[i], t), sub(a[i], t)
			}
		}
	}
}

// inverse undoes transform (FIPS 204, algorithm 42).
func (p *poly) inverse() {
	m := n
	for length := 1; length < n; length *= 2 {
		for start := 0; start < n; start += 2 * length {
			m--
			a, b := p[start:start+length], p[start+length:start+2*length]
			for i := range a {
				a[i], b[i] = add(a[i], b[i]), mul(q-zetas[m], sub(a[i], b[i]))
			}
		}
	}
	for i := range p {
		p[i] = mul(p[i], 8347681) // 1/256
	}
}

func mul(a, b uint32) uint32 { return uint32(uint64(a) * uint64(b) % q) }

func add(a, b uint32) uint32 { return reduce(a + b) }

func sub(a, b uint32) uint32 { return reduce(a + q - b) }

func reduce(a uint32) uint32 {
	if a >= q {
		return a - q
	}
	return a
}
