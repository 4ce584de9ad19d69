package sign

import (
	"bytes"
	"crypto"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/mldsamu"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/sign/manifest"
)

// TestMLDSATree signs real modules with ML-DSA: the signatures, made of mu, are those of the
// modules themselves, and two phases make the same bytes as one.
func TestMLDSATree(t *testing.T) {
	t.Parallel()
	plain := t.TempDir()
	modules := realModules(t, plain, testmod.Rounds(1000, 12))
	for _, algorithm := range []string{"mldsa:44", "mldsa:65", "mldsa:87"} {
		t.Run(algorithm, func(t *testing.T) {
			root := plain
			if algorithm != "mldsa:65" {
				root = t.TempDir()
				for _, path := range modules[:12] {
					put(t, filepath.Join(root, filepath.Base(path)), read(t, path))
				}
			}
			key := testmod.NewKey(t, algorithm)
			signer := newSigner(t, algorithm, crypto.SHA512, false)
			direct, attached := t.TempDir(), t.TempDir()
			nosync := WriteOptions{Sync: SyncNone}
			mustSign(t, signer, Source{Roots: []string{root}, Output: direct}, Options{WriteOptions: nosync})

			hash, err := HashOf(key.Certificate, SignerOptions{})
			if err != nil {
				t.Fatal(err)
			}
			tree := openTree(t, Source{Roots: []string{root}, Output: attached})
			m, err := tree.Manifest(t.Context(), hash, ReadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if m, err = manifest.Read(strings.NewReader(text(t, m))); err != nil {
				t.Fatal(err)
			}
			s, err := manifest.ReadSignatures(strings.NewReader(text(t, signManifest(t, signer, m))))
			if err != nil {
				t.Fatal(err)
			}
			a, err := NewAttachment(t.Context(), key.Certificate, s)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tree.Attach(t.Context(), a, AttachOptions{WriteOptions: nosync}); err != nil {
				t.Fatal(err)
			}

			private := key.Private.(*mldsamu.PrivateKey)
			for _, d := range m {
				payload := read(t, filepath.Join(root, d.Path))
				got := read(t, filepath.Join(direct, d.Path))
				if !bytes.Equal(got, read(t, filepath.Join(attached, d.Path))) {
					t.Errorf("%s: signed in two phases it is another", d.Path)
				}
				message, err := cms.Parse(signatureOf(got))
				if err != nil {
					t.Fatal(err)
				}
				whole, err := private.Key().SignDeterministic(payload, nil)
				if err != nil || !bytes.Equal(whole, message.Signers[0].Signature) {
					t.Errorf("%s: not the signature of the module (%v)", d.Path, err)
				}
			}
		})
	}
}

// TestMLDSADigestsOfOthers refuses digests for another key, and signatures by one.
func TestMLDSADigestsOfOthers(t *testing.T) {
	t.Parallel()
	root := "../testdata/modules/amd64-6.12/plain"
	key := testmod.NewKey(t, "mldsa:44")
	hash, err := HashOf(key.Certificate, SignerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	digests := func(h Hash) manifest.Manifest {
		m, err := openTree(t, Source{Roots: []string{root}, DryRun: true}).Manifest(t.Context(), h, ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	m := digests(hash)
	pair := key.Private.(*mldsamu.PrivateKey)
	if id := mldsamu.NewPublicKey(pair.Key().PublicKey()).ID(); !bytes.Equal(m[0].Key, id) {
		t.Errorf("the manifest is for key %x, not %x", m[0].Key, id)
	}
	of := func(algorithm string) *Signer { return newSigner(t, algorithm, crypto.SHA512, false) }
	for name, test := range map[string]struct {
		signer *Signer
		m      manifest.Manifest
		want   string
	}{
		"another parameter set": {of("mldsa:65"), m, "its digest is mldsa44-mu, and the signer is for"},
		"SHA-512":               {of("mldsa:44"), digests(crypto.SHA512), "its digest is sha512"},
		"mu for an ECDSA key":   {of("ecdsa:p256"), m, "its digest is mldsa44-mu"},
		"mu for another ML-DSA key": {of("mldsa:44"), func() manifest.Manifest {
			other := digests(hash)
			for i := range other {
				other[i].Key = bytes.Repeat([]byte{1}, 32)
			}
			return other
		}(), "mu for another key"},
	} {
		if _, err := test.signer.SignManifest(t.Context(), test.m, SignManifestOptions{}); err == nil ||
			!strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	s := signManifest(t, newSigner(t, "mldsa:44", crypto.SHA512, false), m)
	for _, algorithm := range []string{"mldsa:65", "ecdsa:p256"} {
		if _, err := NewAttachment(t.Context(), testmod.NewKey(t, algorithm).Certificate, s); err == nil {
			t.Errorf("signatures by mldsa:44 fit a certificate of %s", algorithm)
		}
	}
	s[0].Message[len(s[0].Message)-1] ^= 1
	if _, err := NewAttachment(t.Context(), key.Certificate, s); err == nil {
		t.Error("a wrong signature can be attached")
	}
}

// TestMLDSAAttributes signs with attributes, in one phase and in two, whose digests are
// those of SHA-512.
func TestMLDSAAttributes(t *testing.T) {
	t.Parallel()
	root := "../testdata/modules/amd64-6.12/plain"
	key := testmod.NewKey(t, "mldsa:65")
	signer, err := NewSigner(key.Private, key.Certificate, SignerOptions{Attributes: true})
	if err != nil {
		t.Fatal(err)
	}
	direct, attached := t.TempDir(), t.TempDir()
	mustSign(t, signer, Source{Roots: []string{root}, Output: direct}, Options{})
	tree := openTree(t, Source{Roots: []string{root}, Output: attached})
	m, err := tree.Manifest(t.Context(), crypto.SHA512, ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a, err := NewAttachment(t.Context(), key.Certificate, signManifest(t, signer, m))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Attach(t.Context(), a, AttachOptions{}); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(direct)
	if err != nil || len(entries) != len(m) {
		t.Fatalf("%d modules of %d: %v", len(entries), len(m), err)
	}
	for _, e := range entries {
		if !bytes.Equal(read(t, filepath.Join(direct, e.Name())), read(t, filepath.Join(attached, e.Name()))) {
			t.Errorf("%s: signed in two phases it is another", e.Name())
		}
	}
}

// TestMLDSARaw attaches bare signatures, as a signing service returns them for mu.
func TestMLDSARaw(t *testing.T) {
	t.Parallel()
	root, sigs, out := "../testdata/modules/amd64-6.12/plain", t.TempDir(), t.TempDir()
	key := testmod.NewKey(t, "mldsa:87")
	for _, name := range []string{"counter.ko", "hello.ko", "ring.ko"} {
		sig, err := key.Private.Sign(nil, read(t, filepath.Join(root, name)), crypto.Hash(0))
		if err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(sigs, name+".sig"), sig)
	}
	tree := openTree(t, Source{Roots: []string{root}, Output: out})
	s, err := tree.FindSignatures(t.Context(), key.Certificate, FoundSignatures{Layout: Raw, Dir: sigs}, ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a, err := NewAttachment(t.Context(), key.Certificate, s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Attach(t.Context(), a, AttachOptions{}); err != nil {
		t.Fatal(err)
	}
	direct := t.TempDir()
	mustSign(t, newSigner(t, "mldsa:87", crypto.SHA512, false), Source{Roots: []string{root}, Output: direct}, Options{})
	for _, name := range []string{"counter.ko", "hello.ko", "ring.ko"} {
		if !bytes.Equal(read(t, filepath.Join(direct, name)), read(t, filepath.Join(out, name))) {
			t.Errorf("%s: not what the key would have made", name)
		}
	}
}
