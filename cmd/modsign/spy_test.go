package main

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen/agent"
)

// TestSpied has a spy of the same user open the memory of every new process, while the
// commands run that promise a key which nobody else ever has. That the spy gets the
// keys of processes which are not hidden, keygen's TestAgentSpied shows.
func TestSpied(t *testing.T) {
	testmod.Slow(t, "compiles a program that reads the memory of others")
	spyProgram := testmod.BuildSpy(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(filepath.Dir(spyProgram), "modsign")
	testmod.Run(t, "cp", self, program)
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	module, err := os.ReadFile("../../testdata/modules/amd64-6.12/plain/hello.ko")
	if err != nil {
		t.Fatal(err)
	}
	modules := func(dir string) (paths []string) {
		for i := range 200 {
			paths = append(paths, fmt.Sprintf("%s/hello-%d.ko", dir, i))
		}
		return paths
	}
	for name, user := range testmod.SpiedUsers(t) {
		// A directory of the user's, with modules, in which a process gets as far as
		// having a key, and waits.
		place := func(t *testing.T) string {
			dir, err := os.MkdirTemp("", "modsign-spied-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			err = errors.Join(os.Mkdir(dir+"/run", 0o700), os.Mkdir(dir+"/.modsign", 0o755), syscall.Mkfifo(dir+"/cert", 0o600))
			for _, path := range modules(dir) {
				err = errors.Join(err, os.WriteFile(path, module, 0o644))
			}
			if err != nil {
				t.Fatal(err)
			}
			if name == "nobody" {
				testmod.Run(t, "chown", "-R", "65534:65534", dir)
			}
			return dir
		}
		start := func(t *testing.T, dir string, args ...string) *exec.Cmd {
			cmd := exec.Command(user[0], slices.Concat(user[1:], []string{program}, args)...)
			cmd.Dir, cmd.Env = dir, append(os.Environ(), "XDG_RUNTIME_DIR="+dir+"/run")
			cmd.Stderr = os.Stderr
			return cmd
		}
		check := func(t *testing.T, spy *testmod.Spy, pid int, cert *x509.Certificate) {
			t.Helper()
			open, memory := spy.Report(t, pid)
			if open != "" {
				t.Errorf("open to the user's other processes: %s", open)
			}
			if testmod.FindPrime(memory, cert.PublicKey.(*rsa.PublicKey).N) != nil {
				t.Error("the spy has a prime of the key")
			}
		}
		t.Run("agent/"+name, func(t *testing.T) {
			for range 2 {
				dir := place(t)
				spy := testmod.StartSpy(t, spyProgram, user)
				cmd := start(t, dir, "agent", "serve", "--dir", ".modsign", "--tree", ".", "--key-type", "rsa:2048")
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				if _, err := out.Read(make([]byte, len("ready\n"))); err != nil {
					t.Fatal(err)
				}
				client, err := agent.Dial(dir + "/.modsign")
				if err != nil {
					t.Fatal(err)
				}
				check(t, spy, cmd.Process.Pid, client.Certificate())
				if status, err := client.Status(); err != nil || !status.MemoryHidden || status.PID != cmd.Process.Pid {
					t.Errorf("status is %+v (%v)", status, err)
				}
				if err := client.Forget(); err != nil {
					t.Error(err)
				}
				client.Close()
				cmd.Wait()
			}
		})
		t.Run("one-time/"+name, func(t *testing.T) {
			for range 2 {
				dir := place(t)
				spy := testmod.StartSpy(t, spyProgram, user)
				cmd := start(t, dir, "sign", "--one-time", "--key-type", "rsa:2048", "--cert-out", "cert", ".")
				cmd.Stderr = nil
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				// It writes its certificate to a FIFO, and has all its modules to sign then.
				der, err := os.ReadFile(dir + "/cert")
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
				cert, err := x509.ParseCertificate(der)
				if err != nil {
					t.Fatal(err)
				}
				check(t, spy, cmd.Process.Pid, cert)
				if !slices.ContainsFunc(modules(dir), func(path string) bool { return !isSigned(t, path) }) {
					t.Fatal("all was signed before the process was stopped")
				}
				if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
					t.Fatal(err)
				}
				if err := cmd.Wait(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func isSigned(t *testing.T, path string) bool {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.HasSuffix(data, []byte("~Module signature appended~\n"))
}
