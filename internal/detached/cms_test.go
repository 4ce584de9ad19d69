package detached

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"go.mozilla.org/pkcs7"

	"github.com/modsign/modsign/internal/testmod"
)

// opensslSign runs openssl cms -sign, with DER output.
func opensslSign(t testing.TB, content []byte, key *testmod.Key, args ...string) []byte {
	t.Helper()
	testmod.Program(t, "openssl", "openssl")
	private, cert := key.Files(t)
	return testmod.Run(t, "openssl", append([]string{"cms", "-sign", "-binary", "-outform", "DER", "-in",
		testmod.WriteFile(t, "list", content), "-signer", cert, "-inkey", private}, args...)...)
}

// opensslVerify runs openssl cms -verify with the trusted certificates.
func opensslVerify(t testing.TB, content, signature, trusted []byte) error {
	t.Helper()
	cmd := exec.Command(testmod.Program(t, "openssl", "openssl"), "cms", "-verify", "-binary", "-inform", "DER", "-out",
		"/dev/null",
		"-content", testmod.WriteFile(t, "list", content), "-in", testmod.WriteFile(t, "list.p7s", signature), "-CAfile",
		testmod.WriteFile(t, "ca.pem", trusted))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return errors.New(string(out))
	}
	return nil
}

// TestWithOpenSSL signs and checks in both directions.
func TestWithOpenSSL(t *testing.T) {
	t.Parallel()
	changed := bytes.Replace(content, []byte("6.12.0"), []byte("6.12.1"), 1)
	for _, algorithm := range testmod.Few([]string{"rsa:2048", "ecdsa:p256", "rsa:4096", "ecdsa:p384", "ecdsa:p521"}, 2) {
		t.Run(algorithm, func(t *testing.T) {
			t.Parallel()
			key, other := testmod.NewKey(t, algorithm), testmod.NewKey(t, "rsa:3072")
			trusted := []*x509.Certificate{other.Certificate, key.Certificate}
			ours, err := SignCMS(content, key.Private, key.Certificate)
			if err != nil {
				t.Fatal(err)
			}
			if err := opensslVerify(t, content, ours, key.CertPEM); err != nil {
				t.Errorf("openssl refuses our signature: %v", err)
			}
			if err := opensslVerify(t, changed, ours, key.CertPEM); err == nil {
				t.Error("openssl takes our signature of another list")
			}
			if err := opensslVerify(t, content, ours, other.CertPEM); err == nil {
				t.Error("openssl takes our signature by another")
			}
			for maker, sig := range map[string][]byte{
				"modsign":             ours,
				"openssl":             opensslSign(t, content, key),
				"openssl -md sha384":  opensslSign(t, content, key, "-md", "sha384"),
				"openssl -md sha512":  opensslSign(t, content, key, "-md", "sha512"),
				"openssl -nocerts":    opensslSign(t, content, key, "-nocerts"),
				"openssl -nosmimecap": opensslSign(t, content, key, "-nosmimecap"),
				"openssl with other certs": opensslSign(t, content, key, "-certfile",
					testmod.WriteFile(t, "other.pem", other.CertPEM)),
			} {
				s, err := CheckCMS(content, sig, trusted, time.Now())
				if err != nil {
					t.Errorf("signature of %s: %v", maker, err)
					continue
				}
				if s.Name != "modsign test key "+algorithm || len(s.Fingerprint) != 64 || time.Since(s.Time).Abs() > time.Hour {
					t.Errorf("signature of %s: %+v", maker, s)
				}
				_, err = CheckCMS(changed, sig, trusted, time.Now())
				refused(t, err, `signed as "modsign test key `+algorithm+`": the content has changed`)
				_, err = CheckCMS(content, sig, trusted[:1], time.Now())
				if maker == "openssl -nocerts" {
					refused(t, err, "which is neither given nor in the signature")
				} else {
					refused(t, err, "neither trusted nor issued by")
				}
			}
		})
	}
}

// TestOtherMessages rejects messages that openssl makes with other options.
func TestOtherMessages(t *testing.T) {
	testmod.Slow(t, "it makes messages with openssl in many ways")
	t.Parallel()
	rsa, ec := testmod.NewKey(t, "rsa:2048"), testmod.NewKey(t, "ecdsa:p256")
	trusted := []*x509.Certificate{rsa.Certificate, ec.Certificate}
	good := opensslSign(t, content, rsa)
	ecKey, ecCert := ec.Files(t)
	for _, c := range []struct {
		name      string
		signature []byte
		want      string
	}{
		{"no attributes", opensslSign(t, content, rsa, "-noattr"), "no signed attributes"},
		{"SHA-1", opensslSign(t, content, rsa, "-md", "sha1"), "with SHA-256, SHA-384 or SHA-512"},
		{"SHA-1, ECDSA", opensslSign(t, content, ec, "-md", "sha1"), "with SHA-256, SHA-384 or SHA-512"},
		{"MD5", opensslSign(t, content, rsa, "-md", "md5"), "with SHA-256, SHA-384 or SHA-512"},
		{"PSS", opensslSign(t, content, rsa, "-keyopt", "rsa_padding_mode:pss"), "PKCS #1 v1.5"},
		{"content inside", opensslSign(t, content, rsa, "-nodetach"), "not a detached CMS signature in DER"},
		{"key identifier", opensslSign(t, content, rsa, "-keyid"), "not a detached CMS signature in DER"},
		{"BER", opensslSign(t, content, rsa, "-stream"), "not a detached CMS signature in DER"},
		{"PEM", opensslSign(t, content, rsa, "-outform", "PEM"), "not a detached CMS signature in DER"},
		{"two signers", opensslSign(t, content, rsa, "-signer", ecCert, "-inkey", ecKey), "of 2 signers"},
		{"garbage behind", append(bytes.Clone(good), 0), "not a detached CMS signature in DER"},
		{"garbage inside", behindSigners(good), "not a detached CMS signature in DER"},
		{"cut off", good[:len(good)-1], "not a detached CMS signature in DER"},
		{"unsigned attribute", withUnsigned(t, rsa), "not a detached CMS signature in DER"},
		{"another content type", opensslSign(t, content, rsa, "-econtent_type", "1.2.3.4"),
			"not a detached CMS signature in DER"},
		{"nested", bytes.Repeat([]byte{0x30, 0x80}, maxSignature/2), "not a detached CMS signature in DER"},
		{"nothing", nil, "not a detached CMS signature in DER"},
		{"large", make([]byte, maxSignature+1), "too many for a signature"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := CheckCMS(content, c.signature, trusted, time.Now())
			if refused(t, err, c.want); s != nil {
				t.Errorf("it is by %+v", s)
			}
		})
	}
	// No changed byte makes the message a signature of another list.
	for i := range good {
		for _, bit := range []byte{1, 0x20, 0x80} {
			bad := bytes.Clone(good)
			bad[i] ^= bit
			if s, err := CheckCMS(append(content, 'x'), bad, trusted, time.Now()); err == nil {
				t.Errorf("byte %d: another list is signed by %+v", i, s)
			}
		}
	}
}

// behindSigners adds an element after the last one of SignedData.
func behindSigners(der []byte) []byte {
	var outer struct {
		Type asn1.ObjectIdentifier
		Data asn1.RawValue `asn1:"explicit,tag:0"`
	}
	if _, err := asn1.Unmarshal(der, &outer); err != nil {
		panic(err)
	}
	outer.Data = asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: append(outer.Data.Bytes, 5, 0)}
	out, err := asn1.Marshal(outer)
	if err != nil {
		panic(err)
	}
	return out
}

// sign makes a message with pkcs7, and calls change before encoding it.
func sign(t testing.TB, key *testmod.Key, config pkcs7.SignerInfoConfig, change func(*pkcs7.SignedData)) []byte {
	t.Helper()
	data, err := pkcs7.NewSignedData(content)
	if err != nil {
		t.Fatal(err)
	}
	data.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	if err := data.AddSigner(key.Certificate, key.Private, config); err != nil {
		t.Fatal(err)
	}
	data.Detach()
	if change != nil {
		change(data)
	}
	der, err := data.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func withUnsigned(t testing.TB, key *testmod.Key) []byte {
	return sign(t, key, pkcs7.SignerInfoConfig{ExtraUnsignedAttributes: []pkcs7.Attribute{{Type: asn1.ObjectIdentifier{1,
		2, 3}, Value: 1}}}, nil)
}

// TestStricterThanPKCS7 rejects messages that go.mozilla.org/pkcs7 accepts.
func TestStricterThanPKCS7(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p256")
	extra := func(oid asn1.ObjectIdentifier, value any) pkcs7.SignerInfoConfig {
		return pkcs7.SignerInfoConfig{ExtraSignedAttributes: []pkcs7.Attribute{{Type: oid, Value: value}}}
	}
	for _, c := range []struct {
		name      string
		signature []byte
		want      string
	}{
		{"two content types", sign(t, key, extra(pkcs7.OIDAttributeContentType, pkcs7.OIDSignedData), nil),
			"has the content type 2 times"},
		{"two digests", sign(t, key, extra(pkcs7.OIDAttributeMessageDigest, []byte("x")), nil),
			"has the message digest 2 times"},
		{"two times", sign(t, key, extra(pkcs7.OIDAttributeSigningTime, time.Now().UTC()), nil),
			"has the signing time 2 times"},
		{"another hash", sign(t, key, pkcs7.SignerInfoConfig{}, func(d *pkcs7.SignedData) {
			d.GetSignedData().SignerInfos[0].DigestAlgorithm.Algorithm = pkcs7.OIDDigestAlgorithmSHA512
		}), "SHA-256, SHA-384 or SHA-512"},
		{"ECDSA with SHA-1", sign(t, key, pkcs7.SignerInfoConfig{}, func(d *pkcs7.SignedData) {
			d.GetSignedData().SignerInfos[0].DigestEncryptionAlgorithm.Algorithm = pkcs7.OIDDigestAlgorithmECDSASHA1
		}), "SHA-256, SHA-384 or SHA-512"},
		{"no time", sign(t, key, pkcs7.SignerInfoConfig{}, func(d *pkcs7.SignedData) {
			s := &d.GetSignedData().SignerInfos[0]
			s.AuthenticatedAttributes = slices.Delete(s.AuthenticatedAttributes, 1, 2) // the shortest comes first
		}), "has the signing time 0 times"},
	} {
		_, err := CheckCMS(content, c.signature, []*x509.Certificate{key.Certificate}, time.Now())
		t.Run(c.name, func(t *testing.T) { refused(t, err, c.want) })
	}
}

// issue makes a certificate for a key.
func issue(t testing.TB, key *testmod.Key, template x509.Certificate, parent *testmod.Key) *testmod.Key {
	t.Helper()
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	if template.NotBefore.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	template.BasicConstraintsValid = true
	issuer := &template
	if parent == nil {
		parent = key
	} else {
		issuer = parent.Certificate
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, issuer, key.Private.Public(), parent.Private)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	made := *key
	made.Certificate, made.CertPEM = cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return &made
}

func named(name string) x509.Certificate {
	return x509.Certificate{Subject: pkix.Name{CommonName: name}}
}

// TestTrust checks which certificates are trusted, and compares with openssl.
func TestTrust(t *testing.T) {
	t.Parallel()
	ca := named("CA")
	ca.IsCA, ca.KeyUsage = true, x509.KeyUsageCertSign
	root := issue(t, testmod.NewKey(t, "ecdsa:p384"), ca, nil)
	ca.Subject.CommonName = "intermediate CA"
	between := issue(t, testmod.NewKey(t, "ecdsa:p521"), ca, root)
	signing := named("signing")
	signing.KeyUsage = x509.KeyUsageDigitalSignature
	p256 := testmod.NewKey(t, "ecdsa:p256")
	leaf, deep := issue(t, p256, signing, root), issue(t, p256, signing, between)
	noCA := issue(t, testmod.NewKey(t, "rsa:2048"), signing, nil)
	byNoCA := issue(t, p256, signing, noCA)
	impostor := issue(t, testmod.NewKey(t, "rsa:2048"), named("CA"), nil)

	old := signing
	old.NotBefore, old.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	expired := issue(t, p256, old, root)
	exchange := named("encryption")
	exchange.KeyUsage = x509.KeyUsageKeyAgreement
	encryption := issue(t, p256, exchange, root)

	for _, c := range []struct {
		name    string
		by      *testmod.Key
		trusted *testmod.Key
		chain   *testmod.Key // in the message
		want    string       // the error, or nothing
	}{
		{"itself", p256, p256, nil, ""},
		{"self-signed, no CA", noCA, noCA, nil, ""},
		{"by the CA", leaf, root, nil, ""},
		{"by a CA below", deep, root, between, ""},
		{"by a CA below, which is missing", deep, root, nil, "neither trusted nor issued by"},
		{"by the CA below", deep, between, nil, ""},
		{"issued, and trusted itself", leaf, leaf, nil, ""},
		{"another one of the same key", leaf, deep, nil, "neither trusted nor issued by"},
		{"by one that is no CA", byNoCA, noCA, nil, "neither trusted nor issued by"},
		{"by a CA of the same name", leaf, impostor, nil, "neither trusted nor issued by"},
		{"expired", expired, root, nil, "is valid only from"},
		{"expired, and trusted itself", expired, expired, nil, "is valid only from"},
		{"not for signing", encryption, root, nil, "not for signing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := []string{"-md", "sha256"}
			if c.chain != nil {
				args = append(args, "-certfile", testmod.WriteFile(t, "chain.pem", c.chain.CertPEM))
			}
			_, err := CheckCMS(content, opensslSign(t, content, c.by, args...), []*x509.Certificate{c.trusted.Certificate},
				time.Now())
			if c.want == "" && err != nil {
				t.Error(err)
			} else if c.want != "" {
				refused(t, err, c.want)
			}
			// openssl ends a chain only at a self-signed certificate by default.
			if strings.Contains(c.name, "trusted itself") || c.trusted == between {
				return
			}
			verdict := opensslVerify(t, content, opensslSign(t, content, c.by, args...), c.trusted.CertPEM)
			if (err == nil) != (verdict == nil) {
				t.Errorf("openssl says %v, and we say %v", verdict, err)
			}
		})
	}
	_, err := SignCMS(content, expired.Private, expired.Certificate)
	refused(t, err, "is valid only from")
	_, err = SignCMS(content, root.Private, leaf.Certificate)
	refused(t, err, "bad")
	outside, err := SignCMS(content, opaque{leaf.Private}, leaf.Certificate)
	if err == nil {
		err = opensslVerify(t, content, outside, root.CertPEM)
	}
	if err != nil {
		t.Errorf("a key outside of this process: %v", err)
	}

	sig, err := SignCMS(content, leaf.Private, leaf.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	_, err = CheckCMS(content, sig, []*x509.Certificate{root.Certificate}, time.Now().Add(-time.Minute))
	refused(t, err, "from the future")
}

// opaque is a private key outside of this process.
type opaque struct{ crypto.Signer }

// A certificate that a key of ML-DSA has issued: crypto/x509 does not know whether it has.
func TestIssuedByUnknownAlgorithm(t *testing.T) {
	t.Parallel()
	now := time.Now()
	cert := &x509.Certificate{
		Raw: []byte{0x30, 0}, Issuer: pkix.Name{CommonName: "lattice"}, NotBefore: now, NotAfter: now.Add(time.Hour),
	}
	err := checkSigner(cert, x509.NewCertPool(), x509.NewCertPool(), now)
	if err == nil || !strings.Contains(err.Error(), `whether "CN=lattice" has issued it cannot be checked`) {
		t.Error(err)
	}
}
