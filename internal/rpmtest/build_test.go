//go:build !race

package rpmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/testmod"
)

// TestSpec builds a third-party package, with the one line from README.md.
func TestSpec(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p384")
	for name, test := range map[string]struct {
		debuginfo bool
		prefix    string
		ending    string
		compress  []string
	}{
		"debuginfo": {debuginfo: true},
		"debuginfo, zstd": {debuginfo: true, ending: ".zst", compress: []string{"zipmodules", "1", "compression", "zstd"},
			prefix: "/usr"},
		"no debuginfo":     {prefix: "/usr"},
		"no debuginfo, xz": {ending: ".xz", compress: []string{"zipmodules", "1", "modsign_compress", "xz"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			head := debugPackage + "\n" + override
			if !test.debuginfo {
				head = "%define debug_package %{nil}\n" + override
			}
			b := spec{
				head:    head,
				defines: with(keyDefines(t, key), append(test.compress, "prefix_of_lib", test.prefix)...),
			}.build(t)
			root := b.unpack(t, false)
			checkModules(t, root, test.ending, key, configuredHash(t))
			if b.hasDebuginfo() != test.debuginfo {
				t.Errorf("debuginfo package: %v", b.packages)
			}
			if test.debuginfo {
				checkDebuginfo(t, root, b.unpack(t, true))
			}
		})
	}
}

// TestBadModule adds a file that is not a module: the build fails and names the file.
func TestBadModule(t *testing.T) {
	t.Parallel()
	b := spec{
		head:    "%define debug_package %{nil}\n" + override,
		install: `echo "no ELF file" >"%{buildroot}/lib/modules/%{kver}/extra/mstest/garbage.ko"`,
		defines: keyDefines(t, testmod.NewKey(t, "ecdsa:p384")),
	}.refused(t, "extra/mstest/garbage.ko", "Bad exit status", "(%install)")
	if made, _ := filepath.Glob(filepath.Join(b.topdir, "RPMS", "*", "*.rpm")); len(made) != 0 {
		t.Errorf("the build fails, and leaves %q", made)
	}
}

// TestClassic signs in %install only with the kernel's sign-file, as many existing
// specs do: rpm removes the signatures, and the build succeeds.
func TestClassic(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "rsa:2048")
	private, cert := key.Files(t)
	for name, head := range map[string]string{
		"debuginfo":    debugPackage,
		"no debuginfo": "%define debug_package %{nil}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := spec{
				head: head,
				install: `for m in "%{buildroot}"/lib/modules/%{kver}/extra/mstest/*.ko; do
	"` + testmod.SignFile(t) + `" sha256 "` + private + `" "` + cert + `" "$m"
	tail -c 28 "$m" | grep -qx "~Module signature appended~" && echo "signed by sign-file: $m"
	chmod u+x "$m"
done`,
			}.build(t)
			if got := strings.Count(b.log, "\nsigned by sign-file: "); got != len(names) {
				t.Fatalf("sign-file signed %d modules:\n%s", got, b.log)
			}
			root := b.unpack(t, false)
			for _, path := range modules(t, root) {
				if signer := modinfo(t, "signer", path); signer != "" {
					t.Errorf("%s is signed by %s: this test, and what it warns of, are outdated", path, signer)
				}
			}
			out, code := run(t, "", nil, modsign(t), "verify", "--cert", cert, root)
			if code != 4 || strings.Count(out, "not signed") < len(names) {
				t.Errorf("verify exits with %d:\n%s", code, out)
			}
		})
	}
}

// TestTooEarly signs in %install, before find-debuginfo and brp-strip. The helper
// rejects what would lose a signature or its debuginfo, and tells what to write.
func TestTooEarly(t *testing.T) {
	t.Parallel()
	defines := keyDefines(t, testmod.NewKey(t, "ecdsa:p384"))
	tree := `"%{buildroot}/lib/modules"`
	for name, s := range map[string]spec{
		"before find-debuginfo":             {head: debugPackage + "\n" + override, install: "%modsign_sign " + tree},
		"before find-debuginfo, compressed": {head: debugPackage, install: "%modsign_sign -z xz " + tree},
		"before find-debuginfo, brp-modsign": {head: debugPackage, install: "%{modsign_brp}",
			defines: map[string]string{"zipmodules": "1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s.defines = with(defines, pairs(s.defines)...)
			b := s.refused(t, ".ko has debug information", "%modsign_spec_install_post", "--split-debug",
				"%debug_package %{nil}", "Bad exit status")
			left := 0
			for _, path := range modules(t, b.topdir) {
				if !strings.Contains(path, "/BUILDROOT/") {
					continue
				}
				left++
				if modinfo(t, "signer", path) != "" {
					t.Errorf("%s was signed all the same", path)
				}
			}
			if left != len(names) {
				t.Errorf("the build root has %d modules", left)
			}
		})
	}
	t.Run("before brp-strip", func(t *testing.T) {
		t.Parallel()
		spec{head: "%define debug_package %{nil}", install: "%modsign_sign " + tree, defines: defines}.
			refused(t, "/brp-strip comes after this", override, "Bad exit status")
	})
}

// TestSignInInstall signs in %install where that is safe: compressed modules, which no
// stripper takes for ELF files, in a package without debuginfo.
func TestSignInInstall(t *testing.T) {
	t.Parallel()
	key, other := testmod.NewKey(t, "ecdsa:p384"), testmod.NewKey(t, "rsa:2048")
	otherKey, otherCert := other.Files(t)
	tree := `"%{buildroot}/lib/modules/%{kver}"`
	b := spec{
		head: "%define debug_package %{nil}",
		install: "%modsign_sign -k " + otherKey + " -c " + otherCert + " -a sha384 -z zst -m 0644 " + tree +
			"\n%modsign_verify -c " + otherCert + " " + tree,
		defines: keyDefines(t, key),
	}.build(t)
	checkModules(t, b.unpack(t, false), ".zst", other, "sha384")
}

// TestSplit has modsign split off debug information in %install: find-debuginfo then
// has nothing to do, and rpm makes the debuginfo package from the debug files.
func TestSplit(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p384")
	for name, test := range map[string]struct{ head, options, ending, prefix string }{
		"rpm's own order, xz": {head: debugPackage, options: "-s -z xz", ending: ".xz"},
		"ours":                {head: debugPackage + "\n" + override, options: "-s", prefix: "/usr"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := spec{
				head:    test.head,
				install: "%modsign_sign " + test.options + ` "%{buildroot}%{?prefix_of_lib}/lib/modules"`,
				defines: with(keyDefines(t, key), "prefix_of_lib", test.prefix),
				env:     []string{"SOURCE_DATE_EPOCH=1700000000"},
			}.build(t)
			root := b.unpack(t, false)
			checkModules(t, root, test.ending, key, configuredHash(t))
			debug := b.unpack(t, true)
			checkDebuginfo(t, root, debug)
			for _, path := range modules(t, debug) {
				if info, err := os.Stat(path); err != nil || info.ModTime().Unix() > 1700000000 {
					t.Errorf("%s is of %v, which SOURCE_DATE_EPOCH forbids (%v)", path, info.ModTime(), err)
				}
			}
		})
	}
}

// TestSiteMacros appends signing to %__os_install_post, like a site's macros.
func TestSiteMacros(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p384")
	b := spec{
		head:    debugPackage + "\n%global __os_install_post %{__os_install_post} \\\n%%{modsign_brp}",
		install: "%{modsign_prepare}",
		defines: keyDefines(t, key),
	}.build(t)
	root := b.unpack(t, false)
	checkModules(t, root, "", key, configuredHash(t))
	checkDebuginfo(t, root, b.unpack(t, true))
}

// TestKmodtoolNames signs with the key in kmodtool's macros, which has a passphrase and
// the mode that akmods sets.
func TestKmodtoolNames(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "rsa:2048")
	private := testmod.WriteFile(t, "private_key.priv", encrypted(t, key, "open sesame"))
	if err := os.Chmod(private, 0o640); err != nil {
		t.Fatal(err)
	}
	b := spec{
		head: "%define debug_package %{nil}\n" + override,
		defines: map[string]string{
			"_modsign_akmods_key": "", "_modsign_akmods_cert": "",
			"_kmodtool_signmodules_privkey": private,
			"_kmodtool_signmodules_pubkey":  testmod.WriteFile(t, "public_key.der", key.Certificate.Raw),
		},
		env: []string{"KBUILD_SIGN_PIN=open sesame"},
	}.build(t)
	checkModules(t, b.unpack(t, false), "", key, configuredHash(t))
	if strings.Contains(b.log, "sesame") {
		t.Errorf("the passphrase is in the log:\n%s", b.log)
	}
}

// TestReproducible builds twice, with times clamped to SOURCE_DATE_EPOCH and a key with
// deterministic signatures: the packages are the same.
func TestReproducible(t *testing.T) {
	t.Parallel()
	const epoch = 1700000000
	s := spec{
		head: debugPackage + "\n" + override,
		defines: with(keyDefines(t, testmod.NewKey(t, "rsa:2048")), "zipmodules", "1",
			"clamp_mtime_to_source_date_epoch", "1", "use_source_date_epoch_as_buildtime", "1", "_buildhost", "localhost"),
		env: []string{fmt.Sprint("SOURCE_DATE_EPOCH=", epoch)},
	}
	topdir := newTopdir(t)
	read := func() map[string]string {
		b, err := s.rpmbuild(t, topdir)
		if err != nil {
			t.Fatalf("%v\n%s", err, b.log)
		}
		packages := map[string]string{}
		for _, path := range b.packages {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			packages[filepath.Base(path)] = string(data)
			for _, mtime := range strings.Fields(string(testmod.Run(t, "rpm", "-qp", "--dbpath", topdir, "--qf",
				"[%{FILEMTIMES} ]", path))) {
				if n, err := strconv.Atoi(mtime); err != nil || n > epoch {
					t.Errorf("%s has a file of %s", path, mtime)
				}
			}
		}
		return packages
	}
	first := read()
	time.Sleep(1100 * time.Millisecond) // file times in a package are in whole seconds
	second := read()
	if len(first) != 2 || len(second) != 2 {
		t.Fatalf("%d and %d packages", len(first), len(second))
	}
	for name, data := range first {
		if second[name] != data {
			t.Errorf("%s is not the same again", name)
		}
	}
}

// TestKernelSpec builds with the macros of the kernel specs of Fedora and RHEL:
// variants, each with its own key, signmodules and zipmodules.
func TestKernelSpec(t *testing.T) {
	t.Parallel()
	keys := map[string]*testmod.Key{"": testmod.NewKey(t, "rsa:2048"), "+debug": testmod.NewKey(t, "ecdsa:p384")}
	sources := map[string][]byte{
		"plain.pem": keys[""].KeyPEM, "plain.x509": keys[""].Certificate.Raw,
		"debug.pem": keys["+debug"].KeyPEM, "debug.x509": keys["+debug"].Certificate.Raw,
	}
	// Fedora's own macro, which needs only a mod-sign.sh.
	own := `%define __modsign_install_post \
  if [ "%{signmodules}" -eq "1" ]; then \
    for modules_dir in "$RPM_BUILD_ROOT"/lib/modules/%{KVERREL}*; do \
      variant_suffix="${modules_dir#$RPM_BUILD_ROOT/lib/modules/%{KVERREL}}" \
      %{modsign_cmd} certs/signing_key.pem.sign${variant_suffix} certs/signing_key.x509.sign${variant_suffix} $modules_dir/ \
    done \
  fi \
%{nil}
`
	for name, test := range map[string]struct {
		head, debuginfo, zip, ending string
	}{
		"debuginfo, xz": {debuginfo: "1", zip: "1", ending: ".xz"},
		"its own post":  {debuginfo: "0", zip: "0", head: own},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := spec{
				file: "rhel.spec", head: test.head, sources: sources,
				defines: map[string]string{"with_debuginfo": test.debuginfo, "signmodules": "1", "zipmodules": test.zip},
				env:     []string{"PATH=" + filepath.Dir(modsign(t)) + ":" + os.Getenv("PATH")}, // mod-sign searches PATH
			}.build(t)
			root := b.unpack(t, false)
			for variant, key := range keys {
				checkModules(t, filepath.Join(root, "lib/modules", kernelVersion(t)+variant), test.ending, key, configuredHash(t))
			}
			if test.debuginfo == "1" {
				checkDebuginfo(t, root, b.unpack(t, true))
			}
		})
	}
}

// configuredHash returns CONFIG_MODULE_SIG_HASH of the target kernel.
func configuredHash(t *testing.T) string {
	t.Helper()
	config, err := os.ReadFile(filepath.Join("/lib/modules", kernelVersion(t), "build/.config"))
	if err != nil {
		t.Fatal(err)
	}
	_, hash, _ := strings.Cut(string(config), "\nCONFIG_MODULE_SIG_HASH=\"")
	hash, _, found := strings.Cut(hash, "\"\n")
	if !found {
		t.Fatal("the kernel has no CONFIG_MODULE_SIG_HASH")
	}
	return hash
}
