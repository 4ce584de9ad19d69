package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/verify"
)

// TestSignFileToken compares sign-file with the kernel's own, each with the key in one token
// behind one p11-kit server, and with the key in a file.
func TestSignFileToken(t *testing.T) {
	t.Parallel()
	const client = "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so"
	if _, err := os.Stat(client); err != nil {
		testmod.Missing(t, client, "apt-get install p11-kit-modules")
	}
	cache, err := testmod.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	providers, _ := filepath.Glob(filepath.Join(cache, "p11-kit/trixie/root/usr/lib/*/ossl-modules"))
	if len(providers) == 0 {
		testmod.Missing(t, "OpenSSL's provider of PKCS #11", "run scripts/p11kit")
	}
	hsm := testmod.NewSoftHSM(t, "kernel")
	key := testmod.NewKey(t, "rsa:2048")
	hsm.Import(t, "kernel", "modules", "01", key)
	env := append(hsm.Environ(), "KBUILD_SIGN_PIN="+testmod.PIN,
		"P11_KIT_SERVER_ADDRESS="+hsm.Serve(t, testmod.Program(t, "p11-kit", "p11-kit"), "kernel"),
		"OPENSSL_MODULES="+providers[0], "PKCS11_PROVIDER_MODULE="+client)
	keyFile, certFile := key.Files(t)
	const module = "../../testdata/modules/amd64-6.12/plain/hello.ko"

	sign := func(program, key string) []byte {
		t.Helper()
		// The provider asks on a terminal where it misses something, and waits.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		signed := filepath.Join(t.TempDir(), "signed.ko")
		cmd := exec.CommandContext(ctx, program, "sha256", key, certFile, module, signed)
		cmd.Env = env
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", program, key, err, out)
		}
		if strings.Contains(string(out), testmod.PIN) {
			t.Errorf("the PIN is in the output of %s", program)
		}
		data, err := os.ReadFile(signed)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	const uri = "pkcs11:token=kernel;object=modules;type=private"
	file := sign("sign-file", keyFile)
	if token := sign("sign-file", uri); !bytes.Equal(token, file) {
		t.Error("sign-file signs in another way with a token than with a file")
	}
	// The kernel's takes the PIN from its URI alone.
	if token := sign(testmod.SignFile(t), uri+"?pin-value="+testmod.PIN); !bytes.Equal(token, file) {
		t.Error("sign-file signs in another way than the kernel's own")
	}
}

// TestTokenInChroot signs in a directory that holds nothing but the static program, the
// modules, the certificate, and the socket of a p11-kit server outside.
func TestTokenInChroot(t *testing.T) {
	testmod.Slow(t, "it builds the program")
	t.Parallel()
	root := t.TempDir()
	build := exec.Command(testmod.Program(t, "go", "golang-go"), "build", "-o", filepath.Join(root, "modsign"), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", build, err, out)
	}
	hsm := testmod.NewSoftHSM(t, "kernel")
	key := testmod.NewKey(t, "ecdsa:p384")
	hsm.Import(t, "kernel", "modules", "01", key)
	address := hsm.Serve(t, testmod.Program(t, "p11-kit", "p11-kit"), "kernel")
	_, certFile := key.Files(t)
	module := filepath.Join(root, "hello.ko")
	for name, from := range map[string]string{
		module: "../../testdata/modules/amd64-6.12/plain/hello.ko", filepath.Join(root, "cert"): certFile,
	} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(strings.TrimPrefix(address, "unix:path="), filepath.Join(root, "socket")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/modsign", "sign", "--key", "pkcs11:token=kernel;object=modules", "--cert", "cert", "hello.ko")
	cmd.Env, cmd.Dir = []string{"P11_KIT_SERVER_ADDRESS=unix:path=/socket", "KBUILD_SIGN_PIN=" + testmod.PIN}, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	if os.Geteuid() != 0 { // as its own root
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var keys verify.Keyring
	if err := keys.Add(key.Certificate, "token"); err != nil {
		t.Fatal(err)
	}
	if r := verify.File(t.Context(), &keys, module); r.Verdict != verify.Trusted {
		t.Errorf("the module is %s", r.Verdict)
	}
}
