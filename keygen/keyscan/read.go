package keyscan

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"

	"github.com/modsign/modsign/internal/compress"
)

const (
	// window is how much of a file is in memory at once, in bytes: most files as a whole.
	window = 1 << 20
	// lookback is how much may stand before the words that findPEM searches for: the line up
	// to BEGIN, and the label.
	lookback = 256
	// overlap is what two windows have in common: whatever begins in the first lookback of
	// the second one was found in the first one.
	overlap = maxBlock + 2*lookback
	// maxDepth bounds archives and compressed files in one another: a package holds a compressed tar
	// archive, and that files.
	maxDepth = 8
)

// look finds the keys of a stream: in the files of an archive, in what is compressed, or in
// the bytes as they are. These are looked at too if the archive or the compressed file is
// damaged, or has data at the end.
func (s *Scanner) look(ctx context.Context, f *file, st *stream, depth int) error {
	buffer := s.buffers.Get().(*[window]byte)
	defer s.buffers.Put(buffer)
	defer st.release()
	data := buffer[:]
	n, err := f.fill(st.rest, data)
	st.head = data[:n]
	if err != nil && err != io.EOF {
		_ = s.lookAt(ctx, f, data, n, io.EOF, nil) // what there is of it
		return err
	}
	plain, failed := s.lookInto(ctx, f, st, depth)
	switch {
	case ctx.Err() != nil || errors.Is(failed, errBudget):
		return failed
	case failed != nil:
		f.again = true
		rest := st.again()
		n, err := f.fill(rest, data)
		if err == nil || err == io.EOF {
			err = s.lookAt(ctx, f, data, n, err, rest)
		}
		f.again = false
		if errors.Is(err, errBudget) {
			return err
		}
		return failed
	case !plain:
		return nil
	case len(st.head) > n: // read already, to find out that it is no archive
		rest := io.MultiReader(bytes.NewReader(st.head[n:]), st.rest)
		return s.lookAt(ctx, f, data, n, nil, rest)
	}
	return s.lookAt(ctx, f, data, n, err, st.rest)
}

// lookInto looks at what a stream holds as an archive or a compressed file. It reports
// whether the bytes as they are have to be looked at beside it.
func (s *Scanner) lookInto(ctx context.Context, f *file, st *stream, depth int) (plain bool, err error) {
	inner := s.decompressor(st)
	open := opened(nil)
	if inner != nil {
		defer inner.Close()
	} else if open, err = s.archiveOf(f, st); err != nil {
		return false, err
	}
	switch {
	case depth == maxDepth && (inner != nil || open != nil):
		return false, errors.New("archives and compressed files too deep in one another")
	case inner != nil:
		return false, s.lookCompressed(ctx, f, st, inner, depth)
	case open != nil:
		// The bytes as they are have what is no file: the scripts of an RPM, other sections of
		// a PE file, a program before a zip archive.
		return st.begins(rpmMagic) || st.begins(peMagic) || st.stub, s.lookInside(ctx, f, open, depth)
	}
	return true, nil
}

// lookCompressed looks at what a compressed stream holds. An initramfs may have several
// streams, and package archive finds them in the file.
func (s *Scanner) lookCompressed(ctx context.Context, f *file, st *stream, inner io.Reader, depth int) error {
	head := make([]byte, 18)
	n, err := f.fill(inner, head)
	head = head[:n]
	switch {
	case err != nil && err != io.EOF:
		return err
	case isObject(head):
		s.modules.Add(1)
		return nil
	case bytes.HasPrefix(head, []byte(cpioMagic)) && st.at != nil:
		if open, err := openArchive(st.at, st.size); open != nil || err != nil {
			if err != nil {
				return err
			}
			return s.lookInside(ctx, f, open, depth)
		}
	}
	return s.look(ctx, f, &stream{rest: io.MultiReader(bytes.NewReader(head), inner)}, depth+1)
}

// lookAt finds the keys in the bytes of a stream, of which the first n are in data, a buffer
// of the size of a window. The error is that of reading them.
func (s *Scanner) lookAt(ctx context.Context, f *file, data []byte, n int, err error, rest io.Reader) error {
	if err == io.EOF {
		s.bytes.Add(int64(n))
		findWhole(data[:n], n, func(l located) bool { return s.add(f, l.key, lineAt(data[:n], l.at), int64(l.at)) })
		s.collect(f, data[:n])
		return nil
	}
	const step = window - overlap
	more := findWhole(data, step+lookback, func(l located) bool {
		return s.add(f, l.key, lineAt(data, l.at), int64(l.at))
	})
	s.collect(f, data)
	lines, text := 1, isText(data)
	for at := int64(step); more; at += step {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		s.bytes.Add(step)
		if text {
			lines += bytes.Count(data[:step], []byte("\n"))
		}
		copy(data, data[step:])
		n, err := f.fill(rest, data[overlap:])
		limit := step + lookback
		if err != nil {
			limit = overlap + n
		}
		found := func(l located) bool {
			line := 0
			if text {
				line = lines + bytes.Count(data[:l.at], []byte("\n"))
			}
			return s.add(f, l.key, line, at+int64(l.at))
		}
		more = findPEM(data[:overlap+n], lookback, limit, found) &&
			(!text || findEncoded(data[:overlap+n], lookback, limit, found))
		switch {
		case err == io.EOF:
			s.bytes.Add(int64(limit))
			return nil
		case err != nil:
			return err
		}
	}
	return nil
}

// fill reads until data is full or, with the error, the stream ends.
func (f *file) fill(r io.Reader, data []byte) (n int, err error) {
	defer func() {
		if *f.budget -= int64(n); *f.budget < 0 && (err == nil || err == io.EOF) {
			err = errBudget
		}
	}()
	for empty := 0; n < len(data) && err == nil; {
		var m int
		if m, err = r.Read(data[n:]); m > 0 {
			empty = 0
		} else if empty++; empty == 100 && err == nil {
			err = io.ErrNoProgress
		}
		n += m
	}
	return n, err
}

// isObject reports whether a file that begins like this is an ELF object file, such as a
// kernel module. A tree has thousands of them, and nothing puts a key there.
func isObject(head []byte) bool {
	const relocatable = 1
	return len(head) >= 18 && bytes.HasPrefix(head, []byte("\x7fELF")) && head[16]|head[17] == relocatable
}

// decompressor returns a reader of what a compressed stream holds, or nil for any other.
func (s *Scanner) decompressor(st *stream) io.ReadCloser {
	if !isCompressed(st.head) {
		return nil
	}
	inner, err := compress.NewFile(st.whole())
	if err != nil {
		return failing{err}
	}
	return &limited{ReadCloser: inner, left: s.options.MaxSize, limit: s.options.MaxSize}
}

// isCompressed reports whether a file begins like a compressed one: also behind the magic
// number, if that has two or three bytes alone.
func isCompressed(head []byte) bool {
	if len(head) < 18 {
		return false
	}
	switch compress.StreamFormat(head) {
	case "":
		return false
	case "gzip":
		_, err := gzip.NewReader(bytes.NewReader(head))
		return err == nil
	case "bzip2":
		return bytes.HasPrefix(head[4:], []byte("1AY&SY"))
	case "lzma":
		// The dictionary has 2^n or 3*2^n bytes, the size is unknown or below 256 GiB, and the
		// first byte of the range coder is zero.
		dict, size := binary.LittleEndian.Uint32(head[1:]), binary.LittleEndian.Uint64(head[5:])
		return (bits.OnesCount32(dict) == 1 || bits.OnesCount32(dict) == 2 && bits.OnesCount32(dict&(dict>>1)) == 1) &&
			(size == math.MaxUint64 || size < 1<<38) && head[13] == 0
	}
	return true
}

// failing is a stream with an error alone.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
func (f failing) Close() error             { return nil }

// limited ends with an error after that many bytes.
type limited struct {
	io.ReadCloser
	left, limit int64
}

func (l *limited) Read(p []byte) (int, error) {
	if most := max(0, l.left) + 1; int64(len(p)) > most { // one more tells whether there is more
		p = p[:most]
	}
	n, err := l.ReadCloser.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return max(0, n-1), fmt.Errorf("decompressed size exceeds %d bytes; the rest was not scanned", l.limit)
	}
	return n, err
}

// What a file may expand to with all that is compressed in it, however often: a GiB, and
// that many bytes for each of its own.
const (
	freeBudget  = 1 << 30
	budgetRatio = 250
)

var errBudget = errors.New("file expands to more than archives do; the rest was not scanned")

var beginCertificate = []byte("-----BEGIN CERTIFICATE-----")

// collect remembers the certificates in the first window of a file: in DER, or in PEM.
func (s *Scanner) collect(f *file, data []byte) {
	add := func(public fingerprint, subject string) { s.addCertificate(public, certificate{subject, f.name()}) }
	if len(data) > 4 && data[0] == 0x30 && data[1] == 0x82 {
		s.eachCertificate(data, add)
		return
	}
	if !isText(data) {
		return
	}
	for {
		i := bytes.Index(data, beginCertificate)
		if i < 0 {
			return
		}
		text := data[i+len(beginCertificate):]
		end := bytes.Index(text[:min(len(text), maxBlock)], []byte("-----END"))
		if end < 0 {
			return
		}
		s.eachCertificate(unarmor(linePrefix(data[:i]), text[:end]).data, add)
		data = text[end:]
	}
}
