package debtest

import (
	"bytes"
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
	program string // the modsign of this tree
	scripts string // the directory scripts
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if raceDetector {
		fmt.Println("all that is tested here runs in other processes, where the race detector does not look")
		return 0
	}
	dir, err := os.MkdirTemp("", "debtest")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // for tests as an ordinary user
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	program = filepath.Join(dir, "modsign")
	build := exec.Command("go", "build", "-o", program, "../../cmd/modsign")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n%s", build, err, out)
		return 1
	}
	if scripts, err = filepath.Abs("../../scripts"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// environment returns the environment of the tests with the given variables, and
// without variables that would affect the results.
func environment(with ...string) []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		for _, prefix := range []string{"MODSIGN", "KBUILD_", "KERNEL_INSTALL_", "DEB", "DH_", "DPKG_", "MAKE", "MFLAGS",
			"PERL5", "SOURCE_DATE_EPOCH", "LC_", "LANG"} {
			if strings.HasPrefix(v, prefix) {
				return !strings.HasPrefix(v, "MODSIGN_CACHE")
			}
		}
		return false
	})
	return append(append(env, "LC_ALL=C.UTF-8"), with...)
}

// hookEnvironment is for hooks and for sign-file, which run from the tree for the
// system below root.
func hookEnvironment(root string, with ...string) []string {
	return environment(append([]string{"MODSIGN=" + program, "MODSIGN_HOOK=" + filepath.Join(scripts, "hooks/hook"),
		"MODSIGN_ROOT=" + root}, with...)...)
}

// result is the exit code and the output of a program.
type result struct {
	code   int
	output string // stdout and stderr
}

func run(t testing.TB, env []string, dir, name string, args ...string) result {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env, cmd.Dir = env, dir
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &exit) || !exit.Exited()) {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return result{cmd.ProcessState.ExitCode(), string(out)}
}

// want checks the exit code, and that the output contains all words.
func (r result) want(t testing.TB, code int, words ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d, want %d:\n%s", r.code, code, r.output)
	}
	for _, word := range words {
		if !strings.Contains(r.output, word) {
			t.Errorf("nothing is said about %q:\n%s", word, r.output)
		}
	}
}

// silent checks that a program succeeded without output.
func (r result) silent(t testing.TB) {
	t.Helper()
	if r.code != 0 || r.output != "" {
		t.Errorf("exit code %d, want 0 and silence:\n%s", r.code, r.output)
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t testing.TB, path string, mode fs.FileMode, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	info, err := os.Stat(from)
	if err != nil {
		t.Fatal(err)
	}
	write(t, to, info.Mode().Perm(), string(read(t, from)))
}

// modulesIn lists the modules below a directory, and fails the test if there are none.
func modulesIn(t testing.TB, dir string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(d.Name(), ".ko") && !strings.HasSuffix(d.Name(), ".debug") {
			found = append(found, path)
		}
		return err
	})
	if err != nil || len(found) == 0 {
		t.Fatalf("no modules in %s (%v)", dir, err)
	}
	return found
}

// trusted checks that a kernel with this certificate would load all modules below the
// paths.
func trusted(t testing.TB, cert string, paths ...string) {
	t.Helper()
	run(t, environment(), "", program, append([]string{"verify", "--cert", cert, "--"}, paths...)...).want(t, 0,
		"all trusted")
}

// unsign removes the signatures of modules.
func unsign(t testing.TB, paths ...string) {
	t.Helper()
	testmod.Run(t, program, append([]string{"strip", "--quiet", "--signature", "--"}, paths...)...)
}

// encrypted returns a private key with a passphrase, encrypted by openssl.
func encrypted(t testing.TB, key, passphrase string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "encrypted.pem")
	cmd := exec.Command(testmod.Program(t, "openssl", "openssl"), "pkey", "-in", key, "-aes256", "-passout",
		"env:PASSPHRASE", "-out", path)
	cmd.Env = environment("PASSPHRASE=" + passphrase)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// system is a directory with an installed kernel and a few of its modules.
type system struct {
	root, version, image string
	modules              string   // lib/modules/VERSION
	files                []string // the modules
}

// install creates a system with a real kernel and copies of its modules.
func install(t testing.TB, k testmod.Kernel) *system {
	t.Helper()
	testmod.Slow(t, "verifies an installed kernel")
	root := t.TempDir()
	s := &system{root: root, version: k.Version, image: "/boot/vmlinuz-" + k.Version,
		modules: filepath.Join(root, "lib/modules", k.Version)}
	if err := os.Mkdir(filepath.Join(root, "boot"), 0o755); err != nil {
		t.Fatal(err)
	}
	copyFile(t, k.Image, filepath.Join(root, s.image)) // a link would leave the root
	copyFile(t, k.Config, filepath.Join(root, "boot/config-"+k.Version))
	for i := 0; i < len(k.Modules) && len(s.files) < 5; i += len(k.Modules) / 5 {
		name, err := filepath.Rel(k.Root, k.Modules[i])
		if err != nil {
			t.Fatal(err)
		}
		s.files = append(s.files, filepath.Join(root, name))
		copyFile(t, k.Modules[i], filepath.Join(root, name))
	}
	return s
}

func (s *system) configure(t testing.TB, lines ...string) {
	t.Helper()
	write(t, filepath.Join(s.root, "etc/modsign/modsign.conf"), 0o644, strings.Join(lines, "\n")+"\n")
}

// keep copies a file into the system, and returns its path there.
func (s *system) keep(t testing.TB, name, from string) string {
	t.Helper()
	copyFile(t, from, filepath.Join(s.root, name))
	return name
}

// hook is one of the two hooks, called for a new kernel.
type hook struct {
	name string
	run  func(t testing.TB, s *system, with ...string) result
}

var hooks = []hook{
	{"postinst.d", func(t testing.TB, s *system, with ...string) result {
		return run(t, hookEnvironment(s.root, with...), "", filepath.Join(scripts, "hooks/dkms-modsign"), s.version, s.image)
	}},
	{"kernel-install", func(t testing.TB, s *system, with ...string) result {
		return run(t, hookEnvironment(s.root, with...), "", filepath.Join(scripts, "hooks/45-modsign.install"), "add",
			s.version, "/boot/entry", s.image, "/boot/initrd")
	}},
}

// eachHook runs a test for both hooks.
func eachHook(t *testing.T, f func(t *testing.T, h hook)) {
	for _, h := range hooks {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			f(t, h)
		})
	}
}

// newest is the newest kernel.
func newest(t testing.TB) testmod.Kernel {
	kernels := testmod.Kernels(t)
	return kernels[len(kernels)-1]
}

// same checks that two files are byte for byte the same.
func same(t testing.TB, got, want string) {
	t.Helper()
	if !bytes.Equal(read(t, got), read(t, want)) {
		t.Errorf("%s is not what %s is", got, want)
	}
}
