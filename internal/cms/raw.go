package cms

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"

	"filippo.io/mldsa"

	"github.com/modsign/modsign/internal/mldsamu"
)

// Wrap returns the message that [Signer.Sign] returns for a digest, with an existing
// signature of RSA (PKCS #1 v1.5) or ML-DSA, such as the bare value from a signing server.
// It fails if the certificate's key did not make the signature for this digest. A message of
// ML-DSA names SHA-512.
func Wrap(cert *x509.Certificate, hash Hash, useKeyID bool, digest, signature []byte) ([]byte, error) {
	cert, err := WithKey(cert)
	if err != nil {
		return nil, err
	}
	h := hash.HashFunc()
	if mu, ok := hash.(*mldsamu.PublicKey); ok {
		h = crypto.SHA512
		if size := mu.Key().Parameters().SignatureSize(); len(signature) != size {
			return nil, fmt.Errorf("signature of %d bytes: one by the certificate's key has %d", len(signature), size)
		}
		if mu.Verify(digest, signature) != nil {
			return nil, errors.New("not an ML-DSA signature of the module by the certificate's key")
		}
	}
	s, err := NewSigner(madeAlready{cert.PublicKey, signature}, cert, h, Form{UseKeyID: useKeyID})
	if err != nil {
		return nil, err
	}
	if s.Hash().HashFunc() != hash.HashFunc() {
		return nil, errors.New("the digest is for a key of another kind than the certificate's")
	}
	public, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok && s.mldsa == nil {
		return nil, fmt.Errorf("certificate's key is %s: a signature value without a message must be RSA or ML-DSA",
			KeyAlgorithm(cert))
	}
	if ok && len(digest) == h.Size() && rsa.VerifyPKCS1v15(public, h, digest, signature) != nil {
		if _, err := RawHash(cert, signature); err != nil {
			return nil, err
		}
		return nil, errors.New("the signature is for another digest")
	}
	return s.Sign(digest, nil)
}

// madeAlready is a private key that returns one existing signature.
type madeAlready struct {
	public    crypto.PublicKey
	signature []byte
}

func (k madeAlready) Public() crypto.PublicKey { return k.public }

func (k madeAlready) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return k.signature, nil
}

// RawHash returns the hash that an RSA signature (PKCS #1 v1.5) by the certificate's key
// names. It fails if that key did not make the signature. For a key of ML-DSA it returns
// which mu all signatures are for.
func RawHash(cert *x509.Certificate, signature []byte) (crypto.Hash, error) {
	cert, err := WithKey(cert)
	if err != nil {
		return 0, err
	}
	if key, ok := cert.PublicKey.(*mldsa.PublicKey); ok {
		return mldsaOf(key).mu, nil
	}
	public, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok {
		return 0, fmt.Errorf("certificate's key is %s: a signature value without a message must be RSA or ML-DSA",
			KeyAlgorithm(cert))
	}
	if len(signature) != public.Size() {
		return 0, fmt.Errorf("signature of %d bytes: an RSA signature by the certificate's key has %d", len(signature),
			public.Size())
	}
	s := new(big.Int).SetBytes(signature)
	if s.Cmp(public.N) < 0 {
		block := s.Exp(s, big.NewInt(int64(public.E)), public.N).FillBytes(make([]byte, public.Size()))
		for i := range hashes {
			a := &hashes[i]
			info := slices.Concat(header(tagSequence, 8+len(a.oid)+a.hash.Size()), header(tagSequence, 4+len(a.oid)),
				header(tagOID, len(a.oid)), []byte(a.oid), null, header(tagOctetString, a.hash.Size()))
			padding := len(block) - 3 - len(info) - a.hash.Size()
			if padding < 8 {
				continue
			}
			want := slices.Concat([]byte{0, 1}, bytes.Repeat([]byte{0xff}, padding), []byte{0}, info)
			if bytes.HasPrefix(block, want) {
				return a.hash, nil
			}
		}
	}
	return 0, errors.New("not an RSA signature (PKCS #1 v1.5) by the certificate's key")
}
