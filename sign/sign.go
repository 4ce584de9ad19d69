// Package sign turns kernel modules into signed ones: one, or the thousands of
// an installed tree in parallel.
//
// What it writes is what the kernel's scripts/sign-file writes, byte for byte:
// the module, a CMS message without certificates and attributes, and the
// trailer that the kernel looks for. Beyond that it takes old signatures off,
// signs inside compressed modules, compresses plain ones, keeps what a file has
// besides its content, and replaces a module whole or not at all.
//
// A [Signer] holds the key. [Open] takes hold of a tree, and the [Tree] that it
// returns signs, or takes signatures off; on the way it can take debug information
// out. Where the key is elsewhere, [Tree.Manifest], [Manifest.Sign] and [Tree.Attach]
// are the three steps. [Tree.Prove] puts a proof where a signature would be, for
// kernels that know their modules by a tree of hashes. The package asks nobody for keys and passphrases: see the
// package keygen, and any other crypto.Signer will do.
//
// It does not judge signatures: see the package verify.
//
// An error is nil only if all was done: a run in which modules failed ends with
// [ErrIncomplete], which wraps why the first ones did.
package sign

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/module"
)

// A Signer makes signatures of modules. It may be used by several goroutines at
// once if its key may.
type Signer struct {
	cms *cms.Signer
}

// NewSigner returns a Signer for a private key, RSA or ECDSA on P-256, P-384 or
// P-521, its certificate, and a hash: SHA-1, SHA-2 or SHA-3 as far as the kernel
// knows them. useKeyID names the certificate in the signature by its subject key
// identifier, as sign-file -k does, instead of by issuer and serial number. A
// key that is not the certificate's is an error.
func NewSigner(key crypto.Signer, cert *x509.Certificate, hash crypto.Hash, useKeyID bool) (*Signer, error) {
	if err := first(checkKey(key), checkCertificate(cert)); err != nil {
		return nil, err
	}
	c, err := cms.NewSigner(key, cert, hash, useKeyID)
	if err != nil {
		return nil, err
	}
	return &Signer{cms: c}, nil
}

// Sign reads a payload to its end and returns its detached signature: a CMS
// SignedData message in DER, which is what stands in an appended signature and
// in the .p7s files of sign-file -p.
func (s *Signer) Sign(payload io.Reader) ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if isNil(payload) {
		return nil, errors.New("no payload to sign is given")
	}
	h := s.cms.Hash().New()
	if _, err := copyBuffer(h, payload); err != nil {
		return nil, err
	}
	return s.cms.Sign(h.Sum(nil))
}

// A maker gives the signature of a module, of whose name in the tree and digest it
// is told: a Signer makes it.
type maker interface {
	begin(name string) hash.Hash
	signature(name string, digest []byte) ([]byte, error)
	kind() module.IDType
	byName() bool // another name has another digest, be it of the same file
}

// A digester makes none: the digests are what is wanted.
type digester struct {
	newHash func(name string) hash.Hash
	named   bool
}

func (d digester) begin(name string) hash.Hash { return orFailing(d.newHash(name)) }

func (d digester) signature(string, []byte) ([]byte, error) { return nil, nil }

func (d digester) kind() module.IDType { return module.TypePKCS7 }

func (d digester) byName() bool { return d.named }

func (s *Signer) hash() crypto.Hash { return s.cms.Hash() }

func (s *Signer) begin(string) hash.Hash { return s.cms.Hash().New() }

func (s *Signer) signature(_ string, digest []byte) ([]byte, error) { return s.cms.Sign(digest) }

func (s *Signer) kind() module.IDType { return module.TypePKCS7 }

func (s *Signer) byName() bool { return false }

// A Prover gives modules what stands in the place of a signature where a kernel
// knows its modules by their hashes: a proof, with which the hash of the module leads
// to the root of a tree of hashes.
type Prover interface {
	// NewHash begins the hash of the module of a name in the tree.
	NewHash(name string) hash.Hash
	// Proof returns the proof of the module of that name and hash, or why there is
	// none. It is called by several goroutines.
	Proof(name string, sum []byte) ([]byte, error)
}

// prover is the maker of a Prover.
type prover struct{ Prover }

func (p prover) begin(name string) hash.Hash { return orFailing(p.NewHash(name)) }

func (p prover) signature(name string, sum []byte) ([]byte, error) { return p.Proof(name, sum) }

func (p prover) kind() module.IDType { return module.TypeMerkle }

func (p prover) byName() bool { return true }

// Existing says what becomes of a module that is signed already.
type Existing uint8

const (
	Replace Existing = iota // all its signatures are taken off
	Skip                    // it stays as it is
	Refuse                  // it is an error
)

var existingNames = []string{"replace", "skip", "refuse"}

func (e Existing) String() string { return nameOf(e, existingNames) }

// ParseExisting reads replace, skip or refuse.
func ParseExisting(s string) (Existing, error) { return parse[Existing](s, existingNames) }

// Sync says when what was written has to be on disk.
type Sync uint8

const (
	SyncTree Sync = iota // all at once, when the last module is done: syncfs(2)
	SyncNone             // when the system sees fit
	SyncFile             // each module before it gets its name
)

var syncNames = []string{"tree", "none", "file"}

func (s Sync) String() string { return nameOf(s, syncNames) }

// ParseSync reads tree, none or file.
func ParseSync(s string) (Sync, error) { return parse[Sync](s, syncNames) }

// An OwnerError is why a module failed whose owner cannot be kept: see
// Options.NewOwner.
type OwnerError = atomicfile.OwnerError

// Format is how a module is compressed: None, Gzip, XZ or Zstd.
type Format = compress.Format

var formatNames = []string{compress.None.String(), compress.Gzip.String(), compress.XZ.String(), compress.Zstd.String()}

// ParseFormat reads none, gzip, xz or zstd, or gz or zst, as file names end.
func ParseFormat(s string) (Format, error) {
	for f := compress.Gzip; f <= compress.Zstd; f++ {
		if "."+s == f.Suffix() {
			return f, nil
		}
	}
	return parse[Format](s, formatNames)
}

func parse[T ~uint8](s string, names []string) (T, error) {
	for i, name := range names {
		if s == name {
			return T(i), nil
		}
	}
	return 0, fmt.Errorf("unknown value %q: it is one of %s", s, strings.Join(names, ", "))
}

// Options say how a tree is worked on. The zero value is for modules that are
// nowhere else.
//
// Extend is for copies that were just made, and can be made again: a plain module
// that is not signed stays the file that it is, and is made longer, which takes a
// fraction of the time that a new file takes; its attributes stay. A kill in that
// moment leaves a module with a signature that no kernel takes, and that the next
// run replaces. Where a Mode, SyncFile or a name outside of the tree wants a new
// file, it is a new file.
//
// StripDebug is for modules as the compiler leaves them. What SplitDebug takes out
// of them goes to SplitDebug/lib/modules/KVER/kernel/.../dummy.ko.debug, with a link
// to it from SplitDebug/.build-id, and the module gets a .gnu_debuglink: a debugger
// finds it where SplitDebug is /usr/lib/debug. Neither goes with Detached, and what
// is Skipped stays as it is.
type Options struct {
	Existing   Existing
	StripDebug bool   // take debug information out, as strip --strip-debug does
	SplitDebug string // and put it into debug files below this folder
	// StripProgram is called as strip --strip-debug for modules of a shape that
	// this package does not strip; if it is empty, they fail.
	StripProgram string
	Detached     bool         // write NAME.ko.p7s beside each module, and leave the module
	Mode         *fs.FileMode // of the files written, instead of the old ones'
	NewMTime     bool         // let the time of modification be the time of signing
	NewOwner     bool         // leave what is written to whoever runs this, without setuid and setgid bits, instead of to the old files' owners
	KeepXattrs   bool         // security.ima and security.evm too, although they attest the old bytes
	Sync         Sync
	Extend       bool  // append signatures to plain files themselves: see above
	Jobs         int   // modules worked on at once; 0 stands for twice the number of processors, as some wait for the disk
	Level        int   // of compression; 0 stands for the kernel's choice
	MaxSize      int64 // of a decompressed module in bytes; 0 stands for 2 GiB
	DryRun       bool  // look at everything, write nothing
	Report       Report
}

// Report is how a run tells what it does. The functions may be nil, and are
// called one at a time.
type Report struct {
	Progress func(done, total Count) // now and then
	Result   func(Result)            // once for each module, in the order of the input
}

// Count measures work.
type Count struct {
	Modules int
	Bytes   int64 // as the files lie on disk
}

// Action is what was done with a module.
type Action string

const (
	Signed   Action = "signed"
	Stripped Action = "stripped" // the signatures are off
	Digested Action = "digested" // nothing but its digest was wanted
	Skipped  Action = "skipped"  // it is as it was, where it was or as a copy in the output
	Failed   Action = "failed"
)

// Result is what became of one module.
type Result struct {
	Path      string // as it was found
	Name      string // its path in the tree, without a suffix of compression
	Output    string // what was written; empty when nothing was
	Action    Action
	Format    Format // as it was found
	Removed   int    // signatures taken off
	Payload   int64  // bytes that are signed
	Digest    []byte // of these bytes
	Signature int    // bytes of the CMS message
	Debug     int64  // bytes by which it is smaller without debug information
	DebugFile string // that was written
	ByProgram bool   // Options.StripProgram was needed
	LinkOf    string
	Duration  time.Duration
	Err       error // why it Failed
}

// Summary is what became of all modules of a run.
type Summary struct {
	Modules    int // all of them
	Signed     int
	Stripped   int
	Digested   int
	Skipped    int
	Failed     int
	Replaced   int   // had a signature that was taken off
	Stacked    int   // had more than one
	Debug      int   // lost their debug information
	DebugBytes int64 // of it
	DebugFiles int
	ByProgram  int // needed Options.StripProgram
	Renamed    int // have another name now, as they have another form
	Bytes      int64
	Duration   time.Duration
	Attested   int // lost security.ima or security.evm
	Elsewhere  int // names outside of the tree that keep the old module
	Completed  int // names that a killed run had left behind
	Links      Links
	Notes      []string // for people
}
