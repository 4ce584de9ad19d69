package keygen_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/modsign/modsign/keygen"
)

// Make a key and its certificate, write both to a file, and load them to sign with them.
func Example() {
	dir, err := os.MkdirTemp("", "keygen")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "signing_key.pem")

	template := keygen.DefaultTemplate()
	template.Subject, err = keygen.ParseSubject("/O=Example/CN=Example kernel signing key")
	if err != nil {
		log.Fatal(err)
	}
	pair, err := keygen.Generate(keygen.ECDSAP384, template)
	if err != nil {
		log.Fatal(err)
	}
	if err := pair.WriteFile(path); err != nil {
		log.Fatal(err)
	}

	pair, err = keygen.Load(path, "", keygen.LoadOptions{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(pair.Certificate.Subject)
	fmt.Println(pair.Certificate.SignatureAlgorithm)
	// Output:
	// CN=Example kernel signing key,O=Example
	// ECDSA-SHA512
}
