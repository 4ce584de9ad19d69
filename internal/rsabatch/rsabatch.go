// Package rsabatch makes RSA signatures eight at a time, on processors with AVX-512 IFMA:
// one in each lane of a register. It knows PKCS #1 v1.5 with keys of 2048, 3072 and 4096
// bits, of two primes of the same length, with the exponent 65537.
//
// [New] returns a [Key] that stands where a *rsa.PrivateKey stands. Its method Sign may be
// called by many goroutines, and calls that wait at the same time share a batch. A batch
// takes as long as it takes with all lanes in use, so have [Key.BatchSize] calls or more
// at once. [Signer] is New for callers that want the fast way where there is one.
//
// No branch and no address depends on a secret. Every signature is checked with the public
// key, by other code, before Sign returns it. If one is wrong, crypto/rsa makes the
// signatures of that batch and all later ones of the process. docs/rsabatch.md has the
// reasons.
package rsabatch

import (
	"bytes"
	"crypto"
	"crypto/fips140"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"math/big"
	"runtime"
	"sync"
	"sync/atomic"
)

//go:generate go run -C asm . -pkg rsabatch -out ../ifma_amd64.s -stubs ../ifma_amd64.go

// Reasons why there is no [Key].
var (
	ErrKey       = errors.New("not an RSA key of 2048, 3072 or 4096 bits, two equally long primes and exponent 65537")
	ErrProcessor = errors.New("the processor or the system has no AVX-512 IFMA")
	ErrBuild     = errors.New("the program was built without assembly for batches of signatures")
	ErrFIPS      = errors.New("GODEBUG=fips140 leaves signatures to Go's cryptographic module")
	ErrSelfTest  = errors.New("self-test of batches of signatures failed")
	ErrFault     = errors.New("a batch of this process had a wrong signature")
)

// BatchSize is how many signatures a batch has.
const BatchSize = 8

// A Key is a private key that signs in batches. It is safe for concurrent use.
type Key struct {
	key     *rsa.PrivateKey
	private *private
	spaces  sync.Pool // of *workspace
	note    func(string)
	noted   atomic.Bool
	faulty  *atomic.Bool // the fast way is closed

	mu      sync.Mutex
	waiting []*request
	running int // batches
}

// request is a signature that somebody waits for.
type request struct {
	hash      crypto.Hash
	digest    []byte
	message   []byte // padded
	signature []byte
	err       error
	done      chan struct{}
}

// faulty is set when a batch of this process was wrong.
var faulty atomic.Bool

var selfTested = sync.OnceValue(func() error {
	e, err := hardware()
	if err != nil {
		return err
	}
	return selfTest(e)
})

// New returns a Key for a private key that crypto/rsa accepts. note, which may be nil, is
// told once if a wrong signature was made and kept back, with this key or another one of
// the process. The first call in a process tests
// the arithmetic. The error is one of this package, or wraps it.
func New(key *rsa.PrivateKey, note func(string)) (*Key, error) {
	if fips140.Enabled() {
		return nil, ErrFIPS
	}
	if err := checkShape(key); err != nil {
		return nil, err
	}
	e, err := hardware()
	if err != nil {
		return nil, err
	}
	if err := selfTested(); err != nil {
		return nil, err
	}
	if faulty.Load() {
		return nil, ErrFault
	}
	return newKey(key, e, &faulty, note), nil
}

// Signer returns a [Key] for the private key, or the private key itself where New returns
// an error. Of these it notes the failed self-test and the wrong signature, which no
// processor should have.
func Signer(key crypto.Signer, note func(string)) crypto.Signer {
	if key, ok := key.(*rsa.PrivateKey); ok {
		batched, err := New(key, note)
		if err == nil {
			return batched
		}
		if (errors.Is(err, ErrSelfTest) || errors.Is(err, ErrFault)) && note != nil {
			note(err.Error())
		}
	}
	return key
}

func newKey(key *rsa.PrivateKey, e engine, faulty *atomic.Bool, note func(string)) *Key {
	k := &Key{key: key, private: newPrivate(key, e), faulty: faulty, note: note}
	limbs := k.private.p.limbs()
	k.spaces.New = func() any { return newWorkspace(limbs) }
	return k
}

// checkShape returns an error for a key that this package does not sign with.
func checkShape(key *rsa.PrivateKey) error {
	if key == nil || key.N == nil || len(key.Primes) != 2 || key.E != 65537 {
		return ErrKey
	}
	bits := key.N.BitLen()
	if bits != 2048 && bits != 3072 && bits != 4096 {
		return ErrKey
	}
	for _, prime := range key.Primes {
		if prime == nil || prime.BitLen() != bits/2 {
			return ErrKey
		}
	}
	pre := &key.Precomputed
	if pre.Dp == nil || pre.Dq == nil || pre.Qinv == nil {
		return fmt.Errorf("%w: the key is not precomputed", ErrKey)
	}
	if err := key.Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrKey, err)
	}
	return nil
}

// Public returns the *rsa.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.key.Public() }

// BatchSize returns [BatchSize].
func (k *Key) BatchSize() int { return BatchSize }

// Sign returns the PKCS #1 v1.5 signature of a digest. What it cannot do in a batch, such
// as PSS, crypto/rsa does. It waits for other batches of the key, and for no time.
func (k *Key) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	_, pss := opts.(*rsa.PSSOptions)
	digest = bytes.Clone(digest) // a caller that changes its own must not look like a fault
	message := pad(opts.HashFunc(), digest, k.private.size)
	if pss || message == nil || k.closed() {
		return k.key.Sign(random, digest, opts)
	}
	r := &request{hash: opts.HashFunc(), digest: digest, message: message, done: make(chan struct{})}
	k.mu.Lock()
	k.waiting = append(k.waiting, r)
	k.start()
	k.mu.Unlock()
	<-r.done
	return r.signature, r.err
}

// start begins the batches for which it is time. The caller holds mu.
//
// The first batch begins at once, with whoever is there. Another one beside it takes a
// processor away from those who bring digests, and so begins when it is full.
func (k *Key) start() {
	for k.running == 0 && len(k.waiting) > 0 ||
		k.running < runtime.GOMAXPROCS(0) && len(k.waiting) >= lanes {
		n := min(lanes, len(k.waiting))
		batch := k.waiting[:n:n]
		k.waiting = k.waiting[n:]
		k.running++
		go k.run(batch)
	}
}

// run signs a batch.
func (k *Key) run(batch []*request) {
	k.sign(batch)
	k.mu.Lock()
	k.running--
	k.start()
	k.mu.Unlock()
	for _, r := range batch {
		close(r.done)
	}
}

// closed reports whether the fast way is closed, and notes that once.
func (k *Key) closed() bool {
	if !k.faulty.Load() {
		return false
	}
	if !k.noted.Swap(true) && k.note != nil {
		k.note("a signature made in a batch was wrong, and was kept back: crypto/rsa signs from here on; " +
			"the processor or its memory may be faulty")
	}
	return true
}

// sign makes the signatures of a batch, and checks them.
func (k *Key) sign(batch []*request) {
	if k.closed() || !k.try(batch) {
		for _, r := range batch {
			r.signature, r.err = rsa.SignPKCS1v15(nil, k.key, r.hash, r.digest)
		}
	}
}

// try makes the signatures of a batch in the lanes, and reports whether all are right. The
// first wrong one closes the fast way.
func (k *Key) try(batch []*request) bool {
	messages := make([][]byte, len(batch))
	for i, r := range batch {
		messages[i] = r.message
	}
	space := k.spaces.Get().(*workspace)
	signatures := k.private.power(messages, space)
	k.spaces.Put(space)
	for i, r := range batch {
		if !k.correct(r, signatures[i]) {
			k.faulty.Store(true)
			k.closed()
			return false
		}
	}
	for i, r := range batch {
		r.signature = signatures[i]
	}
	return true
}

// correct checks a signature with the public key. Package math/big shares no code with
// what made it, and takes a third of the time of rsa.VerifyPKCS1v15 with 4096 bits.
func (k *Key) correct(r *request, signature []byte) bool {
	power := new(big.Int).SetBytes(signature)
	if power.Cmp(k.key.N) >= 0 {
		return false
	}
	power.Exp(power, big.NewInt(int64(k.key.E)), k.key.N)
	return bytes.Equal(power.FillBytes(make([]byte, k.private.size)), pad(r.hash, r.digest, k.private.size))
}

// prefixes are what stands before the digest: the DER of DigestInfo with the hash's
// algorithm (RFC 8017, 9.2).
var prefixes = map[crypto.Hash]string{
	crypto.SHA1:     "\x30\x21\x30\x09\x06\x05\x2b\x0e\x03\x02\x1a\x05\x00\x04\x14",
	crypto.SHA224:   nistPrefix(crypto.SHA224, 4),
	crypto.SHA256:   nistPrefix(crypto.SHA256, 1),
	crypto.SHA384:   nistPrefix(crypto.SHA384, 2),
	crypto.SHA512:   nistPrefix(crypto.SHA512, 3),
	crypto.SHA3_256: nistPrefix(crypto.SHA3_256, 8),
	crypto.SHA3_384: nistPrefix(crypto.SHA3_384, 9),
	crypto.SHA3_512: nistPrefix(crypto.SHA3_512, 10),
}

// nistPrefix is the prefix of hash 2.16.840.1.101.3.4.2.n.
func nistPrefix(h crypto.Hash, n byte) string {
	size := byte(h.Size())
	return string([]byte{0x30, 17 + size, 0x30, 13, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, n, 5, 0, 4, size})
}

// pad returns the padded digest, as long as the key, or nil if that is not for us.
func pad(h crypto.Hash, digest []byte, size int) []byte {
	prefix, ok := prefixes[h]
	if !ok || len(digest) != h.Size() {
		return nil
	}
	message := make([]byte, size)
	end := size - len(prefix) - len(digest)
	message[1] = 1
	for i := 2; i < end-1; i++ {
		message[i] = 0xff
	}
	copy(message[end:], prefix)
	copy(message[size-len(digest):], digest)
	return message
}
