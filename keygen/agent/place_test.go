package agent

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/testmod"
)

// TestPlanted has links in the agent's directory that lead out of it.
func TestPlanted(t *testing.T) {
	t.Parallel()
	outside := testmod.WriteFile(t, "file", []byte("precious"))
	untouched := func(t *testing.T) {
		t.Helper()
		if text, err := os.ReadFile(outside); err != nil || string(text) != "precious" {
			t.Errorf("outside of the tree is %q (%v)", text, err)
		}
	}
	// An agent that starts all the same ends by itself.
	brief := func(o *Options) { o.Lifetime = time.Second }
	t.Run("certificate", func(t *testing.T) {
		t.Parallel()
		cmd, o := agentCommand(t, brief)
		if err := os.Symlink(outside, filepath.Join(o.Dir, certificateName)); err != nil {
			t.Fatal(err)
		}
		want := filepath.Join(o.Dir, certificateName) + ": is a symbolic link instead of a regular file"
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%v: %s", err, out)
		}
		untouched(t)
	})
	t.Run("directory", func(t *testing.T) {
		t.Parallel()
		cmd, o := agentCommand(t, brief)
		elsewhere := t.TempDir()
		if err := errors.Join(os.Remove(o.Dir), os.Symlink(elsewhere, o.Dir)); err != nil {
			t.Fatal(err)
		}
		if out, err := cmd.CombinedOutput(); err == nil ||
			!strings.Contains(string(out), o.Dir+": is a symbolic link instead of a directory") {
			t.Errorf("%v: %s", err, out)
		}
		if left, err := os.ReadDir(elsewhere); err != nil || len(left) > 0 {
			t.Errorf("the other directory holds %v (%v)", left, err)
		}
		if _, err := Dial(o.Dir); err == nil || !strings.Contains(err.Error(), "is a symbolic link") {
			t.Errorf("Dial: %v", err)
		}
	})
	t.Run("receipt", func(t *testing.T) {
		t.Parallel()
		run := startAgent(t, nil)
		agent := run.dial(t)
		if err := os.Symlink(outside, filepath.Join(run.Dir, receiptName(agent.Certificate()))); err != nil {
			t.Fatal(err)
		}
		if err := agent.Forget(); err == nil || !strings.Contains(err.Error(), "but without a receipt: ") {
			t.Errorf("Forget: %v", err)
		}
		run.wait(t)
		if !strings.Contains(run.stderr, "but without a receipt: ") || !strings.Contains(run.stderr, "is a symbolic link") {
			t.Errorf("agent says %s", run.stderr)
		}
		untouched(t)
		_, err := Dial(run.Dir)
		checkNoAgent(t, err, "is a symbolic link")
	})
	t.Run("certificate later", func(t *testing.T) {
		t.Parallel()
		run := startAgent(t, nil)
		path := filepath.Join(run.Dir, certificateName)
		moved := filepath.Join(t.TempDir(), "certificate.pem") // the right one, but not there
		testmod.Run(t, "mv", path, moved)
		if err := os.Symlink(moved, path); err != nil {
			t.Fatal(err)
		}
		agent := run.dial(t)
		if _, planted := errors.AsType[*dirfd.PlantedError](agent.Published()); !planted {
			t.Errorf("Published: %v", agent.Published())
		}
	})
}

// TestBlockedName has another user's directory at the name in /tmp: the agent
// takes a directory of a random name, and takes it away.
func TestBlockedName(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		testmod.Missing(t, "a second user", "run the tests as root")
	}
	// A user whom nobody else has, as the name in /tmp is his.
	const uid = 64123
	name := fmt.Sprintf("/tmp/modsign-%d", uid)
	for what, block := range map[string]func() error{
		"directory": func() error { return os.Mkdir(name, 0o700) },
		"link":      func() error { return os.Symlink("/var", name) },
		"file":      func() error { return os.WriteFile(name, nil, 0o644) },
	} {
		if err := errors.Join(os.RemoveAll(name), block()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(name) })
		start := func(dir string) *agentRun {
			cmd, o := agentCommand(t, func(o *Options) { o.RuntimeDir = "" })
			if dir != "" {
				o.Tree, o.Dir = filepath.Dir(dir), dir
				options := encodeOptions(o)
				cmd.Env[1] = "AGENT_OPTIONS=" + string(options)
			}
			for _, dir := range []string{o.Tree, o.Dir} {
				if err := os.Chown(dir, uid, uid); err != nil {
					t.Fatal(err)
				}
			}
			cmd.Path = testmod.Program(t, "setpriv", "util-linux")
			cmd.Args = []string{cmd.Path, fmt.Sprintf("--reuid=%d", uid), fmt.Sprintf("--regid=%d", uid), "--clear-groups",
				"/proc/self/exe"}
			return startNobody(t, cmd, o)
		}
		run := start("")
		if _, err := run.dial(t).Status(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		socket, err := os.Readlink(filepath.Join(run.Dir, socketName))
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Dir(socket))
		if err != nil || info.Mode() != os.ModeDir|0o700 || info.Sys().(*syscall.Stat_t).Uid != uid {
			t.Errorf("%s: the socket is in %s: %v (%v)", what, filepath.Dir(socket), info, err)
		}
		// One that is killed leaves the directory to the next, whom root asks to end.
		if err := syscall.Kill(run.pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		run.wait(t)
		next := start(run.Dir)
		if err := next.dial(t).Forget(); err != nil {
			t.Error(err)
		}
		next.wait(t)
		if left, _ := filepath.Glob(name + "-*"); len(left) > 0 {
			t.Errorf("%s: %v is left", what, left)
		}
	}
}

// TestRemoveDead has an agent.sock that somebody else made: what it leads to stays.
func TestRemoveDead(t *testing.T) {
	base := t.TempDir()
	run, other := filepath.Join(base, "run"), filepath.Join(base, "other")
	random, err := os.MkdirTemp(filepath.Dir(sharedRuntimeDir()), filepath.Base(sharedRuntimeDir())+"-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(random)
	for path, goes := range map[string]bool{
		filepath.Join(run, "modsign-X.sock"):    true,
		filepath.Join(run, "else.sock"):         false,
		filepath.Join(run, "modsign-X"):         false,
		filepath.Join(other, "modsign-X.sock"):  false,
		filepath.Join(random, "modsign-X.sock"): true,
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		removeDead(path, run)
		if _, err := os.Lstat(path); (err != nil) != goes {
			t.Errorf("%s: %v, want it removed: %t", path, err, goes)
		}
	}
	if _, err := os.Lstat(random); err == nil {
		t.Error("the random directory is left")
	}
}

// TestSilentConnections opens more connections than an agent keeps, and says
// nothing on any: it still answers, and the silent ones give way.
func TestSilentConnections(t *testing.T) {
	t.Parallel()
	run := startAgent(t, nil)
	socket, err := os.Readlink(filepath.Join(run.Dir, socketName))
	if err != nil {
		t.Fatal(err)
	}
	early := run.dial(t) // it has said something, and keeps its place
	var silent []net.Conn
	for range 3 * maxConnections {
		conn, err := net.Dial("unix", socket)
		if errors.Is(err, syscall.EAGAIN) { // too fast for it
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		silent = append(silent, conn)
	}
	for _, agent := range []*Client{early, run.dial(t)} {
		if _, err := agent.Status(); err != nil {
			t.Errorf("among %d silent connections: %v", len(silent), err)
		}
		mustSign(t, agent.Pair().Signer, sum("x"), crypto.SHA256)
	}
	closed := 0
	for _, conn := range silent {
		conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := conn.Read(make([]byte, 1)); isHangup(err) {
			closed++
		}
	}
	if open := len(silent) - closed; open > maxConnections {
		t.Errorf("%d silent connections are open, of %d", open, len(silent))
	}
	if err := run.dial(t).Forget(); err != nil {
		t.Error(err)
	}
	run.wait(t)
}

// TestFewDescriptors has an agent that may open less descriptors than there are
// silent connections.
func TestFewDescriptors(t *testing.T) {
	t.Parallel()
	cmd, o := agentCommand(t, nil)
	prlimit := testmod.Program(t, "prlimit", "util-linux")
	cmd.Path, cmd.Args = prlimit, []string{"prlimit", "--nofile=64:64", "/proc/self/exe"}
	run := startNobody(t, cmd, o)
	socket, err := os.Readlink(filepath.Join(run.Dir, socketName))
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	agent := run.dial(t)
	if _, err := agent.Status(); err != nil {
		t.Error(err)
	}
	if err := agent.Forget(); err != nil {
		t.Error(err)
	}
	run.wait(t)
	run.checkGone(t, "forgotten")
}

// TestStopped has a client of an agent that does not answer at all.
func TestStopped(t *testing.T) {
	testmod.Slow(t, "it waits for an answer until the client gives up")
	t.Parallel()
	run := startAgent(t, nil)
	agent := run.dial(t)
	if err := syscall.Kill(run.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	awaitStopped(t, run.pid)
	_, err := agent.Status()
	if err == nil || !strings.Contains(err.Error(), "does not answer: nothing came within ") {
		t.Errorf("error is %v", err)
	}
}

// awaitStopped waits until all threads of a process have seen SIGSTOP.
func awaitStopped(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		if err != nil || len(threads) == 0 {
			t.Fatalf("process %d has no threads: %v", pid, err)
		}
		if !slices.ContainsFunc(threads, func(path string) bool {
			status, err := os.ReadFile(path)
			return err == nil && !bytes.Contains(status, []byte("\nState:\tT"))
		}) {
			return
		}
	}
	t.Fatalf("process %d does not stop", pid)
}

// TestNotHidden has a system that executes nothing from a memfd: the agent works,
// and says that its memory was open.
func TestNotHidden(t *testing.T) {
	t.Parallel()
	unshare := testmod.Program(t, "unshare", "util-linux")
	const script = `echo 2 >/proc/sys/vm/memfd_noexec && exec /proc/self/fd/3`
	if out, err := exec.Command(unshare, "-r", "-p", "-f", "--mount-proc", "sh", "-c",
		"echo 2 >/proc/sys/vm/memfd_noexec").CombinedOutput(); err != nil {
		testmod.Missing(t, "a process namespace with vm.memfd_noexec",
			"run the tests as root on Linux 6.3 or later: "+string(out))
	}
	cmd, o := agentCommand(t, nil)
	cmd.Path, cmd.Args = unshare, []string{unshare, "-p", "-f", "--kill-child", "--mount-proc", "sh", "-c", script}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	cmd.ExtraFiles = []*os.File{self}
	run := startCommand(t, cmd, o)
	agent := run.dial(t)
	if status, err := agent.Status(); err != nil || status.MemoryHidden {
		t.Errorf("status is %+v (%v)", status, err)
	}
	if err := agent.Forget(); err != nil {
		t.Error(err)
	}
	run.wait(t)
	if !strings.Contains(run.stderr, "hide: memfd_create: permission denied") {
		t.Errorf("agent says %s", run.stderr)
	}
	if run.checkGone(t, "forgotten").MemoryHidden {
		t.Error("the receipt says that the memory was hidden")
	}
}
