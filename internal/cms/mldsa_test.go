package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"github.com/modsign/modsign/internal/mldsamu"
	"github.com/modsign/modsign/internal/testmod"
)

var mldsaTypes = []string{"mldsa:44", "mldsa:65", "mldsa:87"}

// signedBy returns a message over the payload.
func signedBy(t testing.TB, key *testmod.Key, h crypto.Hash, form Form) []byte {
	t.Helper()
	s, err := NewSigner(key.Private, key.Certificate, h, form)
	if err != nil {
		t.Fatal(err)
	}
	message, err := s.Sign(sum(s.Hash(), payload), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(message) > len(s.Draft()) {
		t.Errorf("a message of %d bytes, and the draft has %d", len(message), len(s.Draft()))
	}
	return message
}

// TestMLDSA signs with ML-DSA in every form, and has the rules of three kernels judge it.
func TestMLDSA(t *testing.T) {
	t.Parallel()
	waived := RulesOf(7, 2, true)
	for _, algorithm := range mldsaTypes {
		key := testmod.NewKey(t, algorithm)
		for _, form := range []Form{{}, {UseKeyID: true}, {Attributes: true}, {UseKeyID: true, Attributes: true}} {
			der := signedBy(t, key, crypto.SHA512, form)
			if again := signedBy(t, key, crypto.SHA512, form); !bytes.Equal(der, again) {
				t.Errorf("%s, %+v: not deterministic", algorithm, form)
			}
			for _, rules := range []*Rules{linux61, linux612, Newest, waived} {
				c, err := rules.ParseCertificate(key.Certificate.Raw)
				if !rules.mldsa {
					wantError(t, err, Unsupported, syscall.ENOPKG)
					_, err = rules.Parse(der)
					wantError(t, err, Unsupported, syscall.ENOPKG)
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				m, err := rules.Parse(der)
				if err != nil {
					t.Fatal(err)
				}
				if !m.Canonical() {
					t.Errorf("%s, %+v: not canonical: %q", algorithm, form, m.Warnings())
				}
				again, err := m.Marshal()
				if err != nil || !bytes.Equal(again, der) {
					t.Errorf("%s, %+v: Marshal: %v", algorithm, form, err)
				}
				ring := NewKeyring(c)
				_, err = m.Check(digestOf(payload), ring, nil)
				if form.Attributes && !rules.waiver {
					wantError(t, err, Malformed, syscall.EKEYREJECTED)
					continue
				}
				if err != nil {
					t.Errorf("%s, %+v: %v", algorithm, form, err)
				}
				_, err = m.Check(digestOf(append(slices.Clone(payload), 0)), ring, nil)
				wantError(t, err, BadSignature, syscall.EKEYREJECTED)
				_, err = m.Check(digestOf(payload), NewKeyring(), nil)
				wantError(t, err, UnknownKey, syscall.ENOKEY)
			}
		}
	}
}

// TestMLDSAChanged flips a bit in each byte of the signature and of the attributes.
func TestMLDSAChanged(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "mldsa:44")
	c, err := ParseCertificate(key.Certificate.Raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, form := range []Form{{}, {Attributes: true}} {
		der := signedBy(t, key, crypto.SHA512, form)
		m, err := Parse(der)
		if err != nil {
			t.Fatal(err)
		}
		covered := [][]byte{m.Signers[0].Signature}
		if form.Attributes {
			covered = append(covered, m.Signers[0].signature.attributes[1:])
		}
		for _, part := range covered {
			at := bytes.Index(der, part)
			for i := at; i < at+len(part); i += 7 {
				changed := bytes.Clone(der)
				changed[i] ^= 1
				if m, err := Parse(changed); err == nil {
					if _, err := m.Check(digestOf(payload), NewKeyring(c), nil); err == nil {
						t.Errorf("%+v: trusted with byte %d changed", form, i)
					}
				}
			}
		}
	}
}

// The digest algorithm of a message without attributes has no effect, as in the kernel; that
// of one with attributes has to be SHA-512.
func TestMLDSADigestAlgorithm(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "mldsa:65")
	c, err := ParseCertificate(key.Certificate.Raw)
	if err != nil {
		t.Fatal(err)
	}
	for i := range hashes {
		m, err := Parse(signedBy(t, key, hashes[i].hash, Form{}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Check(digestOf(payload), NewKeyring(c), nil); err != nil {
			t.Errorf("%s: %v", hashes[i].name, err)
		}
		if s := &m.Signers[0]; s.Hash != hashes[i].hash || HashName(s.Digest()) != "mldsa65-mu" {
			t.Errorf("%s: the message has %s, and signs %s", hashes[i].name, s.HashName, HashName(s.Digest()))
		}
		_, err = NewSigner(key.Private, key.Certificate, hashes[i].hash, Form{Attributes: true})
		if (err == nil) != (hashes[i].hash == crypto.SHA512) {
			t.Errorf("%s with attributes: %v", hashes[i].name, err)
		}
	}
	other := testmod.NewKey(t, "ecdsa:p256")
	if _, err := NewSigner(other.Private, other.Certificate, crypto.SHA512, Form{Attributes: true}); err == nil {
		t.Error("attributes with an ECDSA key")
	}
	// SHA-256 in attributes, by hand.
	s, err := NewSigner(key.Private, key.Certificate, crypto.SHA256, Form{})
	if err != nil {
		t.Fatal(err)
	}
	attributes := signedAttributes(sum(crypto.SHA256, payload))
	signature, err := key.Private.Sign(nil, attributes, crypto.Hash(0))
	if err != nil {
		t.Fatal(err)
	}
	m, err := Parse(s.encode(attributes, signature))
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.Check(digestOf(payload), NewKeyring(c), nil)
	wantError(t, err, BadSignature, syscall.EKEYREJECTED)
}

// TestMLDSASigners joins ML-DSA and ECDSA in one message, in which no signer may have
// attributes, waived or not.
func TestMLDSASigners(t *testing.T) {
	t.Parallel()
	mldsa, ecdsa := testmod.NewKey(t, "mldsa:65"), testmod.NewKey(t, "ecdsa:p256")
	certificate := func(k *testmod.Key) *Certificate {
		c, err := ParseCertificate(k.Certificate.Raw)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	parsed := func(der []byte) *Message {
		m, err := Parse(der)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	first := parsed(signedBy(t, ecdsa, crypto.SHA256, Form{}))
	both, err := first.Add(parsed(signedBy(t, mldsa, crypto.SHA512, Form{})))
	if err != nil {
		t.Fatal(err)
	}
	for _, ring := range []*Keyring{NewKeyring(certificate(mldsa)), NewKeyring(certificate(ecdsa))} {
		m := parsed(both)
		if _, err := m.Check(digestOf(payload), ring, nil); err != nil {
			t.Error(err)
		}
		for i, f := range m.CheckEach(digestOf(payload), ring, nil) {
			if known := f.Certificate != nil; known != (f.Err == nil) {
				t.Errorf("signer %d: %v", i, f.Err)
			}
		}
	}
	if _, err := linux612.Parse(both); err == nil {
		t.Error("Linux 6.12 takes ML-DSA beside ECDSA")
	}
	if _, err := first.Add(parsed(signedBy(t, mldsa, crypto.SHA512, Form{Attributes: true}))); err == nil {
		t.Error("attributes beside none")
	}
}

// TestMLDSAWaived puts signers with attributes into one message. The kernel looks only at the
// first of them for whether it accepts attributes.
func TestMLDSAWaived(t *testing.T) {
	t.Parallel()
	mldsa, ecdsa := testmod.NewKey(t, "mldsa:65"), testmod.NewKey(t, "ecdsa:p256")
	info := func(der []byte) []byte { return parse(t, der).Signers[0].raw }
	first := info(signedBy(t, mldsa, crypto.SHA512, Form{Attributes: true}))
	s, err := NewSigner(ecdsa.Private, ecdsa.Certificate, crypto.SHA256, Form{})
	if err != nil {
		t.Fatal(err)
	}
	attributes := signedAttributes(sum(crypto.SHA256, payload))
	signature, err := ecdsa.Private.Sign(rand.Reader, sum(crypto.SHA256, attributes), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	second := info(s.encode(attributes, signature))
	for name, test := range map[string]struct {
		signers []byte
		errno   syscall.Errno
	}{
		"ML-DSA": {set(first), 0}, "ML-DSA, ECDSA": {set(first, second), 0},
		"ECDSA, ML-DSA": {set(second, first), syscall.EKEYREJECTED}, "ECDSA": {set(second), syscall.EKEYREJECTED},
	} {
		p := p256Parts(t)
		p.signers = test.signers
		for _, key := range []*testmod.Key{mldsa, ecdsa} {
			c, err := ParseCertificate(key.Certificate.Raw)
			if err != nil {
				t.Fatal(err)
			}
			m := parse(t, p.der())
			_, err = m.Check(digestOf(payload), NewKeyring(c), nil)
			if test.errno == 0 && name == "ML-DSA" && key == ecdsa {
				wantError(t, err, UnknownKey, syscall.ENOKEY)
				continue
			}
			t.Run(name, func(t *testing.T) { wantError(t, err, Malformed, test.errno) })
			m, err = Newest.Parse(p.der())
			if err != nil {
				t.Fatal(err)
			}
			_, err = m.Check(digestOf(payload), NewKeyring(c), nil)
			wantError(t, err, Malformed, syscall.EKEYREJECTED)
		}
	}
}

// OpenSSL 3.5 verifies a message with attributes, which it can make itself.
func TestMLDSAOpenSSL(t *testing.T) {
	t.Parallel()
	openssl := testmod.OpenSSL35(t)
	content, other := testmod.WriteFile(t, "content", payload), testmod.WriteFile(t, "other", payload[1:])
	for _, algorithm := range mldsaTypes {
		key := testmod.NewKey(t, algorithm)
		_, cert := key.Files(t)
		for _, useKeyID := range []bool{false, true} {
			form := Form{UseKeyID: useKeyID, Attributes: true}
			message := testmod.WriteFile(t, "message", signedBy(t, key, crypto.SHA512, form))
			verify := func(content string) error {
				out, err := exec.Command(openssl, "cms", "-verify", "-binary", "-inform", "DER", "-in", message, "-content",
					content,
					"-certfile", cert, "-noverify", "-out", os.DevNull).CombinedOutput()
				if err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				return nil
			}
			if err := verify(content); err != nil {
				t.Errorf("%s: %v", algorithm, err)
			}
			if verify(other) == nil {
				t.Errorf("%s: OpenSSL verifies other content", algorithm)
			}
		}
	}
}

// A bare signature becomes the message that the key would have made.
func TestMLDSAWrap(t *testing.T) {
	t.Parallel()
	for _, algorithm := range mldsaTypes {
		key := testmod.NewKey(t, algorithm)
		mu, err := HashOf(key.Certificate, crypto.SHA512, Form{})
		if err != nil {
			t.Fatal(err)
		}
		digest := sum(mu, payload)
		bare, err := key.Private.Sign(nil, payload, crypto.Hash(0))
		if err != nil {
			t.Fatal(err)
		}
		if !Verifies(key.Certificate.PublicKey, mu.HashFunc(), digest, bare) {
			t.Errorf("%s: a signature of the message is none of its mu", algorithm)
		}
		got, err := Wrap(key.Certificate, mu, false, digest, bare)
		if err != nil || !bytes.Equal(got, signedBy(t, key, crypto.SHA512, Form{})) {
			t.Errorf("%s: %v", algorithm, err)
		}
		other := bytes.Clone(digest)
		other[0] ^= 1
		if _, err := Wrap(key.Certificate, mu, false, other, bare); err == nil {
			t.Errorf("%s: a signature of another digest", algorithm)
		}
		if h, err := RawHash(key.Certificate, bare); err != nil || h != mu.HashFunc() {
			t.Errorf("%s: %v, %v", algorithm, h, err)
		}
		// The key as its package has it.
		plain, err := NewSigner(key.Private.(*mldsamu.PrivateKey).Key(), key.Certificate, crypto.SHA512, Form{})
		if err != nil {
			t.Fatal(err)
		}
		if made, err := plain.Sign(digest, nil); err != nil || !bytes.Equal(made, got) {
			t.Errorf("%s: with the key itself: %v", algorithm, err)
		}
		// A certificate as crypto/x509 parses it.
		bareCert, err := x509.ParseCertificate(key.Certificate.Raw)
		if err != nil {
			t.Fatal(err)
		}
		s, err := NewSigner(key.Private, bareCert, crypto.SHA512, Form{})
		if err != nil || s.Hash().HashFunc() != mu.HashFunc() {
			t.Errorf("%s: %v", algorithm, err)
		}
	}
	if _, ok := testmod.NewKey(t, "ecdsa:p256").Certificate.PublicKey.(*ecdsa.PublicKey); !ok {
		t.Error("no ECDSA key")
	}
}
