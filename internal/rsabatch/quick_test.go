package rsabatch

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"sync/atomic"
	"testing"
	"time"
)

func TestSelf(t *testing.T) {
	if err := selfTest(emulator(t)); err != nil {
		t.Fatal(err)
	}
}

func TestOne(t *testing.T) {
	for _, bits := range []int{2048, 3072, 4096} {
		key, _ := rsa.GenerateKey(rand.Reader, bits)
		s := time.Now()
		if err := checkShape(key); err != nil {
			t.Fatal(err)
		}
		t.Log(time.Since(s))
		s = time.Now()
		k := newKey(key, emulator(t), new(atomic.Bool), func(s string) { t.Error(s) })
		t.Log(time.Since(s))
		d := sha256.Sum256(nil)
		s = time.Now()
		sig, err := k.Sign(nil, d[:], crypto.SHA256)
		t.Log(time.Since(s))
		want, _ := rsa.SignPKCS1v15(nil, key, crypto.SHA256, d[:])
		if err != nil || !bytes.Equal(want, sig) {
			t.Fatal(err)
		}
	}
}
