package integrations

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// TestKMM signs in an image of the Containerfile's layout as the operator does: by the path
// /usr/local/bin/sign-file, with sha256 and with the secrets where it mounts them.
func TestKMM(t *testing.T) {
	testmod.Slow(t, "it runs umoci")
	needRoot(t, "it starts programs in a chroot")
	t.Parallel()
	umoci, chroot := testmod.Program(t, "umoci", "umoci"), testmod.Program(t, "chroot", "coreutils")
	busybox := testmod.Program(t, "busybox", "busybox-static")
	key := testmod.NewKey(t, "rsa:2048")
	_, cert := key.Files(t)

	// The image: busybox is all that this Containerfile uses of Alpine.
	dir := t.TempDir()
	oci, bundle := filepath.Join(dir, "image"), filepath.Join(dir, "bundle")
	ok(t, dir, nil, umoci, "init", "--layout", oci)
	ok(t, dir, nil, umoci, "new", "--image", oci+":sign")
	ok(t, dir, nil, umoci, "insert", "--image", oci+":sign", busybox, "/bin/busybox")
	ok(t, dir, nil, umoci, "unpack", "--image", oci+":sign", bundle)
	root := filepath.Join(bundle, "rootfs")
	for line := range strings.Lines(read(t, "kmm/Containerfile")) {
		line = strings.TrimSpace(line)
		switch instruction, argument, _ := strings.Cut(line, " "); instruction {
		case "FROM":
			for _, applet := range strings.Fields("sh ln mkdir cp find dirname") {
				ok(t, root, nil, "ln", "-s", "busybox", "bin/"+applet)
			}
		case "COPY":
			source, target, _ := strings.Cut(argument, " ")
			if source != "modsign" {
				t.Errorf("COPY of %s", source)
			}
			write(t, filepath.Join(root, target), read(t, program), 0o755)
		case "RUN":
			ok(t, dir, []string{"PATH=/bin"}, chroot, root, "/bin/sh", "-c", "cd /usr/local/bin && "+argument)
		case "ENTRYPOINT":
			if argument != `["/usr/local/bin/sign-file"]` {
				t.Errorf("ENTRYPOINT %s", argument)
			}
		case "", "#":
		default:
			t.Errorf("instruction %q", line)
		}
	}
	ok(t, dir, nil, umoci, "repack", "--image", oci+":sign", bundle)

	// KMM's documentation has the certificate in DER, its paths end with .pem.
	for form, certificate := range map[string]string{"PEM": string(key.CertPEM), "DER": string(key.Certificate.Raw)} {
		t.Run(form, func(t *testing.T) {
			job := filepath.Join(t.TempDir(), "job")
			ok(t, dir, nil, umoci, "unpack", "--image", oci+":sign", job)
			root := filepath.Join(job, "rootfs")
			write(t, filepath.Join(root, "run/secrets/key/key.pem"), string(key.KeyPEM), 0o400)
			write(t, filepath.Join(root, "run/secrets/cert/cert.pem"), certificate, 0o444)
			install(t, filepath.Join(root, "tmp/source/opt/lib/modules", kver), "plain")
			if err := os.RemoveAll(filepath.Join(root, "tmp/source/opt/lib/modules", kver, "modules.order")); err != nil {
				t.Fatal(err)
			}
			ok(t, dir, []string{"PATH=/bin"}, chroot, root, "/bin/sh", "-ec", `
find /tmp/source -type f | while read -r module; do
	signed=/tmp/signroot${module#/tmp/source}
	mkdir -p "$(dirname "$signed")"
	cp "$module" "$signed"
	/usr/local/bin/sign-file sha256 /run/secrets/key/key.pem /run/secrets/cert/cert.pem "$signed"
done`)
			signedBy(t, filepath.Join(root, "tmp/signroot/opt"), cert)
			unsigned(t, filepath.Join(root, "tmp/source"))
		})
	}
}
