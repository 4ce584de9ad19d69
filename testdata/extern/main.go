// Extern is a program outside of the module: it signs a tree with a crypto.Signer and
// verifies it against a certificate in memory.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/modsign/modsign/sign"
	"github.com/modsign/modsign/verify"
)

func main() {
	if err := run(context.Background(), os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, dir string) error {
	key, cert, err := newKey()
	if err != nil {
		return err
	}
	signer, err := sign.NewSigner(key, cert, sign.SignerOptions{})
	if err != nil {
		return err
	}
	tree, err := sign.Open(ctx, sign.Source{Roots: []string{dir}})
	if err != nil {
		return err
	}
	defer tree.Close()
	signed, err := tree.Sign(ctx, signer, sign.Options{})
	fmt.Printf("signed %d, failed %d, incomplete: %v\n", signed.Signed, signed.Failed, errors.Is(err, sign.ErrIncomplete))

	var keys verify.Keyring
	if err := keys.Add(cert, "memory"); err != nil {
		return err
	}
	modules, err := filepath.Glob(filepath.Join(dir, "*/*.ko*"))
	if err != nil {
		return err
	}
	checked, err := verify.Tree(ctx, &keys, modules, verify.Options{})
	fmt.Printf("trusted %d, refused: %v\n", checked.Verdicts[verify.Trusted], errors.Is(err, verify.ErrRefused))
	return nil
}

func newKey() (*ecdsa.PrivateKey, *x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "extern"}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now(), NotAfter: time.Now().AddDate(1, 0, 0), BasicConstraintsValid: true,
		SubjectKeyId: []byte("extern"), AuthorityKeyId: []byte("extern"),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return key, cert, err
}
