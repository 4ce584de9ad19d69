package compress

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/pierrec/lz4/v4"
)

// ErrTrailing reports a compressed file in which other bytes follow the last stream.
var ErrTrailing = errors.New("data after the end")

// A file reads streams of one format that follow one another.
type file struct {
	in    *bufio.Reader
	name  string
	magic string
	zeros bool // may follow a stream, as padding
	next  func() error
	out   io.Reader
	done  func()
	err   error
}

// NewFile returns a reader of what a compressed file holds, in any format that StreamFormat
// knows: all of its streams, one after the other, as the programs of the formats read them.
// Zeros at the end are padding (but for zstd, whose frames that are to be skipped are);
// after other bytes the error is [ErrTrailing]. The size is not limited: that is for the
// caller, who must also close the reader.
func NewFile(r io.Reader) (io.ReadCloser, error) {
	head := make([]byte, len(LzopMagic))
	n, err := io.ReadFull(r, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, err
	}
	head = head[:n]
	whole := io.MultiReader(bytes.NewReader(head), r)
	if _, ok := Skippable(head); ok {
		buffered := bufio.NewReaderSize(whole, inputBuffer)
		if head, err = skip(buffered); err != nil {
			return nil, err
		}
		whole = buffered
	}
	if f := FromMagic(head); f != None {
		opened, err := newReader(f, whole, math.MaxInt64, windowUnknown, true)
		if err != nil {
			return nil, err
		}
		d := opened.(*reader)
		return &file{
			in: d.in.Reader, name: f.String(), magic: formats[f].magic, zeros: f != Zstd, out: d, done: func() { d.Close() },
			next: func() error {
				d.err = nil
				if err := d.start(windowUnknown); err != nil {
					return d.explain(err)
				}
				return nil
			},
		}, nil
	}
	for _, format := range streams {
		if !strings.HasPrefix(string(head), format.magic) {
			continue
		}
		buffered := bufio.NewReaderSize(whole, inputBuffer)
		f := &file{in: buffered, name: format.name, magic: format.magic, zeros: true}
		f.next = func() error {
			out, err := format.open(buffered)
			if err != nil {
				return fmt.Errorf("%s stream: %w", format.name, err)
			}
			f.out = &named{out, format.name}
			return nil
		}
		if format.name == "bzip2" { // its library reads all streams, and two bytes behind the last one
			f.out = &named{bzip2.NewReader(buffered), format.name}
			return f, nil
		}
		return f, f.next()
	}
	return nil, ErrNoStream
}

// skip passes over the frames that are to be skipped, and returns what follows them, as far as it tells
// the format.
func skip(r *bufio.Reader) ([]byte, error) {
	for {
		head, err := r.Peek(len(LzopMagic))
		if err != nil && err != io.EOF {
			return nil, err
		}
		size, ok := Skippable(head)
		if !ok {
			return head, nil
		}
		if _, err := io.CopyN(io.Discard, r, size); err != nil {
			return nil, fmt.Errorf("zstd frame is cut off: %w", io.ErrUnexpectedEOF)
		}
	}
}

func (f *file) Read(b []byte) (n int, err error) {
	for n == 0 && f.err == nil && len(b) > 0 {
		if n, f.err = f.out.Read(b); f.err == io.EOF {
			f.err = f.follow()
		}
		// Two libraries go on to the next stream themselves.
		if errors.Is(f.err, bzip2.StructuralError("bad magic value in continuation file")) ||
			errors.Is(f.err, lz4.ErrInvalidFrame) {
			f.err = f.trailing()
		}
	}
	return n, f.err
}

// follow opens the next stream, or returns io.EOF if there is none.
func (f *file) follow() error {
	for {
		head, err := f.in.Peek(len(LzopMagic))
		switch zeros := len(head) - len(bytes.TrimLeft(head, "\x00")); {
		case err != nil && err != io.EOF:
			return err
		case len(head) == 0:
			return io.EOF
		case strings.HasPrefix(string(head), f.magic):
			return f.next()
		case f.zeros && zeros > 0:
			f.in.Discard(zeros)
		default:
			size, ok := Skippable(head)
			if !ok || f.name != "zstd" && f.name != "lz4" {
				return f.trailing()
			}
			if _, err := io.CopyN(io.Discard, f.in, size); err != nil {
				return fmt.Errorf("%s frame is cut off: %w", f.name, io.ErrUnexpectedEOF)
			}
		}
	}
}

func (f *file) trailing() error { return fmt.Errorf("%w of the %s stream", ErrTrailing, f.name) }

// Close releases the decoder.
func (f *file) Close() error {
	if f.done != nil {
		f.done()
		f.done = nil
	}
	return nil
}
