// Package verify tells whether a kernel would take a kernel module: it gives the
// verdict that the kernel's module_sig_check (kernel/module/signing.c) gives, for
// one module or for all of a tree.
//
// What the kernel trusts stands in a [Keyring]: the certificates that are built
// into its image, or others. Certificates' dates, key usage and names do not
// count, as they do not count there. What a running kernel has learned beyond
// its image (keys of the machine owner, of the firmware, added by hand) is not
// looked at.
//
// [Inspect] describes a module without judging it.
package verify

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"

	"github.com/modsign/modsign/internal/batch"
	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/module"
)

// Verdict is what the kernel would say to a module.
type Verdict string

const (
	Trusted      Verdict = "trusted"
	NotSigned    Verdict = "not signed"
	UnknownKey   Verdict = "unknown key"   // signed with a key that the keyring does not have
	BadSignature Verdict = "bad signature" // signed with a known key, and changed since
	Malformed    Verdict = "malformed"     // the signature, or the module
	Unsupported  Verdict = "unsupported"   // algorithms that the kernel does not know
	Revoked      Verdict = "revoked"       // signed with a key that the kernel is told to refuse
	Unreadable   Verdict = "unreadable"    // no verdict: the file could not be read
)

// Verdicts are all of them, the good one first.
var Verdicts = []Verdict{Trusted, NotSigned, UnknownKey, BadSignature, Malformed, Unsupported, Revoked, Unreadable}

// Result is the verdict on one module.
type Result struct {
	Path    string
	Target  string // the file, when a symbolic link was followed to it
	Verdict Verdict
	Signer  string // who signed it, as far as one can see
	Source  string // where the certificate that trusts it comes from
	Layers  int    // signatures; the outermost one counts

	// Errno is what init_module(2) fails with on a kernel that enforces
	// signatures; Cause is the error that led there. Both are 0 for what is
	// Trusted or Unreadable.
	Errno, Cause syscall.Errno
	Dmesg        []string // what that kernel logs about it
	Tolerated    bool     // a kernel that does not enforce signatures loads it, tainted

	Warnings []string // what is odd, and decides nothing
	Err      error    // what is wrong, for people; nil if it is Trusted
}

// Options bound what verifying a tree may cost.
type Options struct {
	Jobs     int   // modules looked at at once; 0 stands for twice the number of processors
	MaxSize  int64 // of a decompressed module in bytes; 0 stands for 2 GiB
	Progress func(modules int)
}

// Tree verifies modules in parallel, and hands the results to report, which may be
// nil, in the order of the paths. The error is nil only if all modules are Trusted: it
// is [ErrRefused], [ErrIncomplete], or both, or the context's cause when that ended the
// run early. That there are no paths is no error.
func Tree(ctx context.Context, keys *Keyring, paths []string, opts Options, report func(Result)) error {
	found := &Found{entries: make([]module.Entry, len(paths))}
	for i, path := range paths {
		found.entries[i] = module.Follow(nil, path)
	}
	return found.Verify(ctx, keys, opts, report)
}

// Verify is [Tree] for modules that were found.
func (f *Found) Verify(ctx context.Context, keys *Keyring, opts Options, report func(Result)) error {
	if keys == nil {
		return errNoKeyring
	}
	if err := opts.check(); err != nil {
		return err
	}
	limits := module.SharedLimits(opts.MaxSize)
	done := 0
	var outcome outcome
	emit := func(r Result) {
		done++
		outcome.add(r)
		if opts.Progress != nil {
			opts.Progress(done)
		}
		if report != nil {
			report(r)
		}
	}
	work := func(i int) Result { return file(ctx, keys, f.entries[i], limits) }
	if err := batch.Map(ctx, len(f.entries), opts.Jobs, work, emit); err != nil {
		return err
	}
	return outcome.err(len(f.entries))
}

// File verifies one module, over links too. Its Result.Err is nil only if the module is
// Trusted.
func File(ctx context.Context, keys *Keyring, path string) Result {
	return file(ctx, keys, module.Follow(nil, path), module.Limits{})
}

func file(ctx context.Context, keys *Keyring, e module.Entry, limits module.Limits) Result {
	r := Result{Path: e.Path, Target: e.Real}
	if keys == nil {
		r.Verdict, r.Err = Unreadable, errNoKeyring
		return r
	}
	m, err := e.Open(ctx, limits)
	if err != nil {
		_, failed := errors.AsType[*fs.PathError](err)
		if failed || ctx.Err() != nil || errors.Is(err, compress.ErrTooLarge) || errors.Is(err, compress.ErrUnreadable) || errors.Is(err, module.ErrChanged) {
			r.Verdict, r.Err = Unreadable, err
			return r
		}
		// It is not what its name says, or its compression is broken.
		return r.refuse(Malformed, syscall.EINVAL, err)
	}
	defer m.Close()
	if err := compress.KernelError(m.Format, m.Descriptor(), m.Info.Size()); err != nil {
		r.Warnings = append(r.Warnings, err.Error())
	}
	r.check(ctx, keys, m)
	return r
}

// check follows module_sig_check and what comes after it.
func (r *Result) check(ctx context.Context, keys *Keyring, m *module.File) {
	// The outermost layer alone is the kernel's business; an inner one that is
	// malformed is none.
	outer, err := module.Check(m, m.Size, module.TypePKCS7)
	if format, ok := errors.AsType[*module.FormatError](err); ok {
		switch {
		case errors.Is(err, module.ErrIDType):
			if format.Info.IDType == module.TypeMerkle {
				err = errors.New("a Merkle proof, which a kernel that goes by signatures does not know")
			}
			*r = r.refuse(Unsupported, format.Errno(), err, "module: not signed with expected PKCS#7 message")
		case errors.Is(err, module.ErrInfoFields):
			*r = r.refuse(Malformed, format.Errno(), err, "module: PKCS#7 signature info has unexpected non-zero params")
		default:
			*r = r.refuse(Malformed, format.Errno(), err)
		}
		r.Layers = countLayers(m)
		return
	}
	switch {
	case err == module.ErrNotSigned:
		*r = r.refuse(NotSigned, syscall.ENODATA, err)
		return
	case err != nil:
		r.Verdict, r.Err = Unreadable, err
		return
	}
	if r.Layers = countLayers(m); r.Layers > 1 {
		r.Warnings = append(r.Warnings, "signed more than once: the outermost signature counts, and the others are dead weight")
	}
	message, err := parse(m, outer)
	if err == nil {
		r.Signer = message.Signers[0].String()
		r.Warnings = append(r.Warnings, message.Warnings()...)
		digest := func(h crypto.Hash) ([]byte, error) {
			sum := h.New()
			_, err := io.Copy(sum, module.Reader(ctx, m.Payload(outer.Offset)))
			return sum.Sum(nil), err
		}
		var cert *cms.Certificate
		cert, err = message.Check(digest, keys.trusted, keys.revoked)
		if cert != nil {
			r.Signer = cert.Description()
			r.Source = keys.source[cert]
		}
	}
	if refusal, ok := errors.AsType[*cms.Error](err); ok {
		var lines []string
		if refusal.Dmesg != "" {
			lines = []string{refusal.Dmesg}
		}
		*r = r.refuse(verdictOf[refusal.Kind], refusal.Errno, err, lines...)
		return
	}
	if err != nil {
		r.Verdict, r.Err = Unreadable, err
		return
	}
	// What the signature says of the module is true; whether it is one comes next.
	if err := module.CheckELF(m, outer.Offset); err != nil {
		*r = r.refuse(Malformed, syscall.ENOEXEC, err)
		return
	}
	r.Verdict = Trusted
}

// countLayers returns how many signatures a module has. What stops the count, an inner
// layer that does not fit, is no business of the kernel.
func countLayers(m *module.File) int {
	layers, _ := module.Layers(m, m.Size)
	return len(layers)
}

// parse reads the CMS message of a layer, whose claimed length may be anything.
func parse(m *module.File, l module.Layer) (*cms.Message, error) {
	if l.Info.SigLen > cms.MaxSize {
		return nil, &cms.Error{Kind: cms.Malformed, Errno: syscall.EMSGSIZE,
			Reason: fmt.Sprintf("a signature of %d bytes, where the kernel reads %d at the most", l.Info.SigLen, cms.MaxSize)}
	}
	der, err := l.Signature(m)
	if err != nil {
		return nil, err
	}
	return cms.Parse(der)
}

var verdictOf = map[cms.Kind]Verdict{
	cms.Malformed:    Malformed,
	cms.Unsupported:  Unsupported,
	cms.UnknownKey:   UnknownKey,
	cms.BadSignature: BadSignature,
	cms.Revoked:      Revoked,
}

// refuse says what the kernel makes of an error: three of them it forgives
// unless it enforces signatures (module_sig_check).
func (r Result) refuse(verdict Verdict, cause syscall.Errno, err error, dmesg ...string) Result {
	r.Verdict, r.Cause, r.Err, r.Dmesg = verdict, cause, err, dmesg
	r.Errno = cause
	reasons := map[syscall.Errno]string{
		syscall.ENODATA: "unsigned module",
		syscall.ENOPKG:  "module with unsupported crypto",
		syscall.ENOKEY:  "module with unavailable key",
	}
	if reason, ok := reasons[cause]; ok {
		r.Errno, r.Tolerated = syscall.EKEYREJECTED, true
		r.Dmesg = append(r.Dmesg, "Loading of "+reason+" is rejected")
	}
	return r
}
