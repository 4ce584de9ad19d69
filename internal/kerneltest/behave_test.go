//go:build kerneltest

package kerneltest

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/verify"
)

// behave checks the hook in a tree that is built and has a key agent. It leaves the
// tree in that state.
func (u *user) behave(t *testing.T, tree *Tree) {
	for _, part := range []struct {
		name string
		f    func(*testing.T, *Tree)
	}{
		{"nothing is done where nothing is asked for", u.quiet},
		{"settings", u.settings},
		{"modules_sign and other people's modules", u.signInstalled},
		{"external module", u.external},
		{"make -k", u.keepGoing},
		{"one install", u.oneInstall},
		{"packages", u.packages},
		{"as stock make does", u.likeStock},
		{"a key in a token", u.token},
		{"kills", u.kills},
	} {
		t.Run(part.name, func(t *testing.T) { part.f(t, tree) })
	}
}

// hash describes a tree of files: the content of files by name, and the targets of
// links.
func hash(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name := strings.TrimPrefix(path, dir+"/")
		if d.Type()&fs.ModeSymlink != 0 {
			files[name], err = os.Readlink(path)
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		files[name] = fmt.Sprintf("%v %x", info.Mode(), sha256.Sum256(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// sameFiles fails the test unless two trees of files are the same.
func sameFiles(t testing.TB, got, want map[string]string, ignore func(string) bool) {
	t.Helper()
	if len(want) == 0 {
		t.Fatal("nothing to compare with")
	}
	for name, sum := range want {
		if got[name] == "" {
			t.Errorf("%s is missing", name)
		} else if got[name] != sum && (ignore == nil || !ignore(name)) {
			t.Errorf("%s differs", name)
		}
	}
	for name := range got {
		if want[name] == "" {
			t.Errorf("%s is too many", name)
		}
	}
}

// trusted fails the test unless the tree's kernel accepts all modules below a
// directory.
func (u *user) trusted(t testing.TB, tree *Tree, dir string) {
	t.Helper()
	var keys verify.Keyring
	if err := keys.AddImage(tree.Image()); err != nil {
		t.Fatal(err)
	}
	if _, err := verify.Tree(t.Context(), &keys, []string{dir}, verify.Options{}); err != nil {
		t.Errorf("modules in %s: %v", dir, err)
	}
}

func (u *user) quiet(t *testing.T, tree *Tree) {
	before, status := hash(t, filepath.Join(tree.Objtree, ".modsign")), ""
	if s, err := u.agent(tree.Objtree); err != nil {
		t.Fatal(err)
	} else {
		status = fmt.Sprintf("%+v", s)
	}
	for _, goal := range []string{"kernelrelease", "image_name", "help", "olddefconfig"} {
		// The output is the same as without the hook.
		with := u.run(t, tree.Objtree, "make", "-s", goal)
		if without := u.run(t, tree.Objtree, "make", "-s", "-f", "Makefile", goal); with != without {
			t.Errorf("make -s %s says %q with the hook, and else %q", goal, with, without)
		}
	}
	root := t.TempDir()
	u.run(t, tree.Objtree, "make", "-s", "INSTALL_MOD_PATH="+root, "modules_install")
	installed := hash(t, root)
	for _, args := range []string{"-n modules_install", "-n modules_sign", "-n clean", "-n",
		"-n mrproper modules_install"} {
		u.run(t, tree.Objtree, "make", append(strings.Fields(args), "INSTALL_MOD_PATH="+root)...)
	}
	sameFiles(t, hash(t, root), installed, nil)
	sameFiles(t, hash(t, filepath.Join(tree.Objtree, ".modsign")), before, nil)
	s, err := u.agent(tree.Objtree)
	if err != nil {
		t.Fatal(err)
	}
	s.Installs, s.Signatures = s.Installs-1, s.Signatures-len(modulesOf(t, root))
	if now := fmt.Sprintf("%+v", s); now != status {
		t.Errorf("the agent is %s, and was %s", now, status)
	}
	// All output is Kbuild's.
	if out := u.run(t, tree.Objtree, "make", "-s", "INSTALL_MOD_PATH="+root, "modules_install"); out != "" {
		t.Errorf("make -s modules_install says %q", out)
	}
	if out := u.run(t, tree.Srctree, "make", "O="+tree.Objtree, "--no-print-directory", "INSTALL_MOD_PATH="+root,
		"modules_install", "kernelrelease"); !strings.Contains(out, "modsign: signed ") {
		t.Errorf("make --no-print-directory modules_install kernelrelease says %q", out)
	}
}

func modulesOf(t testing.TB, root string) []string {
	t.Helper()
	_, modules := installed(t, root)
	return modules
}

func (u *user) settings(t *testing.T, tree *Tree) {
	refuse := func(what, want string, args ...string) {
		t.Helper()
		out, err := u.try(tree.Objtree, "make", append(args, "modules_install")...)
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v, %s", what, err, out)
		}
	}
	base := t.TempDir()
	for _, name := range []string{"a space", "per%cent", "co:lon"} {
		path := filepath.Join(base, name)
		refuse(name, "Kbuild cannot install to a path with", "INSTALL_MOD_PATH="+path)
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s was touched before it was refused", path)
		}
	}
	unsigned := func(what string, args ...string) {
		t.Helper()
		root := t.TempDir()
		out := u.run(t, tree.Objtree, "make", append(args, "INSTALL_MOD_PATH="+root, "modules_install")...)
		modlib, modules := installed(t, root)
		for _, name := range modules {
			if r := verify.File(t.Context(), new(verify.Keyring), filepath.Join(modlib, name)); r.Verdict != verify.NotSigned {
				t.Errorf("%s: %s is %s", what, name, r.Verdict)
			}
		}
		if strings.Contains(out, "modsign: signed") {
			t.Errorf("%s: %s", what, out)
		}
	}
	unsigned("without MODULE_SIG_ALL", "CONFIG_MODULE_SIG_ALL=")
	unsigned("with an empty key", "CONFIG_MODULE_SIG_KEY=")
	refuse("a token's key", "no such token", "INSTALL_MOD_PATH="+base, "CONFIG_MODULE_SIG_KEY=pkcs11:token=none")
	key := filepath.Join(t.TempDir(), "key.pem")
	u.run(t, "", u.modsign, "keygen", "--type", "ecdsa:p384", "-o", key)
	refuse("a key that the kernel was not linked with", "not the key that this kernel was linked with",
		"INSTALL_MOD_PATH="+base, "CONFIG_MODULE_SIG_KEY="+key)
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	refuse("a key that others can read", "chmod 600", "INSTALL_MOD_PATH="+base, "CONFIG_MODULE_SIG_KEY="+key)
	if found, _ := filepath.Glob(filepath.Join(base, "lib/modules/*/kernel/*/*.ko*")); len(found) != 0 {
		t.Errorf("refused, and all the same installed: %q", found)
	}
	if out := u.run(t, tree.Objtree, u.modsign, "kbuild", "show"); !strings.Contains(out, "held by modsign agent") ||
		!strings.Contains(out, "scripts/sign-file: ours") {
		t.Errorf("modsign kbuild show says %s", out)
	}
}

func (u *user) signInstalled(t *testing.T, tree *Tree) {
	root := t.TempDir()
	u.run(t, tree.Objtree, u.modsign, "kbuild", "install", "-s", u.jobs, "INSTALL_MOD_PATH="+root)
	modlib, modules := installed(t, root)
	u.trusted(t, tree, modlib)
	// Other modules, and files with the names of modules.
	for _, name := range []string{"updates/theirs.ko", "extra/theirs.ko.xz", "kernel/crypto/theirs.ko"} {
		path := filepath.Join(modlib, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("theirs"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := hash(t, root)
	for range 2 {
		u.run(t, tree.Objtree, "make", u.jobs, "-s", "INSTALL_MOD_PATH="+root, "modules_sign")
	}
	sameFiles(t, hash(t, root), before, func(name string) bool { return !strings.Contains(name, "theirs") })
	for _, name := range modules {
		path := filepath.Join(modlib, name)
		if r, err := verify.Inspect(t.Context(), path); err != nil || len(r.Layers) != 1 {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	// modules_install removes only kernel/, as without the hook.
	u.run(t, tree.Objtree, "make", u.jobs, "-s", "INSTALL_MOD_PATH="+root, "modules_install")
	after := hash(t, root)
	for name, sum := range before {
		if strings.Contains(name, "theirs") && !strings.Contains(name, "kernel/crypto/") && after[name] != sum {
			t.Errorf("%s was touched", name)
		}
	}
	u.run(t, tree.Objtree, "make", "-s", "INSTALL_MOD_PATH="+root, "modules_install", "modules_sign")
}

// writeExternal writes the source of a module.
func writeExternal(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"Kbuild":   "obj-m := theirs.o\n",
		"theirs.c": "#include <linux/module.h>\nMODULE_LICENSE(\"GPL\");\nMODULE_DESCRIPTION(\"external\");\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func (u *user) external(t *testing.T, tree *Tree) {
	dir, root := writeExternal(t), t.TempDir()
	u.run(t, tree.Objtree, "make", "-s", "INSTALL_MOD_PATH="+root, "modules_install")
	before := hash(t, root)
	u.run(t, dir, "make", "-C", tree.Objtree, "M="+dir, "modules")
	u.run(t, dir, "make", "-C", tree.Objtree, "M="+dir, "INSTALL_MOD_PATH="+root, "modules_install")
	modlib, _ := installed(t, root)
	u.trusted(t, tree, filepath.Join(modlib, "updates"))
	sameFiles(t, hash(t, root), mergeMaps(before, hash(t, root), "updates/"),
		func(name string) bool { return strings.Contains(name, "/modules.") })
	u.run(t, dir, "make", "-C", tree.Objtree, "M="+dir, "INSTALL_MOD_PATH="+root, "INSTALL_MOD_DIR=extra/mine",
		"modules_install")
	u.trusted(t, tree, filepath.Join(modlib, "extra/mine"))
	u.run(t, dir, "make", "-C", tree.Objtree, "M="+dir, "clean")
	if _, err := u.agent(tree.Objtree); err != nil {
		t.Errorf("make M= clean has ended the agent: %v", err)
	}

	// Without the key the module is installed unsigned, with a one-line message.
	u.run(t, dir, "make", "-C", tree.Objtree, "M="+dir, "modules")
	u.run(t, tree.Objtree, u.modsign, "agent", "forget")
	out := u.run(t, dir, "make", "-C", tree.Objtree, "M="+dir, "INSTALL_MOD_PATH="+root, "modules_install")
	var said []string
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "modsign: ") {
			said = append(said, line)
		}
	}
	if len(said) != 1 || !strings.Contains(said[0], "installed unsigned") || strings.Contains(out, "SSL error") {
		t.Errorf("an external module without a key: %s", out)
	}
	found, err := filepath.Glob(filepath.Join(modlib, "updates/theirs.ko*"))
	if err != nil || len(found) != 1 {
		t.Fatalf("installed: %q, %v", found, err)
	}
	if r := verify.File(t.Context(), new(verify.Keyring), found[0]); r.Verdict != verify.NotSigned {
		t.Errorf("%s: %s", found[0], r.Verdict)
	}
	// The kernel's own modules are not installed.
	if out, err := u.try(tree.Objtree, "make", "INSTALL_MOD_PATH="+root, "modules_install"); err == nil ||
		!strings.Contains(out, "the one-time key of this kernel is gone") || !strings.Contains(out, "forgotten at") {
		t.Errorf("make modules_install without the key: %v %s", err, out)
	}
	if out := u.run(t, tree.Objtree, "make", u.jobs); !strings.Contains(out, "a new one-time key is made") {
		t.Errorf("make without the key: %s", out)
	}
	u.run(t, tree.Objtree, "make", "-s", "INSTALL_MOD_PATH="+root, "modules_install")
	u.trusted(t, tree, filepath.Join(modlib, "kernel"))
}

// mergeMaps adds the files of more whose names contain a word.
func mergeMaps(files, more map[string]string, word string) map[string]string {
	merged := make(map[string]string)
	for name, sum := range files {
		merged[name] = sum
	}
	for name, sum := range more {
		if strings.Contains(name, word) {
			merged[name] = sum
		}
	}
	return merged
}

// keepGoing installs without one of the modules, as make -k does.
func (u *user) keepGoing(t *testing.T, tree *Tree) {
	root, missing := t.TempDir(), filepath.Join(tree.Objtree, "crypto/md4.ko")
	if err := os.Rename(missing, missing+".away"); err != nil {
		t.Fatal(err)
	}
	out, err := u.try(tree.Objtree, "make", "-k", "INSTALL_MOD_PATH="+root, "modules_install")
	if err == nil || !strings.Contains(out, "crypto/md4.ko") {
		t.Errorf("make -k without a module: %v, %s", err, out)
	}
	u.trusted(t, tree, root)
	if err := os.Rename(missing+".away", missing); err != nil {
		t.Fatal(err)
	}
	if out := u.run(t, tree.Objtree, "make", u.jobs); !strings.Contains(out, "may be unsigned") {
		t.Errorf("after an incomplete make -k modules_install, make says %s", out)
	}
	u.run(t, tree.Objtree, "make", "-s", "INSTALL_MOD_PATH="+root, "modules_install")
	u.trusted(t, tree, root)
}

// oneInstall destroys the key after the first installation.
func (u *user) oneInstall(t *testing.T, tree *Tree) {
	root := t.TempDir()
	u.run(t, tree.Objtree, u.modsign, "agent", "forget")
	u.run(t, tree.Objtree, u.modsign, "kbuild", "enable", "--keep", "installs=1")
	u.run(t, tree.Objtree, "make", u.jobs)
	u.run(t, tree.Objtree, "make", "INSTALL_MOD_PATH="+root, "modules_install")
	u.trusted(t, tree, root)
	if _, err := u.agent(tree.Objtree); err == nil || !strings.Contains(err.Error(), "the one-time key is gone") {
		t.Errorf("after the only install the agent is asked: %v", err)
	}
	before := hash(t, root)
	if out, err := u.try(tree.Objtree, "make", "INSTALL_MOD_PATH="+root, "modules_install"); err == nil {
		t.Errorf("a second install: %s", out)
	}
	sameFiles(t, hash(t, root), before, nil)
	u.run(t, tree.Objtree, u.modsign, "kbuild", "enable")
	u.run(t, tree.Objtree, "make", u.jobs)
}

func (u *user) packages(t *testing.T, tree *Tree) {
	u.run(t, tree.Objtree, "make", u.jobs, "dir-pkg")
	u.trusted(t, tree, filepath.Join(tree.Objtree, "tar-install/lib/modules"))

	testmod.Program(t, "rpmbuild", "rpm")
	u.run(t, tree.Objtree, "make", u.jobs, "binrpm-pkg")
	rpms, err := filepath.Glob(filepath.Join(tree.Objtree, "rpmbuild/RPMS/*/kernel-[0-9]*.rpm"))
	if err != nil || len(rpms) != 1 {
		t.Fatalf("packages: %q, %v", rpms, err)
	}
	unpacked := t.TempDir()
	u.run(t, unpacked, "sh", "-c", `rpm2cpio "$0" | cpio -idm --quiet`, rpms[0])
	u.trusted(t, tree, filepath.Join(unpacked, "lib/modules"))

	testmod.Program(t, "dpkg-buildpackage", "dpkg-dev")
	u.run(t, tree.Objtree, "make", u.jobs, "DPKG_FLAGS=-d", "bindeb-pkg")
	image, err := filepath.Glob(filepath.Join(filepath.Dir(tree.Objtree), "linux-image-*.deb"))
	image = slices.DeleteFunc(image, func(path string) bool { return strings.Contains(path, "-dbg_") })
	if err != nil || len(image) != 1 {
		t.Fatalf("packages: %q, %v", image, err)
	}
	root := t.TempDir()
	u.run(t, root, "dpkg-deb", "-x", image[0], root)
	u.trusted(t, tree, filepath.Join(root, "lib/modules"))
	// The package of headers can sign on a machine without modsign.
	headers, err := filepath.Glob(filepath.Join(filepath.Dir(tree.Objtree), "linux-headers-*.deb"))
	if err != nil || len(headers) != 1 {
		t.Fatalf("packages: %q, %v", headers, err)
	}
	u.run(t, root, "dpkg-deb", "-x", headers[0], root)
	found, err := filepath.Glob(filepath.Join(root, "usr/src/linux-headers-*/scripts/sign-file"))
	if err != nil || len(found) != 1 {
		t.Fatalf("sign-file in the headers: %q, %v", found, err)
	}
	script, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(found[0], bytes.ReplaceAll(script, []byte(u.modsign), []byte("/nonexistent/modsign")),
		0o755); err != nil {
		t.Fatal(err)
	}
	key := testmod.NewKey(t, "rsa:2048")
	keyFile := filepath.Join(root, "key.pem")
	module := filepath.Join(root, "m.ko")
	for path, data := range map[string][]byte{keyFile: append(key.KeyPEM, key.CertPEM...), module: testmod.ELF()} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	u.run(t, root, found[0], "sha512", keyFile, keyFile, module)
	if r, err := verify.Inspect(t.Context(), module); err != nil || len(r.Layers) != 1 {
		t.Errorf("the headers' sign-file: %+v, %v", r, err)
	}
	u.run(t, tree.Objtree, "make", "-s", u.jobs) // as it was before
}

// moduleLines are those that make prints of what it does to modules below a root.
func moduleLines(out, root string) (lines []string) {
	for line := range strings.Lines(out) {
		what, path, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name, ok := strings.CutPrefix(strings.TrimSpace(path), root); ok && strings.Contains(name, ".ko") {
			lines = append(lines, what+" "+name)
		}
	}
	slices.Sort(lines) // with -j, those of make have no order
	return lines
}

// likeStock compares installations with and without the hook, with one RSA key: the
// names, the modes, the bytes and the lines that make prints are the same.
func (u *user) likeStock(t *testing.T, tree *Tree) {
	config, err := os.ReadFile(tree.config())
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "key.pem")
	u.run(t, "", u.modsign, "keygen", "--type", "rsa:4096", "-o", key)
	appendTo(t, tree.config(), fmt.Sprintf("CONFIG_MODULE_SIG_KEY=%q\n", key)+variant{keygen.RSA4096, formats[0]}.config())
	u.run(t, tree.Objtree, "make", "olddefconfig")
	u.run(t, tree.Objtree, "make", u.jobs)
	signFile := filepath.Join(tree.Objtree, "scripts/sign-file")
	script, err := os.ReadFile(signFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, args string }{
		{"plain", "CONFIG_MODULE_COMPRESS_ALL="},
		{"stripped", "CONFIG_MODULE_COMPRESS_ALL= INSTALL_MOD_STRIP=1"},
		{"xz", ""},
		{"stripped and xz", "INSTALL_MOD_STRIP=--strip-unneeded"},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := append(strings.Fields(test.args), u.jobs, "modules_install")
			var trees []map[string]string
			lines := make(map[string][]string)
			for _, how := range []string{"stock", "hooked", "linked"} {
				root := t.TempDir()
				with := append([]string{"INSTALL_MOD_PATH=" + root}, args...)
				if how != "hooked" {
					with = append([]string{"-f", "Makefile"}, with...)
					// First the program that Kbuild has built, then a link to modsign,
					// as in a tree without the hook.
					if err := os.Remove(signFile); err != nil {
						t.Fatal(err)
					}
					target := map[string]string{"stock": "sign-file.kbuild", "linked": u.modsign}[how]
					if err := os.Symlink(target, signFile); err != nil {
						t.Fatal(err)
					}
				}
				out := u.run(t, tree.Objtree, "make", with...)
				if signed := strings.Contains(out, "modsign: signed"); signed != (how == "hooked") {
					t.Errorf("%s: %s", how, out)
				}
				lines[how] = moduleLines(out, root)
				if how != "hooked" {
					if err := os.Remove(signFile); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(signFile, script, 0o755); err != nil {
						t.Fatal(err)
					}
				}
				u.trusted(t, tree, root)
				trees = append(trees, hash(t, root))
			}
			for _, other := range trees[1:] {
				sameFiles(t, other, trees[0], nil)
			}
			// What only the program strip does is left to Kbuild.
			if !strings.Contains(test.args, "unneeded") && !slices.Equal(lines["hooked"], lines["stock"]) {
				t.Errorf("make says %q with the hook, and without %q", lines["hooked"], lines["stock"])
			}
		})
	}
	if _, err := os.Stat(filepath.Join(tree.Objtree, "certs/signing_key.pem")); err == nil {
		t.Error("Kbuild has made a key")
	}
	if err := os.WriteFile(tree.config(), config, 0o644); err != nil {
		t.Fatal(err)
	}
	u.run(t, tree.Objtree, "make", u.jobs)
}

// token signs with a key in a token, from which Kbuild links the certificate.
func (u *user) token(t *testing.T, tree *Tree) {
	config, err := os.ReadFile(tree.config())
	if err != nil {
		t.Fatal(err)
	}
	hsm := testmod.NewSoftHSM(t, "kernel")
	key := testmod.NewKey(t, "ecdsa:p384")
	hsm.Import(t, "kernel", "modules", "01", key)
	hsm.ImportCertificate(t, "kernel", "modules", "01", key.Certificate)
	v := variant{keygen.ECDSAP384, compress.XZ}
	appendTo(t, tree.config(), "CONFIG_MODULE_SIG_KEY=\"pkcs11:token=kernel;object=modules\"\n"+v.config())
	without, with := *u, *u
	without.environ = append(slices.Clone(u.environ), "SOFTHSM2_CONF="+hsm.Conf)
	with.environ = append(slices.Clone(without.environ), "KBUILD_SIGN_PIN="+testmod.PIN)
	root := t.TempDir()
	u.run(t, tree.Objtree, "make", "olddefconfig")
	out := with.run(t, tree.Objtree, "make", u.jobs)
	out += with.run(t, tree.Objtree, "make", u.jobs, "INSTALL_MOD_PATH="+root, "modules_install")
	if !strings.Contains(out, "modsign: signed ") || strings.Contains(out, testmod.PIN) {
		t.Errorf("make says %s", out)
	}
	modlib, modules := installed(t, root)
	v.boot(t, tree, modlib, modules)

	// Without the PIN, what is installed stays.
	before := hash(t, root)
	out, err = without.try(tree.Objtree, "make", u.jobs, "INSTALL_MOD_PATH="+root, "modules_install")
	if err == nil || !strings.Contains(out, "KBUILD_SIGN_PIN") {
		t.Errorf("make without the PIN: %v, %s", err, out)
	}
	sameFiles(t, hash(t, root), before, nil)
	if err := os.WriteFile(tree.config(), config, 0o644); err != nil {
		t.Fatal(err)
	}
	u.run(t, tree.Objtree, "make", u.jobs)
}

// kills kills each part at some point. The next make reports this, and repairs the
// tree.
func (u *user) kills(t *testing.T, tree *Tree) {
	root := t.TempDir()
	status, err := u.agent(tree.Objtree)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(status.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if out, err := u.try(tree.Objtree, "make", "INSTALL_MOD_PATH="+root, "modules_install"); err == nil ||
		!strings.Contains(out, "without a receipt") {
		t.Errorf("make modules_install after the agent was killed: %v %s", err, out)
	}
	if got := hash(t, root); len(got) != 0 {
		t.Errorf("without a key was installed: %v", got)
	}
	if out := u.run(t, tree.Objtree, "make", u.jobs); !strings.Contains(out, "a new one-time key is made") {
		t.Errorf("make after the agent was killed: %s", out)
	}
	u.run(t, tree.Objtree, "make", "INSTALL_MOD_PATH="+root, "modules_install")
	u.trusted(t, tree, root)

	// At several moments; the longest is after the end.
	met := 0
	for _, whom := range []string{"make", "modsign"} {
		for delay := 40 * time.Millisecond; delay < 10*time.Second; delay = delay * 5 / 2 {
			root := t.TempDir()
			cmd := u.command(tree.Objtree, "make", "INSTALL_MOD_PATH="+root, "modules_install")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(delay)
			killAll(t, cmd.Process.Pid, whom)
			if cmd.Wait() == nil {
				u.trusted(t, tree, root)
				break
			}
			settle(t, cmd.Process.Pid)
			modlib, err := filepath.Glob(filepath.Join(root, "lib/modules/*"))
			if err != nil {
				t.Fatal(err)
			}
			next := u.run(t, tree.Objtree, "make", u.jobs)
			switch warned := strings.Contains(next, "may be unsigned"); {
			case warned && len(modlib) == 1:
				met++
			case warned:
				t.Errorf("%s killed after %v, before it has begun; the next make says: %s", whom, delay, next)
			case len(modlib) == 1: // it had finished
				u.trusted(t, tree, root)
			}
			if out := u.run(t, tree.Objtree, "make", "INSTALL_MOD_PATH="+root, "modules_install"); strings.Contains(out,
				"may be unsigned") {
				t.Errorf("the make that repairs it says %s", out)
			}
			u.trusted(t, tree, root)
			if out := u.run(t, tree.Objtree, "make", u.jobs); strings.Contains(out, "may be unsigned") {
				t.Errorf("all is well, and make says %s", out)
			}
		}
	}
	if met == 0 {
		t.Error("no kill came while modules were being installed")
	}
}

// killAll kills the processes with a name in a process group.
func killAll(t testing.TB, group int, name string) {
	t.Helper()
	for _, pid := range inGroup(t, group) {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err == nil && strings.TrimSpace(string(comm)) == name {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// settle waits until all processes of a process group have ended.
func settle(t testing.TB, group int) {
	t.Helper()
	for range 600 {
		if len(inGroup(t, group)) == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("what was killed goes on")
}

func inGroup(t testing.TB, group int) (pids []int) {
	t.Helper()
	out, err := exec.Command(testmod.Program(t, "ps", "procps"), "-e", "-o", "pid=,pgid=,stat=").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		var pid, pgid int
		var stat string
		if _, err := fmt.Sscan(line, &pid, &pgid, &stat); err == nil && pgid == group && stat[0] != 'Z' {
			pids = append(pids, pid)
		}
	}
	return pids
}
