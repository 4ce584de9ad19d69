package sign

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/modsign/modsign/internal/batch"
	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/module"
)

// An Attachment is a set of signatures that wait for their modules. All are checked:
// they are of one certificate, and each is good for its digest.
type Attachment struct {
	hash       crypto.Hash
	signatures map[string]*Signature // by path
}

// A RefusedError says why signatures and modules do not go together, each reason
// with the name of a signature or a module. Nothing was written.
type RefusedError struct {
	Errs []error
}

func (e *RefusedError) Error() string {
	const most = 10
	texts := make([]string, min(len(e.Errs), most))
	for i := range texts {
		texts[i] = e.Errs[i].Error()
	}
	if left := len(e.Errs) - most; left > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", left))
	}
	return strings.Join(texts, "; ")
}

func (e *RefusedError) Unwrap() []error { return e.Errs }

// refusals are those that are not nil, as an error.
func refusals(errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) == 0 {
		return nil
	}
	return &RefusedError{errs}
}

// each does f for n things in parallel, and returns what is refused in the order of
// the things.
func each(ctx context.Context, n int, f func(i int) error) error {
	errs := make([]error, n)
	err := batch.Each(ctx, n, 0, func(i int) error {
		errs[i] = f(i)
		return nil
	})
	if err != nil {
		return err
	}
	return refusals(errs)
}

// NewAttachment checks signatures: each has to be a message just as sign-file writes
// it, of the certificate, and good for its digest. What is not is refused with a
// [*RefusedError] that names all of them.
func NewAttachment(ctx context.Context, cert *x509.Certificate, s Signatures) (*Attachment, error) {
	if err := checkCertificate(cert); err != nil {
		return nil, err
	}
	c, err := cms.ParseCertificate(cert.Raw)
	if err != nil {
		return nil, fmt.Errorf("the kernel cannot use the certificate: %w", err)
	}
	if len(s) == 0 {
		return nil, errors.New("there is no signature to attach")
	}
	a := &Attachment{hash: s[0].Hash, signatures: make(map[string]*Signature, len(s))}
	for i := range s {
		if a.signatures[s[i].Path] != nil {
			return nil, fmt.Errorf("%s is there twice", s[i].Path)
		}
		a.signatures[s[i].Path] = &s[i]
	}
	ring := cms.NewKeyring(c)
	err = each(ctx, len(s), func(i int) error {
		if err := s[i].verify(ring, a.hash); err != nil {
			return fmt.Errorf("%s: %w", cmp.Or(s[i].file, s[i].Path), err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// verify checks a signature against its digest.
func (s *Signature) verify(ring *cms.Keyring, hash crypto.Hash) error {
	m, err := cms.Parse(s.Message)
	if err != nil {
		return fmt.Errorf("not a signature that the kernel reads: %w", err)
	}
	if _, err := m.Marshal(); err != nil {
		return err
	}
	signer := &m.Signers[0]
	switch {
	case s.Hash != hash:
		return fmt.Errorf("its digest is %s, and others are %s", cms.HashName(s.Hash), cms.HashName(hash))
	case signer.Hash != s.Hash:
		return fmt.Errorf("the signature is made with %s, and the digest with %s", signer.HashName, cms.HashName(s.Hash))
	}
	_, err = m.Check(func(crypto.Hash) ([]byte, error) { return s.Sum, nil }, ring, nil)
	if e, ok := errors.AsType[*cms.Error](err); ok {
		switch e.Kind {
		case cms.UnknownKey:
			return fmt.Errorf("the signature is by another certificate than %q: %s", ring.Certificates()[0].Description(), signer)
		case cms.BadSignature:
			return fmt.Errorf("the signature does not fit the module, or is not by the key of the certificate %q", ring.Certificates()[0].Description())
		}
	}
	return err
}

// Hash returns the hash that all modules are signed with.
func (a *Attachment) Hash() crypto.Hash {
	if a == nil {
		return 0
	}
	return a.hash
}

// Fits tells whether each module of the tree has its signature and each signature
// its module. If not, the error is a [*RefusedError].
func (t *Tree) Fits(a *Attachment) error {
	if err := first(t.check(), a.check()); err != nil {
		return err
	}
	names, err := t.names()
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range t.entries {
		if e.Err != nil { // an unreadable folder, whose modules are missed
			errs = append(errs, fmt.Errorf("%s: %w", e.Path, e.Err))
		} else if a.signatures[module.BaseName(e.Rel)] == nil {
			errs = append(errs, fmt.Errorf("%s: there is no signature for this module (%s)", e.Path, module.BaseName(e.Rel)))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.signatures)) {
		if names[name] == "" {
			errs = append(errs, fmt.Errorf("%s: there is a signature, and no such module in %s", cmp.Or(a.signatures[name].file, name), strings.Join(t.source.Roots, ", ")))
		}
	}
	return refusals(errs)
}

// Attach puts signatures on the modules, as Sign does: what it writes are the bytes
// that Sign would have written with that key. If they do not all fit, nothing is
// written. A module that is not the one that was signed fails, and stays as it is; the
// error is [ErrIncomplete] then.
func (t *Tree) Attach(ctx context.Context, a *Attachment, opts Options) (Summary, error) {
	if opts.StripDebug || opts.SplitDebug != "" {
		return Summary{}, errors.New("stripping makes other modules of those that were signed: strip them before their digests are taken")
	}
	if err := t.Fits(a); err != nil {
		return Summary{}, err
	}
	maker := attacher{a, t.links()}
	if opts.DryRun || t.source.DryRun {
		return t.watch(opts, func(opts Options) (Summary, error) { return t.tryAttach(ctx, maker, opts) })
	}
	return t.run(ctx, maker, opts)
}

// tryAttach is Attach without writing: it reads the modules all the same.
func (t *Tree) tryAttach(ctx context.Context, maker attacher, opts Options) (Summary, error) {
	digests := make(map[string][]byte)
	first := opts
	first.Report = Report{Progress: opts.Report.Progress, Result: func(r Result) { digests[r.Name] = r.Digest }}
	// What fails here fails once more below, and is told of there.
	if summary, err := t.Digest(ctx, maker.hash, first); err != nil && !errors.Is(err, ErrIncomplete) {
		return summary, err
	}
	var others Summary
	report := opts.Report.Result
	opts.Report.Progress = nil
	opts.Report.Result = func(r Result) {
		if r.Action == Signed && digests[r.Name] != nil {
			sig, err := maker.signature(r.Name, digests[r.Name])
			r.Signature = len(sig)
			if err != nil {
				others.Failed++
				others.Bytes += r.Payload
				if r.Removed > 0 {
					others.Replaced++
				}
				if r.Removed > 1 {
					others.Stacked++
				}
				r = Result{Path: r.Path, Name: r.Name, Action: Failed, Format: r.Format, LinkOf: r.LinkOf, Duration: r.Duration, Err: err}
			}
		}
		if report != nil {
			report(r)
		}
	}
	summary, err := t.pass(ctx, maker, opts)
	summary.Signed -= others.Failed
	summary.Failed += others.Failed
	summary.Bytes -= others.Bytes
	summary.Replaced -= others.Replaced
	summary.Stacked -= others.Stacked
	return summary, err
}

// links finds the other names of a file, by the first.
func (t *Tree) links() map[string][]string {
	type inode struct{ dev, ino uint64 }
	first := make(map[inode]string)
	links := make(map[string][]string)
	for _, e := range t.entries {
		if e.Err != nil {
			continue
		}
		st := e.Info.Sys().(*syscall.Stat_t)
		if st.Nlink < 2 {
			continue
		}
		id, name := inode{uint64(st.Dev), st.Ino}, module.BaseName(e.Rel)
		if other, ok := first[id]; ok {
			links[other] = append(links[other], name)
		} else {
			first[id] = name
		}
	}
	return links
}

// attacher is the maker of an Attachment: what it gives was made elsewhere.
type attacher struct {
	*Attachment
	links map[string][]string // other names of the file of a name
}

func (a attacher) begin(string) hash.Hash { return a.hash.New() }

func (a attacher) kind() module.IDType { return module.TypePKCS7 }

func (a attacher) byName() bool { return false }

func (a attacher) signature(name string, digest []byte) ([]byte, error) {
	for _, name := range append([]string{name}, a.links[name]...) {
		if s := a.signatures[name]; !bytes.Equal(s.Sum, digest) {
			return nil, fmt.Errorf("not the module that was signed as %s: its %s begins with %.8x, and that of the signed one with %.8x", name, cms.HashName(a.hash), digest, s.Sum)
		}
	}
	return a.signatures[name].Message, nil
}

// Layout is how signatures lie in files.
type Layout uint8

const (
	// P7S is NAME.ko.p7s with a message, as sign-file -d and Options.Detached leave
	// it.
	P7S Layout = iota
	// Debian is files.json, which says what was to be signed, and a message in
	// signatures/PACKAGE/PATH.sig, as Debian's code signing has it.
	Debian
	// Raw is NAME.ko.sig with the bare value of an RSA signature (PKCS #1 v1.5), as
	// the signing server of the Open Build Service returns it.
	Raw
)

// FoundSignatures says where signatures lie in files.
type FoundSignatures struct {
	Layout Layout
	// Dir has the files as the tree has the modules. If it is empty, they lie beside
	// the modules; Debian needs it.
	Dir      string
	UseKeyID bool // the form of the messages that are built around Raw signatures
	// Note is told of what is passed over, if it is not nil.
	Note func(string)
}

// FindSignatures reads the modules of a tree and the signatures that lie in files,
// for [NewAttachment]. A module without a file, and a file without a module, are
// refused with a [*RefusedError], as is a file that holds no such signature. Of opts
// it takes what Digest takes.
func (t *Tree) FindSignatures(ctx context.Context, cert *x509.Certificate, from FoundSignatures, opts Options) (Signatures, error) {
	if err := first(t.check(), checkCertificate(cert), from.check(), opts.check()); err != nil {
		return nil, err
	}
	if _, err := t.names(); err != nil {
		return nil, err
	}
	if from.Layout == Raw && cert.PublicKeyAlgorithm != x509.RSA {
		return nil, fmt.Errorf("raw signatures are those of RSA, and the certificate's key is %s", cert.PublicKeyAlgorithm)
	}
	files, err := t.signatureFiles(cert, &from)
	if err != nil {
		return nil, err
	}
	content := make([][]byte, len(t.entries))
	hashes := make([]crypto.Hash, len(t.entries))
	err = each(ctx, len(t.entries), func(i int) (err error) {
		if content[i], err = readSignature(files[i]); err != nil {
			return err
		}
		if from.Layout == Raw {
			hashes[i], err = cms.RSAHash(cert, content[i])
		} else {
			hashes[i], err = messageHash(content[i])
		}
		if err != nil {
			return fmt.Errorf("%s: %w", files[i], err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i, hash := range hashes {
		if hash != hashes[0] {
			return nil, fmt.Errorf("%s is made with %s, and %s with %s: there is one hash for all", files[i], cms.HashName(hash), files[0], cms.HashName(hashes[0]))
		}
	}
	m, err := t.Manifest(ctx, hashes[0], opts)
	if err != nil {
		return nil, err
	}
	of := make(map[string]int)
	for i, e := range t.entries {
		of[module.BaseName(e.Rel)] = i
	}
	found := make(Signatures, len(m))
	err = each(ctx, len(m), func(i int) (err error) {
		k := of[m[i].Path]
		found[i] = Signature{Digest: m[i], Message: content[k], file: files[k]}
		if from.Layout == Raw {
			if found[i].Message, err = cms.Wrap(cert, m[i].Hash, from.UseKeyID, m[i].Sum, content[k]); err != nil {
				return fmt.Errorf("%s: %w", files[k], err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// messageHash is the hash that a message says it is made with.
func messageHash(message []byte) (crypto.Hash, error) {
	m, err := cms.Parse(message)
	if err != nil {
		return 0, fmt.Errorf("not a signature that the kernel reads: %w", err)
	}
	if _, err := m.Marshal(); err != nil {
		return 0, err
	}
	return m.Signers[0].Hash, nil
}

// readSignature reads a file that is as small as a signature has to be.
func readSignature(name string) ([]byte, error) {
	return readSmall(name, cms.MaxSize)
}

func readSmall(name string, limit int64) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: more than %d bytes", name, limit)
	}
	return b, err
}

// signatureFiles finds the file of each module's signature.
func (t *Tree) signatureFiles(cert *x509.Certificate, from *FoundSignatures) ([]string, error) {
	if from.Layout == Debian {
		return t.debianFiles(cert, from)
	}
	suffix := map[Layout]string{P7S: ".p7s", Raw: ".sig"}[from.Layout]
	files := make([]string, len(t.entries))
	used := make(map[string]bool)
	var errs []error
	for i, e := range t.entries {
		files[i] = module.BaseName(e.Path) + suffix
		if from.Dir != "" {
			files[i] = filepath.Join(from.Dir, module.BaseName(e.Rel)+suffix)
		}
		used[files[i]] = true
		if _, err := os.Lstat(files[i]); errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("%s: there is no signature for this module (%s)", e.Path, files[i]))
		}
	}
	dirs := []string{from.Dir}
	if from.Dir == "" {
		dirs = t.source.Roots
	}
	for _, dir := range dirs {
		if info, err := os.Stat(dir); err != nil {
			return nil, err
		} else if !info.IsDir() {
			continue // a module that was given by itself
		}
		// As module.Find spells what lies in a folder.
		walked := strings.TrimRight(dir, "/") + "/"
		err := filepath.WalkDir(walked, func(at string, d fs.DirEntry, err error) error {
			name := filepath.Join(dir, strings.TrimPrefix(at, walked))
			if err == nil && strings.HasSuffix(name, ".ko"+suffix) && !used[name] {
				errs = append(errs, fmt.Errorf("%s: there is a signature, and no such module in %s", name, strings.Join(t.source.Roots, ", ")))
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return files, refusals(errs)
}

// debianManifest is files.json as far as it matters here.
type debianManifest struct {
	Packages map[string]struct {
		TrustedCerts []string `json:"trusted_certs"`
		Files        []struct {
			Type string `json:"sig_type"`
			File string `json:"file"`
		} `json:"files"`
	} `json:"packages"`
}

// debianFiles finds the signatures in Debian's layout. A package of which the tree
// has no module is passed over: the tree of one kernel is not that of all.
func (t *Tree) debianFiles(cert *x509.Certificate, from *FoundSignatures) ([]string, error) {
	list := filepath.Join(from.Dir, "files.json")
	data, err := readSmall(list, 64<<20)
	if err != nil {
		return nil, err
	}
	var m debianManifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", list, err)
	}
	if len(m.Packages) == 0 {
		return nil, fmt.Errorf("%s: it names no packages", list)
	}
	index := make(map[string]int) // of the tree's modules
	for i, e := range t.entries {
		name, err := installedName(e)
		if err != nil {
			return nil, err
		}
		if k, ok := index[name]; ok {
			return nil, fmt.Errorf("%s and %s would both be %s: attach to one after the other", t.entries[k].Path, e.Path, name)
		}
		index[name] = i
	}
	note := func(format string, args ...any) {
		if from.Note != nil {
			from.Note(fmt.Sprintf(format, args...))
		}
	}
	files := make([]string, len(t.entries))
	fingerprint := sha256.Sum256(cert.Raw)
	var errs []error
	for _, pkg := range slices.Sorted(maps.Keys(m.Packages)) {
		p := m.Packages[pkg]
		if checkPath(pkg) != nil || strings.Contains(pkg, "/") {
			return nil, fmt.Errorf("%s: %q is not the name of a package", list, pkg)
		}
		dir := filepath.Join(from.Dir, "signatures", pkg)
		listed := make(map[string]bool)
		var modules, absent []string
		here := 0
		for _, f := range p.Files {
			if err := checkPath(f.File); err != nil {
				return nil, fmt.Errorf("%s: package %s: %q: %w", list, pkg, f.File, err)
			}
			sig := filepath.Join(dir, f.File+".sig")
			if listed[sig] {
				return nil, fmt.Errorf("%s: package %s: %s is there twice", list, pkg, f.File)
			}
			listed[sig] = true
			switch f.Type {
			case "linux-module":
			case "efi":
				continue
			default:
				return nil, fmt.Errorf("%s: package %s: %s: sig_type %q is neither linux-module nor efi", list, pkg, f.File, f.Type)
			}
			modules = append(modules, f.File)
			i, ok := index[module.BaseName(strings.TrimPrefix(f.File, "usr/"))]
			switch {
			case !ok:
				absent = append(absent, f.File)
			case files[i] != "":
				return nil, fmt.Errorf("%s: %s is there twice, once as %s", list, f.File, files[i])
			default:
				files[i] = sig
				here++
				if _, err := os.Lstat(sig); errors.Is(err, fs.ErrNotExist) {
					errs = append(errs, fmt.Errorf("%s: there is no signature for this module (%s)", t.entries[i].Path, sig))
				}
			}
		}
		if others := len(p.Files) - len(modules); others > 0 {
			note("%s: %s: passed over what is no module (sig_type efi): %d of %d files", list, pkg, others, len(p.Files))
		}
		if here == 0 {
			if len(modules) > 0 {
				note("%s: %s: passed over, as none of its modules is in %s", list, pkg, strings.Join(t.source.Roots, ", "))
			}
			continue
		}
		for _, file := range absent {
			errs = append(errs, fmt.Errorf("%s: %s: %s is no module in %s", list, pkg, file, strings.Join(t.source.Roots, ", ")))
		}
		if len(p.TrustedCerts) > 0 && !slices.ContainsFunc(p.TrustedCerts, func(s string) bool {
			return strings.EqualFold(strings.ReplaceAll(s, ":", ""), hex.EncodeToString(fingerprint[:]))
		}) {
			errs = append(errs, fmt.Errorf("%s: %s: its trusted_certs do not have the certificate, whose SHA-256 is %x: that kernel would refuse the modules", list, pkg, fingerprint))
		}
		err := filepath.WalkDir(dir, func(at string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && !listed[at] {
				errs = append(errs, fmt.Errorf("%s: %s does not name what this would sign", at, list))
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // which is named above
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	for i, e := range t.entries {
		if files[i] == "" {
			errs = append(errs, fmt.Errorf("%s: there is no signature for this module: %s does not name it", e.Path, list))
		}
	}
	return files, refusals(errs)
}

// installedName is where a module is in its package, without what may or may not
// stand before lib/modules.
func installedName(e module.Entry) (string, error) {
	at, err := filepath.Abs(e.Path)
	if err != nil {
		return "", err
	}
	if i := strings.LastIndex(at, "/lib/modules/"); i >= 0 {
		return module.BaseName(at[i+1:]), nil
	}
	return module.BaseName(path.Clean(e.Rel)), nil
}
