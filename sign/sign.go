// Package sign signs Linux kernel modules: one, or the thousands of an installed
// tree in parallel.
//
// Call [NewSigner] with a private key and its certificate, [Open] with the
// directories that hold the modules, and [Tree.Sign]:
//
//	signer, err := sign.NewSigner(key, cert, sign.SignerOptions{})
//	...
//	tree, err := sign.Open(ctx, sign.Source{Roots: []string{"/lib/modules/6.12.0"}})
//	...
//	defer tree.Close()
//	summary, err := tree.Sign(ctx, signer, sign.Options{})
//
// The package writes, byte for byte, what the kernel's scripts/sign-file writes: the
// module, a CMS message without certificates and signed attributes, and the trailer
// that the kernel looks for. It also removes old signatures, signs inside compressed
// modules, compresses plain ones, and keeps mode, owner, times, hard links and
// extended attributes. A module is replaced whole or not at all.
//
// Other work on a tree: [Tree.RemoveSignatures]; [Tree.StripDebug] for debug
// information; [Tree.Prove] for kernels that check modules against a tree of hashes.
// Where the key is on another machine, [Tree.Manifest], [Signer.SignManifest] and
// [Tree.Attach] sign in three steps. [File] does what scripts/sign-file does. A policy of
// package sign/policy says what may be signed.
//
// The package never prompts: load a key with package keygen, or pass any
// crypto.Signer. It does not judge signatures: package verify does.
//
// A nil error means that every module was processed. If modules failed, the
// error wraps [ErrIncomplete] and the reasons of the first ones.
package sign

import (
	"cmp"
	"crypto"
	"crypto/x509"
	"errors"
	"hash"
	"io"
	"runtime"
	"slices"

	"github.com/modsign/modsign/internal/batch"
	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/module"
)

// A Signer signs modules. Several goroutines may use it at once if its key allows that.
type Signer struct {
	cms    []*cms.Signer // several are those of JoinSigners
	hashes []Hash        // of them, each once
	// batch is how many signatures the key makes at once in the time of one, or 0.
	batch int
}

// SignerOptions choose the form of signatures. The zero value is the form that a
// kernel's build uses by default.
type SignerOptions struct {
	// Hash is SHA-1, or one of SHA-2 and SHA-3 that the kernel verifies. 0 stands for
	// SHA-512. A signature of ML-DSA names it, and is for the module itself.
	Hash crypto.Hash
	// UseKeyID names the certificate by its subject key identifier, as sign-file -k
	// does, instead of by issuer and serial number.
	UseKeyID bool
	// Attributes signs the module's SHA-512 in signed attributes, with ML-DSA alone, as
	// sign-file does with OpenSSL 3.5 and 3.6. Only a kernel with
	// CONFIG_PKCS7_WAIVE_AUTHATTRS_REJECTION_FOR_MLDSA takes that.
	Attributes bool
}

// form is that of the messages.
func (o SignerOptions) form() cms.Form {
	return cms.Form{UseKeyID: o.UseKeyID, Attributes: o.Attributes}
}

// A Hash makes the digests of payloads that are signed. A crypto.Hash is one, and [HashOf]
// returns one for keys that sign another digest.
type Hash interface {
	crypto.SignerOpts
	New() hash.Hash
}

// HashOf returns the Hash for the signatures of a certificate's key: that of opts, or for a
// key of ML-DSA without attributes, mu (FIPS 204, algorithm 7), which depends on the key.
func HashOf(cert *x509.Certificate, opts SignerOptions) (Hash, error) {
	if err := checkCertificate(cert); err != nil {
		return nil, err
	}
	return cms.HashOf(cert, cmp.Or(opts.Hash, crypto.SHA512), opts.form())
}

// Hash returns what the Signer signs of a module: a hash, or mu. Of several signers, it is
// that of the first.
func (s *Signer) Hash() crypto.Hash {
	if s.check() != nil {
		return 0
	}
	return s.hashes[0].HashFunc()
}

// NewSigner returns a Signer for a private key, RSA, ECDSA on P-256, P-384 or P-521, or
// ML-DSA, and its certificate. A key that does not belong to the certificate is an error. What the
// key returns is not checked: package verify tells whether a signature is good. A key with a
// method BatchSize() int makes so many signatures in the time of one, for callers of Sign
// that wait at the same time: by default, more modules are processed at once then.
func NewSigner(key crypto.Signer, cert *x509.Certificate, opts SignerOptions) (*Signer, error) {
	if err := first(checkKey(key), checkCertificate(cert)); err != nil {
		return nil, err
	}
	c, err := cms.NewSigner(key, cert, cmp.Or(opts.Hash, crypto.SHA512), opts.form())
	if err != nil {
		return nil, err
	}
	s := &Signer{cms: []*cms.Signer{c}, hashes: []Hash{c.Hash()}}
	if key, ok := key.(interface{ BatchSize() int }); ok {
		s.batch = key.BatchSize()
	}
	return s, nil
}

// JoinSigners returns a Signer that makes one message with the signatures of all signers,
// which sign-file cannot do. A kernel that trusts one of them loads the module, unless it
// has revoked another one. All signers have to name their certificates in the same way, and
// each certificate may occur once. The hashes may differ.
func JoinSigners(signers ...*Signer) (*Signer, error) {
	joined := new(Signer)
	for _, s := range signers {
		if err := s.check(); err != nil {
			return nil, err
		}
		joined.cms = append(joined.cms, s.cms...)
		for _, h := range s.hashes {
			if !slices.Contains(joined.hashes, h) {
				joined.hashes = append(joined.hashes, h)
			}
		}
		joined.batch = max(joined.batch, s.batch)
	}
	if err := joined.check(); err != nil {
		return nil, err
	}
	draft, err := joined.draft()
	if err != nil {
		return nil, err
	}
	if m, err := cms.Parse(draft); err != nil || len(m.Signers) < len(joined.cms) {
		return nil, errors.New("a certificate occurs twice among the signers")
	}
	return joined, nil
}

// A Subject is what a signature is for. It is the crypto.SignerOpts with which a [Signer]
// calls its key, so that a key can tell a signing service about the module, keep a record,
// or refuse.
type Subject struct {
	Hash crypto.Hash
	Path string // of the module in its tree, without a compression suffix; may be empty
	Size int64  // bytes of the payload
}

// HashFunc returns the hash of the digest.
func (s *Subject) HashFunc() crypto.Hash { return s.Hash }

// Module returns the path and the size, for keys in packages that do not know this one.
func (s *Subject) Module() (path string, size int64) { return s.Path, s.Size }

// Sign reads a payload to its end and returns its detached signature: a CMS
// SignedData message in DER, as in an appended signature and in the .p7s files of
// sign-file -p.
func (s *Signer) Sign(payload io.Reader) ([]byte, error) { return s.signAs("", payload) }

// signAs is Sign for a payload with a name.
func (s *Signer) signAs(name string, payload io.Reader) ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if isNil(payload) {
		return nil, errors.New("no payload to sign is given")
	}
	hashes := s.newHashes()
	size, err := module.Copy(tee(hashes, nil), payload)
	if err != nil {
		return nil, err
	}
	return s.signDigests(name, size, sums(hashes))
}

// newHashes begins the digests for signDigests.
func (s *Signer) newHashes() []hash.Hash {
	var begun []hash.Hash
	for _, h := range s.hashes {
		begun = append(begun, h.New())
	}
	return begun
}

// signDigests returns the message for a payload with digests of hashes.
func (s *Signer) signDigests(path string, size int64, digests [][]byte) ([]byte, error) {
	return s.join(func(c *cms.Signer) ([]byte, error) {
		digest := digests[slices.Index(s.hashes, Hash(c.Hash()))]
		return c.Sign(digest, &Subject{Hash: c.Hash().HashFunc(), Path: path, Size: size})
	})
}

// join makes one message of those of all signers.
func (s *Signer) join(each func(*cms.Signer) ([]byte, error)) ([]byte, error) {
	var joined []byte
	for i, c := range s.cms {
		message, err := each(c)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			joined = message
		} else if joined, err = addSigners(joined, message); err != nil {
			return nil, err
		}
	}
	return joined, nil
}

// Draft returns a message as the Signer makes, with zeros for the signatures: enough to ask
// whether a kernel can read it.
func (s *Signer) Draft() ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	return s.draft()
}

// draft returns a message as the Signer makes, with zeros for signatures. No message of the
// Signer is longer.
func (s *Signer) draft() ([]byte, error) {
	return s.join(func(c *cms.Signer) ([]byte, error) { return c.Draft(), nil })
}

// addSigners adds the signers of one message to another one.
func addSigners(message, added []byte) ([]byte, error) {
	m, err := cms.Parse(message)
	if err != nil {
		return nil, err
	}
	a, err := cms.Parse(added)
	if err != nil {
		return nil, err
	}
	return m.Add(a)
}

// jobs returns how many signatures to make at once if the caller asks for n. A key that
// takes fewer calls at once lets the others wait.
func (s *Signer) jobs(n int) int {
	if n > 0 {
		return n
	}
	return batch.Filling(runtime.GOMAXPROCS(0), s.batch)
}

// check returns an error for a Signer that NewSigner did not make.
func (s *Signer) check() error {
	if s == nil || len(s.cms) == 0 {
		return errors.New("nothing to sign with: NewSigner makes a Signer")
	}
	return nil
}

// ParseHash returns the hash of a name, as CONFIG_MODULE_SIG_HASH spells it (sha512,
// sha3-256) or as OpenSSL does (SHA2-512, RSA-SHA512). A hash with which the kernel
// verifies no module is an error.
func ParseHash(name string) (crypto.Hash, error) { return cms.HashByName(name) }

// HashName returns the name of a hash as CONFIG_MODULE_SIG_HASH spells it, or that of mu as
// manifests do: mldsa65-mu.
func HashName(h crypto.Hash) string { return cms.HashName(h) }
