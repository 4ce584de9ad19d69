package mldsamu

import (
	"bytes"
	"crypto"
	"crypto/sha3"
	"fmt"
	"io"
	"testing"

	"filippo.io/mldsa"
	"github.com/cloudflare/circl/sign"
	"github.com/cloudflare/circl/sign/mldsa/mldsa44"
	"github.com/cloudflare/circl/sign/mldsa/mldsa65"
	"github.com/cloudflare/circl/sign/mldsa/mldsa87"
)

// sets are the parameter sets, each with an implementation by others.
var sets = []struct {
	parameters mldsa.Parameters
	circl      sign.Scheme
	mu         crypto.Hash
}{
	{mldsa.MLDSA44(), mldsa44.Scheme(), Mu44},
	{mldsa.MLDSA65(), mldsa65.Scheme(), Mu65},
	{mldsa.MLDSA87(), mldsa87.Scheme(), Mu87},
}

func newKey(t testing.TB, p mldsa.Parameters, seed []byte) *PrivateKey {
	t.Helper()
	key, err := mldsa.NewPrivateKey(p, seed)
	if err != nil {
		t.Fatal(err)
	}
	return NewPrivateKey(key)
}

// noise returns bytes that are the same in every run.
func noise(name string, size int) []byte { return sha3.SumSHAKE256([]byte(name), size) }

// muOf returns mu of a message that is written in pieces.
func muOf(p *PublicKey, message []byte) []byte {
	h := p.New()
	for rest := message; len(rest) > 0; {
		n := min(len(rest), 61)
		h.Write(rest[:n])
		rest = rest[n:]
	}
	return h.Sum(nil)
}

// The same seed makes the same keys and signatures as circl, of the message and of mu.
func TestOracle(t *testing.T) {
	t.Parallel()
	for _, set := range sets {
		t.Run(set.parameters.String(), func(t *testing.T) {
			t.Parallel()
			for k := range 4 {
				seed := noise(fmt.Sprint("seed", k), mldsa.PrivateKeySize)
				private := newKey(t, set.parameters, seed)
				public := NewPublicKey(private.public)
				theirs, theirPrivate := set.circl.DeriveKey(seed)
				if encoded, err := theirs.MarshalBinary(); err != nil || !bytes.Equal(encoded, public.Key().Bytes()) {
					t.Fatalf("seed %d: another public key, %v", k, err)
				}
				if expanded, err := theirPrivate.MarshalBinary(); err != nil || !private.IsExpanded(expanded) {
					t.Fatalf("seed %d: another private key, %v", k, err)
				}
				for i := range 40 {
					message := noise(fmt.Sprint("message", k, i), i*i*i)
					want := set.circl.Sign(theirPrivate, message, nil)
					whole, err := private.Sign(nil, message, crypto.Hash(0))
					if err != nil || !bytes.Equal(whole, want) {
						t.Fatalf("seed %d, message %d: another signature of the message, %v", k, i, err)
					}
					mu := muOf(public, message)
					signature, err := private.Sign(nil, mu, public)
					if err != nil || !bytes.Equal(signature, want) {
						t.Fatalf("seed %d, message %d: another signature of mu, %v", k, i, err)
					}
					if err := public.Verify(mu, want); err != nil {
						t.Errorf("seed %d, message %d: %v", k, i, err)
					}
					if err := public.Verify(muOf(public, append(message, 0)), want); err != ErrMismatch {
						t.Errorf("seed %d, message %d and a byte: %v", k, i, err)
					}
				}
			}
		})
	}
}

// Every changed byte of a signature makes it one of nothing.
func TestVerifyRefuses(t *testing.T) {
	t.Parallel()
	for _, set := range sets {
		private := newKey(t, set.parameters, noise("key", 32))
		public := NewPublicKey(private.public)
		mu := noise("mu", Size)
		good, err := private.Sign(nil, mu, set.mu)
		if err != nil || public.Verify(mu, good) != nil {
			t.Fatal(err)
		}
		malformed := 0
		for i := 0; i < len(good); i += 7 {
			changed := bytes.Clone(good)
			changed[i] ^= 1 << (i % 8)
			switch err := public.Verify(mu, changed); err {
			case ErrMalformed:
				malformed++
			case ErrMismatch:
			default:
				t.Errorf("%v, byte %d changed: %v", set.parameters, i, err)
			}
		}
		if malformed == 0 {
			t.Errorf("%v: no change of a signature made it malformed", set.parameters)
		}
		for _, length := range []int{0, 1, len(good) - 1} {
			if err := public.Verify(mu, good[:length]); err != ErrMalformed {
				t.Errorf("%v, %d bytes: %v", set.parameters, length, err)
			}
		}
		if err := public.Verify(mu, append(good, 0)); err != ErrMalformed {
			t.Errorf("%v, a byte too many: %v", set.parameters, err)
		}
		other := NewPublicKey(newKey(t, set.parameters, noise("other key", 32)).public)
		for _, test := range []struct {
			key *PublicKey
			mu  []byte
		}{{other, mu}, {public, noise("other mu", Size)}, {public, mu[:63]}, {public, nil}, {public, append(mu, 0)}} {
			if err := test.key.Verify(test.mu, good); err != ErrMismatch {
				t.Errorf("%v, mu of %d bytes: %v", set.parameters, len(test.mu), err)
			}
		}
	}
}

func TestHash(t *testing.T) {
	t.Parallel()
	public := NewPublicKey(newKey(t, mldsa.MLDSA65(), noise("key", 32)).public)
	h := public.New()
	if h.Size() != Size || len(h.Sum(nil)) != Size || h.BlockSize() != 136 || public.HashFunc() != Mu65 {
		t.Errorf("%d, %d, %v", h.Size(), h.BlockSize(), public.HashFunc())
	}
	empty := h.Sum([]byte("x"))
	if empty[0] != 'x' || !bytes.Equal(empty[1:], h.Sum(nil)) {
		t.Error("Sum changes the state, or drops what it appends to")
	}
	io.WriteString(h, "a")
	a := h.Sum(nil)
	io.WriteString(h, "b")
	h.Reset()
	io.WriteString(h, "a")
	if !bytes.Equal(h.Sum(nil), a) || bytes.Equal(a, empty[1:]) {
		t.Error("Reset does not begin again")
	}
	for _, h := range []crypto.Hash{0, crypto.SHA512, crypto.SHA3_512, Mu44 - 1, Mu87 + 1} {
		if IsMu(h) {
			t.Errorf("%d is mu", h)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	t.Parallel()
	private := newKey(t, mldsa.MLDSA65(), noise("key", 32))
	for _, test := range []struct {
		digest int
		hash   crypto.Hash
	}{{64, crypto.SHA512}, {64, Mu44}, {64, Mu87}, {63, Mu65}, {65, Mu65}, {0, Mu65}} {
		if signature, err := private.Sign(nil, make([]byte, test.digest), test.hash); err == nil || signature != nil {
			t.Errorf("%d bytes of %d were signed", test.digest, test.hash)
		}
	}
	same, other := newKey(t, mldsa.MLDSA65(), noise("key", 32)), newKey(t, mldsa.MLDSA65(), noise("other key", 32))
	if !private.Equal(same) || private.Equal(other) || private.Equal(private.Key()) {
		t.Error("Equal is wrong")
	}
}

func TestIsExpanded(t *testing.T) {
	t.Parallel()
	for _, set := range sets {
		private := newKey(t, set.parameters, noise("key", 32))
		expanded := private.expand()
		for i := 0; i < len(expanded); i += 97 {
			expanded[i] ^= 0x10
			if private.IsExpanded(expanded) {
				t.Errorf("%v: byte %d does not matter", set.parameters, i)
			}
			expanded[i] ^= 0x10
		}
		if !private.IsExpanded(expanded) || private.IsExpanded(expanded[1:]) || private.IsExpanded(nil) {
			t.Errorf("%v: IsExpanded is wrong", set.parameters)
		}
	}
}

// FuzzVerify compares Verify with that of filippo.io/mldsa, which takes messages alone.
func FuzzVerify(f *testing.F) {
	type pair struct {
		private *PrivateKey
		public  *PublicKey
	}
	var pairs []pair
	for i, set := range sets {
		private := newKey(f, set.parameters, noise("key", 32))
		pairs = append(pairs, pair{private, NewPublicKey(private.public)})
		message := []byte("a module")
		good, err := private.Sign(nil, message, crypto.Hash(0))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), message, good)
		f.Add(uint8(i), []byte("another"), good)
		f.Add(uint8(i), message, good[1:])
		hints := bytes.Clone(good)
		hints[len(hints)-1]++
		f.Add(uint8(i), message, hints)
		f.Add(uint8(i), message, make([]byte, len(good)))
		f.Add(uint8(i), message, bytes.Repeat([]byte{0xff}, len(good)))
	}
	f.Fuzz(func(t *testing.T, set uint8, message, signature []byte) {
		p := pairs[int(set)%len(pairs)]
		err := p.public.Verify(muOf(p.public, message), signature)
		if err != nil && err != ErrMalformed && err != ErrMismatch {
			t.Errorf("%v", err)
		}
		if theirs := mldsa.Verify(p.private.public, message, signature, nil); (theirs == nil) != (err == nil) {
			t.Errorf("%v, and filippo.io/mldsa says %v", err, theirs)
		}
	})
}

func Benchmark(b *testing.B) {
	private := newKey(b, mldsa.MLDSA65(), noise("key", 32))
	public := NewPublicKey(private.public)
	mu := noise("mu", Size)
	signature, err := private.Sign(nil, mu, Mu65)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("Sign", func(b *testing.B) {
		for b.Loop() {
			private.Sign(nil, mu, Mu65)
		}
	})
	b.Run("Verify", func(b *testing.B) {
		for b.Loop() {
			public.Verify(mu, signature)
		}
	})
	b.Run("Verify, with a new key", func(b *testing.B) {
		for b.Loop() {
			NewPublicKey(private.public).Verify(mu, signature)
		}
	})
	b.Run("Verify of filippo.io/mldsa", func(b *testing.B) {
		for b.Loop() {
			mldsa.Verify(private.public, mu, signature, nil)
		}
	})
}
