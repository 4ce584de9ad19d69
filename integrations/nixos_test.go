package integrations

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// What nixpkgs brings to default.nix, as far as it needs it, and a package with modules.
const nixpkgs = `
{ tree, modsign, cert ? null, signatures ? null }:
let
  runCommand = name: attrs: script: derivation (attrs // {
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-e" "-c" script ];
    PATH = "/usr/bin:/bin";
  });
  integration = import ./default.nix { inherit runCommand modsign; };
in {
  manifest = integration.manifest { modules = tree; };
  signed = integration.signed { modules = tree; inherit cert signatures; };
}
`

// TestNixOS builds both derivations with nix, offline and in a store of its own.
func TestNixOS(t *testing.T) {
	testmod.Slow(t, "it runs nix")
	needRoot(t, "nix builds in a store that is not /nix/store")
	t.Parallel()
	nix := testmod.Program(t, "nix-build", "nix-bin")
	private, cert := testmod.NewKey(t, "rsa:2048").Files(t)
	_, other := testmod.NewKey(t, "ecdsa:p256").Files(t)

	dir, store := t.TempDir(), t.TempDir()
	install(t, filepath.Join(dir, "tree/lib/modules", kver), "xz")
	if err := os.Symlink("kernel/hello.ko.xz", filepath.Join(dir, "tree/lib/modules", kver, "a-link.ko.xz")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "modsign/bin/modsign"), read(t, program), 0o755)
	write(t, filepath.Join(dir, "nixpkgs.nix"), nixpkgs, 0o644)
	write(t, filepath.Join(dir, "default.nix"), read(t, "nixos/default.nix"), 0o644)
	write(t, filepath.Join(dir, "cert.pem"), read(t, cert), 0o644)
	write(t, filepath.Join(dir, "other.pem"), read(t, other), 0o644)
	build := func(args ...string) result {
		t.Helper()
		return run(t, dir, []string{"NIX_REMOTE=", "HOME=" + dir}, nix, append([]string{
			"nixpkgs.nix", "--no-out-link", "--store", "local?root=" + store, "--arg", "tree", "./tree",
			"--arg", "modsign", "./modsign", "--option", "build-users-group", "", "--option", "substitute", "false",
			"--option", "sandbox-paths", "/bin=/usr/bin /usr /lib=/usr/lib /lib64=/usr/lib64",
		}, args...)...)
	}
	output := func(r result) string {
		t.Helper()
		lines := strings.Split(strings.TrimSpace(r.output), "\n")
		path := lines[len(lines)-1]
		if r.code != 0 || !strings.HasPrefix(path, "/nix/store/") {
			t.Fatalf("nix-build: exit status %d\n%s", r.code, r.output)
		}
		return store + path
	}

	manifest := output(build("-A", "manifest"))
	signatures := filepath.Join(dir, "signatures")
	ok(t, dir, nil, program, "sign-digests", "--key", private, "--cert", cert, "--output", signatures, manifest)
	sign := []string{"-A", "signed", "--arg", "cert", "./cert.pem", "--arg", "signatures", "./signatures"}
	signed := output(build(sign...))
	signedBy(t, signed, cert)
	for _, name := range []string{"modules.order", "a-link.ko.xz"} {
		if _, err := os.Stat(filepath.Join(signed, "lib/modules", kver, name)); err != nil {
			t.Error(err)
		}
	}

	// nix builds both again and compares them byte for byte.
	output(build("-A", "manifest", "--check"))
	output(build(append(sign, "--check")...))
	// The store, which everybody can read, has no key.
	ok(t, dir, nil, program, "scan", "--quiet", filepath.Join(store, "nix/store"))

	sign[4] = "./other.pem"
	if r := build(sign...); r.code == 0 || !strings.Contains(r.output, "names a certificate other than") {
		t.Errorf("with the certificate of another key: exit status %d\n%s", r.code, r.output)
	}
}
