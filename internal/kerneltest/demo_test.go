//go:build kerneltest

package kerneltest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// changing is what differs between two runs of scripts/demo: keys and what is made of them, times,
// directories, sizes of what the compiler makes, versions.
var changing = regexp.MustCompile(`[0-9A-F]{2}(:[0-9A-F]{2}){19}|[0-9a-f]{40,}|[0-9a-f]{16}|` +
	`\d{4}-\d\d-\d\d \d\d:\d\d UTC|\d+\.\d s|/tmp/[^/ ]+|6\.12\.\d+|\b\d{3,}\b|-j \d+`)

// plain is an output without what changes, and without its line breaks, as texts are wrapped.
func plain(text string) string {
	return strings.Join(strings.Fields(changing.ReplaceAllString(text, "~")), " ")
}

// TestDemo runs scripts/demo and compares what it shows with docs/demo.md. It takes --full, as it
// builds a kernel from the packed source.
func TestDemo(t *testing.T) {
	if !full() {
		return
	}
	testmod.Program(t, "busybox", "busybox-static")
	document, err := os.ReadFile("../../docs/demo.md")
	if err != nil {
		t.Fatal(err)
	}
	_, recorded, _ := strings.Cut(string(document), "\n```console\n")
	recorded, _, ok := strings.Cut(recorded, "\n```\n")
	if !ok {
		t.Fatal("docs/demo.md has no output")
	}
	cmd := exec.Command("../../scripts/demo", filepath.Join(t.TempDir(), "demo"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	if got, want := plain(string(out)), plain(recorded); got != want {
		t.Errorf("the demonstration shows\n%s\nand docs/demo.md has\n%s", out, recorded)
	}
}
