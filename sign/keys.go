package sign

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"hash"
	"reflect"

	"github.com/modsign/modsign/internal/cms"
)

// checkCertificate refuses a certificate that was not parsed.
func checkCertificate(cert *x509.Certificate) error {
	switch {
	case cert == nil:
		return errors.New("no certificate is given")
	case len(cert.Raw) == 0:
		return errors.New("the certificate was not parsed: it has no encoding")
	case !isWhole(publicKeyOf(cert)):
		return errors.New("the certificate has no public key that can be used")
	}
	return nil
}

// publicKeyOf is the key of a certificate, also of ML-DSA, which crypto/x509 does not parse
// before Go 1.27.
func publicKeyOf(cert *x509.Certificate) crypto.PublicKey {
	if cert.PublicKeyAlgorithm != x509.UnknownPublicKeyAlgorithm {
		return cert.PublicKey
	}
	whole, err := cms.WithKey(cert)
	if err != nil {
		return nil
	}
	return whole.PublicKey
}

// checkKey refuses a private key that is none, or lacks its numbers.
func checkKey(key crypto.Signer) error {
	if isNil(key) {
		return errors.New("no private key is given")
	}
	if !isWhole(key) || !isWhole(publicOf(key)) {
		return errors.New("the private key has no value that can be used")
	}
	return nil
}

// publicOf is key.Public, and nil where that panics.
func publicOf(key crypto.Signer) (public crypto.PublicKey) {
	defer func() {
		if recover() != nil { // the words of a panic may be about the key
			public = nil
		}
	}()
	return key.Public()
}

// isWhole reports whether a key, public or private, equals itself: package crypto
// panics over the numbers that a zero value lacks. Whether it is of a kind that the
// kernel knows is for others to say.
func isWhole(key any) (whole bool) {
	defer func() {
		if recover() != nil {
			whole = false
		}
	}()
	if isNil(key) {
		return false
	}
	if key, ok := key.(*ecdsa.PublicKey); ok && key.Curve == nil {
		return false
	}
	switch key := key.(type) {
	case interface{ Equal(crypto.PublicKey) bool }:
		return key.Equal(key)
	case interface{ Equal(crypto.PrivateKey) bool }:
		return key.Equal(key)
	}
	return true
}

// isNil reports whether an interface holds nothing, or a pointer to nothing.
func isNil(v any) bool {
	if v == nil {
		return true
	}
	switch value := reflect.ValueOf(v); value.Kind() {
	case reflect.Chan, reflect.Func, reflect.Map, reflect.Pointer, reflect.Slice:
		return value.IsNil()
	}
	return false
}

// orFailing is a hash that somebody else's code has begun, and may not have.
func orFailing(h hash.Hash) hash.Hash {
	if isNil(h) {
		return noHash{}
	}
	return h
}

// noHash stands for a hash that was not begun: to write to it fails.
type noHash struct{}

func (noHash) Write([]byte) (int, error) { return 0, errors.New("there is no hash for this module") }
func (noHash) Sum(b []byte) []byte       { return b }
func (noHash) Reset()                    {}
func (noHash) Size() int                 { return 0 }
func (noHash) BlockSize() int            { return 1 }
