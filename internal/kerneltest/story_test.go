//go:build kerneltest

package kerneltest

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/keygen/agent"
	"github.com/modsign/modsign/sign"
	"github.com/modsign/modsign/verify"
)

// buildProgram builds modsign as users do.
func buildProgram(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "modsign")
	cmd := exec.Command(testmod.Program(t, "go", "golang-go"), "build", "-o", path,
		"github.com/modsign/modsign/cmd/modsign")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return path
}

// A user builds a kernel with modsign.
type user struct {
	modsign    string
	runtimeDir string
	jobs       string
	environ    []string // more than that of the test
}

func newUser(t testing.TB) *user {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "ms-run-") // short, for the agent's socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &user{modsign: buildProgram(t), runtimeDir: dir, jobs: fmt.Sprintf("-j%d", runtime.NumCPU())}
}

func (u *user) command(dir, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(cmd.Environ(), "XDG_RUNTIME_DIR="+u.runtimeDir)
	cmd.Env = append(cmd.Env, u.environ...)
	return cmd
}

// try runs a command and returns its output.
func (u *user) try(dir, name string, args ...string) (string, error) {
	out, err := u.command(dir, name, args...).CombinedOutput()
	return string(out), err
}

func (u *user) run(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	begin := time.Now()
	out, err := u.try(dir, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, tail([]byte(out)))
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Logf("%s %s: %s", filepath.Base(name), strings.Join(args, " "), took.Round(time.Second/10))
	}
	return out
}

// agent returns the key agent's status, or an error if there is none.
func (u *user) agent(objtree string) (agent.Status, error) {
	var status agent.Status
	cmd := u.command("", u.modsign, "agent", "status", "--json", "--objtree", objtree)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return status, fmt.Errorf("%w: %s", err, stderr.Bytes())
	}
	return status, json.Unmarshal(out, &status)
}

// A variant is a configuration of signing and compression.
type variant struct {
	key    keygen.Algorithm
	format compress.Format
}

func (v variant) String() string { return fmt.Sprintf("%s, %s", v.key, v.format) }

// config returns the lines of the configuration that differ between variants.
func (v variant) config() string {
	set := map[string]bool{
		"SIG_KEY_TYPE_RSA": v.key == keygen.RSA4096, "SIG_KEY_TYPE_ECDSA": v.key == keygen.ECDSAP384,
		"SIG_KEY_TYPE_MLDSA_65": v.key == keygen.MLDSA65,
		"COMPRESS_ALL":          v.format != compress.None,
		"COMPRESS_XZ":           v.format == compress.XZ || v.format == compress.None,
		"COMPRESS_ZSTD":         v.format == compress.Zstd, "COMPRESS_GZIP": v.format == compress.Gzip,
	}
	var lines strings.Builder
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if !set[name] && strings.Contains(name, "MLDSA") {
			continue // no symbol before 7.0
		}
		if set[name] {
			fmt.Fprintf(&lines, "CONFIG_MODULE_%s=y\n", name)
		} else {
			fmt.Fprintf(&lines, "# CONFIG_MODULE_%s is not set\n", name)
		}
	}
	return lines.String()
}

// TestStory runs the whole story on the kernel's source, from enable to clean. The user
// types the usual commands. Each tree is built once, for the first variant; for the
// others, make links again.
func TestStory(t *testing.T) {
	// Debian's depmod does not support gzip.
	var all []variant
	for _, key := range []keygen.Algorithm{keygen.RSA4096, keygen.ECDSAP384} {
		for _, format := range []compress.Format{compress.None, compress.XZ, compress.Zstd} {
			all = append(all, variant{key, format})
		}
	}
	t.Run("in the source tree", func(t *testing.T) { story{inTree: true, variants: all}.tell(t) })
	slices.Reverse(all)
	t.Run("O=", func(t *testing.T) { story{variants: all}.tell(t) })
	if full() {
		t.Run("Linux 7", func(t *testing.T) {
			story{series: "7", variants: []variant{
				{keygen.MLDSA65, compress.None}, {keygen.MLDSA65, compress.XZ}, {keygen.ECDSAP384, compress.Zstd},
				{keygen.RSA4096, compress.None},
			}}.tell(t)
		})
	}
}

type story struct {
	series   string // of Linux; "" for the one of Source
	inTree   bool
	variants []variant
}

// directories makes the trees of a story: a copy of the source for a build in it, or
// the source and an empty directory beside it.
func (s story) directories(t *testing.T) (srctree, objtree string) {
	t.Helper()
	source := SourceOf(t, cmp.Or(s.series, linux612.series))
	base, err := os.MkdirTemp(filepath.Dir(source), "story-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	srctree, objtree = filepath.Join(base, "linux"), filepath.Join(base, "build")
	// Hard links suffice: Kbuild replaces files, and does not write into them.
	testmod.Run(t, "cp", "-al", source, srctree)
	if s.inTree {
		return srctree, srctree
	}
	if err := os.Mkdir(objtree, 0o755); err != nil {
		t.Fatal(err)
	}
	return srctree, objtree
}

func (s story) tell(t *testing.T) {
	u := newUser(t)
	srctree, objtree := s.directories(t)
	first := s.variants[0]
	// The configuration completed by Kconfig, for the first command.
	base := Base
	if s.series != "" {
		base = without(Base, "CRYPTO_MICHAEL_MIC")
		// Kconfig asks openssl whether it knows ML-DSA.
		u.environ = append(u.environ, testmod.FirstInPath(filepath.Dir(testmod.OpenSSL35(t))))
	}
	configured := configure(t, SourceOf(t, cmp.Or(s.series, linux612.series)), "story", base+first.config())
	config, err := os.ReadFile(configured.config())
	if err != nil {
		t.Fatal(err)
	}
	allconfig := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(allconfig, config, 0o644); err != nil {
		t.Fatal(err)
	}
	root, trace := t.TempDir(), filepath.Join(t.TempDir(), "trace")
	tree := &Tree{Srctree: srctree, Objtree: objtree}
	o := ""
	if !s.inTree {
		o = "O=" + objtree
	}

	u.run(t, srctree, u.modsign, "kbuild", "enable", "--objtree", objtree)
	// The first call has both the configuration's goal and the build's goal.
	script := fmt.Sprintf(`
set -e
make %[1]s %[2]s KCONFIG_ALLCONFIG=%[3]s allnoconfig all
make %[1]s %[2]s INSTALL_MOD_PATH=%[4]s modules_install
echo story: installed
read go
make %[2]s clean
`, u.jobs, o, allconfig, root)
	// Trace what processes with the name modsign open for writing. strace ends with the
	// last process that it follows, including the agent.
	cmd := u.command(srctree, testmod.Program(t, "strace", "strace"), "-f", "--seccomp-bpf", "-Y", "-y", "-qq", "-e",
		"signal=none",
		"-e", "trace=open,openat,openat2,creat,rename,renameat,renameat2,linkat", "-o",
		"|grep -E '<(modsign|[0-9]+)>' >"+trace, "sh", "-c", script)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		u.try("", u.modsign, "agent", "forget", "--objtree", objtree)
	})
	var said strings.Builder
	lines := bufio.NewReader(io.TeeReader(stdout, &said))
	for line := ""; line != "story: installed\n"; {
		if line, err = lines.ReadString('\n'); err != nil {
			t.Fatalf("the build ended early: %v\n%s", cmd.Wait(), tail([]byte(said.String())))
		}
	}
	t.Logf("configured, built and installed under strace in %s", time.Since(begin).Round(time.Second))
	if strings.Contains(said.String(), "GENKEY") {
		t.Error("openssl has made a key")
	}
	u.strangers(t, objtree)
	modlib, modules := u.judge(t, tree, first, root)

	// For the other variants, make only links again.
	for _, v := range s.variants[1:] {
		t.Run(v.String(), func(t *testing.T) {
			root := t.TempDir()
			appendTo(t, filepath.Join(objtree, ".config"), v.config())
			u.run(t, objtree, "make", "olddefconfig")
			u.run(t, objtree, "make", u.jobs)
			u.run(t, objtree, "make", u.jobs, "-s", "INSTALL_MOD_PATH="+root, "modules_install")
			u.judge(t, tree, v, root)
		})
	}
	if !s.inTree && s.series == "" {
		u.behave(t, tree)
	}

	if _, err := io.WriteString(stdin, "go\n"); err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, lines)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, tail([]byte(said.String())))
	}
	if _, err := u.agent(objtree); err == nil || !strings.Contains(err.Error(), "forgotten") {
		t.Errorf("after make clean the agent is asked: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(u.runtimeDir, "*")); err != nil || len(left) != 0 {
		t.Errorf("agents left %q, %v", left, err)
	}
	if found := privateKeys(t, objtree, root); len(found) != 0 {
		t.Errorf("private keys on disk: %q", found)
	}
	checkTrace(t, trace, objtree, root, len(modules))
	receipts, err := filepath.Glob(filepath.Join(objtree, ".modsign/receipt-*.json"))
	if err != nil {
		t.Fatal(err)
	}
	matches := 0
	for _, receipt := range receipts {
		u.run(t, "", u.modsign, "agent", "receipt", receipt)
		if _, err := u.try("", u.modsign, "agent", "receipt", receipt, modlib); err == nil {
			matches++
		}
	}
	// The first key signed some modules a second time, with the same result.
	if matches != 1 {
		t.Errorf("%d of %d receipts are of the key that signed the first installation", matches, len(receipts))
	}

	u.run(t, objtree, "make", "mrproper")
	u.run(t, srctree, u.modsign, "kbuild", "disable", "--objtree", objtree, "--srctree", srctree)
	for _, dir := range []string{srctree, objtree} {
		for _, name := range []string{"GNUmakefile", ".modsign", "scripts/sign-file", "scripts/sign-file.kbuild"} {
			if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
				t.Errorf("disable leaves %s", filepath.Join(dir, name))
			}
		}
	}
}

func appendTo(t testing.TB, path, text string) {
	t.Helper()
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(append(old, '\n'), text...), 0o644); err != nil {
		t.Fatal(err)
	}
}

// judge checks what was installed for a variant, and boots the kernel to judge the
// modules.
func (u *user) judge(t *testing.T, tree *Tree, v variant, root string) (modlib string, modules []string) {
	t.Helper()
	status, err := u.agent(tree.Objtree)
	if err != nil {
		t.Fatal(err)
	}
	modlib, modules = installed(t, root)
	if status.Algorithm != v.key.String() || status.Signatures != status.Installs*len(modules) {
		t.Errorf("the agent has the key %s, and made %d signatures in %d installs of %d modules", status.Algorithm,
			status.Signatures, status.Installs, len(modules))
	}
	for _, name := range modules {
		if !strings.HasSuffix(name, ".ko"+v.format.Suffix()) {
			t.Errorf("%s is not compressed with %v", name, v.format)
		}
	}
	if found := privateKeys(t, tree.Objtree, root, u.runtimeDir); len(found) != 0 {
		t.Errorf("private keys on disk: %q", found)
	}
	v.boot(t, tree, modlib, modules)
	return modlib, modules
}

// installed returns the directory of the only kernel installed below root, and its
// modules, each after those that it needs.
func installed(t testing.TB, root string) (modlib string, modules []string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(root, "lib/modules/*"))
	if err != nil || len(found) != 1 {
		t.Fatalf("kernels installed in %s: %q, %v", root, found, err)
	}
	dep, err := os.ReadFile(filepath.Join(found[0], "modules.dep"))
	if err != nil {
		t.Fatal(err)
	}
	needs := make(map[string][]string)
	var names []string
	for line := range strings.Lines(string(dep)) {
		name, on, _ := strings.Cut(line, ":")
		names = append(names, name)
		needs[name] = strings.Fields(on)
	}
	var visit func(name string)
	visit = func(name string) {
		if slices.Contains(modules, name) {
			return
		}
		for _, need := range needs[name] {
			visit(need)
		}
		modules = append(modules, name)
	}
	for _, name := range names {
		visit(name)
	}
	if len(modules) < 10 {
		t.Fatalf("%s has %d modules", found[0], len(modules))
	}
	return found[0], modules
}

// strangers checks that other users cannot use the agent, even with access to its
// directory.
func (u *user) strangers(t *testing.T, objtree string) {
	t.Helper()
	as := []string{testmod.Program(t, "setpriv", "util-linux"), "--reuid=65534", "--regid=65534", "--clear-groups",
		u.modsign, "agent", "status", "--objtree", objtree}
	if os.Geteuid() != 0 {
		as = append([]string{testmod.Program(t, "sudo", "sudo"), "-n"}, as...)
	}
	out, err := u.try("/", as[0], as[1:]...)
	if err == nil {
		t.Errorf("another user could use the agent: %s", out)
	}
}

// boot has the kernel judge the installed modules, and modified ones.
func (v variant) boot(t *testing.T, tree *Tree, modlib string, modules []string) {
	t.Helper()
	var trusted verify.Keyring
	if err := trusted.AddImage(tree.Image()); err != nil {
		t.Fatal(err)
	}
	compressed := v.format != compress.None
	var cases []Case
	for _, name := range modules {
		cases = append(cases, Case{Name: name, File: filepath.Join(modlib, name), Compressed: compressed, Keep: true})
	}
	leaf := slices.IndexFunc(modules, func(name string) bool { return strings.Contains(name, "/md4.ko") })
	if leaf < 0 {
		t.Fatalf("no md4.ko in %q", modules)
	}
	signed := decompress(t, filepath.Join(modlib, modules[leaf]))
	payload, err := os.ReadFile(filepath.Join(tree.Objtree, "crypto/md4.ko"))
	if err != nil {
		t.Fatal(err)
	}
	other, err := keygen.Generate(keygen.ECDSAP384, keygen.DefaultTemplate())
	if err != nil {
		t.Fatal(err)
	}
	signer, err := sign.NewSigner(other.Signer, other.Certificate, sign.SignerOptions{Hash: crypto.SHA512})
	if err != nil {
		t.Fatal(err)
	}
	der, err := signer.Sign(bytes.NewReader(payload))
	if err != nil {
		t.Fatal(err)
	}
	bad := func(name string, data []byte) {
		if compressed {
			data = modsignCompress(t, v.format, data)
		}
		cases = append(cases, Case{Name: name, Data: data, Compressed: compressed})
	}
	bad("one byte flipped", changed(signed, len(payload)/2))
	bad("one byte of the signature flipped", changed(signed, len(signed)-60))
	bad("signed by another key", withCMS(payload, der))
	bad("not signed", payload)

	dir, refused := t.TempDir(), 0
	for i, kernel := range Boot(t, tree.Image(), cases) {
		path := cases[i].File
		if path == "" {
			path = filepath.Join(dir, "md4.ko"+v.format.Suffix())
			if err := os.WriteFile(path, cases[i].Data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		result := verify.File(t.Context(), &trusted, path)
		if cases[i].File != "" {
			if kernel.Errno != 0 || result.Verdict != verify.Trusted { // its log does not matter
				t.Errorf("%s: %v %q, and verify says %s", kernel.Name, kernel.Errno, kernel.Log, result.Verdict)
			}
			continue
		}
		made{Case: cases[i]}.compare(t, kernel, result)
		if kernel.Errno != 0 {
			refused++
		}
	}
	if refused != 4 {
		t.Errorf("the kernel rejected %d of 4 bad modules", refused)
	}
}

// decompress reads an installed module with the usual programs.
func decompress(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	switch compress.FromName(path) {
	case compress.Gzip:
		return filter(t, b, "gzip", "-dc")
	case compress.XZ:
		return filter(t, b, "xz", "-dc")
	case compress.Zstd:
		return filter(t, b, "zstd", "-dcq")
	}
	return b
}

// These match lines of strace -Y -y for processes with the name modsign. A path is a
// descriptor, after which strace prints its directory, and a name. An interrupted call
// has its arguments in the first of two lines. The process that holds a one-time key
// executes itself from a descriptor, and strace takes the descriptor's number for its
// name.
const tracedPath = `(?:(?:AT_FDCWD|\d+)(?:<([^>]*)>)?, )?"([^"]*)"`

var (
	opened  = regexp.MustCompile(`^\d+<(?:modsign|\d+)>\s+(?:open|creat|openat|openat2)\(` + tracedPath + `, (.*)`)
	renamed = regexp.MustCompile(`^\d+<(?:modsign|\d+)>\s+(?:rename|renameat|renameat2|linkat)\(` +
		tracedPath + `, ` + tracedPath)
	locked = regexp.MustCompile(`^(/run/modsign|/tmp/\.modsign-lock-\d+\.\d)/[0-9a-f-]+\.lock$`)
)

// traced returns the path of a name in a directory.
func traced(dir, name string) string {
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(dir, name)
}

// checkTrace checks every file that a process of modsign opened for writing: the
// certificate, the modules, the receipt, locks, and the hook's own files. All except
// the locks are written under another name first.
func checkTrace(t *testing.T, trace, objtree, root string, modules int) {
	t.Helper()
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	final := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		if m := renamed.FindStringSubmatch(line); m != nil {
			final[traced(m[1], m[2])] = traced(m[3], m[4])
		}
	}
	count := make(map[string]int)
	for line := range strings.Lines(string(text)) {
		m := opened.FindStringSubmatch(line)
		if m == nil || !strings.Contains(m[3], "O_WRONLY") && !strings.Contains(m[3], "O_RDWR") &&
			!strings.Contains(m[3], "O_CREAT") {
			continue
		}
		path := traced(m[1], m[2])
		path = cmp.Or(final[path], path)
		switch name := strings.TrimPrefix(path, objtree+"/"); {
		case path == os.DevNull || locked.MatchString(path):
		case strings.HasPrefix(path, root+"/lib/modules/") && strings.Contains(filepath.Base(path), ".ko"):
			count["modules"]++
		case name == ".modsign/certificate.pem", name == ".modsign/unfinished", name == "scripts/sign-file":
			count[name]++
		case regexp.MustCompile(`^\.modsign/receipt-[0-9a-f]{16}\.json$`).MatchString(name):
			count["receipt"]++
		default:
			t.Errorf("modsign has opened for writing: %s", path)
		}
	}
	t.Logf("opened for writing by modsign: %v", count)
	if count["modules"] != modules || count[".modsign/certificate.pem"] != 1 || count["receipt"] != 1 {
		t.Errorf("the trace is incomplete: %v, of %d modules", count, modules)
	}
}
