package compress

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
)

// MaxWindow is the largest dictionary (xz) or window (zstd), in bytes, that a
// stream may ask for. It is what the kernel's build uses at the most, for
// kernel images (scripts/xz_wrap.sh, zstd --ultra -22), and the zstd program's
// own limit. A reader holds as much memory as the window or as the data,
// whichever is less; for the kernel's modules that is 1 to 2 MiB.
const MaxWindow = 128 << 20

// keepWindow is the largest window, in bytes, of a decoder that is kept for the
// next module: what xz and zstd -19 use when nothing is said.
const keepWindow = 8 << 20

// inputBuffer is how much of a compressed stream is read at once.
const inputBuffer = 64 << 10

// NewReader returns a reader of what the stream of format f in r expands to. The
// stream has to end where r ends. Once more than limit bytes have come out, Read
// returns a [TooLargeError]. A stream that is cut off gives an error that is
// [io.ErrUnexpectedEOF]; one that asks for more than [MaxWindow] gives one that is
// [ErrUnreadable]; one that does not match its checksums or is followed by something
// else gives an error as well, and none of them shows before the data that was read
// up to there.
//
// The reader must be closed, which does not close r. It is for one goroutine.
func NewReader(f Format, r io.Reader, limit int64) (io.ReadCloser, error) {
	return newReader(f, r, limit, windowUnknown, false)
}

// NewEmbeddedReader is [NewReader] for a stream that other bytes follow, as in a
// kernel image, where its end is not known before it is reached. Some bytes
// after the stream may have been read from r.
func NewEmbeddedReader(f Format, r io.Reader, limit int64) (io.ReadCloser, error) {
	return newReader(f, r, limit, windowUnknown, true)
}

// reader is one stream on its way through a decoder.
type reader struct {
	*decoder
	limit, n int64 // bytes that may come out, that have come out
	embedded bool
	err      error // what every further Read returns
}

// decoder is what is worth keeping from one stream to the next.
//
// The input passes through a framer on its way to the xz and zstd libraries. It
// reads no more than the lengths by which the formats hop from header to header,
// which is enough to look at each claim of memory before the library sees it,
// to end exactly where the stream ends, and to tell a stream that is cut off
// from a corrupt one; the libraries leave some of this out.
type decoder struct {
	format Format
	in     input
	frame  framer    // nil for gzip
	out    io.Reader // the library
	gzip   *gzip.Reader
	xz     *xz.Reader
	zstd   *zstd.Decoder
}

// Decoders are kept by format, because a fresh one costs more than reading most
// modules does.
var decoders [len(formats)]sync.Pool

func takeDecoder(f Format) *decoder {
	if d, _ := decoders[f].Get().(*decoder); d != nil {
		return d
	}
	return &decoder{format: f, in: input{format: f, Reader: bufio.NewReaderSize(nil, inputBuffer)}}
}

func newReader(f Format, src io.Reader, limit, window int64, embedded bool) (io.ReadCloser, error) {
	if int(f) >= len(formats) {
		return nil, fmt.Errorf("%v is not known", f)
	}
	d := takeDecoder(f)
	d.in.reset(src)
	r := &reader{decoder: d, limit: max(limit, 0), embedded: embedded}
	if err := d.start(window); err != nil {
		err = r.explain(err)
		r.Close()
		return nil, err
	}
	return r, nil
}

// windowUnknown is the window of a stream that nobody has looked at.
const windowUnknown = -1

// start readies the library of the decoder's format, and reads the first header. The
// stream may ask for that window and no more.
func (d *decoder) start(window int64) (err error) {
	most := uint64(MaxWindow)
	if window != windowUnknown {
		most = uint64(window)
	}
	if window > largeWindow {
		// What idle decoders, compressors and buffers hold is more than there is
		// room for beside it. A pool is empty after two collections.
		runtime.GC()
		debug.FreeOSMemory()
	}
	switch d.format {
	case None:
		d.out = d.in.Reader
	case Gzip:
		if d.gzip == nil {
			d.gzip = new(gzip.Reader)
		}
		// The library reads a bufio.Reader byte by byte, no further than it
		// has to.
		err = d.gzip.Reset(d.in.Reader)
		d.gzip.Multistream(false)
		d.out = d.gzip
	case XZ:
		// therootcompany/xz is a translation of the kernel's own decoder and
		// refuses what that refuses. Over the modules of a Debian kernel it is
		// 1.6 times as fast as ulikunitz/xz, can be used again (1 kB of
		// garbage a module instead of 1.2 MB), and knows the branch filters
		// without which a kernel image cannot be read.
		frame := &xzFrame{framing: framing{in: &d.in, most: most}}
		d.frame = frame
		if err := frame.open(frame); err != nil {
			return err
		}
		if err := d.prepareXZ(window); err != nil {
			return err
		}
		if d.xz == nil {
			d.xz, err = xz.NewReader(frame, MaxWindow)
		} else {
			err = d.xz.Reset(frame)
		}
		d.out = d.xz
	case Zstd:
		frame := &zstdFrame{framing: framing{in: &d.in, most: most}}
		d.frame = frame
		if err := frame.open(frame); err != nil {
			return err
		}
		if d.zstd == nil {
			d.zstd, err = zstd.NewReader(frame, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(MaxWindow))
		} else {
			err = d.zstd.Reset(frame)
		}
		d.out = d.zstd
	}
	return err
}

func (r *reader) Read(p []byte) (int, error) {
	if r.err != nil || len(p) == 0 {
		return 0, r.err
	}
	// One byte over the limit is asked for, to see whether there is one.
	if room := r.limit - r.n; int64(len(p)) > room {
		p = p[:room+1]
	}
	n, err := r.out.Read(p)
	r.n += int64(n)
	if r.n > r.limit {
		n--
		r.err = &TooLargeError{r.format, r.limit}
	} else if err == io.EOF && (r.format == None || r.format == Gzip || r.frame.atEnd()) {
		r.err = r.finish()
	} else if err != nil {
		r.err = r.explain(err)
	}
	return n, r.err
}

// finish makes sure that the input ends where its stream has ended. It returns
// io.EOF if so.
func (r *reader) finish() error {
	if r.embedded || r.format == None {
		return io.EOF
	}
	end := r.in.offset()
	if r.format == XZ {
		// Zeros in groups of four belong to the format.
		for {
			b, err := r.in.Peek(4)
			if err != nil || string(b) != "\x00\x00\x00\x00" {
				break
			}
			r.in.Discard(4)
		}
	}
	head, err := r.in.Peek(6)
	switch {
	case r.in.err != nil:
		return r.in.err
	case len(head) > 0 && FromMagic(head) == r.format:
		return fmt.Errorf("a second %v stream follows at byte %d: a module is one stream", r.format, r.in.offset())
	case len(head) > 0:
		return fmt.Errorf("other data follows the %v stream, which ends at byte %d", r.format, end)
	}
	return err
}

// explain turns what a library says into what is wrong. Reading errors come
// first, then what the framer saw, because the libraries hide or rename them.
func (r *reader) explain(err error) error {
	switch {
	case r.in.err != nil:
		return r.in.err
	case r.frame != nil && r.frame.failure() != nil:
		return r.frame.failure()
	case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
		if _, err := r.in.Peek(1); err == io.EOF {
			return r.in.cutOff()
		}
	}
	return fmt.Errorf("%v stream is corrupt before byte %d: %v", r.format, r.in.offset(), err)
}

// Close gives the decoder back. It returns no error.
func (r *reader) Close() error {
	d := r.decoder
	if d == nil {
		return nil
	}
	r.decoder = nil
	r.err = errClosed
	window := uint64(0)
	if d.frame != nil {
		window = d.frame.window()
	}
	if window <= keepWindow {
		d.in.reset(nil)
		decoders[d.format].Put(d)
	} else if window > largeWindow {
		d = nil
		debug.FreeOSMemory()
	}
	return nil
}

var errClosed = errors.New("decompressor is closed")

// input is the compressed file.
type input struct {
	*bufio.Reader
	format Format
	src    io.Reader
	n      int64 // bytes taken from src
	err    error // of src, other than io.EOF
}

func (in *input) reset(src io.Reader) {
	in.src, in.n, in.err = src, 0, nil
	in.Reader.Reset((*source)(in))
}

// offset returns how many bytes have been used.
func (in *input) offset() int64 { return in.n - int64(in.Buffered()) }

// header returns the next n bytes and leaves them where they are.
func (in *input) header(n int) ([]byte, error) {
	b, err := in.Peek(n)
	if err == io.EOF {
		err = in.cutOff()
	}
	return b, err
}

func (in *input) cutOff() error {
	return fmt.Errorf("%v stream is cut off after %d bytes: %w", in.format, in.n, io.ErrUnexpectedEOF)
}

func (in *input) corrupt(what string, args ...any) error {
	return fmt.Errorf("%v stream is corrupt at byte %d: %s", in.format, in.offset(), fmt.Sprintf(what, args...))
}

// source is the side of an input at which its buffer is filled.
type source input

func (s *source) Read(p []byte) (int, error) {
	n, err := s.src.Read(p)
	s.n += int64(n)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// framer passes one stream through unchanged, and ends where the stream ends.
type framer interface {
	io.Reader
	atEnd() bool    // everything has been passed
	failure() error // why it could not go on
	window() uint64 // bytes, the largest claim so far
}

// framing is the common part of the framers. A stream is a sequence of pieces,
// each of which tells its length at its beginning.
type framing struct {
	in    *input
	next  interface{ piece() (int64, error) }
	left  int64  // bytes of this piece still to pass
	most  uint64 // window that it may have
	claim uint64 // window
	err   error  // why there is no next piece; io.EOF at the end
}

// open looks at the first piece.
func (f *framing) open(next interface{ piece() (int64, error) }) error {
	f.next = next
	f.left, f.err = next.piece()
	return f.err
}

func (f *framing) atEnd() bool    { return f.err == io.EOF }
func (f *framing) window() uint64 { return f.claim }

func (f *framing) failure() error {
	if f.err == io.EOF {
		return nil
	}
	return f.err
}

func (f *framing) Read(p []byte) (n int, err error) {
	for n < len(p) {
		for f.left == 0 && f.err == nil {
			f.left, f.err = f.next.piece()
		}
		if f.err != nil {
			break
		}
		var k int
		k, err = f.in.Read(p[n:min(int64(len(p)), int64(n)+f.left)])
		n += k
		f.left -= int64(k)
		if err == io.EOF {
			err = f.in.cutOff()
		}
		if err != nil {
			f.err = err
			break
		}
	}
	if n > 0 {
		return n, nil
	}
	return 0, f.err
}
