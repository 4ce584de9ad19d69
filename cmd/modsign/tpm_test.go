package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/testmod"
)

// A TPM that ends in the middle of a run, and a user who ends the run: each module is signed
// or as it was, and a second run signs the rest.
func TestTPMEnds(t *testing.T) {
	testmod.Slow(t, "it starts a TPM for each end")
	plain, err := os.ReadFile("../../testdata/modules/amd64-6.12/plain/hello.ko")
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		end  func(tpm *testmod.SWTPM, run *os.Process)
		code int
		says string
	}{
		"killed": {func(tpm *testmod.SWTPM, _ *os.Process) { tpm.Kill() }, exitError, "connection with the TPM"},
		"interrupted": {
			func(_ *testmod.SWTPM, run *os.Process) { run.Signal(syscall.SIGTERM) }, exitInterrupted, "interrupted",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tpm := testmod.StartSWTPM(t)
			dir := t.TempDir()
			key, tree := filepath.Join(dir, "key.pem"), filepath.Join(dir, "tree")
			files := make(map[string][]byte)
			for i := range 200 {
				files[fmt.Sprintf("%d/%d.ko", i%7, i)] = plain
			}
			if err := writeTree(tree, files); err != nil {
				t.Fatal(err)
			}
			var stderr bytes.Buffer
			modsign := func(args ...string) *exec.Cmd {
				cmd := exec.Command("modsign", args...)
				cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI="+tpm.TCTI)
				stderr.Reset()
				cmd.Stderr = &stderr
				return cmd
			}
			signed := func() (n int) {
				for name := range files {
					if info, err := os.Stat(filepath.Join(tree, name)); err == nil && info.Size() > int64(len(plain)) {
						n++
					}
				}
				return n
			}
			if err := modsign("keygen", "--tpm", "--type", "rsa:2048", "-o", key).Run(); err != nil {
				t.Fatal(err, stderr.String())
			}
			cmd := modsign("sign", "--key", key, tree)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			for deadline := time.Now().Add(time.Minute); signed() < 5; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					cmd.Process.Kill()
					t.Fatalf("nothing is signed: %s", stderr.String())
				}
			}
			test.end(tpm, cmd.Process)
			cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != test.code || !strings.Contains(stderr.String(), test.says) {
				t.Errorf("exit code %d, want %d and %q\n%s", code, test.code, test.says, stderr.String())
			}
			if lines := strings.Count(stderr.String(), "\n"); lines > 20 {
				t.Errorf("%d lines about one TPM:\n%s", lines, stderr.String())
			}
			if n := signed(); n == len(files) {
				t.Error("all was signed before the end")
			}
			for name := range files {
				data, err := os.ReadFile(filepath.Join(tree, name))
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.HasPrefix(data, plain) ||
					len(data) > len(plain) && !bytes.HasSuffix(data, []byte("~Module signature appended~\n")) {
					t.Errorf("%s is neither the old one nor signed", name)
				}
			}

			if name == "killed" {
				tpm.Start(t)
			}
			if err := modsign("sign", "--key", key, "--existing", "skip", tree).Run(); err != nil {
				t.Errorf("the second run: %v\n%s", err, stderr.String())
			}
			if err := modsign("verify", "--cert", key, tree).Run(); err != nil {
				t.Errorf("%v\n%s", err, stderr.String())
			}
		})
	}
}
