package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

const ordinary = 65531 // a user with no other process, whom limits hold

// world is a directory of an ordinary user, with the program in it as it is packaged.
type world struct{ dir, program, key, cert string }

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Getuid() != 0 {
		testmod.Missing(t, "root", "run the tests as root: limits of another user are needed")
	}
	dir, err := os.MkdirTemp("", "modsign-abort")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &world{dir, filepath.Join(dir, "modsign"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.pem")}
	build := exec.Command("go", "build", "-o", w.program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	key := testmod.NewKey(t, "ecdsa:p256")
	if err := errors.Join(
		os.WriteFile(w.key, key.KeyPEM, 0o600), os.WriteFile(w.cert, key.CertPEM, 0o644),
		os.Chown(w.key, ordinary, ordinary), os.Chmod(dir, 0o755),
	); err != nil {
		t.Fatal(err)
	}
	return w
}

// command is the program as the ordinary user, under a limit.
func (w *world) command(t *testing.T, limit string, args ...string) *exec.Cmd {
	words := []string{
		limit, testmod.Program(t, "setpriv", "util-linux"), fmt.Sprintf("--reuid=%d", ordinary),
		fmt.Sprintf("--regid=%d", ordinary), "--clear-groups", w.program,
	}
	return exec.Command(testmod.Program(t, "prlimit", "util-linux"), append(words, args...)...)
}

// TestRuntimeFailure takes threads and memory away from a run. Where Go's runtime dies in
// the middle of it the exit code is not 2, which says that nothing was done.
func TestRuntimeFailure(t *testing.T) {
	testmod.Slow(t, "signs a tree under each of many limits")
	w := newWorld(t)
	files := make(map[string][]byte)
	for _, source := range []string{"plain/hello.ko", "zst/ring.ko.zst", "gz/ring.ko.gz"} {
		data, err := os.ReadFile(filepath.Join("../../testdata/modules/amd64-6.12", source))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 40 {
			files[fmt.Sprintf("%d-%s", i, filepath.Base(source))] = data
		}
	}
	var limits []string
	for n := range 10 {
		limits = append(limits, fmt.Sprintf("--nproc=%d", n+1))
	}
	for mb := 1190; mb < 1330; mb += 10 {
		limits = append(limits, fmt.Sprintf("--as=%d", mb*1_000_000))
	}
	aborted, halfway := 0, 0
	for _, limit := range limits {
		n, status := w.signUnder(t, limit, files)
		switch {
		case status.Signaled() && status.Signal() == syscall.SIGABRT:
			aborted++
			if n > 0 && n < len(files) {
				halfway++
			}
		case status.ExitStatus() == exitUsage && n > 0:
			t.Errorf("%s: exit code 2, and %d modules are signed", limit, n)
		case status.ExitStatus() == exitDone && n < len(files):
			t.Errorf("%s: exit code 0, and %d of %d modules are signed", limit, n, len(files))
		}
	}
	if aborted == 0 {
		t.Error("no run was killed by SIGABRT")
	}
	t.Logf("of %d runs %d were killed by SIGABRT, %d of them half-way", len(limits), aborted, halfway)
}

// signUnder signs a tree under a limit, and returns how many modules have changed and
// how the process ended. All of them have to be whole.
func (w *world) signUnder(t *testing.T, limit string, files map[string][]byte) (int, syscall.WaitStatus) {
	t.Helper()
	tree := filepath.Join(w.dir, "tree")
	if err := errors.Join(os.RemoveAll(tree), writeTree(tree, files), os.Chown(tree, ordinary, ordinary)); err != nil {
		t.Fatal(err)
	}
	for name := range files {
		if err := os.Chown(filepath.Join(tree, name), ordinary, ordinary); err != nil {
			t.Fatal(err)
		}
	}
	cmd := w.command(t, limit, "sign", "-q", "-k", w.key, "-c", w.cert, tree)
	out, _ := cmd.CombinedOutput()
	changed := []string{"verify", "-q", "--cert", w.cert}
	for name, old := range files {
		path := filepath.Join(tree, name)
		if data, err := os.ReadFile(path); err != nil {
			t.Errorf("%s: %v", limit, err)
		} else if !bytes.Equal(data, old) {
			changed = append(changed, path)
		}
	}
	if n := len(changed) - 4; n > 0 {
		if r := modsign(t, changed...); r.code != 0 {
			t.Errorf("%s: not all that changed is whole: %s%s\n%s", limit, r.stdout, r.stderr, out)
		}
		return n, cmd.ProcessState.Sys().(syscall.WaitStatus)
	}
	return 0, cmd.ProcessState.Sys().(syscall.WaitStatus)
}

// The drop-in is no exception: where it dies it has not the exit code of a wrong command line.
func TestRuntimeFailureOfSignFile(t *testing.T) {
	testmod.Slow(t, "signs a module under each of many limits")
	w := newWorld(t)
	plain, err := os.ReadFile("../../testdata/modules/amd64-6.12/plain/hello.ko")
	if err != nil {
		t.Fatal(err)
	}
	module := filepath.Join(w.dir, "m.ko")
	if err := os.Chmod(w.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	aborted := 0
	for n := range 10 {
		if err := errors.Join(os.WriteFile(module, plain, 0o644), os.Chown(module, ordinary, ordinary)); err != nil {
			t.Fatal(err)
		}
		cmd := w.command(t, fmt.Sprintf("--nproc=%d", n+1), "sign-file", "sha256", w.key, w.cert, module)
		out, _ := cmd.CombinedOutput()
		status := cmd.ProcessState.Sys().(syscall.WaitStatus)
		data, err := os.ReadFile(module)
		if err != nil {
			t.Fatal(err)
		}
		if status.Signaled() && status.Signal() == syscall.SIGABRT {
			aborted++
		}
		// Before main nothing can be done about the exit code, and nothing is done.
		began := bytes.Contains(out, []byte("main.main()"))
		changed := !bytes.Equal(data, plain)
		if (changed || began) && status.ExitStatus() == exitUsage || !changed && status.ExitStatus() == 0 ||
			strings.Contains(string(out), "Usage:") {
			t.Errorf("nproc=%d: %v, and the module was signed: %t\n%s", n+1, cmd.ProcessState, changed, out)
		}
	}
	if aborted == 0 {
		t.Error("no run was killed by SIGABRT")
	}
	t.Logf("%d runs were killed", aborted)
}

// TestNoCore looks at a command that waits for a certificate: whatever core the user
// wants of a process that dies, this one leaves none, and nobody reads its memory.
func TestNoCore(t *testing.T) {
	testmod.Slow(t, "it builds the program")
	w := newWorld(t)
	for _, args := range [][]string{{"verify", "--cert", "FIFO", "."}, {"sign-file", "sha256", "FIFO", "FIFO", w.cert}} {
		t.Run(args[0], func(t *testing.T) {
			fifo := filepath.Join(t.TempDir(), "fifo")
			if err := syscall.Mkfifo(fifo, 0o666); err != nil {
				t.Fatal(err)
			}
			dir := filepath.Dir(fifo)
			for ; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
				os.Chmod(dir, 0o755)
			}
			if err := os.Chown(fifo, ordinary, ordinary); err != nil {
				t.Fatal(err)
			}
			os.Chmod(fifo, 0o600)
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "FIFO", fifo)
			}
			cmd := w.command(t, "--core=unlimited", args...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { cmd.Process.Kill(); cmd.Wait() }()
			// This waits until the other end is open: it reads now.
			f, err := os.OpenFile(fifo, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			proc := fmt.Sprintf("/proc/%d", cmd.Process.Pid)
			limits, err := os.ReadFile(proc + "/limits")
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(limits)) {
				if strings.HasPrefix(line, "Max core file size") && strings.Fields(line)[4] != "0" {
					t.Error(line)
				}
			}
			// The files of a process whose memory is not to be dumped are root's.
			info, err := os.Stat(proc + "/mem")
			if err != nil {
				t.Fatal(err)
			}
			if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 0 {
				t.Errorf("the memory is that of user %d", uid)
			}
		})
	}
}
