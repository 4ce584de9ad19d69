package tpmkey

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	_ "crypto/sha3"
	_ "crypto/sha512"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/modsign/modsign/internal/keyfile"
	"github.com/modsign/modsign/internal/testmod"
)

// everyHash are the hashes that modules are signed with.
var everyHash = []crypto.Hash{
	crypto.SHA1, crypto.SHA224, crypto.SHA256, crypto.SHA384, crypto.SHA512,
	crypto.SHA3_256, crypto.SHA3_384, crypto.SHA3_512,
}

func mustCreate(t *testing.T, tcti string, a Algorithm, passphrase string) *File {
	t.Helper()
	f, err := Create(t.Context(), tcti, a, []byte(passphrase))
	if err != nil {
		t.Fatal(err)
	}
	// What is used from here on is what a file would hold.
	again, err := Parse(f.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.Marshal(), f.Marshal()) {
		t.Fatal("the file changes when it is written again")
	}
	return again
}

func mustOpen(t *testing.T, tcti string, f *File, passphrase string) *Key {
	t.Helper()
	k, err := Open(t.Context(), tcti, f, []byte(passphrase))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

func digestOf(h crypto.Hash, text string) []byte {
	w := h.New()
	w.Write([]byte(text))
	return w.Sum(nil)
}

func verifies(public crypto.PublicKey, h crypto.Hash, digest, signature []byte) bool {
	switch public := public.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(public, h, digest, signature) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(public, digest, signature)
	}
	return false
}

// hintOf is the hint of an error, or nothing.
func hintOf(err error) string {
	if e, ok := errors.AsType[*keyfile.HintError](err); ok {
		return e.Hint
	}
	return ""
}

// Keys of all types, with and without a passphrase, sign by all hashes. RSA knows those of
// the TPM alone, and says so.
func TestSign(t *testing.T) {
	t.Parallel()
	tpm := testmod.StartSWTPM(t)
	for a, name := range map[Algorithm]string{RSA2048: "RSA", ECDSAP256: "P-256", ECDSAP384: "P-384"} {
		for _, passphrase := range []string{"", "horse-battery"} {
			f := mustCreate(t, tpm.TCTI, a, passphrase)
			if f.NeedsPassphrase() != (passphrase != "") {
				t.Errorf("%s: NeedsPassphrase is %v", name, f.NeedsPassphrase())
			}
			k := mustOpen(t, tpm.TCTI, f, passphrase)
			for _, h := range everyHash {
				digest := digestOf(h, name)
				signature, err := k.Sign(nil, digest, h)
				unknown := a == RSA2048 && (h == crypto.SHA224 || h >= crypto.SHA3_256)
				switch {
				case unknown:
					if err == nil || !strings.Contains(err.Error(), "know") || !strings.Contains(hintOf(err), "sha256") {
						t.Errorf("%s with %v: %v", name, h, err)
					}
				case err != nil:
					t.Errorf("%s with %v: %v", name, h, err)
				case !verifies(k.Public(), h, digest, signature):
					t.Errorf("%s with %v: the signature is wrong", name, h)
				}
			}
			if err := k.Close(); err != nil {
				t.Error(err)
			}
			if _, err := k.Sign(nil, digestOf(crypto.SHA256, ""), crypto.SHA256); !errors.Is(err, errClosed) {
				t.Errorf("signing after Close: %v", err)
			}
		}
	}
}

// Many goroutines use one key, and a TPM of three slots is never full.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	tpm := testmod.StartSWTPM(t)
	f := mustCreate(t, tpm.TCTI, ECDSAP256, "secret")
	for range 5 {
		k := mustOpen(t, tpm.TCTI, f, "secret")
		var group sync.WaitGroup
		for _, text := range strings.Fields("a b c d e f g h") {
			group.Go(func() {
				digest := digestOf(crypto.SHA512, text)
				signature, err := k.Sign(nil, digest, crypto.SHA512)
				if err != nil || !verifies(k.Public(), crypto.SHA512, digest, signature) {
					t.Errorf("%s: %v", text, err)
				}
			})
		}
		group.Wait()
		k.Close()
	}
}

// A wrong passphrase is one try for the TPM. After three, the TPM is locked for keys that
// have a passphrase.
func TestWrongPassphrase(t *testing.T) {
	t.Parallel()
	tpm := testmod.StartSWTPM(t)
	f := mustCreate(t, tpm.TCTI, ECDSAP256, "right")
	free := mustCreate(t, tpm.TCTI, ECDSAP256, "")
	for try := range 3 {
		_, err := Open(t.Context(), tpm.TCTI, f, []byte("wrong-secret"))
		if !errors.Is(err, ErrPassphrase) || strings.Contains(err.Error(), "wrong-secret") || hintOf(err) == "" {
			t.Fatalf("try %d: %v", try+1, err)
		}
		if try == 0 {
			mustOpen(t, tpm.TCTI, f, "right").Close()
		}
	}
	_, err := Open(t.Context(), tpm.TCTI, f, []byte("right"))
	if err == nil || errors.Is(err, ErrPassphrase) || !strings.Contains(err.Error(), "TPM_RC_LOCKOUT") ||
		!strings.Contains(hintOf(err), "tpm2_dictionarylockout") {
		t.Errorf("locked: %v, hint %q", err, hintOf(err))
	}
	k := mustOpen(t, tpm.TCTI, free, "")
	if _, err := k.Sign(nil, digestOf(crypto.SHA256, ""), crypto.SHA256); err != nil {
		t.Errorf("a key without a passphrase in a locked TPM: %v", err)
	}
	for _, passphrase := range []string{strings.Repeat("x", 33), "a\x00"} {
		if _, err := Create(t.Context(), tpm.TCTI, ECDSAP256, []byte(passphrase)); err == nil ||
			strings.Contains(err.Error(), "xx") {
			t.Errorf("%q: %v", passphrase, err)
		}
	}
}

// The key of another TPM, one that was changed, and one with a parent that is not there.
func TestElsewhere(t *testing.T) {
	t.Parallel()
	one, two := testmod.StartSWTPM(t), testmod.StartSWTPM(t)
	f := mustCreate(t, one.TCTI, ECDSAP256, "")
	damaged, persistent, odd := *f, *f, *f
	damaged.private = bytes.Clone(f.private)
	damaged.private[len(damaged.private)-1] ^= 1
	cut := *f
	cut.private = f.private[:len(f.private)/2]
	persistent.parent, odd.parent = 0x81000001, 0x80000000
	for _, test := range []struct {
		tcti string
		file *File
		want string
	}{
		{two.TCTI, f, "does not belong to this TPM"},
		{one.TCTI, &damaged, "does not belong to this TPM"},
		{one.TCTI, &cut, "does not belong to this TPM"},
		{one.TCTI, &persistent, "nothing is at 0x81000001"},
		{one.TCTI, &odd, "neither a hierarchy"},
	} {
		for range 4 { // more than there are slots: nothing may stay
			if _, err := Open(t.Context(), test.tcti, test.file, nil); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		}
	}
	mustOpen(t, one.TCTI, f, "")
}

func TestNoTPM(t *testing.T) {
	t.Parallel()
	for tcti, want := range map[string]string{
		"device:/dev/no-such-tpm":       "no TPM: /dev/no-such-tpm: no such file",
		"swtpm:path=/nowhere/tpm":       "no TPM: dial unix /nowhere/tpm",
		"swtpm:host=localhost,port=1":   "no TPM: dial tcp",
		"swtpm:speed=11":                "speed=11",
		"mssim:host=localhost":          "not supported",
		"tabrmd:bus_name=org.example":   "not supported",
		"":                              "not supported",
		"device:/dev/null":              "connection with the TPM at /dev/null is lost",
		"swtpm:path=" + os.DevNull + "": "no TPM: dial unix",
	} {
		if _, err := Create(t.Context(), tcti, ECDSAP256, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", tcti, err, want)
		}
	}
}

// The TPM dies while a key is open: each signature fails at once, and after a restart the
// file works again.
func TestKilled(t *testing.T) {
	t.Parallel()
	tpm := testmod.StartSWTPM(t)
	f := mustCreate(t, tpm.TCTI, RSA2048, "secret")
	k := mustOpen(t, tpm.TCTI, f, "secret")
	digest := digestOf(crypto.SHA256, "")
	if _, err := k.Sign(nil, digest, crypto.SHA256); err != nil || k.Lost() {
		t.Fatal(err, k.Lost())
	}
	tpm.Kill()
	for range 2 {
		if _, err := k.Sign(nil, digest, crypto.SHA256); err == nil || !strings.Contains(err.Error(), "is lost") {
			t.Errorf("killed: %v", err)
		}
		if !k.Lost() {
			t.Error("killed: the key is not lost")
		}
	}
	k.Close()
	tpm.Start(t)
	if _, err := mustOpen(t, tpm.TCTI, f, "secret").Sign(nil, digest, crypto.SHA256); err != nil {
		t.Error(err)
	}
}

// An interrupt ends a call that waits for a TPM which does not answer: it serves one client
// at a time.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	tpm := testmod.StartSWTPM(t)
	f := mustCreate(t, tpm.TCTI, ECDSAP256, "")
	k := mustOpen(t, tpm.TCTI, f, "") // holds the TPM
	stop := errors.New("stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := Open(ctx, tpm.TCTI, f, nil)
		done <- err
	}()
	cancel(stop)
	if err := <-done; !errors.Is(err, stop) {
		t.Errorf("Open: %v", err)
	}
	k.Close()

	ctx, cancel = context.WithCancelCause(t.Context())
	k, err := Open(ctx, tpm.TCTI, f, nil)
	if err != nil {
		t.Fatal(err)
	}
	cancel(stop)
	if _, err := k.Sign(nil, digestOf(crypto.SHA256, ""), crypto.SHA256); !errors.Is(err, stop) {
		t.Errorf("Sign: %v", err)
	}
	k.Close()
	mustOpen(t, tpm.TCTI, f, "")
}

// tpmEnviron is the environment of tpm2-tools and of OpenSSL's provider.
func tpmEnviron(tpm *testmod.SWTPM) []string {
	return append(os.Environ(), "TPM2TOOLS_TCTI="+tpm.TCTI, "TPM2OPENSSL_TCTI="+tpm.TCTI)
}

func runPeer(t *testing.T, tpm *testmod.SWTPM, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = tpmEnviron(tpm)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func readFile(t *testing.T, path string) *File {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != keyfile.TPMKey {
		t.Fatalf("%s: not a block %s", path, keyfile.TPMKey)
	}
	f, err := Parse(block.Bytes)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return f
}

// needProvider skips a test where OpenSSL has no provider for TPMs.
func needProvider(t *testing.T) {
	t.Helper()
	testmod.Program(t, "openssl", "openssl")
	if found, _ := filepath.Glob("/usr/lib/*/ossl-modules/tpm2.so"); len(found) == 0 {
		testmod.Missing(t, "OpenSSL's provider tpm2", "apt-get install tpm2-openssl")
	}
}

// Keys that OpenSSL's provider makes work here, and ours work there.
func TestOpenSSL(t *testing.T) {
	testmod.Slow(t, "it makes keys with another program")
	t.Parallel()
	needProvider(t)
	tpm := testmod.StartSWTPM(t)
	dir := t.TempDir()
	digest := digestOf(crypto.SHA256, "data")
	for _, test := range []struct {
		name, passphrase string
		args             []string
	}{
		{"rsa2048", "", []string{"RSA", "-pkeyopt", "bits:2048"}},
		{"rsa2048-passphrase", "abc", []string{"RSA", "-pkeyopt", "bits:2048", "-pkeyopt", "user-auth:abc"}},
		{"rsa3072", "", []string{"RSA", "-pkeyopt", "bits:3072"}},
		{"p256", "", []string{"EC", "-pkeyopt", "group:P-256"}},
		{"p384-passphrase", "abc", []string{"EC", "-pkeyopt", "group:P-384", "-pkeyopt", "user-auth:abc"}},
		{"p521", "", []string{"EC", "-pkeyopt", "group:P-521"}},
	} {
		path := filepath.Join(dir, test.name)
		genpkey := []string{"genpkey", "-provider", "tpm2", "-out", path, "-algorithm"}
		runPeer(t, tpm, "openssl", append(genpkey, test.args...)...)
		f := readFile(t, path)
		if f.NeedsPassphrase() != (test.passphrase != "") {
			t.Errorf("%s: NeedsPassphrase is %v", test.name, f.NeedsPassphrase())
		}
		k := mustOpen(t, tpm.TCTI, f, test.passphrase)
		signature, err := k.Sign(nil, digest, crypto.SHA256)
		if err != nil || !verifies(k.Public(), crypto.SHA256, digest, signature) {
			t.Errorf("%s: %v", test.name, err)
		}
		k.Close()
	}

	data, signature := filepath.Join(dir, "digest"), filepath.Join(dir, "signature")
	if err := os.WriteFile(data, digest, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, a := range []Algorithm{RSA2048, ECDSAP256, ECDSAP384} {
		f := mustCreate(t, tpm.TCTI, a, "")
		path := filepath.Join(dir, "ours")
		block := pem.EncodeToMemory(&pem.Block{Type: keyfile.TPMKey, Bytes: f.Marshal()})
		if err := os.WriteFile(path, block, 0o600); err != nil {
			t.Fatal(err)
		}
		runPeer(t, tpm, "openssl", "pkeyutl", "-provider", "tpm2", "-provider", "default", "-sign", "-inkey", path,
			"-pkeyopt", "digest:sha256", "-in", data, "-out", signature)
		sig, err := os.ReadFile(signature)
		if err != nil || !verifies(f.Public(), crypto.SHA256, digest, sig) {
			t.Errorf("OpenSSL with our key: %v", err)
		}
	}
}

// Keys that tpm2-tools make below a persistent parent, and those that are refused.
func TestTools(t *testing.T) {
	testmod.Slow(t, "it makes keys with other programs")
	t.Parallel()
	testmod.Program(t, "tpm2_encodeobject", "tpm2-tools")
	tpm := testmod.StartSWTPM(t)
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	tool := func(args ...string) {
		t.Helper()
		runPeer(t, tpm, args[0], args[1:]...)
		for _, kind := range []string{"-t", "-l", "-s"} {
			runPeer(t, tpm, "tpm2_flushcontext", kind)
		}
	}
	make := func(name string, args ...string) *File {
		t.Helper()
		tool(append([]string{"tpm2_create", "-C", "0x81000001", "-u", in("pub"), "-r", in("priv")}, args...)...)
		tool("tpm2_encodeobject", "-C", "0x81000001", "-u", in("pub"), "-r", in("priv"), "-o", in(name))
		return readFile(t, in(name))
	}
	tool("tpm2_createprimary", "-C", "o", "-G", "rsa2048", "-c", in("primary"))
	tool("tpm2_evictcontrol", "-C", "o", "-c", in("primary"), "0x81000001")

	digest := digestOf(crypto.SHA384, "data")
	for name, args := range map[string][]string{
		"p384": {"-G", "ecc384"}, "rsa": {"-G", "rsa2048:rsassa-sha384"}, "fixed": {"-G", "ecc256:ecdsa-sha256"},
	} {
		k := mustOpen(t, tpm.TCTI, make(name, append(args, "-a",
			"fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign")...), "")
		signature, err := k.Sign(nil, digest, crypto.SHA384)
		if err != nil || !verifies(k.Public(), crypto.SHA384, digest, signature) {
			t.Errorf("%s: %v", name, err)
		}
		if name == "rsa" {
			if _, err := k.Sign(nil, digestOf(crypto.SHA256, ""), crypto.SHA256); err == nil ||
				!strings.Contains(err.Error(), "another hash") {
				t.Errorf("sha256 with a key for sha384: %v", err)
			}
		}
		k.Close()
	}
	withPassphrase := make("passphrase", "-G", "ecc256", "-p", "abc")
	k := mustOpen(t, tpm.TCTI, withPassphrase, "abc") // salted to an RSA parent
	if _, err := k.Sign(nil, digest, crypto.SHA384); err != nil {
		t.Error(err)
	}
	k.Close()

	// A key that the TPM lets anybody guess at: its passphrase is wrong in other words.
	guessable := make("noda", "-G", "ecc256", "-p", "abc", "-a",
		"sign|userwithauth|sensitivedataorigin|fixedtpm|fixedparent|noda")
	if _, err := Open(t.Context(), tpm.TCTI, guessable, []byte("abd")); !errors.Is(err, ErrPassphrase) ||
		!strings.Contains(hintOf(err), "counted 0") {
		t.Errorf("a wrong passphrase: %v, hint %q", err, hintOf(err))
	}

	// Parents that are made anew: the two templates of the format.
	for kind, isRSA := range map[string]bool{"rsa2048": true, "ecc256": false} {
		tool("tpm2_createprimary", "-C", "o", "-G", kind, "-c", in("derived"), "-a",
			"restricted|decrypt|fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda")
		tool("tpm2_create", "-C", in("derived"), "-u", in("pub"), "-r", in("priv"), "-G", "ecc256")
		f := &File{emptyAuth: true, rsaParent: isRSA, parent: tpm2.TPMRHOwner}
		for name, contents := range map[string]*[]byte{"pub": &f.public, "priv": &f.private} {
			data, err := os.ReadFile(in(name))
			if err != nil || !sized(contents, data) {
				t.Fatal(name, err)
			}
		}
		again, err := Parse(f.Marshal())
		if err != nil {
			t.Fatal(err)
		}
		k := mustOpen(t, tpm.TCTI, again, "")
		if _, err := k.Sign(nil, digest, crypto.SHA384); err != nil {
			t.Errorf("below %s: %v", kind, err)
		}
		k.Close()
	}

	for attributes, want := range map[string]string{
		"sign|restricted|userwithauth|sensitivedataorigin": "restricted",
		"decrypt|userwithauth|sensitivedataorigin":         "not for signatures",
		"sign|sensitivedataorigin":                         "policy",
	} {
		tool("tpm2_create", "-C", "0x81000001", "-u", in("pub"), "-r", in("priv"), "-G", algorithmFor(attributes),
			"-a", attributes)
		tool("tpm2_encodeobject", "-C", "0x81000001", "-u", in("pub"), "-r", in("priv"), "-o", in("refused"))
		data, err := os.ReadFile(in("refused"))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(data)
		if _, err := Parse(block.Bytes); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", attributes, err, want)
		}
	}

	// A passphrase of the owner is not asked for.
	tool("tpm2_changeauth", "-c", "owner", "owner-secret")
	if _, err := Create(t.Context(), tpm.TCTI, ECDSAP256, nil); err == nil ||
		!strings.Contains(err.Error(), "hierarchy of the parent key has a password") {
		t.Errorf("owner with a password: %v", err)
	}
}

func algorithmFor(attributes string) string {
	if strings.Contains(attributes, "restricted") {
		return "ecc256:ecdsa-sha256:null"
	}
	return "ecc256"
}
