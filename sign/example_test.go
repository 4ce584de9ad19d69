package sign_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/modsign/modsign/sign"
)

// A program signs a tree of modules with a key of its own.
func Example() {
	ctx := context.Background()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	cert, err := selfSigned(key)
	if err != nil {
		log.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "modules-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	modules := filepath.Join(dir, "modules")
	if err := os.CopyFS(modules, os.DirFS("../testdata/modules/arm64")); err != nil {
		log.Fatal(err)
	}

	signer, err := sign.NewSigner(key, cert, sign.SignerOptions{}) // SHA-512
	if err != nil {
		log.Fatal(err)
	}
	tree, err := sign.Open(ctx, sign.Source{Roots: []string{modules}})
	if err != nil {
		log.Fatal(err)
	}
	defer tree.Close()
	summary, err := tree.Sign(ctx, signer, sign.Options{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("signed %d of %d modules, %d failed\n", summary.Signed, summary.Modules, summary.Failed)

	// The same tree again, for what is new in it.
	summary, err = tree.Sign(ctx, signer, sign.Options{Existing: sign.Skip})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("signed %d of %d modules, %d skipped\n", summary.Signed, summary.Modules, summary.Skipped)

	// Output:
	// signed 12 of 12 modules, 0 failed
	// signed 0 of 12 modules, 12 skipped
}

// selfSigned makes a certificate for a key. The kernel wants the key identifiers and the
// use of the key in it.
func selfSigned(key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "Example module key"},
		NotBefore:             time.Now(),
		NotAfter:              time.Now().AddDate(10, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		SubjectKeyId:          []byte("example key"),
		AuthorityKeyId:        []byte("example key"),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}
