package integrations

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// obsPackage is a spec with the lines of obs/README.md.
const obsPackage = `
Name: vendor-kmp
Version: 1.5
Release: 3
License: GPL-2.0-only
Summary: Three modules
%define debug_package %{nil}
%global __os_install_post %{?__os_install_post} %{modsign_obs_pack}

%description
Three modules.

%install
mkdir -p %{buildroot}/lib/modules
cp -R %{_sourcedir}/tree %{buildroot}/lib/modules/6.12.0
echo text >%{buildroot}/lib/modules/6.12.0/modules.text

%files
/lib/modules/6.12.0
`

// obsServer signs an archive as the signing server of the Open Build Service does: the SHA-256
// of each file in it with RSA, by openssl. It returns the archive of the signatures.
func obsServer(t *testing.T, archive, key string) string {
	t.Helper()
	dir := t.TempDir()
	signed := filepath.Join(t.TempDir(), filepath.Base(archive)+".sig")
	ok(t, dir, nil, "sh", "-euc", `
		cpio --quiet --extract --make-directories <"$1"
		find . -type f | while IFS= read -r file; do
			"$4" dgst -sha256 -sign "$2" -out "$file.sig" "$file"
			rm "$file"
		done
		find . -type f | cpio --quiet --format=newc --create >"$3"`,
		"sh", archive, key, signed, testmod.Program(t, "openssl", "openssl"))
	return signed
}

// TestOBS builds a package twice, with the signing server between the builds.
func TestOBS(t *testing.T) {
	testmod.Slow(t, "it runs rpmbuild twice")
	t.Parallel()
	for name, pkg := range map[string]string{"rpmbuild": "rpm", "rpm2cpio": "rpm2cpio", "cpio": "cpio", "file": "file"} {
		testmod.Program(t, name, pkg)
	}
	private, cert := testmod.NewKey(t, "rsa:2048").Files(t)
	rpmbuild := func(dir, spec string, more ...string) result {
		args := []string{"--define", "_topdir " + dir, "--define", "_tmppath " + dir, "--define", "_dbpath " + dir + "/db",
			"--load", filepath.Join(here, "obs/macros.modsign-obs"),
			"--define", "_modsign_obs " + filepath.Join(here, "obs/modsign-obs"), "-bb"}
		return run(t, "", []string{"HOME=" + dir}, "rpmbuild", slices.Concat(args, more, []string{spec})...)
	}

	// The first build, whose modules had a signature: the server shall not sign that too.
	first := t.TempDir()
	install(t, filepath.Join(first, "SOURCES/tree"), "plain")
	old, oldCert := testmod.NewKey(t, "ecdsa:p256").Files(t)
	ok(t, "", nil, program, "sign", "-k", old, "-c", oldCert, filepath.Join(first, "SOURCES/tree/kernel/hello.ko"))
	write(t, filepath.Join(first, "kmp.spec"), obsPackage, 0o644)
	if r := rpmbuild(first, filepath.Join(first, "kmp.spec")); r.code != 0 {
		t.Fatalf("rpmbuild: exit status %d\n%s", r.code, r.output)
	}
	archive := filepath.Join(first, "OTHER/vendor-kmp.cpio.rsasign")
	listed := strings.Fields(ok(t, "", nil, "sh", "-c", `cpio --quiet --list <"$1"`, "sh", archive))
	want := []string{"lib/modules/6.12.0/kernel/counter.ko", "lib/modules/6.12.0/kernel/hello.ko",
		"lib/modules/6.12.0/kernel/ring.ko"}
	if !slices.Equal(listed, want) {
		t.Fatalf("the archive for the server has %q, want %q", listed, want)
	}
	digests := read(t, filepath.Join(first, "OTHER/vendor-kmp.digests"))
	if strings.Count(digests, `"hash":"sha256"`) != 3 {
		t.Errorf("the manifest is\n%s", digests)
	}
	packages, _ := filepath.Glob(filepath.Join(first, "RPMS/*/*.rpm"))
	if len(packages) != 1 {
		t.Fatalf("rpmbuild makes %q", packages)
	}

	// The second build, of what the first one and the server made.
	signatures := obsServer(t, archive, private)
	second := func(cert string, change func(sources string), more ...string) (string, result) {
		dir := t.TempDir()
		sources := filepath.Join(dir, "SOURCES")
		write(t, filepath.Join(sources, filepath.Base(packages[0])), read(t, packages[0]), 0o644)
		write(t, filepath.Join(sources, filepath.Base(signatures)), read(t, signatures), 0o644)
		write(t, filepath.Join(sources, "_projectcert.crt"), read(t, cert), 0o644)
		if change != nil {
			change(sources)
		}
		r := rpmbuild(dir, filepath.Join(here, "obs/repackage.spec"), more...)
		made, _ := filepath.Glob(filepath.Join(dir, "RPMS/*/vendor-kmp-1.5-3.*.rpm"))
		if r.code != 0 {
			if len(made) > 0 {
				t.Errorf("a build that failed makes %q", made)
			}
			return "", r
		}
		if len(made) != 1 {
			t.Fatalf("rpmbuild makes %q\n%s", made, r.output)
		}
		return unpackRPM(t, made[0]), r
	}
	root, r := second(cert, nil)
	if r.code != 0 {
		t.Fatalf("rpmbuild: exit status %d\n%s", r.code, r.output)
	}
	signedBy(t, root, cert)
	if read(t, filepath.Join(root, "lib/modules/6.12.0/modules.text")) != "text\n" {
		t.Error("another file of the package is not the same")
	}
	// It is what the kernel's sign-file makes of the first package, byte for byte.
	unsignedRoot := unpackRPM(t, packages[0])
	unsigned(t, unsignedRoot)
	for _, path := range modules(t, unsignedRoot) {
		ok(t, "", nil, testmod.SignFile(t), "sha256", private, cert, path)
		name, _ := filepath.Rel(unsignedRoot, path)
		if read(t, path) != read(t, filepath.Join(root, name)) {
			t.Errorf("%s is not what the kernel's sign-file makes", name)
		}
	}
	compressed, _ := second(cert, nil, "--define", "modsign_compress zst")
	signedBy(t, compressed, cert)
	for _, path := range modules(t, compressed) {
		if !strings.HasSuffix(path, ".ko.zst") {
			t.Errorf("%s is not compressed", path)
		}
	}

	// Signatures of another key, of other modules, and too few.
	_, otherCert := testmod.NewKey(t, "rsa:3072").Files(t)
	_, r = second(otherCert, nil)
	r.refuses(t, 1, "signature")
	_, r = second(cert, func(sources string) {
		edit(t, filepath.Join(sources, filepath.Base(signatures)), "rm lib/modules/6.12.0/kernel/ring.ko.sig")
	})
	r.refuses(t, 1, "ring.ko: no signature for this module")
	_, r = second(cert, func(sources string) {
		edit(t, filepath.Join(sources, filepath.Base(signatures)),
			"cd lib/modules/6.12.0/kernel; cp hello.ko.sig ring.ko.sig")
	})
	r.refuses(t, 1, "ring.ko")
}

// unpackRPM returns a directory with the files of a package.
func unpackRPM(t *testing.T, path string) string {
	t.Helper()
	root := t.TempDir()
	ok(t, root, nil, "sh", "-euc", `rpm2cpio "$1" | cpio --quiet -idm`, "sh", path)
	return root
}

// edit changes an archive of cpio by a script.
func edit(t *testing.T, archive, script string) {
	t.Helper()
	ok(t, t.TempDir(), nil, "sh", "-euc", `cpio --quiet -idm <"$1"; (eval "$2"); find . -type f | cpio --quiet -H newc -o >"$1"`,
		"sh", archive, script)
}

// TestOBSPackRefuses packs what the server must not sign.
func TestOBSPackRefuses(t *testing.T) {
	testmod.Program(t, "cpio", "cpio")
	t.Parallel()
	for name, test := range map[string]struct {
		make func(dir string)
		says string
	}{
		"a compressed module": {func(dir string) { install(t, dir, "xz") }, ".ko.xz: compressed before it is signed"},
		"a text":              {func(dir string) { write(t, filepath.Join(dir, "a.ko"), "text\n", 0o644) }, "a.ko: "},
		"nothing":             {func(dir string) { write(t, filepath.Join(dir, "a"), "text\n", 0o644) }, "no module"},
	} {
		dir, out := t.TempDir(), t.TempDir()
		test.make(dir)
		r := run(t, "", nil, "obs/modsign-obs", "pack", "--name", "kmp", "--output", out, dir)
		r.refuses(t, r.code, test.says)
		if left, _ := os.ReadDir(out); r.code == 0 || len(left) > 0 {
			t.Errorf("%s: exit status %d, and %d files for the server", name, r.code, len(left))
		}
	}
}
