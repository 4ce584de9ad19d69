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
)

// Wrap returns the message that Sign would have made of a digest, around an RSA
// signature (PKCS #1 v1.5) that somebody else has made: a signing server that
// returns the bare value, say. It is an error if the signature is not one of the
// digest by the certificate's key.
func Wrap(cert *x509.Certificate, h crypto.Hash, useKeyID bool, digest, signature []byte) ([]byte, error) {
	public, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("certificate's key is %s: a signature without its message is taken for RSA", KeyAlgorithm(cert))
	}
	s, err := NewSigner(madeAlready{public, signature}, cert, h, useKeyID)
	if err != nil {
		return nil, err
	}
	if len(digest) == h.Size() && rsa.VerifyPKCS1v15(public, h, digest, signature) != nil {
		if _, err := RSAHash(cert, signature); err != nil {
			return nil, err
		}
		return nil, errors.New("the signature is that of another digest")
	}
	return s.Sign(digest)
}

// madeAlready is a private key that has made its one signature.
type madeAlready struct {
	public    *rsa.PublicKey
	signature []byte
}

func (k madeAlready) Public() crypto.PublicKey { return k.public }

func (k madeAlready) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return k.signature, nil
}

// RSAHash returns the hash that an RSA signature (PKCS #1 v1.5) by the certificate's
// key says it is made with. It is an error if it was not made by that key.
func RSAHash(cert *x509.Certificate, signature []byte) (crypto.Hash, error) {
	public, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok {
		return 0, fmt.Errorf("certificate's key is %s: a signature without its message is taken for RSA", KeyAlgorithm(cert))
	}
	if len(signature) != public.Size() {
		return 0, fmt.Errorf("%d bytes: an RSA signature by the certificate's key has %d", len(signature), public.Size())
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
	return 0, errors.New("no RSA signature (PKCS #1 v1.5) by the certificate's key")
}
