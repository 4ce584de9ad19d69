package compress

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"strings"

	"github.com/therootcompany/xz"
)

// largeWindow is the largest window, in bytes, that is left to the collector when its
// reader is closed. The memory of a larger one goes back at once: the collector would
// let the next one be made beside it.
const largeWindow = 24 << 20

// decoderMemory is what a decoder of each format holds besides its window, in bytes: the
// input, tables, and the blocks on their way.
var decoderMemory = [len(formats)]int64{None: 0, Gzip: 256 << 10, XZ: 256 << 10, Zstd: 1 << 20}

// Window returns the largest window or dictionary, in bytes, that the stream of size
// bytes in r asks for, up to its end or to what is wrong with it: a reader gets no
// further. All block headers of xz are looked at, of which each has a dictionary of its
// own, and the one frame of zstd. For gzip it is 0: its window is always the same 32 KiB.
func Window(f Format, r io.ReaderAt, size int64) int64 {
	if f != XZ && f != Zstd {
		return 0
	}
	d := takeDecoder(f)
	defer decoders[f].Put(d)
	d.in.reset(io.NewSectionReader(r, 0, size))
	defer d.in.reset(nil)
	var frame framer
	var err error
	if f == XZ {
		// The dictionaries stand all over the stream.
		x := &xzFrame{framing: framing{in: &d.in, most: MaxWindow}}
		if err = x.open(x); err == nil {
			x.skip()
		}
		frame = x
	} else {
		z := &zstdFrame{framing: framing{in: &d.in, most: MaxWindow}}
		_ = z.open(z)
		frame = z
	}
	return int64(frame.window())
}

// ReaderMemory returns how many bytes a reader of format f with that window holds, as
// [Window] returns it.
func ReaderMemory(f Format, window int64) int64 { return decoderMemory[f] + window }

// Memory returns how many bytes compressing a module with format f holds meanwhile. The
// xz program has its memory for itself.
func (e *Encoder) Memory(f Format) int64 {
	switch {
	case f == Gzip:
		return 2 << 20
	case f == XZ && e.xzProgram == "":
		return 12 << 20
	case f == XZ:
		return 128 << 10
	case f == Zstd && e.options.Level > 9:
		return 42 << 20
	case f == Zstd && e.options.Level > 5:
		return 10 << 20
	case f == Zstd:
		return 7 << 20
	}
	return 0
}

// NewWindowReader is [NewReader] for a stream whose [Window] is known. A stream that
// wants more all the same has changed since, and gives an error.
func NewWindowReader(f Format, r io.Reader, limit, window int64) (io.ReadCloser, error) {
	return newReader(f, r, limit, window, false)
}

// skip goes through the stream without a decoder.
func (f *framing) skip() {
	for f.err == nil {
		n, err := f.in.Discard(int(f.left))
		f.left -= int64(n)
		if err != nil {
			f.err = err
			return
		}
		f.left, f.err = f.next.piece()
	}
}

// admit reports why a stream may not have a window.
func (f *framing) admit(kind string, window uint64) error {
	switch {
	case window > MaxWindow:
		return fmt.Errorf("%w: %v stream wants a %s of %d MiB at byte %d; %d MiB is the limit", ErrUnreadable, f.in.format, kind, window>>20, f.in.offset(), MaxWindow>>20)
	case window > f.most:
		return fmt.Errorf("%v stream wants a larger %s at byte %d than a moment ago: somebody else writes to it", f.in.format, kind, f.in.offset())
	}
	f.claim = max(f.claim, window)
	return nil
}

// prepareXZ makes the dictionary for a stream that wants a large one. Otherwise the
// library would make one for each block that wants more than those before, and hold two
// while it does.
func (d *decoder) prepareXZ(window int64) (err error) {
	if window <= keepWindow {
		return nil
	}
	empty := strings.NewReader(emptyXZ(uint64(window)))
	if d.xz == nil {
		d.xz, err = xz.NewReader(empty, MaxWindow)
	} else {
		err = d.xz.Reset(empty)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, d.xz)
	}
	return err
}

// emptyXZ is an xz stream of one empty block with a dictionary of at least that many
// bytes.
func emptyXZ(window uint64) string {
	bits := byte(0)
	for bits < 40 && xzDictSize(bits) < window {
		bits++
	}
	checked := func(b ...byte) []byte { return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b)) }
	b := []byte("\xfd7zXZ\x00")
	b = append(append(b, 0, 0), checked(0, 0)[2:]...)          // no check
	b = append(b, checked(2, 0, xzLZMA2, 1, bits, 0, 0, 0)...) // block header
	b = append(b, 0, 0, 0, 0)                                  // the end of LZMA2, and padding
	b = append(b, checked(0, 1, 13, 0)...)                     // index: 13 bytes to none
	footer := checked(1, 0, 0, 0, 0, 0)                        // the index has 8 bytes
	b = append(append(b, footer[6:]...), footer[:6]...)
	return string(append(b, "YZ"...))
}
