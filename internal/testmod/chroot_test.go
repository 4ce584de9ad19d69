package testmod

import (
	"os"
	"strings"
	"testing"
)

// TestChroot runs commands in a system, and finds what they wrote in the overlay alone.
func TestChroot(t *testing.T) {
	t.Parallel()
	c := NewChroot(t, "bookworm")
	c.Bind(WriteFile(t, "shown", []byte("from outside\n")), "/srv/shown")
	out, err := c.Command("sh", "-euc", `cat /srv/shown; . /etc/os-release; echo "$VERSION_CODENAME"; echo here >/srv/made
		! echo no >>/srv/shown && rm /etc/os-release`).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "from outside\nbookworm\n") {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := c.Command("cat", "/srv/made").CombinedOutput(); err != nil || string(out) != "here\n" {
		t.Errorf("a later command does not see what was written: %v\n%s", err, out)
	}
	if b, err := os.ReadFile(c.Path("srv/made")); err != nil || string(b) != "here\n" {
		t.Errorf("%q, %v", b, err)
	}
	if info, err := os.Lstat(c.Path("etc/os-release")); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		t.Errorf("a removed file is not marked as removed (%v)", err)
	}
	if _, err := os.Lstat(c.Lower + "/srv/made"); err == nil {
		t.Error("the system in the cache has changed")
	}
}
