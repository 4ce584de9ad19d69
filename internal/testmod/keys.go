package testmod

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Key is a throwaway private key with its self-signed certificate.
type Key struct {
	Private     crypto.Signer
	Certificate *x509.Certificate
	KeyPEM      []byte // PKCS#8
	CertPEM     []byte
}

var keys sync.Map // algorithm -> func() (*Key, error), so that RSA-4096 is made once a process

// NewKey returns the key of this test process for an algorithm: rsa:2048,
// rsa:3072, rsa:4096, ecdsa:p256, ecdsa:p384, ecdsa:p521, mldsa:44, mldsa:65 or mldsa:87.
func NewKey(t testing.TB, algorithm string) *Key {
	t.Helper()
	made, _ := keys.LoadOrStore(algorithm, sync.OnceValues(func() (*Key, error) { return makeKey(algorithm) }))
	key, err := made.(func() (*Key, error))()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func makeKey(algorithm string) (*Key, error) {
	private, err := makePrivate(algorithm)
	if err != nil {
		return nil, err
	}
	spki, err := marshalPublic(private.Public())
	if err != nil {
		return nil, err
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(spki, &info); err != nil {
		return nil, err
	}
	keyID := sha1.Sum(info.Key.Bytes)
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 159))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject: pkix.Name{
			CommonName:   "modsign test key " + algorithm,
			Organization: []string{"modsign tests"},
		},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		SubjectKeyId:          keyID[:],
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
	}
	der, err := createCertificate(template, private)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if cert.PublicKey == nil {
		cert.PublicKey = private.Public()
	}
	pkcs8, err := marshalPrivate(private)
	if err != nil {
		return nil, err
	}
	return &Key{
		Private:     private,
		Certificate: cert,
		KeyPEM:      pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
		CertPEM:     pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
	}, nil
}

func makePrivate(algorithm string) (crypto.Signer, error) {
	switch algorithm {
	case "rsa:2048":
		return rsa.GenerateKey(rand.Reader, 2048)
	case "rsa:3072":
		return rsa.GenerateKey(rand.Reader, 3072)
	case "rsa:4096":
		return rsa.GenerateKey(rand.Reader, 4096)
	case "ecdsa:p256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ecdsa:p384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ecdsa:p521":
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	}
	if p, ok := mldsaParameters[algorithm]; ok {
		return makeMLDSA(p)
	}
	return nil, fmt.Errorf("testmod: no such algorithm: %s", algorithm)
}

// Files writes the key (mode 0600) and the certificate as PEM into the test's
// own directory and returns their paths.
func (k *Key) Files(t testing.TB) (key, cert string) {
	t.Helper()
	dir := t.TempDir()
	key, cert = filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.pem")
	if err := os.WriteFile(key, k.KeyPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cert, k.CertPEM, 0o644); err != nil {
		t.Fatal(err)
	}
	return key, cert
}
