package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/testmod"
)

// TestInterrupt sends signals to a run over a tree that cannot end, as its xz
// program never does.
func TestInterrupt(t *testing.T) {
	testmod.Program(t, "xz", "xz-utils")
	plain, err := os.ReadFile("../../testdata/modules/amd64-6.12/plain/hello.ko")
	if err != nil {
		t.Fatal(err)
	}
	packed, err := os.ReadFile("../../testdata/modules/amd64-6.12/xz/ring.ko.xz")
	if err != nil {
		t.Fatal(err)
	}
	key := testmod.NewKey(t, fmt.Sprintf("rsa:%d", testmod.Rounds(4096, 2048)))
	keyFile, certFile := key.Files(t)
	// In the background of a shell SIGINT is ignored, by the program too. What is caught
	// here is not ignored there.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	t.Cleanup(func() { signal.Stop(caught) })
	for _, signal := range testmod.Few(
		[]syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT}, 1,
	) {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			tree := filepath.Join(dir, "tree")
			files := map[string][]byte{"stuck.ko.xz": packed}
			for i := range 200 {
				files[fmt.Sprintf("%d/%d.ko", i%7, i)] = plain
			}
			if err := writeTree(tree, files); err != nil {
				t.Fatal(err)
			}
			slow := filepath.Join(dir, "slow")
			if err := writeTree(slow, map[string][]byte{"xz": []byte("#!/bin/sh\nexec sleep 600\n")}); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(filepath.Join(slow, "xz"), 0o755); err != nil {
				t.Fatal(err)
			}

			cmd := exec.Command("modsign", "sign", "--key", keyFile, "--cert", certFile, "--jobs", "2", "--json", tree)
			cmd.Env = append(os.Environ(), "PATH="+slow+":"+os.Getenv("PATH"))
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// In the middle: some are signed, and it is still at work.
			signed := func() (n int) {
				for name := range files {
					if info, err := os.Stat(filepath.Join(tree, name)); err == nil && info.Size() > int64(len(files[name])) {
						n++
					}
				}
				return n
			}
			for deadline := time.Now().Add(time.Minute); signed() < 10; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					cmd.Process.Kill()
					t.Fatalf("nothing is signed: %s", stderr.String())
				}
			}
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != exitInterrupted {
				t.Errorf("exit code %d (%v), want %d\n%s", code, cmd.ProcessState, exitInterrupted, stderr.String())
			}

			n := signed()
			want := fmt.Sprintf(
				"modsign: interrupted: %s left unchanged; run the same command again to complete it\n",
				plural(len(files)-n, "module"),
			)
			if !strings.HasSuffix(stderr.String(), want) || strings.Count(stderr.String(), "\n") != 2 {
				t.Errorf("stderr is %q, want it to end with %q", stderr.String(), want)
			}
			if lines := strings.Count(stdout.String(), `"action":"signed"`); lines != n {
				t.Errorf("%d results for %d modules that are signed", lines, n)
			}
			err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				name, _ := filepath.Rel(tree, path)
				old, known := files[name]
				if !known {
					t.Errorf("%s is left", name)
				}
				data, err := os.ReadFile(path)
				if err == nil && !bytes.HasPrefix(data, old) {
					t.Errorf("%s is neither the old module nor that with a signature", name)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
			if r := modsign(t, "sign", "--key", keyFile, "--cert", certFile, "--existing", "skip", tree); r.code != 0 ||
				!strings.Contains(r.stderr, fmt.Sprintf(", skipped %d that were", n)) {
				t.Errorf("the next run has exit code %d: %s", r.code, r.stderr)
			}
			if r := modsign(t, "verify", "--cert", certFile, tree); r.code != 0 || !strings.Contains(r.stderr, "201 modules") {
				t.Errorf("exit code %d: %s", r.code, r.stderr)
			}
		})
	}
}

// TestIgnoredSignal starts a run as nohup does. The signal does not end it.
func TestIgnoredSignal(t *testing.T) {
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := writeTree(tree, testmodules(t)); err != nil {
		t.Fatal(err)
	}
	key, cert := testmod.NewKey(t, "ecdsa:p256").Files(t)
	// The xz program hangs up on its parent.
	script := "#!/bin/sh\nkill -HUP $PPID\nsleep 0.1\nPATH=$REAL_PATH exec xz \"$@\"\n"
	if err := os.WriteFile(filepath.Join(dir, "xz"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	testmod.Program(t, "xz", "xz-utils")
	cmd := exec.Command("sh", "-c", `trap "" HUP; exec modsign sign -k "$0" -c "$1" "$2"`, key, cert, tree)
	cmd.Env = append(os.Environ(), "REAL_PATH="+os.Getenv("PATH"), "PATH="+dir+":"+os.Getenv("PATH"))
	if r := wait(t, cmd); r.code != 0 {
		t.Errorf("exit code %d: %s", r.code, r.stderr)
	}
}
