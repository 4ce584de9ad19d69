package compress

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"strings"

	"github.com/therootcompany/xz"
)

// largeWindow is the largest window, in bytes, whose memory a closed reader leaves to
// the garbage collector. A reader frees a larger window at once, because the collector
// would allow the next one to be allocated beside it.
const largeWindow = 24 << 20

// decoderMemory is the memory in bytes that a decoder of each format holds besides its
// window: input, tables and blocks in progress.
var decoderMemory = [len(formats)]int64{None: 0, Gzip: 256 << 10, XZ: 256 << 10, Zstd: 1 << 20}

// Window returns the largest window or dictionary, in bytes, that the stream of size
// bytes in r asks for, up to its end or its first error, where a reader stops too. It
// checks every block header of xz, since each block has its own dictionary, and the
// single frame of zstd. For gzip it returns 0: the window is always 32 KiB.
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
		// The dictionary sizes are in the block headers throughout the stream.
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

// ReaderMemory returns the memory in bytes that a reader of format f holds for a window
// that [Window] returned.
func ReaderMemory(f Format, window int64) int64 { return decoderMemory[f] + window }

// Memory returns the memory in bytes that compressing a module with format f takes in
// this process, without that of the xz program.
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
// wants a larger window has been modified since, and gives an error.
func NewWindowReader(f Format, r io.Reader, limit, window int64) (io.ReadCloser, error) {
	return newReader(f, r, limit, window, false)
}

// skip goes through the stream without decoding it.
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

// admit returns an error unless the stream may have the window.
func (f *framing) admit(kind string, window uint64) error {
	switch {
	case window > MaxWindow:
		return fmt.Errorf("%w: %v stream wants a %s of %d MiB at byte %d; %d MiB is the limit",
			ErrUnreadable, f.in.format, kind, window>>20, f.in.offset(), MaxWindow>>20)
	case window > f.most:
		return fmt.Errorf("%v stream wants a larger %s at byte %d than before: another process writes to the file",
			f.in.format, kind, f.in.offset())
	}
	f.claim = max(f.claim, window)
	return nil
}

// prepareXZ allocates the dictionary for a stream that wants a large one. Otherwise the
// library would allocate one for each block that wants more than the blocks before, and
// hold two meanwhile.
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

// emptyXZ returns an xz stream of one empty block with a dictionary of at least window
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
	b = append(b, checked(0, 1, 13, 0)...)                     // index: 13 bytes expand to 0
	footer := checked(1, 0, 0, 0, 0, 0)                        // the index has 8 bytes
	b = append(append(b, footer[6:]...), footer[:6]...)
	return string(append(b, "YZ"...))
}
