package main

import (
	"regexp"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

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
	for _, name := range []string{"sign", "sign/manifest", "verify", "hashlist", "keygen", "kbuild"} {
		text := string(testmod.Run(t, "go", "doc", "-C", "../..", "-all", "./"+name))
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
