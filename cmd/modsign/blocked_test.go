package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/testmod"
)

// blocked reports whether a thread of the process waits for the other end of a pipe.
func blocked(pid int) bool {
	tasks, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task/*/wchan"))
	for _, task := range tasks {
		if data, err := os.ReadFile(task); err == nil && strings.Contains(string(data), "wait_for_partner") {
			return true
		}
	}
	return false
}

// TestBlockedOpen interrupts commands that open a pipe to which nobody writes, in the
// place of everything that is read before something is written.
func TestBlockedOpen(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root sees what a process with a key waits for")
	}
	key, cert := testmod.NewKey(t, "ecdsa:p256").Files(t)
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := writeTree(tree, testmodules(t)); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, "pipe")
	for _, path := range []string{pipe, pipe + ".c"} {
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	encrypted := filepath.Join(dir, "enc.pem")
	testmod.Run(
		t, testmod.Program(t, "openssl", "openssl"), "pkcs8", "-topk8", "-in", key, "-passout", "pass:"+passphrase,
		"-out", encrypted,
	)
	if err := os.Chmod(encrypted, 0o600); err != nil {
		t.Fatal(err)
	}
	manifest, list, newKey := filepath.Join(dir, "manifest"), filepath.Join(dir, "list"), filepath.Join(dir, "new-key.pem")
	testmod.Run(t, "modsign", "digest", "-o", manifest, tree)
	testmod.Run(t, "modsign", "hashlist", "build", "--release", "6", "-o", list, tree)
	before := snapshot(t, tree)
	for _, args := range testmod.Few([][]string{
		{"sign", "--key", pipe, tree},
		{"sign", "--key", key, "--cert", pipe, tree},
		{"sign", "--key", encrypted, "--cert", cert, "--passphrase-file", pipe, tree},
		{"verify", "--cert", pipe, tree},
		{"verify", "--kernel", pipe, tree},
		{"keygen", "--config", pipe, "--output", filepath.Join(dir, "new.pem")},
		{"sign-digests", "--key", key, pipe},
		{"attach", "--cert", pipe, tree},
		{"attach", "--cert", cert, "--signatures", pipe, tree},
		{"hashlist", "verify", "--list", pipe, tree},
		{"hashlist", "sign", pipe, "--key", key},
		{"hashlist", "sign", pipe, "--openpgp-key", key},
		{"hashlist", "check", cert, "--cert", pipe},
		{"hashlist", "check", cert, "--keyring", pipe},
		{"hashlist", "diff", pipe, pipe},
		{"agent", "receipt", pipe},
		// And of everything that is written, while nobody reads: nothing is written then.
		{"digest", "-o", pipe, tree},
		{"sign-digests", "-k", key, "-c", cert, "-o", pipe, manifest},
		{"keygen", "-t", "ecdsa:p256", "-o", newKey, "--cert-out", pipe},
		{"sign", "--one-time", "--key-type", "ecdsa:p256", "--cert-out", pipe, tree},
		{"hashlist", "build", "--release", "6", "-q", "-o", pipe, tree},
		{"hashlist", "build", "--release", "6", "-q", "--section", pipe, "-o", newKey, tree},
		{"hashlist", "build", "--release", "6", "-q", "--section", newKey, "--source", pipe + ".c", tree},
		{"hashlist", "sign", list, "-k", key, "-c", cert, "-o", pipe},
		{"sign-file", "sha256", pipe, cert, filepath.Join(tree, "hello.ko")},
		{"sign-file", "-s", pipe, "sha256", cert, filepath.Join(tree, "hello.ko")},
	}, 5) {
		t.Run(strings.Join(args[:2], " "), func(t *testing.T) {
			var stderr bytes.Buffer
			cmd := exec.Command("modsign", args...)
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			await := func(what string, is func() bool) bool {
				for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(time.Millisecond) {
					select {
					case err := <-ended:
						ended <- err
						return what == "end"
					default:
					}
					if time.Now().After(deadline) {
						cmd.Process.Kill()
						t.Fatalf("%v: does not %s: %s", args, what, stderr.String())
					}
				}
				return true
			}
			if !await("open the pipe", func() bool { return blocked(cmd.Process.Pid) }) {
				t.Fatalf("%v does not come to the pipe: %s", args, stderr.String())
			}
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			await("end", func() bool { return false })
			<-ended
			if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || stderr.String() != "modsign: interrupted\n" {
				t.Errorf("%v: exit code %d, %q", args, code, stderr.String())
			}
		})
	}
	if _, err := os.Lstat(newKey); err == nil {
		t.Error("a run that wrote to no pipe has left a file")
	}
	for _, d := range differences(snapshot(t, tree), before) {
		t.Error(d)
	}
}

// TestBlockedStdout interrupts a command whose results nobody reads.
func TestBlockedStdout(t *testing.T) {
	testmod.Slow(t, "it waits for commands that wait")
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root sees what a process waits for")
	}
	dir := t.TempDir()
	plain, err := os.ReadFile("../../testdata/modules/amd64-6.12/plain/hello.ko")
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string][]byte)
	for i := range 300 {
		files[strconv.Itoa(i)+".ko"] = plain
	}
	if err := writeTree(dir, files); err != nil {
		t.Fatal(err)
	}
	_, cert := testmod.NewKey(t, "ecdsa:p256").Files(t)
	for _, args := range [][]string{
		{"verify", "--json", "--cert", cert, dir}, {"verify", "--all", "--cert", cert, dir}, {"digest", dir},
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("modsign", args...)
		cmd.Stdout = w
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		awaitWait(t, cmd.Process.Pid, "pipe_write")
		cmd.Process.Signal(syscall.SIGINT)
		ended := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); !ended.Stop() || code != exitInterrupted {
			t.Errorf("%s: %v", args[0], cmd.ProcessState)
		}
		r.Close()
	}
}

// awaitWait waits until a thread of the process waits in a function of the kernel.
func awaitWait(t *testing.T, pid int, function string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		tasks, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task/*/wchan"))
		for _, task := range tasks {
			if data, err := os.ReadFile(task); err == nil && strings.Contains(string(data), function) {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d does not come to %s", pid, function)
		}
	}
}
