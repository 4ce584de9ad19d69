package cms

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"fmt"
	"math/big"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// With openssl's signature, Wrap returns the message of the kernel's sign-file.
func TestWrap(t *testing.T) {
	t.Parallel()
	openssl := testmod.Program(t, "openssl", "openssl")
	data := testmod.ELF()
	for _, algorithm := range testmod.Few([]string{"rsa:2048", "rsa:4096"}, 1) {
		k := testmod.NewKey(t, algorithm)
		key, cert := k.Files(t)
		for i := range hashes {
			h := hashes[i].hash
			digest := sum(h, data)
			in := testmod.WriteFile(t, "digest", digest)
			out := filepath.Join(t.TempDir(), "sig")
			testmod.Run(t, openssl, "pkeyutl", "-sign", "-inkey", key, "-pkeyopt", "digest:"+hashes[i].name, "-in", in, "-out",
				out)
			raw := readFile(t, out)
			if got, err := RawHash(k.Certificate, raw); err != nil || got != h {
				t.Errorf("%s, %v: RSAHash: %v, %v", algorithm, h, got, err)
			}
			for _, useKeyID := range []bool{false, true} {
				got, err := Wrap(k.Certificate, h, useKeyID, digest, raw)
				if err != nil {
					t.Fatalf("%s, %v: %v", algorithm, h, err)
				}
				testmod.DiffDER(t, got, signFile(t, data, key, cert, h, useKeyID))
			}
		}
	}
}

func TestWrapRefuses(t *testing.T) {
	t.Parallel()
	k, other, ec := testmod.NewKey(t, "rsa:2048"), testmod.NewKey(t, "rsa:3072"), testmod.NewKey(t, "ecdsa:p256")
	digest := sum(crypto.SHA256, testmod.ELF())
	raw := func(k *testmod.Key, h crypto.Hash, digest []byte) []byte {
		t.Helper()
		sig, err := k.Private.Sign(nil, digest, h)
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	good := raw(k, crypto.SHA256, digest)
	flipped := bytes.Clone(good)
	flipped[100] ^= 1
	for _, test := range []struct {
		key    *testmod.Key
		hash   crypto.Hash
		digest []byte
		sig    []byte
		want   string
	}{
		{k, crypto.SHA256, digest, good[1:], "255 bytes: an RSA signature by the certificate's key has 256"},
		{k, crypto.SHA256, digest, nil, "0 bytes: an RSA signature"},
		{k, crypto.SHA256, digest, append(bytes.Clone(good), 0), "257 bytes: an RSA signature"},
		{k, crypto.SHA256, digest, flipped, "not an RSA signature (PKCS #1 v1.5) by the certificate's key"},
		{k, crypto.SHA256, digest, bytes.Repeat([]byte{0xff}, 256),
			"not an RSA signature (PKCS #1 v1.5) by the certificate's key"},
		{k, crypto.SHA256, digest, make([]byte, 256), "not an RSA signature (PKCS #1 v1.5) by the certificate's key"},
		{k, crypto.SHA256, digest, raw(other, crypto.SHA256, digest),
			"384 bytes: an RSA signature by the certificate's key has 256"},
		{k, crypto.SHA256, digest, raw(k, crypto.SHA256, sum(crypto.SHA256, nil)), "the signature is for another digest"},
		{k, crypto.SHA256, digest, raw(k, crypto.SHA512, sum(crypto.SHA512, nil)), "the signature is for another digest"},
		{k, crypto.SHA256, digest, raw(k, 0, digest), "not an RSA signature (PKCS #1 v1.5) by the certificate's key"},
		// without DigestInfo
		{k, crypto.SHA256, digest[1:], good, "digest of 31 bytes"},
		{k, crypto.MD5, digest[:16], good, "the kernel verifies no module signature made with md5"},
		{ec, crypto.SHA256, digest, raw(ec, crypto.SHA256, digest), "a signature value without a message must be RSA"},
	} {
		msg, err := Wrap(test.key.Certificate, test.hash, false, test.digest, test.sig)
		if err == nil || msg != nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%d bytes, %v: %v, want %q", len(test.sig), test.hash, err, test.want)
		}
	}
	if _, err := RawHash(ec.Certificate, good); err == nil {
		t.Error("RSAHash with an ECDSA certificate")
	}
	// The same number modulo N, encoded as a larger number than allowed.
	n := k.Certificate.PublicKey.(*rsa.PublicKey).N
	for i := range 1000 {
		d := sum(crypto.SHA256, []byte{byte(i), byte(i >> 8)})
		larger := new(big.Int).SetBytes(raw(k, crypto.SHA256, d))
		if larger.Add(larger, n).BitLen() > 2048 {
			continue
		}
		sig := larger.FillBytes(make([]byte, 256))
		if _, err := RawHash(k.Certificate, sig); err == nil {
			t.Error("RSAHash takes a signature that is larger than the modulus")
		}
		if _, err := Wrap(k.Certificate, crypto.SHA256, false, d, sig); err == nil {
			t.Error("Wrap takes a signature that is larger than the modulus")
		}
		break
	}
	// Wrap rejects what RSAHash rejects, and accepts the rest with the right digest.
	for i := range good {
		changed := bytes.Clone(good)
		changed[i] ^= 1 << (i % 8)
		_, err1 := RawHash(k.Certificate, changed)
		_, err2 := Wrap(k.Certificate, crypto.SHA256, false, digest, changed)
		if err1 == nil || err2 == nil {
			t.Errorf("byte %d changed: %s", i, fmt.Sprint(err1, err2))
		}
	}
}
