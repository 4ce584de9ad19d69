package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"filippo.io/mldsa"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/modsign/modsign/internal/mldsamu"
)

// Signer signs like scripts/sign-file with one key, one certificate and one digest
// algorithm. It is safe for concurrent use if its key is, as the keys of the standard
// library are.
//
// A Signer signs a digest; with ML-DSA, mu of the data.
type Signer struct {
	key        crypto.Signer
	public     crypto.PublicKey
	digest     *hashAlgorithm
	mldsa      *mldsamu.PublicKey // of public, or nil
	attributes bool
	version    int
	sid        []byte
	algorithm  string
}

// Form chooses between the forms of a message. The zero value is the usual one.
type Form struct {
	// UseKeyID names the signer by subject key identifier (sign-file -k), instead of by
	// issuer and serial number.
	UseKeyID bool
	// Attributes signs the digest in signed attributes, as sign-file does with OpenSSL 3.5
	// and 3.6. The key has to be one of ML-DSA.
	Attributes bool
}

// NewSigner returns a Signer. The certificate's public key determines how to sign.
// NewSigner uses only Public and Sign of key, so the private key may be in a token. Of the
// certificate it uses the identifiers and the key, and only Raw needs to be set. With a key
// of ML-DSA, the messages have the digest's name, and the kernel does not look at it.
//
// NewSigner returns an error if no kernel could verify the signatures. The kernel
// supports RSA in the lengths that crypto/rsa.c accepts, ECDSA on P-256, P-384 and
// P-521, and ML-DSA, with the digests that its CMS parser knows. A key that does not match
// the certificate is an error too.
func NewSigner(key crypto.Signer, cert *x509.Certificate, h crypto.Hash, form Form) (*Signer, error) {
	cert, err := WithKey(cert)
	if err != nil {
		return nil, err
	}
	s := &Signer{key: key, public: cert.PublicKey, digest: hashAlgorithmOf(h), attributes: form.Attributes}
	if s.digest == nil {
		return nil, fmt.Errorf("the kernel verifies no module signature made with %s; use one of %s", HashName(h),
			hashNames())
	}
	switch public := cert.PublicKey.(type) {
	case *rsa.PublicKey:
		s.algorithm = "rsa"
		if bits := public.N.BitLen(); !slices.Contains(rsaSizes, public.Size()*8) {
			return nil, fmt.Errorf("RSA key of %d bits: the kernel verifies only %s", bits, rsaSizeNames())
		}
	case *ecdsa.PublicKey:
		s.algorithm = "ecdsa"
		if c := public.Curve; c != elliptic.P256() && c != elliptic.P384() && c != elliptic.P521() {
			return nil, fmt.Errorf("elliptic curve %s: the kernel verifies P-256, P-384 and P-521", c.Params().Name)
		}
	case *mldsa.PublicKey:
		s.mldsa = mldsamu.NewPublicKey(public)
		s.algorithm = mldsaOf(public).name
		if plain, ok := key.(*mldsa.PrivateKey); ok { // which has another name for mu
			s.key = mldsamu.NewPrivateKey(plain)
		}
	default:
		return nil, fmt.Errorf("certificate's key is %s: the kernel verifies RSA (PKCS #1 v1.5), ECDSA and ML-DSA",
			KeyAlgorithm(cert))
	}
	switch {
	case form.Attributes && s.mldsa == nil:
		return nil, fmt.Errorf("signed attributes with a key that is %s: the kernel takes them with ML-DSA alone", s.algorithm)
	case form.Attributes && h != crypto.SHA512:
		return nil, fmt.Errorf("signed attributes with %s: the kernel takes them with sha512 alone", s.digest.name)
	}
	if public, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(key.Public()) {
		return nil, errors.New("private key does not match certificate")
	}
	if form.UseKeyID {
		if len(cert.SubjectKeyId) == 0 {
			return nil, errors.New("certificate has no subject key identifier")
		}
		s.version, s.sid = 3, keyIDIdentifier(cert.SubjectKeyId)
	} else {
		serial, err := rawSerial(cert)
		if err != nil {
			return nil, err
		}
		if len(cert.RawIssuer) == 2 {
			return nil, errors.New("certificate's issuer is empty: " +
				"no kernel loads the certificate or parses a signature that names it")
		}
		s.version, s.sid = 1, serialIdentifier(cert.RawIssuer, serial)
	}
	// The issuer may fill the whole message; sign-file would write the message anyway.
	if _, err := Parse(s.Draft()); err != nil {
		return nil, fmt.Errorf("the kernel cannot parse a signature with this certificate's identifier: %w", err)
	}
	return s, nil
}

// WithKey returns a certificate with its key. Of the given one, only Raw may be set, or
// crypto/x509 may not know its key, as that of ML-DSA before Go 1.27.
func WithKey(cert *x509.Certificate) (*x509.Certificate, error) {
	if cert.PublicKey != nil || len(cert.Raw) == 0 {
		return cert, nil
	}
	return ParseX509(cert.Raw)
}

// Draft returns a message as Sign does, with zeros for a signature. No message of the
// Signer is longer.
func (s *Signer) Draft() []byte {
	longest := 0
	switch public := s.public.(type) {
	case *rsa.PublicKey:
		longest = public.Size()
	case *ecdsa.PublicKey:
		number := size((public.Curve.Params().BitSize + 8) / 8) // with a zero bit before it
		longest = size(2 * number)
	case *mldsa.PublicKey:
		longest = public.Parameters().SignatureSize()
	}
	var attributes []byte
	if s.attributes {
		attributes = signedAttributes(make([]byte, s.digest.hash.Size()))
	}
	return s.encode(attributes, make([]byte, longest))
}

// Hash returns what makes the digest for [Signer.Sign].
func (s *Signer) Hash() Hash {
	if s.mldsa != nil && !s.attributes {
		return s.mldsa
	}
	return s.digest.hash
}

// Sign returns the CMS message for data with this digest. The key gets opts, which may
// be nil: its hash is that of the Signer.
func (s *Signer) Sign(digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	h := s.Hash().HashFunc()
	if opts == nil {
		opts = h
	}
	if opts.HashFunc() != h {
		return nil, fmt.Errorf("options for %s, and the signer is for %s", HashName(opts.HashFunc()), HashName(h))
	}
	if len(digest) != DigestSize(h) {
		return nil, fmt.Errorf("digest of %d bytes: %s has %d", len(digest), HashName(h), DigestSize(h))
	}
	var attributes []byte
	if s.attributes {
		attributes = signedAttributes(digest)
		digest, opts = sum(s.mldsa, attributes), ofAttributes{opts, s.mldsa.HashFunc()}
	}
	signature, err := s.key.Sign(rand.Reader, digest, opts)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	// Tokens and their drivers may return signatures in other forms.
	switch public := s.public.(type) {
	case *rsa.PublicKey:
		if len(signature) != public.Size() {
			return nil, fmt.Errorf("private key made an RSA signature of %d bytes, not %d", len(signature), public.Size())
		}
	case *ecdsa.PublicKey:
		if !strictECDSA(signature) {
			return nil, fmt.Errorf("private key made an ECDSA signature of %d bytes that is not "+
				"SEQUENCE { INTEGER r, INTEGER s }", len(signature))
		}
	case *mldsa.PublicKey:
		if want := public.Parameters().SignatureSize(); len(signature) != want {
			return nil, fmt.Errorf("private key made an %s signature of %d bytes, not %d", public.Parameters(), len(signature),
				want)
		}
	}
	return s.encode(attributes, signature), nil
}

// ofAttributes are the options of a signature of attributes.
type ofAttributes struct {
	crypto.SignerOpts // those of the module's signature
	hash              crypto.Hash
}

func (o ofAttributes) HashFunc() crypto.Hash { return o.hash }

// Module returns the path and the size of the module, as far as they are known.
func (o ofAttributes) Module() (path string, size int64) {
	if m, ok := o.SignerOpts.(interface{ Module() (string, int64) }); ok {
		return m.Module()
	}
	return "", 0
}

// signedAttributes returns the attributes that OpenSSL makes for a digest of data, as the
// SET that is signed: contentType and messageDigest (RFC 5652, 11.1 and 11.2).
func signedAttributes(digest []byte) []byte {
	attribute := func(oid string, value []byte) []byte {
		values := slices.Concat(header(tagSet, len(value)), value)
		contents := slices.Concat(header(tagOID, len(oid)), []byte(oid), values)
		return append(header(tagSequence, len(contents)), contents...)
	}
	return sortedSet([][]byte{
		attribute(oidContentType, slices.Concat(header(tagOID, len(oidData)), []byte(oidData))),
		attribute(oidMessageDigest, slices.Concat(header(tagOctetString, len(digest)), digest)),
	})
}

var (
	null             = []byte{0x05, 0x00}
	rsaEncryption    = slices.Concat(header(tagSequence, 13), header(tagOID, 9), []byte(oidRSA), null)
	encapsulatedData = slices.Concat(header(tagSequence, 11), header(tagOID, 9), []byte(oidData))
)

// encode writes the message of one signer described in the package comment, in one
// allocation.
func (s *Signer) encode(attributes, signature []byte) []byte {
	digests := size(size(len(s.digest.oid)))
	signers := size(signerInfoSize(s.digest, s.sid, attributes, s.algorithm, signature))
	der := newMessage(s.version, size(digests)+len(encapsulatedData)+size(signers))
	der = appendHeader(der, tagSet, digests)
	der = appendAlgorithm(der, s.digest.oid)
	der = append(der, encapsulatedData...)
	der = appendHeader(der, tagSet, signers)
	return appendSignerInfo(der, s.version, s.digest, s.sid, attributes, s.algorithm, signature)
}

// encodeMessage writes a message of these elements, the sets in the order of DER.
func encodeMessage(version int, digests [][]byte, content, between []byte, signers [][]byte) []byte {
	digest, signer := sortedSet(digests), sortedSet(signers)
	der := newMessage(version, len(digest)+len(content)+len(between)+len(signer))
	return append(append(append(append(der, digest...), content...), between...), signer...)
}

// sortedSet writes a SET OF, and sorts its elements.
func sortedSet(elements [][]byte) []byte {
	slices.SortFunc(elements, bytes.Compare)
	contents := slices.Concat(elements...)
	return append(header(tagSet, len(contents)), contents...)
}

// newMessage begins a message, up to the version of SignedData. The bytes that follow are
// as many as given.
func newMessage(version, rest int) []byte {
	signedData := size(1) + rest
	contentInfo := size(len(oidSignedData)) + size(size(signedData))
	der := make([]byte, 0, size(contentInfo))
	der = appendHeader(der, tagSequence, contentInfo)
	der = appendHeader(der, tagOID, len(oidSignedData))
	der = append(der, oidSignedData...)
	der = appendHeader(der, constructed0, size(signedData))
	der = appendHeader(der, tagSequence, signedData)
	return append(der, tagInteger, 1, byte(version))
}

// signerInfoSize returns the length of the contents of a SignerInfo.
func signerInfoSize(digest *hashAlgorithm, sid, attributes []byte, algorithm string, signature []byte) int {
	signatureAlgorithm := len(rsaEncryption)
	if oid := signatureOID(digest, algorithm); oid != oidRSA {
		signatureAlgorithm = size(size(len(oid)))
	}
	return size(1) + len(sid) + size(size(len(digest.oid))) + len(attributes) + signatureAlgorithm + size(len(signature))
}

// signatureOID returns the object identifier of a signature with the kernel's name for its
// algorithm.
func signatureOID(digest *hashAlgorithm, algorithm string) string {
	if algorithm == "ecdsa" {
		return digest.ecdsa
	}
	if set := mldsaByName(algorithm); set != nil {
		return set.oid
	}
	return oidRSA
}

func appendSignerInfo(
	der []byte, version int, digest *hashAlgorithm, sid, attributes []byte, algorithm string, signature []byte,
) []byte {
	der = appendHeader(der, tagSequence, signerInfoSize(digest, sid, attributes, algorithm, signature))
	der = append(der, tagInteger, 1, byte(version))
	der = append(der, sid...)
	der = appendAlgorithm(der, digest.oid)
	if len(attributes) > 0 {
		der = append(append(der, constructed0), attributes[1:]...)
	}
	if oid := signatureOID(digest, algorithm); oid != oidRSA {
		der = appendAlgorithm(der, oid)
	} else {
		der = append(der, rsaEncryption...)
	}
	der = appendHeader(der, tagOctetString, len(signature))
	return append(der, signature...)
}

// appendAlgorithm appends an AlgorithmIdentifier without parameters.
func appendAlgorithm(der []byte, oid string) []byte {
	der = appendHeader(der, tagSequence, size(len(oid)))
	der = appendHeader(der, tagOID, len(oid))
	return append(der, oid...)
}

// serialIdentifier returns the SignerIdentifier IssuerAndSerialNumber. issuer is an
// element, serial the contents of one.
func serialIdentifier(issuer, serial []byte) []byte {
	return slices.Concat(header(tagSequence, len(issuer)+size(len(serial))), issuer, header(tagInteger, len(serial)),
		serial)
}

// keyIDIdentifier returns the SignerIdentifier SubjectKeyIdentifier.
func keyIDIdentifier(keyID []byte) []byte {
	return slices.Concat(header(primitive0, len(keyID)), keyID)
}

// size returns the length of a DER element with the given number of content octets.
func size(contents int) int {
	switch {
	case contents < 0x80:
		return 2 + contents
	case contents < 1<<8:
		return 3 + contents
	case contents < 1<<16:
		return 4 + contents
	default:
		return 5 + contents
	}
}

func header(tag byte, contents int) []byte { return appendHeader(nil, tag, contents) }

// appendHeader appends identifier and length octets. Only a certificate from a caller
// may be longer than 65535 bytes.
func appendHeader(der []byte, tag byte, contents int) []byte {
	switch {
	case contents < 0x80:
		return append(der, tag, byte(contents))
	case contents < 1<<8:
		return append(der, tag, 0x81, byte(contents))
	case contents < 1<<16:
		return append(der, tag, 0x82, byte(contents>>8), byte(contents))
	default:
		return append(der, tag, 0x83, byte(contents>>16), byte(contents>>8), byte(contents))
	}
}

// encodeECDSA writes SEQUENCE { INTEGER r, INTEGER s }.
func encodeECDSA(r, s *big.Int) []byte {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(r)
		b.AddASN1BigInt(s)
	})
	return b.BytesOrPanic()
}

// strictECDSA reports whether a signature is the DER of two positive numbers.
func strictECDSA(sig []byte) bool {
	der := cryptobyte.String(sig)
	r, s := new(big.Int), new(big.Int)
	return der.ReadASN1(&der, asn1.SEQUENCE) && der.ReadASN1Integer(r) && der.ReadASN1Integer(s) && der.Empty() &&
		r.Sign() > 0 && s.Sign() > 0 && len(sig) == len(encodeECDSA(r, s))
}
