package debtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// In an image, links lead into the image. The hooks follow links to modules, as
// modprobe does.
func TestHooksFollowLinks(t *testing.T) {
	t.Parallel()
	eachHook(t, func(t *testing.T, h hook) {
		s := install(t, newest(t))
		link := func(text, name string) {
			t.Helper()
			path := filepath.Join(s.root, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(text, path); err != nil {
				t.Fatal(err)
			}
		}
		move := func(from, to string) {
			t.Helper()
			path := filepath.Join(s.root, to)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(s.root, from), path); err != nil {
				t.Fatal(err)
			}
		}
		s.configure(t, "on_failure=fail", "sign=no")
		move("lib", "usr/lib")
		link("/usr/lib", "lib")
		move(s.image, "usr/lib/vmlinuz")
		link("../../../../lib/vmlinuz", s.image)
		move("boot/config-"+s.version, "usr/lib/config")
		link("/lib/config", "boot/config-"+s.version)
		move("etc/modsign", "usr/etc/modsign")
		link("/usr/etc/modsign", "etc/modsign")
		h.run(t, s).silent(t)
		h.run(t, s, "MODSIGN_VERBOSE=1").want(t, 0, "verified", filepath.Join(s.root, "usr/lib/vmlinuz"))

		outside := filepath.Join(s.root, "opt/x.ko")
		write(t, outside, 0o644, string(testmod.ELF()))
		link("/opt/x.ko", "usr/lib/modules/"+s.version+"/weak-updates/x.ko")
		h.run(t, s).want(t, 1, "/weak-updates/x.ko: not signed")
		key, cert := testmod.NewKey(t, "ecdsa:p256").Files(t)
		testmod.Run(t, program, "sign", "--quiet", "--key", key, "--cert", cert, outside)
		link("/owner.pem", "etc/keys/owner.pem")
		s.keep(t, "/owner.pem", cert)
		config := filepath.Join(s.root, "usr/etc/modsign/modsign.conf")
		write(t, config, 0o644, "on_failure=fail\ntrust=/etc/keys/owner.pem\n")
		h.run(t, s).silent(t)

		// A kernel that has only links to modules has modules.
		for _, path := range s.files {
			if err := os.Remove(strings.Replace(path, s.root, s.root+"/usr", 1)); err != nil {
				t.Fatal(err)
			}
		}
		write(t, config, 0o644, "on_failure=fail\n")
		h.run(t, s).want(t, 1, "/weak-updates/x.ko: unknown key")
	})
}
