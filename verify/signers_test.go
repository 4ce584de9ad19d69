package verify

import (
	"bytes"
	"crypto"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
)

// together puts the signers of modules with the same payload into one message.
func together(t testing.TB, payload []byte, modules ...[]byte) []byte {
	t.Helper()
	var message []byte
	for _, m := range modules {
		parsed, err := cms.Parse(m[len(payload) : len(m)-module.TrailerSize])
		if err != nil {
			t.Fatal(err)
		}
		if message == nil {
			message = parsed.Raw
			continue
		}
		old, err := cms.Parse(message)
		if err != nil {
			t.Fatal(err)
		}
		if message, err = old.Add(parsed); err != nil {
			t.Fatal(err)
		}
	}
	return module.AppendSignature(slices.Clone(payload), module.TypePKCS7, message)
}

// TestSigners has the verdict on a module of several signers, and on each of them.
func TestSigners(t *testing.T) {
	a, b, c := testmod.NewKey(t, "ecdsa:p256"), testmod.NewKey(t, "ecdsa:p384"), testmod.NewKey(t, "rsa:2048")
	payload := testmod.ELF()
	bad := signed(t, b, payload)
	bad[len(bad)-module.TrailerSize-1] ^= 1
	revokes := func(keys *Keyring, key *testmod.Key) *Keyring {
		cert, err := cms.ParseCertificate(key.Certificate.Raw)
		if err != nil {
			t.Fatal(err)
		}
		keys.add(Blacklist, "image", cert)
		return keys
	}
	for _, test := range []struct {
		name string
		data []byte
		keys *Keyring
		want Verdict
		each map[*testmod.Key]Verdict
	}{
		{"one", signed(t, a, payload), keyring(t, a), Trusted, map[*testmod.Key]Verdict{a: Trusted}},
		{"one unknown", signed(t, a, payload), keyring(t, b), UnknownKey, map[*testmod.Key]Verdict{a: UnknownKey}},
		{"all trusted", together(t, payload, signed(t, a, payload), signed(t, b, payload), signed(t, c, payload)),
			keyring(t, a, b, c), Trusted, map[*testmod.Key]Verdict{a: Trusted, b: Trusted, c: Trusted}},
		{"one of three trusted", together(t, payload, signed(t, a, payload), signed(t, b, payload), signed(t, c, payload)),
			keyring(t, c), Trusted, map[*testmod.Key]Verdict{a: UnknownKey, b: UnknownKey, c: Trusted}},
		{"one bad", together(t, payload, signed(t, a, payload), bad), keyring(t, a, b), BadSignature,
			map[*testmod.Key]Verdict{a: Trusted, b: BadSignature}},
		{"one bad and unknown", together(t, payload, signed(t, a, payload), bad), keyring(t, a), Trusted,
			map[*testmod.Key]Verdict{a: Trusted, b: UnknownKey}},
		{"one revoked", together(t, payload, signed(t, a, payload), signed(t, b, payload)), revokes(keyring(t, a), b),
			Revoked, map[*testmod.Key]Verdict{a: Trusted, b: Revoked}},
		{"none known", together(t, payload, signed(t, a, payload), signed(t, b, payload)), keyring(t, c), UnknownKey,
			map[*testmod.Key]Verdict{a: UnknownKey, b: UnknownKey}},
	} {
		r := Module(bytes.NewReader(test.data), int64(len(test.data)), test.keys)
		if r.Verdict != test.want || len(r.Signers) != len(test.each) || len(r.Warnings) != 0 {
			t.Errorf("%s: %s with %d signers, %v, warnings %q", test.name, r.Verdict, len(r.Signers), r.Err, r.Warnings)
		}
		for key, want := range test.each {
			serial := fmt.Sprintf("%x", key.Certificate.SerialNumber)
			i := slices.IndexFunc(r.Signers, func(s SignerResult) bool { return strings.HasSuffix(s.Serial, serial) })
			if i < 0 {
				t.Errorf("%s: no signer %s", test.name, key.Certificate.Subject)
				continue
			}
			s := r.Signers[i]
			known := want == Trusted || want == BadSignature || want == Revoked
			if s.Verdict != want || (s.Err == nil) != (want == Trusted) || s.Issuer != key.Certificate.Issuer.CommonName ||
				strings.Contains(s.Certificate, s.Issuer) != known || (s.Source != "") != known || s.Hash != "sha256" {
				t.Errorf("%s: %+v, want %s", test.name, s, want)
			}
		}
	}
	for _, data := range [][]byte{payload, module.AppendSignature(slices.Clone(payload), module.TypePKCS7, []byte("x"))} {
		if r := Module(bytes.NewReader(data), int64(len(data)), keyring(t, a)); r.Signers != nil {
			t.Errorf("%s with signers %+v", r.Verdict, r.Signers)
		}
	}
}

// counting counts how often all is read.
type counting struct {
	io.ReaderAt
	bytes int64
}

func (c *counting) ReadAt(b []byte, off int64) (int, error) {
	n, err := c.ReaderAt.ReadAt(b, off)
	c.bytes += int64(n)
	return n, err
}

// TestSignersReadOnce reads a module once for each hash, however many signers it has.
func TestSignersReadOnce(t *testing.T) {
	a, b, c := testmod.NewKey(t, "ecdsa:p256"), testmod.NewKey(t, "ecdsa:p384"), testmod.NewKey(t, "rsa:2048")
	payload := append(testmod.ELF(), make([]byte, 1<<20)...)
	data := together(t, payload, signed(t, a, payload), signed(t, b, payload), signed(t, c, payload))
	r := &counting{ReaderAt: bytes.NewReader(data)}
	if got := Module(r, int64(len(data)), keyring(t, a, b, c)); got.Verdict != Trusted || len(got.Signers) != 3 {
		t.Fatalf("%+v", got)
	}
	if r.bytes > int64(len(data))+64<<10 {
		t.Errorf("%d bytes read of %d", r.bytes, len(data))
	}
}

// TestBlacklistedInside has a certificate on a kernel's blacklist inside the message: the
// kernel says so in its log, and does not count the signer.
func TestBlacklistedInside(t *testing.T) {
	key := testmod.NewKey(t, "ecdsa:p256")
	payload := testmod.ELF()
	content := testmod.WriteFile(t, "payload", payload)
	file, cert := key.Files(t)
	der := testmod.Run(t, testmod.Program(t, "openssl", "openssl"), "cms", "-sign", "-binary", "-in", content, "-outform",
		"DER", "-noattr", "-nosmimecap", "-md", "sha256", "-signer", cert, "-inkey", file)
	data := module.AppendSignature(slices.Clone(payload), module.TypePKCS7, der)
	parsed, err := cms.ParseCertificate(key.Certificate.Raw)
	if err != nil {
		t.Fatal(err)
	}
	line := fmt.Sprintf("X.509: Cert %x is blacklisted", parsed.TBSHash())
	keys := keyring(t, testmod.NewKey(t, "ecdsa:p384"))
	keys.hashes = []string{fmt.Sprintf("tbs:%x", parsed.TBSHash())}
	r := Module(bytes.NewReader(data), int64(len(data)), keys)
	if r.Verdict != Revoked || r.Errno != syscall.EKEYREJECTED || !slices.Equal(r.Dmesg, []string{line}) || r.Tolerated {
		t.Errorf("%+v", r)
	}
	other := signed(t, testmod.NewKey(t, "ecdsa:p384"), payload)
	both := together(t, payload, data, other)
	r = Module(bytes.NewReader(both), int64(len(both)), keys)
	if r.Verdict != Trusted || !slices.Equal(r.Dmesg, []string{line}) || len(r.Signers) != 2 ||
		!slices.ContainsFunc(r.Signers, func(s SignerResult) bool { return s.Verdict == Revoked }) {
		t.Errorf("%+v", r)
	}
	if h := parsed.TBSHash(); len(h) != crypto.SHA256.Size() && len(h) != crypto.SHA512.Size() {
		t.Errorf("%x", h)
	}
}
