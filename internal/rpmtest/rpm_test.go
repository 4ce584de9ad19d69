//go:build !race

package rpmtest

import (
	"bytes"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// override is the line from README.md that makes signing the end of %install.
const override = `%{?modsign_spec_install_post:%define __spec_install_post %{modsign_spec_install_post}}`

// debugPackage asks for a debuginfo package, where rpm makes none by itself: that of Debian 13
// does.
const debugPackage = `%{!?_enable_debug_packages:%debug_package}`

const marker = "~Module signature appended~\n"

var names = []string{"modsign_alone", "modsign_base", "modsign_user"}

// TestMain sets this, and removes the directory again.
var workDir string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if workDir, err = os.MkdirTemp("", "modsign-rpmtest-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(workDir)
		return m.Run()
	}())
}

// theProgram names the program to test, where there is no Go to build it.
const theProgram = "MODSIGN_RPMTEST_PROGRAM"

var buildModsign = sync.OnceValues(func() (string, error) {
	if built := os.Getenv(theProgram); built != "" {
		return built, nil
	}
	path := filepath.Join(workDir, "bin", "modsign")
	cmd := exec.Command("go", "build", "-o", path, "../../cmd/modsign")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// modsign returns the path of the program, built from this tree.
func modsign(t *testing.T) string {
	t.Helper()
	path, err := buildModsign()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// helper returns the path of a file in scripts/rpm.
func helper(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("../../scripts/rpm", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// kernelVersion returns the version of a kernel whose headers are installed.
func kernelVersion(t *testing.T) string {
	t.Helper()
	found, _ := filepath.Glob("/lib/modules/*/build/Makefile")
	if len(found) == 0 {
		testmod.Missing(t, "the headers of a kernel", "apt-get install linux-headers-amd64")
	}
	return filepath.Base(filepath.Dir(filepath.Dir(slices.Max(found))))
}

// needRPM checks for the programs that rpmbuild runs.
func needRPM(t *testing.T) {
	t.Helper()
	testmod.Slow(t, "builds an RPM package")
	for name, pkg := range map[string]string{
		"rpmbuild": "rpm", "rpm2cpio": "rpm2cpio", "find-debuginfo": "debugedit", "eu-strip": "elfutils", "file": "file",
		"strip": "binutils", "make": "make", "gcc": "gcc", "cpio": "cpio",
	} {
		testmod.Program(t, name, pkg)
	}
}

// spec is a build with one of testdata's specs.
type spec struct {
	file    string            // in testdata; kmod.spec by default
	head    string            // lines added before %install
	install string            // lines added at the end of %install
	defines map[string]string // empty values are left out
	env     []string
	sources map[string][]byte // in addition to those of the modules
}

// built is the result of rpmbuild.
type built struct {
	log      string
	topdir   string
	packages []string
}

// rpmbuild builds in a topdir of its own or the given one. It returns the error of a
// failed build.
func (s spec) rpmbuild(t *testing.T, topdir ...string) (built, error) {
	t.Helper()
	needRPM(t)
	var b built
	if len(topdir) != 0 {
		b.topdir = topdir[0]
	} else {
		b.topdir = newTopdir(t)
	}
	sources := filepath.Join(b.topdir, "SOURCES")
	if err := os.MkdirAll(sources, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(sources, os.DirFS("testdata/kmod")); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	for name, data := range s.sources {
		if err := os.WriteFile(filepath.Join(sources, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if s.file == "" {
		s.file = "kmod.spec"
	}
	text, err := os.ReadFile(filepath.Join("testdata", s.file))
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.NewReplacer("@HEAD@\n", s.head+"\n", "@INSTALL@\n", s.install+"\n").Replace(string(text)))
	path := filepath.Join(b.topdir, s.file)
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}

	defines := map[string]string{
		"_topdir": b.topdir, "_dbpath": filepath.Join(b.topdir, "db"), "_tmppath": b.topdir,
		"_modsign_dir": helper(t, ""), "__modsign": modsign(t), "kver": kernelVersion(t),
		// No default key of this machine: a test names its keys.
		"_modsign_akmods_key": "/nonexistent/private_key.priv", "_modsign_akmods_cert": "/nonexistent/public_key.der",
	}
	maps.Copy(defines, s.defines)
	args := []string{"--load", helper(t, "macros.modsign"), "-bb"}
	for _, name := range slices.Sorted(maps.Keys(defines)) {
		if defines[name] != "" {
			args = append(args, "--define", name+" "+defines[name])
		}
	}
	cmd := exec.Command("rpmbuild", append(args, path)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "HOME="+b.topdir, "KBUILD_SIGN_PIN=", "SOURCE_DATE_EPOCH=")
	cmd.Env = append(cmd.Env, s.env...)
	out, err := cmd.CombinedOutput()
	b.log = string(out)
	if err != nil {
		return b, fmt.Errorf("rpmbuild: %w", err)
	}
	b.packages, _ = filepath.Glob(filepath.Join(b.topdir, "RPMS", "*", "*.rpm"))
	return b, nil
}

// newTopdir makes a directory whose name suits rpm and Kbuild: t.TempDir contains the
// name of the test.
func newTopdir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(workDir, "top")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// build runs rpmbuild, which must succeed.
func (s spec) build(t *testing.T) built {
	t.Helper()
	b, err := s.rpmbuild(t)
	if err != nil {
		t.Fatalf("%v\n%s", err, b.log)
	}
	return b
}

// refused runs rpmbuild, which must fail with all words in its output.
func (s spec) refused(t *testing.T, words ...string) built {
	t.Helper()
	b, err := s.rpmbuild(t)
	if err == nil {
		t.Fatalf("the build succeeds:\n%s", b.log)
	}
	for _, w := range words {
		if !strings.Contains(b.log, w) {
			t.Errorf("rpmbuild does not say %q:\n%s", w, b.log)
		}
	}
	return b
}

// unpack unpacks the main package, or its debuginfo.
func (b built) unpack(t *testing.T, debuginfo bool) string {
	t.Helper()
	dir := t.TempDir()
	for _, path := range b.packages {
		if strings.Contains(filepath.Base(path), "-debuginfo-") != debuginfo {
			continue
		}
		cpio := exec.Command("cpio", "-idm", "--quiet", "--no-absolute-filenames")
		cpio.Dir, cpio.Stdin = dir, bytes.NewReader(testmod.Run(t, "rpm2cpio", path))
		if out, err := cpio.CombinedOutput(); err != nil {
			t.Fatalf("cpio: %v\n%s", err, out)
		}
		return dir
	}
	t.Fatalf("there is no package, debuginfo %v, in %q:\n%s", debuginfo, b.packages, b.log)
	return ""
}

func (b built) hasDebuginfo() bool {
	return slices.ContainsFunc(b.packages, func(p string) bool {
		return strings.Contains(filepath.Base(p), "-debuginfo-")
	})
}

// modules returns the modules below a directory.
func modules(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(d.Name(), ".ko") {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// checkModules fails the test unless a directory contains exactly the three modules,
// with this ending, mode 0644 and signatures by the key. modsign verifies them, and
// kmod's modinfo must read the same signer.
func checkModules(t *testing.T, dir, ending string, key *testmod.Key, hash string) {
	t.Helper()
	found := modules(t, dir)
	var have, want []string
	for _, path := range found {
		have = append(have, filepath.Base(path))
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != 0o644 {
			t.Errorf("%s: mode %v", path, info.Mode())
		}
		if signer := modinfo(t, "signer", path); signer != key.Certificate.Subject.CommonName {
			t.Errorf("%s: modinfo names the signer %q", path, signer)
		}
		if h := modinfo(t, "sig_hashalgo", path); hash != "" && h != hash {
			t.Errorf("%s: signed with %s, want %s", path, h, hash)
		}
		plain := decompressed(t, path)
		if !bytes.HasSuffix(plain, []byte(marker)) || bytes.Count(plain, []byte(marker)) != 1 {
			t.Errorf("%s does not end in one signature", path)
		}
		if f, err := elf.NewFile(bytes.NewReader(plain)); err != nil || f.Section(".debug_info") != nil {
			t.Errorf("%s has debug information (%v)", path, err)
		}
	}
	for _, name := range names {
		want = append(want, name+".ko"+ending)
	}
	slices.Sort(have)
	if !slices.Equal(have, want) {
		t.Errorf("the package has %q, want %q", have, want)
	}
	cert := testmod.WriteFile(t, "cert.der", key.Certificate.Raw)
	testmod.Run(t, modsign(t), "verify", "--cert", cert, dir)
}

func modinfo(t *testing.T, field, path string) string {
	t.Helper()
	return strings.TrimSpace(string(testmod.Run(t, testmod.Program(t, "modinfo", "kmod"), "-F", field, path)))
}

// decompressed reads a module with the compressor's own program, and checks that a
// kernel can read it too.
func decompressed(t *testing.T, path string) []byte {
	t.Helper()
	switch filepath.Ext(path) {
	case ".xz":
		xz := testmod.Program(t, "xz", "xz-utils")
		if list := string(testmod.Run(t, xz, "--list", "--robot", path)); !strings.Contains(list, "\tCRC32\t") {
			t.Errorf("%s: a kernel takes no check but CRC32:\n%s", path, list)
		}
		return testmod.Run(t, xz, "-dc", path)
	case ".zst":
		return testmod.Run(t, testmod.Program(t, "zstd", "zstd"), "-dcq", path)
	case ".gz":
		return testmod.Run(t, testmod.Program(t, "gzip", "gzip"), "-dc", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// checkDebuginfo fails the test unless the debuginfo package has a debug file for every
// module. The module's build ID must lead to the file, and gdb must find lines with it.
func checkDebuginfo(t *testing.T, root, debugRoot string) {
	t.Helper()
	debug := filepath.Join(debugRoot, "usr/lib/debug")
	for _, path := range modules(t, root) {
		plain := testmod.WriteFile(t, strings.TrimRight(filepath.Base(path), "xzgst."), decompressed(t, path))
		name, _, _ := strings.Cut(filepath.Base(path), ".ko")
		id := buildID(t, plain)
		link := filepath.Join(debug, ".build-id", id[:2], id[2:]+".debug")
		file, err := filepath.EvalSymlinks(link)
		if err != nil {
			t.Errorf("%s: its build ID leads to no debug file: %v", path, err)
			continue
		}
		// find-debuginfo may add version and architecture to the name. modsign leaves
		// out usr, like the kernels' packages.
		rel, _ := filepath.Rel(root, filepath.Dir(path))
		in, _ := filepath.Rel(debug, file)
		if strings.TrimPrefix(filepath.Dir(in), "usr/") != strings.TrimPrefix(rel, "usr/") ||
			!strings.HasPrefix(filepath.Base(in), name+".ko") || filepath.Ext(in) != ".debug" {
			t.Errorf("%s leads to %s, which is no debug file of %s/%s", link, in, rel, name)
		}
		f, err := elf.Open(file)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		section := f.Section(".debug_info")
		f.Close()
		if section == nil || section.Size == 0 || section.Type != elf.SHT_PROGBITS {
			t.Errorf("%s has no .debug_info", file)
		}
		if got := buildID(t, file); got != id {
			t.Errorf("%s has the build ID %s, and the module %s", file, got, id)
		}
		if name == "modsign_user" {
			checkLines(t, debug, plain)
		}
	}
}

// checkLines asks gdb for the line of a function in user_calls.c.
func checkLines(t *testing.T, debug, module string) {
	t.Helper()
	if os.Getenv(theProgram) != "" {
		return // gdb 16 takes another function, at the same address in another section
	}
	source, err := os.ReadFile("testdata/kmod/user_calls.c")
	if err != nil {
		t.Fatal(err)
	}
	before, _, found := strings.Cut(string(source), "int modsign_user_calls(void)\n{")
	if !found {
		t.Fatal("testdata/kmod/user_calls.c has changed")
	}
	line := strings.Count(before, "\n") + 1 // line of the name; some compilers use the brace below
	want := regexp.MustCompile(fmt.Sprintf(`^Line (%d|%d) of ".*/user_calls\.c" starts at address`, line, line+1))
	gdb := testmod.Program(t, "gdb", "gdb")
	ask := func(debug string) []byte {
		return testmod.Run(t, gdb, "-nx", "-batch", "-iex", "set debug-file-directory "+debug, "-ex",
			"info line modsign_user_calls", module)
	}
	if out := ask(debug); !want.Match(out) {
		t.Errorf("gdb says %q, want %v", out, want)
	}
	if out := ask("/nonexistent"); want.Match(out) {
		t.Error("gdb finds lines without the debuginfo package")
	}
}

// buildID reads a file's build ID.
func buildID(t *testing.T, path string) string {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	section := f.Section(".note.gnu.build-id")
	if section == nil {
		t.Fatalf("%s has no build ID", path)
	}
	data, err := section.Data()
	if err != nil || len(data) != 16+20 {
		t.Fatalf("%s: build ID of %d bytes (%v)", path, len(data), err)
	}
	return hex.EncodeToString(data[16:])
}

// keyDefines returns the macros that name a key.
func keyDefines(t *testing.T, key *testmod.Key) map[string]string {
	t.Helper()
	private, cert := key.Files(t)
	return map[string]string{"modsign_key": private, "modsign_cert": cert}
}

// with returns a copy of a map with more entries.
func with(base map[string]string, more ...string) map[string]string {
	m := maps.Clone(base)
	for i := 0; i < len(more); i += 2 {
		m[more[i]] = more[i+1]
	}
	return m
}

// pairs returns a map in the form of the arguments of with.
func pairs(m map[string]string) (list []string) {
	for name, value := range m {
		list = append(list, name, value)
	}
	return list
}

// run runs a program in a directory and returns its output and its exit status.
func run(t *testing.T, dir string, env []string, name string, args ...string) (string, int) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// encrypted returns the key with a passphrase, encrypted by openssl.
func encrypted(t *testing.T, key *testmod.Key, passphrase string) []byte {
	t.Helper()
	cmd := exec.Command(testmod.Program(t, "openssl", "openssl"), "pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout",
		"env:PASSPHRASE")
	cmd.Env = append(os.Environ(), "PASSPHRASE="+passphrase)
	cmd.Stdin = bytes.NewReader(key.KeyPEM)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}
