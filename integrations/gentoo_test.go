package integrations

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// TestGentooBashrc calls the hook as Portage does: in bash, after src_install, with die and the
// variables of the eclass.
func TestGentooBashrc(t *testing.T) {
	t.Parallel()
	shellcheck(t, "bash", read(t, "gentoo/bashrc"))
	key := testmod.NewKey(t, "rsa:2048")
	private, cert := key.Files(t)
	kernel := t.TempDir() // its certificate is in DER there
	write(t, filepath.Join(kernel, "certs/signing_key.pem"), string(key.KeyPEM), 0o600)
	write(t, filepath.Join(kernel, "certs/signing_key.x509"), string(key.Certificate.Raw), 0o644)
	_, other := testmod.NewKey(t, "ecdsa:p256").Files(t)

	hook := func(t *testing.T, image string, env ...string) result {
		t.Helper()
		return run(t, "", append([]string{"ED=" + image + "/", "KV_FULL=" + kver, "KV_OUT_DIR=" + kernel}, env...), "bash", "-c", `
die() { echo "die: $*" >&2; exit 1; }
source gentoo/bashrc
post_src_install
echo "pin is ${KBUILD_SIGN_PIN-unset}"`)
	}
	for name, test := range map[string]struct {
		compression string
		env         []string
		hash        string
	}{
		"absolute paths": {"plain", []string{"MODULES_SIGN_KEY=" + private, "MODULES_SIGN_CERT=" + cert}, "sha512"},
		"the kernel's key, compressed": {"zst", []string{"MODULES_SIGN_KEY=certs/signing_key.pem", "KBUILD_SIGN_PIN=x",
			"MODULES_SIGN_HASH=sha256"}, "sha256"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			image := t.TempDir()
			install(t, filepath.Join(image, "lib/modules", kver), test.compression)
			r := hook(t, image, append(test.env, "INHERITED=toolchain-funcs linux-mod-r1 linux-info")...)
			r.refuses(t, 0, "pin is unset") // it refuses nothing
			signedBy(t, image, cert)
			for _, path := range modules(t, image) {
				hash := string(testmod.Run(t, testmod.Program(t, "modinfo", "kmod"), "-F", "sig_hashalgo", path))
				if hash != test.hash+"\n" {
					t.Errorf("%s is signed with %q", path, hash)
				}
			}
		})
	}
	for name, env := range map[string][]string{
		"another eclass": {"INHERITED=linux-mod linux-mod-r10", "MODULES_SIGN_KEY=" + private},
		"no key":         {"INHERITED=linux-mod-r1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			image := t.TempDir()
			install(t, filepath.Join(image, "lib/modules", kver), "plain")
			hook(t, image, env...).refuses(t, 0, "pin is unset")
			unsigned(t, image)
		})
	}
	t.Run("the certificate of another key", func(t *testing.T) {
		t.Parallel()
		image := t.TempDir()
		install(t, filepath.Join(image, "lib/modules", kver), "plain")
		r := hook(t, image, "INHERITED=linux-mod-r1", "MODULES_SIGN_KEY="+private, "MODULES_SIGN_CERT="+other)
		r.refuses(t, 1, "die: modsign has not signed")
		unsigned(t, image)
	})
}

// TestGentooSignFile calls modsign as the eclass calls scripts/sign-file of the kernel's build
// directory: four arguments, once a module.
func TestGentooSignFile(t *testing.T) {
	t.Parallel()
	private, cert := testmod.NewKey(t, "rsa:2048").Files(t)
	image, kernel := t.TempDir(), t.TempDir()
	install(t, image, "plain")
	link := filepath.Join(kernel, "scripts", "sign-file")
	write(t, filepath.Join(kernel, "scripts", "Makefile"), "", 0o644)
	if err := os.Symlink(program, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range modules(t, image) {
		if name := filepath.Base(path); name != "modules.order" {
			ok(t, "", nil, link, "sha512", private, cert, path)
		}
	}
	signedBy(t, image, cert)
}
