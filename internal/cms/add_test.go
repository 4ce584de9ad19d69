package cms

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// add is old.Add(added).
func add(t testing.TB, old, added []byte) []byte {
	t.Helper()
	der, err := parse(t, old).Add(parse(t, added))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// trustedBy fails the test unless the message is a signature of the payload for a kernel
// that has this one certificate.
func trustedBy(t testing.TB, der []byte, cert *x509.Certificate) {
	t.Helper()
	c, err := ParseCertificate(cert.Raw)
	if err != nil {
		t.Fatal(err)
	}
	if found, err := parse(t, der).Check(digestOf(payload), NewKeyring(c), nil); err != nil || found != c {
		t.Errorf("%s: found %v, %v", cert.Subject, found, err)
	}
}

// TestAddAsOpenSSL compares with openssl cms -sign of two signers, byte for byte: RSA
// signatures are deterministic. (openssl cms -resign is no peer: without attributes, which
// no module may have, the signature that it adds is empty.)
func TestAddAsOpenSSL(t *testing.T) {
	t.Parallel()
	openssl := testmod.Program(t, "openssl", "openssl")
	a, b := testmod.NewKey(t, "rsa:2048"), testmod.NewKey(t, "rsa:4096")
	content := testmod.WriteFile(t, "payload", payload)
	for _, test := range []struct {
		name  string
		one   crypto.Hash
		other crypto.Hash
		keyID bool
	}{
		{"one digest", crypto.SHA256, crypto.SHA256, false},
		{"one digest, by key id", crypto.SHA512, crypto.SHA512, true},
		{"two digests", crypto.SHA512, crypto.SHA256, false},
		{"two digests, by key id", crypto.SHA256, crypto.SHA3_384, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			one := sign(t, a.Private, a.Certificate, test.one, test.keyID, payload)
			other := sign(t, b.Private, b.Certificate, test.other, test.keyID, payload)
			got := add(t, one, other)
			testmod.DiffDER(t, add(t, other, one), got) // whoever comes first
			if m := parse(t, got); !m.Canonical() {
				t.Errorf("not canonical: %q", m.Warnings())
			}
			trustedBy(t, got, a.Certificate)
			trustedBy(t, got, b.Certificate)

			keyA, certA := a.Files(t)
			keyB, certB := b.Files(t)
			if test.one == test.other {
				args := []string{"cms", "-sign", "-binary", "-in", content, "-outform", "DER", "-nocerts", "-noattr",
					"-nosmimecap", "-md", HashName(test.one), "-signer", certA, "-inkey", keyA, "-signer", certB, "-inkey", keyB}
				if test.keyID {
					args = append(args, "-keyid")
				}
				testmod.DiffDER(t, got, testmod.Run(t, openssl, args...))
			}
			certs := slices.Concat(readFile(t, certA), readFile(t, certB))
			out := filepath.Join(t.TempDir(), "out")
			testmod.Run(t, openssl, "cms", "-verify", "-binary", "-noverify", "-inform", "DER", "-in",
				testmod.WriteFile(t, "got.p7s", got), "-content", content, "-certfile", testmod.WriteFile(t, "certs.pem", certs),
				"-out", out)
			if verified := readFile(t, out); !bytes.Equal(verified, payload) {
				t.Errorf("openssl verifies %q", verified)
			}
		})
	}
}

// TestAddKeeps adds to messages of several makes, and finds all that was there.
func TestAddKeeps(t *testing.T) {
	t.Parallel()
	k := testmod.NewKey(t, "ecdsa:p256")
	for _, test := range []struct {
		message string
		keyID   bool
		want    string // part of the error
	}{
		{"kernel-rsa2048", false, ""},
		{"kernel-rsa2048-keyid", true, ""},
		{"kernel-rsa2048-sha3", false, ""},
		{"kernel-p521", false, ""},
		{"kernel-zero", false, ""},
		{"smime-nocerts", false, ""}, // digests with parameters
		{"smime", false, ""},
		{"cms-two", false, ""},
		{"cms-two-chains", false, ""},
		{"cms-chain", false, ""},
		{"kernel-rsa2048-keyid", false, "names signers in two ways: key id "},
		{"kernel-p256", true, "names signers in two ways: issuer "},
		{"cms-attributes-plain", false, "signed attributes"},
		{"cms-content", false, "the signed content is inside"},
	} {
		t.Run(test.message, func(t *testing.T) {
			data := testdata(t, test.message+".p7s")
			old := parse(t, data)
			added := parse(t, sign(t, k.Private, k.Certificate, crypto.SHA384, test.keyID, payload))
			der, err := old.Add(added)
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%v, want %q", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := parse(t, der)
			if len(got.Signers) != len(old.Signers)+1 || !bytes.Equal(got.between, old.between) ||
				!bytes.Equal(got.content, old.content) || got.Trailing != 0 || got.notDER {
				t.Errorf("%d signers, DER %v", len(got.Signers), !got.notDER)
			}
			for _, s := range slices.Concat(old.Signers, added.Signers) {
				if !slices.ContainsFunc(got.Signers, func(g SignerInfo) bool { return bytes.Equal(g.raw, s.raw) }) {
					t.Errorf("%s is lost", &s)
				}
			}
			for _, a := range old.digests {
				if !bytes.Contains(der, a.raw) {
					t.Errorf("digest %s is lost", dotted(a.oid))
				}
			}
			trustedBy(t, der, k.Certificate)
			// The old signer alone is enough, too: the kernel finds the same certificate.
			ring := keyring(t, "rsa2048 rsa1024 p256 p521 zero root inter leaf leaf2")
			before, err := old.Check(digestOf(payload), ring, nil)
			if err != nil {
				t.Fatal(err)
			}
			if after, err := got.Check(digestOf(payload), NewKeyring(before), nil); err != nil || after != before {
				t.Errorf("found %v, %v", after, err)
			}
		})
	}
}

// TestAddReplaces signs again with a key that has signed already.
func TestAddReplaces(t *testing.T) {
	t.Parallel()
	a, b := testmod.NewKey(t, "rsa:2048"), testmod.NewKey(t, "rsa:4096")
	of := func(k *testmod.Key, h crypto.Hash) []byte {
		return sign(t, k.Private, k.Certificate, h, false, payload)
	}
	both := add(t, of(a, crypto.SHA256), of(b, crypto.SHA256))
	again := add(t, both, of(a, crypto.SHA512))
	testmod.DiffDER(t, again, add(t, of(b, crypto.SHA256), of(a, crypto.SHA512)))
	if m := parse(t, again); len(m.Signers) != 2 || len(m.digests) != 2 {
		t.Errorf("%d signers, %d digests", len(m.Signers), len(m.digests))
	}
	// The digest that nobody uses any more goes.
	testmod.DiffDER(t, add(t, again, of(b, crypto.SHA512)), add(t, of(a, crypto.SHA512), of(b, crypto.SHA512)))
	testmod.DiffDER(t, add(t, of(a, crypto.SHA256), of(a, crypto.SHA512)), of(a, crypto.SHA512))
	testmod.DiffDER(t, add(t, both, both), both)

	// Of two SignerInfos of one signer, none stays.
	twice := p256Parts(t)
	twice.signers = set(twice.signerInfo(), twice.signerInfo())
	if m := parse(t, twice.der()); m.Canonical() || !slices.Contains(m.Warnings(), "a signer occurs twice") {
		t.Errorf("warnings %q", m.Warnings())
	}
	one := testdata(t, "kernel-p256.p7s")
	testmod.DiffDER(t, add(t, twice.der(), one), one)

	// Attributes that go with their signer are no reason to refuse.
	with := parse(t, testdata(t, "cms-attributes-plain.p7s"))
	plain := p256Parts(t)
	plain.sid = sidOf(&with.Signers[0])
	testmod.DiffDER(t, add(t, with.Raw, plain.der()), plain.der())
}

// TestAddSize adds signers until the kernel's limit.
func TestAddSize(t *testing.T) {
	t.Parallel()
	var der []byte
	for serial := range 10000 {
		p := p256Parts(t)
		p.sid = serialIdentifier(parse(t, p.der()).Signers[0].RawIssuer, []byte{1, byte(serial >> 8), byte(serial)})
		if der == nil {
			der = p.der()
			continue
		}
		next, err := parse(t, der).Add(parse(t, p.der()))
		if err != nil {
			if len(der) < MaxSize-200 || len(der) > MaxSize || !strings.Contains(err.Error(), "the kernel cannot parse") {
				t.Errorf("after %d bytes: %v", len(der), err)
			}
			return
		}
		if len(parse(t, next).Signers) != serial+1 {
			t.Fatal("a signer is lost")
		}
		der = next
	}
	t.Error("no limit")
}

// TestAddOdd refuses what has an identifier of its neighbour, and what brings certificates.
func TestAddOdd(t *testing.T) {
	t.Parallel()
	p := p256Parts(t)
	first := p.signerInfo()
	p.sid = keyIDIdentifier([]byte("ignored"))
	p.signers = set(first, p.signerInfo())
	k := testmod.NewKey(t, "ecdsa:p256")
	good := sign(t, k.Private, k.Certificate, crypto.SHA256, false, payload)
	if _, err := parse(t, p.der()).Add(parse(t, good)); err == nil || !strings.Contains(err.Error(), "version 1") {
		t.Error(err)
	}
	if _, err := parse(t, good).Add(parse(t, testdata(t, "cms-chain.p7s"))); err == nil ||
		!strings.Contains(err.Error(), "certificates") {
		t.Error(err)
	}
}

// FuzzAdd adds a signer to whatever a module may carry.
func FuzzAdd(f *testing.F) {
	for _, name := range testfiles(f, ".p7s") {
		f.Add(testdata(f, name), false)
		f.Add(testdata(f, name), true)
	}
	p := p256Parts(f)
	p.signers = seq(p.signerInfo(), p.signerInfo())
	f.Add(p.der(), false)
	k := testmod.NewKey(f, "rsa:2048")
	added := make(map[bool]*Message)
	for _, keyID := range []bool{false, true} {
		added[keyID] = parse(f, sign(f, k.Private, k.Certificate, crypto.SHA512, keyID, payload))
	}
	f.Fuzz(func(t *testing.T, der []byte, keyID bool) {
		before := bytes.Clone(der)
		old, err := Parse(der)
		if err != nil {
			return
		}
		new, err := old.Add(added[keyID])
		if !bytes.Equal(der, before) {
			t.Fatal("input changed")
		}
		if err != nil {
			return
		}
		m, err := Parse(new)
		if err != nil {
			t.Fatal(err)
		}
		if m.Trailing != 0 || !bytes.Equal(m.between, old.between) || !bytes.Equal(m.content, old.content) {
			t.Fatal("more has changed than the signers")
		}
		if old.Canonical() && !m.Canonical() {
			t.Fatalf("not canonical any more: %q", m.Warnings())
		}
		if err := m.acceptable(); err != nil {
			t.Fatal(err)
		}
		found := 0
		for i := range m.Signers {
			if m.Signers[i].sameAs(&added[keyID].Signers[0]) {
				found++
			}
		}
		if found != 1 {
			t.Fatalf("the new signer is there %d times", found)
		}
		for i := range old.Signers {
			s := &old.Signers[i]
			if !s.sameAs(&added[keyID].Signers[0]) && !slices.ContainsFunc(m.Signers, func(g SignerInfo) bool {
				return bytes.Equal(g.raw, s.raw) && bytes.Equal(g.keyID, s.keyID)
			}) {
				t.Fatalf("%s is lost", s)
			}
		}
		// It is the same again.
		if again, err := m.Add(added[keyID]); err != nil || !bytes.Equal(again, new) {
			t.Fatalf("again: %x, %v", again, err)
		}
	})
}
