//go:build kerneltest

package kerneltest

import (
	"bytes"
	"crypto"
	"encoding/asn1"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"filippo.io/mldsa"

	"github.com/modsign/modsign/internal/mldsamu"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/sign"
)

const (
	sha384OID  = "2.16.840.1.101.3.4.2.2"
	sha512OID  = "2.16.840.1.101.3.4.2.3"
	mldsa44OID = "2.16.840.1.101.3.4.3.17"
	mldsa65OID = "2.16.840.1.101.3.4.3.18"
	mldsa87OID = "2.16.840.1.101.3.4.3.19"
)

// mldsaSets are the parameter sets in the words of OpenSSL. A key of each has that name.
var mldsaSets = []string{"ml-dsa-44", "ml-dsa-65", "ml-dsa-87"}

// mldsaTrusted are the keys with certificates about ML-DSA that are given to a kernel to
// trust: two of each set, and one that a key of ML-DSA has signed.
var mldsaTrusted = append(slices.Clone(mldsaSets), "ml-dsa revoked", "ml-dsa blacklisted", "ml-dsa expired",
	"ml-dsa issued", "issued by ml-dsa")

// addMLDSA makes keys with OpenSSL, which writes them in a form of its own, and their
// certificates.
func (pairs keys) addMLDSA(t testing.TB) {
	t.Helper()
	openssl, dir := testmod.OpenSSL35(t), t.TempDir()
	add := func(name, algorithm string, args ...string) {
		key, cert := filepath.Join(dir, name+".key"), filepath.Join(dir, name+".crt")
		testmod.Run(t, openssl, append([]string{"req", "-x509", "-newkey", algorithm, "-nodes", "-keyout", key, "-out", cert,
			"-subj", "/CN=modsign kernel test: " + name}, args...)...)
		pairs[name] = readPair(t, key, cert)
	}
	for _, set := range mldsaSets {
		add(set, set)
	}
	add("ml-dsa unknown", "ml-dsa-65")
	add("ml-dsa revoked", "ml-dsa-65")
	add("ml-dsa blacklisted", "ml-dsa-44")
	add("ml-dsa expired", "ml-dsa-65", "-not_before", "20010101000000Z", "-not_after", "20010102000000Z")
	issuer := pairs.file(t, keygen.ECDSAP384.String())
	add("ml-dsa issued", "ml-dsa-87", "-CA", issuer, "-CAkey", issuer, "-sha384")
	issuer = pairs.file(t, "ml-dsa-65")
	add("issued by ml-dsa", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-CA", issuer, "-CAkey", issuer)
}

// readPair reads a key and a certificate in PEM.
func readPair(t testing.TB, key, cert string) *keygen.Pair {
	t.Helper()
	pair, err := keygen.Load(key, cert, keygen.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// file writes a key and its certificate to a file for OpenSSL.
func (pairs keys) file(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key.pem")
	if err := pairs[name].WriteFile(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// mldsaSign returns the signature of data by a key of ML-DSA.
func mldsaSign(t testing.TB, pair *keygen.Pair, data []byte) []byte {
	t.Helper()
	sig, err := pair.Signer.Sign(nil, data, crypto.Hash(0))
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// newMLDSAParts signs a payload with a key of ML-DSA.
func newMLDSAParts(t testing.TB, pair *keygen.Pair, payload []byte) parts {
	t.Helper()
	public := pair.Signer.Public().(*mldsa.PublicKey)
	algorithm := map[mldsa.Parameters]string{
		mldsa.MLDSA44(): mldsa44OID, mldsa.MLDSA65(): mldsa65OID, mldsa.MLDSA87(): mldsa87OID,
	}[public.Parameters()]
	return parts{
		contentType: oid(signedDataOID), version: integer(1), digests: set(seq(oid(sha512OID))), content: seq(oid(dataOID)),
		siVersion: integer(1), sid: sidOf(t, pair),
		digest: seq(oid(sha512OID)), algorithm: seq(oid(algorithm)),
		sig: tlv(asn1.TagOctetString, mldsaSign(t, pair, payload)),
	}
}

// mldsaCases makes modules with signatures of ML-DSA: as modsign and other tools write
// them, and as none does.
func mldsaCases(t testing.TB, pairs keys, tree *Tree, payload []byte) []made {
	t.Helper()
	var cases []made
	add := func(name string, data []byte) { cases = append(cases, made{Case: Case{Name: name, Data: data}}) }

	// As modsign writes them.
	for _, name := range append(slices.Clone(mldsaSets), "ml-dsa unknown", "ml-dsa revoked", "ml-dsa blacklisted",
		"ml-dsa expired", "ml-dsa issued", "issued by ml-dsa") {
		for _, keyID := range []bool{false, true} {
			how := map[bool]string{true: ", by key id"}[keyID]
			good := withCMS(payload, pairs.cms(t, name, crypto.SHA512, keyID, payload))
			add(name+how, good)
			add(name+how+", payload changed", changed(good, len(payload)/2))
			add(name+how+", last byte changed", changed(good, -module.TrailerSize-1))
		}
	}
	for _, set := range mldsaSets {
		add(set+", no payload", withCMS(nil, pairs.cms(t, set, crypto.SHA512, false, nil)))
		good := withCMS(payload, pairs.cms(t, set, crypto.SHA512, false, payload))
		add(set+", stacked", withCMS(good, pairs.cms(t, set, crypto.SHA512, false, good)))
		for _, keyID := range []bool{false, true} {
			how := map[bool]string{true: ", by key id"}[keyID]
			with := withCMS(payload, pairs.cmsWith(t, set, sign.SignerOptions{UseKeyID: keyID, Attributes: true}, payload))
			add(set+how+", attributes", with)
			add(set+how+", attributes, payload changed", changed(with, len(payload)/2))
			add(set+how+", attributes, last byte changed", changed(with, -module.TrailerSize-1))
		}
	}

	// A bit of each byte of a message but its signature, and of some bytes of that.
	file := withCMS(payload, pairs.cms(t, "ml-dsa-44", crypto.SHA512, true, payload))
	signature := len(file) - module.TrailerSize - mldsa.MLDSA44SignatureSize
	for i := len(payload); i < len(file); i++ {
		at := i - signature
		if at < 0 || at >= mldsa.MLDSA44SignatureSize-100 || at%16 == 0 || full() {
			b := slices.Clone(file)
			b[i] ^= 1 << (i % 8)
			add(fmt.Sprintf("ml-dsa-44, byte %d, bit %d", i-len(payload), i%8), b)
		}
	}

	cases = append(cases, mldsaOtherTools(t, pairs, tree, payload)...)
	for _, m := range slices.Concat(mldsaMessages(t, pairs, payload), mldsaAttributes(t, pairs, payload),
		mldsaSigners(t, pairs, payload), mldsaCertificates(t, pairs, payload)) {
		add("ml-dsa message, "+m.name, withCMS(payload, m.der))
	}
	return cases
}

// mldsaOtherTools signs with OpenSSL 3.5, and with the kernel's own sign-file using it.
// Both always sign attributes.
func mldsaOtherTools(t testing.TB, pairs keys, tree *Tree, payload []byte) []made {
	t.Helper()
	var cases []made
	openssl := testmod.OpenSSL35(t)
	in := testmod.WriteFile(t, "m.ko", payload)
	for _, set := range mldsaSets {
		key := pairs.file(t, set)
		for _, tool := range []struct {
			name string
			args []string
		}{
			{"almost as sign-file", []string{"-nocerts", "-nosmimecap", "-md", "sha512"}}, // with the time
			{"by key id", []string{"-nocerts", "-nosmimecap", "-md", "sha512", "-keyid"}},
			{"with certificate", []string{"-nosmimecap", "-md", "sha512"}},
			{"with all attributes", []string{"-nocerts", "-md", "sha512"}},
			{"SHA-256", []string{"-nocerts", "-nosmimecap", "-md", "sha256"}},
			{"SHA-256, with certificate", []string{"-nosmimecap", "-md", "sha256"}},
			{"with content", []string{"-nocerts", "-nosmimecap", "-md", "sha512", "-nodetach"}},
		} {
			der := testmod.Run(t, openssl,
				append([]string{"cms", "-sign", "-binary", "-outform", "DER", "-signer", key, "-in", in}, tool.args...)...)
			cases = append(cases, made{Case: Case{Name: "openssl 3.5, " + tool.name + ", " + set, Data: withCMS(payload, der)}})
		}
		if tree.Path == "" {
			continue // a sign-file that does not know ML-DSA
		}
		lib := filepath.Join(tree.Path, "../root/usr/lib/x86_64-linux-gnu")
		out := filepath.Join(t.TempDir(), "out.ko")
		testmod.Run(t, filepath.Join(lib, "ld-linux-x86-64.so.2"), "--library-path", lib,
			filepath.Join(tree.Objtree, "scripts/sign-file"), "sha512", key, key, in, out)
		cases = append(cases, made{Case: Case{Name: "sign-file with OpenSSL 3.5, " + set, Data: read(t, out)}})
	}
	return cases
}

// mldsaMessages returns hand-made messages with one signer and no attributes.
func mldsaMessages(t testing.TB, pairs keys, payload []byte) []message {
	t.Helper()
	var all []message
	null := []byte{5, 0}
	for _, set := range []string{"ml-dsa-44", "ml-dsa-65"} {
		pair := pairs[set]
		plain := newMLDSAParts(t, pair, payload)
		add := func(name string, change func(p *parts)) {
			p := plain
			change(&p)
			all = append(all, message{set + ", " + name, p.der()})
		}
		for _, digest := range [][2]string{
			{"MD4", "1.2.840.113549.2.4"}, {"MD5", "1.2.840.113549.2.5"}, {"SHA3-224", "2.16.840.1.101.3.4.2.7"},
			{"SHAKE256", "2.16.840.1.101.3.4.2.12"}, {"SM3", "1.2.156.10197.1.401"}, {"Streebog", streebogOID},
			{"unknown", "1.2.3.4"},
		} {
			add("digest "+digest[0], func(p *parts) { p.digest = seq(oid(digest[1])) })
		}
		add("digest with NULL", func(p *parts) { p.digest = seq(oid(sha512OID), null) })
		for _, algorithm := range [][2]string{
			{"ML-DSA-44", mldsa44OID}, {"ML-DSA-65", mldsa65OID}, {"ML-DSA-87", mldsa87OID},
			{"HashML-DSA-65", "2.16.840.1.101.3.4.3.33"}, {"SLH-DSA", "2.16.840.1.101.3.4.3.20"},
			{"rsaEncryption", rsaEncryption}, {"ECDSA", ecdsaSHA256}, {"Ed25519", "1.3.101.112"}, {"GOST", "1.2.643.7.1.1.1.1"},
			{"SM2", "1.2.156.10197.1.501"},
		} {
			add("algorithm "+algorithm[0], func(p *parts) { p.algorithm = seq(oid(algorithm[1])) })
		}
		add("algorithm with NULL", func(p *parts) { p.algorithm = seq(contents(p.algorithm), null) })
		add("algorithm with a SEQUENCE", func(p *parts) { p.algorithm = seq(contents(p.algorithm), seq(null)) })
		sig := contents(plain.sig)
		for _, other := range []message{
			{"cut", sig[:len(sig)-1]}, {"longer by a byte", append(slices.Clone(sig), 0)}, {"empty", nil},
			{"of zeros", make([]byte, len(sig))}, {"of ones", bytes.Repeat([]byte{0xff}, len(sig))},
			{"of ML-DSA-44", mldsaSign(t, pairs["ml-dsa-44"], payload)},
			{"of ML-DSA-65", mldsaSign(t, pairs["ml-dsa-65"], payload)},
			{"of ML-DSA-87", mldsaSign(t, pairs["ml-dsa-87"], payload)},
			{"of the digest", mldsaSign(t, pair, digestOf(crypto.SHA512, payload))},
			{"with another key", mldsaSign(t, pairs["ml-dsa unknown"], payload)},
		} {
			add("signature "+other.name, func(p *parts) { p.sig = tlv(asn1.TagOctetString, other.der) })
		}
		keyID := tlv(0x80, pair.Certificate.SubjectKeyId)
		add("key id of another", func(p *parts) {
			p.version, p.siVersion, p.sid = integer(3), integer(3), changed(keyID, -1)
		})
		add("versions 1 with key id", func(p *parts) { p.sid = keyID })
		add("versions 3 with issuer", func(p *parts) { p.version, p.siVersion = integer(3), integer(3) })
		add("unsigned attributes", func(p *parts) { p.unsigned = tlv(0xa1, attribute("1.2.3", null)) })
		add("content inside", func(p *parts) { p.content = seq(oid(dataOID), tlv(0xa0, tlv(0x04, payload))) })
		add("Authenticode", func(p *parts) { p.content = seq(oid("1.3.6.1.4.1.311.2.1.4")) })
	}
	p := newParts(t, pairs[keygen.ECDSAP256.String()], payload)
	p.algorithm = seq(oid(mldsa65OID))
	return append(all, message{"an ECDSA key", p.der()})
}

func digestOf(h crypto.Hash, data []byte) []byte {
	sum := h.New()
	sum.Write(data)
	return sum.Sum(nil)
}

var (
	contentTypeAttribute = attribute("1.2.840.113549.1.9.3", oid(dataOID))
	timeAttribute        = attribute("1.2.840.113549.1.9.5", tlv(asn1.TagUTCTime, []byte("260101000000Z")))
)

func digestAttribute(sum []byte) []byte {
	return attribute("1.2.840.113549.1.9.4", tlv(asn1.TagOctetString, sum))
}

// signAttributes signs attributes in the place of the data.
func (p *parts) signAttributes(t testing.TB, pair *keygen.Pair, attributes ...[]byte) {
	t.Helper()
	p.attributes = tlv(0xa0, attributes...)
	if _, ok := pair.Signer.(*mldsamu.PrivateKey); ok {
		p.sig = tlv(asn1.TagOctetString, mldsaSign(t, pair, set(attributes...)))
		return
	}
	p.sig = tlv(asn1.TagOctetString, rawSignature(t, pair, set(attributes...)))
}

// mldsaAttributes returns hand-made messages with one signer and attributes.
func mldsaAttributes(t testing.TB, pairs keys, payload []byte) []message {
	t.Helper()
	var all []message
	pair := pairs["ml-dsa-65"]
	plain := newMLDSAParts(t, pair, payload)
	messageDigest := digestAttribute(digestOf(crypto.SHA512, payload))
	add := func(name string, attributes ...[]byte) {
		p := plain
		p.signAttributes(t, pair, attributes...)
		all = append(all, message{"attributes, " + name, p.der()})
	}
	with := func(name string, change func(p *parts)) {
		p := plain
		p.signAttributes(t, pair, contentTypeAttribute, messageDigest)
		change(&p)
		all = append(all, message{"attributes, " + name, p.der()})
	}
	add("good", contentTypeAttribute, messageDigest)
	add("in another order", messageDigest, contentTypeAttribute)
	add("with the time", contentTypeAttribute, timeAttribute, messageDigest)
	add("with a broken time", contentTypeAttribute, attribute("1.2.840.113549.1.9.5", tlv(asn1.TagUTCTime, []byte("26"))),
		messageDigest)
	add("with an unknown one", contentTypeAttribute, messageDigest, attribute("1.2.3.4", seq()))
	add("without messageDigest", contentTypeAttribute)
	add("without contentType", messageDigest)
	add("contentType twice", contentTypeAttribute, contentTypeAttribute, messageDigest)
	add("messageDigest with two values", contentTypeAttribute,
		attribute("1.2.840.113549.1.9.4", tlv(4, digestOf(crypto.SHA512, payload)), tlv(4, digestOf(crypto.SHA512, payload))))
	add("messageDigest is an INTEGER", contentTypeAttribute, attribute("1.2.840.113549.1.9.4", integer(1)))
	add("messageDigest wrong", contentTypeAttribute, digestAttribute(digestOf(crypto.SHA512, nil)))
	add("messageDigest of SHA-256", contentTypeAttribute, digestAttribute(digestOf(crypto.SHA256, payload)))
	add("messageDigest empty", contentTypeAttribute, digestAttribute(nil))
	add("smimeCapabilities", contentTypeAttribute, messageDigest, attribute("1.2.840.113549.1.9.15", seq()))
	add("of Authenticode", contentTypeAttribute, messageDigest, attribute("1.3.6.1.4.1.311.2.1.11", seq()))
	add("contentType of signedData", attribute("1.2.840.113549.1.9.3", oid(signedDataOID)), messageDigest)
	for _, h := range hashes {
		if h.hash == crypto.SHA512 {
			continue
		}
		p := plain
		p.digest = seq(cmsDigest(t, pairs, h.hash))
		p.signAttributes(t, pair, contentTypeAttribute, digestAttribute(digestOf(h.hash, payload)))
		all = append(all, message{"attributes, " + h.name, p.der()})
	}
	for _, name := range []string{"Streebog", "SM3"} {
		with(name, func(p *parts) {
			p.digest = seq(oid(map[string]string{"Streebog": streebogOID, "SM3": "1.2.156.10197.1.401"}[name]))
		})
	}
	with("signature changed", func(p *parts) { p.sig = changed(p.sig, -1) })
	with("signature of the data", func(p *parts) { p.sig = plain.sig })
	with("signature of the attributes as [0]", func(p *parts) {
		p.sig = tlv(4, mldsaSign(t, pair, p.attributes))
	})
	with("changed", func(p *parts) { p.attributes = changed(p.attributes, 10) })
	with("obsolete", func(p *parts) { p.attributes[0] = 0xa2 })
	with("algorithm with NULL", func(p *parts) { p.algorithm = seq(oid(mldsa65OID), []byte{5, 0}) })
	with("no certificates", func(p *parts) { p.between = tlv(0xa0) })
	// The kernel signs the bytes as they are, with another tag.
	both := slices.Concat(contentTypeAttribute, messageDigest)
	for _, form := range []struct {
		name           string
		written, after []byte
	}{
		{"a long length", []byte{0xa0, 0x82, 0, byte(len(both))}, nil},
		{"an indefinite length", []byte{0xa0, 0x80}, []byte{0, 0}},
	} {
		as := func(header ...byte) []byte { return slices.Concat(header, both) }
		for name, signed := range map[string][]byte{
			"as DER":     set(both),
			"as written": as(append([]byte{0x31}, form.written[1:]...)...),
			"to its end": append(as(append([]byte{0x31}, form.written[1:]...)...), form.after...),
		} {
			with(form.name+", signed "+name, func(p *parts) {
				p.attributes = slices.Concat(form.written, both, form.after)
				p.sig = tlv(4, mldsaSign(t, pair, signed))
			})
		}
	}
	for _, name := range []string{"ml-dsa unknown", "ml-dsa revoked", "ml-dsa blacklisted", "ml-dsa expired"} {
		for _, certificate := range []bool{false, true} {
			p := newMLDSAParts(t, pairs[name], payload)
			p.signAttributes(t, pairs[name], contentTypeAttribute, timeAttribute, messageDigest)
			how := ""
			if certificate {
				p.between, how = tlv(0xa0, pairs[name].Certificate.Raw), ", with certificate"
			}
			all = append(all, message{"attributes, " + name + how, p.der()})
		}
	}
	return all
}

// cmsDigest returns the object identifier of a digest, as modsign writes it.
func cmsDigest(t testing.TB, pairs keys, h crypto.Hash) []byte {
	t.Helper()
	info := elements(t, contents(signerInfoOf(t, pairs.cms(t, keygen.ECDSAP256.String(), h, false, nil))))
	return contents(info[2])
}

// mldsaSigners returns messages with several signers, one of them of ML-DSA.
func mldsaSigners(t testing.TB, pairs keys, payload []byte) []message {
	t.Helper()
	var all []message
	p384 := keygen.ECDSAP384.String()
	good := newMLDSAParts(t, pairs["ml-dsa-65"], payload)
	si := func(name string, hash crypto.Hash) []byte {
		return signerInfoOf(t, pairs.cms(t, name, hash, false, payload))
	}
	with := func(name string, change func(p *parts)) []byte {
		p := newMLDSAParts(t, pairs[name], payload)
		change(&p)
		return p.signerInfo()
	}
	cut := func(p *parts) { p.sig = tlv(4, contents(p.sig)[1:]) }
	streebog := func(p *parts) { p.digest = seq(oid(streebogOID)) }
	attributed := func(name string) []byte {
		h, p := crypto.SHA512, parts{}
		if _, ok := pairs[name].Signer.(*mldsamu.PrivateKey); ok {
			p = newMLDSAParts(t, pairs[name], payload)
		} else {
			h, p = crypto.SHA256, newParts(t, pairs[name], payload)
		}
		p.signAttributes(t, pairs[name], contentTypeAttribute, digestAttribute(digestOf(h, payload)))
		return p.signerInfo()
	}
	certs := func(names ...string) (all []byte) {
		for _, name := range names {
			all = append(all, pairs[name].Certificate.Raw...)
		}
		return tlv(0xa0, all)
	}
	for _, other := range []struct {
		name  string
		si    []byte
		certs []byte
	}{
		{"P-384", si(p384, crypto.SHA384), nil},
		{"P-384, signature changed", changed(si(p384, crypto.SHA384), -1), nil},
		{"RSA", si(keygen.RSA2048.String(), crypto.SHA512), nil},
		{"unknown P-256", si("unknown", crypto.SHA256), nil},
		{"revoked P-256", si("revoked", crypto.SHA256), nil},
		{"module", si("module", crypto.SHA512), nil},
		{"itself", good.signerInfo(), nil},
		{"ml-dsa-87", si("ml-dsa-87", crypto.SHA512), nil},
		{"ml-dsa-87, signature changed", changed(si("ml-dsa-87", crypto.SHA512), -1), nil},
		{"ml-dsa-44, signature cut", with("ml-dsa-44", cut), nil},
		{"ml-dsa-44, Streebog", with("ml-dsa-44", streebog), nil},
		{"unknown", si("ml-dsa unknown", crypto.SHA512), nil},
		{"unknown, signature cut", with("ml-dsa unknown", cut), nil},
		{"revoked", si("ml-dsa revoked", crypto.SHA512), nil},
		{"revoked, signature cut", with("ml-dsa revoked", cut), nil},
		{"with attributes", attributed("ml-dsa-44"), nil},
		{"P-384 with attributes", attributed(p384), nil},
		{"unknown, with certificate", si("ml-dsa unknown", crypto.SHA512), certs("ml-dsa unknown")},
		{"unknown, with certificate, signature changed", changed(si("ml-dsa unknown", crypto.SHA512), -1000),
			certs("ml-dsa unknown")},
		{"unknown, with certificate, signature cut", with("ml-dsa unknown", cut), certs("ml-dsa unknown")},
		{"unknown, with certificate, Streebog", with("ml-dsa unknown", streebog), certs("ml-dsa unknown")},
		{"revoked, with certificate", si("ml-dsa revoked", crypto.SHA512), certs("ml-dsa revoked")},
		{"blacklisted, with certificate", si("ml-dsa blacklisted", crypto.SHA512), certs("ml-dsa blacklisted")},
		{"issued, with both certificates", si("ml-dsa issued", crypto.SHA512), certs("ml-dsa issued", p384)},
		{"issued by ml-dsa, with certificate", si("issued by ml-dsa", crypto.SHA256), certs("issued by ml-dsa")},
		{"issued by ml-dsa, with both certificates", si("issued by ml-dsa", crypto.SHA256),
			certs("issued by ml-dsa", "ml-dsa-65")},
	} {
		message := func(name string, infos ...[]byte) message {
			p := good
			p.between, p.signers = other.certs, set(infos...)
			return message{"signers, " + name, p.der()}
		}
		all = append(all, message("good, "+other.name, good.signerInfo(), other.si),
			message(other.name+", good", other.si, good.signerInfo()),
			message("stranger, "+other.name, si("stranger", crypto.SHA256), other.si),
			message(other.name+" alone", other.si))
	}
	for _, names := range [][]string{
		{"ml-dsa-65", "ml-dsa-44"}, {"ml-dsa-65", p384}, {p384, "ml-dsa-65"}, {"ml-dsa-65", p384, "ml-dsa-87"},
		{p384, "ml-dsa-65", "ml-dsa-87"}, {"ml-dsa-65", "ml-dsa unknown"}, {"ml-dsa unknown", "ml-dsa-65"},
		{"ml-dsa revoked", "ml-dsa-65"}, {p384, p384}, {"ml-dsa unknown", p384}, {p384, "ml-dsa unknown"},
	} {
		p := good
		var infos [][]byte
		for _, name := range names {
			infos = append(infos, attributed(name))
		}
		p.signers = set(infos...)
		all = append(all, message{fmt.Sprintf("signers with attributes, %q", names), p.der()})
	}
	return all
}

// mldsaCertificates returns messages with the signer's certificate inside.
func mldsaCertificates(t testing.TB, pairs keys, payload []byte) []message {
	t.Helper()
	var all []message
	for _, name := range []string{"ml-dsa-44", "ml-dsa-65", "ml-dsa-87", "ml-dsa issued", "ml-dsa expired"} {
		p := newMLDSAParts(t, pairs[name], payload)
		p.between = tlv(0xa0, pairs[name].Certificate.Raw)
		all = append(all, message{"certificate of " + name, p.der()})
		p.sig = changed(p.sig, -1)
		all = append(all, message{"certificate of " + name + ", signature changed", p.der()})
	}
	cert := pairs["ml-dsa-44"].Certificate.Raw
	p := newMLDSAParts(t, pairs["ml-dsa-65"], payload)
	for i := 0; i < len(cert); i++ {
		if i < 200 && i%3 == 0 || i%61 == 0 || i > len(cert)-40 {
			p.between = tlv(0xa0, changed(cert, i))
			all = append(all, message{fmt.Sprintf("certificate with byte %d changed", i), p.der()})
		}
	}
	return all
}
