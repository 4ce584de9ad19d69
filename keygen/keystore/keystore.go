// Package keystore opens private keys that are not files: keys in a token, a TPM, a
// signing service, or behind a program that signs.
//
// [Open] takes a URI and returns a [Key], a crypto.Signer for packages sign and
// hashlist. The first part of the URI names the kind of store ([Schemes]).
//
// The key of a TPM is a file: [TPM] is for keygen.Load, which finds it, and [NewTPM] makes
// one.
//
// Every signature is checked with the key's certificate before anybody sees it: a
// signature that the certificate does not verify is an error that wraps [ErrWrong].
// A signature is made once: after an error, nothing is tried again with another PIN.
package keystore

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"filippo.io/mldsa"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/keyfile"
	"github.com/modsign/modsign/keygen"
)

// An Error is about a key, which it names.
type Error struct {
	URI  string // without the secrets that it may hold
	Err  error
	lost bool
}

func (e *Error) Error() string { return e.URI + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Lost reports whether the key signs nothing more, as when its token was pulled out.
func (e *Error) Lost() bool { return e.lost }

// ErrWrong reports a signature that is not one of the certificate's key.
var ErrWrong = errors.New("the signature is not valid for the certificate")

// Options are the options of [Open].
type Options struct {
	// Certificate is that of the key. It may be nil only where the store has it, too.
	Certificate *x509.Certificate

	// PIN returns the PIN or passphrase of the key. Open calls it at most once, and only
	// where the URI leads to none. It may be nil.
	PIN keygen.Passphrase

	// LookupEnv looks up a variable of the environment, and Environ is the environment of
	// programs that Open starts. With nil there is none.
	LookupEnv func(string) (string, bool)
	Environ   []string

	// Note takes remarks that are not errors, for people to read. Several goroutines may
	// call it. It may be nil.
	Note func(string)
}

// A Key is an open key in a store. Several goroutines may use it at once.
type Key struct {
	store  storedKey
	uri    string            // or the path of its file
	cert   *x509.Certificate // nil for a key that is being made
	public crypto.PublicKey

	expand   sync.Once
	verifier *cms.Verifier // of public, after expand

	slow     func() // tells, once, that the store does not answer; nil if it tells itself
	patience time.Duration
}

// patience is how long people wait before they are told for what: a token may want a finger.
const patience = 10 * time.Second

// storedKey is what a store has to offer. Sign gets a digest, and returns a signature of
// PKCS #1 v1.5, ECDSA's as a SEQUENCE of r and s, or ML-DSA's, which the caller checks. Several
// goroutines call it at once. It ends when the context of Open does. A
// method Lost() bool, which need not be there, tells that Sign will only fail from now on.
type storedKey interface {
	crypto.Signer
	io.Closer
}

// A store is a kind of place for keys. Its errors do not name the URI.
type store struct {
	scheme string
	usage  string // the form of its URIs
	open   func(ctx context.Context, uri string, o Options) (storedKey, error)
	tells  bool // that it waits
	mldsa  bool // has keys of ML-DSA
}

var stores = []store{
	{scheme: "pkcs11", usage: "pkcs11:ATTRIBUTES", open: openPKCS11},
	{scheme: "exec", usage: "exec:PROGRAM", open: openProgram, tells: true, mldsa: true},
	{scheme: "vault", usage: "vault:MOUNT/KEY", open: openVault},
	{scheme: "gpg", usage: "gpg:KEYGRIP", open: openGPG},
}

// Schemes returns the forms of URI that [Open] takes, for people to read.
func Schemes() []string {
	var usages []string
	for _, s := range stores {
		usages = append(usages, s.usage)
	}
	return usages
}

// IsURI reports whether the name of a key is a URI of one of the stores, and not a file's.
// A file of such a name can be given as "./NAME".
func IsURI(name string) bool { return storeOf(name) != nil }

func storeOf(uri string) *store {
	scheme, _, found := strings.Cut(uri, ":")
	i := slices.IndexFunc(stores, func(s store) bool { return strings.EqualFold(s.scheme, scheme) })
	if !found || i < 0 {
		return nil
	}
	return &stores[i]
}

// Open opens a key by its URI. The key is good until ctx ends or Close is called. An error
// about the key is an [*Error].
func Open(ctx context.Context, uri string, o Options) (*Key, error) {
	s := storeOf(uri)
	if s == nil {
		return nil, errors.New("not the URI of a key: want one of " + strings.Join(Schemes(), ", "))
	}
	if o.Certificate != nil {
		if cert, err := cms.WithKey(o.Certificate); err == nil {
			o.Certificate = cert
		}
	}
	if o.Note == nil {
		o.Note = func(string) {}
	}
	if o.LookupEnv == nil {
		o.LookupEnv = func(string) (string, bool) { return "", false }
	}
	k := &Key{uri: Redact(uri), cert: o.Certificate, patience: patience}
	if !s.tells {
		k.slow = sync.OnceFunc(func() { o.Note(k.uri + ": no answer yet: waiting") })
	}
	if err := s.checkKind(o.Certificate); err != nil {
		return nil, k.named(err)
	}
	stop := k.await()
	if ask := o.PIN; ask != nil {
		o.PIN = func() ([]byte, error) {
			stop() // it is for people that the store waits now
			return ask()
		}
	}
	stored, err := s.open(ctx, uri, o)
	stop()
	if err != nil {
		return nil, k.named(err)
	}
	k.store, k.public = stored, stored.Public()
	if store, ok := stored.(interface{ Certificate() *x509.Certificate }); ok && k.cert == nil {
		k.cert = store.Certificate()
	}
	if err := k.check(); err != nil {
		stored.Close()
		return nil, k.named(err)
	}
	return k, nil
}

// checkKind refuses a certificate with whose kind of key the store does not sign.
func (s *store) checkKind(cert *x509.Certificate) error {
	if cert == nil || s.mldsa {
		return nil
	}
	key, ok := cert.PublicKey.(*mldsa.PublicKey)
	if !ok {
		return nil
	}
	return &keyfile.HintError{
		Err: fmt.Errorf("certificate's key is %s, and modsign signs with RSA and ECDSA keys of %s", key.Parameters(),
			s.usage),
		Hint: "an ML-DSA key signs from a file, or through a program: exec:PROGRAM",
	}
}

// await tells that the store does not answer, unless the result is called soon.
func (k *Key) await() (stop func()) {
	if k.slow == nil {
		return func() {}
	}
	timer := time.AfterFunc(k.patience, k.slow)
	return func() { timer.Stop() }
}

// check checks that there is a certificate, and that it is the key's.
func (k *Key) check() error {
	if k.cert == nil {
		return reasonError{"no certificate is given", keygen.ErrNoCertificate}
	}
	public, ok := k.public.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(k.cert.PublicKey) {
		return keygen.ErrMismatch
	}
	return nil
}

// Redact returns a URI without a PIN that stands in it, for messages: in pin-value of
// pkcs11:, also if that is misspelled, such as pin_value. What follows the PIN is left out,
// too, up to an attribute that is known: the URI may be malformed, and the PIN may hold
// anything. There are no control characters in the result.
func Redact(uri string) string {
	var b strings.Builder
	hidden := false
	for rest := uri; rest != ""; {
		separator := ""
		if strings.IndexByte(";?&", rest[0]) >= 0 {
			separator, rest = rest[:1], rest[1:]
		}
		end := strings.IndexAny(rest, ";?&")
		if end < 0 {
			end = len(rest)
		}
		name, _, _ := strings.Cut(rest[:end], "=")
		name = lenientName(name)
		isPIN := strings.HasPrefix(strings.TrimPrefix(name, "pkcs11:"), "pin") && name != "pin-source"
		switch {
		case isPIN, strings.Contains(name, "pin-value"):
			if hidden = true; strings.HasPrefix(name, "pkcs11:") {
				separator += "pkcs11:"
			}
			b.WriteString(separator + "pin-value...")
		case hidden && !slices.Contains([]string{"pin-source", "module-path", "module-name"}, name):
		default:
			hidden = false
			b.WriteString(separator + rest[:end])
		}
		rest = rest[end:]
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(b.String(), "?"))
}

// lenientName is what the writer of an attribute may have meant.
func lenientName(name string) string {
	if decoded, err := url.PathUnescape(name); err == nil {
		name = decoded
	}
	return strings.ToLower(strings.TrimSpace(name))
}

// A reasonError has other words than the reason has for a file.
type reasonError struct {
	text   string
	reason keygen.Reason
}

func (e reasonError) Error() string        { return e.text }
func (e reasonError) Is(target error) bool { return target == e.reason }

func (k *Key) named(err error) error {
	store, ok := k.store.(interface{ Lost() bool })
	return &Error{URI: k.uri, Err: err, lost: ok && store.Lost()}
}

// Certificate returns the certificate of the key: the one of [Options], or the store's.
func (k *Key) Certificate() *x509.Certificate { return k.cert }

// Public returns the public key.
func (k *Key) Public() crypto.PublicKey { return k.public }

// BatchSize returns how many signatures the store makes in the time of one, for callers of
// Sign that wait at the same time.
func (k *Key) BatchSize() int {
	if store, ok := k.store.(interface{ BatchSize() int }); ok {
		return max(1, store.BatchSize())
	}
	return 1
}

// Sign signs a digest, as RSA PKCS #1 v1.5, ECDSA or ML-DSA, whose digest is mu (FIPS 204),
// and checks the signature. Opts may tell the store about the module, too, as sign.Subject
// does. The random reader is ignored.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	stop := k.await()
	signature, err := k.store.Sign(nil, digest, opts)
	stop()
	k.expand.Do(func() { k.verifier = cms.NewVerifier(k.public) })
	if err == nil && !k.verifier.Verifies(opts.HashFunc(), digest, signature) {
		err = ErrWrong
	}
	if err != nil {
		return nil, k.named(err)
	}
	return signature, nil
}

// Close logs out and ends what was started for the key. The error is that of the store
// about anything it has done so far.
func (k *Key) Close() error {
	if err := k.store.Close(); err != nil {
		return k.named(err)
	}
	return nil
}
