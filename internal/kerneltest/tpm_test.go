//go:build kerneltest

package kerneltest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// The kernel's own driver, and its resource manager: a key in the TPM of a machine, which is
// swtpm behind QEMU. Debian's kernels have the driver.
func TestTPM(t *testing.T) {
	dir, err := os.MkdirTemp("", "tpm") // the test's own may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "ctrl")
	tpm := exec.Command(testmod.Program(t, "swtpm", "swtpm"), "socket", "--tpm2", "--tpmstate", "dir="+dir,
		"--ctrl", "type=unixio,path="+socket, "--daemon", "--terminate") // with QEMU
	if out, err := tpm.CombinedOutput(); err != nil {
		t.Fatalf("swtpm: %v\n%s", err, out)
	}
	program := filepath.Join(dir, "modsign")
	build := exec.Command("go", "build", "-trimpath", "-o", program, "github.com/modsign/modsign/cmd/modsign")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}

	results := runIn(t, testmod.Kernels(t)[0].Image, map[string]string{
		"modsign": program, "hello.ko": "../../testdata/modules/amd64-6.12/plain/hello.ko",
	}, [][]string{
		{"/modsign", "keygen", "--tpm", "-o", "/key.pem"},
		{"/modsign", "sign", "--key", "/key.pem", "/hello.ko"},
		{"/modsign", "verify", "--cert", "/key.pem", "/hello.ko"},
		{"TPM2TOOLS_TCTI=device:/dev/tpm0", "/modsign", "sign", "--key", "/key.pem", "/hello.ko"},
		{
			"/modsign", "keygen", "--tpm", "--type", "rsa:2048", "--passphrase-file", "/proc/sys/kernel/ostype",
			"-o", "/rsa.pem",
		},
		{"KBUILD_SIGN_PIN=Linux", "/modsign", "sign-file", "sha256", "/rsa.pem", "/rsa.pem", "/hello.ko"},
		{"/modsign", "verify", "--cert", "/rsa.pem", "/hello.ko"},
		{"KBUILD_SIGN_PIN=wrong", "/modsign", "sign", "--key", "/rsa.pem", "/hello.ko"},
		{"TPM2TOOLS_TCTI=device:/dev/tpm7", "/modsign", "sign", "--key", "/key.pem", "/hello.ko"},
	}, "-chardev", "socket,id=tpm,path="+socket, "-tpmdev", "emulator,id=tpm0,chardev=tpm",
		"-device", "tpm-tis,tpmdev=tpm0")
	wants := []result{
		{0, "made the key /key.pem, ecdsa:p384 in the TPM"}, {0, "signed 1 module"}, {0, "all trusted"},
		{0, "signed 1 module"}, {0, "rsa:2048 in the TPM"}, {0, ""}, {0, "all trusted"},
		{1, "wrong passphrase"}, {1, "no TPM: /dev/tpm7"},
	}
	if len(results) != len(wants) {
		t.Fatalf("%d results, want %d", len(results), len(wants))
	}
	for i, want := range wants {
		if got := results[i]; got.Code != want.Code || !strings.Contains(got.Output, want.Output) {
			t.Errorf("command %d: exit code %d, %q; want %d, %q", i+1, got.Code, got.Output, want.Code, want.Output)
		}
	}
}

// A result is how a command ended, and what it wrote.
type result struct {
	Code   int
	Output string
}

// runIn boots an image with programs and other files in its root directory, and runs
// commands there.
func runIn(t *testing.T, image string, files map[string]string, commands [][]string, devices ...string) []result {
	t.Helper()
	dir := t.TempDir()
	initrd := filepath.Join(dir, "initrd")
	a := newInitramfs(t, initrd, loader(t, dir))
	a.addJSON(t, "commands.json", commands)
	a.addJSON(t, "cases/list.json", []Case{})
	for name, path := range files {
		a.add(name, syscall.S_IFREG|0o755, read(t, path))
	}
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	console := boot(t, image, initrd, devices...)
	results, ended, err := fromLoader[result](console, "modsign-result")
	if err != nil {
		t.Fatal(err)
	}
	if !ended {
		t.Fatalf("the loader did not come to its end: %s", tail(console))
	}
	return results
}
