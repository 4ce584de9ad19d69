package detached

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/testmod"
)

// secret is the passphrase of the tests. No error may contain it.
const secret = "horse-battery"

var content = []byte("modsign hash list 1 6.12.0\n0\n")

// gpg is GnuPG with its own home directory.
type gpg struct {
	t    testing.TB
	home string
}

func newGPG(t testing.TB) *gpg {
	t.Helper()
	testmod.Program(t, "gpg", "gnupg")
	home, err := os.MkdirTemp("", "gpg") // the path of its agent's socket must be short
	if err != nil {
		t.Fatal(err)
	}
	// By default, each passphrase takes gpg a second.
	if err := os.WriteFile(filepath.Join(home, "gpg-agent.conf"), []byte("s2k-count 65536\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "gpg-agent").Run()
		os.RemoveAll(home)
	})
	return &gpg{t, home}
}

func (g *gpg) command(args ...string) *exec.Cmd {
	return exec.Command("gpg", append([]string{"--homedir", g.home, "--batch", "--no-tty", "--pinentry-mode", "loopback",
		"--s2k-count", "65536"}, args...)...)
}

func (g *gpg) run(args ...string) []byte {
	g.t.Helper()
	cmd := g.command(args...)
	return testmod.Run(g.t, "gpg", cmd.Args[1:]...)
}

// make makes a key and returns its fingerprint.
func (g *gpg) make(name, algorithm, usage, passphrase string, args ...string) string {
	g.t.Helper()
	g.run(append(args, "--passphrase", passphrase, "--quick-gen-key", name, algorithm, usage, "never")...)
	return g.fingerprint(name)
}

func (g *gpg) fingerprint(name string) string {
	g.t.Helper()
	found := regexp.MustCompile(`(?m)^fpr:+(\w+):`).FindSubmatch(g.run("--with-colons", "--list-keys", name))
	if found == nil {
		g.t.Fatalf("gpg has no key of %s", name)
	}
	return string(found[1])
}

func (g *gpg) secretKey(key, passphrase string) []byte {
	g.t.Helper()
	return g.run("--passphrase", passphrase, "--armor", "--export-secret-keys", key)
}

func (g *gpg) sign(content []byte, key string, args ...string) []byte {
	g.t.Helper()
	file := testmod.WriteFile(g.t, "list", content)
	return g.run(append(append([]string{"--passphrase", secret, "--local-user", key}, args...), "--output", "-",
		"--detach-sign", file)...)
}

// verdicts returns the results of gpg --verify, and of gpgv with the exported key.
func (g *gpg) verdicts(key string, content, signature []byte) map[string]error {
	g.t.Helper()
	list, sig := testmod.WriteFile(g.t, "list", content), testmod.WriteFile(g.t, "list.asc", signature)
	ring := testmod.WriteFile(g.t, "ring.gpg", g.run("--export", key))
	return map[string]error{
		"gpg":  g.command("--verify", sig, list).Run(),
		"gpgv": exec.Command(testmod.Program(g.t, "gpgv", "gpgv"), "--homedir", g.home, "--keyring", ring, sig, list).Run(),
	}
}

func (g *gpg) keyring(keys ...string) *Keyring {
	g.t.Helper()
	k, err := ParseKeyring(g.run(append([]string{"--armor", "--export"}, keys...)...))
	if err != nil {
		g.t.Fatal(err)
	}
	return k
}

func ask(passphrase string) func() ([]byte, error) {
	return func() ([]byte, error) { return []byte(passphrase), nil }
}

func askNobody() ([]byte, error) { return nil, errors.New("nobody knows") }

// refused checks that an error contains want, and no secret.
func refused(t testing.TB, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), secret) {
		t.Errorf("got %v, want an error with %q", err, want)
	}
}

// TestWithGPG signs and checks with keys that gpg has made, in both directions.
func TestWithGPG(t *testing.T) {
	t.Parallel()
	g := newGPG(t)
	changed := bytes.Replace(content, []byte("6.12.0"), []byte("6.12.1"), 1)
	other := g.make("Other <other@example.org>", "ed25519", "sign", "")
	for _, algorithm := range testmod.Few(
		[]string{"ed25519", "nistp256", "rsa3072", "nistp384", "nistp521", "brainpoolP256r1"}, 2,
	) {
		for _, passphrase := range []string{"", secret} {
			name := fmt.Sprintf("Kernel %s %t <kernel@example.org>", algorithm, passphrase != "")
			t.Run(fmt.Sprintf("%s passphrase %t", algorithm, passphrase != ""), func(t *testing.T) {
				g := &gpg{t, g.home}
				fingerprint := g.make(name, algorithm, "sign", passphrase)
				key, err := ParseSecretKey(g.secretKey(fingerprint, passphrase), time.Now())
				if err != nil {
					t.Fatal(err)
				}
				if passphrase != "" {
					_, err = key.Sign(content, time.Now(), ask("wrong"))
					refused(t, err, "wrong passphrase")
					_, err = key.Sign(content, time.Now(), askNobody)
					refused(t, err, "nobody knows")
				}
				passphrases := map[string]func() ([]byte, error){"": askNobody, secret: ask(secret)}
				now := time.Now()
				ours, err := key.Sign(content, now, passphrases[passphrase])
				if err != nil {
					t.Fatal(err)
				}
				if again, err := key.Sign(content, now, askNobody); algorithm == "ed25519" && string(again) != string(ours) {
					t.Errorf("the same signature once more is another one (%v):\n%s", err, again)
				}
				for peer, err := range g.verdicts(fingerprint, content, ours) {
					if err != nil {
						t.Errorf("%s refuses our signature: %v\n%s", peer, err, ours)
					}
				}
				for peer, err := range g.verdicts(fingerprint, changed, ours) {
					if err == nil {
						t.Errorf("%s takes our signature of another list", peer)
					}
				}
				if packets := g.run("--list-packets", testmod.WriteFile(t, "asc", ours)); !bytes.Contains(packets,
					[]byte("digest algo 10,")) || !bytes.Contains(packets, []byte("sigclass 0x00")) {
					t.Errorf("not a binary signature with SHA-512:\n%s", packets)
				}
				ring := g.keyring(other, fingerprint)
				signatures := map[string][]byte{
					"modsign":     ours,
					"gpg":         g.sign(content, fingerprint),
					"gpg --armor": g.sign(content, fingerprint, "--armor", "--comment", "from the builder"),
				}
				if algorithm == "rsa3072" || algorithm == "ed25519" { // longer curves have longer hashes
					signatures["gpg SHA-256"] = g.sign(content, fingerprint, "--digest-algo", "SHA256")
				}
				for maker, sig := range signatures {
					s, err := ring.Check(content, sig, time.Now())
					if err != nil {
						t.Errorf("signature of %s: %v", maker, err)
						continue
					}
					if s.Name != name || s.Fingerprint != fingerprint || time.Since(s.Time).Abs() > time.Hour {
						t.Errorf("signature of %s: %+v", maker, s)
					}
					_, err = ring.Check(changed, sig, time.Now())
					refused(t, err, `signed as "`+name+`": the signature is bad`)
					_, err = g.keyring(other).Check(content, sig, time.Now())
					refused(t, err, "signed by the key "+fingerprint+", which is not in the keyring")
				}
			})
		}
	}
}

// TestSubkeys signs with the same subkey as gpg.
func TestSubkeys(t *testing.T) {
	testmod.Slow(t, "it makes keys with gpg")
	t.Parallel()
	g := newGPG(t)
	primary := g.make("Offline <off@example.org>", "rsa3072", "cert", "")
	_, err := ParseSecretKey(g.secretKey(primary, ""), time.Now())
	refused(t, err, "not for signing")
	g.run("--passphrase", "", "--quick-add-key", primary, "ed25519", "sign", "never")
	g.run("--passphrase", "", "--quick-add-key", primary, "cv25519", "encr", "never")
	sign := func(export string) []byte {
		t.Helper()
		key, err := ParseSecretKey(g.run("--passphrase", "", export, primary), time.Now()) // binary
		if err != nil {
			t.Fatal(err)
		}
		sig, err := key.Sign(content, time.Now(), askNobody)
		if err != nil {
			t.Fatal(err)
		}
		for peer, err := range g.verdicts(primary, content, sig) {
			if err != nil {
				t.Errorf("%s refuses our signature: %v", peer, err)
			}
		}
		return sig
	}
	// Sign with the primary key present, and without, as on a build machine.
	sign("--export-secret-keys")
	sig := sign("--export-secret-subkeys")
	old := g.keyring(primary)
	s, err := old.Check(content, sig, time.Now())
	if err != nil || s.Fingerprint != primary {
		t.Fatalf("got %+v, %v", s, err)
	}

	// The keyring may have two versions of a key. In the first, the subkey is revoked.
	before := g.run("--export", primary)
	sub := regexp.MustCompile(`(?m)^sub:(?:[^:]*:){2}22:(\w+):`).
		FindSubmatch(g.run("--with-colons", "--list-keys", primary))
	edit := g.command("--passphrase", "", "--command-fd", "0", "--edit-key", primary)
	edit.Stdin = strings.NewReader("key " + string(sub[1]) + "\nrevkey\ny\n0\n\ny\nsave\n")
	if out, err := edit.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	after := g.run("--export", primary)
	_, err = g.keyring(primary).Check(content, sig, time.Now())
	refused(t, err, "the key is revoked")
	for _, both := range [][]byte{append(bytes.Clone(before), after...), append(bytes.Clone(after), before...)} {
		ring, err := ParseKeyring(both)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = ring.Check(content, sig, time.Now()); err != nil {
			t.Error(err)
		}
	}
	_, err = ParseSecretKey(g.secretKey(primary, ""), time.Now())
	refused(t, err, `"Offline <off@example.org>" cannot sign now: the key is revoked`)
}

// TestKeyLifetime rejects signatures by a key that has expired or was revoked since.
func TestKeyLifetime(t *testing.T) {
	t.Parallel()
	g := newGPG(t)
	born := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	valid, expired := born.AddDate(0, 6, 0), born.AddDate(2, 0, 0)
	g.run("--faked-system-time", "20200101T000000!", "--passphrase", "", "--quick-gen-key", "Old <old@example.org>",
		"ed25519", "sign", "1y")
	old := g.fingerprint("Old")
	ring := g.keyring(old)

	data := g.secretKey(old, "")
	_, err := ParseSecretKey(data, expired)
	refused(t, err, `"Old <old@example.org>" cannot sign now: the key has expired`)
	key, err := ParseSecretKey(data, valid)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := key.Sign(content, valid, askNobody)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ring.Check(content, sig, valid); err != nil {
		t.Error(err)
	}
	_, err = ring.Check(content, sig, expired)
	refused(t, err, `signed as "Old <old@example.org>": the key has expired`)
	_, err = ring.Check(content, sig, valid.Add(-time.Minute))
	refused(t, err, "from the future")
	_, err = key.Sign(content, expired, askNobody)
	refused(t, err, "")
	theirs := g.sign(content, old, "--faked-system-time", "20200601T000000!")
	if _, err := ring.Check(content, theirs, valid); err != nil {
		t.Error(err)
	}
	_, err = ring.Check(content, theirs, time.Now())
	refused(t, err, "the key has expired")
	short := g.sign(content, old, "--faked-system-time", "20200601T000000!", "--default-sig-expire", "1d")
	_, err = ring.Check(content, short, valid)
	refused(t, err, "the signature has expired")

	revoked := g.make("Lost <lost@example.org>", "ed25519", "sign", "")
	theirs = g.sign(content, revoked)
	if _, err := g.keyring(revoked).Check(content, theirs, time.Now()); err != nil {
		t.Error(err)
	}
	certificate, err := os.ReadFile(filepath.Join(g.home, "openpgp-revocs.d", revoked+".rev"))
	if err != nil {
		t.Fatal(err)
	}
	// gpg puts a colon there to prevent an accidental import.
	g.run("--import", testmod.WriteFile(t, "rev.asc", bytes.Replace(certificate, []byte("\n:-----"), []byte("\n-----"),
		1)))
	_, err = g.keyring(revoked).Check(content, theirs, time.Now())
	refused(t, err, `signed as "Lost <lost@example.org>": the key is revoked`)
	_, err = ParseSecretKey(g.secretKey(revoked, ""), time.Now())
	refused(t, err, "the key is revoked")
}

// TestOtherSignatures rejects everything except a detached signature of a file by one
// signer.
func TestOtherSignatures(t *testing.T) {
	testmod.Slow(t, "it makes signatures with gpg and openssl in many ways")
	t.Parallel()
	g := newGPG(t)
	key := g.make("Kernel <k@example.org>", "rsa3072", "sign", "")
	other := g.make("Other <o@example.org>", "ed25519", "sign", "")
	ring := g.keyring()
	good := g.sign(content, key)
	file := testmod.WriteFile(t, "list", content)
	armored := g.sign(content, key, "--armor")
	for _, c := range []struct {
		name      string
		signature []byte
		want      string
	}{
		{"SHA-1", g.sign(content, key, "--digest-algo", "SHA1"), "made with SHA-1 instead of at least SHA-256"},
		{"SHA-224", g.sign(content, key, "--digest-algo", "SHA224"), "made with SHA-224 instead of at least SHA-256"},
		{"text", g.sign(content, key, "--textmode"), "of a text"},
		{"two signers", g.sign(content, key, "--local-user", other), "one signature of one signer"},
		{"twice", append(bytes.Clone(good), good...), "other data follows"},
		{"two blocks", append(bytes.Clone(armored), armored...), "other data follows"},
		{"garbage behind", append(bytes.Clone(good), 0), "other data follows"},
		{
			"critical notation",
			g.sign(content, key, "--sig-notation", "!if@example.org=never"),
			`critical notation "if@example.org"`,
		},
		{"clear", g.run("--local-user", key, "--output", "-", "--clear-sign", file), "SIGNED MESSAGE"},
		{"message", g.run("--local-user", key, "--armor", "--output", "-", "--sign", file),
			`PGP MESSAGE instead of a PGP SIGNATURE`},
		{"binary message", g.run("--local-user", key, "--output", "-", "--sign", file), "not a detached signature"},
		{"key", g.run("--armor", "--export", key), "PUBLIC KEY BLOCK"},
		{"binary key", g.run("--export", key), "not a detached signature"},
		{"nothing", nil, "not OpenPGP"},
		{"the list", content, "not OpenPGP"},
		{"cut off", armored[:len(armored)-30], "cut off"},
		{"binary, cut off", good[:len(good)-1], "damaged"},
		{"damaged armor", bytes.Replace(armored, []byte("\n\n"), []byte("\n\n!"), 1), "damaged"},
		{"armor without a header", bytes.Replace(armored, []byte("\n\n"), []byte("\nx\n"), 1), "damaged"},
		{"large", make([]byte, maxSignature+1), "too many for a signature"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := ring.Check(content, c.signature, time.Now())
			if refused(t, err, c.want); s != nil {
				t.Errorf("it is by %+v", s)
			}
		})
	}
	if _, err := ring.Check(content, append([]byte("By hand:\n"), armored...), time.Now()); err != nil {
		t.Error(err)
	}

	// No signed byte of a signature may change; unsigned bytes may.
	signed := 0
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := ring.Check(content, bad, time.Now()); err != nil {
			signed++
		}
		if s, err := ring.Check(append(content, 'x'), bad, time.Now()); err == nil {
			t.Errorf("byte %d: another list is signed by %+v", i, s)
		}
	}
	if signed < len(good)-20 {
		t.Errorf("%d of %d bytes count", signed, len(good))
	}
}

func TestOtherKeys(t *testing.T) {
	t.Parallel()
	g := newGPG(t)
	one := g.make("One <one@example.org>", "ed25519", "sign", "")
	two := g.make("Two <two@example.org>", "ed25519", "sign", "")
	weak := g.make("Weak <weak@example.org>", "rsa1024", "sign", "")
	now := time.Now()
	_, err := ParseSecretKey(g.run("--armor", "--export-secret-keys", one, two), now)
	refused(t, err, "2 OpenPGP keys")
	_, err = ParseSecretKey(g.run("--armor", "--export", one), now)
	refused(t, err, "public key")
	_, err = ParseSecretKey(g.secretKey(weak, ""), now)
	refused(t, err, "too weak")
	_, err = ParseSecretKey(testmod.NewKey(t, "ecdsa:p256").KeyPEM, now)
	refused(t, err, "not OpenPGP: expected a PGP PRIVATE KEY BLOCK")
	_, err = ParseSecretKey(nil, now)
	refused(t, err, "not OpenPGP")
	data := g.secretKey(one, "")
	_, err = ParseSecretKey(data[:len(data)/2], now)
	refused(t, err, "cut off")
	_, err = ParseKeyring(data)
	refused(t, err, "secret key")
	box, err := os.ReadFile(filepath.Join(g.home, "pubring.kbx"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = ParseKeyring(box)
	refused(t, err, "gpg --export")
	_, err = g.keyring(weak).Check(content, g.sign(content, weak), now)
	refused(t, err, "weak")

	// Concatenated key files.
	ring, err := ParseKeyring(append(g.run("--armor", "--export", one), g.run("--armor", "--export", two)...))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ring.Check(content, g.sign(content, two), time.Now()); err != nil {
		t.Error(err)
	}
	// The secret key is elsewhere, as with a smart card.
	g.run("--passphrase", "", "--quick-add-key", one, "cv25519", "encr", "never")
	_, err = ParseSecretKey(g.run("--armor", "--export-secret-subkeys", one), now.Add(time.Minute))
	refused(t, err, `"One <one@example.org>" is elsewhere`)
}
