//go:build !race

package rpmtest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// tree makes a build root with a module in each of the directories, and returns its
// path, which contains characters that are special in shells.
func tree(t *testing.T, dirs ...string) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "build 'root' $HOME *")
	for _, dir := range dirs {
		write(t, filepath.Join(root, dir, "first.ko"), testmod.ELF(), 0o744)
		write(t, filepath.Join(root, dir, "a b", "-second'.ko"), testmod.ELF(), 0o644)
	}
	return root
}

func write(t *testing.T, path string, data []byte, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
}

// keyPair writes a key and its certificate in the form of the kernel's build.
func keyPair(t *testing.T, dir, suffix string, key *testmod.Key) {
	t.Helper()
	write(t, filepath.Join(dir, "certs/signing_key.pem"+suffix), key.KeyPEM, 0o600)
	write(t, filepath.Join(dir, "certs/signing_key.x509"+suffix), key.Certificate.Raw, 0o644)
}

// signed fails the test unless a directory has exactly count modules, all with this
// file name ending, mode 0644 and a signature by the key.
func signed(t *testing.T, dir string, count int, ending string, key *testmod.Key) {
	t.Helper()
	found := modules(t, dir)
	if len(found) != count {
		t.Errorf("%s has %q, want %d", dir, found, count)
	}
	for _, path := range found {
		info, err := os.Stat(path)
		if err != nil || info.Mode() != 0o644 || !strings.HasSuffix(path, ".ko"+ending) {
			t.Errorf("%s: mode %v (%v), want the ending .ko%s", path, info.Mode(), err, ending)
		}
		if signer := modinfo(t, "signer", path); signer != key.Certificate.Subject.CommonName {
			t.Errorf("%s is signed by %q", path, signer)
		}
	}
	testmod.Run(t, modsign(t), "verify", "--cert", testmod.WriteFile(t, "cert.der", key.Certificate.Raw), dir)
}

// unsigned fails the test if any module below a directory is signed.
func unsigned(t *testing.T, dir string) {
	t.Helper()
	for _, path := range modules(t, dir) {
		if signer := modinfo(t, "signer", path); signer != "" {
			t.Errorf("%s is signed by %q", path, signer)
		}
	}
}

// refuses fails the test unless a helper ended with the status and its output contains
// all words.
func refuses(t *testing.T, out string, code, want int, words ...string) {
	t.Helper()
	if code != want {
		t.Errorf("exit status %d, want %d", code, want)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			t.Errorf("it does not say %q", w)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}

func TestModSign(t *testing.T) {
	testmod.Slow(t, "it runs rpmbuild")
	t.Parallel()
	key, other := testmod.NewKey(t, "ecdsa:p384"), testmod.NewKey(t, "rsa:2048")
	private, cert := key.Files(t)
	_, otherCert := other.Files(t)
	env := []string{"MODSIGN=" + modsign(t), "RPM_BUILD_NCPUS=2"}
	modSign := func(t *testing.T, dir string, env []string, args ...string) (string, int) {
		t.Helper()
		return run(t, dir, env, helper(t, "mod-sign"), args...)
	}

	t.Run("signs", func(t *testing.T) {
		t.Parallel()
		dir := tree(t, "lib/modules/1")
		if out, code := modSign(t, "", env, private, cert, dir+"/"); code != 0 {
			t.Fatalf("exit status %d:\n%s", code, out)
		}
		signed(t, dir, 2, "", key)
	})
	t.Run("a directory that looks like an option", func(t *testing.T) {
		t.Parallel()
		dir := tree(t, "-k")
		if out, code := modSign(t, dir, env, private, cert, "-k"); code != 0 {
			t.Fatalf("exit status %d:\n%s", code, out)
		}
		signed(t, dir, 2, "", key)
	})
	t.Run("the hash of the kernel's configuration", func(t *testing.T) {
		t.Parallel()
		dir := tree(t, "modules")
		write(t, filepath.Join(dir, ".config"),
			[]byte("# CONFIG_MODULE_SIG_SHA512 is not set\nCONFIG_MODULE_SIG_HASH=\"sha384\"\n"), 0o644)
		if out, code := modSign(t, dir, env, private, cert, "modules"); code != 0 {
			t.Fatalf("exit status %d:\n%s", code, out)
		}
		if hash := modinfo(t, "sig_hashalgo", filepath.Join(dir, "modules/first.ko")); hash != "sha384" {
			t.Errorf("signed with %s", hash)
		}
	})
	t.Run("one bad module", func(t *testing.T) {
		t.Parallel()
		dir := tree(t, "m")
		write(t, filepath.Join(dir, "m/garbage.ko"), []byte("no ELF file\n"), 0o644)
		out, code := modSign(t, "", env, private, cert, dir)
		refuses(t, out, code, 3, "m/garbage.ko")
	})
	t.Run("one module that the signer passes over", func(t *testing.T) {
		t.Parallel()
		dir := tree(t, "m")
		// A faulty signer; verification is real.
		faulty := filepath.Join(t.TempDir(), "modsign")
		write(t, faulty, []byte(`#!/bin/bash
if [[ $1 == sign ]]; then
	kept=$(mktemp)
	cp -p "${@: -1}/m/first.ko" "$kept"
	"`+modsign(t)+`" "$@"
	mv "$kept" "${@: -1}/m/first.ko"
else
	exec "`+modsign(t)+`" "$@"
fi
`), 0o755)
		out, code := modSign(t, "", []string{"MODSIGN=" + faulty}, private, cert, dir)
		refuses(t, out, code, 4, "m/first.ko", "not signed")
	})
	t.Run("as many at once as rpm says", func(t *testing.T) {
		t.Parallel()
		dir, calls := tree(t, "m"), filepath.Join(t.TempDir(), "calls")
		recorder := filepath.Join(t.TempDir(), "modsign")
		write(t, recorder, []byte("#!/bin/bash\necho \"$*\" >>"+calls+"\nexec "+modsign(t)+" \"$@\"\n"), 0o755)
		if out, code := modSign(t, "", []string{"MODSIGN=" + recorder, "RPM_BUILD_NCPUS=3"}, private, cert, dir); code != 0 {
			t.Fatalf("exit status %d:\n%s", code, out)
		}
		data, err := os.ReadFile(calls)
		if err != nil || strings.Count(string(data), " --jobs 3 ") != 2 {
			t.Errorf("modsign was called as (%v)\n%s", err, data)
		}
	})
	t.Run("the certificate of another key", func(t *testing.T) {
		t.Parallel()
		dir := tree(t, "m")
		out, code := modSign(t, "", env, private, otherCert, dir)
		refuses(t, out, code, 1, "cert.pem")
		unsigned(t, dir)
	})
	t.Run("no module", func(t *testing.T) {
		t.Parallel()
		out, code := modSign(t, "", env, private, cert, t.TempDir())
		refuses(t, out, code, 1, "no kernel module")
	})
	for name, test := range map[string]struct {
		args []string
		code int
		word string
	}{
		"no arguments":      {nil, 2, "usage: mod-sign KEY CERT DIR"},
		"two arguments":     {[]string{private, cert}, 2, "usage: mod-sign KEY CERT DIR"},
		"four arguments":    {[]string{private, cert, ".", "."}, 2, "usage: mod-sign KEY CERT DIR"},
		"no such key":       {[]string{"/nonexistent/key", cert, "."}, 1, "no such key: /nonexistent/key"},
		"no such cert":      {[]string{private, "/nonexistent/cert", "."}, 1, "no such certificate: /nonexistent/cert"},
		"no such directory": {[]string{private, cert, "/nonexistent/dir"}, 1, "no such directory: /nonexistent/dir"},
		"an empty key":      {[]string{"", cert, "."}, 1, "no key"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, code := modSign(t, t.TempDir(), env, test.args...)
			refuses(t, out, code, test.code, test.word)
		})
	}
	t.Run("no modsign", func(t *testing.T) {
		t.Parallel()
		out, code := modSign(t, "", []string{"MODSIGN=/nonexistent/modsign"}, private, cert, ".")
		refuses(t, out, code, 1, "the program /nonexistent/modsign is missing")
	})
}

// TestBrp runs brp-modsign on build roots without rpmbuild.
func TestBrp(t *testing.T) {
	testmod.Slow(t, "runs the helper dozens of times")
	t.Parallel()
	plain, debug := testmod.NewKey(t, "ecdsa:p384"), testmod.NewKey(t, "rsa:2048")
	private, cert := plain.Files(t)
	brp := func(t *testing.T, cwd, root string, args ...string) (string, int) {
		t.Helper()
		return run(t, cwd, []string{"MODSIGN=" + modsign(t), "RPM_BUILD_ROOT=" + root}, helper(t, "brp-modsign"), args...)
	}
	for name, root := range map[string]string{"no build root": "", "the system": "/", "an empty build root": t.TempDir()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if out, code := brp(t, "", root, "--debuginfo"); code != 0 || out != "" {
				t.Errorf("exit status %d: %q", code, out)
			}
		})
	}
	t.Run("directories without modules", func(t *testing.T) {
		t.Parallel()
		root := t.TempDir()
		write(t, filepath.Join(root, "lib/modules/1/modules.order"), nil, 0o644)
		write(t, filepath.Join(root, "usr/src/other.ko"), testmod.ELF(), 0o644)
		if out, code := brp(t, "", root); code != 0 || out != "" {
			t.Errorf("exit status %d: %q", code, out)
		}
	})
	t.Run("both lib/modules, one through a link", func(t *testing.T) {
		t.Parallel()
		root := tree(t, "usr/lib/modules/1")
		if err := os.Symlink("usr/lib", filepath.Join(root, "lib")); err != nil {
			t.Fatal(err)
		}
		out, code := brp(t, "", root, "-k", private, "-c", cert)
		if code != 0 || strings.Count(out, "signed 2 modules") != 1 {
			t.Errorf("exit status %d:\n%s", code, out)
		}
		signed(t, filepath.Join(root, "usr"), 2, "", plain)
	})
	for name, args := range map[string][]string{"the version is known": {"--kver", "1.0"},
		"the version is not known": nil} {
		t.Run("variants, "+name, func(t *testing.T) {
			t.Parallel()
			cwd, root := t.TempDir(), tree(t, "lib/modules/1.0", "lib/modules/1.0+debug", "usr/lib/modules/1.0+debug")
			keyPair(t, cwd, ".sign", plain)
			keyPair(t, cwd, ".sign+debug", debug)
			if out, code := brp(t, cwd, root, append(args, "--zipmodules", "1", "--compression",
				"/usr/bin/zstd")...); code != 0 {
				t.Fatalf("exit status %d:\n%s", code, out)
			}
			signed(t, filepath.Join(root, "lib/modules/1.0"), 2, ".zst", plain)
			signed(t, filepath.Join(root, "lib/modules/1.0+debug"), 2, ".zst", debug)
			signed(t, filepath.Join(root, "usr"), 2, ".zst", debug)
		})
		// A variant never uses the key of another.
		t.Run("a variant's key is missing, "+name, func(t *testing.T) {
			t.Parallel()
			cwd, root := t.TempDir(), tree(t, "lib/modules/1.0", "lib/modules/1.0+debug", "lib/modules/1.0+rt-debug")
			keyPair(t, cwd, ".sign", plain)
			keyPair(t, cwd, ".sign+debug", debug)
			out, code := brp(t, cwd, root, args...)
			refuses(t, out, code, 1, "no such key: certs/signing_key.pem.sign+rt-debug")
			unsigned(t, filepath.Join(root, "lib/modules/1.0+rt-debug"))
		})
	}
	t.Run("not to be signed", func(t *testing.T) {
		t.Parallel()
		root := tree(t, "lib/modules/1.0")
		for _, args := range [][]string{{"--signmodules", "0"},
			{"--signmodules", "0", "--zipmodules", "1", "--compression", "zstd"}} {
			if out, code := brp(t, "", root, args...); code != 0 {
				t.Fatalf("exit status %d:\n%s", code, out)
			}
		}
		unsigned(t, root)
		for _, path := range modules(t, root) {
			info, err := os.Stat(path)
			if err != nil || info.Mode() != 0o644 || !strings.HasSuffix(path, ".ko.zst") {
				t.Errorf("%s: mode %v (%v)", path, info.Mode(), err)
			}
			if got := decompressed(t, path); string(got) != string(testmod.ELF()) {
				t.Errorf("%s is not what it was", path)
			}
		}
	})
	t.Run("an unknown compression", func(t *testing.T) {
		t.Parallel()
		out, code := brp(t, "", tree(t, "lib/modules/1.0"), "-k", private, "-c", cert, "--zipmodules", "1", "--compression",
			"bzip2")
		refuses(t, out, code, 2, `"bzip2"`)
	})
}

// TestSign runs the helper behind %modsign_sign and %modsign_verify.
func TestSign(t *testing.T) {
	testmod.Slow(t, "runs the helper dozens of times")
	t.Parallel()
	key, other := testmod.NewKey(t, "rsa:2048"), testmod.NewKey(t, "ecdsa:p384")
	private, cert := key.Files(t)
	_, otherCert := other.Files(t)
	env := []string{"MODSIGN=" + modsign(t)}
	sign := func(t *testing.T, cwd string, args ...string) (string, int) {
		t.Helper()
		return run(t, cwd, env, helper(t, "sign"), args...)
	}
	t.Run("the kernel's own key", func(t *testing.T) {
		t.Parallel()
		root := tree(t, "m")
		keyPair(t, root, "", key)
		if out, code := sign(t, root, "--akmods-key", private, "m"); code != 0 {
			t.Fatalf("exit status %d:\n%s", code, out)
		}
		signed(t, root, 2, "", key)
		if out, code := sign(t, root, "--verify", "m"); code != 0 {
			t.Errorf("verify: exit status %d:\n%s", code, out)
		}
	})
	t.Run("key and certificate in one file", func(t *testing.T) {
		t.Parallel()
		root := tree(t, "m")
		both := filepath.Join(t.TempDir(), "both.pem")
		write(t, both, slices.Concat(key.KeyPEM, key.CertPEM), 0o600)
		if out, code := sign(t, root, "-k", both, "m"); code != 0 {
			t.Fatalf("exit status %d:\n%s", code, out)
		}
		signed(t, root, 2, "", key)
	})
	for mode, want := range map[os.FileMode]int{0o600: 0, 0o640: 0, 0o644: 1} {
		t.Run("akmods' key with mode "+mode.String(), func(t *testing.T) {
			t.Parallel()
			root := tree(t, "m")
			akmods := filepath.Join(t.TempDir(), "private_key.priv")
			write(t, akmods, key.KeyPEM, mode)
			out, code := sign(t, root, "--akmods-key", akmods, "--akmods-cert", cert, "m")
			if want == 0 && code == 0 {
				signed(t, root, 2, "", key)
				return
			}
			refuses(t, out, code, want, "private_key.priv", "mode")
			unsigned(t, root)
		})
	}
	// Only akmods' key may be readable by its group.
	t.Run("another key with mode 0640", func(t *testing.T) {
		t.Parallel()
		root := tree(t, "m")
		shared := filepath.Join(t.TempDir(), "key.pem")
		write(t, shared, key.KeyPEM, 0o640)
		out, code := sign(t, root, "-k", shared, "-c", cert, "m")
		refuses(t, out, code, 1, "key.pem", "0640")
		unsigned(t, root)
	})
	t.Run("a wrong passphrase", func(t *testing.T) {
		t.Parallel()
		root := tree(t, "m")
		locked := testmod.WriteFile(t, "locked.pem", encrypted(t, key, "open sesame"))
		if err := os.Chmod(locked, 0o600); err != nil {
			t.Fatal(err)
		}
		out, code := run(t, root, append(env, "KBUILD_SIGN_PIN=open barley"), helper(t, "sign"), "-k", locked, "-c", cert,
			"m")
		refuses(t, out, code, 1, "locked.pem", "passphrase")
		if strings.Contains(out, "barley") {
			t.Errorf("it says the passphrase:\n%s", out)
		}
		unsigned(t, root)
	})
	t.Run("verify", func(t *testing.T) {
		t.Parallel()
		root := tree(t, "m")
		out, code := sign(t, root, "--verify", "-c", cert, "m")
		refuses(t, out, code, 4, "m/first.ko", "not signed")
		if out, code := sign(t, root, "-k", private, "-c", cert, "m"); code != 0 {
			t.Fatalf("exit status %d:\n%s", code, out)
		}
		if out, code := sign(t, root, "--verify", "-c", cert, "m"); code != 0 {
			t.Errorf("exit status %d:\n%s", code, out)
		}
		out, code = sign(t, root, "--verify", "-c", otherCert, "m")
		refuses(t, out, code, 4, "m/first.ko", "unknown key")
		out, code = sign(t, root, "--verify", "m")
		refuses(t, out, code, 1, "no certificate")
	})
	t.Run("before brp-strip", func(t *testing.T) {
		t.Parallel()
		call := helper(t, "sign") + " -k key m\n"
		for name, test := range map[string]struct {
			script, compress string
			code             int
		}{
			"it follows":             {call + "  /usr/lib/rpm/brp-strip /usr/bin/strip \n", "", 1},
			"it follows, -z none":    {call + "/usr/lib/rpm/brp-strip /usr/bin/strip\n", "none", 1},
			"it follows, -z zst":     {call + "/usr/lib/rpm/brp-strip /usr/bin/strip\n", "zst", 0},
			"it was before":          {"/usr/lib/rpm/brp-strip /usr/bin/strip\n" + call, "", 0},
			"modules signed after":   {call + "/usr/lib/rpm/brp-strip\n" + helper(t, "brp-modsign") + "\n", "", 0},
			"another brp":            {call + "/usr/lib/rpm/brp-strip-static-archive /usr/bin/strip\n", "", 0},
			"it is a word in a line": {call + "echo /usr/lib/rpm/brp-strip\n", "", 0},
		} {
			root := tree(t, "m")
			args := []string{"-k", private, "-c", cert, "--script", testmod.WriteFile(t, "script", []byte(test.script))}
			if test.compress != "" {
				args = append(args, "-z", test.compress)
			}
			out, code := sign(t, root, append(args, "m")...)
			if code != test.code {
				t.Errorf("%s: exit status %d:\n%s", name, code, out)
			}
			if code != 0 {
				refuses(t, out, code, 1, "/usr/lib/rpm/brp-strip comes after this", override)
				unsigned(t, root)
			}
		}
	})
	t.Run("with find-debuginfo", func(t *testing.T) {
		t.Parallel()
		module, err := os.ReadFile("../../testdata/modules/amd64-6.12/plain/hello.ko") // with debug information
		if err != nil {
			t.Fatal(err)
		}
		for script, want := range map[string]int{
			"  /usr/bin/find-debuginfo -j2 \\\n":             1,
			"/usr/lib/rpm/find-debuginfo.sh -j2 BUILD\n":     1,
			"echo /usr/bin/find-debuginfo\nfind-debuginfo\n": 0,
		} {
			root := tree(t, "m")
			write(t, filepath.Join(root, "m/hello.ko"), module, 0o644)
			file := testmod.WriteFile(t, "script", []byte(script))
			out, code := sign(t, root, "-k", private, "-c", cert, "--script", file, "m")
			if code != want {
				t.Errorf("%q: exit status %d, want %d:\n%s", script, code, want, out)
			}
			if want != 0 {
				refuses(t, out, code, 1, "has debug information")
				unsigned(t, root)
			}
		}
	})
	for name, args := range map[string][]string{
		"no path":           {"-k", private},
		"no value":          {"-k"},
		"an unknown option": {"--sha256", "m"},
		"-z bzip2":          {"-z", "bzip2", "m"},
		"-s without a root": {"-s", "-k", private, "m"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, code := run(t, tree(t, "m"), append(env, "RPM_BUILD_ROOT="), helper(t, "sign"), args...)
			refuses(t, out, code, 2)
		})
	}
	t.Run("no key at all", func(t *testing.T) {
		t.Parallel()
		out, code := sign(t, tree(t, "m"), "--akmods-key", "/nonexistent/akmods", "m")
		refuses(t, out, code, 1, "modsign_key", "certs/signing_key.pem", "/nonexistent/akmods")
	})
}

// TestMacros evaluates the macros with nothing else defined.
func TestMacros(t *testing.T) {
	t.Parallel()
	rpm := testmod.Program(t, "rpm", "rpm")
	eval := func(macro string, defines ...string) string {
		args := []string{"--load", helper(t, "macros.modsign")}
		for _, d := range defines {
			args = append(args, "--define", d)
		}
		return strings.TrimSpace(string(testmod.Run(t, rpm, append(args, "--eval", macro)...)))
	}
	for macro, want := range map[string]string{
		"%{_modsign_akmods_key}":  "/etc/pki/akmods/private/private_key.priv",
		"%{_modsign_akmods_cert}": "/etc/pki/akmods/certs/public_key.der",
		"%{modsign_cmd}":          eval("%{_rpmconfigdir}") + "/modsign/mod-sign",
		"%{__modsign}":            "modsign",
	} {
		if got := eval(macro); got != want {
			t.Errorf("%s is %q, want %q", macro, got, want)
		}
	}
	if got := eval("%{_modsign_akmods_key}", "_kmodtool_signmodules_privkey /k y"); got != "/k y" {
		t.Errorf("kmodtool's key is %q", got)
	}
	if got := eval("%modsign_sign -k one -z xz a b"); strings.Contains(got, "%") || !strings.Contains(got, `-k "one"`) ||
		!strings.HasSuffix(got, "-- a b || exit 1") {
		t.Errorf("%%modsign_sign is %q", got)
	}
	// A separate key is not combined with the certificate of another.
	if got := eval("%modsign_sign -k one a", "modsign_cert other"); strings.Contains(got, "other") {
		t.Errorf("%%modsign_sign is %q", got)
	}
}
