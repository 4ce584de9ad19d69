package keygen

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

func TestIsPrivateKey(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p256")
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key.Private)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"PEM": key.KeyPEM, "PEM behind a certificate": append(bytes.Clone(key.CertPEM), key.KeyPEM...),
		"PEM in one line": bytes.ReplaceAll(key.KeyPEM, []byte("\n"), nil), "DER": pkcs8,
		"PuTTY":   []byte("PuTTY-User-Key-File-3: ssh-rsa\n"),
		"OpenSSH": []byte("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjE=\n"),
	} {
		if !IsPrivateKey(data) {
			t.Errorf("%s: not found", name)
		}
	}
	for name, data := range map[string][]byte{
		"nothing": nil, "a certificate": key.CertPEM, "DER of one": key.Certificate.Raw, "text": []byte("a manifest"),
	} {
		if IsPrivateKey(data) {
			t.Errorf("%s: taken for a private key", name)
		}
	}
	// The content of a section .module_hashes may be replaced by the next one.
	wrong := 0
	for range 10000 {
		hashes := make([]byte, 96)
		rand.Read(hashes)
		if IsPrivateKey(hashes) {
			wrong++
		}
	}
	if wrong > 20 {
		t.Errorf("%d of 10000 hashes are taken for private keys", wrong)
	}
}

// TestIsPrivateKeyOfOthers looks at keys that other programs export.
func TestIsPrivateKeyOfOthers(t *testing.T) {
	t.Parallel()
	testmod.Slow(t, "it makes a key with gpg")
	openssl, gpg := testmod.Program(t, "openssl", "openssl"), testmod.Program(t, "gpg", "gnupg")
	dir := t.TempDir()
	key, cert := testmod.NewKey(t, "ecdsa:p256").Files(t)
	p12 := filepath.Join(dir, "key.p12")
	testmod.Run(t, openssl, "pkcs12", "-export", "-inkey", key, "-in", cert, "-passout", "pass:x", "-out", p12)
	data, err := os.ReadFile(p12)
	if err != nil || !IsPrivateKey(data) {
		t.Errorf("PKCS #12: not found (%v)", err)
	}
	home, err := os.MkdirTemp("", "gpg") // short: it holds sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		os.RemoveAll(home)
	})
	run := func(args ...string) []byte {
		t.Helper()
		options := []string{"--batch", "--pinentry-mode=loopback", "--passphrase=", "--quiet"}
		cmd := exec.Command(gpg, append(options, args...)...)
		cmd.Env = append(os.Environ(), "GNUPGHOME="+home)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		return out
	}
	run("--quick-generate-key", "a@example.org", "ed25519", "sign", "never")
	if !IsPrivateKey(run("--export-secret-keys")) {
		t.Error("a binary OpenPGP key: not found")
	}
	if IsPrivateKey(run("--export")) {
		t.Error("a public OpenPGP key is taken for a private one")
	}
}
