//go:build kerneltest

package kerneltest

import (
	"os/exec"
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
