//go:build kerneltest

package kerneltest

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"slices"
	"testing"

	"github.com/modsign/modsign/keygen"
)

// parts are the elements of a CMS message by scripts/sign-file, each with its tag, in
// order. A case replaces some.
type parts struct {
	contentType, version, digests, content, between    []byte
	siVersion, sid, digest, attributes, algorithm, sig []byte
	unsigned, signers                                  []byte
}

const (
	sha256OID     = "2.16.840.1.101.3.4.2.1"
	ecdsaSHA256   = "1.2.840.10045.4.3.2"
	rsaEncryption = "1.2.840.113549.1.1.1"
	dataOID       = "1.2.840.113549.1.7.1"
	signedDataOID = "1.2.840.113549.1.7.2"
	sha256WithRSA = "1.2.840.113549.1.1.11"
	streebogOID   = "1.2.643.7.1.1.2.2"
)

// newParts signs a payload with SHA-256.
func newParts(t testing.TB, pair *keygen.Pair, payload []byte) parts {
	t.Helper()
	return parts{
		contentType: oid(signedDataOID), version: integer(1), digests: set(seq(oid(sha256OID))), content: seq(oid(dataOID)),
		siVersion: integer(1), sid: sidOf(t, pair),
		digest: seq(oid(sha256OID)), algorithm: seq(oid(ecdsaSHA256)),
		sig: tlv(asn1.TagOctetString, rawSignature(t, pair, payload)),
	}
}

// sidOf identifies a signer by issuer and serial number.
func sidOf(t testing.TB, pair *keygen.Pair) []byte {
	t.Helper()
	serial, err := asn1.Marshal(pair.Certificate.SerialNumber)
	if err != nil {
		t.Fatal(err)
	}
	return seq(pair.Certificate.RawIssuer, serial)
}

// rawSignature returns the bare signature of the SHA-256 of a payload.
func rawSignature(t testing.TB, pair *keygen.Pair, payload []byte) []byte {
	t.Helper()
	sum := crypto.SHA256.New()
	sum.Write(payload)
	sig, err := pair.Signer.Sign(rand.Reader, sum.Sum(nil), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func (p parts) signerInfo() []byte {
	return seq(p.siVersion, p.sid, p.digest, p.attributes, p.algorithm, p.sig, p.unsigned)
}

func (p parts) der() []byte {
	signers := p.signers
	if signers == nil {
		signers = set(p.signerInfo())
	}
	return seq(p.contentType, tlv(0xa0, seq(p.version, p.digests, p.content, p.between, signers)))
}

// tlv returns an element with a DER length.
func tlv(tag byte, contents ...[]byte) []byte {
	all := slices.Concat(contents...)
	n := len(all)
	switch {
	case n < 0x80:
		return append([]byte{tag, byte(n)}, all...)
	case n < 1<<8:
		return append([]byte{tag, 0x81, byte(n)}, all...)
	default:
		return append([]byte{tag, 0x82, byte(n >> 8), byte(n)}, all...)
	}
}

func seq(contents ...[]byte) []byte { return tlv(0x30, contents...) }
func set(contents ...[]byte) []byte { return tlv(0x31, contents...) }
func integer(b ...byte) []byte      { return tlv(asn1.TagInteger, b) }

// contents returns an element without its tag and length.
func contents(element []byte) []byte {
	var raw asn1.RawValue
	if _, err := asn1.Unmarshal(element, &raw); err != nil {
		panic(err)
	}
	return raw.Bytes
}

func oid(dotted string) []byte {
	id, err := x509.ParseOID(dotted)
	if err != nil {
		panic(err)
	}
	der, err := id.MarshalBinary()
	if err != nil {
		panic(err)
	}
	return tlv(asn1.TagOID, der)
}

// attribute returns an Attribute of a SignerInfo.
func attribute(of string, values ...[]byte) []byte { return seq(oid(of), set(values...)) }

// indefinite returns a constructed element of indefinite length.
func indefinite(tag byte, contents ...[]byte) []byte {
	return slices.Concat([]byte{tag, 0x80}, slices.Concat(contents...), []byte{0, 0})
}
