package detached

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/testmod"
)

// A signature that is good for one content is good for no other.
func goodForOne(t *testing.T, check func(content []byte) (*Signer, error)) {
	s, err := check(content)
	if (s == nil) == (err == nil) {
		t.Fatalf("got %v and %v", s, err)
	}
	if err != nil {
		return
	}
	if s.Fingerprint == "" || s.Time.IsZero() {
		t.Errorf("signed by nobody, or never: %+v", s)
	}
	if _, err := check(append([]byte("x"), content...)); err == nil {
		t.Errorf("another content is signed too, by %+v", s)
	}
}

func FuzzCheckOpenPGP(f *testing.F) {
	g := newGPG(f)
	key := g.make("Kernel <k@example.org>", "ed25519", "sign", "")
	other := g.make("Other <o@example.org>", "rsa3072", "cert", "")
	g.run("--passphrase", "", "--quick-add-key", other, "rsa2048", "sign", "never")
	for _, key := range []string{key, other} {
		for _, args := range [][]string{nil, {"--armor"}, {"--textmode"}, {"--digest-algo", "SHA384"},
			{"--sig-notation", "!a@example.org=b"}} {
			f.Add(g.run("--export", key), g.sign(content, key, args...))
		}
		f.Add(g.run("--armor", "--export"), g.sign(content, key, "--armor"))
		f.Add(g.secretKey(key, ""), g.run("--armor", "--export", key))
	}
	now := time.Now()
	f.Fuzz(func(t *testing.T, keys, signature []byte) {
		if ring, err := ParseKeyring(keys); err == nil {
			goodForOne(t, func(content []byte) (*Signer, error) { return ring.Check(content, signature, now) })
		}
		if key, err := ParseSecretKey(keys, now); err == nil && key.Name() == "" {
			t.Error("a key without a name")
		}
	})
}

// The inputs are signatures of OpenSSL and of this package, and certificates, with a
// few changes.
func FuzzCheckCMS(f *testing.F) {
	var keys [][]byte
	var signatures [][]byte
	for _, algorithm := range []string{"rsa:2048", "ecdsa:p256"} {
		key := testmod.NewKey(f, algorithm)
		keys = append(keys, key.Certificate.Raw)
		for _, args := range [][]string{nil, {"-md", "sha512"}, {"-md", "sha1"}, {"-nocerts"}, {"-noattr"}, {"-keyid"},
			{"-nodetach"}, {"-stream"}} {
			signatures = append(signatures, opensslSign(f, content, key, args...))
		}
		ours, err := SignCMS(content, key.Private, key.Certificate)
		if err != nil {
			f.Fatal(err)
		}
		signatures = append(signatures, ours)
	}
	for i := range signatures {
		f.Add(uint8(i), uint64(0), uint64(0), uint64(0), uint64(0))
		f.Add(uint8(i), uint64(4<<16|1), uint64(40<<16|0x101), uint64(0), uint64(0))
	}
	now := time.Now()
	f.Fuzz(func(t *testing.T, seed uint8, one, two, three, ofKey uint64) {
		i := int(seed) % len(signatures)
		signature := testmod.Edit(signatures[i], one, two, three)
		der := testmod.Edit(keys[i*len(keys)/len(signatures)], ofKey)
		defer testmod.ShowInputs(t, signature, der)
		if trusted, err := x509.ParseCertificates(der); err == nil {
			goodForOne(t, func(content []byte) (*Signer, error) { return CheckCMS(content, signature, trusted, now) })
		}
	})
}
