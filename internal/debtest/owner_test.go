package debtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

const stranger = 65533 // an ordinary user

func chown(t testing.TB, path string, uid int) {
	t.Helper()
	if err := os.Lchown(path, uid, uid); err != nil {
		t.Fatal(err)
	}
}

func chmod(t testing.TB, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func symlink(t testing.TB, target, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

// Every reader rejects a configuration that others can change, with exit code 1 even if
// the file says on_failure=warn.
func TestHooksRefuseConfigurationOfOthers(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		testmod.Missing(t, "root", "run the tests as root: files have to belong to another user")
	}
	for name, test := range map[string]struct {
		change func(t *testing.T, s *system)
		named  string // part of the error
	}{
		"file of another user": {func(t *testing.T, s *system) { chown(t, s.conf(), stranger) },
			"etc/modsign/modsign.conf: the owner is user 65533"},
		"file that a group writes": {func(t *testing.T, s *system) { chmod(t, s.conf(), 0o664) },
			"etc/modsign/modsign.conf: group or others"},
		"file that all write": {func(t *testing.T, s *system) { chmod(t, s.conf(), 0o646) },
			"etc/modsign/modsign.conf: group or others"},
		"file that others write": {func(t *testing.T, s *system) { chmod(t, s.conf(), 0o602) },
			"etc/modsign/modsign.conf: group or others"},
		"directory of another user": {func(t *testing.T, s *system) { chown(t, filepath.Dir(s.conf()), stranger) },
			"etc/modsign/: the owner is"},
		"directory that all write": {func(t *testing.T, s *system) { chmod(t, filepath.Dir(s.conf()), 0o777) },
			"etc/modsign/: group or others"},
		"sticky directory": {func(t *testing.T, s *system) { chmod(t, filepath.Dir(s.conf()), 0o777|os.ModeSticky) },
			"etc/modsign/: group or others"},
		"directory above": {func(t *testing.T, s *system) { chmod(t, filepath.Join(s.root, "etc"), 0o775) },
			"etc/: group or others"},
		"root": {func(t *testing.T, s *system) { chown(t, s.root, stranger) }, "/: the owner is"},
		"no file in such a directory": {func(t *testing.T, s *system) {
			chown(t, filepath.Dir(s.conf()), stranger)
			os.Remove(s.conf())
		}, "etc/modsign/: the owner is"},
		"access list": {func(t *testing.T, s *system) {
			testmod.Run(t, testmod.Program(t, "setfacl", "acl"), "-m", "u:65533:rw", s.conf())
		}, "etc/modsign/modsign.conf: group or others"},
		"link of another user": {func(t *testing.T, s *system) {
			s.move(t, "srv/modsign.conf", "/srv/modsign.conf")
			chown(t, s.conf(), stranger)
		}, "etc/modsign/modsign.conf: the owner is"},
		"link to a file of his": {func(t *testing.T, s *system) {
			s.move(t, "srv/modsign.conf", "/srv/modsign.conf")
			chown(t, filepath.Join(s.root, "srv/modsign.conf"), stranger)
		}, "srv/modsign.conf: the owner is"},
		"relative link to his home": {func(t *testing.T, s *system) {
			s.move(t, "home/u/modsign.conf", "../../home/u/modsign.conf")
			chown(t, filepath.Join(s.root, "home/u"), stranger)
		}, "home/u/: the owner is"},
		"link through his home": {func(t *testing.T, s *system) {
			s.move(t, "srv/modsign.conf", "/home/u/../../srv/modsign.conf")
			if err := os.MkdirAll(filepath.Join(s.root, "home/u"), 0o755); err != nil {
				t.Fatal(err)
			}
			chown(t, filepath.Join(s.root, "home/u"), stranger)
		}, ""}, // .. as after chroot: nothing of the stranger's is read
		"link to his link": {func(t *testing.T, s *system) {
			s.move(t, "srv/modsign.conf", "/home/u/link")
			symlinkIn(t, s, "/srv/modsign.conf", "home/u/link")
			chown(t, filepath.Join(s.root, "home/u"), stranger)
		}, "home/u/: the owner is"},
		"links in a circle": {func(t *testing.T, s *system) { symlink(t, "modsign.conf", s.conf()) },
			"because its links lead in a circle"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := install(t, newest(t))
			s.configure(t, "on_failure=warn")
			test.change(t, s)
			locked, cert := testmod.NewKey(t, "rsa:2048").Files(t)
			signFile := func() result {
				return run(t, hookEnvironment(s.root), "", filepath.Join(scripts, "hooks/sign-file"), "sha256", locked, cert,
					testmod.WriteFile(t, "m.ko", testmod.ELF()))
			}
			if test.named == "" {
				for _, h := range hooks {
					h.run(t, s).silent(t)
				}
				signFile().silent(t)
				return
			}
			for _, h := range hooks {
				h.run(t, s).want(t, 1, test.named, "is refused")
			}
			signFile().want(t, 1, test.named, "is refused")
		})
	}
}

// The files that a configuration names are as critical as the configuration.
func TestHooksRefuseFilesOfOthers(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		testmod.Missing(t, "root", "run the tests as root: files have to belong to another user")
	}
	for _, setting := range []string{"trust", "cert", "key", "passphrase_file"} {
		t.Run(setting, func(t *testing.T) {
			t.Parallel()
			s := install(t, newest(t))
			_, cert := testmod.NewKey(t, "ecdsa:p256").Files(t)
			lines := []string{setting + "=" + s.keep(t, "/etc/keys/it", cert)}
			s.configure(t, append(lines, "on_failure=fail")...)
			hooks[0].run(t, s).silent(t)
			for _, name := range []string{"etc/keys/it", "etc/keys"} {
				chown(t, filepath.Join(s.root, name), stranger)
				hooks[0].run(t, s).want(t, 1, name, "the owner is user 65533", "/etc/keys/it is refused")
				chown(t, filepath.Join(s.root, name), 0)
			}
			// on_failure applies, because the configuration itself belongs to root.
			chmod(t, filepath.Join(s.root, "etc/keys/it"), 0o666)
			s.configure(t, append(lines, "on_failure=warn")...)
			hooks[0].run(t, s).want(t, 0, "group or others can write it", "nothing was signed or verified")
		})
	}
}

// Links in the path of the configuration are followed inside the root.
func TestHooksConfigurationLinks(t *testing.T) {
	t.Parallel()
	s := install(t, newest(t))
	outside := testmod.WriteFile(t, "modsign.conf", []byte("on_failure=fail\n"))
	unsign(t, s.files[0])
	symlinkIn(t, s, outside, "etc/modsign/modsign.conf")
	hooks[0].run(t, s).want(t, 0, s.files[0]+": not signed") // there is no file inside: warn
	s.configure(t, "on_failure=fail")
	s.move(t, "usr/share/site/modsign.conf", "/usr/share/site/modsign.conf")
	hooks[0].run(t, s).want(t, 1, s.files[0]+": not signed")
}

// The user who runs the hooks may own the configuration.
func TestHooksConfigurationOfTheCaller(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("all other tests are this one, where root does not run them")
	}
	root := t.TempDir()
	write(t, filepath.Join(root, "etc/modsign/modsign.conf"), 0o644, "hash=sha384\n")
	for _, name := range []string{"", "etc", "etc/modsign", "etc/modsign/modsign.conf"} {
		chown(t, filepath.Join(root, name), stranger)
	}
	hook := filepath.Join(t.TempDir(), "hook")
	copyFile(t, filepath.Join(scripts, "hooks/hook"), hook)
	for dir := filepath.Dir(hook); strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
		chmod(t, dir, 0o755)
	}
	args := []string{"--reuid=65533", "--regid=65533", "--clear-groups", hook, "config", "hash"}
	r := run(t, hookEnvironment(root), "/", testmod.Program(t, "setpriv", "util-linux"), args...)
	if r.code != 0 || r.output != "sha384\n" {
		t.Errorf("exit code %d: %s", r.code, r.output)
	}
	run(t, hookEnvironment(root), "/", hook, "config", "hash").want(t, 1, "is refused")
}

func (s *system) conf() string { return filepath.Join(s.root, "etc/modsign/modsign.conf") }

// move moves the configuration and leaves a link.
func (s *system) move(t testing.TB, name, target string) {
	t.Helper()
	copyFile(t, s.conf(), filepath.Join(s.root, name))
	symlink(t, target, s.conf())
}

func symlinkIn(t testing.TB, s *system, target, name string) {
	t.Helper()
	path := filepath.Join(s.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	symlink(t, target, path)
}
