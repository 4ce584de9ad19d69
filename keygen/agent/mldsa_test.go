package agent

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/mldsa"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/mldsamu"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen"
)

// TestMLDSA is the life of an agent with a one-time key of ML-DSA: it signs modules by mu, and
// its receipt is about them.
func TestMLDSA(t *testing.T) {
	t.Parallel()
	openssl := testmod.OpenSSL35(t)
	for _, algorithm := range []keygen.Algorithm{keygen.MLDSA44, keygen.MLDSA65, keygen.MLDSA87} {
		t.Run(algorithm.String(), func(t *testing.T) {
			t.Parallel()
			run := startAgent(t, func(o *Options) { o.Algorithm = algorithm })
			agent := run.dial(t)
			if err := agent.Published(); err != nil {
				t.Fatal(err)
			}
			public, ok := agent.Certificate().PublicKey.(*mldsa.PublicKey)
			if !ok || keygen.KeyName(public) != algorithm.String() {
				t.Fatalf("certificate has a key %T", agent.Certificate().PublicKey)
			}
			loaded, err := keygen.Load(filepath.Join(run.Dir, certificateName), "", keygen.LoadOptions{KeyOf: KeyOf})
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			for i, pair := range []*keygen.Pair{agent.Pair(), loaded} {
				form := cms.Form{Attributes: i == 1}
				signer, err := cms.NewSigner(pair.Signer, pair.Certificate, crypto.SHA512, form)
				if err != nil {
					t.Fatal(err)
				}
				writeSigned(t, filepath.Join(dir, fmt.Sprintf("%d.ko", i)), signer)
			}
			name := cms.HashName(mldsamu.NewPublicKey(public).HashFunc())
			for _, bad := range []wireRequest{
				{Op: "sign", Hash: name, Digest: make([]byte, 63)},
				{Op: "sign", Hash: "sha512", Digest: make([]byte, 64)},
				{Op: "sign", Hash: strings.ToUpper(name), Digest: make([]byte, 64)},
				{Op: "sign", Hash: "mldsa99-mu", Digest: make([]byte, 64)},
				{Op: "sign", Hash: map[bool]string{true: "mldsa44-mu", false: "mldsa65-mu"}[name != "mldsa44-mu"],
					Digest: make([]byte, 64)},
			} {
				if response, err := agent.call(bad); err == nil {
					t.Errorf("%s of %d bytes was signed: %d bytes", bad.Hash, len(bad.Digest), len(response.Signature))
				}
			}
			if status, err := agent.Status(); err != nil || status.Signatures != 2 || status.Algorithm != algorithm.String() {
				t.Errorf("status is %+v, %v", status, err)
			}
			if err := agent.Forget(); err != nil {
				t.Fatal(err)
			}
			run.wait(t)
			receipt := run.checkGone(t, "forgotten")
			if n, err := receipt.MatchModules(t.Context(), []string{dir}); n != 2 || err != nil {
				t.Errorf("%d modules match, %v", n, err)
			}
			if err := os.Remove(filepath.Join(dir, "1.ko")); err != nil {
				t.Fatal(err)
			}
			if _, err := receipt.MatchModules(t.Context(), []string{dir}); !errors.Is(err, ErrOtherModules) {
				t.Errorf("one module of two: %v", err)
			}

			// Others can check the receipt: its signature is over the bytes before its line.
			signed, _, _ := bytes.Cut(encoded(t, receipt), []byte("  \"signature\""))
			testmod.Run(t, openssl, "pkeyutl", "-verify", "-rawin", "-certin",
				"-inkey", testmod.WriteFile(t, "cert.pem", []byte(receipt.Certificate)),
				"-in", testmod.WriteFile(t, "signed", signed), "-sigfile", testmod.WriteFile(t, "sig", receipt.Signature))
		})
	}
}

// writeSigned writes a signed module whose payload has the name in it.
func writeSigned(t *testing.T, path string, signer *cms.Signer) {
	t.Helper()
	payload := append(testmod.ELF(), filepath.Base(path)...)
	h := signer.Hash().New()
	h.Write(payload)
	message, err := signer.Sign(h.Sum(nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, module.AppendSignature(payload, module.TypePKCS7, message), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestMuOfOthers asks agents with other keys for a signature of mu. They live on.
func TestMuOfOthers(t *testing.T) {
	t.Parallel()
	for _, algorithm := range []keygen.Algorithm{keygen.RSA2048, keygen.ECDSAP256} {
		agent := startAgent(t, func(o *Options) { o.Algorithm = algorithm }).dial(t)
		_, err := agent.Pair().Signer.Sign(nil, make([]byte, mldsamu.Size), mldsamu.Mu65)
		if err == nil || !strings.Contains(err.Error(), "mldsa65-mu is not for a key "+algorithm.String()) {
			t.Errorf("%v: %v", algorithm, err)
		}
		mustSign(t, agent.Pair().Signer, sum("x"), crypto.SHA256)
	}
}

// TestHeldMLDSA has an agent hold the key of a file, and a judge that sees mu.
func TestHeldMLDSA(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "mldsa:87")
	run := startHeld(t, key, nil, "AGENT_REFUSES=bad.ko")
	held := Held(run.Dir, key.Certificate)
	if held == nil {
		t.Fatal("the agent does not have the key that it holds")
	}
	signer, err := cms.NewSigner(held.Signer, held.Certificate, crypto.SHA256, cms.Form{})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "good.ko")
	writeSigned(t, path, signer)
	agent := run.dial(t)
	if err := agent.Forget(); err != nil {
		t.Fatal(err)
	}
	run.wait(t)
	receipt := run.receipt(t)
	n, err := receipt.MatchModules(t.Context(), []string{path})
	if n != 1 || err != nil || receipt.Algorithm != "mldsa:87" {
		t.Errorf("%d modules match the receipt of a key %s, %v", n, receipt.Algorithm, err)
	}
}
