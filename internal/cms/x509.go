package cms

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
)

// ParseX509 parses the certificate of a signer. It ignores trailing bytes, as sign-file
// does, and leaves them out of Raw. If crypto/x509 rejects a certificate that the
// kernel or its sign-file would accept (for example with a negative serial number),
// ParseX509 returns one with only the fields that a signature needs: Raw,
// RawTBSCertificate, RawIssuer, RawSubject, RawSubjectPublicKeyInfo, Issuer, Subject,
// SerialNumber, SubjectKeyId, PublicKey and PublicKeyAlgorithm. Without dates, usages
// and extensions, crypto/x509 does not trust such a certificate.
//
// ParseX509 does not check that a kernel would load the certificate; [Loadable] does.
func ParseX509(der []byte) (*x509.Certificate, error) {
	o, broken := readOutline(der)
	if broken == nil {
		der = o.raw
	}
	cert, err := x509.ParseCertificate(der)
	switch {
	case err == nil && cert.PublicKey == nil: // crypto/x509 does not know ML-DSA before Go 1.27
		cert.PublicKey = publicKey(cert.RawSubjectPublicKeyInfo)
		return cert, nil
	case err == nil:
		return cert, nil
	case broken != nil:
		return nil, err // the more familiar error
	}
	return o.certificate(), nil
}

// Loadable returns nil if a kernel would load the certificate into a keyring and verify
// modules with it. Otherwise the error tells why not.
func Loadable(der []byte) error { return Any.Loadable(der) }

// Loadable is [Loadable] for such a kernel.
func (r *Rules) Loadable(der []byte) error {
	c, err := r.ParseCertificate(der)
	if err != nil {
		return err
	}
	if c.PublicKey == nil {
		return errors.New(c.KeyProblem)
	}
	return nil
}

// outline holds the parts of a certificate that signing and verifying need: elements,
// and the contents of two.
type outline struct {
	raw, tbs, issuer, subject, key []byte
	serial, keyID                  []byte
}

// readOutline reads the structure of the certificate at the beginning of der. It does
// not check the values. Sizes, lengths and an empty list of extensions may be such that
// OpenSSL accepts them and the kernel does not.
func readOutline(der []byte) (*outline, error) {
	d := newDecoder(der)
	d.anyLength = true
	o := &outline{}
	whole := func() []byte { // skips a SEQUENCE
		d.needAny()
		if d.err == nil && d.tag|tagConstructed != tagSequence {
			d.broken(d.start, "unexpected tag 0x%02x, want 0x%02x", d.tag, tagSequence)
		}
		return d.element()
	}
	d.need(tagSequence)
	d.need(tagSequence)
	if d.maybe(constructed0) { // version
		d.need(tagInteger)
		d.leave()
	}
	d.need(tagInteger)
	o.serial = d.value()
	whole() // signature
	o.issuer = whole()
	whole() // validity
	o.subject = whole()
	o.key = whole()
	d.maybe(primitive0 + 1)
	d.maybe(primitive0 + 2)
	if d.maybe(constructed0 + 3) {
		d.need(tagSequence)
		for d.again() {
			o.extension(&d)
		}
		d.leave()
	}
	d.leave()
	if d.err == nil {
		o.tbs = d.data[d.start-d.header : d.after : d.after]
	}
	whole() // signatureAlgorithm
	d.need(tagBitString)
	d.leave()
	if d.err != nil {
		return nil, d.err
	}
	o.raw = d.element()
	return o, nil
}

// extension reads an extension, and records the subject key identifier.
func (o *outline) extension(d *decoder) {
	d.need(tagSequence)
	d.need(tagOID)
	id := string(d.value())
	d.maybe(tagBoolean)
	d.need(tagOctetString)
	v := d.value()
	if id == oidSubjectKeyID && len(v) > 2 && v[0] == tagOctetString && int(v[1]) == len(v)-2 {
		o.keyID = v[2:]
	}
	d.leave()
}

func (o *outline) certificate() *x509.Certificate {
	cert := &x509.Certificate{
		Raw: o.raw, RawTBSCertificate: o.tbs, RawIssuer: o.issuer, RawSubject: o.subject, RawSubjectPublicKeyInfo: o.key,
		Issuer: nameOf(o.issuer), Subject: nameOf(o.subject),
		SerialNumber: signedInteger(o.serial), SubjectKeyId: o.keyID, PublicKey: publicKey(o.key),
	}
	switch cert.PublicKey.(type) {
	case *rsa.PublicKey:
		cert.PublicKeyAlgorithm = x509.RSA
	case *ecdsa.PublicKey:
		cert.PublicKeyAlgorithm = x509.ECDSA
	}
	return cert
}

// signedInteger returns the number in the contents of an INTEGER.
func signedInteger(contents []byte) *big.Int {
	n := new(big.Int).SetBytes(contents)
	if len(contents) > 0 && contents[0] >= 0x80 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(8*len(contents))))
	}
	return n
}

// nameOf parses a Name for messages: with crypto/x509, or else like the kernel.
func nameOf(der []byte) (name pkix.Name) {
	var sequence pkix.RDNSequence
	if rest, err := asn1.Unmarshal(der, &sequence); err == nil && len(rest) == 0 {
		name.FillFromRDNSequence(&sequence)
		return name
	}
	d := newDecoder(der)
	if d.need(tagSequence) {
		name.CommonName = kernelName(der[d.pos:d.end])
	}
	return name
}

// publicKey returns the key in a SubjectPublicKeyInfo, or nil if this package cannot
// sign with such a key. It also accepts forms that crypto/x509 and the kernel reject,
// because the private key shows whether the public key is right.
func publicKey(spki []byte) crypto.PublicKey {
	if key, err := x509.ParsePKIXPublicKey(spki); err == nil {
		return key
	}
	d := newDecoder(spki)
	d.need(tagSequence)
	d.need(tagSequence)
	algorithm, parameters := d.algorithm()
	d.need(tagBitString)
	bits := d.value()
	c := Certificate{rules: Any}
	c.publicKey(&d, algorithm, parameters, bits)
	if d.err != nil {
		return nil
	}
	if c.PublicKey == nil && len(bits) > 1 {
		return compressedKey(c.KeyAlgorithm, bits[1:])
	}
	return c.PublicKey
}

// compressedKey returns the key of a compressed point.
func compressedKey(algorithm string, point []byte) crypto.PublicKey {
	curve := map[string]elliptic.Curve{
		"ecdsa-nist-p256": elliptic.P256(), "ecdsa-nist-p384": elliptic.P384(), "ecdsa-nist-p521": elliptic.P521(),
	}[algorithm]
	if curve == nil {
		return nil
	}
	x, y := elliptic.UnmarshalCompressed(curve, point)
	if x == nil {
		return nil
	}
	size := (curve.Params().BitSize + 7) / 8
	uncompressed := append([]byte{4}, x.FillBytes(make([]byte, size))...)
	key, err := ecdsa.ParseUncompressedPublicKey(curve, append(uncompressed, y.FillBytes(make([]byte, size))...))
	if err != nil {
		return nil
	}
	return key
}

// rawSerial returns the contents of the certificate's serial number as encoded.
func rawSerial(cert *x509.Certificate) ([]byte, error) {
	o, err := readOutline(cert.Raw)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	return o.serial, nil
}

// KeyAlgorithm returns the name of the algorithm of a certificate's key, also if
// crypto/x509 does not know it.
func KeyAlgorithm(cert *x509.Certificate) string {
	d := newDecoder(cert.RawSubjectPublicKeyInfo)
	d.need(tagSequence)
	d.need(tagSequence)
	oid, _ := d.algorithm()
	switch {
	case d.err != nil:
		return "unreadable"
	case oid == oidEC:
		return "on an unknown elliptic curve"
	}
	return describeOID(oid)
}
