package debtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// headers finds a kernel that scripts/kernels has fetched and whose headers are
// installed. It returns the kernel and its build directory.
func headers(t testing.TB) (testmod.Kernel, string) {
	t.Helper()
	kernels := testmod.Kernels(t)
	for _, k := range kernels {
		build, err := filepath.EvalSymlinks(filepath.Join("/lib/modules", k.Version, "build"))
		if err == nil {
			return k, build
		}
	}
	testmod.Missing(t, "the headers of a kernel that scripts/kernels has fetched",
		"apt-get install linux-headers-"+kernels[0].Version)
	panic("not reached")
}

// builder is a machine on which dkms builds a test module. Files that dkms expects at
// fixed paths are mounted there, only for its own processes.
type builder struct {
	*system
	framework string // framework.conf.d
	conf      string // framework.conf, if it exists
	trees     []string
	tree      string // the tree of dkms
}

func newBuilder(t testing.TB, suffix string) *builder {
	t.Helper()
	k, build := headers(t)
	b := &builder{system: install(t, k), framework: t.TempDir(), conf: filepath.Join(t.TempDir(), "framework.conf")}
	if err := os.Symlink(build, filepath.Join(b.modules, "build")); err != nil {
		t.Fatal(err)
	}
	// dkms learns how the kernel compresses its modules from their names, or from the
	// names in modules.dep.
	for i, path := range b.files {
		b.files[i] = recompress(t, path, suffix)
	}
	write(t, filepath.Join(b.modules, "modules.dep"), 0o644, "kernel/fs/fat/fat.ko"+suffix+":\n")

	const source = `#include <linux/module.h>
static int __init made_init(void) { return 0; }
static void __exit made_exit(void) { }
module_init(made_init);
module_exit(made_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("a module of the tests of modsign");
`
	dir := t.TempDir()
	made := filepath.Join(dir, "source/made-1.0")
	write(t, filepath.Join(made, "made.c"), 0o644, source)
	write(t, filepath.Join(made, "Makefile"), 0o644, "obj-m := made.o\n")
	write(t, filepath.Join(made, "dkms.conf"), 0o644, strings.Join([]string{
		`PACKAGE_NAME="made"`, `PACKAGE_VERSION="1.0"`, `BUILT_MODULE_NAME[0]="made"`,
		`DEST_MODULE_LOCATION[0]="/updates/dkms"`, ``}, "\n"))
	b.tree = filepath.Join(dir, "dkms")
	if err := os.Mkdir(b.tree, 0o755); err != nil {
		t.Fatal(err)
	}
	b.trees = []string{"--sourcetree", filepath.Dir(made), "--dkmstree", b.tree}

	// The drop-in, with the path of a program that is not installed replaced.
	dropIn := string(read(t, filepath.Join(scripts, "hooks/dkms-framework.conf")))
	write(t, filepath.Join(b.framework, "00-modsign.conf"), 0o644,
		strings.ReplaceAll(dropIn, "/usr/lib/modsign/", filepath.Join(scripts, "hooks")+"/"))
	return b
}

// recompress converts a module to another format in its directory, and returns the new
// name.
func recompress(t testing.TB, path, suffix string) string {
	t.Helper()
	if strings.HasSuffix(path, ".xz") {
		testmod.Run(t, testmod.Program(t, "xz", "xz-utils"), "--decompress", path)
		path = strings.TrimSuffix(path, ".xz")
	}
	switch suffix {
	case ".xz":
		testmod.Run(t, testmod.Program(t, "xz", "xz-utils"), "--check=crc32", path)
	case ".zst":
		testmod.Run(t, testmod.Program(t, "zstd", "zstd"), "--quiet", "--rm", path)
	}
	return path + suffix
}

func (b *builder) dkms(t testing.TB, args ...string) result {
	t.Helper()
	const inside = `
		mount --bind "$1" /etc/dkms/framework.conf.d
		mount --bind "$2" /lib/modules
		if [ -e "$3" ]; then mount --bind "$3" /etc/dkms/framework.conf; fi
		shift 3
		exec "$@"`
	words := []string{"--mount", "--propagation", "private", "sh", "-euc", inside, "sh", b.framework,
		filepath.Dir(b.modules), b.conf, testmod.Program(t, "dkms", "dkms")}
	return run(t, hookEnvironment(b.root), "", testmod.Program(t, "unshare", "util-linux"),
		append(append(words, args...), b.trees...)...)
}

func TestDKMS(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, suffix, passphrase, configured string
		signed                               bool
	}{
		{name: "plain", signed: true},
		{name: "xz and a key with a passphrase", suffix: ".xz", passphrase: secret, configured: secret, signed: true},
		{name: "zst and a wrong passphrase", suffix: ".zst", passphrase: secret, configured: "quite wrong"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBuilder(t, test.suffix)
			key, cert := testmod.NewKey(t, "rsa:2048").Files(t)
			settings := []string{"on_failure=fail"}
			if test.passphrase != "" {
				key = encrypted(t, key, test.passphrase)
				write(t, filepath.Join(b.root, "etc/modsign/passphrase"), 0o600, test.configured+"\n")
				settings = append(settings, "passphrase_file=/etc/modsign/passphrase")
			}
			b.configure(t, settings...)
			write(t, filepath.Join(b.framework, "site.conf"), 0o644, "mok_signing_key="+key+"\nmok_certificate="+cert+"\n")

			b.dkms(t, "add", "-m", "made/1.0").want(t, 0)
			r := b.dkms(t, "install", "-m", "made/1.0", "-k", b.version)
			r.want(t, 0, "Sign command: "+filepath.Join(scripts, "hooks/sign-file"))
			logs, _ := filepath.Glob(filepath.Join(b.tree, "made/1.0", b.version, "*/log/make.log"))
			if len(logs) != 1 {
				t.Fatalf("%d logs of the build", len(logs))
			}
			r.output += string(read(t, logs[0]))
			if strings.Contains(r.output, test.passphrase) && test.passphrase != "" ||
				strings.Contains(r.output, test.configured) && test.configured != "" {
				t.Errorf("the passphrase is shown:\n%s", r.output)
			}
			installed := filepath.Join(b.modules, "updates/dkms/made.ko"+test.suffix)
			if _, err := os.Stat(installed); err != nil {
				t.Fatalf("%v:\n%s", err, r.output)
			}

			if !test.signed {
				// DKMS continues with an unsigned module. DKMS and the hook both report
				// it.
				if !strings.Contains(r.output, "sign-file: ") || !strings.Contains(r.output, key) {
					t.Errorf("nothing is said about a signature that failed:\n%s", r.output)
				}
				for _, h := range hooks {
					h.run(t, b.system).want(t, 1, installed+": not signed")
				}
				return
			}
			trusted(t, cert, installed)
			if out := string(testmod.Run(t, program, "inspect", "--json", installed)); !strings.Contains(out,
				`"hash":"`+kernelHash(t, filepath.Join(b.root, "boot/config-"+b.version))+`"`) {
				t.Errorf("not the kernel's hash:\n%s", out)
			}
			if out := string(testmod.Run(t, testmod.Program(t, "modinfo", "kmod"), "-F", "signer",
				installed)); strings.TrimSpace(out) == "" {
				t.Error("modinfo sees no signature")
			}
			for _, h := range hooks {
				h.run(t, b.system).want(t, 1, installed+": unknown key") // the image does not contain the certificate
			}
			b.configure(t, append(settings, "trust="+b.keep(t, "/var/lib/dkms/mok.pub", cert))...)
			for _, h := range hooks {
				h.run(t, b.system).silent(t)
			}
			b.dkms(t, "remove", "-m", "made/1.0", "--all").want(t, 0)
			if _, err := os.Stat(installed); err == nil {
				t.Errorf("dkms has not removed %s", installed)
			}
		})
	}
}

// If modsign was removed and its configuration kept, DKMS works as without modsign.
func TestDKMSWithoutModsign(t *testing.T) {
	t.Parallel()
	dropIn := filepath.Join(scripts, "hooks/dkms-framework.conf")
	for place, want := range map[string]string{"/nonexistent": "", scripts + "/hooks": scripts + "/hooks/sign-file"} {
		path := testmod.WriteFile(t, "00-modsign.conf", []byte(strings.ReplaceAll(string(read(t, dropIn)), "/usr/lib/modsign",
			place)))
		out, err := exec.Command("bash", "-euc", `. "$1"; echo "${sign_file:-}"`, "bash", path).CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("sign_file is %q (%v), want %q", got, err, want)
		}
	}
}

// The administrator's sign_file takes precedence, wherever dkms reads it.
func TestDKMSAdministratorsSignFile(t *testing.T) {
	t.Parallel()
	for name, place := range map[string]func(b *builder) string{
		"framework.conf": func(b *builder) string { return b.conf },
		"before":         func(b *builder) string { return filepath.Join(b.framework, "00-local.conf") },
		"after":          func(b *builder) string { return filepath.Join(b.framework, "site.conf") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBuilder(t, "")
			key, cert := testmod.NewKey(t, "rsa:2048").Files(t)
			called := filepath.Join(t.TempDir(), "called")
			theirs := filepath.Join(t.TempDir(), "sign-file")
			write(t, theirs, 0o755, "#!/bin/sh\necho \"$@\" >>"+called+"\nexec "+testmod.SignFile(t)+" \"$@\"\n")
			write(t, filepath.Join(b.framework, "key.conf"), 0o644, "mok_signing_key="+key+"\nmok_certificate="+cert+"\n")
			write(t, place(b), 0o644, "sign_file="+theirs+"\n")
			b.dkms(t, "add", "-m", "made/1.0")
			r := b.dkms(t, "build", "-m", "made/1.0", "-k", b.version)
			r.want(t, 0, "Sign command: "+theirs)
			if _, err := os.Stat(called); err != nil {
				t.Errorf("the administrator's program was not called:\n%s", r.output)
			}
		})
	}
}
