package cms

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// oddCertificates are DER certificates of a key that crypto/x509 or the kernel rejects,
// or both. The kernel's sign-file signs with them.
func oddCertificates(t testing.TB, key *testmod.Key) map[string]struct {
	der        []byte
	std, loads bool // whether crypto/x509 parses it, and a kernel would load it
} {
	t.Helper()
	openssl := testmod.Program(t, "openssl", "openssl")
	keyFile, _ := key.Files(t)
	dir := t.TempDir()
	request := func(args ...string) []byte {
		config := testmod.WriteFile(t, "conf",
			[]byte("[req]\ndistinguished_name=dn\nx509_extensions=x\n[dn]\n[x]\nsubjectKeyIdentifier=hash\n"))
		if args[0] == "-ext" {
			config = testmod.WriteFile(t, "conf",
				[]byte("[req]\ndistinguished_name=dn\nx509_extensions=x\n[dn]\n[x]\nsubjectKeyIdentifier=hash\n"+args[1]+"\n"))
			args = args[2:]
		}
		out := filepath.Join(dir, "odd.der")
		testmod.Run(t, openssl, append([]string{"req", "-new", "-x509", "-key", keyFile, "-subj", "/CN=odd", "-days", "9",
			"-config", config, "-outform", "DER", "-out", out}, args...)...)
		der, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	type odd = struct {
		der        []byte
		std, loads bool
	}
	plain := request("-sha256")
	return map[string]odd{
		"empty extensions":       {emptyExtensions(t, plain), true, false},
		"long outer length":      {longLength(plain), false, false},
		"negative serial number": {request("-set_serial", "-4711"), false, true},
		"serial number 0":        {request("-set_serial", "0"), true, true},
		"MD5":                    {request("-md5"), true, false},
		"PSS":                    {request("-sigopt", "rsa_padding_mode:pss"), true, false},
		"keyUsage of no bits":    {request("-ext", "keyUsage=DER:030100"), true, false},
		"broken keyUsage":        {request("-ext", "keyUsage=DER:0500"), false, false},
		"broken subjectAltName":  {request("-ext", "subjectAltName=DER:0500"), false, true},
		"critical key id":        {request("-ext", "subjectKeyIdentifier=critical,hash"), false, true},
	}
}

// emptyExtensions removes the extensions of a certificate, and keeps their empty list.
func emptyExtensions(t testing.TB, der []byte) []byte {
	t.Helper()
	var cert struct {
		TBS struct {
			Version                                         asn1.RawValue
			Serial                                          *big.Int
			Algorithm, Issuer, Validity, Subject, PublicKey asn1.RawValue
			Extensions                                      asn1.RawValue
		}
		Algorithm, Signature asn1.RawValue
	}
	if _, err := asn1.Unmarshal(der, &cert); err != nil {
		t.Fatal(err)
	}
	cert.TBS.Extensions = asn1.RawValue{FullBytes: []byte{0xa3, 2, 0x30, 0}}
	der, err := asn1.Marshal(cert)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// longLength encodes the length of a certificate with one octet more than DER.
func longLength(der []byte) []byte {
	return slices.Concat([]byte{0x30, 0x83, 0}, der[2:])
}

// TestParseX509Trailing parses a certificate with trailing bytes.
func TestParseX509Trailing(t *testing.T) {
	der := testmod.NewKey(t, "ecdsa:p256").Certificate.Raw
	for _, tail := range []string{"\x00\x00\x00", "x", string(der)} {
		cert, err := ParseX509(append(bytes.Clone(der), tail...))
		if err != nil || !bytes.Equal(cert.Raw, der) {
			t.Errorf("followed by %q: %v", tail, err)
		}
	}
	certs, err := Any.ParseCertificates(append(bytes.Clone(der), 0, 0, 0, 0))
	if err != nil || len(certs) != 1 {
		t.Errorf("filled up: %d certificates, %v", len(certs), err)
	}
}

// TestOddCertificates signs with certificates that crypto/x509 rejects. The message is
// the one that the kernel's sign-file writes.
func TestOddCertificates(t *testing.T) {
	testmod.Slow(t, "it makes many certificates")
	key := testmod.NewKey(t, "rsa:2048")
	keyFile, _ := key.Files(t)
	signFile := testmod.SignFile(t)
	data := []byte("module")
	for name, odd := range oddCertificates(t, key) {
		t.Run(name, func(t *testing.T) {
			if _, err := x509.ParseCertificate(odd.der); (err == nil) != odd.std {
				t.Errorf("crypto/x509 says %v", err)
			}
			if err := Loadable(odd.der); (err == nil) != odd.loads {
				t.Errorf("the kernel's parser says %v", err)
			}
			cert, err := ParseX509(odd.der)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(cert.Raw, odd.der) || cert.Subject.CommonName != "odd" || cert.SerialNumber == nil ||
				len(cert.SubjectKeyId) != 20 && name != "empty extensions" {
				t.Errorf("%q, serial number %v, key id %x", cert.Subject, cert.SerialNumber, cert.SubjectKeyId)
			}
			for _, useKeyID := range []bool{false, true} {
				if useKeyID && name == "empty extensions" {
					continue // and so no key identifier
				}
				if useKeyID && (strings.Contains(name, "broken") || strings.Contains(name, "keyUsage")) {
					continue // OpenSSL finds no key identifier beside a broken extension
				}
				// Raw is sufficient.
				for _, cert := range []*x509.Certificate{cert, {Raw: odd.der}} {
					signer, err := NewSigner(key.Private, cert, crypto.SHA256, Form{UseKeyID: useKeyID})
					if err != nil {
						t.Fatal(err)
					}
					sum := sha256.Sum256(data)
					got, err := signer.Sign(sum[:], nil)
					if err != nil {
						t.Fatal(err)
					}
					args := []string{"-d", "sha256", keyFile, testmod.WriteFile(t, "odd.x509", odd.der),
						testmod.WriteFile(t, "m.ko", data)}
					if useKeyID {
						args = append([]string{"-k"}, args...)
					}
					testmod.Run(t, signFile, args...)
					want, err := os.ReadFile(args[len(args)-1] + ".p7s")
					if err != nil {
						t.Fatal(err)
					}
					testmod.DiffDER(t, got, want)
				}
			}
		})
	}
}

// TestCompressedPoint has an elliptic curve key in a form that crypto/x509 and the
// kernel reject.
func TestCompressedPoint(t *testing.T) {
	key := testmod.NewKey(t, "ecdsa:p384")
	openssl := testmod.Program(t, "openssl", "openssl")
	keyFile, _ := key.Files(t)
	compressed := filepath.Join(t.TempDir(), "key.pem")
	testmod.Run(t, openssl, "ec", "-in", keyFile, "-conv_form", "compressed", "-out", compressed)
	block, _ := pem.Decode(testmod.Run(t, openssl, "req", "-new", "-x509", "-key", compressed, "-subj", "/CN=odd",
		"-config", testmod.WriteFile(t, "conf", []byte("[req]\ndistinguished_name=dn\n[dn]\n"))))
	if block == nil {
		t.Fatal("no certificate")
	}
	cert, err := ParseX509(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewSigner(key.Private, cert, crypto.SHA256, Form{}); err != nil {
		t.Error(err)
	}
	if err := Loadable(block.Bytes); err == nil {
		t.Error("a kernel would load it")
	}
}

// TestParseX509Refuses has input that no parser takes for a certificate.
func TestParseX509Refuses(t *testing.T) {
	der := testmod.NewKey(t, "ecdsa:p256").Certificate.Raw
	for i := range der {
		if cert, err := ParseX509(der[:i]); err == nil {
			t.Fatalf("cut off at %d: %v", i, cert)
		}
	}
	if _, err := NewSigner(testmod.NewKey(t, "ecdsa:p256").Private, &x509.Certificate{Raw: der[:20]}, crypto.SHA256,
		Form{}); err == nil {
		t.Error("a signer of half a certificate")
	}
}

func FuzzParseX509(f *testing.F) {
	f.Add(testmod.NewKey(f, "ecdsa:p256").Certificate.Raw)
	key := testmod.NewKey(f, "rsa:2048")
	f.Add(key.Certificate.Raw)
	for _, odd := range oddCertificates(f, key) {
		f.Add(odd.der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		cert, err := ParseX509(der)
		if err != nil {
			// If the kernel loads a certificate, signatures can name it.
			if _, kernel := ParseCertificate(der); kernel == nil {
				t.Errorf("the kernel takes what is refused here: %v", err)
			}
			return
		}
		if !bytes.HasPrefix(der, cert.Raw) || len(cert.RawIssuer) == 0 || cert.SerialNumber == nil {
			t.Errorf("incomplete: %+v", cert)
		}
		if c, err := ParseCertificate(der); err == nil {
			serial, err := rawSerial(cert)
			if err != nil || !bytes.Equal(serial, c.Serial) || !bytes.Equal(cert.RawIssuer, c.RawIssuer) ||
				c.SubjectKeyID != nil && !bytes.Equal(cert.SubjectKeyId, c.SubjectKeyID) {
				t.Errorf("%x, %x, %x, %v where the kernel has %x, %x, %x", serial, cert.RawIssuer, cert.SubjectKeyId, err, c.Serial,
					c.RawIssuer, c.SubjectKeyID)
			}
		}
	})
}
