//go:build kerneltest

package kerneltest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/kbuildrun"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/kbuild"
)

// unsigned removes from Base what signatures need.
const unsigned = `
# CONFIG_MODULE_SIG is not set
# CONFIG_MODULE_SIG_ALL is not set
# CONFIG_MODULE_SIG_SHA512 is not set
# CONFIG_CRYPTO_ECDSA is not set
# CONFIG_CRYPTO_RSA is not set
`

// hashing is a kernel that trusts modules by their hashes, and has no keys.
const hashing = unsigned + `
CONFIG_MODULE_HASHES=y
CONFIG_MODULE_HASHES_MERKLE=y
CONFIG_MODULE_SIG_FORCE=y
`

// BTF makes modules depend on vmlinux.
const btf = `
CONFIG_BPF_SYSCALL=y
CONFIG_DEBUG_INFO_BTF=y
CONFIG_DEBUG_INFO_BTF_MODULES=y
`

// The two forms, with modules compressed by xz.
const (
	list = `
# CONFIG_MODULE_HASHES_MERKLE is not set
CONFIG_MODULE_HASHES_LIST=y
# CONFIG_MODULE_COMPRESS_ZSTD is not set
CONFIG_MODULE_COMPRESS_XZ=y
`
	merkle = `
# CONFIG_MODULE_HASHES_LIST is not set
CONFIG_MODULE_HASHES_MERKLE=y
# CONFIG_MODULE_COMPRESS_ZSTD is not set
CONFIG_MODULE_COMPRESS_XZ=y
`
)

// signatures are accepted beside hashes: by the key of somebody else.
const signatures = `
CONFIG_MODULE_SIG=y
# CONFIG_MODULE_SIG_ALL is not set
CONFIG_MODULE_SIG_SHA512=y
CONFIG_MODULE_SIG_KEY=""
CONFIG_SYSTEM_TRUSTED_KEYS="theirs.pem"
CONFIG_CRYPTO_ECDSA=y
`

// otherUses has the same certificate, and accepts no signatures.
const otherUses = `
# CONFIG_MODULE_SIG is not set
CONFIG_KEYS=y
CONFIG_ASYMMETRIC_KEY_TYPE=y
CONFIG_ASYMMETRIC_PUBLIC_KEY_SUBTYPE=y
CONFIG_X509_CERTIFICATE_PARSER=y
CONFIG_SYSTEM_TRUSTED_KEYRING=y
CONFIG_SYSTEM_TRUSTED_KEYS="theirs.pem"
CONFIG_CRYPTO_ECDSA=y
`

// Series of Linux that have a patch, for SourceOf.
const (
	linux6 = "6.12"
	linux7 = "7"
)

// hashedSource returns the source of a series with the patch that modsign applies. Tests
// share it like Source.
func (u *user) hashedSource(t testing.TB, series string) string {
	t.Helper()
	source := SourceOf(t, series)
	patch := u.run(t, "", u.modsign, "kbuild", "patch", "--srctree", source, "--print")
	key := sha256.Sum256([]byte(patch))
	patched := filepath.Join(filepath.Dir(source), fmt.Sprintf("hashed-%x", key[:6]))
	lock(t, filepath.Join(filepath.Dir(source), "hashed.lock"))
	if _, err := os.Stat(patched); err == nil {
		return patched
	}
	// Remove sources with another patch, and what was built from them.
	old, err := filepath.Glob(filepath.Join(filepath.Dir(source), "hashed-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range old {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	// Hard links suffice: patching replaces files, and does not write into them.
	testmod.Run(t, "cp", "-al", source, patched+".new")
	out := u.run(t, "", u.modsign, "kbuild", "patch", "--srctree", patched+".new")
	if !strings.Contains(out, "with the patch for Linux "+series) {
		t.Errorf("the source of %s was patched otherwise: %s", series, out)
	}
	if err := os.Rename(patched+".new", patched); err != nil {
		t.Fatal(err)
	}
	return patched
}

// hashedTree returns a tree of a patched source in which modsign is enabled.
func (u *user) hashedTree(t *testing.T, series, name, config string) *Tree {
	t.Helper()
	if series == linux7 {
		config = without(config, gone...)
	}
	tree := configure(t, u.hashedSource(t, series), "hashed-"+name, config)
	u.run(t, tree.Srctree, u.modsign, "kbuild", "enable", "--objtree", tree.Objtree)
	t.Cleanup(func() { u.run(t, tree.Srctree, u.modsign, "kbuild", "disable", "--objtree", tree.Objtree) })
	return tree
}

// make runs make with the arguments that users type.
func (u *user) make(t testing.TB, tree *Tree, args ...string) string {
	t.Helper()
	return u.run(t, tree.Objtree, "make", append([]string{u.jobs}, args...)...)
}

// install installs the modules to a new directory, and checks them against the kernel's
// hashes.
func (u *user) install(t testing.TB, tree *Tree, args ...string) (modlib string, modules []string) {
	t.Helper()
	root := t.TempDir()
	u.make(t, tree, append(args, "-s", "INSTALL_MOD_PATH="+root, "modules_install")...)
	modlib, modules = installed(t, root)
	u.run(t, "", u.modsign, "hashlist", "verify", "--kernel", tree.Image(), modlib)
	u.run(t, "", u.modsign, "hashlist", "verify", "--list", filepath.Join(tree.Objtree, kbuildrun.HashList), modlib)
	return modlib, modules
}

// TestHashes builds kernels with the hook and plain make. Such a kernel trusts exactly
// the modules that it was built with, whatever happens during the build, or with
// CONFIG_MODULE_SIG those with a good signature besides.
func TestHashes(t *testing.T) {
	u := newUser(t)
	t.Run(linux6, func(t *testing.T) { u.allOfHashes(t, linux6) })
	if full() {
		t.Run(linux7, func(t *testing.T) {
			u.allOfHashes(t, linux7)
			u.hashesInShort(t, linux7)
		})
	}
}

// hashesInShort has a small kernel, which is built once: in both forms, and with hashes
// beside signatures and alone.
func (u *user) hashesInShort(t *testing.T, series string) {
	tree := u.hashedTree(t, series, "short", Base+hashing)
	signers := newSigners(t, tree)
	for _, step := range []struct{ name, config string }{
		{"list or signature", list + signatures},
		{"tree or signature", merkle + signatures},
		{"tree alone", merkle + otherUses},
		{"list alone", list + otherUses},
	} {
		t.Run(step.name, func(t *testing.T) {
			tree.Reconfigure(t, step.config)
			u.make(t, tree)
			u.settled(t, tree)
			// With signatures too, the build needs no key: it can be reproduced.
			if _, err := u.agent(tree.Objtree); err == nil {
				t.Error("there is a key agent")
			}
			if _, err := os.Lstat(filepath.Join(tree.Objtree, kbuild.DefaultKey)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v", kbuild.DefaultKey, err)
			}
			modlib, modules := u.install(t, tree)
			if !strings.HasSuffix(step.name, "alone") {
				u.judgeEither(t, tree, compress.XZ, modlib, modules, signers)
				return
			}
			u.judgeHashes(t, tree, compress.XZ, modlib, modules, signers)
			plain, _ := u.install(t, tree, "CONFIG_MODULE_COMPRESS_ALL=")
			u.judgeHashes(t, tree, compress.None, plain, baseNames(modules), signers)
		})
	}
}

// allOfHashes has a kernel with debug information.
func (u *user) allOfHashes(t *testing.T, series string) {
	tree := u.hashedTree(t, series, "debug", Base+debug+hashing+btf)
	signers := newSigners(t, tree)
	for _, format := range []struct{ name, config string }{{"merkle", ""}, {"list", list}} {
		t.Run(format.name, func(t *testing.T) {
			if format.config != "" {
				tree.Reconfigure(t, format.config)
			}
			out := u.make(t, tree)
			if !strings.Contains(out, "and vmlinux has") {
				t.Errorf("make says nothing of hashes: %s", tail([]byte(out)))
			}
			u.settled(t, tree)
			modlib, modules := u.install(t, tree)
			u.judgeHashes(t, tree, compress.XZ, modlib, modules, signers)
			plain, _ := u.install(t, tree, "CONFIG_MODULE_COMPRESS_ALL=")
			u.judgeHashes(t, tree, compress.None, plain, baseNames(modules), signers)
			u.stripping(t, tree)
			if format.name == "list" && !full() { // the rest is alike
				u.changes(t, tree)
				return
			}

			tree.Reconfigure(t, "# CONFIG_MODULE_COMPRESS_XZ is not set\nCONFIG_MODULE_COMPRESS_ZSTD=y\n")
			u.make(t, tree)
			modlib, modules = u.install(t, tree)
			u.judgeHashes(t, tree, compress.Zstd, modlib, modules, signers)
			u.changes(t, tree)
			// A package's own make installs without the hook.
			u.make(t, tree, "dir-pkg")
			packaged, _ := installed(t, filepath.Join(tree.Objtree, "tar-install"))
			u.run(t, "", u.modsign, "hashlist", "verify", "--kernel", tree.Image(), packaged)
		})
	}
	for _, format := range []struct{ name, config string }{{"list", list}, {"tree", merkle}} {
		t.Run(format.name+" or signature", func(t *testing.T) {
			tree.Reconfigure(t, format.config+signatures)
			u.make(t, tree)
			modlib, modules := u.install(t, tree)
			u.judgeEither(t, tree, compress.XZ, modlib, modules, signers)
		})
	}
	t.Run("without signatures and BTF", func(t *testing.T) {
		tree.Reconfigure(t, otherUses+"# CONFIG_DEBUG_INFO_BTF is not set\n")
		u.make(t, tree)
		u.settled(t, tree)
		modlib, modules := u.install(t, tree, "CONFIG_MODULE_COMPRESS_ALL=")
		u.judgeHashes(t, tree, compress.None, modlib, modules, signers)
	})
}

// baseNames returns the names of modules without the suffix of a compression.
func baseNames(modules []string) []string {
	var names []string
	for _, name := range modules {
		names = append(names, module.BaseName(name))
	}
	return names
}

// built returns everything that a second make must not change.
func built(t testing.TB, tree *Tree) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(tree.Objtree, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if name := d.Name(); strings.HasSuffix(name, ".ko") || strings.HasSuffix(name, ".merkle") ||
			path == filepath.Join(tree.Objtree, "vmlinux") || path == tree.Image() {
			info, err := d.Info()
			if err != nil {
				return err
			}
			files[path] = fmt.Sprintf("%x %s", sha256.Sum256(read(t, path)), info.ModTime())
		}
		return nil
	})
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	return files
}

// settled runs make again, which must change nothing.
func (u *user) settled(t *testing.T, tree *Tree) {
	t.Helper()
	before := built(t, tree)
	out := u.make(t, tree)
	sameFiles(t, built(t, tree), before, nil)
	for _, does := range []string{"  BTF ", "  LD ", "  OBJCOPY ", "modsign: hashed"} {
		if strings.Contains(out, does) {
			t.Errorf("a second make has something to do: %s", out)
		}
	}
}

// judgeHashes boots the kernel, which loads all its modules and none of the changed
// ones, signed or not. modsign predicts each verdict.
func (u *user) judgeHashes(
	t *testing.T, tree *Tree, format compress.Format, modlib string, modules []string, signers keys,
) {
	t.Helper()
	order, err := kbuild.InstalledModules(modlib)
	if err != nil {
		t.Fatal(err)
	}
	judge := newHashJudge(t, tree, order)
	hashes := judge.hashes
	merkle := hashes.Root != nil
	whole := decompress(t, filepath.Join(modlib, victim+format.Suffix()))
	payload := read(t, filepath.Join(tree.Objtree, strings.TrimPrefix(victim, "kernel/")))
	if merkle && len(whole) <= len(payload) || !merkle && len(whole) != len(payload) {
		t.Fatalf("%s has %d bytes, and as it was built %d", victim, len(whole), len(payload))
	}
	cases := hashCases{format: format, want: make(map[string]hashlist.Verdict)}
	bad := func(name string, verdict hashlist.Verdict, data []byte) { cases.add(t, name, verdict, data) }
	bad("one byte changed", hashlist.Changed, changed(whole, len(payload)/2))
	foreign := u.foreign(t, tree)
	strange := map[bool]hashlist.Verdict{true: hashlist.Unproven, false: hashlist.Changed}[merkle]
	bad("a foreign one", strange, foreign)
	bad("a foreign one with a signature", strange, signers.signed(t, "theirs", foreign))
	signed := signers.signed(t, "theirs", payload)
	if merkle {
		proof := whole[len(payload):]
		bad("without its proof", hashlist.Unproven, payload)
		bad("a foreign one with its proof", hashlist.Changed, slices.Concat(foreign, proof))
		bad("stripped since, with its proof", hashlist.Changed, slices.Concat(stripped(t, payload), proof))
		other := decompress(t, filepath.Join(modlib, "kernel/crypto/wp512.ko"+format.Suffix()))
		otherPayload := read(t, filepath.Join(tree.Objtree, "crypto/wp512.ko"))
		bad("with the proof of another", hashlist.Changed, slices.Concat(payload, other[len(otherPayload):]))
		// Of a build in which one module differs: its own proofs are valid, and of the
		// same length.
		leaves := make([]hashlist.Hash, len(order))
		for i, name := range order {
			h := hashlist.NewLeaf(uint32(i))
			h.Write(read(t, filepath.Join(tree.Objtree, strings.TrimPrefix(name, "kernel/"))))
			leaves[i] = hashlist.Hash(h.Sum(nil))
		}
		if root := hashlist.NewTree(leaves).Root(); root != *hashes.Root {
			t.Fatalf("the kernel has the root %v, and the modules make %v", hashes.Root, root)
		}
		at := slices.Index(order, victim)
		h := hashlist.NewLeaf(uint32(at))
		h.Write(changed(payload, len(payload)/2))
		leaves[at] = hashlist.Hash(h.Sum(nil))
		elsewhere := hashlist.NewTree(leaves).Prove(at)
		bad("from another build", hashlist.Changed, module.AppendSignature(changed(payload, len(payload)/2),
			module.TypeMerkle, elsewhere.Append(nil)))
		fewer := hashlist.NewTree(leaves[:at+1]).Prove(at)
		bad("from a build with fewer modules", hashlist.OtherKernel,
			module.AppendSignature(slices.Clone(payload), module.TypeMerkle, fewer.Append(nil)))
		bad("a proof cut short", hashlist.OtherKernel, module.AppendSignature(slices.Clone(payload), module.TypeMerkle,
			proof[:len(proof)-module.TrailerSize-1]))
		bad("a proof longer than the file", hashlist.Malformed, slices.Concat(payload, changed(proof, -len(module.Marker)-4)))
		bad("signed with a key", hashlist.Unproven, signed)
	} else {
		bad("from another build", hashlist.Changed, filter(t, nil, "sh", "-c",
			`cp "$0" "$1" && objcopy --add-section .more="$0" "$1" && cat "$1"`,
			filepath.Join(tree.Objtree, "crypto/rmd160.ko"), filepath.Join(t.TempDir(), "m.ko")))
		bad("stripped since", hashlist.Changed, stripped(t, payload))
		bad("with a proof", hashlist.OtherKernel, module.AppendSignature(slices.Clone(payload), module.TypeMerkle,
			hashlist.Proof{}.Append(nil)))
		// The kernel has the hashes of unsigned modules: a signature by an unknown key
		// does no harm.
		bad("signed with a key", hashlist.Trusted, signed)
	}
	judge.boot(t, tree, &cases, modlib, modules)
}

// foreign returns a module built for this kernel, but not with it.
func (u *user) foreign(t testing.TB, tree *Tree) []byte {
	t.Helper()
	dir := writeExternal(t)
	u.run(t, dir, "make", "-C", tree.Objtree, "M="+dir, "modules")
	return read(t, filepath.Join(dir, "theirs.ko"))
}

// stripped returns a module without symbols that it can do without.
func stripped(t testing.TB, data []byte) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.ko")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	testmod.Run(t, "strip", "--strip-unneeded", path)
	return read(t, path)
}

// stripping checks that the hashes are those of installed modules, and that the build
// decides how modules are stripped.
func (u *user) stripping(t *testing.T, tree *Tree) {
	t.Helper()
	root := t.TempDir()
	for _, how := range [][]string{{"GNUmakefile"}, {"Makefile"}} {
		out, err := u.try(tree.Objtree, "make", "-f", how[0], "INSTALL_MOD_STRIP=1", "INSTALL_MOD_PATH="+root,
			"modules_install")
		if err == nil || !strings.Contains(out, "INSTALL_MOD_STRIP is") {
			t.Errorf("make -f %s: stripped otherwise than at build time: %v %s", how[0], err, out)
		}
	}
	if found := hash(t, root); len(found) != 0 {
		t.Errorf("refused, and all the same installed: %v", found)
	}
	u.make(t, tree, "INSTALL_MOD_STRIP=1")
	modlib, modules := u.install(t, tree, "INSTALL_MOD_STRIP=1")
	if slices.Contains(sections(t, write(t, decompress(t, filepath.Join(modlib, "kernel/crypto/md4.ko.xz")))),
		".debug_info") {
		t.Error("md4.ko is not stripped")
	}
	var cases []Case
	for _, name := range modules {
		cases = append(cases, Case{Name: name, File: filepath.Join(modlib, name), Compressed: true, Keep: true})
	}
	for _, v := range Boot(t, tree.Image(), cases) {
		if v.Errno != 0 {
			t.Errorf("stripped: %s: %v %q", v.Name, v.Errno, v.Log)
		}
	}
	// Kbuild itself installs the same modules.
	other := t.TempDir()
	u.make(t, tree, "-s", "-f", "Makefile", "INSTALL_MOD_STRIP=1", "INSTALL_MOD_PATH="+other, "modules_install")
	theirs, _ := installed(t, other)
	sameFiles(t, hash(t, filepath.Join(theirs, "kernel")), hash(t, filepath.Join(modlib, "kernel")), nil)
	u.make(t, tree)
}

func write(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.ko")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// changes changes a tree: make alone updates the kernel for its modules.
func (u *user) changes(t *testing.T, tree *Tree) {
	t.Helper()
	vmlinux := filepath.Join(tree.Objtree, "vmlinux")
	linked := modTime(t, vmlinux)
	// A module changes, and vmlinux is not linked again.
	u.make(t, tree, "CFLAGS_md4.o=-DANOTHER=1 -O1")
	if now := modTime(t, vmlinux); !now.Equal(linked) {
		t.Errorf("vmlinux was linked again for a module: it is of %v, and was of %v", now, linked)
	}
	u.install(t, tree)
	// modules_install without make, after a module was changed without the hook.
	u.make(t, tree, "-f", "Makefile", "modules")
	out, err := u.try(tree.Objtree, "make", "INSTALL_MOD_PATH="+t.TempDir(), "modules_install")
	if err == nil || !strings.Contains(out, "md4.ko") {
		t.Errorf("installed, and md4.ko is not what the kernel has: %v %s", err, tail([]byte(out)))
	}
	// One more module. The list has space for it after vmlinux is linked.
	tree.Reconfigure(t, "CONFIG_NLS_CODEPAGE_860=m\n")
	u.make(t, tree)
	_, modules := u.install(t, tree)
	if !slices.ContainsFunc(modules, func(name string) bool { return strings.Contains(name, "nls_cp860") }) {
		t.Errorf("no nls_cp860 in %q", modules)
	}
	tree.Reconfigure(t, "# CONFIG_NLS_CODEPAGE_860 is not set\n")
	u.make(t, tree)
	u.settled(t, tree)
}

func modTime(t testing.TB, path string) time.Time {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.ModTime()
}

// Two clean builds of a kernel with hashes are identical. With a one-time key they are
// not, which takes --full.
func TestHashesReproducible(t *testing.T) {
	u := newUser(t)
	u.reproducible(t, linux6)
	if full() {
		u.reproducible(t, linux7)
	}
}

func (u *user) reproducible(t *testing.T, series string) {
	tree := u.hashedTree(t, series, "plain", Base+hashing)
	fixed := []string{"KBUILD_BUILD_TIMESTAMP=Thu Jan 1 00:00:00 UTC 2026", "KBUILD_BUILD_USER=user",
		"KBUILD_BUILD_HOST=host"}
	// build returns the results of a clean build that users get.
	build := func() map[string]string {
		t.Helper()
		u.make(t, tree, "clean")
		// The number of builds in this tree, which make clean keeps.
		if err := os.Remove(filepath.Join(tree.Objtree, ".version")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		u.make(t, tree, fixed...)
		modlib, _ := u.install(t, tree)
		files := hash(t, filepath.Join(modlib, "kernel"))
		for _, path := range []string{filepath.Join(tree.Objtree, "vmlinux"), tree.Image(),
			filepath.Join(tree.Objtree, kbuildrun.HashList)} {
			files[filepath.Base(path)] = fmt.Sprintf("%x", sha256.Sum256(read(t, path)))
		}
		return files
	}
	first := build()
	sameFiles(t, build(), first, nil)
	explainsHashes(t, tree)
	if !full() {
		return
	}

	tree.Reconfigure(t, "# CONFIG_MODULE_HASHES is not set\nCONFIG_MODULE_SIG=y\n"+
		"CONFIG_MODULE_SIG_ALL=y\nCONFIG_MODULE_SIG_SHA512=y\n")
	u.make(t, tree, fixed...)
	signed := func() map[string]string {
		root := t.TempDir()
		u.make(t, tree, "-s", "INSTALL_MOD_PATH="+root, "modules_install")
		modlib, _ := installed(t, root)
		files := hash(t, filepath.Join(modlib, "kernel"))
		files["vmlinux"] = fmt.Sprintf("%x", sha256.Sum256(read(t, filepath.Join(tree.Objtree, "vmlinux"))))
		return files
	}
	one := signed()
	u.run(t, tree.Objtree, u.modsign, "agent", "forget")
	u.make(t, tree, fixed...)
	two := signed()
	for _, name := range slices.Sorted(maps.Keys(one)) {
		if one[name] == two[name] {
			t.Errorf("%s is the same with another one-time key", name)
		}
	}
	if _, err := os.Stat(filepath.Join(tree.Objtree, kbuildrun.HashList)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
