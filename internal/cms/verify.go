package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"fmt"
	"math/big"
	"strings"
	"syscall"

	"filippo.io/mldsa"

	"github.com/modsign/modsign/internal/mldsamu"
)

// verify checks a signature with the certificate's key like the kernel's
// public_key_verify_signature. It calls digest last, and returns errors of digest
// unchanged. All other errors are of type *Error.
func (c *Certificate) verify(s *signature, digest func(Hash) ([]byte, error)) error {
	if s.algorithm != c.KeyAlgorithm && !(s.algorithm == "ecdsa" && strings.HasPrefix(c.KeyAlgorithm, "ecdsa-")) {
		return &Error{Kind: BadSignature, Errno: syscall.EKEYREJECTED,
			Reason: fmt.Sprintf("signature algorithm %s, but the key is for %s", s.algorithm, c.KeyAlgorithm)}
	}
	if c.PublicKey == nil {
		kind := BadSignature
		if c.keyErrno == syscall.ENOPKG {
			kind = Unsupported
		}
		return &Error{Kind: kind, Errno: c.keyErrno, Reason: c.KeyProblem}
	}
	if s.attributes != nil {
		digest = func(h Hash) ([]byte, error) { return sum(h, s.attributes), nil }
	}
	if c.mldsa != nil {
		return c.verifyMLDSA(s, digest)
	}
	if s.hash == 0 {
		return &Error{Kind: Unsupported, Errno: syscall.ENOPKG, Reason: "modsign cannot compute the digest " + s.hashName}
	}
	sum, err := digest(s.hash)
	if err != nil {
		return err
	}
	var errno syscall.Errno
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		errno = verifyRSA(key, s.hash, sum, s.value)
	case *ecdsa.PublicKey:
		errno = verifyECDSA(key, sum, s.value)
	}
	if errno != 0 {
		return &Error{Kind: BadSignature, Errno: errno, Reason: "signature does not match the data"}
	}
	return nil
}

// verifyMLDSA is verify for a key of ML-DSA, which takes data and hashes it to mu.
func (c *Certificate) verifyMLDSA(s *signature, digest func(Hash) ([]byte, error)) error {
	if s.attributes != nil && s.hash != crypto.SHA512 {
		return &Error{Kind: BadSignature, Errno: syscall.EINVAL,
			Reason: "ML-DSA with signed attributes and " + s.hashName + ", and the kernel takes sha512"}
	}
	mu, err := digest(c.mldsa)
	if err != nil {
		return err
	}
	errno := syscall.EKEYREJECTED
	switch err := c.mldsa.Verify(mu, s.value); err {
	case nil:
		return nil
	case mldsamu.ErrMalformed:
		errno = syscall.EBADMSG
	}
	return &Error{Kind: BadSignature, Errno: errno, Reason: "signature does not match the data"}
}

// Verifies is [Verifier.Verifies] for one signature.
func Verifies(public crypto.PublicKey, h crypto.Hash, digest, signature []byte) bool {
	return NewVerifier(public).Verifies(h, digest, signature)
}

// Verifier checks signatures by one key. What depends on the key alone is computed once.
type Verifier struct {
	public crypto.PublicKey // of ML-DSA: a *mldsamu.PublicKey
}

// NewVerifier returns the Verifier of a key.
func NewVerifier(public crypto.PublicKey) *Verifier {
	if key, ok := public.(*mldsa.PublicKey); ok {
		public = mldsamu.NewPublicKey(key)
	}
	return &Verifier{public}
}

// Verifies reports whether a signature is one of a module's kind (PKCS #1 v1.5, ECDSA in
// strict DER, or pure ML-DSA) of a digest, by the private key of the public one.
func (v *Verifier) Verifies(h crypto.Hash, digest, signature []byte) bool {
	switch key := v.public.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, h, digest, signature) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, digest, signature)
	case *mldsamu.PublicKey:
		return key.Verify(digest, signature) == nil
	}
	return false
}

// verifyRSA returns 0 or the errno that the kernel's rsa-pkcs1pad.c returns.
func verifyRSA(key *rsa.PublicKey, h crypto.Hash, sum, sig []byte) syscall.Errno {
	if rsa.VerifyPKCS1v15(key, h, sum, sig) == nil {
		return 0
	}
	// The reason affects only the errno, and only for a certificate inside the message.
	s := new(big.Int).SetBytes(sig)
	if len(sig) != key.Size() || s.Cmp(key.N) >= 0 {
		return syscall.EINVAL
	}
	block := s.Exp(s, big.NewInt(int64(key.E)), key.N).FillBytes(make([]byte, key.Size()))
	if block[0] != 0 {
		return syscall.EINVAL
	}
	padding := 2
	for padding < len(block) && block[padding] == 0xff {
		padding++
	}
	if block[1] != 1 || padding < 10 || padding == len(block) || block[padding] != 0 {
		return syscall.EBADMSG
	}
	oid := hashAlgorithmOf(h).oid
	prefix := []byte{tagSequence, byte(8 + len(oid) + h.Size()), tagSequence, byte(4 + len(oid)), tagOID, byte(len(oid))}
	prefix = append(append(prefix, oid...), 5, 0, tagOctetString, byte(h.Size()))
	if !bytes.HasPrefix(block[padding+1:], prefix) {
		return syscall.EBADMSG
	}
	return syscall.EKEYREJECTED
}

// verifyECDSA returns 0 or the errno that the kernel's ecdsa.c returns, which is less
// strict about DER than crypto/ecdsa.
func verifyECDSA(key *ecdsa.PublicKey, sum, sig []byte) syscall.Errno {
	d := newDecoder(sig)
	d.need(tagSequence)
	r, errno := ecdsaInteger(&d, key)
	if errno != 0 {
		return errno
	}
	s, errno := ecdsaInteger(&d, key)
	if errno != 0 {
		return errno
	}
	if d.leave(); d.err != nil {
		return syscall.EBADMSG
	}
	order := key.Curve.Params().N
	if r.Sign() == 0 || s.Sign() == 0 || r.Cmp(order) >= 0 || s.Cmp(order) >= 0 {
		return syscall.EBADMSG
	}
	if !ecdsa.VerifyASN1(key, sum, encodeECDSA(r, s)) {
		return syscall.EKEYREJECTED
	}
	return 0
}

// ecdsaInteger reads r or s: an unsigned number in as many octets as the kernel uses
// for the curve, perhaps with a zero octet in front.
func ecdsaInteger(d *decoder, key *ecdsa.PublicKey) (*big.Int, syscall.Errno) {
	if !d.need(tagInteger) {
		return nil, syscall.EBADMSG
	}
	const word = 8
	value, limit := d.value(), (key.Curve.Params().BitSize+word*8-1)/(word*8)*word
	if len(value) == 0 || len(value) > limit+1 || len(value) == limit+1 && value[0] != 0 {
		return nil, syscall.EINVAL
	}
	return new(big.Int).SetBytes(value), 0
}
