package verify_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/modsign/modsign/verify"
)

// exampleCertificate stands for a certificate that a program has in memory.
func exampleCertificate() *x509.Certificate {
	data, err := os.ReadFile("testdata/example/cert.pem")
	if err != nil {
		log.Fatal(err)
	}
	block, _ := pem.Decode(data)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		log.Fatal(err)
	}
	return cert
}

// Verify the modules below a directory for a kernel that trusts one certificate.
func Example() {
	keys := new(verify.Keyring)
	if err := keys.Add(exampleCertificate(), "release key"); err != nil {
		log.Fatal(err)
	}
	summary, err := verify.Tree(context.Background(), keys, []string{"testdata/example"}, verify.Options{
		Result: func(r verify.Result) { fmt.Printf("%s: %s\n", r.Path, r.Verdict) },
	})
	switch {
	case errors.Is(err, verify.ErrRefused):
		fmt.Println("the kernel would refuse modules:", summary)
	case err != nil:
		log.Fatal(err)
	}
	// Output:
	// testdata/example/signed.ko: trusted
	// testdata/example/unsigned.ko: not signed
	// the kernel would refuse modules: 1 trusted, 1 not signed
}

// Verify the content of a module before it goes to a disk.
func ExampleModule() {
	keys := new(verify.Keyring)
	if err := keys.Add(exampleCertificate(), "release key"); err != nil {
		log.Fatal(err)
	}
	content, err := os.ReadFile("testdata/example/signed.ko")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(verify.Module(bytes.NewReader(content), int64(len(content)), keys).Verdict)

	content[100] ^= 1
	r := verify.Module(bytes.NewReader(content), int64(len(content)), keys)
	fmt.Printf("%s: init_module fails with %q\n", r.Verdict, r.Errno)
	// Output:
	// trusted
	// bad signature: init_module fails with "key was rejected by service"
}
