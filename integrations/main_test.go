package integrations

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

var (
	program string // the modsign of this tree, static; its directory holds nothing else
	here    string // this directory
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if testmod.WithRace() {
		fmt.Println("all that is tested here runs in other processes, where the race detector does not look")
		return 0
	}
	var err error
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if here, err = os.Getwd(); err != nil {
		return fail(err)
	}
	dir, err := os.MkdirTemp("", "modsign-integrations-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // some tools run as another user
		return fail(err)
	}
	program = filepath.Join(dir, "bin", "modsign")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", program, "../cmd/modsign")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fail(fmt.Errorf("%s: %w\n%s", build, err, out))
	}
	return m.Run()
}

// A result is the exit code and the output of a program.
type result struct {
	code   int
	output string // stdout and stderr
}

// run starts a program in a directory, with modsign in PATH and more variables.
func run(t testing.TB, dir string, env []string, name string, args ...string) result {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "MODSIGN_") || strings.HasPrefix(v, "KBUILD_") ||
			strings.HasPrefix(v, "SOURCE_DATE_EPOCH")
	})
	cmd.Env = append(cmd.Env, "LC_ALL=C.UTF-8", "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"))
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", cmd, err)
	}
	return result{cmd.ProcessState.ExitCode(), string(out)}
}

// ok is run, and fails the test unless the program exits with 0.
func ok(t testing.TB, dir string, env []string, name string, args ...string) string {
	t.Helper()
	r := run(t, dir, env, name, args...)
	if r.code != 0 {
		t.Fatalf("%s %s: exit status %d\n%s", name, strings.Join(args, " "), r.code, r.output)
	}
	return r.output
}

// refuses fails the test unless the result has the exit code and its output the words.
func (r result) refuses(t testing.TB, code int, words string) {
	t.Helper()
	if r.code != code || !strings.Contains(r.output, words) {
		t.Errorf("exit status %d, want %d and %q in\n%s", r.code, code, words, r.output)
	}
}

// publicDir is t.TempDir for users other than the one that runs the test too.
func publicDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t testing.TB, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

const kver = "6.12.117+deb12-amd64" // the kernel of testdata/modules/amd64-6.12

// install puts the three modules of testdata below dir/kernel as a build of a kernel installs
// them: plain, or compressed as testdata names it (gz, xz, zst).
func install(t testing.TB, dir, compression string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join("../testdata/modules/amd64-6.12", compression, "*.ko*"))
	if err != nil || len(found) != 3 {
		t.Fatalf("%d modules in testdata (%v)", len(found), err)
	}
	var order strings.Builder
	for _, path := range found {
		name := filepath.Base(path)
		write(t, filepath.Join(dir, "kernel", name), read(t, path), 0o644)
		stem, _, _ := strings.Cut(name, ".")
		fmt.Fprintf(&order, "kernel/%s.ko\n", stem)
	}
	write(t, filepath.Join(dir, "modules.order"), order.String(), 0o644)
}

// modules returns the modules below a directory.
func modules(t testing.TB, dir string) []string {
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

// content is a module without its compression.
func content(t testing.TB, path string) []byte {
	t.Helper()
	switch filepath.Ext(path) {
	case ".gz":
		return testmod.Run(t, testmod.Program(t, "gzip", "gzip"), "-dc", path)
	case ".xz":
		return testmod.Run(t, testmod.Program(t, "xz", "xz-utils"), "-dc", path)
	case ".zst":
		return testmod.Run(t, testmod.Program(t, "zstd", "zstd"), "-dc", path)
	}
	return []byte(read(t, path))
}

// split separates a module from its CMS message, or returns nil for an unsigned one. It reads
// the trailer by itself, as a second opinion.
func split(data []byte) (payload, message []byte) {
	rest, signed := bytes.CutSuffix(data, []byte("~Module signature appended~\n"))
	if !signed || len(rest) < 12 {
		return data, nil
	}
	size := int(binary.BigEndian.Uint32(rest[len(rest)-4:]))
	rest = rest[:len(rest)-12]
	if size > len(rest) {
		return data, nil
	}
	return rest[:len(rest)-size], rest[len(rest)-size:]
}

// signedBy fails the test unless there are three modules below dir, and openssl finds that the key
// of the certificate has signed each of them.
func signedBy(t testing.TB, dir, cert string) {
	t.Helper()
	found := modules(t, dir)
	if len(found) != 3 {
		t.Fatalf("%d modules below %s, want 3: %q", len(found), dir, found)
	}
	openssl := testmod.Program(t, "openssl", "openssl")
	scratch := t.TempDir()
	for _, path := range found {
		payload, message := split(content(t, path))
		if message == nil {
			t.Errorf("%s is not signed", path)
			continue
		}
		if _, nested := split(payload); nested != nil {
			t.Errorf("%s is signed twice", path)
		}
		p, m := filepath.Join(scratch, "payload"), filepath.Join(scratch, "message")
		write(t, p, string(payload), 0o600)
		write(t, m, string(message), 0o600)
		r := run(t, scratch, nil, openssl, "cms", "-verify", "-binary", "-inform", "DER", "-in", m, "-content", p,
			"-nointern", "-certfile", cert, "-noverify", "-out", "/dev/null")
		if r.code != 0 {
			t.Errorf("openssl does not take the signature of %s:\n%s", path, r.output)
		}
	}
}

// unsigned fails the test if a module below dir is signed.
func unsigned(t testing.TB, dir string) {
	t.Helper()
	for _, path := range modules(t, dir) {
		if _, message := split(content(t, path)); message != nil {
			t.Errorf("%s is signed", path)
		}
	}
}

// pemOf writes a certificate in DER as PEM, for openssl.
func pemOf(t testing.TB, der string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cert.pem")
	testmod.Run(t, testmod.Program(t, "openssl", "openssl"), "x509", "-inform", "DER", "-in", der, "-out", path)
	return path
}

// shellcheck reads a script, as scripts/check reads those that begin with #!.
func shellcheck(t testing.TB, shell, script string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "script")
	write(t, path, script, 0o600)
	r := run(t, "", nil, testmod.Program(t, "shellcheck", "shellcheck"), "--shell", shell, path)
	if r.code != 0 {
		t.Errorf("%s\n%s", r.output, script)
	}
}

// needRoot skips the test for an ordinary user.
func needRoot(t testing.TB, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("root is needed: " + why)
	}
}
