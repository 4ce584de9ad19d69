package debtest

import (
	"bytes"
	"compress/gzip"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

const packageVersion = "7.8~rc9"

// packages are the results of scripts/package, by the beginning of their names.
type packages struct{ modsign, dh, rpm string }

func buildPackages(t testing.TB, umask string, with ...string) packages {
	t.Helper()
	for name, from := range map[string]string{"dpkg-deb": "dpkg", "rpmbuild": "rpm", "pod2man": "perl", "git": "git"} {
		testmod.Program(t, name, from)
	}
	dir := filepath.Join(t.TempDir(), "a directory", "new")
	cmd := exec.Command("sh", "-euc", "umask "+umask+`; exec "$@"`, "sh",
		filepath.Join(scripts, "package"), "--version", packageVersion, dir)
	cmd.Env = environment(append([]string{"SOURCE_DATE_EPOCH=1700000000"}, with...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("%s: %v\n%s", cmd, err, &stderr)
	}
	files := strings.Fields(strings.ReplaceAll(string(out), dir+"/", ""))
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 || len(files) != 3 {
		t.Fatalf("%d files in %s, and %q are named", len(entries), dir, files)
	}
	p := packages{filepath.Join(dir, files[0]), filepath.Join(dir, files[1]), filepath.Join(dir, files[2])}
	for _, path := range []string{p.modsign, p.dh, p.rpm} {
		if info, err := os.Stat(path); err != nil || info.Size() == 0 {
			t.Fatalf("%s: %v", path, err)
		}
	}
	return p
}

func TestPackages(t *testing.T) {
	testmod.Slow(t, "builds the packages of modsign")
	t.Parallel()
	built := buildPackages(t, "022")
	t.Run("names", func(t *testing.T) {
		t.Parallel()
		for path, want := range map[string]string{
			built.modsign: `^modsign_7\.8~rc9-1_[a-z0-9]+\.deb$`,
			built.dh:      `^dh-modsign_7\.8~rc9-1_all\.deb$`,
			built.rpm:     `^modsign-7\.8~rc9-1\.[a-z0-9_]+\.rpm$`,
		} {
			if name := filepath.Base(path); !regexp.MustCompile(want).MatchString(name) {
				t.Errorf("%s, want %s", name, want)
			}
		}
	})
	t.Run("again", func(t *testing.T) {
		t.Parallel()
		// Another directory, umask, language and time zone give the same bytes.
		again := buildPackages(t, "077", "TZ=JST-9", "LC_ALL=POSIX")
		same(t, again.modsign, built.modsign)
		same(t, again.dh, built.dh)
		same(t, again.rpm, built.rpm)
	})
	t.Run("deb", func(t *testing.T) { t.Parallel(); built.testDeb(t) })
	t.Run("dpkg", func(t *testing.T) { t.Parallel(); built.testDpkg(t) })
	t.Run("rpm", func(t *testing.T) { t.Parallel(); built.testRPM(t) })
	t.Run("dh-modsign", func(t *testing.T) { t.Parallel(); built.testDh(t) })
	t.Run("lintian", func(t *testing.T) {
		t.Parallel()
		run(t, environment(), t.TempDir(), testmod.Program(t, "lintian", "lintian"), "--no-cfg", "--allow-root", "--fail-on",
			"error,warning", built.modsign, built.dh).silent(t)
	})
}

// both lists the files that must be in both packages, with their modes.
var both = map[string]fs.FileMode{
	"etc/dkms/framework.conf.d/00-modsign.conf":        0o644,
	"etc/modsign/modsign.conf":                         0o644,
	"usr/bin/modsign":                                  0o755,
	"usr/lib/kernel/install.d/45-modsign.install":      0o755,
	"usr/lib/modsign/hook":                             0o755,
	"usr/lib/modsign/sign-file":                        0o755,
	"usr/lib/rpm/macros.d/macros.modsign":              0o644,
	"usr/lib/rpm/modsign/mod-sign":                     0o755,
	"usr/lib/rpm/modsign/brp-modsign":                  0o755,
	"usr/share/bash-completion/completions/modsign":    0o644,
	"usr/share/fish/vendor_completions.d/modsign.fish": 0o644,
	"usr/share/man/man1/modsign.1.gz":                  0o644,
	"usr/share/man/man1/modsign-sign.1.gz":             0o644,
	"usr/share/doc/modsign/third-party.gz":             0o644,
	"usr/share/doc/modsign/exit-codes.md":              0o644,
}

var debAlone = map[string]fs.FileMode{
	"etc/kernel/postinst.d/dkms-modsign":        0o755,
	"etc/kernel/header_postinst.d/dkms-modsign": 0o755,
	"usr/share/zsh/vendor-completions/_modsign": 0o644,
	"usr/share/doc/modsign/copyright":           0o644,
	"usr/share/doc/modsign/changelog.gz":        0o644,
	"usr/share/doc/modsign/changelog.Debian.gz": 0o644,
	"usr/share/doc/modsign/README.Debian":       0o644,
	"usr/share/lintian/overrides/modsign":       0o644,
}

var rpmAlone = map[string]fs.FileMode{
	"usr/share/zsh/site-functions/_modsign": 0o644,
	"usr/share/licenses/modsign/LICENSE":    0o644,
	"usr/share/doc/modsign/CHANGELOG.md":    0o644,
}

// checkTree checks the files below a root into which a package was unpacked.
func checkTree(t testing.TB, root string, want ...map[string]fs.FileMode) {
	t.Helper()
	found := make(map[string]fs.FileMode)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		switch {
		case d.IsDir() && name != "." && info.Mode().Perm() != 0o755 || !d.IsDir() && !info.Mode().IsRegular():
			t.Errorf("%s is %s", name, info.Mode())
		case info.Mode().IsRegular():
			found[name] = info.Mode()
			if mode := info.Mode(); mode != 0o644 && mode != 0o755 {
				t.Errorf("%s is %s", name, mode)
			}
			if when := info.ModTime().Unix(); when != 1700000000 {
				t.Errorf("%s is of %d", name, when)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, files := range want {
		for name, mode := range files {
			if got, ok := found[name]; !ok || got != mode {
				t.Errorf("%s is %s (there: %t), want %s", name, got, ok, mode)
			}
		}
	}
	pages, _ := filepath.Glob(filepath.Join(scripts, "../docs/man/*.1"))
	for _, page := range pages {
		name := filepath.Join("usr/share/man/man1", filepath.Base(page)+".gz")
		if _, ok := found[name]; !ok {
			t.Errorf("%s is missing", name)
			continue
		}
		b := read(t, filepath.Join(root, name))
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(z); err != nil || !bytes.Equal(text, read(t, page)) {
			t.Errorf("%s is not the page (%v)", name, err)
		}
	}
	if len(pages) == 0 {
		t.Error("there are no man pages")
	}
	// The program is complete, has this version, and needs no libraries of the system.
	binary := filepath.Join(root, "usr/bin/modsign")
	run(t, environment(), "", binary, "version").want(t, 0, "modsign "+packageVersion+" (")
	if out := testmod.Run(t, testmod.Program(t, "readelf", "binutils"), "--program-headers", binary); bytes.Contains(out,
		[]byte("INTERP")) {
		t.Error("the program is not static")
	}
	if b := read(t, binary); bytes.Contains(b, []byte(filepath.Dir(scripts)+"/")) {
		t.Error("the program tells where it was built")
	}
	run(t, environment(), "", "bash", "-euc", `. "$1"; complete -p modsign`, "bash",
		filepath.Join(root, "usr/share/bash-completion/completions/modsign")).want(t, 0, "__start_modsign")
	third := testmod.Run(t, "gzip", "-dc", filepath.Join(root, "usr/share/doc/modsign/third-party.gz"))
	for path := range strings.Lines(string(testmod.Run(t, "go", "list", "-deps", "-f",
		"{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}", "../../cmd/modsign"))) {
		if path = strings.TrimSpace(path); path != "" && !bytes.Contains(third, []byte("==== "+path+" ")) {
			t.Errorf("the licence of %s is missing", path)
		}
	}
}

func (p packages) testDeb(t *testing.T) {
	root := t.TempDir()
	testmod.Run(t, "dpkg-deb", "-x", p.modsign, root)
	checkTree(t, root, both, debAlone)
	for line := range strings.Lines(string(testmod.Run(t, "dpkg-deb", "-c", p.modsign))) {
		if fields := strings.Fields(line); fields[1] != "root/root" {
			t.Errorf("not root's: %s", line)
		}
	}
	control := t.TempDir()
	testmod.Run(t, "dpkg-deb", "-e", p.modsign, control)
	// The package runs nothing at installation.
	entries, _ := os.ReadDir(control)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{"conffiles", "control", "md5sums"}; !slices.Equal(names, want) {
		t.Errorf("%q in the control archive, want %q", names, want)
	}
	run(t, environment(), root, "md5sum", "--check", "--quiet", filepath.Join(control, "md5sums")).silent(t)
	// Files in /etc belong to the administrator.
	var inEtc []string
	for _, files := range []map[string]fs.FileMode{both, debAlone} {
		for name := range maps.Keys(files) {
			if strings.HasPrefix(name, "etc/") {
				inEtc = append(inEtc, "/"+name)
			}
		}
	}
	slices.Sort(inEtc)
	inEtc = append(inEtc, "remove-on-upgrade /etc/dkms/framework.conf.d/modsign.conf") // its former name
	if got := strings.Split(strings.TrimSpace(string(read(t, filepath.Join(control, "conffiles")))),
		"\n"); !slices.Equal(got, inEtc) {
		t.Errorf("conffiles are %q, want %q", got, inEtc)
	}
}

// testDpkg installs, upgrades, removes and purges the package with dpkg, in a root of
// its own.
func (p packages) testDpkg(t *testing.T) {
	s := install(t, newest(t))
	for _, name := range []string{"info", "updates", "triggers"} {
		if err := os.MkdirAll(filepath.Join(s.root, "var/lib/dpkg", name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(s.root, "var/lib/dpkg/status"), 0o644, "")
	dpkg := func(args ...string) {
		t.Helper()
		env := environment("DEBIAN_FRONTEND=noninteractive", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
		run(t, env, "", "dpkg", append([]string{"--root=" + s.root, "--log=/dev/null", "--force-not-root",
			"--force-unsafe-io"}, args...)...).want(t, 0)
	}
	dpkg("--install", p.modsign)
	at := func(name string) string { return filepath.Join(s.root, name) }
	env := environment("MODSIGN_ROOT="+s.root, "MODSIGN="+at("usr/bin/modsign"),
		"MODSIGN_HOOK="+at("usr/lib/modsign/hook"))
	hook := func() result { return run(t, env, "", at("etc/kernel/postinst.d/dkms-modsign"), s.version, s.image) }
	plugin := func() result {
		return run(t, env, "", at("usr/lib/kernel/install.d/45-modsign.install"), "add", s.version, "/boot/entry", s.image)
	}

	// The installed hook works, and prints nothing if nothing is wrong.
	hook().silent(t)
	plugin().silent(t)
	unsign(t, s.files[0])
	hook().want(t, 0, s.files[0]+": not signed")
	plugin().want(t, 0, s.files[0]+": not signed")
	key, cert := testmod.NewKey(t, "ecdsa:p256").Files(t)
	run(t, env, "", at("usr/lib/modsign/sign-file"), "sha256", key, cert,
		testmod.WriteFile(t, "m.ko", testmod.ELF())).silent(t)

	// The administrator's changes stay.
	s.configure(t, "on_failure=fail")
	dpkg("--install", p.modsign)
	hook().want(t, 1, s.files[0]+": not signed")
	dpkg("--remove", "modsign")
	for _, name := range []string{"etc/modsign/modsign.conf", "etc/kernel/postinst.d/dkms-modsign",
		"etc/dkms/framework.conf.d/00-modsign.conf"} {
		if _, err := os.Stat(at(name)); err != nil {
			t.Error(err)
		}
	}
	hook().silent(t)
	dpkg("--purge", "modsign")
	for _, name := range []string{"etc", "usr"} {
		left, _ := filepath.Glob(at(name) + "/*/*")
		if len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}
}

func (p packages) testRPM(t *testing.T) {
	rpm := func(args ...string) string {
		t.Helper()
		return string(testmod.Run(t, testmod.Program(t, "rpm", "rpm"), args...))
	}
	for line := range strings.Lines(rpm("-qp", "--queryformat",
		"[%{FILENAMES} %{FILEUSERNAME}:%{FILEGROUPNAME} <%{FILEFLAGS:fflags}>\n]", p.rpm)) {
		fields := strings.Fields(line)
		name, owner, flags := fields[0], fields[1], fields[2]
		if owner != "root:root" {
			t.Errorf("%s is %s", name, owner)
		}
		// c and n: configuration that is not replaced.
		if config := strings.Contains(flags, "c") && strings.Contains(flags,
			"n"); config != (strings.HasPrefix(name, "/etc/") && strings.HasSuffix(name, ".conf")) {
			t.Errorf("%s has the flags %s", name, flags)
		}
		if doc := strings.Contains(flags, "d"); doc != (strings.HasPrefix(name, "/usr/share/man/") ||
			strings.HasPrefix(name, "/usr/share/doc/") && name != "/usr/share/doc/modsign") {
			t.Errorf("%s has the flags %s", name, flags)
		}
	}
	if out := rpm("-qp", "--scripts", "--triggers", p.rpm); out != "" {
		t.Errorf("something runs when it is installed:\n%s", out)
	}
	if out := rpm("-qp", "--requires", p.rpm); !strings.Contains(out, "/bin/sh\n") {
		t.Errorf("it needs:\n%s", out)
	}
	if out := rpm("-qp", "--queryformat", "%{BUILDTIME} %{BUILDHOST} %{LICENSE}",
		p.rpm); out != "1700000000 localhost Apache-2.0" {
		t.Error(out)
	}

	root := t.TempDir()
	in := []string{"--root", root, "--dbpath", "/rpmdb", "--nodeps"}
	rpm(append(in, "--install", "--ignorearch", p.rpm)...)
	rpm(append(in, "--verify", "modsign")...)
	if err := os.RemoveAll(filepath.Join(root, "rpmdb")); err != nil {
		t.Fatal(err)
	}
	checkTree(t, root, both, rpmAlone)
	for _, name := range []string{"etc/kernel/postinst.d", "usr/bin/dh_modsign"} { // Debian's names
		if _, err := os.Stat(filepath.Join(root, name)); err == nil {
			t.Errorf("%s is in the RPM", name)
		}
	}
}

func (p packages) testDh(t *testing.T) {
	root := t.TempDir()
	testmod.Run(t, "dpkg-deb", "-x", p.dh, root)
	same(t, filepath.Join(root, "usr/bin/dh_modsign"), filepath.Join(scripts, "debian/dh_modsign"))
	page := string(testmod.Run(t, testmod.Program(t, "man", "man-db"), "--local-file",
		filepath.Join(root, "usr/share/man/man1/dh_modsign.1.gz")))
	for _, word := range []string{"dh_modsign - sign the kernel modules of packages", "--split-debug", "MODSIGN_KEY",
		"KBUILD_SIGN_PIN"} {
		if !strings.Contains(page, word) {
			t.Errorf("the page does not say %q:\n%s", word, page)
		}
	}
	fields := string(testmod.Run(t, "dpkg-deb", "-f", p.dh, "Provides", "Depends"))
	for _, word := range []string{"dh-sequence-modsign", "debhelper (>= 13)", "modsign (>= " + packageVersion + "-1)"} {
		if !strings.Contains(fields, word) {
			t.Errorf("%q is missing in:\n%s", word, fields)
		}
	}
	// The addon works from its installed directory.
	source := newSourcePackage(t, "", " --with modsign", "")
	run(t, environment("PERL5LIB="+filepath.Join(root, "usr/share/perl5")), source.dir, "dh", "binary", "--with",
		"modsign", "--no-act").want(t, 0, "dh_modsign")
}

// Without --version, git determines the version. An invalid version is rejected.
func TestPackageArguments(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--version"}, {"--version", "1-2"}, {"--version", "v"}, {"--version=x y"},
		{"--help"}} {
		if r := run(t, environment(), t.TempDir(), filepath.Join(scripts, "package"), args...); r.code == 0 ||
			!strings.HasPrefix(r.output, "package: ") {
			t.Errorf("%q: exit code %d:\n%s", args, r.code, r.output)
		}
	}
}
