// Package mldsamu signs and verifies the signatures of ML-DSA (FIPS 204) that modules have,
// from a value of 64 bytes in the place of the module.
//
// ML-DSA signs a message and no digest of it. It begins, though, with a hash: mu is the
// SHAKE256 of the public key's hash and the message (FIPS 204, algorithm 7, line 6).
// Everything else follows from mu and the key. So whoever has the module and the public key
// computes mu, a block at a time, and whoever has the private key needs nothing else. RFC
// 9881, appendix D, calls that ExternalMu. This package takes mu for the digest of a
// signature; it has a size and a hash.Hash like one, but each key has its own.
//
//	tr = SHAKE256(public key, 64 bytes)
//	mu = SHAKE256(tr ‖ 00 ‖ 00 ‖ message, 64 bytes)
//
// The two octets say: pure ML-DSA, with a context string of no bytes. The kernel knows
// nothing else (lib/crypto/mldsa.c).
//
// The keys are those of filippo.io/mldsa, which also makes the signatures. It verifies
// messages alone, though, so [PublicKey.Verify] is of this package. It works on public values
// only, and takes no care to hide them.
package mldsamu

import (
	"crypto"
	"crypto/sha256"
	"crypto/sha3"
	"fmt"
	"hash"
	"io"
	"sync"

	"filippo.io/mldsa"
	"filippo.io/mldsa/mldsacrypto"
	"filippo.io/mldsa/x509"
)

// Size is the length of mu in bytes.
const Size = 64

// The names of mu as digests, one for each parameter set. They are outside of what package
// crypto knows: their methods New and Size panic. Use [New] and [Size].
const (
	Mu44 crypto.Hash = 0x4d4c<<16 + 44 // ML-DSA-44
	Mu65 crypto.Hash = 0x4d4c<<16 + 65 // ML-DSA-65
	Mu87 crypto.Hash = 0x4d4c<<16 + 87 // ML-DSA-87
)

// IsMu reports whether a digest is one of this package.
func IsMu(h crypto.Hash) bool { return h == Mu44 || h == Mu65 || h == Mu87 }

// PublicKey hashes messages for a public key, and verifies signatures. What depends on the
// key alone is computed once. Several goroutines may use it.
type PublicKey struct {
	*parameters
	key   *mldsa.PublicKey
	begun sha3.SHAKE // mu of an empty message

	expand sync.Once
	matrix []poly // k rows of l, transformed
	t1     []poly // times 2^d, transformed
}

// NewPublicKey returns the PublicKey of a key.
func NewPublicKey(key *mldsa.PublicKey) *PublicKey {
	p := &PublicKey{parameters: parametersOf(key), key: key, begun: *sha3.NewSHAKE256()}
	p.begun.Write(sha3.SumSHAKE256(key.Bytes(), Size))
	p.begun.Write([]byte{0, 0}) // pure, no context
	return p
}

// Key returns the key.
func (p *PublicKey) Key() *mldsa.PublicKey { return p.key }

// HashFunc returns the name of mu for the key: Mu44, Mu65 or Mu87.
func (p *PublicKey) HashFunc() crypto.Hash { return p.mu }

// ID returns the SHA-256 of the key's SubjectPublicKeyInfo (RFC 9881, section 4).
func (p *PublicKey) ID() []byte {
	spki, err := x509.MarshalPKIXPublicKey(p.key)
	if err != nil {
		panic(err) // it knows all keys of its own module
	}
	sum := sha256.Sum256(spki)
	return sum[:]
}

// New begins mu of a message.
func (p *PublicKey) New() hash.Hash { return &muHash{p.begun, &p.begun} }

// muHash hashes a message to mu.
type muHash struct {
	state sha3.SHAKE
	begun *sha3.SHAKE
}

func (h *muHash) Write(p []byte) (int, error) { return h.state.Write(p) }

func (h *muHash) Sum(b []byte) []byte {
	sum, state := make([]byte, Size), h.state
	state.Read(sum)
	return append(b, sum...)
}

func (h *muHash) Reset()         { h.state = *h.begun }
func (h *muHash) Size() int      { return Size }
func (h *muHash) BlockSize() int { return h.state.BlockSize() }

// PrivateKey is a private key as a crypto.Signer. Its signatures are deterministic: the
// same key and message give the same bytes.
type PrivateKey struct {
	key    *mldsa.PrivateKey
	public *mldsa.PublicKey
}

// NewPrivateKey returns the PrivateKey of a key.
func NewPrivateKey(key *mldsa.PrivateKey) *PrivateKey { return &PrivateKey{key, key.PublicKey()} }

// Public returns a *mldsa.PublicKey.
func (k *PrivateKey) Public() crypto.PublicKey { return k.public }

// Key returns the key.
func (k *PrivateKey) Key() *mldsa.PrivateKey { return k.key }

// Equal reports whether x is the same private key.
func (k *PrivateKey) Equal(x crypto.PrivateKey) bool {
	other, ok := x.(*PrivateKey)
	return ok && k.key.Equal(other.key)
}

// Sign signs mu, if the hash of opts is that of the key, or a whole message, if it is 0. It
// does not use rand, which may be nil.
func (k *PrivateKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	switch h := opts.HashFunc(); {
	case h == 0:
		return k.key.SignDeterministic(digest, nil)
	case h != parametersOf(k.public).mu:
		return nil, fmt.Errorf("an %s key signs the mu of its messages, and no other digest", k.public.Parameters())
	case len(digest) != Size:
		return nil, fmt.Errorf("mu of %d bytes: it has %d", len(digest), Size)
	}
	return k.key.SignDeterministic(digest, mldsacrypto.MLDSAMu)
}
