package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/atomicfile"
)

// TestOneTimeCertInUse has two runs on different trees that write their certificates to
// one file: the second ends before it signs anything, as the certificate of one of them
// would be lost.
func TestOneTimeCertInUse(t *testing.T) {
	dir := t.TempDir()
	tree, cert := filepath.Join(dir, "tree"), filepath.Join(dir, "shared.der")
	if err := writeTree(tree, testmodules(t)); err != nil {
		t.Fatal(err)
	}
	first, err := atomicfile.LockName(cert)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Unlock()
	before := snapshot(t, dir)
	args := []string{"sign", "--one-time", "--key-type", "ecdsa:p256", "--cert-out", cert, tree}
	if r := modsign(t, args...); r.code != exitError || !strings.Contains(r.stderr, "shared.der: in use by ") {
		t.Errorf("while another run writes it: exit code %d: %s", r.code, r.stderr)
	}
	for _, d := range differences(snapshot(t, dir), before) {
		t.Error(d)
	}
	first.Unlock()
	if r := modsign(t, args...); r.code != exitDone {
		t.Errorf("when nobody does: exit code %d: %s", r.code, r.stderr)
	}
}
