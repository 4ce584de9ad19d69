package manifest

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/modsign/modsign/internal/cms"
)

// anyLine has the members of all lines.
type anyLine struct {
	Type      string  `json:"message_type"`
	Version   int     `json:"version"`
	Key       string  `json:"key"`
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
	key   []byte // that the first line names
	lines *bufio.Reader
	left  int // bytes that the file may still have
	at    int // the number of the line that was read last
}

func (r *lineReader) errorf(format string, args ...any) error {
	return fmt.Errorf("line %d: %w", r.at, fmt.Errorf(format, args...))
}

// next returns a line with its end. The line is valid until the next call.
func (r *lineReader) next() ([]byte, error) {
	line, err := r.lines.ReadSlice('\n')
	switch {
	case err == io.EOF && len(line) == 0:
		return nil, io.EOF
	case err == io.EOF:
		r.at++
		return nil, r.errorf("the file is cut off here")
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

// readLines calls add for each module of a file.
func readLines(from io.Reader, kind string, add func(Digest, []byte)) error {
	r := &lineReader{kind: kind, lines: bufio.NewReaderSize(from, maxLine), left: maxFile}
	if err := r.first(); err != nil {
		return err
	}
	sum := sha256.New()
	sum.Write(firstLine(kind, r.key))
	var last *Digest
	for n := 0; ; n++ {
		line, err := r.next()
		if err == io.EOF {
			return fmt.Errorf("the file is cut off after line %d: its last line is missing", r.at)
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
		return errors.New("file is empty")
	}
	if err != nil {
		return err
	}
	var l anyLine
	if err := json.Unmarshal(line, &l); err != nil {
		return r.errorf("not a file of %s", describeKind(r.kind))
	}
	switch {
	case l.Type == manifestKind && r.kind == signaturesKind:
		return r.errorf("this is a manifest without signatures: modsign sign-digests makes them")
	case l.Type == signaturesKind && r.kind == manifestKind:
		return r.errorf("these are signatures and not a manifest: modsign attach takes them")
	case l.Type != r.kind:
		return r.errorf("not a file of %s", describeKind(r.kind))
	case l.Version != plainVersion && l.Version != keyedVersion:
		return r.errorf("unknown version %d, want %d or %d: another version of modsign wrote the file", l.Version,
			plainVersion, keyedVersion)
	}
	if l.Version == keyedVersion {
		if r.key, err = hex.DecodeString(l.Key); err != nil || len(r.key) != sha256.Size {
			return r.errorf("version %d without the SHA-256 of a key", l.Version)
		}
	}
	return r.exact(line, firstLine(r.kind, r.key))
}

func describeKind(kind string) string {
	if kind == manifestKind {
		return "digests, as modsign digest writes it"
	}
	return "signatures, as modsign sign-digests writes it"
}

// exact refuses a line that is not in canonical form.
func (r *lineReader) exact(line, want []byte) error {
	if bytes.Equal(line, want) {
		return nil
	}
	return r.errorf("not in canonical form, which is %.300q", want)
}

// module returns the digest in a line, and its message.
func (r *lineReader) module(line []byte, l anyLine) (d Digest, message []byte, err error) {
	if l.Type != "module" {
		return d, nil, r.errorf("unknown message_type %.40q", l.Type)
	}
	d = Digest{Path: l.Path, Size: l.Size, Key: r.key}
	if !known(l.Hash) {
		return d, nil, r.errorf("hash %.40q does not sign modules", l.Hash)
	}
	if d.Hash, err = cms.DigestByName(l.Hash); err != nil {
		return d, nil, r.errorf("%w", err)
	}
	if d.Sum, err = hex.DecodeString(l.Digest); err != nil {
		return d, nil, r.errorf("digest: %w", err)
	}
	if err := d.Check(); err != nil {
		return d, nil, r.errorf("%w", err)
	}
	if l.Signature != nil {
		message = *l.Signature
	}
	switch r.kind {
	case manifestKind:
		if l.Signature != nil {
			return d, nil, r.errorf("%s has a signature in a manifest", d.Path)
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
		return r.errorf("it counts %d modules, the file has %d: %d missing", l.Modules, modules, l.Modules-modules)
	case l.Modules < modules:
		return r.errorf("it counts %d modules, the file has %d: %d too many", l.Modules, modules, modules-l.Modules)
	case modules == 0:
		return r.errorf("the file has no module")
	case l.SHA256 != hex.EncodeToString(sum):
		return r.errorf("the lines before it have changed: their SHA-256 is %x, want %.64q", sum, l.SHA256)
	}
	if err := r.exact(line, lastLine(modules, sum)); err != nil {
		return err
	}
	if _, err := r.next(); err != io.EOF {
		if err == nil {
			err = r.errorf("more data after the last line")
		}
		return err
	}
	return nil
}
