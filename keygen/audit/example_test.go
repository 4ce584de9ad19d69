package audit_test

import (
	"crypto"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/keygen/audit"
)

// A key that records what it signs takes the place of the key.
func Example() {
	dir, err := os.MkdirTemp("", "audit")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	pair, err := keygen.Generate(keygen.ECDSAP256, keygen.DefaultTemplate())
	if err != nil {
		fmt.Println(err)
		return
	}
	record, err := audit.Open(filepath.Join(dir, "record"), audit.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer record.Close()
	key := record.Key(pair.Signer, pair.Certificate) // for sign.NewSigner
	digest := sha256.Sum256([]byte("module"))
	if _, err := key.Sign(nil, digest[:], crypto.SHA256); err != nil {
		fmt.Println(err)
		return
	}
	lines, err := os.ReadFile(filepath.Join(dir, "record"))
	has := strings.Contains(string(lines), fmt.Sprintf(`"digest":"%x"`, digest))
	fmt.Println(strings.Count(string(lines), "\n"), has, err)
	// Output: 1 true <nil>
}
