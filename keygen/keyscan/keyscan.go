// Package keyscan finds private keys in what is about to be shipped: the one-time key that
// a kernel's build left in its tree, the machine owner key of a builder, any other key.
//
// Make a [Scanner] with [New], give it trees ([Scanner.Tree]) and streams
// ([Scanner.File]), and read its [Report].
//
// # What it finds
//
// The content of a file decides, never its name. A label or a few first bytes are not
// enough: the structure behind them has to be that of a key. So a program that writes keys
// is none, and neither is an example in a document that shows a few characters and dots.
//
//   - PEM anywhere in a file, with any label that ends in PRIVATE KEY: PKCS #8, PKCS #1,
//     SEC 1, DSA, OpenSSH, OpenPGP, of any encryption; indented, in quotes, in a comment, with
//     "\n" for line breaks, in UTF-16, or in base64 once more, as in a Secret of Kubernetes.
//   - DER: PKCS #8 (RFC 5958), PKCS #1 (RFC 8017), SEC 1 (RFC 5915), the DSA form of OpenSSL.
//   - Stores: PKCS #12, JKS, JCEKS, BKS, key4.db and key3.db of NSS.
//   - OpenPGP packets, private-keys-v1.d of GnuPG, objects of SoftHSM's tokens, PuTTY keys.
//
// Files that are compressed with gzip, xz, zstd or bzip2 are looked into, except for kernel
// modules and other object files. So are packages (deb, RPM), tar and zip archives, container
// images with all their layers, initramfs images and unified kernel images.
//
// For a key that is not encrypted its public key is computed. If a certificate in the same
// tree, or one that a kernel image has built in ([Options.Kernels]), has that public key, the
// finding says so.
//
// # What it promises
//
// No error and no finding has a byte of a private key. Memory is bounded, whatever the
// files hold and however many they are. Only regular files are opened; no symbolic link
// below a tree is followed. What could not be looked at is in [Report.Failures].
package keyscan

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/vmlinux"
)

var (
	// ErrFound reports that there are private keys.
	ErrFound = errors.New("private keys found")
	// ErrIncomplete reports that something could not be looked at.
	ErrIncomplete = errors.New("not everything could be scanned")
	// ErrNothing reports that no file was looked at.
	ErrNothing = errors.New("no file to scan")
)

// The most of each that a [Report] holds; the rest is counted.
const (
	maxFindings     = 10_000
	maxFailures     = 1000
	maxCertificates = 100_000
)

// Options are the settings of a [Scanner]. The zero value scans everything.
type Options struct {
	// Jobs is the number of files that Tree reads at once; 0 is twice the processors.
	Jobs int
	// MaxSize is the most that a compressed file may have when decompressed, in bytes. What
	// is beyond it is not looked at, and the file is a failure. 0 means 2 GiB.
	MaxSize int64
	// Exclude are patterns of path.Match of what is not looked at. One with a slash is
	// compared with the path below the tree, any other with each name. A directory that
	// matches is left out as a whole.
	Exclude []string
	// Kernels are the paths of kernel images. Findings say which of them trust a key.
	Kernels []string
	// Progress, if it is not nil, is called now and then by one goroutine at a time, with
	// the numbers of files and bytes so far.
	Progress func(files int, bytes int64)
}

// A Finding is a private key, or something that looks like one and is harmless.
type Finding struct {
	Path string
	// Archive is the archive in which the file is, and Path its name there; empty for a file
	// of the tree. One archive in another is "INNER in OUTER".
	Archive string

	Line   int   // where the key begins in a text, from 1; 0 if it is not text
	Offset int64 // the same in bytes, of the decompressed file

	Form      string // such as "PEM, PKCS #8" or "PKCS #12"
	Algorithm string // such as "RSA 4096"; empty if the form does not tell
	// KeyID is the subject key identifier that certificates of this key have by RFC 5280,
	// 4.2.1.2 (1), in hexadecimal; empty if the public key cannot be computed.
	KeyID     string
	Encrypted bool // a passphrase is needed to use the key
	Damaged   bool // the key is cut off or has a part that is wrong

	Mode fs.FileMode // of the file, or 0 if there is none
	// Origin is what leaves such a file where it was found, such as "the key of a kernel's
	// build"; empty if the path does not tell.
	Origin string
	// Harmless is why this is no leak; empty if it is one.
	Harmless string

	// Certificate is the subject of a certificate of this key among the scanned files, and
	// CertificatePath its file.
	Certificate, CertificatePath string
	// Kernels are those of Options.Kernels that have a certificate of this key built in.
	Kernels []string

	public []byte
}

// Name is what messages call the file: its path, and the archive if there is one.
func (f *Finding) Name() string { return in(f.Path, f.Archive) }

// Readers says who else than the owner can read the file: "", "group" or "others".
func (f *Finding) Readers() string {
	switch {
	case f.Mode&0o004 != 0:
		return "others"
	case f.Mode&0o040 != 0:
		return "group"
	}
	return ""
}

// A Failure is a file or a directory that could not be looked at, or not as a whole.
type Failure struct {
	Path, Archive string // as in a Finding
	Err           error
}

// Name is what messages call the file: its path, and the archive if there is one.
func (f *Failure) Name() string { return in(f.Path, f.Archive) }

// A Report is what a [Scanner] has found. Its lists are sorted by path.
type Report struct {
	Findings []Finding
	Failures []Failure
	// Omitted is the number of findings, and MoreFailures that of failures, beyond those in
	// the lists. A file with more than 100 keys is left at the next one.
	Omitted, MoreFailures int

	Files        int      // looked at
	Bytes        int64    // read, of decompressed files the decompressed
	Links        int      // symbolic links, none of which was followed
	Special      int      // FIFOs, devices and sockets, none of which was opened
	Excluded     int      // files and directories that a pattern excludes
	Unused       []string // patterns that excluded nothing
	Systems      []string // directories such as /proc, whose files are made by the kernel: not read
	Modules      int      // compressed ELF object files, such as kernel modules: not decompressed
	Certificates int      // different certificates that were found
}

// Leaks returns the number of findings that are no harmless ones.
func (r *Report) Leaks() int {
	n := r.Omitted
	for _, f := range r.Findings {
		if f.Harmless == "" {
			n++
		}
	}
	return n
}

// Err returns [ErrFound], or else [ErrIncomplete], or else [ErrNothing], or nil if all files
// were looked at and hold no private key.
func (r *Report) Err() error {
	switch {
	case r.Leaks() > 0:
		return ErrFound
	case len(r.Failures) > 0:
		return ErrIncomplete
	case r.Files == 0:
		return ErrNothing
	}
	return nil
}

// A Scanner looks for private keys. Its methods are safe for concurrent use.
type Scanner struct {
	options  Options
	kernels  map[fingerprint][]string
	buffers  sync.Pool
	files    atomic.Int64
	bytes    atomic.Int64
	modules  atomic.Int64
	progress sync.Mutex
	memory   chan struct{} // held by who has an archive in memory

	mu       sync.Mutex
	report   Report
	certs    map[fingerprint]certificate
	excluded []bool // by pattern
}

// PatternError reports a pattern of [Options.Exclude] that path.Match does not take.
type PatternError struct{ Pattern string }

func (e *PatternError) Error() string { return fmt.Sprintf("invalid pattern %q", e.Pattern) }

// A fingerprint stands for a public key.
type fingerprint [sha256.Size]byte

type certificate struct{ subject, path string }

// New returns a Scanner. The error is that of a pattern or a kernel image: one that cannot
// be read, or that has no certificate built in.
func New(o Options) (*Scanner, error) {
	if o.MaxSize <= 0 {
		o.MaxSize = 2 << 30
	}
	for _, pattern := range o.Exclude {
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, &PatternError{pattern}
		}
	}
	s := &Scanner{
		options: o, kernels: make(map[fingerprint][]string), certs: make(map[fingerprint]certificate),
		excluded: make([]bool, len(o.Exclude)), memory: make(chan struct{}, 1),
	}
	s.buffers.New = func() any { return new([window]byte) }
	for _, image := range o.Kernels {
		if err := s.trust(image); err != nil {
			return nil, fmt.Errorf("%s: %w", image, withoutPath(image, err))
		}
	}
	return s, nil
}

// withoutPath returns what a PathError of that path says.
func withoutPath(name string, err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok && p.Path == name {
		return p.Err
	}
	return err
}

// trust reads the certificates of a kernel image.
func (s *Scanner) trust(image string) error {
	kernel, err := vmlinux.Open(image)
	if err != nil {
		return err
	}
	defer kernel.Close()
	certs, err := kernel.Certificates()
	if err != nil {
		return err
	}
	s.eachCertificate(certs.Builtin, func(public fingerprint, _ string) {
		if !slices.Contains(s.kernels[public], image) {
			s.kernels[public] = append(s.kernels[public], image)
		}
	})
	return nil
}

// eachCertificate reads certificates in DER, one behind the other.
func (s *Scanner) eachCertificate(der []byte, each func(public fingerprint, subject string)) {
	for {
		rest := cryptobyte.String(der)
		var whole cryptobyte.String
		if !rest.ReadASN1Element(&whole, cbasn1.SEQUENCE) {
			return
		}
		cert, err := cms.ParseX509(whole)
		if err != nil {
			return
		}
		if public, ok := publicOf(cert.RawSubjectPublicKeyInfo); ok {
			each(public, cert.Subject.String())
		}
		der = rest
	}
}

// publicOf reads a SubjectPublicKeyInfo.
func publicOf(info []byte) (fingerprint, bool) {
	s := cryptobyte.String(info)
	var bits []byte
	if !s.ReadASN1(&s, cbasn1.SEQUENCE) || !s.SkipASN1(cbasn1.SEQUENCE) || !s.ReadASN1BitStringAsBytes(&bits) {
		return fingerprint{}, false
	}
	return sha256.Sum256(bits), true
}

// File looks for keys in a stream, such as a file of an archive. The name and the mode are
// for the report. The error is that of the stream, or of a compressed stream or an archive
// in it; what was found before it counts.
func (s *Scanner) File(ctx context.Context, name string, mode fs.FileMode, r io.Reader) error {
	s.files.Add(1)
	f := newFile(name, math.MaxInt64) // of a stream nobody knows the size
	f.mode = mode.Perm()
	return s.look(ctx, f, &stream{rest: r}, 0)
}

// file is what the report says of a file.
type file struct {
	path, archive string
	mode          fs.FileMode
	count         int    // of its findings
	budget        *int64 // bytes that may still be read, of it and of what is in it
	held          int64  // bytes of the archives around it that are in memory
	// again is set while the bytes of a file are looked at that failed as an archive or a
	// compressed file, and seen are the public keys that were found in it before.
	again bool
	seen  map[fingerprint]bool
}

// newFile returns a file of which, with all that is in it, that many bytes may be read.
func newFile(path string, budget int64) *file {
	return &file{path: path, budget: &budget, seen: make(map[fingerprint]bool)}
}

func (f *file) name() string { return in(f.path, f.archive) }

// in names a file, and the archive in which it is.
func in(path, archive string) string {
	if archive == "" {
		return path
	}
	return path + " in " + archive
}

// maxPerFile bounds the findings in one file, after which the file is left.
const maxPerFile = 100

// add puts a key into the report. It returns false if the file has had enough of them.
func (s *Scanner) add(f *file, k key, line int, offset int64) bool {
	found := Finding{
		Path: f.path, Archive: f.archive, Line: line, Offset: offset, Form: k.form, Algorithm: k.algorithm,
		Encrypted: k.encrypted, Damaged: k.damaged, Mode: f.mode, Origin: origin(f.path), Harmless: k.bound, public: k.public,
	}
	if k.pem && k.form != "PEM" {
		found.Form = "PEM, " + k.form
	}
	if k.public != nil {
		public := fingerprint(sha256.Sum256(k.public))
		if f.again && f.seen[public] {
			return true
		}
		f.seen[public] = true
		id := sha1.Sum(k.public)
		found.KeyID = hex.EncodeToString(id[:])
	}
	f.count++
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.count > maxPerFile || len(s.report.Findings) >= maxFindings {
		s.report.Omitted++
		return f.count <= maxPerFile
	}
	s.report.Findings = append(s.report.Findings, found)
	return true
}

// fail puts a failure into the report.
func (s *Scanner) fail(f *file, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.report.Failures) >= maxFailures {
		s.report.MoreFailures++
		return
	}
	s.report.Failures = append(s.report.Failures, Failure{f.path, f.archive, withoutPath(f.path, err)})
}

// addCertificate remembers the certificate of a public key; of several the one with the
// first path.
func (s *Scanner) addCertificate(public fingerprint, c certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, known := s.certs[public]
	if known && old.path <= c.path || !known && len(s.certs) >= maxCertificates {
		return
	}
	s.certs[public] = c
}

// Report returns what was found so far.
func (s *Scanner) Report() *Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.report
	r.Files, r.Bytes, r.Certificates = int(s.files.Load()), s.bytes.Load(), len(s.certs)
	r.Modules = int(s.modules.Load())
	r.Findings, r.Failures, r.Systems = slices.Clone(r.Findings), slices.Clone(r.Failures), slices.Clone(r.Systems)
	for i := range r.Findings {
		f := &r.Findings[i]
		if f.public == nil {
			continue
		}
		public := fingerprint(sha256.Sum256(f.public))
		f.Certificate, f.CertificatePath = s.certs[public].subject, s.certs[public].path
		f.Kernels = s.kernels[public]
	}
	for i, used := range s.excluded {
		if !used {
			r.Unused = append(r.Unused, s.options.Exclude[i])
		}
	}
	slices.SortFunc(r.Findings, func(a, b Finding) int {
		return cmp.Or(
			cmp.Compare(cmp.Or(a.Archive, a.Path), cmp.Or(b.Archive, b.Path)),
			cmp.Compare(a.Path, b.Path), cmp.Compare(a.Offset, b.Offset))
	})
	slices.SortFunc(r.Failures, func(a, b Failure) int {
		return cmp.Or(
			cmp.Compare(cmp.Or(a.Archive, a.Path), cmp.Or(b.Archive, b.Path)), cmp.Compare(a.Path, b.Path))
	})
	slices.Sort(r.Systems)
	return &r
}

// origins are the files that builds are known to leave, by the end of their path. The
// pattern is one of path.Match for that many last names.
var origins = []struct{ pattern, origin string }{
	{"certs/signing_key.pem", "the key that a kernel's build makes"},
	{"certs/signing_key.priv", "the key that a kernel's build makes"},
	{"certs-local/*", "the key of Arch-SKM"},
	{"certs-local/*/*", "the key of Arch-SKM"},
	{"akmods/private/*", "the key of akmods"},
	{"private_key.priv", "the key of akmods"},
	{"dkms/mok.key", "the machine owner key of DKMS"},
	{"mok/MOK.priv", "the machine owner key of shim-signed"},
	{"ssh/ssh_host_*_key", "a host key of SSH"},
	{"private-keys-v1.d/*", "a key of GnuPG's agent"},
}

// origin says what leaves a private key at that path.
func origin(name string) string {
	names := strings.Split(name, "/")
	for _, o := range origins {
		n := strings.Count(o.pattern, "/") + 1
		if n > len(names) {
			continue
		}
		if ok, _ := path.Match(o.pattern, strings.Join(names[len(names)-n:], "/")); ok {
			return o.origin
		}
	}
	return ""
}

// lineAt returns the number of the line at an offset of a text, from 1, or 0 in a binary.
func lineAt(data []byte, at int) int {
	if !isText(data) {
		return 0
	}
	return 1 + bytes.Count(data[:at], []byte("\n"))
}
