// Package testcms signs modules for tests, with the keys of package testmod.
package testcms

import (
	"crypto"
	"slices"
	"testing"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
)

// Message returns the CMS message of a module.
func Message(t testing.TB, key *testmod.Key, hash crypto.Hash, payload []byte) []byte {
	t.Helper()
	signer, err := cms.NewSigner(key.Private, key.Certificate, hash, cms.Form{})
	if err != nil {
		t.Fatal(err)
	}
	sum := hash.New()
	sum.Write(payload)
	der, err := signer.Sign(sum.Sum(nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// Signed returns a module with its signature, made with SHA-256.
func Signed(t testing.TB, key *testmod.Key, payload []byte) []byte {
	t.Helper()
	return module.AppendSignature(slices.Clone(payload), module.TypePKCS7, Message(t, key, crypto.SHA256, payload))
}
