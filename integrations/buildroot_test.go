package integrations

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// TestBuildroot calls the post-build script as Buildroot does: with the target directory as its
// argument and Buildroot's variables in the environment.
func TestBuildroot(t *testing.T) {
	t.Parallel()
	private, cert := testmod.NewKey(t, "rsa:2048").Files(t)
	script := filepath.Join(here, "buildroot", "post-build")
	postBuild := func(t *testing.T, output string, env ...string) result {
		t.Helper()
		target := filepath.Join(output, "target")
		return run(t, output, append([]string{"BR2_CONFIG=" + output + "/.config", "HOST_DIR=" + output + "/host",
			"TARGET_DIR=" + target, "BUILD_DIR=" + output + "/build", "BASE_DIR=" + output}, env...), script, target)
	}
	t.Run("a given key, twice", func(t *testing.T) {
		t.Parallel()
		output := t.TempDir()
		install(t, filepath.Join(output, "target/lib/modules", kver), "plain")
		for range 2 {
			postBuild(t, output, "MODSIGN_KEY="+private, "MODSIGN_CERT="+cert).refuses(t, 0, "signed 3 modules")
			signedBy(t, output, cert)
		}
	})
	t.Run("the kernel's key, compressed modules, a merged /usr, modsign of the host directory", func(t *testing.T) {
		t.Parallel()
		output := t.TempDir()
		install(t, filepath.Join(output, "target/usr/lib/modules", kver), "gz")
		if err := os.Symlink("usr/lib", filepath.Join(output, "target/lib")); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(output, "build/linux-6.12.9/certs/signing_key.pem"), read(t, private)+read(t, cert), 0o600)
		write(t, filepath.Join(output, "build/linux-headers-6.12.9/Makefile"), "", 0o644)
		write(t, filepath.Join(output, "host/bin/modsign"),
			"#!/bin/sh\necho from the host directory\nexec "+program+` "$@"`, 0o755)
		postBuild(t, output).refuses(t, 0, "from the host directory")
		signedBy(t, filepath.Join(output, "target/usr"), cert)
	})
	t.Run("keys of two kernels", func(t *testing.T) {
		t.Parallel()
		output := t.TempDir()
		install(t, filepath.Join(output, "target/lib/modules", kver), "plain")
		for _, kernel := range []string{"linux-6.12.8", "linux-6.12.9"} {
			write(t, filepath.Join(output, "build", kernel, "certs/signing_key.pem"), read(t, private)+read(t, cert), 0o600)
		}
		postBuild(t, output).refuses(t, 1, "set MODSIGN_KEY")
		unsigned(t, output)
	})
	t.Run("no key", func(t *testing.T) {
		t.Parallel()
		output := t.TempDir()
		install(t, filepath.Join(output, "target/lib/modules", kver), "plain")
		postBuild(t, output).refuses(t, 1, "no key")
		unsigned(t, output)
	})
	t.Run("no modules", func(t *testing.T) {
		t.Parallel()
		postBuild(t, t.TempDir(), "MODSIGN_KEY="+private).refuses(t, 1, "no such directory")
	})
}
