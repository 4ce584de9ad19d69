// Roots prints the certificates of Mozilla's root programme, as PEM, for the container image:
// those that its module golang.org/x/crypto/x509roots/fallback has, so that a release depends
// on no file of the machine that makes it. Roots that Mozilla trusts under conditions only,
// which a PEM file cannot express, are left out.
package main

import (
	"bytes"
	"encoding/pem"
	"log"
	"os"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("roots: ")
	var b bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint != nil {
			continue
		}
		if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}); err != nil {
			log.Fatal(err)
		}
	}
	if _, err := os.Stdout.Write(b.Bytes()); err != nil {
		log.Fatal(err)
	}
}
