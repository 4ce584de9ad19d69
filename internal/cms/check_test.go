package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/testmod"
)

// TestCheck checks messages of the kernel's sign-file and of openssl, with several sets
// of trusted and revoked certificates.
func TestCheck(t *testing.T) {
	t.Parallel()
	const ok, everyone = syscall.Errno(0), "rsa2048 rsa1024 p256 p384 p521 small zero root inter leaf leaf2"
	for _, test := range []struct {
		message, trusted, revoked string
		kind                      Kind
		errno                     syscall.Errno
		want                      string // the certificate found, or part of the reason
	}{
		{"kernel-rsa2048", everyone, "", 0, ok, "rsa2048"},
		{"kernel-rsa2048-keyid", everyone, "", 0, ok, "rsa2048"},
		{"kernel-rsa2048-sha3", everyone, "", 0, ok, "rsa2048"},
		{"kernel-p256", everyone, "", 0, ok, "p256"},
		{"kernel-p256-keyid", everyone, "", 0, ok, "p256"},
		{"kernel-p256-sha1", everyone, "", 0, ok, "p256"},
		{"kernel-p384", everyone, "", 0, ok, "p384"},
		{"kernel-p521", everyone, "", 0, ok, "p521"},
		{"kernel-small", everyone, "", 0, ok, "small"},
		{"kernel-zero", everyone, "", 0, ok, "zero"},
		{"kernel-leaf", everyone, "", 0, ok, "leaf"},
		{"smime-nocerts", everyone, "", 0, ok, "rsa1024"},
		{"smime", everyone, "", 0, ok, "rsa1024"},
		{"cms-two", everyone, "", 0, ok, "p256"},

		{"kernel-p256", "", "", UnknownKey, syscall.ENOKEY,
			`no trusted certificate for issuer "modsign tests: p256" serial `},
		{"kernel-p256", "p384 rsa2048 root", "", UnknownKey, syscall.ENOKEY, "p256"},
		{"kernel-p256-keyid", "p384 rsa2048 root", "", UnknownKey, syscall.ENOKEY, "key id "},
		{"kernel-leaf", "root inter", "", UnknownKey, syscall.ENOKEY, "inter"},
		// a chain needs its certificates in the message
		{"smime", "p256", "", UnknownKey, syscall.ENOKEY, "rsa1024"}, // self-signed and unknown

		{"kernel-p256", "p256", "p384 rsa2048", 0, ok, "p256"},
		{"kernel-p256", "p256", "p256", Revoked, syscall.EKEYREJECTED,
			`signed with the revoked certificate "modsign tests: p256: `},
		{"kernel-p256", "", "p256", Revoked, syscall.EKEYREJECTED, "p256"},
		{"cms-two", "p256", "rsa1024", Revoked, syscall.EKEYREJECTED, "rsa1024"}, // one is enough
		{"cms-chain", "root", "inter", Revoked, syscall.EKEYREJECTED, "inter"},
		{"cms-chain", "leaf2", "root", Revoked, syscall.EKEYREJECTED, "root"},

		{"cms-two", "rsa1024", "", 0, ok, "rsa1024"},
		{"cms-two", "p384", "", UnknownKey, syscall.ENOKEY, ""},

		// The message contains the signer's certificate, or one further up.
		{"cms-chain", "leaf2", "", 0, ok, "leaf2"},
		{"cms-chain", "inter", "", 0, ok, "inter"},
		{"cms-chain", "root", "", 0, ok, "root"},
		{"cms-chain", "leaf p256", "", UnknownKey, syscall.ENOKEY, `"modsign tests: inter" serial 03`},
		{"cms-inter", "root", "", 0, ok, "root"}, // the issuer of the last one
		{"cms-inter", "inter", "", 0, ok, "inter"},
		{"cms-nochain", "leaf", "", 0, ok, "leaf"},
		{"cms-nochain", "inter", "", 0, ok, "inter"}, // by its key id alone
		{"cms-nochain", "root", "", UnknownKey, syscall.ENOKEY, `"modsign tests: inter" serial 00ff`},
		{"cms-two-chains", "root", "", 0, ok, "root"},
		{"cms-two-chains", "leaf", "", 0, ok, "leaf"},
		{"cms-two-chains", "p256", "", UnknownKey, syscall.ENOKEY, ""},

		{"cms-attributes-plain", everyone, "", Malformed, syscall.EKEYREJECTED,
			"signed attributes, which no module may have"},
		{"cms-attributes", everyone, "", Malformed, syscall.EKEYREJECTED, "smimeCapabilities"},
		{"cms-content", everyone, "", Malformed, syscall.EBADMSG, "content is inside"},
		{"cms-stream", everyone, "", Malformed, syscall.EBADMSG, "content is inside"},
		{"cms-pss", everyone, "", Unsupported, syscall.ENOPKG, "RSASSA-PSS"},
		{"kernel-md5", everyone, "", Unsupported, syscall.ENOPKG, "1.2.840.113549.2.5"},
	} {
		t.Run(test.message, func(t *testing.T) {
			t.Parallel()
			m, err := Parse(testdata(t, test.message+".p7s"))
			var found *Certificate
			if err == nil {
				found, err = m.Check(digestOf(payload), keyring(t, test.trusted), keyring(t, test.revoked))
			}
			if e := wantError(t, err, test.kind, test.errno); e != nil && !strings.Contains(e.Reason, test.want) {
				t.Errorf("reason %q, want %q", e.Reason, test.want)
			}
			if test.errno == ok && (found == nil || found.Name() != "modsign tests: "+test.want) {
				t.Errorf("found %v, want %s", found, test.want)
			}
			if test.kind == Revoked && found == nil {
				t.Error("revoked by no certificate")
			}
			if m == nil || test.kind == Malformed {
				return
			}
			// For another module, a known key's signature is bad. An unknown key's
			// signature is not verified, and a revoked key that has not signed does not
			// matter.
			_, err = m.Check(digestOf([]byte("another module")), keyring(t, test.trusted), keyring(t, test.revoked))
			switch {
			case test.kind == UnknownKey && len(m.Certificates) == 0:
				wantError(t, err, UnknownKey, syscall.ENOKEY)
			case test.trusted == "":
				wantError(t, err, UnknownKey, syscall.ENOKEY)
			default:
				e, ok := errors.AsType[*Error](err)
				if !ok || e.Kind != BadSignature || e.Errno != syscall.EKEYREJECTED && e.Errno != syscall.EBADMSG {
					t.Errorf("another module: %s", describe(err))
				}
			}
		})
	}
}

func TestCheckDigest(t *testing.T) {
	t.Parallel()
	der := testdata(t, "cms-two.p7s")
	calls := 0
	count := func(h Hash) ([]byte, error) { calls++; return sum(h, payload), nil }
	if _, err := parse(t, der).Check(count, keyring(t, "p256 rsa1024"), keyring(t, "p384")); err != nil || calls != 1 {
		t.Errorf("%v, %d digests", err, calls)
	}
	calls = 0
	_, err := parse(t, der).Check(count, keyring(t, "p384"), nil)
	if wantError(t, err, UnknownKey, syscall.ENOKEY); calls != 0 {
		t.Errorf("%d digests for nothing", calls)
	}
	for _, revoked := range []string{"", "p256"} {
		fails := func(Hash) ([]byte, error) { return nil, io.ErrUnexpectedEOF }
		if _, err := parse(t, der).Check(fails, keyring(t, "p256"), keyring(t, revoked)); !errors.Is(err,
			io.ErrUnexpectedEOF) || err.Error() != "digest sha256: unexpected EOF" {
			t.Error(err)
		}
		if _, err := parse(t, testdata(t, "cms-chain.p7s")).Check(fails, keyring(t, "root"),
			keyring(t, revoked)); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error(err)
		}
	}
}

// otherSigners returns signers like that of p256Parts: one whose signature is bad, one whose
// digest no kernel here knows, and one that nobody knows.
func otherSigners(t testing.TB) (bad, streebog, nobody parts) {
	t.Helper()
	bad, streebog, nobody = p256Parts(t), p256Parts(t), p256Parts(t)
	bad.sig[len(bad.sig)-1] ^= 1
	streebog.digest = seq(oid(oidStreebog + "\x02"))
	nobody.sid = serialIdentifier(seq(set(seq(oid(oidCommonName), tlv(0x0c, []byte("nobody"))))), []byte{1})
	return bad, streebog, nobody
}

// One bad signer invalidates the message; an unsupported or unknown signer does not.
func TestCheckSigners(t *testing.T) {
	t.Parallel()
	p256 := p256Parts(t)
	good := p256.signerInfo()
	bad, streebog, nobody := otherSigners(t)
	signed := func(signers ...[]byte) []byte {
		p := p256
		p.signers = set(signers...)
		return p.der()
	}
	ring := keyring(t, "p256")
	for _, test := range []struct {
		name  string
		der   []byte
		kind  Kind
		errno syscall.Errno
	}{
		{"good, unknown", signed(good, nobody.signerInfo()), 0, 0},
		{"unknown, good", signed(nobody.signerInfo(), good), 0, 0},
		{"unsupported, good", signed(streebog.signerInfo(), good), 0, 0},
		{"good, unsupported", signed(good, streebog.signerInfo()), 0, 0},
		{"good, bad", signed(good, bad.signerInfo()), BadSignature, syscall.EKEYREJECTED},
		{"bad, good", signed(bad.signerInfo(), good), BadSignature, syscall.EKEYREJECTED},
		{"unknown, unsupported", signed(nobody.signerInfo(), streebog.signerInfo()), Unsupported, syscall.ENOPKG},
		{"unsupported, unknown", signed(streebog.signerInfo(), nobody.signerInfo()), Unsupported, syscall.ENOPKG},
		{"unsupported", signed(streebog.signerInfo()), Unsupported, syscall.ENOPKG},
		{"unknown", signed(nobody.signerInfo()), UnknownKey, syscall.ENOKEY},
	} {
		found, err := parse(t, test.der).Check(digestOf(payload), ring, nil)
		t.Run(test.name, func(t *testing.T) {
			wantError(t, err, test.kind, test.errno)
			if (found != nil) != (test.errno == 0 || test.kind == BadSignature) {
				t.Errorf("found %v", found)
			}
		})
	}
}

// Broken chains inside the message.
func TestCheckEmbeddedChain(t *testing.T) {
	t.Parallel()
	data := testdata(t, "cms-chain.p7s")
	leaf, inter, root := certificate(t, "leaf2"), certificate(t, "inter"), certificate(t, "root")

	// The issuer's certificate with another key under the same serial number.
	forged := bytes.Clone(inter.Raw)
	at := bytes.Index(forged, inter.SubjectKeyID)
	other := replaceOnce(t, data, inter.Raw, inter.Raw)
	other[bytes.Index(other, inter.Raw)+at] ^= 1
	_, err := parse(t, other).Check(digestOf(payload), keyring(t, "root"), nil)
	if e := wantError(t, err, BadSignature, syscall.EKEYREJECTED); e != nil &&
		e.Dmesg != "PKCS7: Sig N: X.509 chain contains auth-skid nonmatch (N->N)" {
		t.Error(e.Dmesg)
	}

	// A signature on the signer's certificate that its issuer did not make.
	other = bytes.Clone(data)
	end := bytes.Index(other, leaf.Raw) + len(leaf.Raw)
	other[end-1] ^= 1
	_, err = parse(t, other).Check(digestOf(payload), keyring(t, "root"), nil)
	if e := wantError(t, err, BadSignature, syscall.EKEYREJECTED); e != nil &&
		!strings.HasPrefix(e.Reason, "embedded certificates: ") {
		t.Error(e.Reason)
	}

	// A trusted certificate with the embedded one's serial number and another key id
	// does not vouch for the embedded one, but does for the signer itself.
	forged[at] ^= 1
	impostor, err := ParseCertificate(forged)
	if err != nil {
		t.Fatal(err)
	}
	_, err = parse(t, data).Check(digestOf(payload), NewKeyring(impostor), nil)
	wantError(t, err, UnknownKey, syscall.ENOKEY)
	found, err := parse(t, data).Check(digestOf(payload), NewKeyring(impostor, root), nil)
	if err != nil || found != root {
		t.Error(found, err)
	}
	// Without the issuer inside, both identifiers of the authority key identifier must
	// match.
	nochain := p256Parts(t)
	s := parse(t, data).Signers[0]
	nochain.between, nochain.sid, nochain.sig = tlv(0xa0, leaf.Raw), serialIdentifier(s.RawIssuer, s.Serial),
		tlv(tagOctetString, s.Signature)
	_, err = parse(t, nochain.der()).Check(digestOf(payload), NewKeyring(impostor), nil)
	wantError(t, err, Malformed, syscall.EKEYREJECTED)
}

// The kernel compares the time of signing with the signer's certificate inside the message,
// and with no other.
func TestCheckSigningTime(t *testing.T) {
	t.Parallel()
	c := certificate(t, "p256")
	for at, fits := range map[time.Time]bool{
		c.NotBefore: true, c.NotBefore.Add(-time.Second): false, c.NotAfter: true, c.NotAfter.Add(time.Second): false,
	} {
		tag, layout := byte(tagUTCTime), "060102150405Z"
		if at.Year() > 2049 {
			tag, layout = tagGeneralizedTime, "20060102150405Z"
		}
		p := p256Parts(t)
		p.attributes = tlv(constructed0+2, seq(seq(oid(oidSigningTime), set(tlv(tag, []byte(at.Format(layout)))))))
		_, err := parse(t, p.der()).Check(digestOf(payload), NewKeyring(c), nil)
		wantError(t, err, Malformed, 0)
		p.between = tlv(constructed0, c.Raw)
		_, err = parse(t, p.der()).Check(digestOf(payload), NewKeyring(c), nil)
		if fits {
			wantError(t, err, Malformed, 0)
		} else if e := wantError(t, err, Malformed, syscall.EKEYREJECTED); e != nil &&
			e.Dmesg != "PKCS7: Message signed outside of X.509 validity window" {
			t.Error(e.Dmesg)
		}
	}
}

// Two certificates that issued each other are visited once.
func TestCheckLoop(t *testing.T) {
	t.Parallel()
	a, b := newECDSA(t), newECDSA(t)
	template := func(name string, keyID byte) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(int64(keyID)), Subject: pkix.Name{CommonName: name},
			SubjectKeyId: []byte{keyID}}
	}
	certA := issue(t, template("a", 1), a, template("b", 2), b)
	certB := issue(t, template("b", 2), b, certA, a)
	p := p256Parts(t)
	m := parse(t, sign(t, a, certA, crypto.SHA256, false, payload))
	p.between, p.sid, p.sig = tlv(0xa0, certB.Raw, certA.Raw), sidOf(&m.Signers[0]),
		tlv(tagOctetString, m.Signers[0].Signature)
	p.signers = set(p.signerInfo(), p.signerInfo())
	_, err := parse(t, p.der()).Check(digestOf(payload), keyring(t, "p256"), nil)
	wantError(t, err, UnknownKey, syscall.ENOKEY)
	trustB, err := ParseCertificate(certB.Raw)
	if err != nil {
		t.Fatal(err)
	}
	if found, err := parse(t, p.der()).Check(digestOf(payload), NewKeyring(trustB), nil); err != nil || found != trustB {
		t.Error(found, err)
	}
}

func newECDSA(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// The same issuer and serial number, another key.
func TestCheckImpostor(t *testing.T) {
	t.Parallel()
	template := func() *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "kernel"}}
	}
	mine, theirs := newECDSA(t), newECDSA(t)
	trusted, err := ParseCertificate(issue(t, template(), theirs, nil, nil).Raw)
	if err != nil {
		t.Fatal(err)
	}
	found, err := parse(t, sign(t, mine, issue(t, template(), mine, nil, nil), crypto.SHA256, false,
		payload)).Check(digestOf(payload), NewKeyring(trusted), nil)
	wantError(t, err, BadSignature, syscall.EKEYREJECTED)
	if found != trusted {
		t.Errorf("about %v", found)
	}
}

// The kernel may support a key that this package cannot use.
func TestCheckUnusableKey(t *testing.T) {
	t.Parallel()
	p192 := certificate(t, "p192")
	p := p256Parts(t)
	p.sid = serialIdentifier(p192.RawIssuer, p192.Serial)
	_, err := parse(t, p.der()).Check(digestOf(payload), NewKeyring(p192), nil)
	wantError(t, err, Unsupported, syscall.ENOPKG)
}

func TestKeyring(t *testing.T) {
	t.Parallel()
	a, b := certificate(t, "p256"), certificate(t, "small")
	k := NewKeyring(a, b, a)
	if !slices.Equal(k.Certificates(), []*Certificate{a, b, a}) || (*Keyring)(nil).Certificates() != nil {
		t.Error(k.Certificates())
	}
	for _, test := range []struct {
		id, keyID []byte
		want      *Certificate
		errno     syscall.Errno
	}{
		{a.id, nil, a, 0}, {nil, a.SubjectKeyID, a, 0}, {a.SubjectKeyID, nil, a, 0}, {a.id, a.SubjectKeyID, a, 0},
		{b.id, nil, b, 0},
		{a.id, []byte("x"), nil, syscall.EKEYREJECTED}, {b.id, a.SubjectKeyID, nil, syscall.EKEYREJECTED},
		{a.id[1:], nil, nil, syscall.ENOKEY}, {a.id[:5], nil, nil, syscall.ENOKEY}, {[]byte{}, nil, nil, syscall.EINVAL},
		{nil, nil, nil, syscall.EINVAL}, {nil, []byte{}, nil, syscall.EINVAL},
	} {
		if c, errno := k.find(test.id, test.keyID); c != test.want || errno != test.errno {
			t.Errorf("%x, %x: %v, %v", test.id, test.keyID, c, errno)
		}
	}
	if _, errno := (*Keyring)(nil).find(a.id, nil); errno != syscall.ENOKEY {
		t.Error(errno)
	}
}

// TestVerifyErrno checks the kernel's errno for a bad signature, which shows if the
// certificate is in the message.
func TestVerifyErrno(t *testing.T) {
	t.Parallel()
	k := testmod.NewKey(t, "rsa:2048")
	key := k.Private.(*rsa.PrivateKey)
	digest := sum(crypto.SHA256, payload)
	good, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest)
	if err != nil {
		t.Fatal(err)
	}
	// raw returns the signature with this block.
	raw := func(block []byte) []byte {
		n := new(big.Int).SetBytes(block)
		return n.Exp(n, key.D, key.N).FillBytes(make([]byte, 256))
	}
	block := new(big.Int).Exp(new(big.Int).SetBytes(good), big.NewInt(int64(key.E)), key.N).FillBytes(make([]byte, 256))
	change := func(at int, to byte) []byte {
		b := bytes.Clone(block)
		b[at] = to
		return raw(b)
	}
	for _, test := range []struct {
		name string
		sig  []byte
		want syscall.Errno
	}{
		{"good", good, 0},
		{"too short", good[:255], syscall.EINVAL},
		{"too long", append([]byte{0}, good...), syscall.EINVAL},
		{"not less than the modulus", key.N.Bytes(), syscall.EINVAL},
		{"first octet", change(0, 1), syscall.EINVAL},
		{"block type", change(1, 2), syscall.EBADMSG},
		{"padding", change(5, 0), syscall.EBADMSG},
		{"no end of the padding", change(204, 0x12), syscall.EBADMSG},
		{"digest algorithm", change(210, 0), syscall.EBADMSG},
		{"digest", change(255, block[255]^1), syscall.EKEYREJECTED},
	} {
		if got := verifyRSA(&key.PublicKey, crypto.SHA256, digest, test.sig); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
	if block[204] != 0 {
		t.Fatalf("padding ends elsewhere: %x", block)
	}

	ec := newECDSA(t)
	sig, err := ecdsa.SignASN1(rand.Reader, ec, digest)
	if err != nil {
		t.Fatal(err)
	}
	number := func(size int) []byte { return integer(bytes.Repeat([]byte{1}, size)...) }
	for _, test := range []struct {
		name string
		sig  []byte
		want syscall.Errno
	}{
		{"good", sig, 0},
		{"empty", nil, syscall.EBADMSG},
		{"no sequence", sig[2:], syscall.EBADMSG},
		{"one number", seq(number(3)), syscall.EBADMSG},
		{"three numbers", seq(number(3), number(3), number(3)), syscall.EBADMSG},
		{"no octets", seq(number(0), number(3)), syscall.EINVAL},
		{"33 octets", seq(number(33), number(3)), syscall.EINVAL},
		{"34 octets", seq(number(3), integer(make([]byte, 34)...)), syscall.EINVAL},
		{"zero", seq(integer(0), number(3)), syscall.EBADMSG},
		{"more than the order", seq(number(3), integer(bytes.Repeat([]byte{0xff}, 32)...)), syscall.EBADMSG},
		{"wrong", seq(number(32), number(32)), syscall.EKEYREJECTED},
	} {
		if got := verifyECDSA(&ec.PublicKey, digest, test.sig); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
	// The kernel reads unsigned numbers: ff... needs no zero in front.
	for range 50 {
		r, s, err := ecdsa.Sign(rand.Reader, ec, digest)
		if err != nil {
			t.Fatal(err)
		}
		if errno := verifyECDSA(&ec.PublicKey, digest, seq(integer(r.Bytes()...),
			integer(s.FillBytes(make([]byte, 33))...))); errno != 0 {
			t.Fatal(errno)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	for _, test := range []struct{ message, cert string }{{"kernel-rsa2048", "rsa2048"}, {"kernel-p256", "p256"},
		{"kernel-p384", "p384"}} {
		b.Run(test.message, func(b *testing.B) {
			m, ring := parse(b, testdata(b, test.message+".p7s")), keyring(b, test.cert)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := m.Check(digestOf(payload), ring, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// alone returns the message with one of its signers.
func alone(m *Message, i int) []byte {
	digests := digestsOf(m.Signers[i:i+1], m.digests)
	return encodeMessage(m.Version, digests, m.content, m.between, [][]byte{m.Signers[i].raw})
}

// TestCheckEach compares the verdict on each signer with that on a message which has no
// other.
func TestCheckEach(t *testing.T) {
	t.Parallel()
	p := p256Parts(t)
	good := p.signerInfo()
	bad, streebog, nobody := otherSigners(t)
	p.signers = set(bad.signerInfo(), streebog.signerInfo(), good, nobody.signerInfo(), good)
	messages := [][]byte{p.der()}
	for _, name := range testfiles(t, ".p7s") {
		messages = append(messages, testdata(t, name))
	}
	seen := make(map[Kind]bool)
	listed := func(c *Certificate) bool { return c.Name() == "modsign tests: inter" }
	for _, der := range messages {
		m, err := Parse(der)
		if err != nil {
			continue
		}
		for _, trusted := range []string{"p256 root", "leaf rsa2048", ""} {
			for _, revoked := range []string{"", "rsa1024", "inter", "p256"} {
				for _, blacklist := range []bool{false, true} {
					bad := keyring(t, revoked)
					if blacklist {
						bad.Blacklist(listed)
					}
					ring := keyring(t, trusted)
					for i, f := range m.CheckEach(digestOf(payload), ring, bad) {
						cert, err := parse(t, alone(m, i)).Check(digestOf(payload), ring, bad)
						if describe(f.Err) != describe(err) ||
							(f.Certificate == nil) != (cert == nil) || cert != nil && !bytes.Equal(f.Certificate.Raw, cert.Raw) {
							t.Errorf("%s: %s, and alone %s", &m.Signers[i], describe(f.Err), describe(err))
						}
						if e, ok := errors.AsType[*Error](err); ok {
							seen[e.Kind] = true
						} else {
							seen[0] = true
						}
					}
				}
			}
		}
	}
	for _, kind := range []Kind{0, Malformed, Unsupported, UnknownKey, BadSignature, Revoked} {
		if !seen[kind] {
			t.Errorf("no signer is %v", kind)
		}
	}
	fails := func(Hash) ([]byte, error) { return nil, io.ErrUnexpectedEOF }
	for _, f := range parse(t, testdata(t, "cms-two.p7s")).CheckEach(fails, keyring(t, "p256 rsa1024"), nil) {
		if !errors.Is(f.Err, io.ErrUnexpectedEOF) {
			t.Error(f.Err)
		}
	}
}

// TestCheckBlacklist has a certificate on the blacklist inside the message. As in the kernel,
// it counts only if no signer is without one, and then its issuer may still be trusted.
func TestCheckBlacklist(t *testing.T) {
	t.Parallel()
	data := testdata(t, "cms-chain.p7s")
	nobody := p256Parts(t)
	nobody.sid = serialIdentifier(seq(set(seq(oid(oidCommonName), tlv(0x0c, []byte("nobody"))))), []byte{1})
	streebog := p256Parts(t)
	streebog.digest = seq(oid(oidStreebog + "\x02"))
	for _, test := range []struct {
		name, listed, trusted string
		other                 []byte
		kind                  Kind
		errno                 syscall.Errno
	}{
		{"signer", "leaf2", "root", nil, Revoked, syscall.EKEYREJECTED},
		{"issuer", "inter", "root", nil, Revoked, syscall.EKEYREJECTED},
		{"root", "root", "leaf2", nil, Revoked, syscall.EKEYREJECTED},
		{"nothing", "p256", "root", nil, 0, 0},
		{"beside an unsupported one", "leaf2", "root", streebog.signerInfo(), Revoked, syscall.EKEYREJECTED},
		{"beside a good one", "leaf2", "p256", p256Parts(t).signerInfo(), 0, 0},
		{"beside an unknown one", "leaf2", "p384", nobody.signerInfo(), UnknownKey, syscall.ENOKEY},
		{"beside an unknown one, of a trusted issuer", "leaf2", "inter", nobody.signerInfo(), 0, 0},
	} {
		m := parse(t, data)
		if test.other != nil {
			m = parse(t, encodeMessage(1, [][]byte{m.digests[0].raw}, m.content, m.between,
				[][]byte{m.Signers[0].raw, test.other}))
		}
		bad := keyring(t, "")
		bad.Blacklist(func(c *Certificate) bool { return c.Name() == "modsign tests: "+test.listed })
		t.Run(test.name, func(t *testing.T) {
			c, err := m.Check(digestOf(payload), keyring(t, test.trusted), bad)
			if e := wantError(t, err, test.kind, test.errno); e != nil && test.kind == Revoked &&
				(c == nil || c.Name() != "modsign tests: "+test.listed) {
				t.Errorf("about %v", c)
			}
		})
	}
}
