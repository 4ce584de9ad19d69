package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/kbuildrun"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen/agent"
)

// agentDirs are an object tree, and a place for the socket whose name is short
// enough.
func agentDirs(t *testing.T) (tree, runtime string) {
	t.Helper()
	base, err := os.MkdirTemp("", "modsign-agent-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	tree, runtime = filepath.Join(base, "o"), filepath.Join(base, "run")
	if err := errors.Join(os.MkdirAll(filepath.Join(tree, ".modsign"), 0o755), os.Mkdir(runtime, 0o700)); err != nil {
		t.Fatal(err)
	}
	return tree, runtime
}

// TestAgentStarter is the other process of TestAgentLetsGo: it starts an agent, as
// the driver of a build does, and ends.
func TestAgentStarter(t *testing.T) {
	tree := os.Getenv("MODSIGN_TEST_TREE")
	if tree == "" {
		return
	}
	wanted := kbuildrun.Agent{Dir: filepath.Join(tree, ".modsign"), Tree: tree,
		KeyType: "ecdsa:p384", Lifetime: time.Hour, Profile: "x"}
	client, err := wanted.Start(t.Context(), os.Environ())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	status, err := client.Status()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("pid", status.PID)
}

// TestAgentLetsGo starts an agent from a shell with pipes at its descriptors 1, 2
// and 7: their readers see the end when the starter ends, although the agent lives.
func TestAgentLetsGo(t *testing.T) {
	t.Parallel()
	tree, runtime := agentDirs(t)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	cmd := exec.Command("sh", "-c", `exec 7>&3; { "$0" -test.run='^TestAgentStarter$' 2>&1; echo "exit $?"; } | cat`,
		program)
	cmd.Env = append(os.Environ(), "MODSIGN_TEST_TREE="+tree, "XDG_RUNTIME_DIR="+runtime, "KBUILD_SIGN_PIN="+passphrase)
	cmd.ExtraFiles = []*os.File{write}
	out, err := cmd.Output() // until all pipes are at their end
	write.Close()
	if err != nil {
		t.Fatal(err)
	}
	read.SetReadDeadline(time.Now().Add(time.Minute))
	if rest, err := io.ReadAll(read); err != nil || len(rest) > 0 {
		t.Errorf("%q (%v) came through descriptor 7", rest, err)
	}
	client, err := agent.Dial(filepath.Join(tree, ".modsign"))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	defer client.Close()
	defer client.Forget()
	status, err := client.Status()
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("pid %d\n", status.PID); !strings.Contains(string(out), want) ||
		!strings.HasSuffix(string(out), "exit 0\n") {
		t.Errorf("the starter said\n%s, want %s", out, want)
	}

	proc := fmt.Sprintf("/proc/%d/", status.PID)
	entries, err := os.ReadDir(proc + "fd")
	if err != nil {
		testmod.Missing(t, "a look at the descriptors of an undumpable process", "run the tests as root")
	}
	for _, e := range entries {
		to, err := os.Readlink(proc + "fd/" + e.Name())
		if err != nil {
			continue // closed since
		}
		standard := len(e.Name()) == 1 && e.Name() <= "2"
		own := strings.HasPrefix(to, "socket:") || strings.HasPrefix(to, "anon_inode:") ||
			strings.HasPrefix(to, "/sys/fs/cgroup/")
		if standard && to != os.DevNull || !standard && !own {
			t.Errorf("descriptor %s is %s", e.Name(), to)
		}
	}
	if cwd, err := os.Readlink(proc + "cwd"); err != nil || cwd != "/" {
		t.Errorf("working directory is %s (%v)", cwd, err)
	}
	if environ, err := os.ReadFile(proc + "environ"); err != nil || strings.Contains(string(environ), passphrase) {
		t.Errorf("environment is %q (%v)", environ, err)
	}
	stat, err := os.ReadFile(proc + "stat")
	if err != nil {
		t.Fatal(err)
	}
	_, fields, _ := strings.Cut(string(stat), ") ")
	if words := strings.Fields(fields); words[2] != fmt.Sprint(status.PID) || words[3] != words[2] {
		t.Errorf("process group %s and session %s, want its own", words[2], words[3])
	}

	// A terminal that goes is none of its business.
	if err := syscall.Kill(status.PID, syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Status(); err != nil {
		t.Errorf("after SIGHUP: %v", err)
	}
	if err := syscall.Kill(status.PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = client.Status()
	}
	if !strings.Contains(err.Error(), "the one-time key is gone: ended by a signal at ") {
		t.Errorf("after SIGTERM: %v", err)
	}
}

// TestAgentUnheard has an agent whose starter is gone before it answers: it ends,
// and does not stay behind for a day.
func TestAgentUnheard(t *testing.T) {
	t.Parallel()
	tree, runtime := agentDirs(t)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	read.Close()
	cmd := exec.Command("modsign", "agent", "serve", "--dir", filepath.Join(tree, ".modsign"), "--tree", tree,
		"--key-type", "ecdsa:p256")
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+runtime)
	cmd.Stdout = write
	err = cmd.Run()
	write.Close()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != exitError {
		t.Errorf("it ended with %v", err)
	}
	_, err = agent.Dial(filepath.Join(tree, ".modsign"))
	if err == nil || !strings.Contains(err.Error(), "the one-time key is gone: ended as nobody waited for it") {
		t.Errorf("error is %v", err)
	}
	if left, err := os.ReadDir(runtime); err != nil || len(left) > 0 {
		t.Errorf("%v is left (%v)", left, err)
	}
}

// TestStartAgentFails has agents that cannot begin, and say why.
func TestStartAgentFails(t *testing.T) {
	tree, runtime := agentDirs(t)
	t.Setenv("XDG_RUNTIME_DIR", runtime)
	good := kbuildrun.Agent{Dir: filepath.Join(tree, ".modsign"), Tree: tree, KeyType: "ecdsa:p256", Lifetime: time.Hour}
	genkey := filepath.Join(tree, "x509.genkey")
	if err := os.WriteFile(genkey, []byte("[ nothing ]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*kbuildrun.Agent){
		"nowhere: no such file or directory": func(o *kbuildrun.Agent) {
			o.Dir = filepath.Join(tree,
				"nowhere")
		},
		"x509.genkey: there is no section":                      func(o *kbuildrun.Agent) { o.Genkey = genkey },
		"the lifetime has to be positive":                       func(o *kbuildrun.Agent) { o.Lifetime = -time.Hour },
		"--keep: invalid value \"never\": want installs=N":      func(o *kbuildrun.Agent) { o.Keep = "never" },
		"unknown key algorithm \"mldsa66\"":                     func(o *kbuildrun.Agent) { o.KeyType = "mldsa66" },
		"hash \"sm3\": the kernel verifies no module signature": func(o *kbuildrun.Agent) { o.Hash = "sm3" },
	} {
		o := good
		change(&o)
		if client, err := o.Start(t.Context(), os.Environ()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want one with %q", err, want)
			if err == nil {
				client.Forget()
			}
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errInterrupted)
	if _, err := good.Start(ctx, os.Environ()); !errors.Is(err, errInterrupted) {
		t.Errorf("interrupted: %v", err)
	}
	if left, err := os.ReadDir(runtime); err != nil || len(left) > 0 {
		t.Errorf("%v is left (%v)", left, err)
	}
}
