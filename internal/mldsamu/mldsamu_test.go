package mldsamu

import (
	"bytes"
	"crypto"
	"testing"

	"filippo.io/mldsa"
)

func TestTry(t *testing.T) {
	for _, p := range []mldsa.Parameters{mldsa.MLDSA44(), mldsa.MLDSA65(), mldsa.MLDSA87()} {
		private, err := mldsa.NewPrivateKey(p, make([]byte, 32))
		if err != nil {
			t.Fatal(err)
		}
		k := NewPrivateKey(private)
		v := NewPublicKey(k.public)
		for i := range 200 {
			msg := bytes.Repeat([]byte{byte(i)}, i*7)
			h := v.New()
			h.Write(msg)
			mu := h.Sum(nil)
			sig, err := k.Sign(nil, mu, v)
			if err != nil {
				t.Fatal(err)
			}
			whole, _ := k.Sign(nil, msg, crypto.Hash(0))
			if !bytes.Equal(sig, whole) {
				t.Fatal("differs")
			}
			if v.Verify(mu, sig) != nil {
				t.Fatal("bad", p, i)
			}
			sig[i*11] ^= 1
			if v.Verify(mu, sig) == nil {
				t.Fatal("good", p, i)
			}
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	private, _ := mldsa.NewPrivateKey(mldsa.MLDSA65(), make([]byte, 32))
	k := NewPrivateKey(private)
	v := NewPublicKey(k.public)
	mu := make([]byte, 64)
	sig, _ := k.Sign(nil, mu, Mu65)
	b.Run("mu", func(b *testing.B) {
		for b.Loop() {
			v.Verify(mu, sig)
		}
	})
	b.Run("new", func(b *testing.B) {
		for b.Loop() {
			NewPublicKey(k.public).expandKey()
		}
	})
	b.Run("lib", func(b *testing.B) {
		for b.Loop() {
			mldsa.Verify(k.public, mu, sig, nil)
		}
	})
	b.Run("sign", func(b *testing.B) {
		for b.Loop() {
			k.Sign(nil, mu, Mu65)
		}
	})
}
