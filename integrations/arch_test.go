package integrations

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// makepkg builds the package of a PKGBUILD in a directory and returns its path. makepkg refuses
// root, who gives it to nobody.
func makepkg(t *testing.T, dir string) (string, result) {
	t.Helper()
	path := testmod.Program(t, "makepkg", "makepkg")
	args := []string{path, "--nodeps", "--force", "--noprogressbar"}
	if os.Geteuid() == 0 {
		ok(t, "", nil, "chown", "-R", "65534:65534", dir)
		args = append([]string{testmod.Program(t, "setpriv", "util-linux"), "--reuid", "65534", "--regid", "65534",
			"--clear-groups"}, args...)
	}
	r := run(t, dir, []string{"HOME=" + dir, "PKGEXT=.pkg.tar", "PACKAGER=modsign <tests@example.com>"},
		args[0], args[1:]...)
	found, err := filepath.Glob(filepath.Join(dir, "*.pkg.tar"))
	if err != nil || (r.code == 0) != (len(found) == 1) {
		t.Fatalf("makepkg: exit status %d and %q\n%s", r.code, found, r.output)
	}
	if r.code != 0 {
		return "", r
	}
	return found[0], r
}

const pkgbuild = `
pkgname=vendor-modules
pkgver=1
pkgrel=1
arch=(any)
options=(OPTIONS)
package() {
	mkdir -p "$pkgdir/usr/lib/modules"
	cp -R "$startdir/tree" "$pkgdir/usr/lib/modules/6.12.0"
	SIGN
}
`

// TestArchPackage runs modsign_sign in package() of a PKGBUILD.
func TestArchPackage(t *testing.T) {
	testmod.Slow(t, "it runs makepkg")
	t.Parallel()
	private, cert := testmod.NewKey(t, "rsa:2048").Files(t)
	shellcheck(t, "bash", read(t, "arch/modsign.sh"))
	for name, test := range map[string]struct {
		compression, options, args string
		fails                      string
	}{
		"a given key":                            {"plain", "!strip", "key.pem cert.pem", ""},
		"a one-time key, for compressed modules": {"zst", "strip", "", ""},
		"makepkg would strip":                    {"plain", "strip", "key.pem cert.pem", "write options=(!strip)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := publicDir(t)
			install(t, filepath.Join(dir, "tree"), test.compression)
			write(t, filepath.Join(dir, "key.pem"), read(t, private), 0o600)
			write(t, filepath.Join(dir, "cert.pem"), read(t, cert), 0o644)
			write(t, filepath.Join(dir, "modsign.sh"), read(t, "arch/modsign.sh"), 0o644)
			write(t, filepath.Join(dir, "PKGBUILD"), strings.NewReplacer("OPTIONS", test.options, "SIGN",
				`source "$startdir/modsign.sh"; cd "$startdir"; modsign_sign "$pkgdir/usr/lib/modules/6.12.0" `+test.args).
				Replace(pkgbuild), 0o644)
			path, r := makepkg(t, dir)
			if test.fails != "" {
				if r.code == 0 || !strings.Contains(r.output, test.fails) {
					t.Errorf("makepkg: exit status %d, want %q in\n%s", r.code, test.fails, r.output)
				}
				return
			}
			for line := range strings.Lines(ok(t, "", nil, "tar", "--numeric-owner", "-tvf", path)) {
				if fields := strings.Fields(line); fields[1] != "0/0" || strings.HasSuffix(line, "/\n") != (line[0] == 'd') {
					t.Errorf("fakeroot has lost track of %s", line)
				}
			}
			root := t.TempDir()
			ok(t, root, nil, "tar", "-xf", path)
			trusted := cert
			if test.args == "" {
				trusted = pemOf(t, filepath.Join(root, "usr/lib/modules/6.12.0/modsign-one-time.x509"))
			}
			signedBy(t, root, trusted)
		})
	}
	t.Run("the certificate of another key", func(t *testing.T) {
		t.Parallel()
		_, other := testmod.NewKey(t, "ecdsa:p256").Files(t)
		dir := t.TempDir()
		install(t, dir, "plain")
		r := run(t, "", nil, "bash", "-c", `set -e; source arch/modsign.sh; modsign_sign "$@"; echo signed`, "bash", dir, private, other)
		r.refuses(t, 1, "cert.pem")
		unsigned(t, dir)
	})
}

// TestArchHook lets pacman install a package of modules beside the hook.
func TestArchHook(t *testing.T) {
	testmod.Slow(t, "it runs makepkg and pacman")
	needRoot(t, "pacman starts hooks in a chroot")
	t.Parallel()
	pacman := testmod.Program(t, "pacman", "pacman-package-manager")
	private, cert := testmod.NewKey(t, "rsa:2048").Files(t)
	otherPrivate, otherCert := testmod.NewKey(t, "ecdsa:p256").Files(t)

	dir, pkg := publicDir(t), publicDir(t)
	install(t, filepath.Join(dir, "tree"), "xz")
	write(t, filepath.Join(dir, "PKGBUILD"), strings.NewReplacer("OPTIONS", "", "SIGN", "").Replace(pkgbuild), 0o644)
	vendor, _ := makepkg(t, dir)
	write(t, filepath.Join(pkg, "modsign"), read(t, program), 0o755)
	write(t, filepath.Join(pkg, "PKGBUILD"), `
pkgname=modsign
pkgver=1
pkgrel=1
arch=(any)
options=(!strip)
package() { install -D "$startdir/modsign" "$pkgdir/usr/bin/modsign"; }
`, 0o644)
	tool, _ := makepkg(t, pkg)

	root := t.TempDir()
	for _, name := range []string{"var/lib/pacman", "var/cache/pacman", "tmp", "etc/modsign", "run"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(root, "etc/modsign/key.pem"), read(t, private), 0o600)
	write(t, filepath.Join(root, "etc/modsign/cert.der"), read(t, cert), 0o644) // PEM does as well
	write(t, filepath.Join(root, "etc/pacman.d/hooks/85-modsign.hook"), read(t, "arch/85-modsign.hook"), 0o644)
	// The kernel's own modules are signed, and in no package here.
	own := filepath.Join(root, "usr/lib/modules/6.11.0")
	install(t, own, "plain")
	ok(t, "", nil, program, "sign", "--key", otherPrivate, "--cert", otherCert, own)

	conf := testmod.WriteFile(t, "pacman.conf", []byte("[options]\nArchitecture = auto\nSigLevel = Never\nLocalFileSigLevel = Never\n"))
	args := []string{"--config", conf, "--root", root, "--dbpath", filepath.Join(root, "var/lib/pacman"),
		"--cachedir", filepath.Join(root, "var/cache/pacman"), "--hookdir", filepath.Join(root, "etc/pacman.d/hooks"),
		"--logfile", filepath.Join(root, "pacman.log"), "--noconfirm", "--noprogressbar"}
	out := ok(t, "", nil, pacman, append(args, "-U", tool, vendor)...)
	if !strings.Contains(out, "Signing kernel modules") || strings.Contains(out, "error") {
		t.Errorf("pacman says\n%s", out)
	}
	signedBy(t, filepath.Join(root, "usr/lib/modules/6.12.0"), cert)
	signedBy(t, own, otherCert)

	// What the hook needs modsign for goes with it.
	out = ok(t, "", nil, pacman, append(args, "-R", "modsign", "vendor-modules")...)
	err := filepath.WalkDir(filepath.Join(root, "usr"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !strings.HasPrefix(path, own) {
			t.Errorf("pacman has left %s\n%s", path, out)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
