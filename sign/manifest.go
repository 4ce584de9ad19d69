package sign

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/batch"
	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/module"
)

// Signing in two phases: a [Manifest] has the digests of a tree's modules and goes
// to where the key is, [Signatures] come back, and [Tree.Attach] puts them on the
// modules. docs/manifest.md describes both files byte for byte.
//
// There is one way to write a file, and another is refused: white space, another
// order of members, an escape that need not be. Who signs what a file says must not
// read it differently from who wrote it.

// Digest is what is to be signed of one module.
type Digest struct {
	Path string      // its Result.Name
	Size int64       // of the payload
	Hash crypto.Hash // the same for all modules of a file
	Sum  []byte      // of the payload
}

// Manifest is what is to be signed of a tree.
type Manifest []Digest

// Signature is a digest with its signature.
type Signature struct {
	Digest
	Message []byte // CMS, as in a .p7s file
	file    string // where it was, if it was in one of its own
}

// Signatures are what became of a [Manifest] where the key is.
type Signatures []Signature

const (
	manifestKind   = "manifest"
	signaturesKind = "signatures"
	fileVersion    = 1

	// A path at its longest, each character escaped, and the largest message that the
	// kernel takes in base64 are less.
	maxLine = 128 << 10
	maxPath = 4096      // PATH_MAX
	maxFile = 256 << 20 // so that nobody fills the memory of who signs
)

// Write writes the file. The order of m does not matter; two modules of one path
// are an error, as is what the format cannot hold.
func (m Manifest) Write(w io.Writer) error {
	return writeLines(w, manifestKind, m, func(d *Digest) (*Digest, []byte) { return d, nil })
}

// WriteFile writes the file whole, in the place of what may be there.
func (m Manifest) WriteFile(name string) error { return writeWhole(name, m.Write) }

// Write writes the file, as [Manifest.Write] does.
func (s Signatures) Write(w io.Writer) error {
	return writeLines(w, signaturesKind, s, func(s *Signature) (*Digest, []byte) { return &s.Digest, s.Message })
}

// WriteFile writes the file whole, in the place of what may be there.
func (s Signatures) WriteFile(name string) error { return writeWhole(name, s.Write) }

// ReadManifest reads what [Manifest.Write] has written, and nothing else: a file
// that is cut off, or of which a line is missing, doubled, moved or changed, is an
// error that says in which line.
func ReadManifest(r io.Reader) (Manifest, error) {
	var m Manifest
	err := readLines(r, manifestKind, func(d Digest, _ []byte) { m = append(m, d) })
	if err != nil {
		return nil, err
	}
	return m, nil
}

// ReadSignatures reads what [Signatures.Write] has written, as [ReadManifest] does.
// Whether the signatures are good is for [NewAttachment] to say.
func ReadSignatures(r io.Reader) (Signatures, error) {
	var s Signatures
	err := readLines(r, signaturesKind, func(d Digest, message []byte) { s = append(s, Signature{Digest: d, Message: message}) })
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Manifest reads every module, as Digest does, and returns what is to be signed. Where
// a module fails there is none, and the error is [ErrIncomplete]: a manifest without it
// would be signed, and be missed only when the key is far away. Two modules with the same path in their
// trees are one as well.
func (t *Tree) Manifest(ctx context.Context, hash crypto.Hash, opts Options) (Manifest, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	if _, err := t.names(); err != nil {
		return nil, err
	}
	m := make(Manifest, 0, len(t.entries))
	report := opts.Report.Result
	opts.Report.Result = func(r Result) {
		if r.Err == nil {
			m = append(m, Digest{r.Name, r.Payload, hash, r.Digest})
		}
		if report != nil {
			report(r)
		}
	}
	if _, err := t.Digest(ctx, hash, opts); err != nil {
		return nil, err
	}
	slices.SortFunc(m, func(a, b Digest) int { return strings.Compare(a.Path, b.Path) })
	for _, d := range m {
		if err := d.check(); err != nil {
			return nil, fmt.Errorf("%q cannot stand in a manifest: %w", d.Path, err)
		}
	}
	return m, nil
}

// names finds the path of the file of each module of the tree.
func (t *Tree) names() (map[string]string, error) {
	names := make(map[string]string, len(t.entries))
	for _, e := range t.entries {
		name := module.BaseName(e.Rel)
		if other, ok := names[name]; ok {
			return nil, fmt.Errorf("%s and %s would both be called %s: give the folder above them, or remove what is out of date", other, e.Path, name)
		}
		names[name] = e.Path
	}
	return names, nil
}

// Sign signs every digest, in parallel, and returns the signatures in the order of
// m. Of opts it takes Jobs and Report.Progress.
func (m Manifest) Sign(ctx context.Context, signer *Signer, opts Options) (Signatures, error) {
	if err := first(signer.check(), opts.check()); err != nil {
		return nil, err
	}
	if len(m) == 0 {
		return nil, errors.New("there is no module to sign")
	}
	signed := make(Signatures, len(m))
	var mu sync.Mutex
	done := 0
	err := batch.Each(ctx, len(m), opts.Jobs, func(i int) error {
		d := m[i]
		if d.Hash != signer.hash() {
			return fmt.Errorf("%s: its digest is %s, and the signer is for %s", d.Path, cms.HashName(d.Hash), cms.HashName(signer.hash()))
		}
		message, err := signer.signature(d.Path, d.Sum)
		if err != nil {
			return fmt.Errorf("%s: %w", d.Path, err)
		}
		signed[i] = Signature{Digest: d, Message: message}
		if opts.Report.Progress != nil {
			mu.Lock()
			defer mu.Unlock()
			done++
			opts.Report.Progress(Count{Modules: done}, Count{Modules: len(m)})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return signed, nil
}

// check tells whether the format can hold a digest.
func (d *Digest) check() error {
	if err := checkPath(d.Path); err != nil {
		return err
	}
	switch name := cms.HashName(d.Hash); {
	case d.Size <= 0:
		return fmt.Errorf("size %d", d.Size)
	case !known(name):
		return fmt.Errorf("hash %q is none that modules are signed with", name)
	case len(d.Sum) != d.Hash.Size():
		return fmt.Errorf("digest of %d bytes: %s has %d", len(d.Sum), name, d.Hash.Size())
	}
	return nil
}

// known reports whether a hash is one that modules are signed with, spelled as
// CONFIG_MODULE_SIG_HASH spells it.
func known(name string) bool {
	h, err := cms.HashByName(name)
	return err == nil && cms.HashName(h) == name
}

// checkPath tells whether a path is that of a module in a tree, on every machine.
func checkPath(name string) error {
	switch {
	case name == "" || len(name) > maxPath:
		return fmt.Errorf("path of %d bytes", len(name))
	case !utf8.ValidString(name):
		return errors.New("path that is not UTF-8")
	case strings.ContainsFunc(name, func(r rune) bool { return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' }):
		return errors.New("path with a control character")
	case path.IsAbs(name):
		return errors.New("absolute path")
	case path.Clean(name) != name || !filepath.IsLocal(name) || name == ".":
		return errors.New("path that is not the shortest way down from a folder")
	}
	return nil
}

// line is the line of a module, with its message if there is one.
func (d *Digest) line(message []byte) []byte {
	b := append([]byte(nil), `{"message_type":"module","path":"`...)
	for _, c := range []byte(d.Path) {
		if c == '"' || c == '\\' {
			b = append(b, '\\')
		}
		b = append(b, c)
	}
	b = append(b, `","size":`...)
	b = strconv.AppendInt(b, d.Size, 10)
	b = append(b, `,"hash":"`...)
	b = append(b, cms.HashName(d.Hash)...)
	b = append(b, `","digest":"`...)
	b = hex.AppendEncode(b, d.Sum)
	if message != nil {
		b = append(b, `","signature":"`...)
		b = base64.StdEncoding.AppendEncode(b, message)
	}
	return append(b, "\"}\n"...)
}

func firstLine(kind string) []byte {
	return fmt.Appendf(nil, `{"message_type":"%s","version":%d}`+"\n", kind, fileVersion)
}

func lastLine(modules int, sum []byte) []byte {
	return fmt.Appendf(nil, `{"message_type":"end","modules":%d,"sha256":"%x"}`+"\n", modules, sum)
}

// writeLines writes a file of items, each of which has a digest and, or not, its
// message.
func writeLines[T any](w io.Writer, kind string, items []T, parts func(*T) (*Digest, []byte)) error {
	if len(items) == 0 {
		return errors.New("there is no module")
	}
	items = slices.Clone(items)
	slices.SortStableFunc(items, func(a, b T) int {
		one, _ := parts(&a)
		two, _ := parts(&b)
		return strings.Compare(one.Path, two.Path)
	})
	var last *Digest
	b := firstLine(kind)
	for i := range items {
		d, message := parts(&items[i])
		if err := d.check(); err != nil {
			return fmt.Errorf("%q cannot stand in such a file: %w", d.Path, err)
		}
		if err := follows(d, last); err != nil {
			return err
		}
		if kind == signaturesKind && len(message) == 0 {
			return fmt.Errorf("%s has no signature", d.Path)
		}
		line := d.line(message)
		if len(line) > maxLine {
			return fmt.Errorf("%s: its line has %d bytes, and may have %d", d.Path, len(line), maxLine)
		}
		b, last = append(b, line...), d
	}
	sum := sha256.Sum256(b)
	b = append(b, lastLine(len(items), sum[:])...)
	if len(b) > maxFile {
		return fmt.Errorf("%d modules make a file of %d bytes, and it may have %d", len(items), len(b), maxFile)
	}
	_, err := w.Write(b)
	return err
}

// follows tells whether a module may stand behind another.
func follows(d, last *Digest) error {
	switch {
	case last == nil:
		return nil
	case d.Path == last.Path:
		return fmt.Errorf("%s is there twice", d.Path)
	case d.Path < last.Path:
		return fmt.Errorf("%s stands behind %s: paths ascend, and each is there once", d.Path, last.Path)
	case d.Hash != last.Hash:
		return fmt.Errorf("%s has the hash %s, and %s has %s: there is one for all", d.Path, cms.HashName(d.Hash), last.Path, cms.HashName(last.Hash))
	}
	return nil
}

// writeWhole writes a file whole.
func writeWhole(name string, write func(io.Writer) error) error {
	var b bytes.Buffer
	if err := write(&b); err != nil {
		return err
	}
	return atomicfile.WriteOutput(name, b.Bytes(), true)
}

// anyLine has the members of all lines.
type anyLine struct {
	Type      string  `json:"message_type"`
	Version   int     `json:"version"`
	Path      string  `json:"path"`
	Size      int64   `json:"size"`
	Hash      string  `json:"hash"`
	Digest    string  `json:"digest"`
	Signature *[]byte `json:"signature"`
	Modules   int     `json:"modules"`
	SHA256    string  `json:"sha256"`
}

// lineReader reads a file of a kind line by line.
type lineReader struct {
	kind  string
	lines *bufio.Reader
	left  int // bytes that the file may still have
	at    int // the number of the line that was read last
}

func (r *lineReader) errorf(format string, args ...any) error {
	return fmt.Errorf("line %d: %w", r.at, fmt.Errorf(format, args...))
}

// next returns a line with its end, which stands until the next one is read.
func (r *lineReader) next() ([]byte, error) {
	line, err := r.lines.ReadSlice('\n')
	switch {
	case err == io.EOF && len(line) == 0:
		return nil, io.EOF
	case err == io.EOF:
		r.at++
		return nil, r.errorf("the file is cut off in it")
	case err == bufio.ErrBufferFull:
		r.at++
		return nil, r.errorf("longer than %d bytes", maxLine)
	case err != nil:
		return nil, err
	}
	r.at++
	if r.left -= len(line); r.left < 0 {
		return nil, r.errorf("the file has more than %d bytes", maxFile)
	}
	return line, nil
}

func readLines(from io.Reader, kind string, add func(Digest, []byte)) error {
	r := &lineReader{kind: kind, lines: bufio.NewReaderSize(from, maxLine), left: maxFile}
	if err := r.first(); err != nil {
		return err
	}
	sum := sha256.New()
	sum.Write(firstLine(kind))
	var last *Digest
	for n := 0; ; n++ {
		line, err := r.next()
		if err == io.EOF {
			return fmt.Errorf("the file ends after line %d, without its last line: it is cut off", r.at)
		}
		if err != nil {
			return err
		}
		var l anyLine
		if err := json.Unmarshal(line, &l); err != nil {
			return r.errorf("not a line of such a file: %w", err)
		}
		if l.Type == "end" {
			return r.end(line, l, n, sum.Sum(nil))
		}
		d, message, err := r.module(line, l)
		if err != nil {
			return err
		}
		if err := follows(&d, last); err != nil {
			return r.errorf("%w", err)
		}
		add(d, message)
		sum.Write(line)
		last = &d
	}
}

// first reads the line that says what the file is.
func (r *lineReader) first() error {
	line, err := r.next()
	if err == io.EOF {
		return errors.New("it is empty")
	}
	if err != nil {
		return err
	}
	var l anyLine
	if err := json.Unmarshal(line, &l); err != nil {
		return r.errorf("this is no file of %s", describeKind(r.kind))
	}
	switch {
	case l.Type == manifestKind && r.kind == signaturesKind:
		return r.errorf("this is a manifest, without signatures: modsign sign-digests makes them")
	case l.Type == signaturesKind && r.kind == manifestKind:
		return r.errorf("these are signatures already, and no manifest: modsign attach takes them")
	case l.Type != r.kind:
		return r.errorf("this is no file of %s", describeKind(r.kind))
	case l.Version != fileVersion:
		return r.errorf("version %d is not known, and %d is: the file was written by another modsign", l.Version, fileVersion)
	}
	return r.exact(line, firstLine(r.kind))
}

func describeKind(kind string) string {
	if kind == manifestKind {
		return "digests, as modsign digest writes it"
	}
	return "signatures, as modsign sign-digests writes it"
}

// exact refuses a line that is not written as it has to be.
func (r *lineReader) exact(line, want []byte) error {
	if bytes.Equal(line, want) {
		return nil
	}
	return r.errorf("not written as it has to be, byte for byte: %.300q", want)
}

// module makes a digest of a line, and the message that is in it.
func (r *lineReader) module(line []byte, l anyLine) (d Digest, message []byte, err error) {
	if l.Type != "module" {
		return d, nil, r.errorf("message_type %.40q is not known", l.Type)
	}
	d = Digest{Path: l.Path, Size: l.Size}
	if !known(l.Hash) {
		return d, nil, r.errorf("hash %.40q is none that modules are signed with", l.Hash)
	}
	if d.Hash, err = cms.HashByName(l.Hash); err != nil {
		return d, nil, r.errorf("%w", err)
	}
	if d.Sum, err = hex.DecodeString(l.Digest); err != nil {
		return d, nil, r.errorf("digest: %w", err)
	}
	if err := d.check(); err != nil {
		return d, nil, r.errorf("%w", err)
	}
	if l.Signature != nil {
		message = *l.Signature
	}
	switch r.kind {
	case manifestKind:
		if l.Signature != nil {
			return d, nil, r.errorf("%s has a signature, in a manifest", d.Path)
		}
	case signaturesKind:
		if len(message) == 0 {
			return d, nil, r.errorf("%s has no signature", d.Path)
		}
	}
	return d, message, r.exact(line, d.line(message))
}

// end checks the last line.
func (r *lineReader) end(line []byte, l anyLine, modules int, sum []byte) error {
	switch {
	case l.Modules > modules:
		return r.errorf("it counts %d modules, and %d are there: %d missing", l.Modules, modules, l.Modules-modules)
	case l.Modules < modules:
		return r.errorf("it counts %d modules, and %d are there: %d too many", l.Modules, modules, modules-l.Modules)
	case modules == 0:
		return r.errorf("there is no module in it")
	case l.SHA256 != hex.EncodeToString(sum):
		return r.errorf("the lines before are not those that were written: their SHA-256 is %x, and should be %.64q", sum, l.SHA256)
	}
	if err := r.exact(line, lastLine(modules, sum)); err != nil {
		return err
	}
	if _, err := r.next(); err != io.EOF {
		if err == nil {
			err = r.errorf("something follows the last line")
		}
		return err
	}
	return nil
}
