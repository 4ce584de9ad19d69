package sign

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"reflect"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/failures"
	"github.com/modsign/modsign/internal/module"
)

// ErrIncomplete reports that modules failed while the others were done. The error
// that wraps it counts them, and wraps the Result.Err of the first ones.
var ErrIncomplete = errors.New("some modules failed")

// Errors that a Result.Err, or the error of another function, may wrap.
var (
	// ErrChanged reports a module that changed while it was being read.
	ErrChanged = module.ErrChanged
	// ErrNotModule reports a file that is not a whole kernel module in ELF.
	ErrNotModule = module.ErrNotModule
	// ErrTooLarge reports a compressed module that is larger than Options.MaxSize
	// when decompressed.
	ErrTooLarge = compress.ErrTooLarge
)

type (
	// A LockedError reports that another process, its Holder, works on the same files:
	// it has locked Path.
	LockedError = atomicfile.LockedError
	// A MisnamedError reports a file whose name promises another compression than its
	// content has: by its first bytes it Is of another format, and the Right base name is
	// this one.
	MisnamedError = module.MisnamedError
)

// The formats of modules. None is the zero value.
const (
	None = compress.None
	Gzip = compress.Gzip
	XZ   = compress.XZ
	Zstd = compress.Zstd
)

// ParseHash returns the hash of a name, as CONFIG_MODULE_SIG_HASH spells it (sha512,
// sha3-256) or as OpenSSL does (SHA2-512, RSA-SHA512). A hash with which the kernel
// verifies no module is an error.
func ParseHash(name string) (crypto.Hash, error) { return cms.HashByName(name) }

// HashName returns the name of a hash as CONFIG_MODULE_SIG_HASH spells it.
func HashName(h crypto.Hash) string { return cms.HashName(h) }

// errNotOpen is what every method of a Tree returns that is not open.
var errNotOpen = fmt.Errorf("the tree of modules is not open: %w", fs.ErrClosed)

// check returns an error unless the Tree is between Open and Close.
func (t *Tree) check() error {
	if t == nil || !t.opened.Load() {
		return errNotOpen
	}
	return nil
}

// run passes over the tree once. Modules that fail make its error.
func (t *Tree) run(ctx context.Context, signer maker, opts Options) (Summary, error) {
	return t.watch(opts, func(opts Options) (Summary, error) { return t.pass(ctx, signer, opts) })
}

// watch checks what f needs, and has f return [ErrIncomplete] when modules fail. An
// error of f stands alone: it is what ended the run.
func (t *Tree) watch(opts Options, f func(Options) (Summary, error)) (Summary, error) {
	if err := first(t.check(), opts.check()); err != nil {
		return Summary{}, err
	}
	var failed failures.List
	report := opts.Report.Result
	opts.Report.Result = func(r Result) {
		if r.Action == Failed {
			failed.Add(r.Path, r.Err)
		}
		if report != nil {
			report(r)
		}
	}
	summary, err := f(opts)
	if err == nil {
		err = failed.Err(ErrIncomplete, fmt.Sprintf("%d of %d modules failed", failed.Len(), summary.Modules))
	}
	return summary, err
}

// first is the first of several errors that is one.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// check refuses values that are none of those that there are.
func (o *Options) check() error {
	switch {
	case !isNamed(o.Existing, existingNames):
		return fmt.Errorf("unknown value of Options.Existing: %v", o.Existing)
	case !isNamed(o.Sync, syncNames):
		return fmt.Errorf("unknown value of Options.Sync: %v", o.Sync)
	case o.Jobs < 0:
		return fmt.Errorf("negative Options.Jobs: %d", o.Jobs)
	case o.MaxSize < 0:
		return fmt.Errorf("negative Options.MaxSize: %d", o.MaxSize)
	}
	return nil
}

func (s *Source) check() error {
	if !isNamed(s.Compress, formatNames) {
		return fmt.Errorf("unknown value of Source.Compress: %v", s.Compress)
	}
	return nil
}

func (f *FoundSignatures) check() error {
	switch {
	case !isNamed(f.Layout, layoutNames):
		return fmt.Errorf("unknown value of FoundSignatures.Layout: %v", f.Layout)
	case f.Layout == Debian && f.Dir == "":
		return errors.New("the layout of Debian needs a FoundSignatures.Dir")
	}
	return nil
}

var layoutNames = []string{"p7s", "debian", "raw"}

// String returns p7s, debian or raw.
func (l Layout) String() string { return nameOf(l, layoutNames) }

func isNamed[T ~uint8](value T, names []string) bool { return int(value) < len(names) }

// nameOf is the name of a value, of which there may be none.
func nameOf[T ~uint8](value T, names []string) string {
	if isNamed(value, names) {
		return names[value]
	}
	return fmt.Sprintf("%s(%d)", reflect.TypeFor[T]().Name(), uint8(value))
}

// check refuses to sign with nothing, or with two things. A Signature that is there
// and empty is appended, as scripts/sign-file does.
func (o *FileOptions) check(signer *Signer) error {
	switch {
	case signer != nil && o.Signature != nil:
		return errors.New("both a Signer and a signature are given")
	case signer == nil && o.Signature != nil && (o.Save || o.Detached):
		return errors.New("a signature that is given is appended, and not written to a file")
	case signer == nil && o.Signature != nil:
		return nil
	}
	return signer.check()
}

// check returns an error for a Signer that NewSigner did not make.
func (s *Signer) check() error {
	if s == nil || s.cms == nil {
		return errors.New("nothing to sign with: NewSigner makes a Signer")
	}
	return nil
}

func (a *Attachment) check() error {
	if a == nil || len(a.signatures) == 0 {
		return errors.New("nothing to attach: NewAttachment makes an Attachment")
	}
	return nil
}

// checkCertificate refuses a certificate that was not parsed.
func checkCertificate(cert *x509.Certificate) error {
	switch {
	case cert == nil:
		return errors.New("no certificate is given")
	case len(cert.Raw) == 0:
		return errors.New("the certificate was not parsed: it has no encoding")
	case !isWhole(cert.PublicKey):
		return errors.New("the certificate has no public key that can be used")
	}
	return nil
}

// checkKey refuses a private key that is none, or lacks its numbers.
func checkKey(key crypto.Signer) error {
	if isNil(key) {
		return errors.New("no private key is given")
	}
	if !isWhole(key) || !isWhole(publicOf(key)) {
		return errors.New("the private key has no value that can be used")
	}
	return nil
}

// publicOf is key.Public, and nil where that panics.
func publicOf(key crypto.Signer) (public crypto.PublicKey) {
	defer func() {
		if recover() != nil { // the words of a panic may be about the key
			public = nil
		}
	}()
	return key.Public()
}

// isWhole reports whether a key, public or private, equals itself: package crypto
// panics over the numbers that a zero value lacks. Whether it is of a kind that the
// kernel knows is for others to say.
func isWhole(key any) (whole bool) {
	defer func() {
		if recover() != nil {
			whole = false
		}
	}()
	if isNil(key) {
		return false
	}
	if key, ok := key.(*ecdsa.PublicKey); ok && key.Curve == nil {
		return false
	}
	switch key := key.(type) {
	case interface{ Equal(crypto.PublicKey) bool }:
		return key.Equal(key)
	case interface{ Equal(crypto.PrivateKey) bool }:
		return key.Equal(key)
	}
	return true
}

// isNil reports whether an interface holds nothing, or a pointer to nothing.
func isNil(v any) bool {
	if v == nil {
		return true
	}
	switch value := reflect.ValueOf(v); value.Kind() {
	case reflect.Chan, reflect.Func, reflect.Map, reflect.Pointer, reflect.Slice:
		return value.IsNil()
	}
	return false
}

// orFailing is a hash that somebody else's code has begun, and may not have.
func orFailing(h hash.Hash) hash.Hash {
	if isNil(h) {
		return noHash{}
	}
	return h
}

// noHash stands for a hash that was not begun: to write to it fails.
type noHash struct{}

func (noHash) Write([]byte) (int, error) { return 0, errors.New("there is no hash for this module") }
func (noHash) Sum(b []byte) []byte       { return b }
func (noHash) Reset()                    {}
func (noHash) Size() int                 { return 0 }
func (noHash) BlockSize() int            { return 1 }
