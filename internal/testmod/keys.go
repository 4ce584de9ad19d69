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
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/mldsa"
	mldsax509 "filippo.io/mldsa/x509"

	"github.com/modsign/modsign/internal/mldsamu"
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
	spki, err := mldsax509.MarshalPKIXPublicKey(private.Public())
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
	create := x509.CreateCertificate
	if _, ok := private.(*mldsamu.PrivateKey); ok {
		create = createMLDSA
	}
	der, err := create(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	cert.PublicKey = private.Public() // crypto/x509 does not know ML-DSA before Go 1.27
	var plain any = private
	if key, ok := private.(*mldsamu.PrivateKey); ok {
		plain = key.Key()
	}
	pkcs8, err := mldsax509.MarshalPKCS8PrivateKey(plain)
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

// createMLDSA is x509.CreateCertificate for a key that it does not take before Go 1.27. It
// makes the certificate of another key, and exchanges the key and the signature.
func createMLDSA(random io.Reader, template, parent *x509.Certificate, public, private any) ([]byte, error) {
	other, err := ecdsa.GenerateKey(elliptic.P256(), random)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(random, template, parent, other.Public(), other)
	if err != nil {
		return nil, err
	}
	spki, err := mldsax509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, err
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	var c struct {
		TBS struct {
			Version            int `asn1:"explicit,tag:0"`
			SerialNumber       *big.Int
			SignatureAlgorithm pkix.AlgorithmIdentifier
			Issuer             asn1.RawValue
			Validity           asn1.RawValue
			Subject            asn1.RawValue
			PublicKey          asn1.RawValue
			Extensions         asn1.RawValue
		}
		SignatureAlgorithm pkix.AlgorithmIdentifier
		Signature          asn1.BitString
	}
	if _, err := asn1.Unmarshal(spki, &info); err != nil {
		return nil, err
	}
	if _, err := asn1.Unmarshal(der, &c); err != nil {
		return nil, err
	}
	c.TBS.PublicKey = asn1.RawValue{FullBytes: spki}
	c.TBS.SignatureAlgorithm, c.SignatureAlgorithm = info.Algorithm, info.Algorithm
	tbs, err := asn1.Marshal(c.TBS)
	if err != nil {
		return nil, err
	}
	signature, err := private.(crypto.Signer).Sign(random, tbs, crypto.Hash(0))
	if err != nil {
		return nil, err
	}
	c.Signature = asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}
	return asn1.Marshal(c)
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
	for _, p := range []mldsa.Parameters{mldsa.MLDSA44(), mldsa.MLDSA65(), mldsa.MLDSA87()} {
		if size, ok := strings.CutPrefix(algorithm, "mldsa:"); ok && "ML-DSA-"+size == p.String() {
			key, err := mldsa.GenerateKey(p)
			if err != nil {
				return nil, err
			}
			return mldsamu.NewPrivateKey(key), nil
		}
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
