package manifest

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/cms"
)

// line is the line of a module, with its message if it has one.
func (d *Digest) line(message []byte) []byte { return d.appendLine(nil, message) }

func (d *Digest) appendLine(b, message []byte) []byte {
	b = append(b, `{"message_type":"module","path":"`...)
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

func firstLine(kind string, key []byte) []byte {
	if key != nil {
		return fmt.Appendf(nil, `{"message_type":"%s","version":%d,"key":"%x"}`+"\n", kind, keyedVersion, key)
	}
	return fmt.Appendf(nil, `{"message_type":"%s","version":%d}`+"\n", kind, plainVersion)
}

func lastLine(modules int, sum []byte) []byte {
	return fmt.Appendf(nil, `{"message_type":"end","modules":%d,"sha256":"%x"}`+"\n", modules, sum)
}

// writeLines writes a file of items. parts returns the digest of each, and its message in
// a file of signatures.
func writeLines[T any](w io.Writer, kind string, items []T, parts func(*T) (*Digest, []byte)) error {
	if len(items) == 0 {
		return errors.New("no module to write")
	}
	byPath := func(a, b T) int {
		one, _ := parts(&a)
		two, _ := parts(&b)
		return strings.Compare(one.Path, two.Path)
	}
	if !slices.IsSortedFunc(items, byPath) {
		items = slices.Clone(items)
		slices.SortStableFunc(items, byPath)
	}
	// Everything is checked before anything is written, and no more than a line is held.
	var last *Digest
	one, _ := parts(&items[0])
	first := firstLine(kind, one.Key)
	line := slices.Clone(first)
	size := len(line)
	for i := range items {
		d, message := parts(&items[i])
		if err := d.Check(); err != nil {
			return fmt.Errorf("path %q: %w", d.Path, err)
		}
		if err := follows(d, last); err != nil {
			return err
		}
		if kind == signaturesKind && len(message) == 0 {
			return fmt.Errorf("%s has no signature", d.Path)
		}
		if line = d.appendLine(line[:0], message); len(line) > maxLine {
			return fmt.Errorf("%s: line of %d bytes, the limit is %d", d.Path, len(line), maxLine)
		}
		size, last = size+len(line), d
	}
	sum := sha256.New()
	if size += len(lastLine(len(items), sum.Sum(nil))); size > maxFile {
		return fmt.Errorf("%d modules make a file of %d bytes, the limit is %d", len(items), size, maxFile)
	}
	out := bufio.NewWriterSize(w, 64<<10)
	both := io.MultiWriter(out, sum)
	both.Write(first) // Flush returns the first error
	for i := range items {
		d, message := parts(&items[i])
		line = d.appendLine(line[:0], message)
		both.Write(line)
	}
	out.Write(lastLine(len(items), sum.Sum(nil)))
	return out.Flush()
}

// follows returns an error unless a module may follow another.
func follows(d, last *Digest) error {
	switch {
	case last == nil:
		return nil
	case d.Path == last.Path:
		return fmt.Errorf("%s occurs twice", d.Path)
	case d.Path < last.Path:
		return fmt.Errorf("%s follows %s: paths have to ascend", d.Path, last.Path)
	case d.Hash != last.Hash:
		return fmt.Errorf("%s has hash %s, but %s has %s: all need the same",
			d.Path, cms.HashName(d.Hash), last.Path, cms.HashName(last.Hash))
	case !bytes.Equal(d.Key, last.Key):
		return fmt.Errorf("%s is for another key than %s: all need the same", d.Path, last.Path)
	}
	return nil
}

// writeWhole writes a whole file.
func writeWhole(name string, write func(io.Writer) error) error {
	return atomicfile.StreamOutput(name, write, true)
}
