package debtest

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// The source package of the tests builds a program with debug information and modules
// with and without it, a package with an empty directory for modules, and an
// architecture-independent package with a module.
const (
	debControl = `Source: made
Section: kernel
Priority: optional
Maintainer: Nobody <nobody@example.org>
Standards-Version: 4.6.2
Build-Depends: debhelper-compat (= 13)%s
Rules-Requires-Root: no

Package: made
Architecture: any
Description: modules and a program

Package: made-headers
Architecture: any
Description: no modules

Package: made-all
Architecture: all
Description: a module for all architectures
`
	debChangelog = `made (1.0) unstable; urgency=medium

  * Made.

 -- Nobody <nobody@example.org>  Sat, 01 Jan 2022 00:00:00 +0000
`
	debRules = `#!/usr/bin/make -f
%%:
	dh $@%s

override_dh_auto_build:
	gcc -g -Wl,--build-id -o made made.c
	gcc -g -c -o made.o module.c
	ld -r --build-id -o debug.ko made.o

override_dh_auto_install:
	install -D -m 755 made debian/made/usr/bin/made
	install -D -m 644 debug.ko debian/made/lib/modules/6.1.0-made/extra/debug.ko
	cp modules/*.ko* debian/made/lib/modules/6.1.0-made/extra/
	install -D -m 644 made.c debian/made-headers/usr/lib/modules/6.1.0-made/build/made.c
	mkdir -p debian/made-all/usr/lib/modules/6.1.0-made
	cp modules/all.ko debian/made-all/usr/lib/modules/6.1.0-made/all.ko
%s`
)

// sourcePackage is a source package and the packages built from it.
type sourcePackage struct {
	dir     string
	modules int // number of modules in the package made

	// fakeroot builds it as an ordinary user, with fakeroot for the packages.
	fakeroot bool
}

func newSourcePackage(t testing.TB, buildDepends, with, rules string) *sourcePackage {
	t.Helper()
	testmod.Slow(t, "builds a Debian package")
	p := &sourcePackage{dir: filepath.Join(t.TempDir(), "made-1.0")}
	write(t, filepath.Join(p.dir, "debian/control"), 0o644, fmt.Sprintf(debControl, buildDepends))
	write(t, filepath.Join(p.dir, "debian/changelog"), 0o644, debChangelog)
	write(t, filepath.Join(p.dir, "debian/rules"), 0o755, fmt.Sprintf(debRules, with, rules))
	write(t, filepath.Join(p.dir, "debian/source/format"), 0o644, "3.0 (native)\n")
	write(t, filepath.Join(p.dir, "made.c"), 0o644, "#include <stdio.h>\nint main(void) { return puts(\"made\") < 0; }\n")
	write(t, filepath.Join(p.dir, "module.c"), 0o644,
		`static const char info[] __attribute__((section(".modinfo"), used)) = "license=GPL";
int made(int x) { return x + 1; }
`)
	write(t, filepath.Join(p.dir, "modules/all.ko"), 0o644, string(testmod.ELF()))
	p.modules = 2
	for i, path := range testmod.Testdata(t) {
		p.modules++
		copyFile(t, path, filepath.Join(p.dir, "modules", fmt.Sprintf("m%d-%s", i, filepath.Base(path))))
	}
	return p
}

// build runs dpkg-buildpackage with dh_modsign and its addon from the tree.
func (p *sourcePackage) build(t testing.TB, with ...string) result {
	t.Helper()
	testmod.Program(t, "dh", "debhelper")
	testmod.Program(t, "gcc", "gcc")
	bin := t.TempDir()
	if err := os.Symlink(program, filepath.Join(bin, "modsign")); err != nil {
		t.Fatal(err)
	}
	// Copies, as an ordinary user may have no access to the tree.
	if err := os.CopyFS(bin, os.DirFS(filepath.Join(scripts, "debian"))); err != nil {
		t.Fatal(err)
	}
	env := environment(append([]string{"PATH=" + bin + ":" + os.Getenv("PATH"), "PERL5LIB=" + bin}, with...)...)
	// -d: dh-sequence-modsign and debhelper-compat need not be installed as packages.
	command := []string{testmod.Program(t, "dpkg-buildpackage", "dpkg-dev"), "-us", "-uc", "-b", "-d"}
	if p.fakeroot {
		testmod.Program(t, "fakeroot", "fakeroot")
		control := filepath.Join(p.dir, "debian/control")
		write(t, control, 0o644, strings.Replace(string(read(t, control)), "Rules-Requires-Root: no",
			"Rules-Requires-Root: binary-targets", 1))
		if os.Geteuid() == 0 {
			testmod.Run(t, "chown", "-R", "65534:65534", filepath.Dir(p.dir))
			command = append([]string{testmod.Program(t, "setpriv", "util-linux"), "--reuid", "65534", "--regid", "65534",
				"--clear-groups"}, command...)
		}
	}
	return run(t, env, p.dir, command[0], command[1:]...)
}

// unpack unpacks a built package, and verifies its checksums, which a change after
// dh_md5sums would invalidate.
func (p *sourcePackage) unpack(t testing.TB, name string) string {
	t.Helper()
	found, _ := filepath.Glob(filepath.Join(filepath.Dir(p.dir), name+"_1.0_*.deb"))
	if len(found) != 1 {
		t.Fatalf("%d packages %s were built", len(found), name)
	}
	root := t.TempDir()
	testmod.Run(t, "dpkg-deb", "-R", found[0], root)
	run(t, environment(), root, "md5sum", "--check", "--quiet", "DEBIAN/md5sums").silent(t)
	return root
}

// built reports whether any package was built.
func (p *sourcePackage) built() bool {
	found, _ := filepath.Glob(filepath.Join(filepath.Dir(p.dir), "*.deb"))
	return len(found) > 0
}

func buildID(t testing.TB, path string) string {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := f.Section(".note.gnu.build-id").Data()
	if err != nil || len(b) < 16 {
		t.Fatalf("%s has no build ID (%v)", path, err)
	}
	return fmt.Sprintf("%x", b[16:])
}

func hasSection(t testing.TB, path, name string) bool {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return f.Section(name) != nil || f.Section(".z"+strings.TrimPrefix(name, ".")) != nil
}

func TestDebhelper(t *testing.T) {
	t.Parallel()
	key, cert := testmod.NewKey(t, "ecdsa:p384").Files(t)
	t.Run("environment", func(t *testing.T) {
		t.Parallel()
		p := newSourcePackage(t, ", dh-sequence-modsign", "", "")
		p.build(t, "MODSIGN_KEY="+encrypted(t, key, secret), "MODSIGN_CERT="+cert, "MODSIGN_HASH=sha384",
			"KBUILD_SIGN_PIN="+secret).want(t, 0, "all trusted")
		root := p.unpack(t, "made")
		modules := modulesIn(t, root)
		if len(modules) != p.modules {
			t.Errorf("%d modules, want %d", len(modules), p.modules)
		}
		trusted(t, cert, modules...)
		trusted(t, cert, modulesIn(t, p.unpack(t, "made-all"))...)
		p.unpack(t, "made-headers")
		out := testmod.Run(t, program, append([]string{"inspect", "--json"}, modules...)...)
		if bytes.Count(out, []byte(`"hash":"sha384"`)) != len(modules) {
			t.Errorf("not all signed with the hash that was asked for:\n%s", out)
		}
		if !hasSection(t, filepath.Join(root, "lib/modules/6.1.0-made/extra/debug.ko"), ".debug_info") {
			t.Error("a module was stripped, and nobody has asked for it")
		}
		// The program's debug package does not change.
		id := buildID(t, filepath.Join(root, "usr/bin/made"))
		if !hasSection(t, filepath.Join(p.unpack(t, "made-dbgsym"), "usr/lib/debug/.build-id", id[:2], id[2:]+".debug"),
			".debug_info") {
			t.Error("the program has no debug information any more")
		}
	})
	t.Run("options", func(t *testing.T) {
		t.Parallel()
		rules := "override_dh_modsign:\n\tdh_modsign --key=" + key + " --cert=" + cert + " --split-debug --compress=xz\n"
		p := newSourcePackage(t, "", " --with modsign", rules)
		p.build(t, "DH_VERBOSE=1", "DEB_BUILD_OPTIONS=parallel=3", "MODSIGN_KEY=/nonexistent").want(t, 0, "--jobs 3",
			"all trusted") // options take precedence
		root, debug := p.unpack(t, "made"), p.unpack(t, "made-dbgsym")
		modules := modulesIn(t, root)
		trusted(t, cert, modules...)
		for _, path := range modules {
			if !strings.HasSuffix(path, ".ko.xz") {
				t.Errorf("%s is not compressed as it was asked for", path)
			}
		}
		// Both debug files are in one package, and the package refers to them.
		module := filepath.Join(t.TempDir(), "debug.ko")
		write(t, module, 0o644, string(testmod.Run(t, testmod.Program(t, "xz", "xz-utils"), "-dc",
			filepath.Join(root, "lib/modules/6.1.0-made/extra/debug.ko.xz"))))
		if hasSection(t, module, ".debug_info") {
			t.Error("the module was not stripped")
		}
		ids := strings.Fields(string(testmod.Run(t, "sed", "-n", "s/^Build-Ids: //p",
			filepath.Join(debug, "DEBIAN/control"))))
		for _, path := range []string{module, filepath.Join(root, "usr/bin/made")} {
			id := buildID(t, path)
			if !slices.Contains(ids, id) {
				t.Errorf("Build-Ids is %q, without %s of %s", ids, id, path)
			}
			if !hasSection(t, filepath.Join(debug, "usr/lib/debug/.build-id", id[:2], id[2:]+".debug"), ".debug_info") {
				t.Errorf("the debug file of %s has no debug information", path)
			}
		}
		out := string(testmod.Run(t, testmod.Program(t, "readelf", "binutils"), "--debug-dump=info",
			filepath.Join(debug, "usr/lib/debug/lib/modules/6.1.0-made/extra/debug.ko.debug")))
		if !strings.Contains(out, "module.c") {
			t.Errorf("the module's debug file does not name its source:\n%s", out)
		}
	})
	t.Run("nostrip", func(t *testing.T) {
		t.Parallel()
		p := newSourcePackage(t, "", " --with modsign", "override_dh_modsign:\n\tdh_modsign --split-debug\n")
		p.build(t, "DEB_BUILD_OPTIONS=nostrip", "MODSIGN_KEY="+key, "MODSIGN_CERT="+cert).want(t, 0)
		module := filepath.Join(p.unpack(t, "made"), "lib/modules/6.1.0-made/extra/debug.ko")
		trusted(t, cert, module)
		if !hasSection(t, module, ".debug_info") {
			t.Error("the module was stripped in spite of nostrip")
		}
	})
	t.Run("noautodbgsym", func(t *testing.T) {
		t.Parallel()
		p := newSourcePackage(t, "", " --with modsign", "override_dh_modsign:\n\tdh_modsign --split-debug\n")
		p.build(t, "DEB_BUILD_OPTIONS=noautodbgsym", "MODSIGN_KEY="+key, "MODSIGN_CERT="+cert).want(t, 0)
		module := filepath.Join(p.unpack(t, "made"), "lib/modules/6.1.0-made/extra/debug.ko")
		trusted(t, cert, module)
		if hasSection(t, module, ".debug_info") {
			t.Error("the module was not stripped")
		}
		if found, _ := filepath.Glob(filepath.Join(filepath.Dir(p.dir), "*-dbgsym_*")); len(found) > 0 {
			t.Errorf("%s were built in spite of noautodbgsym", found)
		}
	})
}

// Anything that would leave a module without a good signature fails the build, with an
// error that names the module.
func TestDebhelperFails(t *testing.T) {
	t.Parallel()
	key, cert := testmod.NewKey(t, "ecdsa:p384").Files(t)
	_, other := testmod.NewKey(t, "ecdsa:p256").Files(t)
	environ := []string{"MODSIGN_KEY=" + key, "MODSIGN_CERT=" + cert}
	for _, test := range []struct {
		name    string
		prepare func(*sourcePackage)
		with    string
		rules   string
		env     []string
		want    []string
	}{
		{
			name: "garbage",
			prepare: func(p *sourcePackage) {
				write(t, filepath.Join(p.dir, "modules/garbage.ko.xz"), 0o644, "no module at all")
			},
			with: " --with modsign", env: environ, want: []string{"debian/made/lib/modules/6.1.0-made/extra/garbage.ko.xz: ",
				"dh_modsign"},
		},
		{name: "no key", with: " --with modsign", want: []string{"made has kernel modules", "MODSIGN_KEY",
			"dh_modsign --key=FILE"}},
		{name: "a key that is not there", with: " --with modsign", env: []string{"MODSIGN_KEY=/nonexistent"},
			want: []string{"/nonexistent"}},
		{name: "a certificate of another key", with: " --with modsign",
			env: []string{"MODSIGN_KEY=" + key, "MODSIGN_CERT=" + other}, want: []string{other}},
		{name: "excluded", with: " --with modsign", rules: "override_dh_modsign:\n\tdh_modsign -Xall.ko\n", env: environ,
			want: []string{"all.ko", "-X"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := newSourcePackage(t, "", test.with, test.rules)
			if test.prepare != nil {
				test.prepare(p)
			}
			r := p.build(t, test.env...)
			if r.code == 0 || p.built() {
				t.Errorf("the build has not failed:\n%s", r.output)
			}
			r.want(t, r.code, test.want...)
		})
	}
}

// In every sequence, after the commands that make the debug packages, and before the
// checksums.
func TestDebhelperOrder(t *testing.T) {
	t.Parallel()
	testmod.Program(t, "dh", "debhelper")
	p := newSourcePackage(t, "", " --with modsign", "")
	for sequence, before := range map[string][]string{"binary-arch": {"dh_install", "dh_fixperms", "dh_dwz", "dh_strip"},
		"binary-indep": {"dh_install", "dh_fixperms"}, "binary": {"dh_strip"}} {
		r := run(t, environment("PERL5LIB="+filepath.Join(scripts, "debian")), p.dir, "dh", sequence, "--with", "modsign",
			"--no-act")
		r.want(t, 0)
		var order []string
		for line := range strings.Lines(r.output) {
			if fields := strings.Fields(line); len(fields) > 0 {
				order = append(order, fields[0])
			}
		}
		at := slices.Index(order, "dh_modsign")
		if at < 0 || slices.Contains(order[at+1:], "dh_modsign") {
			t.Fatalf("%s runs %q", sequence, order)
		}
		for _, name := range before {
			if i := slices.Index(order, name); i < 0 || i > at {
				t.Errorf("%s: %s is not before dh_modsign: %q", sequence, name, order)
			}
		}
		for _, name := range []string{"dh_gencontrol", "dh_md5sums", "dh_builddeb"} {
			if i := slices.Index(order, name); i < at {
				t.Errorf("%s: %s is not behind dh_modsign: %q", sequence, name, order)
			}
		}
	}
}
