//go:build kerneltest

package kerneltest

import (
	"bytes"
	"crypto"
	"encoding/asn1"
	"fmt"
	"slices"
	"testing"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/sign"
)

// severalSigners makes modules whose one message has several signers: as modsign writes
// them, and as it does not, since the order of signers in DER is that of their bytes.
func severalSigners(t testing.TB, pairs keys, payload []byte) []made {
	t.Helper()
	var cases []made
	add := func(name string, data []byte) {
		cases = append(cases, made{Case: Case{Name: "signers, " + name, Data: data}})
	}
	p256, p384, p521 := keygen.ECDSAP256.String(), keygen.ECDSAP384.String(), keygen.ECDSAP521.String()
	rsa2048, rsa4096 := keygen.RSA2048.String(), keygen.RSA4096.String()

	// As modsign writes them.
	for name, signers := range map[string][]signerOf{
		"two trusted":            {{p256, crypto.SHA256}, {rsa2048, crypto.SHA256}},
		"three trusted, mixed":   {{p384, crypto.SHA384}, {rsa4096, crypto.SHA512}, {p521, crypto.SHA3_512}},
		"trusted, unknown":       {{p256, crypto.SHA256}, {"unknown", crypto.SHA512}},
		"RSA trusted, unknown":   {{rsa2048, crypto.SHA512}, {"unknown", crypto.SHA256}},
		"unknown, stranger":      {{"stranger", crypto.SHA256}, {"unknown", crypto.SHA256}},
		"trusted, revoked":       {{p256, crypto.SHA256}, {"revoked", crypto.SHA256}},
		"RSA trusted, revoked":   {{rsa2048, crypto.SHA256}, {"revoked", crypto.SHA384}},
		"unknown, revoked":       {{"unknown", crypto.SHA256}, {"revoked", crypto.SHA256}},
		"trusted, blacklisted":   {{p256, crypto.SHA256}, {"blacklisted", crypto.SHA256}},
		"expired, module, sha3":  {{"expired", crypto.SHA256}, {"module", crypto.SHA512}, {"sha3", crypto.SHA3_256}},
		"trusted, revoked, sha1": {{rsa4096, crypto.SHA1}, {"revoked", crypto.SHA1}},
	} {
		for _, keyID := range []bool{false, true} {
			der := pairs.joined(t, keyID, payload, signers...)
			how := map[bool]string{true: ", by key id"}[keyID]
			add(name+how, withCMS(payload, der))
			add(name+how+", payload changed", changed(withCMS(payload, der), len(payload)/2))
		}
	}
	crowd := pairs.cms(t, "unknown", crypto.SHA256, true, payload)
	for n := 0; ; n++ {
		next, err := addTo(crowd, withKeyID(pairs.cms(t, "unknown", crypto.SHA256, true, payload), n))
		if err != nil {
			break
		}
		crowd = next
	}
	add("as many as fit", withCMS(payload, crowd))
	trusted := pairs.cms(t, p256, crypto.SHA256, true, payload)
	many := trusted
	for n := range 250 {
		many = mustAdd(t, many, withKeyID(pairs.cms(t, "unknown", crypto.SHA256, true, payload), n))
	}
	add("many, one trusted", withCMS(payload, many))

	// By hand, in both orders: a good signer of a trusted key, and another one.
	si := func(name string, hash crypto.Hash) []byte {
		return signerInfoOf(t, pairs.cms(t, name, hash, false, payload))
	}
	good := newParts(t, pairs[p256], payload)
	goodRSA := si(rsa2048, crypto.SHA512)
	digest := crypto.SHA256.New()
	digest.Write(payload)
	attributes := tlv(0xa0, attribute("1.2.840.113549.1.9.3", oid(dataOID)),
		attribute("1.2.840.113549.1.9.4", tlv(0x04, digest.Sum(nil))))
	with := func(name string, change func(p *parts)) []byte {
		p := newParts(t, pairs[name], payload)
		change(&p)
		return p.signerInfo()
	}
	cert := func(names ...string) []byte {
		var all []byte
		for _, name := range names {
			all = append(all, pairs[name].Certificate.Raw...)
		}
		return tlv(0xa0, all)
	}
	bad := func(p *parts) { p.sig = changed(p.sig, -1) }
	hashed := func(of string) func(p *parts) { return func(p *parts) { p.digest = seq(oid(of)) } }
	for _, other := range []struct {
		name  string
		si    []byte
		certs []byte
	}{
		{"itself", good.signerInfo(), nil},
		{"itself with another hash", si(p256, crypto.SHA512), nil},
		{"trusted RSA", goodRSA, nil},
		{"trusted RSA, signature changed", changed(goodRSA, -1), nil},
		{"trusted RSA, signature cut", bytes.Replace(goodRSA, []byte{4, 0x82, 1, 0}, []byte{4, 0x82, 0, 0xff}, 1), nil},
		{"signature changed", with(p256, bad), nil},
		{"another trusted, signature changed", changed(si(p384, crypto.SHA384), -1), nil},
		{"unknown", si("unknown", crypto.SHA256), nil},
		{"unknown, signature changed", with("unknown", bad), nil},
		{"revoked", si("revoked", crypto.SHA256), nil},
		{"revoked, signature changed", with("revoked", bad), nil},
		{"revoked, Streebog", with("revoked", hashed(streebogOID)), nil},
		{"blacklisted", si("blacklisted", crypto.SHA256), nil},
		{"Streebog", with(p256, hashed(streebogOID)), nil},
		{"unknown, Streebog", with("unknown", hashed(streebogOID)), nil},
		{"SM3", with(p256, hashed("1.2.156.10197.1.401")), nil},
		{"MD5", with("unknown", hashed("1.2.840.113549.2.5")), nil},
		{"Ed25519", with("unknown", func(p *parts) { p.algorithm = seq(oid("1.3.101.112")) }), nil},
		{"sha256WithRSA", with("unknown", func(p *parts) { p.algorithm = seq(oid(sha256WithRSA)) }), nil},
		{"rsaEncryption with an ECDSA key", with(p384, func(p *parts) { p.algorithm = seq(oid(rsaEncryption)) }), nil},
		{"another digest than signed", with(p384, hashed("2.16.840.1.101.3.4.2.3")), nil},
		{"attributes", with("unknown", func(p *parts) { p.attributes = attributes }), nil},
		{"by key id", with("unknown", func(p *parts) {
			p.siVersion, p.sid = integer(3), tlv(0x80, pairs["unknown"].Certificate.SubjectKeyId)
		}), nil},
		{"key id in version 1", with("unknown", func(p *parts) {
			p.sid = tlv(0x80, pairs["unknown"].Certificate.SubjectKeyId)
		}), nil},
		{"unknown, with certificate", si("unknown", crypto.SHA256), cert("unknown")},
		{"unknown, with certificate, signature changed", with("unknown", bad), cert("unknown")},
		{"unknown, with certificate, Streebog", with("unknown", hashed(streebogOID)), cert("unknown")},
		{"revoked, with certificate", si("revoked", crypto.SHA256), cert("revoked")},
		{"blacklisted, with certificate", si("blacklisted", crypto.SHA256), cert("blacklisted")},
		{"blacklisted, with certificate, signature changed", with("blacklisted", bad), cert("blacklisted")},
		{"issued, with certificate", si("issued", crypto.SHA256), cert("issued")},
		{"sha256 listed, with certificate", si("sha256 listed", crypto.SHA256), cert("sha256 listed")},
		{"sha512 listed, with certificate", si("sha512 listed", crypto.SHA256), cert("sha512 listed")},
		{"unknown, with both certificates", si("unknown", crypto.SHA256), cert("unknown", p256)},
	} {
		between := func(p *parts) {
			if other.certs != nil {
				p.between = other.certs
			}
		}
		message := func(infos ...[]byte) []byte {
			p := good
			between(&p)
			p.signers = set(infos...)
			return withCMS(payload, p.der())
		}
		add("good, "+other.name, message(good.signerInfo(), other.si))
		add(other.name+", good", message(other.si, good.signerInfo()))
		add("stranger, "+other.name, message(si("stranger", crypto.SHA256), other.si))
		add(other.name+", stranger", message(other.si, si("stranger", crypto.SHA256)))
		add(other.name+" alone", message(other.si))
		add("good, "+other.name+", payload changed", changed(message(good.signerInfo(), other.si), len(payload)/2))
	}
	for _, version := range []byte{1, 3} {
		p := good
		p.version = integer(version)
		p.signers = set(si("unknown", crypto.SHA256), signerInfoOf(t, trusted))
		add(fmt.Sprintf("two names in version %d", version), withCMS(payload, p.der()))
	}
	p := good
	p.signers = set(with("unknown", func(p *parts) { p.attributes = attributes }),
		with(p256, func(p *parts) { p.attributes = attributes }))
	add("two with attributes", withCMS(payload, p.der()))
	return cases
}

// signerOf is a key and a hash.
type signerOf struct {
	name string
	hash crypto.Hash
}

// joined signs a payload with several keys like modsign.
func (pairs keys) joined(t testing.TB, keyID bool, payload []byte, signers ...signerOf) []byte {
	t.Helper()
	var all []*sign.Signer
	for _, s := range signers {
		signer, err := sign.NewSigner(pairs[s.name].Signer, pairs[s.name].Certificate,
			sign.SignerOptions{Hash: s.hash, UseKeyID: keyID})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, signer)
	}
	signer, err := sign.JoinSigners(all...)
	if err != nil {
		t.Fatal(err)
	}
	der, err := signer.Sign(bytes.NewReader(payload))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// addTo adds the signer of one message to another one.
func addTo(der, added []byte) ([]byte, error) {
	m, err := cms.Parse(der)
	if err != nil {
		return nil, err
	}
	a, err := cms.Parse(added)
	if err != nil {
		return nil, err
	}
	return m.Add(a)
}

func mustAdd(t testing.TB, der, added []byte) []byte {
	t.Helper()
	der, err := addTo(der, added)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// withKeyID changes the key id that a message names.
func withKeyID(der []byte, n int) []byte {
	m, err := cms.Parse(der)
	if err != nil {
		panic(err)
	}
	id := m.Signers[0].SubjectKeyID
	other := slices.Clone(id)
	copy(other, fmt.Sprintf("%08d", n))
	return bytes.Replace(der, id, other, 1)
}

// signerInfoOf returns the SignerInfo of a message with one signer.
func signerInfoOf(t testing.TB, der []byte) []byte {
	t.Helper()
	signedData := contents(contents(elements(t, contents(der))[1])) // behind the type, in [0]
	all := elements(t, signedData)
	return contents(all[len(all)-1])
}

// elements splits the contents of an element.
func elements(t testing.TB, der []byte) (all [][]byte) {
	t.Helper()
	for len(der) > 0 {
		var raw asn1.RawValue
		rest, err := asn1.Unmarshal(der, &raw)
		if err != nil {
			t.Fatal(err)
		}
		all, der = append(all, raw.FullBytes), rest
	}
	return all
}
