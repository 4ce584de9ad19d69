package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

func TestParseCertificate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ file, algorithm, problem string }{
		{"rsa2048", "rsa", ""}, {"rsa1024", "rsa", ""}, {"p256", "ecdsa-nist-p256", ""}, {"p384", "ecdsa-nist-p384", ""},
		{"p521", "ecdsa-nist-p521", ""},
		{"small", "ecdsa-nist-p256", ""}, {"zero", "ecdsa-nist-p256", ""}, {"root", "ecdsa-nist-p256", ""},
		{"inter", "ecdsa-nist-p256", ""}, {"leaf", "ecdsa-nist-p256", ""},
		{"p192", "ecdsa-nist-p192", "modsign cannot verify ecdsa-nist-p192 signatures"},
	} {
		der := testdata(t, test.file+".x509")
		c, err := ParseCertificate(slices.Concat(der, []byte("what follows")))
		if err != nil {
			t.Errorf("%s: %v", test.file, err)
			continue
		}
		if !bytes.Equal(c.Raw, der) || c.KeyAlgorithm != test.algorithm || c.KeyProblem != test.problem ||
			(c.PublicKey == nil) != (test.problem != "") ||
			c.Name() != "modsign tests: "+test.file || !strings.HasPrefix(c.Description(), "modsign tests: "+test.file+": ") {
			t.Errorf("%s: %+v", test.file, c)
		}
		if wantSelf := !slices.Contains([]string{"inter", "leaf", "p192"}, test.file); c.selfSigned != wantSelf {
			t.Errorf("%s: self-signed: %v", test.file, c.selfSigned)
		}
		x, err := x509.ParseCertificate(der)
		if test.file == "p192" {
			continue // crypto/x509 does not parse it
		}
		if err != nil {
			t.Fatal(err)
		}
		serial, _ := rawSerial(x)
		if !bytes.Equal(c.RawTBS, x.RawTBSCertificate) || !bytes.Equal(c.RawIssuer, x.RawIssuer) ||
			!bytes.Equal(c.RawSubject, x.RawSubject) ||
			!bytes.Equal(c.SubjectKeyID, x.SubjectKeyId) || !bytes.Equal(c.Serial, serial) || !c.NotBefore.Equal(x.NotBefore) ||
			!c.NotAfter.Equal(x.NotAfter) ||
			!x.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(c.PublicKey) {
			t.Errorf("%s: not as crypto/x509 has it: %+v", test.file, c)
		}
	}
	if c := certificate(t, "zero"); !bytes.Equal(c.Serial, []byte{0}) || !bytes.Equal(c.authority, c.id) {
		t.Errorf("%x", c.Serial)
	}
	if c := certificate(t, "leaf"); len(c.Serial) != 17 ||
		!strings.HasSuffix(c.Description(), ": "+hexOf(c.SubjectKeyID)) || c.Issuer() != "modsign tests: inter" {
		t.Errorf("%s", c.Description())
	}
	if c := certificate(t, "small"); c.SubjectKeyID != nil || c.Description() != "modsign tests: small: 05" {
		t.Errorf("%s", c.Description())
	}
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	var s strings.Builder
	for _, c := range b {
		s.WriteByte(digits[c>>4])
		s.WriteByte(digits[c&15])
	}
	return s.String()
}

// certificateParts are the elements of a certificate; a test replaces some. The
// certificate is not self-signed, so its signature does not matter.
type certificateParts struct {
	version, serial, inner, issuer, validity, subject, key, unique, extensions, outer, signature []byte
}

func (p certificateParts) der() []byte {
	return seq(seq(p.version, p.serial, p.inner, p.issuer, p.validity, p.subject, p.key, p.unique, p.extensions), p.outer,
		p.signature)
}

func TestCertificateRules(t *testing.T) {
	t.Parallel()
	name := func(attributes ...string) []byte {
		rdn := []byte{}
		for i := 0; i < len(attributes); i += 2 {
			rdn = append(rdn, set(seq(oid(attributes[i]), tlv(0x0c, []byte(attributes[i+1]))))...)
		}
		return seq(rdn)
	}
	utc := func(s string) []byte { return tlv(tagUTCTime, []byte(s)) }
	general := func(s string) []byte { return tlv(tagGeneralizedTime, []byte(s)) }
	extension := func(of string, value []byte) []byte { return seq(oid(of), tlv(tagOctetString, value)) }
	extensions := func(all ...[]byte) []byte { return tlv(0xa3, seq(all...)) }
	bits := func(b []byte) []byte { return tlv(tagBitString, []byte{0}, b) }
	rsaKey := func(n, e []byte) []byte {
		return seq(seq(oid(oidRSA), []byte{5, 0}), bits(seq(integer(n...), integer(e...))))
	}
	modulus := func(size int) []byte { return append([]byte{0, 0x80}, bytes.Repeat([]byte{1}, size-1)...) }
	ecKey := func(curve string, point []byte) []byte { return seq(seq(oid(oidEC), oid(curve)), bits(point)) }
	point := certificate(t, "p256").Raw // any bytes serve as a bad point
	ecdsaSHA256, rsaSHA256 := seq(oid(ansiX962+"\x04\x03\x02")), seq(oid(pkcs1Arc+"\x0b"), []byte{5, 0})
	good := func() certificateParts {
		return certificateParts{version: tlv(0xa0, integer(2)), serial: integer(9), inner: ecdsaSHA256,
			issuer:   name(oidCommonName, "issuer"),
			validity: seq(utc("260101000000Z"), utc("491231235959Z")), subject: name(oidCommonName, "subject"),
			key:   rsaKey(modulus(256), []byte{1, 0, 1}),
			outer: ecdsaSHA256, signature: bits([]byte("whatever"))}
	}
	keyID := extension(oidSubjectKeyID, tlv(tagOctetString, []byte("key id")))
	for _, test := range []struct {
		name   string
		change func(p *certificateParts)
		errno  syscall.Errno
		want   string // name, or part of KeyProblem or of the error's reason
		dmesg  string
	}{
		{name: "good", want: "subject"},
		{name: "no version", change: func(p *certificateParts) { p.version = nil }},
		{name: "indefinite length", change: func(p *certificateParts) {
			p.validity = indefinite(tagSequence, p.validity[2:])
		}},
		{name: "negative serial", change: func(p *certificateParts) { p.serial = integer(0xff, 0x80) }},
		{name: "empty serial", change: func(p *certificateParts) { p.serial = integer() }},
		{name: "issuer without names", change: func(p *certificateParts) { p.issuer = seq() }, errno: syscall.EBADMSG},
		{name: "two signature algorithms", change: func(p *certificateParts) { p.outer = rsaSHA256 }, errno: syscall.EINVAL,
			dmesg: "X.509: signatureAlgorithm (N) differs from tbsCertificate.signature (N)"},
		{name: "signed with MD5", change: func(p *certificateParts) { p.inner = seq(oid(pkcs1Arc + "\x04")) },
			errno: syscall.ENOPKG, want: "md5WithRSAEncryption"},
		{name: "signed with RSA-PSS", change: func(p *certificateParts) { p.inner = seq(oid(pkcs1Arc + "\x0a")) },
			errno: syscall.ENOPKG, want: "RSASSA-PSS"},
		{name: "signed with SHA3", change: func(p *certificateParts) {
			p.inner = seq(oid(nistSignatures + "\x10"))
			p.outer = p.inner
		}},
		{name: "signed with Streebog", change: func(p *certificateParts) {
			p.inner = seq(oid(gostArc + "\x03\x02"))
			p.outer = p.inner
		}},
		{name: "signed with Streebog, 512", change: func(p *certificateParts) {
			p.inner = seq(oid(gostArc + "\x03\x03"))
			p.outer = p.inner
		}},
		{name: "signature of odd bits", change: func(p *certificateParts) { p.signature = tlv(tagBitString, []byte{1, 2}) },
			errno: syscall.EBADMSG},
		{name: "empty signature", change: func(p *certificateParts) { p.signature = tlv(tagBitString) },
			errno: syscall.EBADMSG},

		{name: "year 2050 as GeneralizedTime", change: func(p *certificateParts) {
			p.validity = seq(utc("260101000000Z"), general("20500101000000Z"))
		}},
		{name: "year 2049 as GeneralizedTime", change: func(p *certificateParts) {
			p.validity = seq(utc("260101000000Z"), general("20491231235959Z"))
		}, errno: syscall.EBADMSG},
		{name: "year 1969", change: func(p *certificateParts) {
			p.validity = seq(utc("690101000000Z"), utc("491231235959Z"))
		}, errno: syscall.EBADMSG},
		{name: "year 1970", change: func(p *certificateParts) {
			p.validity = seq(utc("700101000000Z"), utc("491231235959Z"))
		}},
		{name: "time without seconds", change: func(p *certificateParts) {
			p.validity = seq(utc("2601010000Z"), utc("491231235959Z"))
		}, errno: syscall.EBADMSG},
		{name: "time with zone", change: func(p *certificateParts) {
			p.validity = seq(utc("260101000000+0100"), utc("491231235959Z"))
		}, errno: syscall.EBADMSG},
		{name: "time without Z", change: func(p *certificateParts) {
			p.validity = seq(utc("2601010000000"), utc("491231235959Z"))
		}, errno: syscall.EBADMSG},
		{name: "30 February", change: func(p *certificateParts) {
			p.validity = seq(utc("260230000000Z"), utc("491231235959Z"))
		}, errno: syscall.EBADMSG},
		{name: "29 February in a leap year", change: func(p *certificateParts) {
			p.validity = seq(utc("280229000000Z"), utc("491231235959Z"))
		}},
		{name: "month 13", change: func(p *certificateParts) { p.validity = seq(utc("261301000000Z"), utc("491231235959Z")) },
			errno: syscall.EBADMSG},
		{name: "24 o'clock and a leap second", change: func(p *certificateParts) {
			p.validity = seq(utc("260101240000Z"), utc("491231235960Z"))
		}},
		{name: "25 o'clock", change: func(p *certificateParts) {
			p.validity = seq(utc("260101250000Z"), utc("491231235959Z"))
		}, errno: syscall.EBADMSG},
		{name: "one time for two", change: func(p *certificateParts) { p.validity = seq(utc("260101000000Z")) }},
		{name: "no time", change: func(p *certificateParts) { p.validity = seq() }, errno: syscall.EBADMSG},
		{name: "INTEGER for a time", change: func(p *certificateParts) { p.validity = seq(integer(1), integer(2)) },
			errno: syscall.EBADMSG},
		{name: "expired long ago", change: func(p *certificateParts) {
			p.validity = seq(utc("700101000000Z"), utc("700101000000Z"))
		}},

		{name: "RSA of 2560 bits", change: func(p *certificateParts) { p.key = rsaKey(modulus(320), []byte{3}) },
			want: "2560 bits; the kernel verifies only"},
		{name: "RSA of 512 bits", change: func(p *certificateParts) { p.key = rsaKey(modulus(64), []byte{3}) },
			want: "512 bits"},
		{name: "RSA with a large exponent", change: func(p *certificateParts) {
			p.key = rsaKey(modulus(256), []byte{1, 0, 0, 0, 1})
		}, want: "exponent of 33 bits"},
		{name: "RSA without numbers", change: func(p *certificateParts) { p.key = seq(seq(oid(oidRSA)), bits(seq())) },
			want: "broken RSA key"},
		{name: "key of odd bits", change: func(p *certificateParts) {
			p.key = seq(seq(oid(oidRSA)), tlv(tagBitString, []byte{7, 1}))
		}, errno: syscall.EBADMSG},
		{name: "EC without a curve", change: func(p *certificateParts) { p.key = seq(seq(oid(oidEC)), bits(point)) },
			errno: syscall.EBADMSG},
		{name: "EC with explicit parameters", change: func(p *certificateParts) {
			p.key = seq(seq(oid(oidEC), seq(integer(1))), bits(point))
		}, errno: syscall.EBADMSG},
		{name: "EC not on the curve", change: func(p *certificateParts) { p.key = ecKey(oidP384, point) },
			want: "not an uncompressed point on P-384"},
		{name: "EC compressed", change: func(p *certificateParts) {
			p.key = ecKey(oidP256, append([]byte{2}, make([]byte, 32)...))
		}, want: "not an uncompressed point on P-256"},
		{name: "secp256k1", change: func(p *certificateParts) { p.key = ecKey("\x2b\x81\x04\x00\x0a", point) },
			errno: syscall.ENOPKG, want: "secp256k1"},
		{name: "P-192", change: func(p *certificateParts) { p.key = ecKey(oidP192, point) }, want: "ecdsa-nist-p192"},
		{name: "GOST", change: func(p *certificateParts) { p.key = seq(seq(oid(oidGOST256)), bits(point)) }, want: "ecrdsa"},
		{name: "ML-DSA-65", change: func(p *certificateParts) {
			p.key, p.inner, p.outer = seq(seq(oid(oidMLDSA65)), bits(point)), seq(oid(oidMLDSA65)), seq(oid(oidMLDSA65))
		}, want: "ML-DSA-65 key of"},
		{name: "Ed25519", change: func(p *certificateParts) { p.key = seq(seq(oid("\x2b\x65\x70")), bits(point)) },
			errno: syscall.ENOPKG, want: "Ed25519"},
		{name: "another algorithm", change: func(p *certificateParts) { p.key = seq(seq(oid("\x2a\x03\x04")), bits(point)) },
			errno: syscall.ENOPKG, want: "1.2.3.4"},

		{name: "unique identifiers", change: func(p *certificateParts) {
			p.unique = append(tlv(0x81, []byte{0, 1}), tlv(0x82, []byte{0, 1})...)
		}},
		{name: "key id", change: func(p *certificateParts) { p.extensions = extensions(keyID) }},
		{name: "critical key id", change: func(p *certificateParts) {
			p.extensions = extensions(seq(oid(oidSubjectKeyID), []byte{tagBoolean, 1, 0xff},
				tlv(tagOctetString, tlv(tagOctetString, []byte("key id")))))
		}},
		{name: "two key ids", change: func(p *certificateParts) { p.extensions = extensions(keyID, keyID) },
			errno: syscall.EBADMSG},
		{name: "empty key id", change: func(p *certificateParts) {
			p.extensions = extensions(extension(oidSubjectKeyID, tlv(tagOctetString)))
		}, errno: syscall.EBADMSG},
		{name: "key id with long length", change: func(p *certificateParts) {
			p.extensions = extensions(extension(oidSubjectKeyID, append([]byte{tagOctetString, 0x81, 3}, "abc"...)))
		}, errno: syscall.EBADMSG},
		{name: "no extensions in the field", change: func(p *certificateParts) { p.extensions = extensions() },
			errno: syscall.EBADMSG},
		{name: "unknown critical extension", change: func(p *certificateParts) {
			p.extensions = extensions(seq(oid("\x2a\x03"), []byte{tagBoolean, 1, 0xff}, tlv(tagOctetString)))
		}},
		{name: "key usage", change: func(p *certificateParts) {
			p.extensions = extensions(extension(oidKeyUsage, []byte{3, 2, 7, 0x80}))
		}},
		{name: "no key usage at all", change: func(p *certificateParts) {
			p.extensions = extensions(extension(oidKeyUsage, []byte{3, 1, 0}))
		}, errno: syscall.EBADMSG},
		{name: "key usage of 9 unused bits", change: func(p *certificateParts) {
			p.extensions = extensions(extension(oidKeyUsage, []byte{3, 2, 9, 0x80}))
		}, errno: syscall.EBADMSG},
		{name: "no CA", change: func(p *certificateParts) {
			p.extensions = extensions(extension(oidBasicConstraints, seq()))
		}},
		{name: "CA", change: func(p *certificateParts) {
			p.extensions = extensions(extension(oidBasicConstraints, seq([]byte{tagBoolean, 1, 0xff}, integer(0))))
		}},
		{name: "explicit CA:FALSE", change: func(p *certificateParts) {
			p.extensions = extensions(extension(oidBasicConstraints, seq([]byte{tagBoolean, 1, 0})))
		}, errno: syscall.EBADMSG},
		{name: "path length without CA", change: func(p *certificateParts) {
			p.extensions = extensions(extension(oidBasicConstraints, seq(integer(0))))
		}, errno: syscall.EBADMSG},
		{name: "basic constraints cut off", change: func(p *certificateParts) {
			p.extensions = extensions(extension(oidBasicConstraints, []byte{0x30}))
		}, errno: syscall.EBADMSG},
		{name: "authority key id", change: func(p *certificateParts) {
			names := tlv(0xa1, tlv(0x86, []byte("https://example.org")), tlv(0xa0, oid("\x2a\x03"), tlv(0xa0, integer(1))),
				tlv(0xa5, tlv(0xa1, integer(1))), tlv(0xa3, integer(1)), tlv(0xa4, name(oidCommonName, "issuer")))
			p.extensions = extensions(extension(oidAuthorityKeyID,
				seq(tlv(0x80, []byte("key id")), names, tlv(0x82, []byte{5}))))
		}},
		{name: "empty authority key id", change: func(p *certificateParts) {
			p.extensions = extensions(extension(oidAuthorityKeyID, seq()))
		}},
		{name: "bad authority key id", change: func(p *certificateParts) {
			p.extensions = extensions(extension(oidAuthorityKeyID, []byte{4, 0}))
		}, errno: syscall.EBADMSG,
			dmesg: "X.509: Couldn't decode AuthKeyIdentifier"},

		{name: "self-signed and is not", change: func(p *certificateParts) {
			p.subject = p.issuer
			p.inner,
				p.outer = rsaSHA256, rsaSHA256
		}, errno: syscall.EINVAL, want: "self-signed certificate"},
		{name: "self-signed with another algorithm", change: func(p *certificateParts) { p.subject = p.issuer },
			errno: syscall.EKEYREJECTED, want: "self-signed certificate: signature algorithm ecdsa, but the key is for rsa"},
		{name: "self-signed with an unsuitable key", change: func(p *certificateParts) {
			p.subject, p.key = p.issuer, rsaKey(modulus(320), []byte{3})
			p.inner, p.outer = rsaSHA256, rsaSHA256
		}, errno: syscall.EINVAL, want: "2560 bits"},
		{name: "self-signed with a key of ours to learn", change: func(p *certificateParts) {
			p.subject, p.key = p.issuer, ecKey(oidP192, point)
		}, want: "ecdsa-nist-p192"},
		{name: "of the same name as its issuer", change: func(p *certificateParts) {
			p.subject = p.issuer
			p.extensions = extensions(extension(oidAuthorityKeyID, seq(tlv(0x80, []byte("another")))))
		}},
		{name: "two issuers", change: func(p *certificateParts) {
			p.subject = p.issuer
			p.extensions = extensions(keyID, extension(oidAuthorityKeyID,
				seq(tlv(0x80, []byte("key id")), tlv(0xa1, tlv(0xa4, p.issuer)), tlv(0x82, []byte{1}))))
		}, errno: syscall.EKEYREJECTED, want: "two different issuers"},

		{name: "organisation and name", change: func(p *certificateParts) {
			p.subject = name(oidOrganization, "Debian", oidCommonName, "kernel")
		}, want: "Debian: kernel"},
		{name: "name begins with the organisation", change: func(p *certificateParts) {
			p.subject = name(oidOrganization, "Acme", oidCommonName, "Acme kernel")
		}, want: "Acme kernel"},
		{name: "name begins like the organisation", change: func(p *certificateParts) {
			p.subject = name(oidOrganization, "Canonical Ltd.", oidCommonName, "Canonical kernel")
		}, want: "Canonical kernel"},
		{name: "organisation only", change: func(p *certificateParts) {
			p.subject = name(oidOrganization, "Acme", oidEmailAddress, "a@example.org")
		}, want: "Acme"},
		{name: "e-mail only", change: func(p *certificateParts) { p.subject = name(oidEmailAddress, "a@example.org") },
			want: "a@example.org"},
		{name: "last name counts", change: func(p *certificateParts) {
			p.subject = name(oidCommonName, "first", oidCommonName, "last")
		}, want: "last"},
		{name: "no name", change: func(p *certificateParts) { p.subject = name("\x55\x04\x06", "DE") }, want: ""},
		{name: "control characters", change: func(p *certificateParts) {
			p.subject = name(oidCommonName, "\x1b[2Jkernel\n\xff")
		}, want: "\ufffd[2Jkernel\ufffd\ufffd"},
	} {
		p := good()
		if test.change != nil {
			test.change(&p)
		}
		c, err := ParseCertificate(p.der())
		t.Run(test.name, func(t *testing.T) {
			kind := Malformed
			switch test.errno {
			case syscall.ENOPKG:
				kind = Unsupported
			case syscall.EINVAL, syscall.EKEYREJECTED:
				if strings.HasPrefix(test.name, "self-signed") {
					kind = BadSignature
				}
			}
			if e := wantError(t, err, kind, test.errno); e != nil {
				if !strings.Contains(e.Reason, test.want) || e.Dmesg != test.dmesg {
					t.Errorf("reason %q, dmesg %q", e.Reason, e.Dmesg)
				}
				return
			}
			if c == nil {
				return
			}
			if c.PublicKey == nil {
				if test.want == "" || !strings.Contains(c.KeyProblem, test.want) {
					t.Errorf("problem %q, want %q", c.KeyProblem, test.want)
				}
			} else if strings.Contains(test.name, "name") || test.want != "" {
				if c.Name() != test.want && test.name != "of the same name as its issuer" {
					t.Errorf("name %q, want %q", c.Name(), test.want)
				}
			}
		})
	}
}

func TestParseCertificates(t *testing.T) {
	t.Parallel()
	small, large, next := testdata(t, "small.x509"), testdata(t, "rsa2048.x509"), testdata(t, "p256.x509")
	certs, err := Any.ParseCertificates(slices.Concat(small, large, next))
	if err != nil || len(certs) != 3 || certs[2].Name() != "modsign tests: p256" {
		t.Errorf("%d certificates, %v", len(certs), err)
	}
	if _, err := Any.ParseCertificates(slices.Concat(small, []byte("garbage"))); err == nil ||
		!strings.Contains(err.Error(), "certificate 2 at offset 322: ASN.1") {
		t.Error(err)
	}
	if _, err := ParseCertificate(make([]byte, MaxSize+1)); !errors.Is(err, syscall.EMSGSIZE) {
		t.Error(err)
	}
	if certs, err := Any.ParseCertificates(nil); len(certs) != 0 || err != nil {
		t.Error(certs, err)
	}
}

func TestParseCertificateList(t *testing.T) {
	t.Parallel()
	large, next, pss := testdata(t, "rsa2048.x509"), testdata(t, "p256.x509"), testdata(t, "pss.x509")
	tiny := []byte{0x30, 0x81, 0x80}
	cut := next[:len(next)-1]
	forged := bytes.Clone(next)
	forged[len(forged)-1] ^= 1
	for _, test := range []struct {
		name  string
		der   []byte
		want  int
		error string
		errno syscall.Errno
	}{
		{"empty", nil, 0, "", 0},
		{"two", slices.Concat(large, next), 2, "", 0},
		{"one unsupported", slices.Concat(large, pss, next), 2, "certificate at offset 804: ", syscall.ENOPKG},
		{"one forged", slices.Concat(forged, next), 1,
			"certificate at offset 0: self-signed certificate: signature does not match", syscall.EKEYREJECTED},
		{"a tiny one breaks the list", slices.Concat(large, tiny, next), 1,
			"offset 804: no certificate of 256 to 65535 bytes", syscall.EBADMSG},
		{"cut off", slices.Concat(large, cut), 1, "offset 804: no certificate", syscall.EBADMSG},
		{"padding", slices.Concat(large, make([]byte, 3)), 1, "ignores this and the following 3 bytes", syscall.EBADMSG},
	} {
		certs, err := Any.ParseCertificateList(test.der)
		if len(certs) != test.want {
			t.Errorf("%s: %d certificates", test.name, len(certs))
		}
		if test.error == "" && err != nil || test.error != "" &&
			(err == nil || !strings.Contains(err.Error(), test.error) || !errors.Is(err, test.errno)) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// The certificates of modsign's other tests, made by crypto/x509, are valid for the
// kernel.
func TestCertificatesOfGo(t *testing.T) {
	t.Parallel()
	for _, algorithm := range []string{"rsa:2048", "ecdsa:p256", "ecdsa:p384", "ecdsa:p521"} {
		c, err := ParseCertificate(testmod.NewKey(t, algorithm).Certificate.Raw)
		if err != nil || !c.selfSigned {
			t.Errorf("%s: %v", algorithm, err)
		}
	}
}

func FuzzParseCertificate(f *testing.F) {
	for _, name := range testfiles(f, ".x509") {
		f.Add(testdata(f, name))
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		c, err := ParseCertificate(der)
		if err != nil {
			if e, ok := err.(*Error); !ok || e.Errno == 0 || e.Kind == 0 || e.Reason == "" {
				t.Fatalf("%#v", err)
			}
			return
		}
		if !bytes.HasPrefix(der, c.Raw) || !bytes.Contains(c.Raw, c.RawTBS) || (c.PublicKey == nil) != (c.KeyProblem != "") ||
			c.KeyAlgorithm == "" {
			t.Fatalf("%+v", c)
		}
		switch c.PublicKey.(type) {
		case nil, *rsa.PublicKey, *ecdsa.PublicKey:
		default:
			t.Fatalf("%T", c.PublicKey)
		}
		_, _ = c.Description(), c.Issuer()
		again, err := ParseCertificate(c.Raw)
		if err != nil || !bytes.Equal(again.id, c.id) {
			t.Fatalf("Raw alone: %v", err)
		}
	})
}

// The inputs are lists of real certificates with a few changes.
func FuzzParseCertificateList(f *testing.F) {
	large, next := testdata(f, "rsa2048.x509"), testdata(f, "p256.x509")
	lists := [][]byte{
		slices.Concat(next, testdata(f, "leaf.x509")), slices.Concat(large, testdata(f, "pss.x509"), next),
		slices.Concat(next, []byte{0x30, 0x81, 3, 1, 2, 3}, large), slices.Concat(testdata(f, "ed25519.x509"), next),
		next, {},
	}
	for i := range lists {
		f.Add(uint8(i), uint64(0), uint64(0), uint64(0))
		f.Add(uint8(i), uint64(3<<16|0x101), uint64(600<<16|7), uint64(500<<16|0x403))
	}
	f.Fuzz(func(t *testing.T, list uint8, one, two, three uint64) {
		der := testmod.Edit(lists[int(list)%len(lists)], one, two, three)
		certs, err := Any.ParseCertificateList(der)
		total := 0
		for _, c := range certs {
			total += len(c.Raw)
		}
		if total > len(der) || err == nil && len(der) > 0 && len(certs) == 0 {
			t.Fatalf("%d certificates of %d bytes out of %d, %v", len(certs), total, len(der), err)
		}
		all, err := Any.ParseCertificates(der)
		if err == nil {
			total = 0
			for _, c := range all {
				total += len(c.Raw)
			}
			if total > len(der) || len(bytes.TrimLeft(der[total:], "\x00")) > 0 { // zero bytes may fill the file
				t.Fatalf("%d bytes out of %d", total, len(der))
			}
		}
	})
}
