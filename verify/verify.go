// Package verify reports whether a kernel would load a kernel module: it gives the
// verdict that module_sig_check of the kernel (kernel/module/signing.c) gives. A kernel
// with CONFIG_MODULE_HASHES trusts modules for their hashes besides or instead: give these
// to [Keyring.AddHashes].
//
// Put the certificates that the kernel trusts into a [Keyring] first, with
// [Keyring.Add], [Keyring.AddFile] or [Keyring.AddImage]. Then call [Tree] for all modules
// below directories, [File] for one file, or [Module] for the content of a module in
// memory. The error of Tree is nil only if every module is [Trusted].
//
// The rules are the kernel's. The dates, key usages and names of certificates do not
// count, as they do not count there. Keys that a running kernel learned beyond its image
// (machine owner keys, keys of the firmware) are not in the keyring of an image: add
// their certificates.
//
// [Inspect] and [InspectTree] describe modules without judging them.
package verify

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"syscall"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/module"
)

// Verdict is what the kernel would decide about a module.
type Verdict string

const (
	Trusted      Verdict = "trusted"       // the kernel loads it
	NotSigned    Verdict = "not signed"    // it carries no signature
	UnknownKey   Verdict = "unknown key"   // the keyring does not have the key that signed it
	BadSignature Verdict = "bad signature" // a known key signed it, and it was changed since
	Malformed    Verdict = "malformed"     // the signature or the module is
	Unsupported  Verdict = "unsupported"   // the kernel does not know the algorithms
	Revoked      Verdict = "revoked"       // the kernel is told to reject the key that signed it
	Foreign      Verdict = "foreign"       // it carries a proof, and the kernel was not built with it
	Unreadable   Verdict = "unreadable"    // no verdict: the file, or a key of the running kernel, could not be read
)

// verdicts are all of them, the good one first.
var verdicts = []Verdict{Trusted, NotSigned, UnknownKey, BadSignature, Malformed, Unsupported, Revoked, Foreign,
	Unreadable}

// Result is the verdict on one module.
type Result struct {
	Path    string // as it was found, or the path in the Archive; empty for Module
	Archive string // the path of the package, or other archive, that has it; else empty
	Target  string // the file, if Path leads to it over symbolic links
	Verdict Verdict
	Signer  string         // who signed it, as far as the signature tells
	Source  string         // of the certificate that trusts it: the path of a file, or the source given to Add
	ByHash  bool           // it is Trusted for its hash, whatever its signature
	Layers  int            // the number of signatures; only the outermost counts
	Signers []SignerResult // of the outermost signature, as far as it can be parsed

	// Errno is the error of init_module(2) on a kernel that enforces signatures. Cause is
	// the error inside the kernel that leads to it. Both are 0 for a module that is
	// Trusted or Unreadable.
	Errno, Cause syscall.Errno
	Dmesg        []string // what that kernel logs; for a Trusted module, about certificates on its blacklist
	Tolerated    bool     // the signature does not keep a kernel that does not enforce signatures from loading it

	Warnings []string // oddities that do not change the verdict
	Err      error    // what is wrong; nil if the module is Trusted
}

// SignerResult is the verdict that the module would have if this signer were the only one.
// The kernel rejects a module of several signers if one of them is Revoked or has a
// BadSignature. Otherwise one that is Trusted suffices. (A signer that is Revoked because
// its certificate is inside the message, and on the kernel's blacklist by its hash, does
// not count.)
type SignerResult struct {
	Signer
	Verdict     Verdict
	Certificate string // as the kernel's log names it, if the key is known
	Source      string // of that certificate, as Result.Source
	Err         error  // what is wrong; nil if the signer is Trusted
}

// File verifies one module, over symbolic links too. Result.Err is nil only if the module
// is Trusted.
func File(ctx context.Context, keys *Keyring, path string) Result {
	return file(ctx, keys, module.Follow(nil, path), module.Limits{})
}

// Module verifies the content of a module, size bytes long and not compressed.
// Result.Err is nil only if the module is Trusted.
func Module(r io.ReaderAt, size int64, keys *Keyring) Result {
	var result Result
	switch {
	case keys == nil:
		result.Verdict, result.Err = Unreadable, errNoKeyring
	case r == nil:
		result.Verdict, result.Err = Unreadable, errors.New("no module is given")
	case size < 0:
		result.Verdict, result.Err = Unreadable, fmt.Errorf("negative size of a module: %d", size)
	default:
		result.content(context.Background(), keys, r, size)
	}
	return result
}

// Appended is [Module] for any file with an appended signature, also a compressed one. If it
// is no module and the signature is good, Result.Cause is ENOEXEC.
func Appended(r io.ReaderAt, size int64, keys *Keyring) Result {
	var result Result
	if keys == nil || r == nil || size < 0 {
		return Module(r, size, keys)
	}
	result.check(context.Background(), keys, r, size)
	return result
}

// content is check for content that may turn out to be compressed.
func (r *Result) content(ctx context.Context, keys *Keyring, content io.ReaderAt, size int64) {
	head := make([]byte, min(size, 8))
	if n, err := content.ReadAt(head, 0); n < len(head) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		r.Verdict, r.Err = Unreadable, err
		return
	}
	if format := compress.FromMagic(head); format != compress.None {
		*r = r.refuse(Malformed, syscall.EINVAL, fmt.Errorf("content is %s data: decompress it first", format))
		return
	}
	r.check(ctx, keys, content, size)
}

func file(ctx context.Context, keys *Keyring, e module.Entry, limits module.Limits) Result {
	r := Result{Path: e.Path, Target: e.Real}
	if keys == nil {
		r.Verdict, r.Err = Unreadable, errNoKeyring
		return r
	}
	m, err := e.Open(ctx, limits)
	return r.opened(ctx, keys, m, err)
}

// opened judges a module that was opened, or not, and closes it.
func (r Result) opened(ctx context.Context, keys *Keyring, m *module.File, err error) Result {
	if err != nil {
		_, failed := errors.AsType[*fs.PathError](err)
		if failed || ctx.Err() != nil || errors.Is(err, compress.ErrTooLarge) || errors.Is(err, compress.ErrUnreadable) ||
			errors.Is(err, module.ErrChanged) {
			r.Verdict, r.Err = Unreadable, err
			return r
		}
		// It is not what its name says, or its compression is broken.
		return r.refuse(Malformed, syscall.EINVAL, err)
	}
	defer m.Close()
	stored, size := m.Stored()
	if err := compress.KernelError(m.Format, stored, size); err != nil {
		r.Warnings = append(r.Warnings, err.Error())
	}
	r.check(ctx, keys, m, m.Size)
	return r
}

// check follows module_sig_check and the steps behind it.
func (r *Result) check(ctx context.Context, keys *Keyring, m io.ReaderAt, size int64) {
	// The kernel looks at the outermost layer only: an inner one may be malformed.
	outer, err := module.Check(m, size, keys.types()...)
	if format, ok := errors.AsType[*module.FormatError](err); ok {
		switch {
		case errors.Is(err, module.ErrIDType):
			if format.Info.IDType == module.TypeMerkle {
				err = errors.New("a Merkle proof instead of a signature")
			}
			*r = r.refuse(Unsupported, format.Errno(), err, "module: not signed with expected PKCS#7 message")
		case errors.Is(err, module.ErrInfoFields):
			*r = r.refuse(Malformed, format.Errno(), err, "module: PKCS#7 signature info has unexpected non-zero params")
		default:
			*r = r.refuse(Malformed, format.Errno(), err)
		}
		r.Layers = countLayers(m, size)
		return
	}
	switch {
	case err == module.ErrNotSigned:
		if r.listed(ctx, keys, m, size) {
			return
		}
		*r = r.refuse(NotSigned, syscall.ENODATA, err)
		if keys.lists() {
			r.Dmesg = []string{"Loading of unsigned module that is not in the hash list is rejected"}
		}
		return
	case err != nil:
		r.Verdict, r.Err = Unreadable, err
		return
	}
	if r.Layers = countLayers(m, size); r.Layers > 1 {
		r.Warnings = append(r.Warnings, "signed more than once: the kernel checks only the outermost signature")
	}
	if r.hashes(ctx, keys, m, outer) {
		return
	}
	var digest func(cms.Hash) ([]byte, error)
	message, err := parse(keys.kernel(), m, outer)
	if err == nil {
		r.Signer = message.Signers[0].String()
		r.Warnings = append(r.Warnings, message.Warnings()...)
		digest = digester(ctx, io.NewSectionReader(m, 0, outer.Offset))
		var cert *cms.Certificate
		cert, err = keys.check(message, digest)
		if cert != nil {
			r.Signer = cert.Description()
			r.Source = keys.source[cert]
		}
		r.Signers = keys.each(message, digest, cert, err)
		for _, c := range message.Certificates {
			if keys.blacklists(c) {
				r.Dmesg = append(r.Dmesg, fmt.Sprintf("X.509: Cert %x is blacklisted", c.TBSHash()))
			}
		}
	}
	if isUnknown(err) {
		for _, signer := range r.Signers {
			r.Warnings = append(r.Warnings, keys.known(signer.Signer)...)
		}
		if err := keys.maybeKnown(message.Signers); err != nil {
			r.Verdict, r.Err = Unreadable, err
			return
		}
	}
	if err == nil {
		if err := keys.maybeRejected(); err != nil {
			r.Verdict, r.Err = Unreadable, err
			return
		}
	}
	if message != nil {
		if err := keys.doubted(message, digest, err); err != nil {
			r.Verdict, r.Err = Unreadable, err
			return
		}
	}
	if refusal, ok := errors.AsType[*cms.Error](err); ok {
		lines := r.Dmesg
		if refusal.Dmesg != "" {
			lines = append(lines, refusal.Dmesg)
		}
		*r = r.refuse(verdictOf[refusal.Kind], refusal.Errno, err, lines...)
		return
	}
	if err != nil {
		r.Verdict, r.Err = Unreadable, err
		return
	}
	hash, err := keys.blacklistsModule(ctx, m, size)
	for _, d := range keys.doubts {
		if other, failed := d.keys.blacklistsModule(ctx, m, size); err == nil && failed == nil && other != hash {
			err = d.err()
		}
	}
	if err != nil {
		r.Verdict, r.Err = Unreadable, err
		return
	}
	if hash != "" {
		*r = r.refuse(Revoked, syscall.EKEYREJECTED, errors.New("the hash of the module is on the kernel's blacklist"),
			append(r.Dmesg, fmt.Sprintf("Module hash %s is blacklisted", hash))...)
		return
	}
	// The signature fits the content. Next comes whether that is a module.
	if err := module.CheckELF(m, outer.Offset); err != nil {
		*r = r.refuse(Malformed, syscall.ENOEXEC, err, r.Dmesg...)
		return
	}
	r.Verdict = Trusted
}

// blacklistsModule returns the hash of a module, with its signature, if the kernel compares
// that with its blacklist and finds it there.
func (k *Keyring) blacklistsModule(ctx context.Context, m io.ReaderAt, size int64) (string, error) {
	if k.facts.ModuleHashes != Yes || len(k.hashes)+len(k.late) == 0 {
		return "", nil
	}
	sum := sha256.New()
	if _, err := module.Copy(sum, section(ctx, m, size)); err != nil {
		return "", err
	}
	hash := hex.EncodeToString(sum.Sum(nil))
	if slices.Contains(k.hashes, "bin:"+hash) || k.late["bin:"+hash] {
		return hash, nil
	}
	return "", nil
}

// digester returns a function that computes the digests of a payload, each once.
func digester(ctx context.Context, payload *io.SectionReader) func(cms.Hash) ([]byte, error) {
	sums := make(map[cms.Hash][]byte)
	return func(h cms.Hash) ([]byte, error) {
		if sums[h] == nil {
			sum := h.New()
			if _, err := module.Copy(sum, module.Reader(ctx, io.NewSectionReader(payload, 0, payload.Size()))); err != nil {
				return nil, err
			}
			sums[h] = sum.Sum(nil)
		}
		return sums[h], nil
	}
}

// check looks for the signer of a message as mod_verify_sig does: a kernel that verifies
// modules with .platform looks there if no other keyring has the key.
func (k *Keyring) check(message *cms.Message, digest func(cms.Hash) ([]byte, error)) (*cms.Certificate, error) {
	cert, err := message.Check(digest, k.trusted, k.revoked)
	if k.platform != nil && isUnknown(err) {
		return message.CheckPlatform(digest, k.platform, k.revoked)
	}
	return cert, err
}

func isUnknown(err error) bool {
	refusal, ok := errors.AsType[*cms.Error](err)
	return ok && refusal.Errno == syscall.ENOKEY
}

// each returns the verdict on each signer of a message. cert and err are those on the
// message.
func (k *Keyring) each(
	message *cms.Message, digest func(cms.Hash) ([]byte, error), cert *cms.Certificate, err error,
) []SignerResult {
	findings := []cms.Finding{{Certificate: cert, Err: err}}
	if len(message.Signers) > 1 {
		findings = message.CheckEach(digest, k.trusted, k.revoked)
		if k.platform != nil {
			for i, f := range message.CheckEachPlatform(digest, k.platform, k.revoked) {
				if isUnknown(findings[i].Err) {
					findings[i] = f
				}
			}
		}
	}
	results := make([]SignerResult, len(findings))
	for i, f := range findings {
		r := SignerResult{Signer: signerOf(&message.Signers[i]), Verdict: Trusted, Err: f.Err}
		if f.Certificate != nil {
			r.Certificate, r.Source = f.Certificate.Description(), k.source[f.Certificate]
		}
		if refusal, ok := errors.AsType[*cms.Error](f.Err); ok {
			r.Verdict = verdictOf[refusal.Kind]
		} else if f.Err != nil {
			r.Verdict = Unreadable
		}
		results[i] = r
	}
	return results
}

// countLayers returns how many signatures a module has, up to an inner one that is
// malformed.
func countLayers(m io.ReaderAt, size int64) int {
	layers, _ := module.Layers(m, size)
	return len(layers)
}

// parse reads the CMS message of a layer, which may claim any length.
func parse(rules *cms.Rules, m io.ReaderAt, l module.Layer) (*cms.Message, error) {
	if l.Info.SigLen > cms.MaxSize {
		return nil, &cms.Error{Kind: cms.Malformed, Errno: syscall.EMSGSIZE,
			Reason: fmt.Sprintf("signature of %d bytes: the kernel reads at most %d", l.Info.SigLen, cms.MaxSize)}
	}
	der, err := l.Signature(m)
	if err != nil {
		return nil, err
	}
	return rules.Parse(der)
}

var verdictOf = map[cms.Kind]Verdict{
	cms.Malformed:    Malformed,
	cms.Unsupported:  Unsupported,
	cms.UnknownKey:   UnknownKey,
	cms.BadSignature: BadSignature,
	cms.Revoked:      Revoked,
}

// refuse returns the result of an error in the kernel. The kernel tolerates three of them
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
