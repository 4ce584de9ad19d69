package module

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"

	"github.com/modsign/modsign/internal/compress"
)

// Stored is the content of a module that was read from somewhere else than a file, such as
// an archive: in memory or, if it is large, in a temporary file without a name.
type Stored struct {
	Size int64 // in bytes

	buf  *bytes.Buffer
	file *os.File
}

// Store reads the size bytes of a module from r. More than [DefaultMemory] go to a temporary
// file. If r ends before, the error is io.ErrUnexpectedEOF.
func Store(ctx context.Context, r io.Reader, size int64) (*Stored, error) {
	r = io.LimitReader(Reader(ctx, r), size)
	s := &Stored{Size: size}
	var n int64
	var err error
	if size > DefaultMemory {
		if s.file, err = unnamedFile(); err != nil {
			return nil, err
		}
		n, err = Copy(s.file, r)
	} else {
		s.buf = buffers.Get().(*bytes.Buffer)
		s.buf.Reset()
		s.buf.Grow(int(size) + bytes.MinRead)
		n, err = s.buf.ReadFrom(r)
	}
	if err == nil && n < size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Memory returns how many bytes of memory the content takes.
func (s *Stored) Memory() int64 {
	if s.buf == nil {
		return 0
	}
	return s.Size
}

// Reader reads the content, until Close.
func (s *Stored) Reader() io.ReaderAt {
	if s.buf != nil {
		return bytes.NewReader(s.buf.Bytes())
	}
	return s.file
}

// Close gives up the content.
func (s *Stored) Close() {
	if s.buf != nil {
		buffers.Put(s.buf)
		s.buf = nil
	}
	if s.file != nil {
		s.file.Close()
		s.file = nil
	}
}

// OpenStored is [Open] for stored content. path is what errors and File.Path call it, and
// its base tells the compression. Close does not give up the stored content.
func OpenStored(ctx context.Context, path string, s *Stored, limits Limits) (*File, error) {
	content := s.Reader()
	format, err := formatOf(content, s.Size, filepath.Base(path))
	if err != nil {
		return nil, err
	}
	m := &File{ReaderAt: content, Path: path, Format: format, Size: s.Size, stored: content, held: s.Size,
		release: func() {}}
	if format == compress.None {
		err = m.reserve(ctx, limits)
	} else {
		err = m.decompress(ctx, limits)
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}
