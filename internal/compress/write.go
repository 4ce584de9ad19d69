package compress

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Options are the settings of an [Encoder]. The zero value writes what the kernel's
// build writes.
type Options struct {
	// Level is the compression level as the programs number it: 1 to 9 for gzip and xz,
	// 1 to 22 for zstd, 0 for each program's default (6, 6 and 3). zstd's levels are
	// mapped to four: up to 2, 5, 9 and above.
	Level int
}

// maxLevel is the highest level of each format's program.
var maxLevel = [len(formats)]int{None: 22, Gzip: 9, XZ: 9, Zstd: 22}

// Check returns an error if format f does not support the options.
func (o Options) Check(f Format) error {
	if int(f) >= len(formats) {
		return fmt.Errorf("%v is unknown", f)
	}
	if o.Level < 0 || o.Level > maxLevel[f] {
		return fmt.Errorf("%v has no compression level %d: use 1 to %d, or 0 for the default", f, o.Level, maxLevel[f])
	}
	return nil
}

// zstdWindow is the window, in bytes, of the streams that an Encoder writes. It is that
// of zstd -3, as in the kernel's build. The kernel allocates the window to load a
// module, and a larger one makes modules of several MB no smaller.
const zstdWindow = 2 << 20

// Encoder compresses modules. It reuses its codecs and is safe for concurrent use. A
// call uses one goroutine (and, for xz, one process); [Encoder.Memory] returns the
// memory that a call needs.
type Encoder struct {
	options Options
	gzips   sync.Pool // *gzipWriter
	zstds   sync.Pool // *zstd.Encoder
	buffers sync.Pool // *[copyBuffer]byte

	xzProgram string      // path; empty if there is none
	withoutXZ atomic.Bool // set after an xz stream was written without the program
}

// copyBuffer is the number of bytes read from a source at once.
const copyBuffer = 64 << 10

// NewEncoder returns an encoder. It looks for an xz program on PATH. The level must be
// valid for at least one format.
func NewEncoder(o Options) (*Encoder, error) {
	if err := o.Check(Zstd); err != nil {
		return nil, err
	}
	e := &Encoder{options: o}
	if path, err := exec.LookPath("xz"); err == nil {
		e.xzProgram = path
	}
	e.buffers.New = func() any { return new([copyBuffer]byte) }
	return e, nil
}

// Notes returns notes for the user about the streams written so far.
func (e *Encoder) Notes() []string {
	if !e.withoutXZ.Load() {
		return nil
	}
	note := "no xz program found: xz modules are about 20% larger than those of the kernel's build; install xz-utils"
	if e.options.Level != 0 {
		note += fmt.Sprintf(", which also supports level %d", e.options.Level)
	}
	return []string{note}
}

// Compress writes the size bytes of src to dst as one stream of format f, or unchanged
// with [None]. A src with fewer or more bytes is an error. After an error, which may be
// that of ctx, dst holds the beginning of a stream.
//
// If ctx ends while src blocks in a Read, that Read may continue after Compress has
// returned.
func (e *Encoder) Compress(ctx context.Context, f Format, dst io.Writer, src io.Reader, size int64) error {
	if err := e.options.Check(f); err != nil {
		return err
	}
	in := &exactReader{ctx: ctx, src: src, size: size}
	var err error
	switch f {
	case None:
		err = e.copy(dst, in)
	case Gzip:
		err = e.gzip(dst, in)
	case XZ:
		if e.xzProgram != "" {
			err = runXZ(ctx, e.xzProgram, e.options.Level, dst, in)
		} else {
			e.withoutXZ.Store(true)
			err = e.fallbackXZ(dst, in)
		}
	case Zstd:
		err = e.zstd(dst, in, size)
	}
	// A failed source causes other errors downstream; its own error is the reason.
	if failure := in.err.Load(); failure != nil {
		return *failure
	}
	if err == nil && !in.complete.Load() {
		return fmt.Errorf("%v compressor did not read its input to the end", f)
	}
	return err
}

func (e *Encoder) copy(dst io.Writer, src io.Reader) error {
	buffer := e.buffers.Get().(*[copyBuffer]byte)
	defer e.buffers.Put(buffer)
	_, err := io.CopyBuffer(onlyWriter{dst}, src, buffer[:])
	return err
}

// onlyWriter hides a ReadFrom, which would allocate a buffer of its own.
type onlyWriter struct{ io.Writer }

// gzipWriter is a compressor with an output buffer, because the compressor writes in
// pieces of a few hundred bytes.
type gzipWriter struct {
	*gzip.Writer
	out *bufio.Writer
}

func (e *Encoder) gzip(dst io.Writer, src io.Reader) error {
	w, _ := e.gzips.Get().(*gzipWriter)
	if w == nil {
		level := e.options.Level
		if level == 0 {
			level = 6
		}
		out := bufio.NewWriterSize(nil, copyBuffer)
		zw, err := gzip.NewWriterLevel(out, level)
		if err != nil {
			return err
		}
		w = &gzipWriter{zw, out}
	}
	w.out.Reset(dst)
	w.Reset(w.out)
	w.OS = 3                    // Unix, RFC 1952, 2.3.1
	w.ModTime = time.Unix(0, 0) // no time: the library writes any other time, also the zero time.Time
	if err := e.copy(w, src); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	if err := w.out.Flush(); err != nil {
		return err
	}
	w.out.Reset(nil)
	e.gzips.Put(w)
	return nil
}

func (e *Encoder) zstd(dst io.Writer, src io.Reader, size int64) error {
	w, _ := e.zstds.Get().(*zstd.Encoder)
	if w == nil {
		level := e.options.Level
		if level == 0 {
			level = 3
		}
		var err error
		w, err = zstd.NewWriter(nil,
			zstd.WithEncoderConcurrency(1),
			zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)),
			zstd.WithWindowSize(zstdWindow),
			// A frame of a single block then has its content size even if it is below
			// 256 bytes.
			zstd.WithSingleSegment(true))
		if err != nil {
			return err
		}
	}
	w.ResetContentSize(dst, size)
	if err := e.copy(w, src); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	w.Reset(nil)
	e.zstds.Put(w)
	return nil
}

// exactReader reads exactly size bytes from src. It fails if src has fewer or more
// bytes or when ctx ends. Another goroutine may ask for its error while it reads.
type exactReader struct {
	ctx      context.Context
	src      io.Reader
	size, n  int64
	complete atomic.Bool
	err      atomic.Pointer[error]
}

func (r *exactReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, r.fail(context.Cause(r.ctx))
	}
	n, err := r.src.Read(p)
	r.n += int64(n)
	switch {
	case r.n > r.size:
		err = r.fail(fmt.Errorf("input is longer than the expected %d bytes; the file may have changed meanwhile", r.size))
	case err == io.EOF && r.n < r.size:
		err = r.fail(fmt.Errorf("input ends after %d of %d bytes; the file may have changed meanwhile", r.n, r.size))
	case err == io.EOF:
		r.complete.Store(true)
	case err != nil:
		err = r.fail(err)
	}
	return n, err
}

func (r *exactReader) fail(err error) error {
	r.err.Store(&err)
	return err
}
