package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// publicPackages are what programs outside of this module may import.
var publicPackages = []string{
	"sign", "sign/manifest", "sign/policy", "verify", "verify/explain", "verify/machine", "keygen", "keygen/agent",
	"keygen/audit", "keygen/keyscan", "keygen/keystore", "kbuild", "hashlist", "kernelimage",
}

func docOf(t *testing.T, name string) string {
	return string(testmod.Run(t, "go", "doc", "-C", "../..", "-all", "./"+name))
}

// An alias, or a value under a public name, is how an internal one is named.
var aliased = regexp.MustCompile(`^\s*(type |var )?\w+ += \w+\.\w+$`)

// TestPublicNames checks that the documentation of the public packages, with the
// signatures and the fields in it, names nothing that an importer cannot name.
func TestPublicNames(t *testing.T) {
	t.Parallel()
	var internal []string
	for _, p := range listPackages(t) {
		if name, ok := strings.CutPrefix(p.ImportPath, thisModule+"internal/"); ok {
			internal = append(internal, name[strings.LastIndex(name, "/")+1:])
		}
	}
	named := regexp.MustCompile(`\binternal/|\b(` + strings.Join(internal, "|") + `)\.[A-Z]`)
	for _, name := range publicPackages {
		text := docOf(t, name)
		if !strings.Contains(text, "TYPES") {
			t.Errorf("%s: go doc says %q", name, text)
		}
		for line := range strings.Lines(text) {
			line = strings.TrimRight(line, "\n")
			if named.MatchString(line) && !aliased.MatchString(line) {
				t.Errorf("%s: %s", name, strings.TrimSpace(line))
			}
		}
	}
}

// TestPublicAPI compares the documentation of the public packages with docs/api, so
// that a change of the API is seen in review. With -update it writes docs/api.
func TestPublicAPI(t *testing.T) {
	for _, name := range publicPackages {
		got := docOf(t, name)
		path := filepath.Join("..", "..", "docs", "api", strings.ReplaceAll(name, "/", "-")+".txt")
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o666); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("package %s differs from docs/api: look at the change with\n"+
				"go test ./cmd/modsign -run TestPublicAPI -update && git diff docs/api", name)
		}
	}
}
