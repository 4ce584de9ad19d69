// Package manifest reads and writes the two files of signing in two phases: a [Manifest]
// carries the digests of a tree's modules to where the key is, and [Signatures] come back.
//
// [Read] and [ReadSignatures] parse the files; the Write methods make them. To take the
// digests, sign them and attach the signatures, see sign.Tree.Manifest,
// sign.Signer.SignManifest and sign.Tree.Attach.
//
// docs/manifest.md describes both files byte for byte. There is one way to write a file,
// and the readers reject any other: white space, another order of members, a needless
// escape. Whoever signs what a file says must not read it differently from its writer.
package manifest

import (
	"crypto"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/module"
)

// Digest is what is to be signed of one module.
type Digest struct {
	Path string      // in its tree, without a compression suffix
	Size int64       // bytes of the payload
	Hash crypto.Hash // the same for all modules of a file
	Sum  []byte      // of the payload
	// Key is the SHA-256 of the SubjectPublicKeyInfo (RFC 5280, 4.1) of the key that signs,
	// if the digest is mu of ML-DSA, which depends on the key. It is the same for all
	// modules of a file, and nil with other hashes.
	Key []byte
}

// Manifest is what is to be signed of a tree.
type Manifest []Digest

// Signature is a digest with its signature.
type Signature struct {
	Digest
	Message []byte // CMS, as in a .p7s file
	Source  string // the file that the message was found in, if it has one; no file holds this
}

// Signatures are a [Manifest] with the signatures.
type Signatures []Signature

const (
	manifestKind   = "manifest"
	signaturesKind = "signatures"

	// The versions of both files: 2 is for digests that depend on the key.
	plainVersion = 1
	keyedVersion = 2

	// A path at its longest, each character escaped, and the largest message that the
	// kernel accepts in base64 are less.
	maxLine = 128 << 10
	maxFile = 256 << 20 // so that nobody fills the memory of a signer
)

// Write writes the file. It sorts the modules; two modules with one path are an error, as
// is what the format cannot hold.
func (m Manifest) Write(w io.Writer) error {
	return writeLines(w, manifestKind, m, func(d *Digest) (*Digest, []byte) { return d, nil })
}

// WriteFile writes the whole file, and replaces an old one.
func (m Manifest) WriteFile(name string) error { return writeWhole(name, m.Write) }

// Write writes the file, as [Manifest.Write] does.
func (s Signatures) Write(w io.Writer) error {
	return writeLines(w, signaturesKind, s, func(s *Signature) (*Digest, []byte) { return &s.Digest, s.Message })
}

// WriteFile writes the whole file, and replaces an old one.
func (s Signatures) WriteFile(name string) error { return writeWhole(name, s.Write) }

// Read reads what [Manifest.Write] has written, and nothing else. A file that is cut off,
// or in which a line is missing, doubled, moved or changed, is an error that gives the
// number of the line.
func Read(r io.Reader) (Manifest, error) {
	var m Manifest
	err := readLines(r, manifestKind, func(d Digest, _ []byte) { m = append(m, d) })
	if err != nil {
		return nil, err
	}
	return m, nil
}

// ReadSignatures reads what [Signatures.Write] has written, as [Read] does. It does not
// verify the signatures: sign.NewAttachment does.
func ReadSignatures(r io.Reader) (Signatures, error) {
	var s Signatures
	err := readLines(r, signaturesKind, func(d Digest, message []byte) {
		s = append(s, Signature{Digest: d, Message: message})
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Check returns an error if the format cannot hold a digest.
func (d *Digest) Check() error {
	if err := module.CheckPath(d.Path); err != nil {
		return err
	}
	switch name := cms.HashName(d.Hash); {
	case d.Size <= 0:
		return fmt.Errorf("size %d", d.Size)
	case !known(name):
		return fmt.Errorf("hash %q does not sign modules", name)
	case len(d.Sum) != cms.DigestSize(d.Hash):
		return fmt.Errorf("digest of %d bytes, %s has %d", len(d.Sum), name, cms.DigestSize(d.Hash))
	case cms.IsMu(d.Hash) && len(d.Key) != sha256.Size:
		return fmt.Errorf("%s depends on the key, and no key is named", name)
	case !cms.IsMu(d.Hash) && d.Key != nil:
		return fmt.Errorf("%s does not depend on a key, and one is named", name)
	}
	return nil
}

// known reports whether a name is that of a hash for modules, as CONFIG_MODULE_SIG_HASH
// spells it.
func known(name string) bool {
	_, err := cms.DigestByName(name)
	return err == nil
}
