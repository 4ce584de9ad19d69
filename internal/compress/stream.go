package compress

import (
	"bufio"
	"compress/bzip2"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/pierrec/lz4/v4"
)

// A Stream decompresses one stream of an archive, of any format that archives and
// initramfs images come in, and tells where the stream ends. The stream's size is not
// limited: that is for the caller.
type Stream struct {
	io.Reader
	name string
	used func() int64
	done func() error
}

// ErrNoStream reports bytes that are not the beginning of a compressed stream.
var ErrNoStream = errors.New("not compressed in a known format")

// streams are the formats of streams besides those of modules.
var streams = []struct {
	name, magic string
	open        func(*bufio.Reader) (io.Reader, error)
}{
	{"bzip2", "BZh", openBzip2},
	{"lzma", "\x5d\x00\x00", func(r *bufio.Reader) (io.Reader, error) { return NewLZMAReader(r, math.MaxInt64) }},
	{"lzo", LzopMagic, func(r *bufio.Reader) (io.Reader, error) { return NewLzopReader(r) }},
	{"lz4", lz4Legacy, func(r *bufio.Reader) (io.Reader, error) { return &lz4Blocks{r: r}, nil }},
	{"lz4", "\x04\x22\x4d\x18", func(r *bufio.Reader) (io.Reader, error) { return lz4.NewReader(r), nil }},
}

// StreamFormat returns the name of the format of a stream that begins with head, such as
// "zstd" or "lzo", and "" if none does. It needs at most 9 bytes.
func StreamFormat(head []byte) string {
	if f := FromMagic(head); f != None {
		return f.String()
	}
	if _, ok := Skippable(head); ok {
		return Zstd.String() // or lz4, which has the same frames: the stream behind it tells
	}
	for _, s := range streams {
		if strings.HasPrefix(string(head[:min(len(head), len(LzopMagic))]), s.magic) {
			return s.name
		}
	}
	return ""
}

// Skippable returns the size of a frame that readers of zstd and lz4 pass over, in bytes, if one begins
// with head: a magic, the length of what follows, and that (RFC 8878, 3.1.2).
func Skippable(head []byte) (size int64, ok bool) {
	if len(head) < 8 || head[0]&0xf0 != 0x50 || string(head[1:4]) != "\x2a\x4d\x18" {
		return 0, false
	}
	return 8 + int64(binary.LittleEndian.Uint32(head[4:])), true
}

// NewStream opens the stream at the beginning of r, which other bytes may follow. Frames of zstd and lz4
// that are to be skipped may be before it. The caller must close it.
func NewStream(r *io.SectionReader) (*Stream, error) {
	var skipped int64
	for {
		var head [8]byte
		n, err := r.ReadAt(head[:], skipped)
		if err != nil && err != io.EOF {
			return nil, err
		}
		size, ok := Skippable(head[:n])
		if !ok {
			break
		}
		if skipped += size; skipped >= r.Size() {
			return nil, ErrNoStream
		}
	}
	s, err := newStream(io.NewSectionReader(r, skipped, r.Size()-skipped))
	if err != nil {
		return nil, err
	}
	if used := s.used; skipped > 0 {
		s.used = func() int64 { return skipped + used() }
	}
	return s, nil
}

func newStream(r *io.SectionReader) (*Stream, error) {
	head, err := readHead(r, r.Size(), len(LzopMagic))
	if err != nil {
		return nil, err
	}
	whole := io.NewSectionReader(r, 0, r.Size())
	if f := FromMagic(head); f != None {
		if f == XZ {
			if x := newXZBlocks(r); x != nil {
				return &Stream{Reader: x, name: f.String(), used: x.used, done: x.close}, nil
			}
		}
		opened, err := newReader(f, whole, math.MaxInt64, windowUnknown, true)
		if err != nil {
			return nil, err
		}
		in := &opened.(*reader).decoder.in
		end := int64(0)
		s := &Stream{Reader: opened, name: f.String()}
		s.used = func() int64 {
			if opened.(*reader).decoder != nil {
				end = in.offset()
			}
			return end
		}
		s.done = func() error {
			s.used() // the decoder goes to another stream
			return opened.Close()
		}
		return s, nil
	}
	for _, format := range streams {
		if !strings.HasPrefix(string(head), format.magic) {
			continue
		}
		buffered := bufio.NewReaderSize(whole, inputBuffer)
		out, err := format.open(buffered)
		if err != nil {
			return nil, fmt.Errorf("%s stream: %w", format.name, err)
		}
		taken := func() int64 { n, _ := whole.Seek(0, io.SeekCurrent); return n - int64(buffered.Buffered()) }
		return &Stream{Reader: &named{out, format.name}, name: format.name, used: taken}, nil
	}
	return nil, ErrNoStream
}

// Format returns the name of the format.
func (s *Stream) Format() string { return s.name }

// Used returns how many bytes have been taken from the file: all of the stream, once Read
// has returned io.EOF.
func (s *Stream) Used() int64 { return s.used() }

// Close releases the decoder.
func (s *Stream) Close() error {
	if s.done == nil {
		return nil
	}
	return s.done()
}

// named adds the format to errors.
type named struct {
	r    io.Reader
	name string
}

func (n *named) Read(b []byte) (int, error) {
	k, err := n.r.Read(b)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%s stream is cut off or corrupt: %w", n.name, err)
	}
	return k, err
}

// openBzip2 opens a file of the bzip2 program, of one stream or several.
func openBzip2(r *bufio.Reader) (io.Reader, error) { return &bzip2File{bzip2.NewReader(r)}, nil }

// bzip2File ends at bytes that are no further stream: the library takes the first two of
// them, and calls that an error.
type bzip2File struct{ out io.Reader }

func (f *bzip2File) Read(b []byte) (int, error) {
	n, err := f.out.Read(b)
	if err == bzip2.StructuralError("bad magic value in continuation file") {
		err = io.EOF
	}
	return n, err
}

// lz4Legacy is the beginning of the format of lz4 -l, and maxLZ4Block the size of its blocks
// in bytes.
const (
	lz4Legacy   = "\x02\x21\x4c\x18"
	maxLZ4Block = 8 << 20
)

// lz4Blocks reads the format of lz4 -l: the magic, then blocks, each after its length as a
// 32-bit little-endian number. Nothing marks the end. The kernel (lib/decompress_unlz4.c)
// takes another magic for a further stream, and a length of 0 for padding.
type lz4Blocks struct {
	r        *bufio.Reader
	in, out  []byte
	rest     []byte
	finished error
}

func (z *lz4Blocks) Read(b []byte) (int, error) {
	for len(z.rest) == 0 {
		if z.finished != nil {
			return 0, z.finished
		}
		z.rest, z.finished = z.block()
	}
	n := copy(b, z.rest)
	z.rest = z.rest[n:]
	return n, nil
}

func (z *lz4Blocks) block() ([]byte, error) {
	head, err := z.r.Peek(4)
	if err != nil {
		return nil, err // at the end, what is shorter than a length belongs to somebody else
	}
	size := int64(binary.LittleEndian.Uint32(head))
	switch {
	case string(head) == lz4Legacy:
		_, err := z.r.Discard(4)
		return nil, err
	case size == 0 || size > int64(lz4.CompressBlockBound(maxLZ4Block)):
		return nil, io.EOF // what follows belongs to somebody else
	}
	if z.in == nil {
		z.in, z.out = make([]byte, lz4.CompressBlockBound(maxLZ4Block)), make([]byte, maxLZ4Block)
	}
	z.r.Discard(4)
	if _, err := io.ReadFull(z.r, z.in[:size]); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	n, err := lz4.UncompressBlock(z.in[:size], z.out)
	if err != nil {
		return nil, err
	}
	return z.out[:n], nil
}
