package sign

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"hash"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/modsign/modsign/internal/batch"
	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/sign/manifest"
)

// An Attachment is a set of signatures for [Tree.Attach]. All are by the key of one
// certificate, and each is valid for its digest.
type Attachment struct {
	hash       Hash
	signatures map[string]*manifest.Signature // by path
}

// refusals makes an error of those that are not nil.
func refusals(errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) == 0 {
		return nil
	}
	return &RefusedError{errs}
}

// each calls f for 0 to n-1 in parallel, and returns a RefusedError of its errors in that
// order.
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

// NewAttachment checks signatures: each has to be a message exactly as sign-file writes
// it, by the key of the certificate, and valid for its digest. A [*RefusedError] names all
// that are not.
func NewAttachment(ctx context.Context, cert *x509.Certificate, s manifest.Signatures) (*Attachment, error) {
	if err := checkCertificate(cert); err != nil {
		return nil, err
	}
	c, err := cms.ParseCertificate(cert.Raw)
	if err != nil {
		return nil, fmt.Errorf("the kernel cannot use the certificate: %w", err)
	}
	if len(s) == 0 {
		return nil, errors.New("no signature to attach")
	}
	// What is checked here may not change before it is attached.
	s = slices.Clone(s)
	hash, err := hashOf(c, s[0].Hash)
	if err != nil {
		return nil, err
	}
	a := &Attachment{hash: hash, signatures: make(map[string]*manifest.Signature, len(s))}
	var errs []error
	for i := range s {
		s[i].Sum, s[i].Message = bytes.Clone(s[i].Sum), bytes.Clone(s[i].Message)
		if err := s[i].Digest.Check(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", strconv.Quote(s[i].Path), err))
		} else if a.signatures[s[i].Path] != nil {
			errs = append(errs, fmt.Errorf("%s occurs twice", s[i].Path))
		}
		a.signatures[s[i].Path] = &s[i]
	}
	if len(errs) > 0 {
		return nil, refusals(errs)
	}
	ring, key := cms.NewKeyring(c), cms.KeyOf(hash)
	err = each(ctx, len(s), func(i int) error {
		if err := checkSignature(&s[i], ring, s[0].Hash, key); err != nil {
			return fmt.Errorf("%s: %w", cmp.Or(s[i].Source, s[i].Path), err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// hashOf returns what makes the digests with a name.
func hashOf(c *cms.Certificate, name crypto.Hash) (Hash, error) {
	if !cms.IsMu(name) {
		return name, nil
	}
	if mu := c.Mu(); mu != nil && mu.HashFunc() == name {
		return mu, nil
	}
	return nil, fmt.Errorf("the digests are %s, and the certificate's key is %s", cms.HashName(name), c.KeyAlgorithm)
}

// oneSigner returns an error unless a message is as sign-file writes it.
func oneSigner(m *cms.Message) error {
	if _, err := m.Marshal(); err != nil {
		return err
	}
	if n := len(m.Signers); n > 1 {
		return fmt.Errorf("not as sign-file writes it: %d signers", n)
	}
	return nil
}

// checkSignature checks a signature against its digest.
func checkSignature(s *manifest.Signature, ring *cms.Keyring, hash crypto.Hash, key []byte) error {
	m, err := cms.Parse(s.Message)
	if err != nil {
		return fmt.Errorf("not a signature that the kernel reads: %w", err)
	}
	if err := oneSigner(m); err != nil {
		return err
	}
	signer := &m.Signers[0]
	switch {
	case s.Hash != hash:
		return fmt.Errorf("its digest is %s, others are %s", cms.HashName(s.Hash), cms.HashName(hash))
	case !bytes.Equal(s.Key, key):
		return errOtherKey
	case signer.Digest() != s.Hash:
		return fmt.Errorf("the signature uses %s, its digest %s", cms.HashName(signer.Digest()), cms.HashName(s.Hash))
	}
	_, err = m.Check(func(cms.Hash) ([]byte, error) { return s.Sum, nil }, ring, nil)
	if e, ok := errors.AsType[*cms.Error](err); ok {
		name := ring.Certificates()[0].Description()
		switch e.Kind {
		case cms.UnknownKey:
			return fmt.Errorf("the signature names a certificate other than %q: %s", name, signer)
		case cms.BadSignature:
			return fmt.Errorf("the signature does not match the module, or is not by the key of certificate %q", name)
		}
	}
	return err
}

func (a *Attachment) check() error {
	if a == nil || len(a.signatures) == 0 {
		return errors.New("nothing to attach: NewAttachment makes an Attachment")
	}
	return nil
}

// Message returns one of the messages: all are of the same form.
func (a *Attachment) Message() []byte {
	if a == nil {
		return nil
	}
	for _, s := range a.signatures {
		return bytes.Clone(s.Message)
	}
	return nil
}

// Hash returns the hash of all signatures.
func (a *Attachment) Hash() crypto.Hash {
	if a == nil {
		return 0
	}
	return a.hash.HashFunc()
}

// CheckComplete returns a [*RefusedError] unless each module of the tree has its signature
// and each signature its module.
func (t *Tree) CheckComplete(a *Attachment) error {
	if err := first(t.check(), a.check()); err != nil {
		return err
	}
	names, err := t.names()
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range t.entries {
		if e.Err != nil { // an unreadable directory, whose modules are missing
			errs = append(errs, fmt.Errorf("%s: %w", e.Path, e.Err))
		} else if a.signatures[module.BaseName(e.Rel)] == nil {
			errs = append(errs, fmt.Errorf("%s: no signature for this module (%s)", e.Path, module.BaseName(e.Rel)))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.signatures)) {
		if names[name] == "" {
			source := cmp.Or(a.signatures[name].Source, name)
			errs = append(errs, fmt.Errorf("%s: signature without a module in %s", source, strings.Join(t.source.Roots, ", ")))
		}
	}
	return refusals(errs)
}

// Attach puts signatures on the modules. It writes the bytes that Sign would have written
// with that key. Unless [Tree.CheckComplete] is satisfied, it writes nothing. A module
// that is not the signed one fails and stays as it is. A dry run compares the digests too.
func (t *Tree) Attach(ctx context.Context, a *Attachment, opts AttachOptions) (Summary, error) {
	if err := first(t.CheckComplete(a), opts.Existing.check(opts.Detached, DebugOptions{})); err != nil {
		return Summary{}, err
	}
	return t.run(ctx, task{
		WriteOptions: opts.WriteOptions, existing: opts.Existing, detached: opts.Detached,
		trailers: attached{Attachment: a, links: t.links()}, last: t.lastStage(opts.DryRun, stageMake),
	})
}

// links maps the first name of each file to its other names.
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

// attached are signatures that were made elsewhere.
type attached struct {
	signs
	*Attachment
	links map[string][]string // other names of the file with a name
}

func (a attached) begin(string) []hash.Hash { return []hash.Hash{a.hash.New()} }

func (attached) byName() bool { return false }

func (a attached) trailer(name string, size int64, digests [][]byte) (trailer, error) {
	digest := digests[0]
	for _, name := range append([]string{name}, a.links[name]...) {
		if s := a.signatures[name]; !bytes.Equal(s.Sum, digest) {
			const differs = "not the module that was signed as %s: its %s begins with %.8x, that of the signed one with %.8x"
			return trailer{}, fmt.Errorf(differs, name, cms.HashName(a.hash.HashFunc()), digest, s.Sum)
		}
		if s := a.signatures[name]; s.Size != size {
			return trailer{}, fmt.Errorf("it has %d bytes, and its digest in the signatures says %d: they were changed", size, s.Size)
		}
	}
	return trailer{module.TypePKCS7, a.signatures[name].Message}, nil
}
