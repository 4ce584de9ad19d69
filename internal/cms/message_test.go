package cms

import (
	"bytes"
	"cmp"
	"crypto"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// parts are the elements of a message, each with its tag. A test replaces some.
type parts struct {
	contentType, version, digests, content, between    []byte
	siVersion, sid, digest, attributes, algorithm, sig []byte
	unsigned, signers                                  []byte
}

// p256Parts returns the parts of kernel-p256.p7s.
func p256Parts(t testing.TB) parts {
	s := parse(t, testdata(t, "kernel-p256.p7s")).Signers[0]
	p := parts{
		contentType: oid(oidSignedData), version: integer(1), digests: set(seq(oid(nistHashes + "\x01"))),
		content:   seq(oid(oidData)),
		siVersion: integer(1), sid: serialIdentifier(s.RawIssuer, s.Serial), digest: seq(oid(nistHashes + "\x01")),
		algorithm: seq(oid(ansiX962 + "\x04\x03\x02")), sig: tlv(tagOctetString, s.Signature),
	}
	if !bytes.Equal(p.der(), testdata(t, "kernel-p256.p7s")) {
		t.Fatal("put together the parts give another message")
	}
	return p
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

// TestKernelRules checks the kernel's verdict for every rule of its decoder and its
// parser, on hand-made messages. A message that parses is checked against the signer's
// certificate.
func TestKernelRules(t *testing.T) {
	t.Parallel()
	signer := certificate(t, "p256")
	ring := NewKeyring(signer)
	sha256, null := nistHashes+"\x01", []byte{5, 0}
	attribute := func(of string, values ...[]byte) []byte { return seq(oid(of), set(values...)) }
	contentType := attribute(oidContentType, oid(oidData))
	digest := attribute(oidMessageDigest, tlv(tagOctetString, sum(crypto.SHA256, payload)))
	const ok = syscall.Errno(0)
	for _, test := range []struct {
		name   string
		change func(p *parts)
		raw    func(der []byte) []byte // instead or in addition
		errno  syscall.Errno
		kind   Kind
		dmesg  string
		rules  *Rules // nil: Newest

		canonical bool
	}{
		{name: "as sign-file writes it", canonical: true},

		// lib/asn1_decoder.c
		{name: "bytes after it", raw: func(der []byte) []byte { return append(der, "anything"...) }},
		{name: "empty", raw: func([]byte) []byte { return nil }, errno: syscall.EBADMSG, kind: Malformed},
		{name: "one byte", raw: func(der []byte) []byte { return der[:1] }, errno: syscall.EBADMSG, kind: Malformed},
		{name: "length 82 00 xx", change: func(p *parts) {
			p.content = slices.Concat([]byte{tagSequence, 0x82, 0, byte(len(p.content) - 2)}, p.content[2:])
		}},
		{name: "length 81 xx", change: func(p *parts) {
			p.content = slices.Concat([]byte{tagSequence, 0x81, byte(len(p.content) - 2)}, p.content[2:])
		}},
		{name: "length 83 00 00 xx", change: func(p *parts) {
			p.content = slices.Concat([]byte{tagSequence, 0x83, 0, 0, byte(len(p.content) - 2)}, p.content[2:])
		}, errno: syscall.EBADMSG, kind: Malformed},
		{name: "length ff", change: func(p *parts) { p.content[1] = 0xff }, errno: syscall.EBADMSG, kind: Malformed},
		{name: "length beyond the end", change: func(p *parts) { p.content[1] = 0x7f }, errno: syscall.EBADMSG,
			kind: Malformed},
		{name: "indefinite length, outermost", raw: func(der []byte) []byte { return indefinite(tagSequence, der[3:]) }},
		{name: "indefinite length, inner", change: func(p *parts) { p.content = indefinite(tagSequence, p.content[2:]) }},
		{name: "indefinite length, SignerInfo", change: func(p *parts) {
			p.signers = set(indefinite(tagSequence, p.siVersion, p.sid, p.digest, p.algorithm, p.sig))
		}},
		{name: "indefinite length of an AlgorithmIdentifier eats its own end",
			change: func(p *parts) { p.digest = indefinite(tagSequence, oid(sha256)) }, errno: syscall.EBADMSG, kind: Malformed},
		{name: "indefinite length of an AlgorithmIdentifier with parameters",
			change: func(p *parts) { p.digest = indefinite(tagSequence, oid(sha256), null) }},
		{name: "indefinite length without end", raw: func(der []byte) []byte {
			return slices.Concat([]byte{tagSequence, 0x80}, der[3:])
		}, errno: syscall.EBADMSG, kind: Malformed},
		{name: "indefinite length of a primitive type", change: func(p *parts) { p.sig = []byte{tagOctetString, 0x80, 0, 0} },
			errno: syscall.EBADMSG, kind: Malformed},
		{name: "primitive tag of a SEQUENCE", change: func(p *parts) { p.content[0] = 0x10 }},
		{name: "constructed OCTET STRING", change: func(p *parts) { p.sig = tlv(tagOctetString|tagConstructed, p.sig) },
			errno: syscall.EBADMSG, kind: Malformed},
		{name: "tag of two octets", change: func(p *parts) { p.digest = seq(oid(sha256), []byte{0x1f, 0x20, 0}) },
			errno: syscall.EBADMSG, kind: Malformed},
		{name: "65535 bytes", raw: func(der []byte) []byte { return append(der, make([]byte, MaxSize-len(der))...) }},
		{name: "65536 bytes", raw: func(der []byte) []byte { return append(der, make([]byte, MaxSize+1-len(der))...) },
			errno: syscall.EMSGSIZE, kind: Malformed},
		{name: "one byte too many in an element", change: func(p *parts) { p.content = seq(oid(oidData), []byte{0}) },
			errno: syscall.EBADMSG, kind: Malformed},

		// pkcs7_parser.c
		{name: "content type data", change: func(p *parts) { p.contentType = oid(oidData) }, errno: syscall.EINVAL,
			kind: Malformed, dmesg: "PKCS7: Only support pkcs7_signedData type"},
		{name: "nothing but the content type", raw: func([]byte) []byte { return seq(oid(oidSignedData)) },
			errno: syscall.EINVAL, kind: Malformed, dmesg: "PKCS7: Inconsistently supplied authAttrs"},
		{name: "versions 3", change: func(p *parts) { p.version, p.siVersion = integer(3), integer(3) },
			errno: syscall.EINVAL, kind: Malformed}, // no key id
		{name: "versions 3 with key id", change: func(p *parts) {
			p.version, p.siVersion, p.sid = integer(3), integer(3), keyIDIdentifier(signer.SubjectKeyID)
		}, canonical: true},
		{name: "versions 1 with key id", change: func(p *parts) { p.sid = keyIDIdentifier(signer.SubjectKeyID) },
			errno: syscall.EINVAL, kind: Malformed},
		{name: "version 2", change: func(p *parts) { p.version = integer(2) }, errno: syscall.EINVAL, kind: Malformed,
			dmesg: "PKCS7: Unsupported SignedData version"},
		{name: "version 0", change: func(p *parts) { p.version = integer(0) }, errno: syscall.EINVAL, kind: Malformed,
			dmesg: "PKCS7: Unsupported SignedData version"},
		{name: "version in two bytes", change: func(p *parts) { p.version = integer(0, 1) }, errno: syscall.EINVAL,
			kind: Malformed, dmesg: "PKCS7: Unsupported SignedData version"},
		{name: "version in no byte", change: func(p *parts) { p.version = integer() }, errno: syscall.EINVAL, kind: Malformed,
			dmesg: "PKCS7: Unsupported SignedData version"},
		{name: "SignerInfo version 2", change: func(p *parts) { p.siVersion = integer(2) }, errno: syscall.EINVAL,
			kind: Malformed, dmesg: "PKCS7: Unsupported SignerInfo version"},
		{name: "versions 1 and 3", change: func(p *parts) { p.siVersion = integer(3) }, errno: syscall.EBADMSG,
			kind: Malformed, dmesg: "PKCS7: SignedData-SignerInfo version mismatch"},
		{name: "versions 3 and 1", change: func(p *parts) { p.version = integer(3) }, errno: syscall.EBADMSG, kind: Malformed,
			dmesg: "PKCS7: SignedData-SignerInfo version mismatch"},
		{name: "no digestAlgorithms", change: func(p *parts) { p.digests = set() }, errno: syscall.EBADMSG, kind: Malformed},
		{name: "digestAlgorithms is a SEQUENCE", change: func(p *parts) { p.digests[0] = tagSequence }},
		{name: "digestAlgorithms of another digest", change: func(p *parts) {
			p.digests = set(seq(oid(nistHashes + "\x03")))
		}},
		{name: "digestAlgorithms of an unknown digest", change: func(p *parts) { p.digests = set(seq(oid("\x2a\x03"))) }},
		{name: "two digestAlgorithms", change: func(p *parts) {
			p.digests = set(seq(oid("\x2a\x03")), seq(oid(sha256), null))
		}},
		{name: "content of another type", change: func(p *parts) { p.content = seq(oid(oidSignedData)) },
			errno: syscall.EINVAL, kind: Malformed, dmesg: "PKCS7: Unsupported data type N"},
		{name: "content inside", change: func(p *parts) {
			p.content = seq(oid(oidData), tlv(0xa0, tlv(tagOctetString, payload)))
		}, errno: syscall.EBADMSG, kind: Malformed,
			dmesg: "PKCS#7 signature with non-detached data"},
		{name: "empty content inside", change: func(p *parts) { p.content = seq(oid(oidData), tlv(0xa0)) },
			errno: syscall.EBADMSG, kind: Malformed},
		{name: "Authenticode", change: func(p *parts) { p.content = seq(oid(oidIndirectData)) }, errno: syscall.EBADMSG,
			kind: Malformed, dmesg: "PKCS7: Authenticode requires AuthAttrs"},
		{name: "Authenticode with attributes", change: func(p *parts) {
			p.content = seq(oid(oidIndirectData))
			p.attributes = tlv(0xa0, attribute(oidContentType, oid(oidIndirectData)), digest, attribute(oidOpusInfo, null),
				attribute(oidSMIMECapabilities, null))
		}, errno: syscall.EKEYREJECTED, kind: Malformed, dmesg: "PKCS7: Invalid module sig (not pkcs7-data)"},
		{name: "no certificates", change: func(p *parts) { p.between = tlv(0xa0) }},
		{name: "no certificates, indefinite length", change: func(p *parts) { p.between = indefinite(0xa0) },
			errno: syscall.EBADMSG, kind: Malformed},
		{name: "no certificates in a SEQUENCE", change: func(p *parts) { p.between = tlv(0xa2) }, errno: syscall.EBADMSG,
			kind: Malformed},
		{name: "the signer's certificate", change: func(p *parts) { p.between = tlv(0xa0, signer.Raw) }},
		{name: "the signer's certificate in a SEQUENCE", change: func(p *parts) { p.between = tlv(0xa2, signer.Raw) }},
		{name: "a certificate that is none", change: func(p *parts) { p.between = tlv(0xa0, seq(null)) },
			errno: syscall.EBADMSG, kind: Malformed},
		{name: "a certificate that is no SEQUENCE", change: func(p *parts) { p.between = tlv(0xa0, null) },
			errno: syscall.EBADMSG, kind: Malformed},
		{name: "a certificate of a curve that the kernel does not support",
			change: func(p *parts) { p.between = tlv(0xa0, testdata(t, "p224.x509")) }, errno: syscall.ENOPKG,
			kind: Unsupported},
		{name: "empty CRL", change: func(p *parts) { p.between = tlv(0xa1, seq()) }, errno: syscall.EBADMSG, kind: Malformed},
		{name: "a CRL", change: func(p *parts) { p.between = tlv(0xa1, seq(seq(null))) }, errno: syscall.EBADMSG,
			kind: Malformed},
		{name: "a certificate for a CRL", change: func(p *parts) { p.between = tlv(0xa1, seq(signer.Raw)) }},
		{name: "signerInfos is a SEQUENCE", change: func(p *parts) { p.signers = seq(p.signerInfo()) }},
		{name: "empty signerInfos", change: func(p *parts) { p.signers = set() }, errno: syscall.EBADMSG, kind: Malformed},
		{name: "no signerInfos", change: func(p *parts) { p.signers = []byte{} }, errno: syscall.EINVAL, kind: Malformed,
			dmesg: "PKCS7: Inconsistently supplied authAttrs"},
		{name: "two signers", change: func(p *parts) { p.signers = set(p.signerInfo(), p.signerInfo()) }},
		{name: "two signers, the second has the first one's identifier", change: func(p *parts) {
			first := p.signerInfo()
			p.sid = keyIDIdentifier([]byte("ignored"))
			p.signers = set(first, p.signerInfo())
		}},
		{name: "one signer with attributes, one without", change: func(p *parts) {
			plain := p.signerInfo()
			p.attributes = tlv(0xa0, contentType, digest)
			p.signers = set(plain, p.signerInfo())
		}, errno: syscall.EINVAL, kind: Malformed, dmesg: "PKCS7: Inconsistently supplied authAttrs"},
		{name: "issuer without names", change: func(p *parts) { p.sid = serialIdentifier(seq(), []byte{1}) },
			errno: syscall.EBADMSG, kind: Malformed},
		{name: "digestAlgorithm with NULL", change: func(p *parts) { p.digest = seq(oid(sha256), null) }},
		{name: "digestAlgorithm with anything", change: func(p *parts) { p.digest = seq(oid(sha256), set(integer(7))) }},
		{name: "ECDSA with NULL", change: func(p *parts) { p.algorithm = seq(oid(ansiX962+"\x04\x03\x02"), null) }},
		{name: "ECDSA with the name of another digest", change: func(p *parts) {
			p.algorithm = seq(oid(nistSignatures + "\x0c"))
		}},
		{name: "digest MD5", change: func(p *parts) { p.digest = seq(oid("\x2a\x86\x48\x86\xf7\x0d\x02\x05")) },
			errno: syscall.ENOPKG, kind: Unsupported, dmesg: "Unsupported digest algo: N"},
		{name: "digest SHA3-224", change: func(p *parts) { p.digest = seq(oid(nistHashes + "\x07")) }, errno: syscall.ENOPKG,
			kind: Unsupported, dmesg: "Unsupported digest algo: N"},
		{name: "digest SM3", change: func(p *parts) { p.digest = seq(oid(oidSM3)) }, errno: syscall.ENOPKG,
			kind: Unsupported},
		{name: "digest Streebog", change: func(p *parts) { p.digest = seq(oid(oidStreebog + "\x03")) }, errno: syscall.ENOPKG,
			kind: Unsupported},
		{name: "another digest than signed", change: func(p *parts) { p.digest = seq(oid(nistHashes + "\x02")) },
			errno: syscall.EKEYREJECTED, kind: BadSignature},
		{name: "sha256WithRSAEncryption", change: func(p *parts) { p.algorithm = seq(oid(pkcs1Arc+"\x0b"), null) },
			errno: syscall.ENOPKG, kind: Unsupported, dmesg: "Unsupported pkey algo: N"},
		{name: "RSASSA-PSS", change: func(p *parts) { p.algorithm = seq(oid(pkcs1Arc + "\x0a")) }, errno: syscall.ENOPKG,
			kind: Unsupported, dmesg: "Unsupported pkey algo: N"},
		{name: "id-ecPublicKey", change: func(p *parts) { p.algorithm = seq(oid(oidEC)) }, errno: syscall.ENOPKG,
			kind: Unsupported, dmesg: "Unsupported pkey algo: N"},
		{name: "Ed25519", change: func(p *parts) { p.algorithm = seq(oid("\x2b\x65\x70")) }, errno: syscall.ENOPKG,
			kind: Unsupported, dmesg: "Unsupported pkey algo: N"},
		{name: "ML-DSA before 7.0", change: func(p *parts) { p.algorithm = seq(oid(oidMLDSA65)) }, errno: syscall.ENOPKG,
			kind: Unsupported, dmesg: "Unsupported pkey algo: N", rules: linux612},
		{name: "ML-DSA with an ECDSA key", change: func(p *parts) { p.algorithm = seq(oid(oidMLDSA65)) },
			errno: syscall.EKEYREJECTED, kind: BadSignature, canonical: true},
		{name: "RSA with an ECDSA key", change: func(p *parts) { p.algorithm = seq(oid(oidRSA), null) },
			errno: syscall.EKEYREJECTED, kind: BadSignature, canonical: true},
		{name: "GOST with an ECDSA key", change: func(p *parts) { p.algorithm = seq(oid(oidGOST256)) },
			errno: syscall.EKEYREJECTED, kind: BadSignature},
		{name: "unsigned attributes", change: func(p *parts) {
			p.unsigned = tlv(0xa1, attribute("\x2a\x03", null), attribute("\x2a\x03", null, null))
		}},
		{name: "unsigned attributes as a SEQUENCE", change: func(p *parts) {
			p.unsigned = tlv(0xa3, attribute("\x2a\x03", null))
		}},
		{name: "empty unsigned attributes", change: func(p *parts) { p.unsigned = tlv(0xa1) }, errno: syscall.EBADMSG,
			kind: Malformed},

		{name: "attributes", change: func(p *parts) { p.attributes = tlv(0xa0, contentType, digest) },
			errno: syscall.EKEYREJECTED, kind: Malformed, dmesg: "PKCS7: Invalid module sig (has authattrs)"},
		{name: "attributes with an unknown one", change: func(p *parts) {
			p.attributes = tlv(0xa0, contentType, digest, attribute("\x2a\x03", null, null))
		}, errno: syscall.EKEYREJECTED,
			kind: Malformed, dmesg: "PKCS7: Invalid module sig (has authattrs)"},
		{name: "attributes with a time", change: func(p *parts) {
			p.attributes = tlv(0xa0, contentType, digest, attribute(oidSigningTime, tlv(tagUTCTime, []byte("261123120000Z"))))
		}, errno: syscall.EKEYREJECTED, kind: Malformed, dmesg: "PKCS7: Invalid module sig (has authattrs)"},
		{name: "attributes with no such time", change: func(p *parts) {
			p.attributes = tlv(0xa0, contentType, digest, attribute(oidSigningTime, tlv(tagUTCTime, []byte("260231120000Z"))))
		}, errno: syscall.EBADMSG, kind: Malformed},
		{name: "attributes without messageDigest", change: func(p *parts) { p.attributes = tlv(0xa0, contentType) },
			errno: syscall.EBADMSG, kind: Malformed, dmesg: "PKCS7: Missing required AuthAttr"},
		{name: "attributes without contentType", change: func(p *parts) { p.attributes = tlv(0xa0, digest) },
			errno: syscall.EBADMSG, kind: Malformed, dmesg: "PKCS7: Missing required AuthAttr"},
		{name: "attributes with another contentType", change: func(p *parts) {
			p.attributes = tlv(0xa0, attribute(oidContentType, oid(oidIndirectData)), digest)
		}, errno: syscall.EBADMSG,
			kind:  Malformed,
			dmesg: "PKCS7: Mismatch between global data type (N) and sinfo N (N)"},
		{name: "messageDigest is no OCTET STRING", change: func(p *parts) {
			p.attributes = tlv(0xa0, contentType, attribute(oidMessageDigest, null))
		}, errno: syscall.EBADMSG, kind: Malformed},
		{name: "attribute twice", change: func(p *parts) { p.attributes = tlv(0xa0, contentType, contentType, digest) },
			errno: syscall.EKEYREJECTED, kind: Malformed, dmesg: "PKCS7: Repeated/multivalue AuthAttrs not permitted"},
		{name: "attribute with two values", change: func(p *parts) {
			p.attributes = tlv(0xa0, attribute(oidContentType, oid(oidData), oid(oidData)), digest)
		}, errno: syscall.EKEYREJECTED, kind: Malformed,
			dmesg: "PKCS7: Repeated/multivalue AuthAttrs not permitted"},
		{name: "smimeCapabilities", change: func(p *parts) {
			p.attributes = tlv(0xa0, contentType, digest, attribute(oidSMIMECapabilities, null))
		}, errno: syscall.EKEYREJECTED, kind: Malformed,
			dmesg: "PKCS7: S/MIME Caps only allowed with Authenticode"},
		{name: "Authenticode's attribute", change: func(p *parts) {
			p.attributes = tlv(0xa0, contentType, digest, attribute(oidStatementType, null))
		}, errno: syscall.EKEYREJECTED,
			kind:  Malformed,
			dmesg: "PKCS7: Authenticode AuthAttrs only allowed with Authenticode"},
		{name: "obsolete attributes", change: func(p *parts) { p.attributes = tlv(0xa2, seq(contentType)) }, errno: ok},
		// as if there were none

		// ecdsa.c
		{name: "ECDSA signature with bytes after it", change: func(p *parts) {
			p.sig = tlv(tagOctetString, p.sig[2:], []byte("more"))
		}},
		{name: "ECDSA signature with long length", change: func(p *parts) {
			p.sig = tlv(tagOctetString, []byte{tagSequence, 0x81, p.sig[3]}, p.sig[4:])
		}},
		{name: "ECDSA signature of three numbers", change: func(p *parts) {
			p.sig = tlv(tagOctetString, seq(p.sig[4:], integer(1)))
		}, errno: syscall.EKEYREJECTED, kind: BadSignature},
		{name: "ECDSA signature of zeros", change: func(p *parts) {
			p.sig = tlv(tagOctetString, seq(integer(0), integer(0)))
		}, errno: syscall.EKEYREJECTED, kind: BadSignature},
		{name: "ECDSA signature of large numbers", change: func(p *parts) {
			p.sig = tlv(tagOctetString, seq(integer(bytes.Repeat([]byte{0xff}, 32)...), integer(1)))
		}, errno: syscall.EKEYREJECTED, kind: BadSignature},
		{name: "ECDSA signature of numbers too long", change: func(p *parts) {
			p.sig = tlv(tagOctetString, seq(integer(make([]byte, 34)...), integer(1)))
		}, errno: syscall.EKEYREJECTED,
			kind: BadSignature},
		{name: "empty signature", change: func(p *parts) { p.sig = tlv(tagOctetString) }, errno: syscall.EKEYREJECTED,
			kind: BadSignature},
	} {
		p := p256Parts(t)
		if test.change != nil {
			test.change(&p)
		}
		der := p.der()
		if test.raw != nil {
			der = test.raw(der)
		}
		m, err := cmp.Or(test.rules, Newest).Parse(der)
		if err == nil {
			_, err = m.Check(digestOf(payload), ring, nil)
		}
		t.Run(test.name, func(t *testing.T) {
			if e := wantError(t, err, test.kind, test.errno); e != nil && e.Dmesg != test.dmesg {
				t.Errorf("dmesg %q, want %q", e.Dmesg, test.dmesg)
			}
			if m != nil && m.Canonical() != test.canonical {
				t.Errorf("canonical: %v, warnings %q", m.Canonical(), m.Warnings())
			}
		})
	}
}

func TestParseFields(t *testing.T) {
	t.Parallel()
	p256 := certificate(t, "p256")
	m := parse(t, testdata(t, "kernel-p256.p7s"))
	s := m.Signers[0]
	if m.Version != 1 || s.Version != 1 || !bytes.Equal(s.RawIssuer, p256.RawIssuer) ||
		!bytes.Equal(s.Serial, p256.Serial) || s.SubjectKeyID != nil ||
		s.Hash != crypto.SHA256 || s.HashName != "sha256" || s.Algorithm != "ecdsa" || s.HasAttributes || s.Unsigned ||
		s.Issuer() != "modsign tests: p256" ||
		!strings.HasPrefix(s.String(), `issuer "modsign tests: p256" serial `) || !bytes.Equal(s.KeyID(), p256.id) {
		t.Errorf("%+v", s)
	}
	s = parse(t, testdata(t, "kernel-rsa2048-keyid.p7s")).Signers[0]
	if s.Version != 3 || s.RawIssuer != nil || !bytes.Equal(s.SubjectKeyID, certificate(t, "rsa2048").SubjectKeyID) ||
		s.Algorithm != "rsa" || len(s.Signature) != 256 ||
		s.Issuer() != "" || !strings.HasPrefix(s.String(), "key id ") {
		t.Errorf("%+v", s)
	}
	for file, want := range map[string]string{
		"kernel-p521.p7s":   "",
		"cms-stream.p7s":    "not DER; the signed content is inside",
		"cms-two.p7s":       "",
		"cms-chain.p7s":     "field certificates",
		"smime-nocerts.p7s": "digestAlgorithms has parameters; digestAlgorithm has parameters",
	} {
		m := parse(t, testdata(t, file))
		got := strings.Join(m.Warnings(), "; ")
		if got != want {
			t.Errorf("%s: warnings %q, want %q", file, got, want)
		}
		if _, err := m.Marshal(); m.Canonical() != (want == "") || (err == nil) != (want == "") {
			t.Errorf("%s: canonical %v, %v", file, m.Canonical(), err)
		}
	}
}

// Parse rejects every truncation. Every changed bit is rejected too, except those that
// the kernel ignores: these are known, and the message is then not canonical.
func TestEveryBit(t *testing.T) {
	testmod.Slow(t, "it flips every bit of signatures")
	t.Parallel()
	for _, test := range []struct{ file, cert string }{
		{"kernel-rsa2048.p7s", "rsa2048"}, {"kernel-rsa2048-keyid.p7s", "rsa2048"}, {"kernel-p256.p7s", "p256"},
		{"kernel-p256-keyid.p7s", "p256"}, {"kernel-p384.p7s", "p384"},
	} {
		t.Run(test.file, func(t *testing.T) {
			t.Parallel()
			der, ring := testdata(t, test.file), keyring(t, test.cert)
			check := func(der []byte) (*Message, error) {
				m, err := Parse(der)
				if err == nil {
					_, err = m.Check(digestOf(payload), ring, nil)
				}
				return m, err
			}
			if _, err := check(der); err != nil {
				t.Fatal(err)
			}
			for n := range der {
				if _, err := Parse(der[:n]); err == nil {
					t.Errorf("first %d bytes parse", n)
				}
			}
			idle := idleBits(t, der)
			changed := bytes.Clone(der)
			for i := range der {
				for bit := range 8 {
					changed[i] ^= 1 << bit
					m, err := check(changed)
					if accepted, want := err == nil, idle[i]&(1<<bit) != 0; accepted != want {
						t.Errorf("byte %d, bit %d: accepted: %v, want %v (%v)", i, bit, accepted, want, err)
					}
					if m != nil && err == nil && m.Canonical() {
						t.Errorf("byte %d, bit %d: canonical", i, bit)
					}
					changed[i] ^= 1 << bit
				}
			}
		})
	}
}

// idleBits returns, for each byte of a canonical message, the bits that the kernel
// ignores if only that bit changes.
func idleBits(t *testing.T, der []byte) []byte {
	t.Helper()
	idle := make([]byte, len(der))
	set := func(at int, bits byte) { idle[at] |= bits }
	header := func(at int) (contents int) { // a constructed type's constructed bit is ignored
		set(at, tagConstructed)
		if der[at+1] < 0x80 {
			return at + 2
		}
		return at + 2 + int(der[at+1]&0x7f)
	}
	skip := func(at int) int { // skips an element
		d := newDecoder(der[at:])
		d.needAny()
		return at + d.pos
	}
	at := skip(header(0))   // contentType
	at = header(at)         // [0]
	at = skip(header(at))   // SignedData, version
	set(at, 1)              // digestAlgorithms: SET or SEQUENCE
	at = header(header(at)) // and its only algorithm
	for range der[at+1] {   // the contents of its OID are ignored
		set(at+2, 0xff)
		at++
	}
	at = skip(header(at + 2)) // encapContentInfo, data
	set(at, 1)                // signerInfos: SET or SEQUENCE
	at = skip(header(header(at)))
	if der[at] == tagSequence { // issuer and serial number; the issuer's contents are compared
		header(header(at))
	}
	at = skip(at)
	at = skip(header(at)) // digestAlgorithm, its OID
	at = header(at)       // signatureAlgorithm
	last := at + 1 + int(der[at+1])
	if strings.HasPrefix(string(der[at+2:]), oidRSA) {
		// The tag of the parameters. No tag of several octets is one bit away from
		// NULL's.
		set(last+1, 0xff)
	} else {
		// Another ecdsa-with-HASH.
		for bit := range 8 {
			changed := bytes.Clone(der[at+2 : last+1])
			changed[len(changed)-1] ^= 1 << bit
			if slices.ContainsFunc(hashes, func(a hashAlgorithm) bool { return a.ecdsa == string(changed) }) {
				set(last, 1<<bit)
			}
		}
		header(last + 1 + 2) // the SEQUENCE of r and s, in the OCTET STRING
	}
	return idle
}

// The kernel compares names as bytes.
func TestIssuerEncoding(t *testing.T) {
	t.Parallel()
	der := testdata(t, "kernel-p256.p7s")
	printable := replaceOnce(t, der, append([]byte{0x0c, 13}, "modsign tests"...),
		append([]byte{0x13, 13}, "modsign tests"...))
	_, err := parse(t, printable).Check(digestOf(payload), keyring(t, "p256"), nil)
	wantError(t, err, UnknownKey, syscall.ENOKEY)
}

// Hostile input causes no large allocations, and no quadratic time, which would make
// this test slow. The test is not parallel because it counts allocations.
func TestHostileInput(t *testing.T) {
	p := p256Parts(t)
	deep := bytes.Repeat([]byte{tagSequence, 0x80}, MaxSize/2)
	inContent := p256Parts(t)
	inContent.content = seq(oid(oidData), slices.Concat([]byte{0xa0, 0x80}, bytes.Repeat([]byte{tagSequence, 0x80}, 15000),
		make([]byte, 30002)))
	many := p256Parts(t)
	many.signers = set(bytes.Repeat(p.signerInfo(), 350))
	ghosts := p256Parts(t)
	longName := serialIdentifier(seq(set(seq(oid(oidCommonName), tlv(0x0c, make([]byte, 30000))))), []byte{1})
	ghosts.sid = longName
	first := ghosts.signerInfo()
	ghosts.sid = tlv(0x80)
	ghosts.sig = tlv(tagOctetString)
	ghosts.signers = set(first, bytes.Repeat(ghosts.signerInfo(), 900))
	certs := p256Parts(t)
	certs.between = tlv(0xa0, bytes.Repeat(certificate(t, "leaf2").Raw, 100))
	certs.signers = set(bytes.Repeat(p.signerInfo(), 80))
	for name, der := range map[string][]byte{
		"nested": deep, "nested in the content": inContent.der(), "many signers": many.der(),
		"one long name for many": ghosts.der(), "many certificates": certs.der(),
		"claims 64 KiB": {0x30, 0x82, 0xff, 0xff, 6}, "digests": seq(oid(oidSignedData),
			tlv(0xa0, seq(integer(1), set(bytes.Repeat(seq(oid("")), 16000))))),
	} {
		if len(der) > MaxSize {
			t.Fatalf("%s: %d bytes", name, len(der))
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if m, err := Parse(der); err == nil {
			m.Check(digestOf(payload), keyring(t, "p256"), nil)
			m.Warnings()
			m.Canonical()
		}
		runtime.ReadMemStats(&after)
		if bytes := after.TotalAlloc - before.TotalAlloc; bytes > 8<<20 {
			t.Errorf("%s: %d bytes allocated", name, bytes)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range testfiles(f, ".p7s") {
		f.Add(testdata(f, name))
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		before := bytes.Clone(der)
		m, err := Parse(der)
		if !bytes.Equal(der, before) {
			t.Fatal("input changed")
		}
		if err != nil {
			if e, ok := err.(*Error); !ok || e.Errno == 0 || e.Kind == 0 || e.Reason == "" {
				t.Fatalf("%#v", err)
			}
			return
		}
		if len(m.Raw)+m.Trailing != len(der) || len(m.Signers) == 0 {
			t.Fatalf("%d + %d bytes of %d, %d signers", len(m.Raw), m.Trailing, len(der), len(m.Signers))
		}
		for i := range m.Signers {
			_ = m.Signers[i].String()
		}
		m.Warnings()
		again, err := m.Marshal()
		if m.Canonical() != (err == nil) {
			t.Fatal("Canonical and Marshal disagree")
		}
		if err == nil && (!bytes.Equal(again, der) || len(m.Warnings()) != 0) {
			t.Fatalf("canonical, but encodes to %x, warnings %q", again, m.Warnings())
		}
		// Nobody is trusted for content that they have not signed.
		if c, err := m.Check(digestOf([]byte("nobody signed this")), NewKeyring(m.Certificates...), nil); err == nil {
			t.Fatalf("trusted: %s", c.Description())
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for _, name := range []string{"kernel-rsa2048.p7s", "kernel-p384.p7s", "cms-chain.p7s"} {
		der := testdata(b, name)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Parse(der); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
