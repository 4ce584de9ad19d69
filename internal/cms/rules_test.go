package cms

import (
	"crypto"
	"syscall"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// TestRulesOfCertificates has the rules of three kernels judge certificates.
func TestRulesOfCertificates(t *testing.T) {
	t.Parallel()
	extended := func(id string, value []byte) func(*certificateParts) {
		return func(p *certificateParts) {
			p.extensions = tlv(constructed0+3, seq(seq(oid(id), tlv(tagOctetString, value))))
		}
	}
	otherName := seq(tlv(constructed0+1, tlv(constructed0, oid("\x2a\x03"), tlv(constructed0, null))))
	explicitURI := seq(tlv(constructed0+1, tlv(constructed0+6, tlv(tagIA5String, []byte("x")))))
	for _, test := range []struct {
		name           string
		change         func(*certificateParts)
		v61, v612, v72 syscall.Errno
	}{
		{"as it is", nil, 0, 0, 0},
		{"P-521", func(p *certificateParts) {
			p.key = testmod.NewKey(t, "ecdsa:p521").Certificate.RawSubjectPublicKeyInfo
		}, syscall.ENOPKG, 0, 0},
		{"ML-DSA", func(p *certificateParts) {
			p.key = testmod.NewKey(t, "mldsa:44").Certificate.RawSubjectPublicKeyInfo
		}, syscall.ENOPKG, syscall.ENOPKG, 0},
		{"SM2", func(p *certificateParts) { p.key = seq(seq(oid(oidEC), oid(oidSM2)), tlv(tagBitString, []byte{0, 4})) },
			0, syscall.ENOPKG, syscall.ENOPKG},
		{"SHA-3 with RSA", func(p *certificateParts) {
			p.inner, p.outer = seq(oid(nistSignatures+"\x0e")), seq(oid(nistSignatures+"\x0e"))
		}, syscall.ENOPKG, 0, 0},
		{"bad key usage", extended(oidKeyUsage, []byte{1, 1, 0}), 0, syscall.EBADMSG, syscall.EBADMSG},
		{"CA:FALSE as it is not written", extended(oidBasicConstraints, seq(tlv(tagBoolean, []byte{0}))), 0, syscall.EBADMSG,
			syscall.EBADMSG},
		{"otherName", extended(oidAuthorityKeyID, otherName), syscall.EBADMSG, 0, 0},
		{"URI in its own type", extended(oidAuthorityKeyID, explicitURI), 0, syscall.EBADMSG, syscall.EBADMSG},
	} {
		ecdsaSHA256 := seq(oid(ansiX962 + "\x04\x03\x02"))
		named := func(s string) []byte { return seq(set(seq(oid(oidCommonName), tlv(0x0c, []byte(s))))) }
		utc := func(s string) []byte { return tlv(tagUTCTime, []byte(s)) }
		p := certificateParts{
			version: tlv(constructed0, integer(2)), serial: integer(9), inner: ecdsaSHA256, issuer: named("issuer"),
			validity: seq(utc("260101000000Z"), utc("491231235959Z")), subject: named("subject"),
			key:   testmod.NewKey(t, "ecdsa:p256").Certificate.RawSubjectPublicKeyInfo,
			outer: ecdsaSHA256, signature: tlv(tagBitString, []byte{0}, []byte("whatever")),
		}
		if test.change != nil {
			test.change(&p)
		}
		for _, on := range []struct {
			rules *Rules
			errno syscall.Errno
		}{{linux61, test.v61}, {linux612, test.v612}, {Newest, test.v72}} {
			t.Run(test.name+", "+on.rules.String(), func(t *testing.T) {
				_, err := on.rules.ParseCertificate(p.der())
				kind := Malformed
				if on.errno == syscall.ENOPKG {
					kind = Unsupported
				}
				wantError(t, err, kind, on.errno)
			})
		}
	}
}

// TestRulesOfMessages has the rules of three kernels judge messages.
func TestRulesOfMessages(t *testing.T) {
	t.Parallel()
	c, err := ParseCertificate(testdata(t, "p256.x509"))
	if err != nil {
		t.Fatal(err)
	}
	sha3 := testmod.NewKey(t, "ecdsa:p256")
	ofSHA3, err := ParseCertificate(sha3.Certificate.Raw)
	if err != nil {
		t.Fatal(err)
	}
	md5 := p256Parts(t)
	md5.digest = seq(oid(oidMD5))
	for _, test := range []struct {
		name           string
		der            []byte
		revoked        bool
		v61, v612, v72 syscall.Errno
	}{
		{"as it is", p256Parts(t).der(), false, 0, 0, 0},
		{"revoked", p256Parts(t).der(), true, 0, syscall.EKEYREJECTED, syscall.EKEYREJECTED},
		{"SHA3-256", signedBy(t, sha3, crypto.SHA3_256, Form{}), false, syscall.ENOPKG, 0, 0},
		{"MD5", md5.der(), false, syscall.ENOPKG, syscall.ENOPKG, syscall.ENOPKG},
	} {
		for _, on := range []struct {
			rules *Rules
			errno syscall.Errno
		}{{linux61, test.v61}, {linux612, test.v612}, {Newest, test.v72}} {
			t.Run(test.name+", "+on.rules.String(), func(t *testing.T) {
				m, err := on.rules.Parse(test.der)
				if err == nil {
					var revoked *Keyring
					if test.revoked {
						revoked = NewKeyring(c)
					}
					_, err = m.Check(digestOf(payload), NewKeyring(c, ofSHA3), revoked)
				}
				kind := Unsupported
				if on.errno == syscall.EKEYREJECTED {
					kind = Revoked
				}
				wantError(t, err, kind, on.errno)
			})
		}
	}
}

// TestRulesOfVersions reads a few versions between the ones whose source was read.
func TestRulesOfVersions(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		major, minor               int
		extensions, sha3, p521, ml bool
	}{
		{5, 15, false, false, false, false}, {6, 1, false, false, false, false}, {6, 4, true, false, false, false},
		{6, 6, true, false, false, false}, {6, 7, true, true, false, false}, {6, 10, true, true, true, false},
		{6, 19, true, true, true, false}, {7, 0, true, true, true, true}, {8, 1, true, true, true, true},
	} {
		r := RulesOf(test.major, test.minor, true)
		if r.extensions != test.extensions || r.sha3 != test.sha3 || r.p521 != test.p521 || r.mldsa != test.ml ||
			r.waiver != test.ml {
			t.Errorf("%s: %+v", r, r)
		}
	}
	if !linux612.OlderThan(Newest) || Newest.OlderThan(Any) || linux612.OlderThan(linux61) {
		t.Error("versions are not in order")
	}
}
