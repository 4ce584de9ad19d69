package testmod

import (
	"bufio"
	_ "embed"
	"encoding/binary"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

//go:embed testdata/spy.c
var spySource string

// A Spy is a process of another user's, or of this one, that is after the memory of
// all processes of its user which begin while it watches.
type Spy struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
}

// BuildSpy compiles the spy's program, and returns its path in a directory that all
// may enter.
func BuildSpy(t testing.TB) string {
	t.Helper()
	gcc := Program(t, "gcc", "gcc")
	dir, err := os.MkdirTemp("", "modsign-spy-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	source, program := filepath.Join(dir, "spy.c"), filepath.Join(dir, "spy")
	if err := os.WriteFile(source, []byte(spySource), 0o644); err != nil {
		t.Fatal(err)
	}
	Run(t, gcc, "-O2", "-o", program, source)
	return program
}

// SpiedUsers are the users as whom a spy has a test: an ordinary one and, when this
// is root, a root that is not allowed to trace, as in a container. Each is the
// beginning of a command line that runs the rest as that user.
func SpiedUsers(t testing.TB) map[string][]string {
	setpriv := Program(t, "setpriv", "util-linux")
	if os.Geteuid() != 0 {
		return map[string][]string{"this user": {setpriv}}
	}
	return map[string][]string{
		"nobody":                      {setpriv, "--reuid=65534", "--regid=65534", "--clear-groups"},
		"root without CAP_SYS_PTRACE": {setpriv, "--bounding-set=-sys_ptrace,-sys_admin,-perfmon"},
	}
}

// StartSpy starts a spy, which watches when StartSpy returns, as one of SpiedUsers.
func StartSpy(t testing.TB, program string, user []string) *Spy {
	t.Helper()
	s := &Spy{cmd: exec.Command(user[0], append(slices.Clone(user[1:]), program)...)}
	s.cmd.Stderr = os.Stderr
	stdout, err := s.cmd.StdoutPipe()
	if err == nil {
		s.stdin, err = s.cmd.StdinPipe()
	}
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.cmd.Process.Kill(); s.cmd.Wait() })
	s.stdout = bufio.NewReader(stdout)
	if line, err := s.stdout.ReadString('\n'); line != "watching\n" {
		t.Fatalf("spy says %q (%v)", line, err)
	}
	return s
}

// Report ends the spy. It returns which doors of a process are open to the
// spy now, and what it has of its memory by having been early.
func (s *Spy) Report(t testing.TB, pid int) (open string, memory []byte) {
	t.Helper()
	fmt.Fprintln(s.stdin, pid)
	open, err := s.stdout.ReadString('\n')
	if err == nil {
		memory, err = io.ReadAll(s.stdout)
	}
	if err != nil {
		t.Fatalf("spy: %v", err)
	}
	return strings.TrimSpace(open), memory
}

// FindPrime looks for a prime factor of an RSA modulus in memory, as math/big has it
// there on machines of 64 bits, little endian.
func FindPrime(memory []byte, modulus *big.Int) *big.Int {
	size := modulus.BitLen() / 16
	var candidate, rest big.Int
	words := make([]byte, size)
	for at := 0; at+size <= len(memory); at += 8 {
		top := binary.LittleEndian.Uint64(memory[at+size-8:])
		if top>>62 != 3 || memory[at]&1 == 0 {
			continue
		}
		for i := range words {
			words[i] = memory[at+size-1-i]
		}
		candidate.SetBytes(words)
		if rest.Mod(modulus, &candidate).Sign() == 0 {
			return &candidate
		}
	}
	return nil
}
