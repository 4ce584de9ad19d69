package integrations

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

var bitbakeVariable = regexp.MustCompile(`\$\{([A-Z0-9_]+)\}`)

// shellFunction takes a shell function out of a class and expands BitBake's variables, as BitBake
// does before it gives the function to sh.
func shellFunction(t *testing.T, class, name string, variables map[string]string) string {
	t.Helper()
	_, text, found := strings.Cut(class, "\n"+name+"() {\n")
	body, _, ended := strings.Cut(text, "\n}\n")
	if !found || !ended {
		t.Fatalf("no function %s", name)
	}
	return name + "() {\n" + bitbakeVariable.ReplaceAllStringFunc(body, func(v string) string {
		value, known := variables[v[2:len(v)-1]]
		if !known {
			t.Errorf("%s uses the variable %s", name, v)
		}
		return value
	}) + "\n}\n"
}

// TestYocto runs the function of the class with sh under pseudo, as do_package does.
func TestYocto(t *testing.T) {
	testmod.Slow(t, "it runs pseudo")
	t.Parallel()
	class := read(t, "yocto/modsign.bbclass")
	_, functions, _ := strings.Cut(class, "\nmodsign_sign_modules() {\n")
	shellcheck(t, "sh", "modsign_sign_modules() {\n"+functions+"modsign_sign_modules\n")
	// The one expression of Python, with what BitBake gives it.
	_, text, _ := strings.Cut(class, "${@")
	text, _, _ = strings.Cut(text, "}\"\n")
	for value, want := range map[string]string{"": "\n", "/a/cert.pem": "/a/cert.pem:True\n"} {
		got := string(testmod.Run(t, testmod.Program(t, "python3", "python3"), "-c", `import sys
class d:
    def getVar(name):
        assert name == "MODSIGN_X509"
        return sys.argv[2]
print(eval(sys.argv[1]))`, text, value))
		if got != want {
			t.Errorf("%s is %q for %q, want %q", text, got, value, want)
		}
	}
	private, cert := testmod.NewKey(t, "rsa:2048").Files(t)
	_, other := testmod.NewKey(t, "ecdsa:p256").Files(t)

	for name, test := range map[string]struct {
		lib, compression, cert string
		code                   int
		says                   string
	}{
		"plain":                          {"lib", "plain", cert, 0, ""},
		"compressed, in a merged /usr":   {"usr/lib", "xz", cert, 0, ""},
		"no modules":                     {"usr/lib", "", cert, 0, ""},
		"the certificate of another key": {"lib", "plain", other, 1, "ERROR: modules are not signed"},
		"no certificate":                 {"lib", "plain", "", 1, "ERROR: MODSIGN_PRIVKEY and MODSIGN_X509"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := publicDir(t)
			pkgd := filepath.Join(dir, "package")
			if test.compression != "" {
				install(t, filepath.Join(pkgd, test.lib, "modules", kver), test.compression)
			} else {
				write(t, filepath.Join(pkgd, test.lib, "modules", kver, "modules.order"), "", 0o644)
			}
			write(t, filepath.Join(dir, "key"), read(t, private), 0o600)
			variables := map[string]string{"PKGD": pkgd, "T": filepath.Join(dir, "temp"), "MODSIGN_HASH": "sha512",
				"MODSIGN_PRIVKEY": filepath.Join(dir, "key"), "MODSIGN_X509": ""}
			if test.cert != "" {
				write(t, filepath.Join(dir, "cert"), read(t, test.cert), 0o644)
				variables["MODSIGN_X509"] = filepath.Join(dir, "cert")
			}
			script := "#!/bin/sh -e\nbbfatal() {\n\techo \"ERROR: $*\"\n\texit 1\n}\n" +
				shellFunction(t, class, "modsign_sign_modules", variables) + "modsign_sign_modules\n"
			// The files belong to root for pseudo alone. Afterwards new files come, as do_package makes them.
			write(t, filepath.Join(dir, "do_package"), `#!/bin/sh -e
chown -R 0:0 package
chmod 600 package/*/*/modules.order 2>/dev/null || true
sh -e run
mkdir -p packages-split/a/b
find package packages-split -printf '%y %U:%G %p\n'
`, 0o755)
			write(t, filepath.Join(dir, "run"), script, 0o755)
			command := []string{testmod.Program(t, "fakeroot-pseudo", "pseudo"), "./do_package"}
			if os.Geteuid() == 0 { // nobody, as BitBake refuses root
				ok(t, "", nil, "chown", "-R", "65534:65534", dir)
				command = append([]string{testmod.Program(t, "setpriv", "util-linux"), "--reuid", "65534", "--regid", "65534",
					"--clear-groups"}, command...)
			}
			r := run(t, dir, []string{"PSEUDO_LOCALSTATEDIR=" + filepath.Join(dir, "state")}, command[0], command[1:]...)
			r.refuses(t, test.code, test.says)
			if test.code != 0 {
				unsigned(t, pkgd)
				return
			}
			if test.compression != "" {
				signedBy(t, pkgd, cert)
			}
			listed := 0
			for line := range strings.Lines(r.output) {
				kind, rest, _ := strings.Cut(line, " ")
				owner, path, found := strings.Cut(strings.TrimSpace(rest), " ")
				if !found || len(kind) != 1 {
					continue // what modsign says
				}
				listed++
				info, err := os.Lstat(filepath.Join(dir, path))
				if err != nil || owner != "0:0" || info.IsDir() != (kind == "d") {
					t.Errorf("pseudo has lost track: %s (%v)", line, err)
				}
			}
			if listed < 8 {
				t.Errorf("only %d files are listed:\n%s", listed, r.output)
			}
		})
	}
}
