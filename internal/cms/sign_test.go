package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.mozilla.org/pkcs7"

	"github.com/modsign/modsign/internal/testmod"
)

const enopkg = syscall.ENOPKG

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sign(t testing.TB, key crypto.Signer, cert *x509.Certificate, h crypto.Hash, useKeyID bool, data []byte) []byte {
	t.Helper()
	s, err := NewSigner(key, cert, h, Form{UseKeyID: useKeyID})
	if err != nil {
		t.Fatal(err)
	}
	der, err := s.Sign(sum(h, data), nil)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// signFile signs data with the kernel's program.
func signFile(t testing.TB, data []byte, key, cert string, h crypto.Hash, useKeyID bool) []byte {
	t.Helper()
	module := testmod.WriteFile(t, "m.ko", data)
	options := "-d"
	if useKeyID {
		options = "-dk"
	}
	testmod.Run(t, testmod.SignFile(t), options, HashName(h), key, cert, module)
	return readFile(t, module+".p7s")
}

// issue returns a certificate for the key, made by crypto/x509. A nil issuer makes it
// self-signed.
func issue(t testing.TB, template *x509.Certificate, key crypto.Signer, issuer *x509.Certificate,
	issuerKey crypto.Signer) *x509.Certificate {
	t.Helper()
	template.NotBefore, template.NotAfter = time.Now(), time.Now().Add(time.Hour)
	if issuer == nil {
		issuer, issuerKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), issuerKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// RSA signatures are deterministic, so every byte equals that of sign-file.
func TestSignAsSignFile(t *testing.T) {
	t.Parallel()
	testmod.SignFile(t)
	payloads := [][]byte{nil, payload, bytes.Repeat([]byte("module"), 100000)}
	for _, algorithm := range testmod.Few([]string{"rsa:2048", "rsa:4096"}, 1) {
		for _, a := range hashes {
			t.Run(algorithm+"/"+a.name, func(t *testing.T) {
				t.Parallel()
				k := testmod.NewKey(t, algorithm)
				key, cert := k.Files(t)
				for i, data := range payloads {
					for _, useKeyID := range []bool{false, true} {
						if i == 2 && useKeyID && algorithm == "rsa:4096" {
							continue // nothing new
						}
						want := signFile(t, data, key, cert, a.hash, useKeyID)
						testmod.DiffDER(t, sign(t, k.Private, k.Certificate, a.hash, useKeyID, data), want)
						if m := parse(t, want); !m.Canonical() || len(m.Warnings()) != 0 {
							t.Errorf("sign-file's message is not canonical: %q", m.Warnings())
						}
					}
				}
			})
		}
	}
}

// Certificates with unusual issuers and serial numbers.
func TestSignIdentifiers(t *testing.T) {
	t.Parallel()
	testmod.SignFile(t)
	k := testmod.NewKey(t, "rsa:2048")
	hex := func(s string) *big.Int {
		n, _ := new(big.Int).SetString(s, 16)
		return n
	}
	printable, err := new(pkix.Name), error(nil)
	printable.FillFromRDNSequence(&pkix.RDNSequence{{{Type: []int{2, 5, 4, 3}, Value: "printable"}}})
	ca := issue(t, &x509.Certificate{SerialNumber: big.NewInt(1),
		Subject: pkix.Name{CommonName: "the authority", Country: []string{"DE"}}, IsCA: true, BasicConstraintsValid: true},
		k.Private, nil, nil)
	utf8 := pkix.Name{CommonName: strings.Repeat("Schlüssel ", 30), Organization: []string{"Ä", "Ö"}}
	for _, test := range []struct {
		name     string
		template *x509.Certificate
		issuer   *x509.Certificate
	}{
		{"17 bytes", &x509.Certificate{SerialNumber: hex("ffeeddccbbaa99887766554433221100")}, nil},
		{"20 bytes", &x509.Certificate{SerialNumber: hex("7feeddccbbaa9988776655443322110011223344")}, nil},
		{"one", &x509.Certificate{SerialNumber: big.NewInt(1)}, nil},
		{"128", &x509.Certificate{SerialNumber: big.NewInt(128)}, nil},
		{"printable", &x509.Certificate{SerialNumber: big.NewInt(7), Subject: *printable}, nil},
		{"long UTF-8", &x509.Certificate{SerialNumber: big.NewInt(7), Subject: utf8}, nil},
		{"issued by a CA", &x509.Certificate{SerialNumber: hex("00ff"), Subject: pkix.Name{CommonName: "leaf"}}, ca},
	} {
		if len(test.template.Subject.ToRDNSequence()) == 0 {
			test.template.Subject.CommonName = test.name
		}
		cert := issue(t, test.template, k.Private, test.issuer, k.Private)
		key, _ := k.Files(t)
		file := testmod.WriteFile(t, "cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
		got := sign(t, k.Private, cert, crypto.SHA256, false, payload)
		testmod.DiffDER(t, got, signFile(t, payload, key, file, crypto.SHA256, false))
		c, err := ParseCertificate(cert.Raw)
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		if found, err := parse(t, got).Check(digestOf(payload), NewKeyring(c), nil); err != nil || found != c {
			t.Errorf("%s: %v, %v", test.name, found, err)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// ECDSA signatures are random: openssl accepts the signatures of this package, and this
// package those of sign-file.
func TestSignECDSA(t *testing.T) {
	t.Parallel()
	openssl := testmod.Program(t, "openssl", "openssl")
	testmod.SignFile(t)
	for _, algorithm := range []string{"ecdsa:p256", "ecdsa:p384", "ecdsa:p521"} {
		t.Run(algorithm, func(t *testing.T) {
			t.Parallel()
			k := testmod.NewKey(t, algorithm)
			key, cert := k.Files(t)
			c, err := ParseCertificate(k.Certificate.Raw)
			if err != nil {
				t.Fatal(err)
			}
			content := testmod.WriteFile(t, "content", payload)
			for _, a := range hashes {
				for _, useKeyID := range []bool{false, true} {
					ours := sign(t, k.Private, k.Certificate, a.hash, useKeyID, payload)
					if _, err := parse(t, ours).Check(digestOf(payload), NewKeyring(c), nil); err != nil {
						t.Errorf("%s: ours: %v", a.name, err)
					}
					if strings.HasPrefix(a.name, "sha3") {
						continue // OpenSSL 3.0 has no ecdsa-with-SHA3
					}
					file := testmod.WriteFile(t, "sig", ours)
					testmod.Run(t, openssl, "cms", "-verify", "-binary", "-inform", "DER", "-in", file, "-content", content,
						"-certfile", cert, "-noverify", "-out", os.DevNull)
					theirs := parse(t, signFile(t, payload, key, cert, a.hash, useKeyID))
					if _, err := theirs.Check(digestOf(payload), NewKeyring(c), nil); err != nil || !theirs.Canonical() {
						t.Errorf("%s: sign-file's: %v, canonical %v", a.name, err, theirs.Canonical())
					}
					// Everything except the signature value is the same.
					s := theirs.Signers[0]
					like := Signer{digest: &a, version: s.Version, sid: sidOf(&s), algorithm: "ecdsa"}
					if got := like.encode(nil, s.Signature); !bytes.Equal(got, theirs.Raw) {
						testmod.DiffDER(t, got, theirs.Raw)
					}
				}
			}
		})
	}
}

func sidOf(s *SignerInfo) []byte {
	if s.Version == 3 {
		return keyIDIdentifier(s.SubjectKeyID)
	}
	return serialIdentifier(s.RawIssuer, s.Serial)
}

// go.mozilla.org/pkcs7 shares no code with this package, and accepts its messages.
func TestSignSecondOpinion(t *testing.T) {
	t.Parallel()
	for _, algorithm := range testmod.Few([]string{"rsa:2048", "ecdsa:p256", "rsa:4096", "ecdsa:p384", "ecdsa:p521"}, 2) {
		for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			k := testmod.NewKey(t, algorithm)
			p7, err := pkcs7.Parse(sign(t, k.Private, k.Certificate, h, false, payload))
			if err != nil {
				t.Fatal(err)
			}
			p7.Content, p7.Certificates = payload, []*x509.Certificate{k.Certificate}
			if err := p7.Verify(); err != nil {
				t.Errorf("%s %s: %v", algorithm, HashName(h), err)
			}
			p7.Content = []byte("another")
			if p7.Verify() == nil {
				t.Errorf("%s %s: verifies anything", algorithm, HashName(h))
			}
		}
	}
}

// token is a key that has only the methods of crypto.Signer.
type token struct {
	public crypto.PublicKey
	sign   func(digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

func (k *token) Public() crypto.PublicKey { return k.public }
func (k *token) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.sign(digest, opts)
}

func TestSignToken(t *testing.T) {
	t.Parallel()
	k := testmod.NewKey(t, "rsa:2048")
	opaque := &token{k.Private.Public(), func(digest []byte, opts crypto.SignerOpts) ([]byte, error) {
		return k.Private.Sign(nil, digest, opts)
	}}
	testmod.DiffDER(t, sign(t, opaque, k.Certificate, crypto.SHA256, false, payload),
		sign(t, k.Private, k.Certificate, crypto.SHA256, false, payload))

	ec := testmod.NewKey(t, "ecdsa:p256")
	for _, test := range []struct {
		key  *testmod.Key
		sig  []byte
		err  error
		want string
	}{
		{k, nil, io.ErrUnexpectedEOF, "private key: unexpected EOF"},
		{k, make([]byte, 255), nil, "RSA signature of 255 bytes, not 256"},
		{ec, make([]byte, 64), nil, "not SEQUENCE"}, // r and s concatenated, as in PKCS #11
		{ec, []byte{0x30, 6, 2, 1, 0, 2, 1, 1}, nil, "not SEQUENCE"},
		{ec, []byte{0x30, 6, 2, 1, 1, 2, 1, 1, 0}, nil, "not SEQUENCE"},
	} {
		s, err := NewSigner(&token{test.key.Private.Public(),
			func([]byte, crypto.SignerOpts) ([]byte, error) { return test.sig, test.err }}, test.key.Certificate, crypto.SHA256,
			Form{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Sign(make([]byte, 32), nil); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v, want %s", err, test.want)
		}
		if _, err := s.Sign(make([]byte, 20), nil); err == nil || !strings.Contains(err.Error(),
			"digest of 20 bytes: sha256 has 32") {
			t.Error(err)
		}
	}
}

func TestNewSignerRefuses(t *testing.T) {
	t.Parallel()
	k, other := testmod.NewKey(t, "rsa:2048"), testmod.NewKey(t, "ecdsa:p256")
	template := func() *x509.Certificate { return &x509.Certificate{SerialNumber: big.NewInt(1)} }
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	odd, err := rsa.GenerateKey(rand.Reader, 1152)
	if err != nil {
		t.Fatal(err)
	}
	pss, err := x509.ParseCertificate(testdata(t, "pss.x509"))
	if err != nil {
		t.Fatal(err)
	}
	long := template()
	long.Subject.CommonName = strings.Repeat("x", 65400)
	noKeyID := issue(t, template(), k.Private, nil, nil)
	for _, test := range []struct {
		name     string
		key      crypto.Signer
		cert     *x509.Certificate
		hash     crypto.Hash
		useKeyID bool
		want     string
	}{
		{"another key", other.Private, k.Certificate, crypto.SHA256, false, "private key does not match certificate"},
		{"RSA key, ECDSA certificate", k.Private, other.Certificate, crypto.SHA256, false,
			"private key does not match certificate"},
		{"no key id", k.Private, noKeyID, crypto.SHA256, true, "certificate has no subject key identifier"},
		{"SHA3-224", k.Private, k.Certificate, crypto.SHA3_224, false, "use one of sha1, sha224, sha256"},
		{"MD5", k.Private, k.Certificate, crypto.MD5, false, "made with md5"},
		{"no hash", k.Private, k.Certificate, 0, false, "use one of"},
		{"P-224", p224, issue(t, template(), p224, nil, nil), crypto.SHA256, false,
			"P-224: the kernel verifies P-256, P-384 and P-521"},
		{"Ed25519", ed, issue(t, template(), ed, nil, nil), crypto.SHA512, false, "Ed25519: the kernel verifies RSA"},
		{"RSA of 1152 bits", odd, issue(t, template(), odd, nil, nil), crypto.SHA256, false,
			"1152 bits: the kernel verifies only 1024, 1536, 2048, 3072, 4096 bits"},
		{"empty issuer", k.Private, issue(t, template(), k.Private, nil, nil), crypto.SHA256, false,
			"certificate's issuer is empty"},
		{"issuer too long", k.Private, issue(t, long, k.Private, nil, nil), crypto.SHA256, false,
			"the kernel takes at most 65535"},
		{"RSA-PSS", k.Private, pss, crypto.SHA256, false, "RSASSA-PSS: the kernel verifies RSA"},
	} {
		if s, err := NewSigner(test.key, test.cert, test.hash, Form{UseKeyID: test.useKeyID}); err == nil || s != nil ||
			!strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}

func TestSignConcurrently(t *testing.T) {
	t.Parallel()
	k := testmod.NewKey(t, "rsa:2048")
	s, err := NewSigner(k.Private, k.Certificate, crypto.SHA512, Form{})
	if err != nil {
		t.Fatal(err)
	}
	if s.Hash() != crypto.SHA512 {
		t.Error(s.Hash())
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			data := fmt.Append(nil, i)
			want := sign(t, k.Private, k.Certificate, crypto.SHA512, false, data)
			for range 4 {
				if got, err := s.Sign(sum(crypto.SHA512, data), nil); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
}

// openssl cms writes the same message if all optional parts are disabled.
func TestSignAsOpenSSL(t *testing.T) {
	testmod.Slow(t, "it runs openssl for every key and hash")
	t.Parallel()
	openssl := testmod.Program(t, "openssl", "openssl")
	k := testmod.NewKey(t, "rsa:3072")
	key, cert := k.Files(t)
	in, out := testmod.WriteFile(t, "in", payload), filepath.Join(t.TempDir(), "out")
	testmod.Run(t, openssl, "cms", "-sign", "-binary", "-nocerts", "-noattr", "-md", "sha384", "-signer", cert, "-inkey",
		key, "-in", in, "-outform", "DER", "-out", out)
	testmod.DiffDER(t, sign(t, k.Private, k.Certificate, crypto.SHA384, false, payload), readFile(t, out))
	// openssl rejects the signature for other content.
	sig := testmod.WriteFile(t, "sig", sign(t, k.Private, k.Certificate, crypto.SHA384, false, []byte("another")))
	if exec.Command(openssl, "cms", "-verify", "-binary", "-inform", "DER", "-in", sig, "-content", in, "-certfile", cert,
		"-noverify").Run() == nil {
		t.Error("openssl cms -verify accepts anything")
	}
}

func BenchmarkSign(b *testing.B) {
	for _, algorithm := range []string{"rsa:2048", "rsa:4096", "ecdsa:p256", "ecdsa:p384"} {
		k := testmod.NewKey(b, algorithm)
		s, err := NewSigner(k.Private, k.Certificate, crypto.SHA512, Form{})
		if err != nil {
			b.Fatal(err)
		}
		digest := sum(crypto.SHA512, payload)
		b.Run(algorithm, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Sign(digest, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("encode", func(b *testing.B) {
		k := testmod.NewKey(b, "rsa:4096")
		s, _ := NewSigner(k.Private, k.Certificate, crypto.SHA512, Form{})
		signature := make([]byte, 512)
		b.ReportAllocs()
		for b.Loop() {
			s.encode(nil, signature)
		}
	})
}

// TestDraft compares the drafts of messages with the longest real ones.
func TestDraft(t *testing.T) {
	t.Parallel()
	for _, algorithm := range []string{"rsa:2048", "ecdsa:p256", "ecdsa:p384", "ecdsa:p521"} {
		k := testmod.NewKey(t, algorithm)
		s, err := NewSigner(k.Private, k.Certificate, crypto.SHA256, Form{})
		if err != nil {
			t.Fatal(err)
		}
		longest := 0
		for range 100 {
			der, err := s.Sign(sum(crypto.SHA256, payload), nil)
			if err != nil {
				t.Fatal(err)
			}
			longest = max(longest, len(der))
		}
		if m := parse(t, s.Draft()); len(m.Raw) < longest || len(m.Raw) > longest+2 {
			t.Errorf("%s: draft of %d bytes, message of %d", algorithm, len(m.Raw), longest)
		}
	}
}
