package sign

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/testmod"
)

// errPulled is the error of a key that signs nothing more.
type errPulled struct{ error }

func (errPulled) Lost() bool { return true }

// token is a key that is lost after some signatures, and notes what it signs for.
type token struct {
	crypto.Signer
	left int
	err  error

	mu   sync.Mutex
	seen []Subject
}

func (k *token) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if subject, ok := opts.(*Subject); ok {
		k.seen = append(k.seen, *subject)
	}
	if k.left--; k.left < 0 {
		return nil, k.err
	}
	return k.Signer.Sign(rand, digest, opts)
}

func tokenSigner(t *testing.T, left int, err error) (*Signer, *token) {
	t.Helper()
	key := testmod.NewKey(t, "ecdsa:p256")
	k := &token{Signer: key.Private, left: left, err: err}
	signer, err := NewSigner(k, key.Certificate, SignerOptions{Hash: crypto.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	return signer, k
}

// TestKeyLost checks that a run ends with its key: the modules that are left would fail
// one by one, as all do whose key has another error.
func TestKeyLost(t *testing.T) {
	pulled, other := errPulled{errors.New("token was pulled out")}, errors.New("out of paper")
	const modules, good = 40, 7
	for _, test := range []struct {
		err  error
		lost bool
	}{{pulled, true}, {fmt.Errorf("key: %w", pulled), true}, {other, false}} {
		dir := t.TempDir()
		for i := range modules {
			put(t, filepath.Join(dir, fmt.Sprintf("%d.ko", i)), testmod.ELF())
		}
		before := snapshot(t, dir)
		signer, key := tokenSigner(t, good, test.err)
		tree := openTree(t, Source{Roots: []string{dir}})
		summary, err := tree.Sign(t.Context(), signer, Options{WriteOptions: WriteOptions{Jobs: 2}})
		tree.Close()
		lost, ok := errors.AsType[*KeyLostError](err)
		if ok != test.lost || !errors.Is(err, test.err) || ok && lost.Error() == "" {
			t.Errorf("%v: %v", test.err, err)
		}
		if errors.Is(err, ErrIncomplete) == test.lost || summary.Signed != good {
			t.Errorf("%v: %v, %+v", test.err, err, summary)
		}
		if test.lost && (summary.Failed != 0 || len(key.seen) > good+2) || !test.lost && summary.Failed != modules-good {
			t.Errorf("%v: asked %d times, %+v", test.err, len(key.seen), summary)
		}
		changed := 0
		for path, was := range before {
			if was.Mode.IsRegular() && stateOf(t, path) != was {
				changed++
			}
		}
		if changed != good {
			t.Errorf("%v: %d modules changed, %d signed", test.err, changed, good)
		}
		if left := temps(t, dir); len(left) > 0 {
			t.Errorf("left %q", left)
		}
	}
}

// TestSubjects checks what a key learns of the modules that it signs for.
func TestSubjects(t *testing.T) {
	elf := testmod.ELF()
	want := []Subject{{crypto.SHA256, "a/x.ko", int64(len(elf))}, {crypto.SHA256, "y.ko", int64(len(elf))}}
	sorted := func(k *token) []Subject {
		slices.SortFunc(k.seen, func(a, b Subject) int { return bytes.Compare([]byte(a.Path), []byte(b.Path)) })
		return k.seen
	}
	dir := t.TempDir()
	put(t, filepath.Join(dir, "a/x.ko.xz"), compressed(t, compress.XZ, elf))
	put(t, filepath.Join(dir, "y.ko"), elf)
	tree := openTree(t, Source{Roots: []string{dir}})
	digests, err := tree.Manifest(t.Context(), crypto.SHA256, ReadOptions{})
	tree.Close()
	if err != nil {
		t.Fatal(err)
	}
	signer, key := tokenSigner(t, 2, nil)
	if _, err := signer.SignManifest(t.Context(), digests, SignManifestOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := sorted(key); !slices.Equal(got, want) {
		t.Errorf("manifest: %v", got)
	}
	signer, key = tokenSigner(t, 2, nil)
	mustSign(t, signer, Source{Roots: []string{dir}}, Options{})
	if got := sorted(key); !slices.Equal(got, want) {
		t.Errorf("tree: %v", got)
	}
	signer, key = tokenSigner(t, 1, nil)
	path := filepath.Join(dir, "y.ko")
	if err := File(t.Context(), signer, path, "", FileOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := key.seen; len(got) != 1 || got[0] != (Subject{crypto.SHA256, path, int64(len(elf))}) {
		t.Errorf("file: %v", got)
	}
	if path, size := key.seen[0].Module(); path != key.seen[0].Path || size != key.seen[0].Size {
		t.Errorf("Module: %s, %d", path, size)
	}
}
