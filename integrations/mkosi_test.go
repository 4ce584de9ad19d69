package integrations

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// TestMkosi builds a directory image with mkosi. What mkosi would install with a package manager is
// in its cache already, and nearly nothing.
func TestMkosi(t *testing.T) {
	testmod.Slow(t, "it runs mkosi")
	needRoot(t, "mkosi of Debian 12 builds images as root")
	t.Parallel()
	mkosi := testmod.Program(t, "mkosi", "mkosi")
	if version := ok(t, "", nil, mkosi, "--version"); version != "mkosi 14\n" {
		t.Skipf("the image is made for the cache of mkosi 14, which Debian 12 has, and this is %s", version)
	}
	private, cert := testmod.NewKey(t, "rsa:2048").Files(t)
	_, other := testmod.NewKey(t, "ecdsa:p256").Files(t)

	build := func(t *testing.T, cert string) (string, result) {
		t.Helper()
		dir := t.TempDir()
		out := filepath.Join(dir, "out", "debian~bookworm") // mkosi adds distribution and release
		for _, cache := range []string{"image.cache-pre-inst", "image.cache-pre-dev"} {
			write(t, filepath.Join(out, cache, "usr/lib/os-release"), "ID=debian\nVERSION_ID=12\n", 0o644)
			for _, name := range []string{"etc/machine-id", "usr/sbin/none", "usr/bin/none", "var/none", "root/none"} {
				write(t, filepath.Join(out, cache, name), "", 0o644)
			}
		}
		install(t, filepath.Join(dir, "mkosi.extra/usr/lib/modules", kver), "zst")
		write(t, filepath.Join(dir, "mkosi.finalize"), read(t, "mkosi/mkosi.finalize"), 0o755)
		write(t, filepath.Join(dir, "modsign.key"), read(t, private), 0o600)
		write(t, filepath.Join(dir, "modsign.crt"), read(t, cert), 0o644)
		write(t, filepath.Join(dir, "mkosi.conf"), `[Distribution]
Distribution=debian
Release=bookworm

[Output]
Format=directory
OutputDirectory=out
Output=image
Bootable=no
`, 0o644)
		r := run(t, dir, nil, mkosi, "--incremental", "build")
		return filepath.Join(out, "image"), r
	}
	t.Run("signs", func(t *testing.T) {
		t.Parallel()
		image, r := build(t, cert)
		r.refuses(t, 0, "signed 3 modules")
		signedBy(t, image, cert)
		ok(t, "", nil, program, "scan", "--quiet", image)
		if _, err := os.Stat(filepath.Join(image, "usr/bin/modsign")); err == nil {
			t.Error("modsign is in the image")
		}
		// mkosi calls it for the image of the build script too, which is never shipped.
		script := filepath.Join(here, "mkosi", "mkosi.finalize")
		ok(t, "", []string{"BUILDROOT=/nonexistent"}, script, "build")
		run(t, "", []string{"BUILDROOT="}, script, "final").refuses(t, 2, "BUILDROOT")
	})
	t.Run("fails the build", func(t *testing.T) {
		t.Parallel()
		image, r := build(t, other)
		r.refuses(t, 1, "modsign.crt")
		if _, err := os.Stat(image); err == nil {
			t.Error("mkosi has made an image")
		}
	})
}
