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

// MaxWindow is the largest dictionary (xz) or window (zstd), in bytes, that a stream
// may ask for. It is the most that the kernel's build uses, for kernel images
// (scripts/xz_wrap.sh, zstd --ultra -22), and the default limit of the zstd program. A
// reader holds the window or the data, whichever is smaller; for the kernel's modules
// that is 1 to 2 MiB.
const MaxWindow = 128 << 20

// keepWindow is the largest window, in bytes, of a decoder that is reused for the next
// module. It is the default of xz and zstd -19.
const keepWindow = 8 << 20

// inputBuffer is the size in bytes of one read from a compressed stream.
const inputBuffer = 64 << 10

// NewReader returns a reader of the decompressed stream of format f in r. The stream
// must end where r ends. After limit bytes, Read returns a [TooLargeError] if there are
// more. The error of a truncated stream is [io.ErrUnexpectedEOF]; that of a stream
// which asks for more than [MaxWindow] is [ErrUnreadable]. A stream that does not match
// its checksums or that other data follows gives an error too. Read returns the data
// before an error first.
//
// The caller must close the reader, which does not close r. The reader is not safe for
// concurrent use.
func NewReader(f Format, r io.Reader, limit int64) (io.ReadCloser, error) {
	return newReader(f, r, limit, windowUnknown, false)
}

// NewEmbeddedReader is [NewReader] for a stream that other bytes follow, as in a kernel
// image, where the end of the stream is not known in advance. It may read some bytes
// after the stream from r.
func NewEmbeddedReader(f Format, r io.Reader, limit int64) (io.ReadCloser, error) {
	return newReader(f, r, limit, windowUnknown, true)
}

// reader decompresses one stream with a decoder.
type reader struct {
	*decoder
	limit, n int64 // bytes: allowed, returned so far
	embedded bool
	err      error // returned by every further Read
}

// decoder is the state that readers reuse for further streams.
//
// A framer passes the input to the xz and zstd libraries. It reads only the lengths
// that lead from one header to the next. That suffices to check each memory claim
// before the library sees it, to end exactly where the stream ends, and to distinguish
// a truncated stream from a corrupt one. The libraries do not do all of this.
type decoder struct {
	format Format
	in     input
	frame  framer    // nil for gzip
	out    io.Reader // the library
	gzip   *gzip.Reader
	xz     *xz.Reader
	zstd   *zstd.Decoder
}

// Decoders are reused by format, because creating one costs more than reading most
// modules.
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

// windowUnknown is the window of a stream that nobody has inspected.
const windowUnknown = -1

// start prepares the library of the decoder's format and reads the first header. The
// stream may ask for at most that window.
func (d *decoder) start(window int64) (err error) {
	most := uint64(MaxWindow)
	if window != windowUnknown {
		most = uint64(window)
	}
	if window > largeWindow {
		// Idle decoders, compressors and buffers would hold more memory than there is
		// beside this window. Two collections empty a pool.
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
		// The library reads a bufio.Reader byte by byte, and no further than necessary.
		err = d.gzip.Reset(d.in.Reader)
		d.gzip.Multistream(false)
		d.out = d.gzip
	case XZ:
		// therootcompany/xz is a translation of the kernel's own decoder and rejects
		// what that rejects. On the modules of a Debian kernel it is 1.6 times as fast
		// as ulikunitz/xz. It can be reused (1 kB of garbage per module instead of 1.2
		// MB), and supports the branch filters that kernel images need.
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
			d.zstd, err = zstd.NewReader(frame, zstd.WithDecoderConcurrency(1),
				zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(MaxWindow))
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
	// Ask for one byte over the limit, to detect a stream that is too large.
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

// finish checks that the input ends where its stream has ended. It returns io.EOF if
// so.
func (r *reader) finish() error {
	if r.embedded || r.format == None {
		return io.EOF
	}
	end := r.in.offset()
	if r.format == XZ {
		// The format allows zeros in groups of four.
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
		return fmt.Errorf("a second %v stream follows at byte %d; a module must be a single stream", r.format, r.in.offset())
	case len(head) > 0:
		return fmt.Errorf("other data follows the %v stream, which ends at byte %d", r.format, end)
	}
	return err
}

// explain turns an error of a library into a description of what is wrong. Read errors
// take precedence, then errors of the framer, because the libraries hide or rename
// them.
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
	what := fmt.Sprintf("%v stream is corrupt before byte %d", r.format, r.in.offset())
	if errors.Is(err, gzip.ErrChecksum) {
		return fmt.Errorf("%s: %w", what, ErrChecksum)
	}
	return fmt.Errorf("%s: %v", what, err)
}

// ErrChecksum reports that the checksum of gzip data, or their length, is not that of the content,
// which was read whole.
var ErrChecksum = errors.New("gzip: invalid checksum")

// Close releases the decoder for reuse. It always returns nil.
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
	err    error // from src, other than io.EOF
}

func (in *input) reset(src io.Reader) {
	in.src, in.n, in.err = src, 0, nil
	in.Reader.Reset((*source)(in))
}

// offset returns the number of bytes used.
func (in *input) offset() int64 { return in.n - int64(in.Buffered()) }

// header returns the next n bytes without consuming them.
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

// source is the end of an input that fills its buffer.
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
	atEnd() bool    // the whole stream has been passed
	failure() error // why the stream could not be followed
	window() uint64 // bytes, the largest claim so far
}

// framing is the common part of the framers. A stream is a sequence of pieces, each of
// which begins with its length.
type framing struct {
	in    *input
	next  interface{ piece() (int64, error) }
	left  int64  // bytes of this piece not yet passed
	most  uint64 // allowed window, in bytes
	claim uint64 // largest window claimed so far, in bytes
	err   error  // why there is no next piece; io.EOF at the end
}

// open reads the header of the first piece.
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
