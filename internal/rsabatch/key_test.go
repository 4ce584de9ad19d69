package rsabatch

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/fips140"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1"
	_ "crypto/sha3"
	_ "crypto/sha512"
	"errors"
	"fmt"
	"math/big"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// testKeys makes one key of each size, when it is asked for.
var testKeys = map[int]func() (*rsa.PrivateKey, error){
	2048: sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) }),
	3072: sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 3072) }),
	4096: sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 4096) }),
}

var sizes = []int{2048, 3072, 4096}

func testKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := testKeys[bits]()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// batchKey returns a Key with an engine, whose signatures must not fail.
func batchKey(t testing.TB, bits int, e engine) *Key {
	return newKey(testKey(t, bits), e, new(atomic.Bool), func(note string) { t.Error(note) })
}

func randomBytes(n int) []byte {
	out := make([]byte, n)
	rand.Read(out)
	return out
}

// TestSignatures compares signatures with those of crypto/rsa.
func TestSignatures(t *testing.T) {
	if raceDetector {
		t.Skip("arithmetic of one goroutine: the race detector sees nothing in it")
	}
	e, isProcessor := fastest(t)
	digests := testmod.Rounds(24, 8)
	if isProcessor {
		digests = testmod.Rounds(10_000, 64)
	}
	for _, bits := range testmod.Few(sizes, 1) {
		k := batchKey(t, bits, e)
		var wg sync.WaitGroup
		calls := make(chan struct{}, 3*lanes)
		for i := range digests {
			calls <- struct{}{}
			wg.Go(func() {
				defer func() { <-calls }()
				h := []crypto.Hash{crypto.SHA512, crypto.SHA256, crypto.SHA1, crypto.SHA3_384}[i%4]
				digest := randomBytes(h.Size())
				signature, err := k.Sign(rand.Reader, digest, h)
				if err != nil {
					t.Error(err)
					return
				}
				// There is one signature that is right, and this finds it out at less expense.
				if err := rsa.VerifyPKCS1v15(&k.key.PublicKey, h, digest, signature); err != nil {
					t.Errorf("%d bits: %x is signed by %x: %v", bits, digest, signature, err)
				}
				if i%100 == 0 {
					want, err := rsa.SignPKCS1v15(nil, k.key, h, digest)
					if err != nil || !bytes.Equal(signature, want) {
						t.Errorf("%d bits: %x is signed by %x, want %x", bits, digest, signature, want)
					}
				}
			})
		}
		wg.Wait()
	}
}

// TestPower compares the operation with math/big where padded digests do not come: at 0,
// 1, the edges of the primes and of the modulus, with limbs of ones.
func TestPower(t *testing.T) {
	if raceDetector {
		t.Skip("arithmetic of one goroutine: the race detector sees nothing in it")
	}
	testmod.Slow(t, "of keys of all sizes")
	e, _ := fastest(t)
	for _, bits := range sizes {
		key := testKey(t, bits)
		k := newPrivate(key, e)
		p, q := key.Primes[0], key.Primes[1]
		one := big.NewInt(1)
		messages := []*big.Int{
			new(big.Int), one, new(big.Int).Sub(key.N, one), p, q, new(big.Int).Sub(p, one), new(big.Int).Add(q, one),
			new(big.Int).Sub(power2(bits-1), one), new(big.Int).Sub(power2(k.p.limbs()*limbBits), one),
			new(big.Int).Mul(p, new(big.Int).Sub(q, one)), new(big.Int).Sub(new(big.Int).Mul(q, new(big.Int).Sub(p, one)), one),
		}
		for batch := range slices.Chunk(messages, lanes) {
			var in [][]byte
			for _, message := range batch {
				in = append(in, message.FillBytes(make([]byte, bits/8)))
			}
			for i, got := range k.power(in, newWorkspace(k.p.limbs())) {
				want := new(big.Int).Exp(batch[i], key.D, key.N)
				if new(big.Int).SetBytes(got).Cmp(want) != 0 {
					t.Errorf("%d bits: %x to the power of d is %x, want %x", bits, batch[i], got, want)
				}
			}
		}
	}
}

// TestPartialBatches signs one to eight digests.
func TestPartialBatches(t *testing.T) {
	e, _ := fastest(t)
	k := batchKey(t, 2048, e)
	for _, n := range testmod.Few([]int{3, 1, 2, 4, 5, 6, 7, 8}, 1) {
		batch := make([]*request, n)
		for i := range batch {
			digest := randomBytes(64)
			batch[i] = &request{hash: crypto.SHA512, digest: digest, message: pad(crypto.SHA512, digest, 256)}
		}
		if !k.try(batch) {
			t.Fatalf("batch of %d failed", n)
		}
		for _, r := range batch {
			if err := rsa.VerifyPKCS1v15(&k.key.PublicKey, r.hash, r.digest, r.signature); err != nil {
				t.Errorf("batch of %d: %v", n, err)
			}
		}
	}
}

// TestFaults checks that nobody gets a wrong signature, whatever was wrong.
func TestFaults(t *testing.T) {
	e, _ := fastest(t)
	for i, fault := range testmod.Few([]spoiled{
		{what: "sqr", at: 1000, lane: 3},    // in the power mod p
		{what: "sqr", at: 1500, lane: 0},    // mod q
		{what: "mul", at: 10, lane: 7},      // in a table
		{what: "choose", at: 3, lane: 2},    // of an entry
		{what: "mul", at: 2 * 266, lane: 1}, // in the recombination
		{what: "mul", at: 2*266 + 1, lane: 4},
	}, 1) {
		var notes []string
		closed := new(atomic.Bool)
		fault.engine = e
		k := newKey(testKey(t, 2048), &fault, closed, func(note string) { notes = append(notes, note) })
		fault.calls = 0
		var batch []*request
		for range lanes {
			batch = append(batch, &request{hash: crypto.SHA256, digest: randomBytes(32)})
			r := batch[len(batch)-1]
			r.message = pad(r.hash, r.digest, 256)
		}
		k.sign(batch)
		if fault.calls <= fault.at {
			t.Fatalf("fault %d did not happen: %d calls", i, fault.calls)
		}
		for j, r := range batch {
			if r.err != nil || rsa.VerifyPKCS1v15(&k.key.PublicKey, r.hash, r.digest, r.signature) != nil {
				t.Errorf("fault %d: signature %d is wrong, error %v", i, j, r.err)
			}
		}
		if len(notes) != 1 || !closed.Load() {
			t.Errorf("fault %d: notes %q, fast way closed: %v", i, notes, closed.Load())
		}

		// Another key of the process does not go that way, and says so too.
		notes = nil
		other := newKey(k.key, nopower{e}, closed, func(note string) { notes = append(notes, note) })
		for range 2 {
			if _, err := other.Sign(rand.Reader, batch[0].digest, crypto.SHA256); err != nil {
				t.Error(err)
			}
		}
		if len(notes) != 1 {
			t.Errorf("fault %d: another key notes %q", i, notes)
		}
	}
}

// spoiling changes a caller's digest when the last product of the first batch is computed.
type spoiling struct {
	engine
	modulus *modulus
	digest  []byte
}

func (s *spoiling) mul(z, x, y []uint64, m *modulus, q []uint64) {
	if s.modulus != nil && m == s.modulus {
		clear(s.digest)
	}
	s.engine.mul(z, x, y, m, q)
}

// TestChangedDigest has a caller that changes its digest while it is signed: this is no
// fault of the processor.
func TestChangedDigest(t *testing.T) {
	e, _ := fastest(t)
	s := &spoiling{engine: e}
	k := batchKey(t, 2048, s)
	digest := randomBytes(32)
	s.modulus, s.digest = k.private.n, bytes.Clone(digest)
	signature, err := k.Sign(rand.Reader, s.digest, crypto.SHA256)
	if err != nil || rsa.VerifyPKCS1v15(&k.key.PublicKey, crypto.SHA256, digest, signature) != nil {
		t.Errorf("wrong signature, or none: %v", err)
	}
	if !bytes.Equal(s.digest, make([]byte, 32)) || k.faulty.Load() {
		t.Errorf("digest changed: %x, fast way closed: %v", s.digest, k.faulty.Load())
	}
}

// nopower computes what a key needs once, and no choice of a window.
type nopower struct{ engine }

func (nopower) choose(z, table []uint64, index uint64) { panic("the fast way is closed") }

// TestWrongSignature checks the check.
func TestWrongSignature(t *testing.T) {
	e, _ := fastest(t)
	k := batchKey(t, 2048, e)
	r := &request{hash: crypto.SHA256, digest: randomBytes(32)}
	right, err := rsa.SignPKCS1v15(nil, k.key, r.hash, r.digest)
	if err != nil || !k.correct(r, right) {
		t.Fatalf("signature of crypto/rsa is wrong (error %v)", err)
	}
	wrong := bytes.Clone(right)
	wrong[255] ^= 1
	larger := new(big.Int).Add(new(big.Int).SetBytes(right), k.key.N)
	for _, signature := range [][]byte{wrong, make([]byte, 256), larger.Bytes()} {
		if k.correct(r, signature) {
			t.Errorf("%x passes", signature)
		}
	}
}

// counting counts batches, and holds them up until it is told not to.
type counting struct {
	engine
	modulus *modulus // of the last product of a batch
	batches atomic.Int32
	started chan struct{}
	release chan struct{}
}

func (c *counting) mul(z, x, y []uint64, m *modulus, q []uint64) {
	if c.modulus != nil && m == c.modulus {
		c.batches.Add(1)
		c.started <- struct{}{}
		<-c.release
	}
	c.engine.mul(z, x, y, m, q)
}

// TestSharedBatches checks that calls that wait share batches: the first has one for
// itself, and sixteen others have two.
func TestSharedBatches(t *testing.T) {
	testmod.Slow(t, "makes three batches")
	e, _ := fastest(t)
	c := &counting{engine: e, started: make(chan struct{}, 100), release: make(chan struct{})}
	k := batchKey(t, 2048, c)
	c.modulus = k.private.n
	var wg sync.WaitGroup
	sign := func() {
		digest := randomBytes(32)
		signature, err := k.Sign(rand.Reader, digest, crypto.SHA256)
		if err != nil || rsa.VerifyPKCS1v15(&k.key.PublicKey, crypto.SHA256, digest, signature) != nil {
			t.Errorf("wrong signature, or none: %v", err)
		}
	}
	wg.Go(sign)
	<-c.started
	arrived := func() int {
		k.mu.Lock()
		defer k.mu.Unlock()
		return len(k.waiting) + (k.running-1)*lanes
	}
	for range 2 * lanes {
		wg.Go(sign)
	}
	for arrived() < 2*lanes {
		runtime.Gosched()
	}
	close(c.release)
	wg.Wait()
	if n := c.batches.Load(); n != 3 {
		t.Errorf("%d batches, want 3", n)
	}
}

// TestPadding compares padded digests with those that crypto/rsa signs.
func TestPadding(t *testing.T) {
	key := testKey(t, 2048)
	for h := range prefixes {
		digest := randomBytes(h.Size())
		signature, err := rsa.SignPKCS1v15(nil, key, h, digest)
		if err != nil {
			t.Errorf("%v: %v", h, err)
			continue
		}
		want := new(big.Int).Exp(new(big.Int).SetBytes(signature), big.NewInt(65537), key.N).FillBytes(make([]byte, 256))
		if got := pad(h, digest, 256); !bytes.Equal(got, want) {
			t.Errorf("%v: %x, want %x", h, got, want)
		}
		if pad(h, digest[1:], 256) != nil {
			t.Errorf("%v: a digest of another length is padded", h)
		}
	}
}

// TestOtherSignatures checks that crypto/rsa answers for what is not made in batches.
func TestOtherSignatures(t *testing.T) {
	e, _ := fastest(t)
	k := newKey(testKey(t, 2048), e, new(atomic.Bool), nil)
	k.private.engine = nopower{e}
	digest := randomBytes(32)
	pss, err := k.Sign(rand.Reader, digest, &rsa.PSSOptions{Hash: crypto.SHA256})
	if err != nil || rsa.VerifyPSS(&k.key.PublicKey, crypto.SHA256, digest, pss, nil) != nil {
		t.Errorf("PSS: %v", err)
	}
	if _, err := k.Sign(rand.Reader, digest, crypto.SHA512); err == nil {
		t.Error("a digest of another length is signed")
	}
	if !k.key.PublicKey.Equal(k.Public()) {
		t.Error("another public key")
	}
}

func TestShapes(t *testing.T) {
	good := testKey(t, 2048)
	if err := checkShape(good); err != nil {
		t.Error(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	changed := func(change func(*rsa.PrivateKey)) *rsa.PrivateKey {
		key := &rsa.PrivateKey{
			PublicKey: good.PublicKey, D: good.D, Primes: slices.Clone(good.Primes), Precomputed: good.Precomputed,
		}
		change(key)
		return key
	}
	for name, key := range map[string]*rsa.PrivateKey{
		"nil":             nil,
		"empty":           {},
		"small":           small,
		"exponent":        changed(func(k *rsa.PrivateKey) { k.E = 3 }),
		"three primes":    changed(func(k *rsa.PrivateKey) { k.Primes = append(k.Primes, big.NewInt(3)) }),
		"unequal primes":  changed(func(k *rsa.PrivateKey) { k.Primes[1] = new(big.Int).Rsh(k.Primes[1], 1) }),
		"not precomputed": changed(func(k *rsa.PrivateKey) { k.Precomputed = rsa.PrecomputedValues{} }),
		"other modulus":   changed(func(k *rsa.PrivateKey) { k.N = new(big.Int).Add(k.N, big.NewInt(2)) }),
	} {
		if err := checkShape(key); !errors.Is(err, ErrKey) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// TestSigner checks that a key that cannot have batches is returned as it is.
func TestSigner(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if Signer(ec, nil) != crypto.Signer(ec) {
		t.Error("an ECDSA key became another")
	}
	key := testKey(t, 2048)
	if _, err = hardware(); fips140.Enabled() { // run it with GODEBUG=fips140=on too
		err = ErrFIPS
	}
	_, batched := Signer(key, nil).(*Key)
	if batched != (err == nil) {
		t.Errorf("batches: %v, error: %v", batched, err)
	}
	if _, newErr := New(key, nil); !errors.Is(newErr, err) {
		t.Errorf("New: %v, want %v", newErr, err)
	}
}

func BenchmarkSign(b *testing.B) {
	e, err := hardware()
	if err != nil {
		b.Skip(err)
	}
	for _, bits := range sizes {
		k := batchKey(b, bits, e)
		messages := make([][]byte, lanes)
		for i := range messages {
			messages[i] = pad(crypto.SHA512, randomBytes(64), bits/8)
		}
		each := func(b *testing.B) {
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*lanes), "µs/signature")
		}
		b.Run(fmt.Sprintf("power-%d", bits), func(b *testing.B) {
			w := newWorkspace(k.private.p.limbs())
			for b.Loop() {
				k.private.power(messages, w)
			}
			each(b)
		})
		b.Run(fmt.Sprintf("batch-%d", bits), func(b *testing.B) {
			batch := make([]*request, lanes)
			for i := range batch {
				digest := randomBytes(64)
				batch[i] = &request{hash: crypto.SHA512, digest: digest, message: pad(crypto.SHA512, digest, bits/8)}
			}
			for b.Loop() {
				if !k.try(batch) {
					b.Fatal("wrong signature")
				}
			}
			each(b)
		})
		b.Run(fmt.Sprintf("parallel-%d", bits), func(b *testing.B) {
			b.SetParallelism(3 * lanes)
			b.RunParallel(func(pb *testing.PB) {
				digest := randomBytes(64)
				for pb.Next() {
					if _, err := k.Sign(nil, digest, crypto.SHA512); err != nil {
						b.Error(err)
					}
				}
			})
		})
		b.Run(fmt.Sprintf("crypto-rsa-%d", bits), func(b *testing.B) {
			digest := randomBytes(64)
			for b.Loop() {
				if _, err := rsa.SignPKCS1v15(nil, k.key, crypto.SHA512, digest); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
