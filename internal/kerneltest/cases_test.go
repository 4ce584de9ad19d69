//go:build kerneltest

package kerneltest

import (
	"bytes"
	"crypto"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/sign"
)

var hashes = []struct {
	name string
	hash crypto.Hash
}{
	{"sha1", crypto.SHA1}, {"sha224", crypto.SHA224}, {"sha256", crypto.SHA256}, {"sha384", crypto.SHA384},
	{"sha512", crypto.SHA512},
	{"sha3-256", crypto.SHA3_256}, {"sha3-384", crypto.SHA3_384}, {"sha3-512", crypto.SHA3_512},
}

// cms signs a payload like modsign.
func (pairs keys) cms(t testing.TB, name string, hash crypto.Hash, useKeyID bool, payload []byte) []byte {
	t.Helper()
	return pairs.cmsWith(t, name, sign.SignerOptions{Hash: hash, UseKeyID: useKeyID}, payload)
}

// cmsWith is cms with all options.
func (pairs keys) cmsWith(t testing.TB, name string, options sign.SignerOptions, payload []byte) []byte {
	t.Helper()
	signer, err := sign.NewSigner(pairs[name].Signer, pairs[name].Certificate, options)
	if err != nil {
		t.Fatal(err)
	}
	der, err := signer.Sign(bytes.NewReader(payload))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// withCMS returns a module with a message appended.
func withCMS(payload, der []byte) []byte {
	return module.AppendSignature(slices.Clone(payload), module.TypePKCS7, der)
}

// signed returns a module signed with SHA-256 by the key of that name.
func (pairs keys) signed(t testing.TB, name string, payload []byte) []byte {
	t.Helper()
	return withCMS(payload, pairs.cms(t, name, crypto.SHA256, false, payload))
}

// changed returns a copy with one byte changed. A negative at counts from the end.
func changed(b []byte, at int) []byte {
	b = slices.Clone(b)
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 1
	return b
}

// makeCases makes good and bad modules from a payload, all uncompressed.
func makeCases(t testing.TB, pairs keys, tree *Tree, payload []byte) []made {
	t.Helper()
	var cases []made
	add := func(name string, data []byte) { cases = append(cases, made{Case: Case{Name: name, Data: data}}) }
	p256 := keygen.ECDSAP256.String()
	good := pairs.signed(t, p256, payload)

	// Every key with every hash.
	for _, algorithm := range keygen.Algorithms() {
		for _, h := range hashes {
			add(algorithm.String()+" "+h.name, withCMS(payload, pairs.cms(t, algorithm.String(), h.hash, false, payload)))
		}
		add(algorithm.String()+" by key id", withCMS(payload, pairs.cms(t, algorithm.String(), crypto.SHA256, true, payload)))
		bad := pairs.cms(t, algorithm.String(), crypto.SHA512, false, payload)
		add(algorithm.String()+" signature changed", withCMS(payload, changed(bad, -1)))
	}

	// Keys with special certificates.
	for _, name := range []string{"module", "expired", "sha3", "unknown", "revoked", "blacklisted", "sha256 listed",
		"sha512 listed"} {
		add("signed by "+name, pairs.signed(t, name, payload))
		add("signed by "+name+", changed", changed(pairs.signed(t, name, payload), len(payload)/2))
	}

	// The payload.
	add("not signed", payload)
	add("first byte changed", changed(good, 0))
	add("last byte changed", changed(good, len(payload)-1))
	add("first byte missing", good[1:])
	add("a byte more before the signature", withCMS(append(slices.Clone(payload), 0),
		pairs.cms(t, p256, crypto.SHA256, false, payload)))
	add("no payload", pairs.signed(t, p256, nil))
	add("text", pairs.signed(t, p256, []byte("no module")))
	add("one byte", []byte{0x7f})

	// The trailer: 12 bytes of struct module_signature and the marker.
	trailer := len(good) - module.TrailerSize
	for i, field := range []string{"algo", "hash", "id_type", "signer_len", "key_id_len", "pad 0", "pad 1", "pad 2"} {
		add("trailer, "+field, changed(good, trailer+i))
	}
	for _, idType := range []module.IDType{module.TypePGP, module.TypeX509, module.TypeMerkle, 0xff} {
		b := slices.Clone(good)
		b[trailer+2] = byte(idType)
		add(fmt.Sprintf("trailer, id_type %d", idType), b)
	}
	sigLen := func(n int) []byte {
		b := slices.Clone(good)
		binary.BigEndian.PutUint32(b[trailer+8:], uint32(n))
		return b
	}
	add("sig_len 0", sigLen(0))
	add("sig_len 1", sigLen(1))
	add("sig_len one less", sigLen(trailer-len(payload)-1))
	add("sig_len one more", sigLen(trailer-len(payload)+1))
	add("sig_len all of the payload", sigLen(trailer))
	add("sig_len all but one byte", sigLen(trailer-1))
	add("sig_len beyond the file", sigLen(trailer+1))
	add("sig_len 4 GiB", sigLen(1<<32-1))
	add("a message of 65535 bytes", withCMS(payload, append(pairs.cms(t, p256, crypto.SHA256, false, payload),
		make([]byte, 1<<16)...)[:1<<16-1]))
	add("a message of 65536 bytes", withCMS(payload, append(pairs.cms(t, p256, crypto.SHA256, false, payload),
		make([]byte, 1<<16)...)[:1<<16]))
	add("marker cut", good[:len(good)-1])
	add("marker changed", changed(good, -10))
	add("text after the marker", append(slices.Clone(good), '\n'))
	add("marker alone", []byte(module.Marker))
	add("marker after the payload", append(slices.Clone(payload), module.Marker...))
	add("trailer alone", good[trailer:])
	add("a byte and the trailer", good[trailer-1:])

	// One signature on another.
	stack := func(outer, inner string) []byte { return pairs.signed(t, outer, pairs.signed(t, inner, payload)) }
	add("stacked, twice the same", stack(p256, p256))
	add("stacked, good on unknown", stack(p256, "unknown"))
	add("stacked, unknown on good", stack("unknown", p256))
	add("stacked, good on bad", pairs.signed(t, p256, changed(good, 0)))
	add("stacked, good on malformed", pairs.signed(t, p256, changed(good, trailer)))
	add("stacked, bad on good", changed(stack(p256, p256), len(good)+module.TrailerSize))
	add("stacked, revoked on good", stack("revoked", p256))
	add("stacked, good on revoked", stack(p256, "revoked"))
	add("stacked, three", pairs.signed(t, p256, stack(p256, p256)))

	// Each byte of the signature, a bit at a time; without --full one bit of each.
	for _, name := range []string{p256, keygen.RSA2048.String()} {
		file := withCMS(payload, pairs.cms(t, name, crypto.SHA256, name == p256, payload))
		for i := len(payload); i < len(file); i++ {
			for bit := range 8 {
				if b := slices.Clone(file); full() || bit == i%8 {
					b[i] ^= 1 << bit
					add(fmt.Sprintf("%s, byte %d, bit %d", name, i-len(payload), bit), b)
				}
			}
		}
	}

	cases = append(cases, otherTools(t, pairs, tree, payload)...)
	cases = append(cases, severalSigners(t, pairs, payload)...)
	cases = append(cases, mldsaCases(t, pairs, tree, payload)...)
	for _, m := range messages(t, pairs, payload) {
		add("message, "+m.name, withCMS(payload, m.der))
	}
	return cases
}

// otherTools signs with the kernel's own sign-file and with openssl.
func otherTools(t testing.TB, pairs keys, tree *Tree, payload []byte) []made {
	t.Helper()
	dir := t.TempDir()
	var cases []made
	for _, name := range []string{keygen.RSA3072.String(), keygen.ECDSAP384.String()} {
		key := pairs.file(t, name)
		in := testmod.WriteFile(t, "m.ko", payload)
		for _, args := range [][]string{{"sha1"}, {"sha256"}, {"sha512"}, {"-k", "sha384"}} {
			out := filepath.Join(dir, "out.ko")
			testmod.Run(t, filepath.Join(tree.Objtree, "scripts/sign-file"), append(args, key, key, in, out)...)
			b, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			cases = append(cases, made{Case: Case{Name: "sign-file " + strings.Join(args, " ") + ", " + name, Data: b}})
		}
		openssl := func(what string, args ...string) {
			der := testmod.Run(t, testmod.Program(t, "openssl", "openssl"),
				append([]string{"cms", "-sign", "-binary", "-outform", "DER", "-md", "sha256", "-signer", key, "-in", in},
					args...)...)
			cases = append(cases, made{Case: Case{Name: "openssl, " + what + ", " + name, Data: withCMS(payload, der)}})
		}
		openssl("as sign-file", "-nocerts", "-noattr", "-nosmimecap")
		openssl("by key id", "-nocerts", "-noattr", "-nosmimecap", "-keyid")
		openssl("with certificate", "-noattr", "-nosmimecap")
		openssl("with certificate, by key id", "-noattr", "-nosmimecap", "-keyid")
		openssl("with attributes", "-nocerts", "-nosmimecap")
		openssl("with all attributes", "-nocerts")
		openssl("with content", "-nocerts", "-noattr", "-nosmimecap", "-nodetach")
		openssl("with content in a stream", "-nocerts", "-noattr", "-nosmimecap", "-nodetach", "-stream")
		if name == keygen.RSA3072.String() {
			openssl("PSS", "-nocerts", "-noattr", "-nosmimecap", "-keyopt", "rsa_padding_mode:pss")
			openssl("MD5", "-nocerts", "-noattr", "-nosmimecap", "-md", "md5")
			openssl("SHA3-224", "-nocerts", "-noattr", "-nosmimecap", "-md", "sha3-224")
		}
	}
	return cases
}

// A message is a CMS message, or a part of one.
type message struct {
	name string
	der  []byte
}

// messages returns hand-made messages for the rules of the kernel's decoder and parser.
func messages(t testing.TB, pairs keys, payload []byte) []message {
	t.Helper()
	pair := pairs[keygen.ECDSAP256.String()]
	var all []message
	raw := func(name string, der []byte) { all = append(all, message{name, der}) }
	add := func(name string, change func(p *parts)) {
		p := newParts(t, pair, payload)
		change(&p)
		raw(name, p.der())
	}
	null := []byte{5, 0}
	digest := crypto.SHA256.New()
	digest.Write(payload)
	const contentTypeOID, messageDigestOID, capabilitiesOID, microsoftOID = "1.2.840.113549.1.9.3", "1.2.840.113549.1.9.4",
		"1.2.840.113549.1.9.15", "1.3.6.1.4.1.311.2.1.11"
	contentType := attribute(contentTypeOID, oid(dataOID))
	messageDigest := attribute(messageDigestOID, tlv(0x04, digest.Sum(nil)))
	unknown := newParts(t, pairs["unknown"], payload)
	keyID := tlv(0x80, pair.Certificate.SubjectKeyId)
	plain := newParts(t, pair, payload).der()

	// lib/asn1_decoder.c
	raw("as sign-file writes it", plain)
	raw("bytes after it", append(slices.Clone(plain), "anything"...))
	raw("a message after it", append(slices.Clone(plain), plain...))
	raw("cut", plain[:len(plain)-1])
	raw("one byte", plain[:1])
	raw("indefinite length, outermost", indefinite(0x30, contents(plain)))
	raw("indefinite length without end", slices.Concat([]byte{0x30, 0x80}, contents(plain)))
	add("indefinite length, inner", func(p *parts) { p.content = indefinite(0x30, contents(p.content)) })
	add("indefinite length, SignerInfo", func(p *parts) { p.signers = set(indefinite(0x30, contents(p.signerInfo()))) })
	add("indefinite length, AlgorithmIdentifier", func(p *parts) { p.digest = indefinite(0x30, oid(sha256OID)) })
	add("indefinite length, AlgorithmIdentifier with parameters",
		func(p *parts) { p.digest = indefinite(0x30, oid(sha256OID), null) })
	add("length 81 xx", func(p *parts) {
		p.content = slices.Concat([]byte{0x30, 0x81, byte(len(p.content) - 2)}, contents(p.content))
	})
	add("length 82 00 xx", func(p *parts) {
		p.content = slices.Concat([]byte{0x30, 0x82, 0, byte(len(p.content) - 2)}, contents(p.content))
	})
	add("length 83 00 00 xx", func(p *parts) {
		p.content = slices.Concat([]byte{0x30, 0x83, 0, 0, byte(len(p.content) - 2)}, contents(p.content))
	})
	add("length too large", func(p *parts) { p.content[1] = 0x7f })
	add("constructed OCTET STRING", func(p *parts) { p.sig = tlv(0x24, p.sig) })
	add("primitive SEQUENCE", func(p *parts) { p.content[0] = 0x10 })
	add("tag of two octets", func(p *parts) { p.digest = seq(oid(sha256OID), []byte{0x1f, 0x20, 0}) })
	add("a byte too many in an element", func(p *parts) { p.content = seq(oid(dataOID), []byte{0}) })
	add("parameters nested 12 deep", func(p *parts) {
		deep := null
		for range 12 {
			deep = indefinite(0x30, deep)
		}
		p.digest = seq(oid(sha256OID), deep)
	})

	// pkcs7_parser.c
	add("content type data", func(p *parts) { p.contentType = oid(dataOID) })
	raw("nothing but the content type", seq(oid(signedDataOID)))
	for _, version := range []byte{0, 2, 3, 4} {
		number := string('0' + rune(version))
		add("SignedData version "+number, func(p *parts) { p.version = integer(version) })
		add("SignerInfo version "+number, func(p *parts) { p.siVersion = integer(version) })
		add("versions "+number+" with issuer", func(p *parts) { p.version, p.siVersion = integer(version), integer(version) })
		add("versions "+number+" with key id", func(p *parts) {
			p.version, p.siVersion, p.sid = integer(version), integer(version), keyID
		})
	}
	add("versions 1 with key id", func(p *parts) { p.sid = keyID })
	add("version in two bytes", func(p *parts) { p.version = integer(0, 1) })
	add("no digestAlgorithms", func(p *parts) { p.digests = set() })
	add("digestAlgorithms is a SEQUENCE", func(p *parts) { p.digests[0] = 0x30 })
	add("digestAlgorithms of another digest", func(p *parts) { p.digests = set(seq(oid("2.16.840.1.101.3.4.2.3"))) })
	add("digestAlgorithms of an unknown digest", func(p *parts) { p.digests = set(seq(oid("1.2.3.4"))) })
	add("content of type signedData", func(p *parts) { p.content = seq(oid(signedDataOID)) })
	add("content inside", func(p *parts) { p.content = seq(oid(dataOID), tlv(0xa0, tlv(0x04, payload))) })
	add("Authenticode", func(p *parts) { p.content = seq(oid("1.3.6.1.4.1.311.2.1.4")) })
	add("no certificates", func(p *parts) { p.between = tlv(0xa0) })
	add("the signer's certificate", func(p *parts) { p.between = tlv(0xa0, pair.Certificate.Raw) })
	add("another certificate", func(p *parts) { p.between = tlv(0xa0, pairs["unknown"].Certificate.Raw) })
	add("a certificate that is none", func(p *parts) { p.between = tlv(0xa0, seq(null)) })
	add("a CRL", func(p *parts) { p.between = tlv(0xa1, seq(seq(null))) })
	add("an empty CRL", func(p *parts) { p.between = tlv(0xa1, seq()) })
	add("signerInfos is a SEQUENCE", func(p *parts) { p.signers = seq(p.signerInfo()) })
	add("empty signerInfos", func(p *parts) { p.signers = set() })
	add("no signerInfos", func(p *parts) { p.signers = []byte{} })
	add("issuer without names", func(p *parts) { p.sid = seq(seq(), integer(1)) })
	add("issuer in another string type", func(p *parts) {
		p.sid = bytes.Replace(p.sid, []byte("\x0c"+string(rune(len(pair.Certificate.Subject.CommonName)))),
			[]byte("\x13"+string(rune(len(pair.Certificate.Subject.CommonName)))), 1)
	})
	add("serial number of another", func(p *parts) { p.sid = changed(p.sid, -1) })
	add("key id of another", func(p *parts) { p.version, p.siVersion, p.sid = integer(3), integer(3), changed(keyID, -1) })
	add("key id cut", func(p *parts) {
		p.version, p.siVersion, p.sid = integer(3), integer(3), tlv(0x80, contents(keyID)[:19])
	})
	add("no key id", func(p *parts) { p.version, p.siVersion, p.sid = integer(3), integer(3), tlv(0x80) })

	add("digest with NULL", func(p *parts) { p.digest = seq(oid(sha256OID), null) })
	add("ECDSA with NULL", func(p *parts) { p.algorithm = seq(oid(ecdsaSHA256), null) })
	add("ECDSA with the name of another digest", func(p *parts) { p.algorithm = seq(oid("1.2.840.10045.4.3.3")) })
	add("another digest than signed", func(p *parts) { p.digest = seq(oid("2.16.840.1.101.3.4.2.2")) })
	for _, digest := range [][2]string{
		{"MD4", "1.2.840.113549.2.4"}, {"MD5", "1.2.840.113549.2.5"}, {"SHA3-224", "2.16.840.1.101.3.4.2.7"},
		{"SM3", "1.2.156.10197.1.401"},
		{"Streebog", streebogOID}, {"unknown", "1.2.3.4"},
	} {
		add("digest "+digest[0], func(p *parts) { p.digest = seq(oid(digest[1])) })
	}
	for _, algorithm := range [][2]string{
		{"rsaEncryption with an ECDSA key", rsaEncryption}, {"sha256WithRSAEncryption", sha256WithRSA},
		{"RSASSA-PSS", "1.2.840.113549.1.1.10"}, {"id-ecPublicKey", "1.2.840.10045.2.1"},
		{"Ed25519", "1.3.101.112"}, {"ML-DSA-65", mldsa65OID}, {"GOST", "1.2.643.7.1.1.1.1"},
		{"SM2", "1.2.156.10197.1.501"},
		{"unknown", "1.2.3.4"},
	} {
		add("signature algorithm "+algorithm[0], func(p *parts) { p.algorithm = seq(oid(algorithm[1])) })
	}
	rsa := newParts(t, pairs[keygen.RSA2048.String()], payload)
	for _, algorithm := range []message{
		{"rsaEncryption", seq(oid(rsaEncryption), null)}, {"rsaEncryption without NULL", seq(oid(rsaEncryption))},
		{"sha256WithRSAEncryption", seq(oid(sha256WithRSA), null)}, {"ECDSA", seq(oid(ecdsaSHA256))},
	} {
		p := rsa
		p.algorithm = algorithm.der
		raw("RSA key, "+algorithm.name, p.der())
	}

	add("unsigned attributes", func(p *parts) { p.unsigned = tlv(0xa1, attribute("1.2.3", null)) })
	add("attributes", func(p *parts) { p.attributes = tlv(0xa0, contentType, messageDigest) })
	add("attributes without messageDigest", func(p *parts) { p.attributes = tlv(0xa0, contentType) })
	add("attributes without contentType", func(p *parts) { p.attributes = tlv(0xa0, messageDigest) })
	add("attribute twice", func(p *parts) { p.attributes = tlv(0xa0, contentType, contentType, messageDigest) })
	add("smimeCapabilities", func(p *parts) {
		p.attributes = tlv(0xa0, contentType, messageDigest, attribute(capabilitiesOID, null))
	})
	add("attribute of Authenticode", func(p *parts) {
		p.attributes = tlv(0xa0, contentType, messageDigest, attribute(microsoftOID, null))
	})
	add("obsolete attributes", func(p *parts) { p.attributes = tlv(0xa2, seq(contentType)) })
	for _, time := range []string{"500101000000Z", "700101000000Z", "491231235959Z", "26"} {
		for _, certificate := range []bool{false, true} {
			add(fmt.Sprintf("obsolete attributes with the time %s, certificate: %v", time, certificate), func(p *parts) {
				p.attributes = tlv(0xa2, seq(attribute("1.2.840.113549.1.9.5", tlv(asn1.TagUTCTime, []byte(time)))))
				if certificate {
					p.between = tlv(0xa0, pair.Certificate.Raw)
				}
			})
		}
	}

	add("signers good, good", func(p *parts) { p.signers = set(p.signerInfo(), p.signerInfo()) })
	add("signers good, unknown", func(p *parts) { p.signers = set(p.signerInfo(), unknown.signerInfo()) })
	add("signers unknown, good", func(p *parts) { p.signers = set(unknown.signerInfo(), p.signerInfo()) })
	add("signers unknown, unknown", func(p *parts) { p.signers = set(unknown.signerInfo(), unknown.signerInfo()) })
	second := func(change func(p *parts), badFirst bool) func(p *parts) {
		return func(p *parts) {
			other := *p
			change(&other)
			if badFirst {
				p.signers = set(other.signerInfo(), p.signerInfo())
			} else {
				p.signers = set(p.signerInfo(), other.signerInfo())
			}
		}
	}
	bad := func(p *parts) { p.sig = changed(p.sig, -1) }
	unsupported := func(p *parts) { p.digest = seq(oid(streebogOID)) }
	attributes := func(p *parts) { p.attributes = tlv(0xa0, contentType, messageDigest) }
	add("signers good, bad", second(bad, false))
	add("signers bad, good", second(bad, true))
	add("signers good, unsupported", second(unsupported, false))
	add("signers unsupported, good", second(unsupported, true))
	add("signers with and without attributes", second(attributes, false))

	// ecdsa.c
	add("signature with bytes after it", func(p *parts) { p.sig = tlv(0x04, contents(p.sig), []byte("more")) })
	add("signature of three numbers", func(p *parts) { p.sig = tlv(0x04, seq(contents(contents(p.sig)), integer(1))) })
	add("signature of zeros", func(p *parts) { p.sig = tlv(0x04, seq(integer(0), integer(0))) })
	add("signature of large numbers", func(p *parts) {
		p.sig = tlv(0x04, seq(integer(bytes.Repeat([]byte{0xff}, 32)...), integer(1)))
	})
	add("signature of long numbers", func(p *parts) { p.sig = tlv(0x04, seq(integer(make([]byte, 40)...), integer(1))) })
	add("signature empty", func(p *parts) { p.sig = tlv(0x04) })
	return all
}
