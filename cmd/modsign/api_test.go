package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// publicPackages are what programs outside of this module may import.
var publicPackages = []string{"sign", "sign/manifest", "verify", "keygen", "keygen/agent", "kbuild", "hashlist"}

// TestPublicAPI compares the documentation of the public packages with docs/api, so
// that a change of the API is seen in review. With -update it writes docs/api.
func TestPublicAPI(t *testing.T) {
	for _, name := range publicPackages {
		cmd := exec.CommandContext(t.Context(), "go", "doc", "-all", "./"+name)
		cmd.Dir = filepath.Join("..", "..")
		cmd.Stderr = os.Stderr
		got, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("..", "..", "docs", "api", strings.ReplaceAll(name, "/", "-")+".txt")
		if *update {
			if err := os.WriteFile(path, got, 0o666); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("package %s is not as docs/api has it: look at the change with\n"+
				"go test ./cmd/modsign -run TestPublicAPI -update && git diff docs/api", name)
		}
	}
}
