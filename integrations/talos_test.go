package integrations

import (
	"path/filepath"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

const talosManifest = `version: v1alpha1
metadata:
  name: my-module
  version: "0.1"
  author: modsign tests
  description: An extension with kernel modules
  compatibility:
    talos:
      version: ">= v1.10.0"
`

// TestTalos signs an extension and packs it as a container image.
func TestTalos(t *testing.T) {
	testmod.Slow(t, "it runs umoci")
	t.Parallel()
	umoci := testmod.Program(t, "umoci", "umoci")
	private, cert := testmod.NewKey(t, "rsa:2048").Files(t)
	script := filepath.Join(here, "talos", "sign-extension")

	dir := t.TempDir()
	extension := filepath.Join(dir, "extension")
	write(t, filepath.Join(extension, "manifest.yaml"), talosManifest, 0o644)
	install(t, filepath.Join(extension, "rootfs/usr/lib/modules", kver), "plain")
	ok(t, "", nil, script, extension, private, cert)

	oci := filepath.Join(dir, "image")
	ok(t, dir, nil, umoci, "init", "--layout", oci)
	ok(t, dir, nil, umoci, "new", "--image", oci+":0.1")
	bundle := filepath.Join(dir, "bundle")
	ok(t, dir, nil, umoci, "unpack", "--rootless", "--image", oci+":0.1", bundle)
	ok(t, dir, nil, "cp", "-R", extension+"/.", filepath.Join(bundle, "rootfs"))
	ok(t, dir, nil, umoci, "repack", "--image", oci+":0.1", bundle)
	ok(t, dir, nil, program, "verify", "--cert", cert, oci)
	ok(t, dir, nil, umoci, "unpack", "--rootless", "--image", oci+":0.1", filepath.Join(dir, "again"))
	if read(t, filepath.Join(dir, "again/rootfs/manifest.yaml")) != talosManifest {
		t.Error("the manifest differs")
	}
	signedBy(t, filepath.Join(dir, "again/rootfs/rootfs"), cert)

	run(t, "", nil, script, extension, private).refuses(t, 2, "usage: sign-extension DIR KEY CERT")
	run(t, "", nil, script, filepath.Join(extension, "rootfs"), private, cert).refuses(t, 1, "manifest.yaml: no such file")
	write(t, filepath.Join(extension, "rootfs/usr/local/key.pem"), read(t, private), 0o600)
	run(t, "", nil, script, extension, private, cert).refuses(t, 4, "key.pem")
	empty := t.TempDir()
	write(t, filepath.Join(empty, "manifest.yaml"), talosManifest, 0o644)
	run(t, "", nil, script, empty, private, cert).refuses(t, 1, "no kernel modules")
}
