package integrations

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// TestAkmods makes a key in akmods' layout and signs with it.
func TestAkmods(t *testing.T) {
	needRoot(t, "the key belongs to another group")
	t.Parallel()
	openssl := testmod.Program(t, "openssl", "openssl")
	dir := filepath.Join(t.TempDir(), "akmods")
	ok(t, "", nil, "akmods/make-key", "--group", "nogroup", dir)
	key, cert := filepath.Join(dir, "private/private_key.priv"), filepath.Join(dir, "certs/public_key.der")
	for path, want := range map[string]os.FileMode{
		"private": 0o750 | os.ModeDir, "private/private_key.priv": 0o640,
		"certs": 0o755 | os.ModeDir, "certs/public_key.der": 0o644,
	} {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil || info.Mode() != want {
			t.Fatalf("%s: %v, %v, want %v", path, info, err, want)
		}
		if group := info.Sys().(*syscall.Stat_t).Gid; (group != 0) != strings.HasPrefix(path, "private") {
			t.Errorf("%s is of the group %d", path, group)
		}
	}
	public := ok(t, "", nil, openssl, "pkey", "-in", key, "-pubout")
	if ok(t, "", nil, openssl, "x509", "-inform", "DER", "-in", cert, "-noout", "-pubkey") != public {
		t.Error("key and certificate do not belong together")
	}

	// modsign and the kernel's program, which akmods calls, take both and do the same.
	tree := t.TempDir()
	install(t, tree, "plain")
	ok(t, "", nil, program, "sign", "--hash", "sha256", "--key", key, "--cert", cert, tree)
	signedBy(t, tree, pemOf(t, cert))
	theirs := t.TempDir()
	install(t, theirs, "plain")
	for _, path := range modules(t, theirs) {
		ok(t, "", nil, testmod.SignFile(t), "sha256", key, cert, path)
		name, _ := filepath.Rel(theirs, path)
		if read(t, path) != read(t, filepath.Join(tree, name)) {
			t.Errorf("%s differs from what the kernel's sign-file makes", name)
		}
	}

	// A second key comes only if it is asked for, and leaves the first.
	run(t, "", nil, "akmods/make-key", "--group", "nogroup", dir).refuses(t, 1, "has a key: --force")
	ok(t, "", nil, "akmods/make-key", "--force", "--group", "nogroup", dir)
	if ok(t, "", nil, openssl, "pkey", "-in", key, "-pubout") == public {
		t.Error("the key is still the old one")
	}
	if keys, _ := filepath.Glob(filepath.Join(dir, "private/*-*.priv")); len(keys) != 2 {
		t.Errorf("%d keys, want 2", len(keys))
	}
}
