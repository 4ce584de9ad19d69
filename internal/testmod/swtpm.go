package testmod

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// SWTPM is a TPM 2.0 of swtpm, a process of its own with its state in a directory.
type SWTPM struct {
	TCTI string // its address, as in TPM2TOOLS_TCTI

	dir string
	cmd *exec.Cmd
}

// StartSWTPM starts a new TPM, which ends with the test.
func StartSWTPM(t testing.TB) *SWTPM {
	t.Helper()
	Program(t, "swtpm", "swtpm")
	dir, err := os.MkdirTemp("", "swtpm") // the test's own may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	s := &SWTPM{dir: dir, TCTI: "swtpm:path=" + filepath.Join(dir, "tpm")}
	t.Cleanup(func() {
		s.Kill()
		os.RemoveAll(dir)
	})
	s.Start(t)
	return s
}

// Start starts the TPM again after Kill, as after a reset of its machine: its seeds and
// persistent keys are kept.
func (s *SWTPM) Start(t testing.TB) {
	t.Helper()
	socket := filepath.Join(s.dir, "tpm")
	os.Remove(socket)
	s.cmd = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+s.dir,
		"--server", "type=unixio,path="+socket, "--ctrl", "type=unixio,path="+socket+".ctrl",
		"--flags", "not-need-init,startup-clear")
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("swtpm does not come up")
		}
	}
}

// Kill ends the TPM at once, whatever it does.
func (s *SWTPM) Kill() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
}
