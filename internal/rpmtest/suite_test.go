//go:build !race

package rpmtest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// TestNewerRPM runs tests of this package once more in a system of Debian 13, with its rpm
// 4.20, its compiler and its kernel. That rpm makes debuginfo packages by itself, and decides
// on them after it has expanded the macros of %install.
func TestNewerRPM(t *testing.T) {
	if os.Getenv(theProgram) != "" {
		t.Skip("this is that run")
	}
	t.Parallel()
	c := testmod.NewChroot(t, "trixie")
	tests, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	tree, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	c.Bind(tree, "/srv/modsign")
	c.Bind(tests, "/srv/tests")
	c.Bind(modsign(t), "/srv/bin/modsign")
	cmd := c.Command("sh", "-euc", `
		rpmbuild --version
		cd /srv/modsign/internal/rpmtest
		export CI=1 MODSIGN_RPMTEST_PROGRAM=/srv/bin/modsign
		exec /srv/tests -test.v -test.run "$1"`,
		"sh", "^(TestMacros|TestSpec|TestTooEarly|TestSplit|TestKernelSpec)$/^(debuginfo|no_debuginfo,_xz|debuginfo,_xz|"+
			"before_find-debuginfo|before_find-debuginfo,_compressed|ours)$")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.HasPrefix(string(out), "RPM version 4.20.") {
		t.Errorf("not the rpm that this is for: %.40s", out)
	}
	if n := len(regexp.MustCompile(`(?m)^--- PASS`).FindAll(out, -1)); n != 5 {
		t.Errorf("%d tests have passed, want 5:\n%s", n, out)
	}
}
