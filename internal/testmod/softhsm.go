package testmod

import (
	"crypto/x509"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// SoftHSM is a directory of SoftHSM's with tokens of the test. Its user PIN is always PIN.
type SoftHSM struct {
	Module string // the path of the PKCS #11 module
	Conf   string // for SOFTHSM2_CONF
}

// PIN is the user PIN of the tokens of [SoftHSM].
const PIN = "horse-battery"

const softHSMModule = "/usr/lib/softhsm/libsofthsm2.so"

// NewSoftHSM returns a SoftHSM with empty tokens of these labels.
func NewSoftHSM(t testing.TB, labels ...string) *SoftHSM {
	t.Helper()
	Program(t, "softhsm2-util", "softhsm2")
	Program(t, "p11-kit", "p11-kit")
	Program(t, "pkcs11-tool", "opensc")
	if _, err := os.Stat(softHSMModule); err != nil {
		Missing(t, softHSMModule, "apt-get install softhsm2")
	}
	tokens, err := os.MkdirTemp("", "softhsm-") // t.TempDir has the test's name; SoftHSM reads no path with "="
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tokens) })
	conf := WriteFile(t, "softhsm2.conf", []byte("directories.tokendir = "+tokens+"\nlog.level = ERROR\n"))
	s := &SoftHSM{Module: softHSMModule, Conf: conf}
	for _, label := range labels {
		s.run(t, "softhsm2-util", "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", "12345678")
	}
	return s
}

// Environ is the environment of this process, for programs that use the tokens.
func (s *SoftHSM) Environ() []string {
	return append(os.Environ(), "SOFTHSM2_CONF="+s.Conf, "P11_KIT_SERVER_ADDRESS=", "PKCS11_MODULE_PATH=")
}

func (s *SoftHSM) run(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = s.Environ()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Import puts a key into a token, with an identifier in hexadecimal.
func (s *SoftHSM) Import(t testing.TB, token, label, id string, key *Key) {
	t.Helper()
	file, _ := key.Files(t)
	s.run(t, "softhsm2-util", "--import", file, "--token", token, "--label", label, "--id", id, "--pin", PIN)
}

// Tool runs pkcs11-tool, logged in to a token.
func (s *SoftHSM) Tool(t testing.TB, token string, args ...string) string {
	t.Helper()
	return s.run(t, "pkcs11-tool", append([]string{
		"--module", s.Module, "--token-label", token, "--login", "--pin", PIN}, args...)...)
}

// ImportCertificate puts a certificate into a token.
func (s *SoftHSM) ImportCertificate(t testing.TB, token, label, id string, cert *x509.Certificate) {
	t.Helper()
	s.Tool(t, token, "--write-object", WriteFile(t, "cert.der", cert.Raw), "--type", "cert", "--label", label, "--id", id)
}

// Serve starts a p11-kit server for a token until the test ends, and returns its address
// for P11_KIT_SERVER_ADDRESS. The program is p11-kit.
func (s *SoftHSM) Serve(t testing.TB, program, token string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	cmd := exec.Command(program, "server", "--foreground", "--name", path, "--provider", s.Module, "pkcs11:token="+token)
	cmd.Env = s.Environ()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for range 1000 {
		if c, err := net.Dial("unix", path); err == nil {
			c.Close()
			return "unix:path=" + path
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("p11-kit server does not answer")
	return ""
}

// A P11Kit is p11-kit of one version.
type P11Kit struct {
	Name string // that of a suite of Debian, or "installed"
	Dir  string // holds the program p11-kit
}

// P11Kits returns the p11-kit that is installed, and those that scripts/p11kit has fetched.
func P11Kits(t testing.TB) []P11Kit {
	t.Helper()
	kits := []P11Kit{{"installed", filepath.Dir(Program(t, "p11-kit", "p11-kit"))}}
	cache, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	found, _ := filepath.Glob(filepath.Join(cache, "p11-kit", "*", "bin", "p11-kit"))
	for _, path := range found {
		dir := filepath.Dir(path)
		kits = append(kits, P11Kit{filepath.Base(filepath.Dir(dir)), dir})
	}
	if len(kits) == 1 {
		Missing(t, "p11-kit of other versions", "run scripts/p11kit")
	}
	return kits
}
