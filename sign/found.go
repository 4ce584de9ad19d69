package sign

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/siglayout"
	"github.com/modsign/modsign/sign/manifest"
)

// Layout is the arrangement of signatures in files.
type Layout uint8

const (
	// P7S is NAME.ko.p7s with a CMS message, as sign-file -d and Options.Detached write it.
	P7S Layout = iota
	// Debian is the layout of Debian's code signing: files.json, which lists what was to
	// be signed, and messages in signatures/PACKAGE/PATH.sig.
	Debian
	// Raw is NAME.ko.sig with the bare value of an RSA signature (PKCS #1 v1.5), as the
	// signing server of the Open Build Service returns it.
	Raw
)

var layoutNames = []string{"p7s", "debian", "raw"}

// String returns p7s, debian or raw.
func (l Layout) String() string { return nameOf(l, layoutNames) }

// ParseLayout returns the Layout of a name: p7s, debian or raw.
func ParseLayout(s string) (Layout, error) { return parse[Layout](s, layoutNames) }

// FoundSignatures names the files with signatures.
type FoundSignatures struct {
	Layout Layout
	// Dir is the directory of the files. P7S and Raw name them by the paths of the modules
	// in the tree. If it is empty, the files are beside the modules; Debian needs it.
	Dir string
	// UseKeyID names the certificate by its subject key identifier in the messages that
	// are built around Raw signatures.
	UseKeyID bool
	// Note, if it is not nil, is told what is skipped.
	Note func(string)
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

// FindSignatures reads the modules of a tree and the signatures that lie in files, for
// [NewAttachment]. A module without a file, a file without a module, and a file without a
// signature are refused with a [*RefusedError].
func (t *Tree) FindSignatures(
	ctx context.Context, cert *x509.Certificate, from FoundSignatures, opts ReadOptions,
) (manifest.Signatures, error) {
	if err := first(t.check(), checkCertificate(cert), from.check(), opts.check()); err != nil {
		return nil, err
	}
	if _, err := t.names(); err != nil {
		return nil, err
	}
	c, err := cms.ParseCertificate(cert.Raw)
	if err != nil {
		return nil, fmt.Errorf("the kernel cannot use the certificate: %w", err)
	}
	if _, isRSA := c.PublicKey.(*rsa.PublicKey); from.Layout == Raw && !isRSA && c.Mu() == nil {
		return nil, fmt.Errorf("raw signatures are RSA or ML-DSA, and the certificate's key is %s", c.KeyAlgorithm)
	}
	paths, err := t.signatureFiles(cert, &from)
	if err != nil {
		return nil, err
	}
	content, name, err := readFound(ctx, cert, from.Layout, paths)
	if err != nil {
		return nil, err
	}
	hash, err := hashOf(c, name)
	if err != nil {
		return nil, err
	}
	m, err := t.Manifest(ctx, hash, opts)
	if err != nil {
		return nil, err
	}
	of := make(map[string]int)
	for i, e := range t.entries {
		of[module.BaseName(e.Rel)] = i
	}
	found := make(manifest.Signatures, len(m))
	err = each(ctx, len(m), func(i int) (err error) {
		k := of[m[i].Path]
		found[i] = manifest.Signature{Digest: m[i], Message: content[k], Source: paths[k]}
		if from.Layout == Raw {
			if found[i].Message, err = cms.Wrap(cert, hash, from.UseKeyID, m[i].Sum, content[k]); err != nil {
				return fmt.Errorf("%s: %w", paths[k], err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// signatureFiles finds the file of each module's signature.
func (t *Tree) signatureFiles(cert *x509.Certificate, from *FoundSignatures) ([]string, error) {
	tree := siglayout.Tree{Roots: t.source.Roots, Modules: t.entries}
	var files *siglayout.Files
	var err error
	switch from.Layout {
	case P7S:
		files, err = tree.Suffixed(from.Dir, ".p7s")
	case Debian:
		files, err = tree.Debian(from.Dir, cert.Raw, from.Note)
	case Raw:
		files, err = tree.Suffixed(from.Dir, ".sig")
	}
	if err != nil {
		return nil, err
	}
	return files.Paths, refusals(files.Refused)
}

// readFound reads the files, and returns the hash that all of them use.
func readFound(
	ctx context.Context, cert *x509.Certificate, layout Layout, paths []string,
) (content [][]byte, hash crypto.Hash, err error) {
	content = make([][]byte, len(paths))
	hashes := make([]crypto.Hash, len(paths))
	err = each(ctx, len(paths), func(i int) (err error) {
		if content[i], err = siglayout.ReadFile(paths[i], cms.MaxSize); err != nil {
			return err
		}
		if layout == Raw {
			hashes[i], err = cms.RawHash(cert, content[i])
		} else {
			hashes[i], err = messageHash(content[i])
		}
		if err != nil {
			return fmt.Errorf("%s: %w", paths[i], err)
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	for i, hash := range hashes {
		if hash != hashes[0] {
			return nil, 0, fmt.Errorf("%s uses %s, and %s uses %s: all need the same hash",
				paths[i], cms.HashName(hash), paths[0], cms.HashName(hashes[0]))
		}
	}
	return content, hashes[0], nil
}

// messageHash is what a message signs.
func messageHash(message []byte) (crypto.Hash, error) {
	m, err := cms.Parse(message)
	if err != nil {
		return 0, fmt.Errorf("not a signature that the kernel reads: %w", err)
	}
	if err := oneSigner(m); err != nil {
		return 0, err
	}
	return m.Signers[0].Digest(), nil
}
