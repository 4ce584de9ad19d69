//go:build kerneltest

package kerneltest

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// docs/demo.md shows what scripts/demo prints now.
func TestDemo(t *testing.T) {
	testmod.Kernels(t)
	out, err := exec.Command("../../scripts/demo", "--check").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// README.md shows lines of docs/demo.md.
func TestDemoExcerpt(t *testing.T) {
	_, section, _ := strings.Cut(string(read(t, "../../README.md")), "\n## A demonstration\n")
	_, section, _ = strings.Cut(section, "```console\n")
	excerpt, _, found := strings.Cut(section, "\n```\n")
	if !found {
		t.Fatal("README.md has no excerpt of the demonstration")
	}
	recorded := strings.Split(string(read(t, "../../docs/demo.md")), "\n")
	for line := range strings.SplitSeq(excerpt, "\n") {
		if line != "  ..." && !slices.Contains(recorded, line) {
			t.Errorf("README.md has a line that is not in docs/demo.md: %s", line)
		}
	}
}
