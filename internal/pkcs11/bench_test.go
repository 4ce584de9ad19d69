package pkcs11

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha512"
	"sync"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// BenchmarkSign compares the signatures of a Key, each checked by a goroutine of its own as
// package keystore does, with the bare calls over one connection, one after the other.
func BenchmarkSign(b *testing.B) {
	hsm := testmod.NewSoftHSM(b, "modules")
	key := testmod.NewKey(b, "ecdsa:p384")
	hsm.Import(b, "modules", "k", "01", key)
	u, err := ParseURI("pkcs11:token=modules?module-path=" + hsm.Module)
	if err != nil {
		b.Fatal(err)
	}
	open := func(b *testing.B) *Key {
		k, err := Open(b.Context(), u, Config{
			Program: testmod.Program(b, "p11-kit", "p11-kit"),
			Environ: hsm.Environ(),
			PIN:     func() ([]byte, error) { return []byte(testmod.PIN), nil },
			Note:    func(string) {},
		})
		if err != nil {
			b.Fatal(err)
		}
		return k
	}
	public := key.Private.Public().(*ecdsa.PublicKey)
	digest := sha512.Sum384([]byte("digest"))
	b.Run("calls", func(b *testing.B) {
		k := open(b)
		defer k.Close()
		s := <-k.sessions
		defer func() { k.sessions <- s }()
		var args encoder
		args.ulong(s.handle)
		args.bytes(digest[:])
		args.u32(256)
		for b.Loop() {
			if _, err := s.conn.call(fnSignInit, s.init); err != nil {
				b.Fatal(err)
			}
			if _, err := s.conn.call(fnSign, args); err != nil {
				b.Fatal(err)
			}
		}
	})
	for name, connections := range map[string]int{"one connection": 1, "several connections": maxConnections} {
		b.Run(name, func(b *testing.B) {
			k := open(b)
			defer k.Close()
			if connections == 1 {
				k.openMore = func() {}
			}
			var group sync.WaitGroup
			slots := make(chan bool, 16)
			for b.Loop() {
				slots <- true
				group.Go(func() {
					signature, err := k.Sign(nil, digest[:], crypto.SHA384)
					if err != nil || !ecdsa.VerifyASN1(public, digest[:], signature) {
						b.Error("wrong", err)
					}
					<-slots
				})
			}
			group.Wait()
		})
	}
}
