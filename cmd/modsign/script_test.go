package main

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/modsign/modsign/internal/testmod"
)

// The test binary is the program too, under all of its names, for the stories
// and for the tests that start processes.
func TestMain(m *testing.M) {
	if os.Getenv("GORACE") == "" {
		os.Setenv("GORACE", "atexit_sleep_ms=10") // instead of a second at the end of every process
	}
	programs := map[string]func(){
		"modsign": main, modsignVerifyName: main, "vault-server": vaultServer, "kms-server": kmsServer,
	}
	for name := range programNames {
		programs[name] = main
	}
	testscript.Main(m, programs)
}

var update = flag.Bool("update", false, "write the expected files anew: docs/man and testdata/*.txtar")

// passphrase is that of all encrypted keys, and must be in no output.
const passphrase = "horse-battery"

// The stories, one of a user in each file of testdata. Each has in its directory
//
//	tree/hello.ko tree/gz/counter.ko.gz tree/xz/ring.ko.xz tree/zst/hello.ko.zst
//	key.pem        an ECDSA key and its certificate, mode 0600
//	key-only.pem   the key alone
//	cert.pem, cert.der
//	other.pem, other.der   another one's key with its certificate, and the certificate
//	rsa.pem, rsa.der       RSA-2048, the same, with the serial number 5a17
//
// and $SIGNERS is scripts/signer, $DOCS is docs, $VMLINUX a kernel with room for further certificates.
func TestStories(t *testing.T) {
	key, other, rsa := testmod.NewKey(t, "ecdsa:p256"), testmod.NewKey(t, "ecdsa:p384"), testmod.NewKey(t, "rsa:2048")
	rsaCert := withSerial(t, rsa, 0x5a17)
	files := []struct {
		name string
		data []byte
		mode fs.FileMode
	}{
		{"key.pem", append(bytes.Clone(key.KeyPEM), key.CertPEM...), 0o600},
		{"key-only.pem", key.KeyPEM, 0o600},
		{"cert.pem", key.CertPEM, 0o644},
		{"cert.der", key.Certificate.Raw, 0o644},
		{"other.pem", append(bytes.Clone(other.KeyPEM), other.CertPEM...), 0o600},
		{"other.der", other.Certificate.Raw, 0o644},
		{
			"rsa.pem",
			append(bytes.Clone(rsa.KeyPEM), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rsaCert})...),
			0o600,
		},
		{"rsa.der", rsaCert, 0o644},
	}
	secrets := []string{passphrase, vaultToken}
	for _, k := range []*testmod.Key{key, other, rsa} {
		block, _ := pem.Decode(k.KeyPEM)
		body := strings.Split(string(k.KeyPEM), "\n")
		// Of the lines in the middle any would tell; the first is the same for all keys.
		secrets = append(secrets, body[2], body[3], hex.EncodeToString(block.Bytes[len(block.Bytes)-16:]))
	}
	modules := testmodules(t)
	signers, err := filepath.Abs("../../scripts/signer")
	if err != nil {
		t.Fatal(err)
	}
	docs, err := filepath.Abs("../../docs")
	if err != nil {
		t.Fatal(err)
	}
	// A kernel with room for further certificates.
	vmlinux, err := filepath.Abs("../../internal/vmlinux/testdata/reserve.amd64")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:           "testdata",
		UpdateScripts: *update,
		Setup: func(env *testscript.Env) error {
			env.Setenv("GORACE", os.Getenv("GORACE"))
			env.Setenv("SIGNERS", signers)
			env.Setenv("DOCS", docs)
			env.Setenv("VMLINUX", vmlinux)
			for _, f := range files {
				if err := os.WriteFile(filepath.Join(env.WorkDir, f.name), f.data, f.mode); err != nil {
					return err
				}
			}
			return writeTree(filepath.Join(env.WorkDir, "tree"), modules)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"run":     func(ts *testscript.TestScript, neg bool, args []string) { runCommand(ts, neg, args, secrets) },
			"await":   await,
			"json":    func(ts *testscript.TestScript, _ bool, args []string) { normalJSON(ts, args, rsa) },
			"hint":    runHint,
			"full":    runFull,
			"tpm":     startTPMs(t),
			"kernel":  func(ts *testscript.TestScript, _ bool, args []string) { ts.Setenv("KVER", makeKernel(t, ts, args)) },
			"value":   func(ts *testscript.TestScript, _ bool, args []string) { ts.Setenv(args[0], ts.ReadFile(args[1])) },
			"gpghome": func(ts *testscript.TestScript, _ bool, _ []string) { gpgHome(ts) },
		},
	})
}

// withSerial is a key's certificate with another serial number, of a length that
// is known, as the sizes of signatures then are.
func withSerial(t *testing.T, key *testmod.Key, serial int64) []byte {
	template := *key.Certificate
	template.SerialNumber = big.NewInt(serial)
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Private.Public(), key.Private)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// testmodules are the modules of the tree of each story.
func testmodules(t *testing.T) map[string][]byte {
	modules := make(map[string][]byte)
	for name, source := range map[string]string{
		"hello.ko":          "plain/hello.ko",
		"gz/counter.ko.gz":  "gz/counter.ko.gz",
		"xz/ring.ko.xz":     "xz/ring.ko.xz",
		"zst/hello.ko.zst":  "zst/hello.ko.zst",
		"zst/not-a-module":  "",
		"zst/modules.order": "",
	} {
		data := []byte("no module\n")
		if source != "" {
			var err error
			if data, err = os.ReadFile(filepath.Join("../../testdata/modules/amd64-6.12", source)); err != nil {
				t.Fatal(err)
			}
		}
		modules[name] = data
	}
	return modules
}

func writeTree(dir string, files map[string][]byte) error {
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// runCommand is "run CODE COMMAND ARG...": the command has to end with that exit
// code, tell no secret, and say nothing on stderr but lines of its own.
func runCommand(ts *testscript.TestScript, neg bool, args []string, secrets []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: run CODE COMMAND ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		code = exit.ExitCode()
	}
	if code != want {
		ts.Fatalf("exit code %d, want %d", code, want)
	}
	stdout, stderr := ts.ReadFile("stdout"), ts.ReadFile("stderr")
	for _, secret := range secrets {
		if strings.Contains(stdout+stderr, secret) {
			ts.Fatalf("the output holds the secret %q", secret)
		}
	}
	if args[1] == "modsign" && !slices.Contains(args, "sign-file") {
		for line := range strings.Lines(stderr) {
			if !strings.HasPrefix(line, "modsign: ") && !strings.HasPrefix(line, "Passphrase for ") && line != "\n" {
				ts.Fatalf("a line on stderr without modsign's name before it: %q", line)
			}
		}
	}
}

// startTPMs returns the command "tpm new|kill|restart": a story's TPM, for modsign and for
// the programs that come with TPMs.
func startTPMs(t *testing.T) func(*testscript.TestScript, bool, []string) {
	var mu sync.Mutex
	tpms := make(map[string]*testmod.SWTPM)
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) != 1 {
			ts.Fatalf("usage: tpm new|kill|restart")
		}
		mu.Lock()
		defer mu.Unlock()
		story := ts.Getenv("WORK")
		switch args[0] {
		case "new":
			tpms[story] = testmod.StartSWTPM(t)
			ts.Setenv("TPM2TOOLS_TCTI", tpms[story].TCTI)
			ts.Setenv("TPM2OPENSSL_TCTI", tpms[story].TCTI)
		case "kill":
			tpms[story].Kill()
		case "restart":
			tpms[story].Start(t)
		default:
			ts.Fatalf("no such thing to do with a TPM: %s", args[0])
		}
	}
}

// await is "await FILE": it waits until the file is there.
func await(ts *testscript.TestScript, _ bool, args []string) {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(ts.MkAbs(args[0])); err == nil {
			return
		}
	}
	ts.Fatalf("%s did not come", args[0])
}

// gpgHome is "gpghome": it sets GNUPGHOME to a new directory with a short path, since the
// socket of an agent is in it.
func gpgHome(ts *testscript.TestScript) {
	dir, err := os.MkdirTemp("/tmp", "gpg")
	ts.Check(err)
	ts.Setenv("GNUPGHOME", dir)
	ts.Defer(func() {
		cmd := exec.Command("gpgconf", "--kill", "all")
		cmd.Env = append(os.Environ(), "GNUPGHOME="+dir)
		_ = cmd.Run() // it may be gone
		os.RemoveAll(dir)
	})
}

var duration = regexp.MustCompile(`"seconds":[0-9.e-]+`)

// normalJSON is "json FILE": it writes what the last command wrote to stdout, with
// times of 0 and KEYID for the identifier of the key.
func normalJSON(ts *testscript.TestScript, args []string, key *testmod.Key) {
	text := duration.ReplaceAllString(ts.ReadFile("stdout"), `"seconds":0`)
	text = strings.ReplaceAll(text, hex.EncodeToString(key.Certificate.SubjectKeyId), "KEYID")
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o644))
}

// runHint is "hint": it gives the command line that the last command hinted at to
// a shell.
func runHint(ts *testscript.TestScript, _ bool, _ []string) {
	_, command, ok := strings.Cut(ts.ReadFile("stderr"), "modsign: hint: ")
	if !ok {
		ts.Fatalf("there is no hint on stderr")
	}
	command, _, _ = strings.Cut(command, "\n")
	ts.Check(ts.Exec("sh", "-c", command))
}

// runFull is "full CODE ARG...": modsign writes its results to a full disk, has to
// end with that exit code, and to say why once.
func runFull(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec("sh", append([]string{"-c", `modsign "$@" >/dev/full`, "sh"}, args[1:]...)...)
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || strconv.Itoa(exit.ExitCode()) != args[0] {
		ts.Fatalf("%v, want exit status %s", err, args[0])
	}
	if n := strings.Count(ts.ReadFile("stderr"), "no space left on device"); n != 1 {
		ts.Fatalf("the full disk is named %d times on stderr, want once", n)
	}
}

// makeKernel is "kernel DIR": DIR becomes the root of a system with a real kernel
// and some of its modules. It returns the kernel's version.
func makeKernel(t *testing.T, ts *testscript.TestScript, args []string) string {
	kernels := testmod.Kernels(t)
	k := kernels[len(kernels)-1] // the image of a newer one is read faster
	root := ts.MkAbs(args[0])
	boot, modules := filepath.Join(root, "boot"), filepath.Join(root, "lib/modules", k.Version, "kernel")
	ts.Check(errors.Join(os.MkdirAll(boot, 0o755), os.MkdirAll(modules, 0o755)))
	for _, file := range []string{k.Image, k.Config} {
		data, err := os.ReadFile(file) // a link would lead out of the root
		ts.Check(err)
		ts.Check(os.WriteFile(filepath.Join(boot, filepath.Base(file)), data, 0o644))
	}
	for i := range 5 {
		module := k.Modules[i*len(k.Modules)/5]
		data, err := os.ReadFile(module)
		ts.Check(err)
		ts.Check(os.WriteFile(filepath.Join(modules, filepath.Base(module)), data, 0o644))
	}
	return k.Version
}

// TestShippedModules verifies all modules that Debian ships in its kernel
// packages, as they are, with the certificates in those packages' images.
func TestShippedModules(t *testing.T) {
	testmod.Slow(t, "it reads modules of whole kernels")
	t.Parallel()
	for _, k := range testmod.Few(testmod.Kernels(t), 1) {
		t.Run(k.Version, func(t *testing.T) {
			args, count := []string{"--installed", k.Version, "--root", k.Root}, len(k.Modules)
			if raceDetector { // ten times as slow
				args, count = []string{"--kernel", k.Image}, 200
				for i := range count {
					args = append(args, k.Modules[i*len(k.Modules)/count])
				}
			}
			r := modsign(t, append([]string{"verify"}, args...)...)
			want := fmt.Sprintf("modsign: verified %d modules against ", count)
			if r.code != 0 || r.stdout != "" || !strings.HasPrefix(r.stderr, want) ||
				!strings.HasSuffix(r.stderr, ": all trusted\n") {
				t.Errorf("exit code %d, want 0 and %q\n%s%s", r.code, want, r.stdout, r.stderr)
			}
		})
	}
}

// ran is what a process left.
type ran struct {
	code           int
	stdout, stderr string
}

// modsign runs the program as a process of its own.
func modsign(t *testing.T, args ...string) ran {
	t.Helper()
	return wait(t, exec.Command("modsign", args...))
}

// wait runs a command to its end.
func wait(t *testing.T, cmd *exec.Cmd) ran {
	t.Helper()
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	return ran{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}
