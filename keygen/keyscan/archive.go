package keyscan

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/modsign/modsign/internal/archive"
	"github.com/modsign/modsign/internal/compress"
)

// maxNested is the most that archives inside others may have, in bytes, if they have to be in
// memory for their readers.
const maxNested = 128 << 20

var errNested = fmt.Errorf("an archive of more than %d MiB in another one was not looked into: unpack it first", maxNested>>20)

// An opened archive goes through its files in the order in which they are stored.
type opened func(ctx context.Context, each func(name string, mode fs.FileMode, content io.Reader) error) error

// look is the state of one stream: what it begins with, and all that follows.
type stream struct {
	head []byte
	rest io.Reader
	at   io.ReaderAt // the same stream, if it is a file; else nil
	size int64

	memory chan struct{} // to be released; nil if the stream is not in memory as a whole
	unread bool          // no byte behind head was read
	stub   bool          // a zip archive behind something else
}

// again returns the stream from its beginning, as far as it is still there: a file as a
// whole, what is in an archive or compressed up to its first window.
func (s *stream) again() io.Reader {
	switch {
	case s.at != nil:
		return io.NewSectionReader(s.at, 0, s.size)
	case s.unread:
		return s.whole()
	}
	return bytes.NewReader(s.head)
}

func (s *stream) whole() io.Reader { return io.MultiReader(bytes.NewReader(s.head), s.rest) }

func (s *stream) begins(magic string) bool { return bytes.HasPrefix(s.head, []byte(magic)) }

// release lets others have an archive in memory.
func (s *stream) release() {
	if s.memory != nil {
		<-s.memory
	}
}

const (
	cpioMagic = "07070"
	peMagic   = "MZ"
	rpmMagic  = "\xed\xab\xee\xdb"
	zipMagic  = "PK\x03\x04"
	arMagic   = "!<arch>\n"
	debMagic  = arMagic + "debian-binary"
	sqfsMagic = "hsqs"
)

// archiveOf returns the archive that a stream is, or nil if it is none. Its files are
// streams like this one. tar archives are read here and not as package archive does it:
// a container image is shipped with all its layers, also with what a higher one hides.
func (s *Scanner) archiveOf(f *file, st *stream) (opened, error) {
	switch {
	case len(st.head) > 262 && bytes.HasPrefix(st.head[257:], []byte("ustar")):
		return func(ctx context.Context, each func(string, fs.FileMode, io.Reader) error) error {
			return eachInTar(ctx, st.whole(), each)
		}, nil
	case st.begins(arMagic) && !st.begins(debMagic):
		return func(ctx context.Context, each func(string, fs.FileMode, io.Reader) error) error {
			return eachInAr(ctx, st.whole(), each)
		}, nil
	case (st.begins("\x7fELF") || st.begins("#!")) && st.endsLikeZip():
		st.stub = true
	case st.begins(zipMagic), st.begins(cpioMagic), st.begins(peMagic), st.begins(debMagic), st.begins(rpmMagic),
		st.begins(sqfsMagic):
	default:
		return nil, nil
	}
	if st.at == nil {
		if f.held == 0 {
			s.memory <- struct{}{}
			st.memory = s.memory
		}
		most := maxNested - f.held
		data, err := io.ReadAll(io.LimitReader(st.whole(), most+1))
		switch {
		case err != nil:
			return nil, err
		case int64(len(data)) > most && st.begins(peMagic): // a program, most likely
			st.head = data
			return nil, nil
		case int64(len(data)) > most:
			st.head, st.unread = data, true
			return nil, errNested
		}
		st.head, st.rest = data, bytes.NewReader(nil)
		st.at, st.size = bytes.NewReader(data), int64(len(data))
		f.held += st.size
	}
	if !st.begins(zipMagic) && !st.stub {
		open, err := openArchive(st.at, st.size)
		if open != nil || err != nil || !st.begins(peMagic) || !st.endsLikeZip() {
			return open, err
		}
		st.stub = true
	}
	z, err := zip.NewReader(st.at, st.size)
	if err != nil {
		return nil, err
	}
	z.RegisterDecompressor(zipBzip2, func(r io.Reader) io.ReadCloser { return io.NopCloser(bzip2.NewReader(r)) })
	z.RegisterDecompressor(zipZstd, decompressing)
	z.RegisterDecompressor(zipXZ, decompressing)
	return func(ctx context.Context, each func(string, fs.FileMode, io.Reader) error) error {
		return s.eachInZip(ctx, z, each)
	}, nil
}

// openArchive opens what package archive reads; a file that only begins like it is none.
func openArchive(r io.ReaderAt, size int64) (opened, error) {
	a, err := archive.New(r, size, archive.Limits{})
	if errors.Is(err, archive.ErrNotArchive) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, each func(string, fs.FileMode, io.Reader) error) error {
		for f, err := range a.Files(ctx) {
			if err != nil {
				return err
			}
			if !f.Mode.IsRegular() || f.Link != "" {
				continue
			}
			if err := each(f.Name, f.Mode, f); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

func eachInTar(ctx context.Context, r io.Reader, each func(string, fs.FileMode, io.Reader) error) error {
	t := tar.NewReader(r)
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := t.Next()
		switch {
		case err == io.EOF:
			return onlyZeros(r)
		case err != nil:
			return fmt.Errorf("tar archive is damaged: %w", err)
		}
		switch h.Typeflag {
		case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo, tar.TypeXGlobalHeader:
			continue // without content; GNU tar takes all other types for regular files
		}
		if err := each(path.Clean("/" + h.Name)[1:], h.FileInfo().Mode(), t); err != nil {
			return err
		}
	}
}

// onlyZeros reads what fills the last block of a tar archive; other data nobody sees who
// unpacks it.
func onlyZeros(r io.Reader) error {
	block := make([]byte, 64<<10)
	for {
		n, err := r.Read(block)
		if len(bytes.TrimLeft(block[:n], "\x00")) > 0 {
			return errors.New("data follows the end of the tar archive")
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Methods of compression in zip archives (APPNOTE.TXT of PKWARE, 4.4.5), beside those that
// archive/zip has.
const (
	zipBzip2 = 12
	zipZstd  = 93
	zipXZ    = 95
)

// decompressing reads a member of a zip archive in a format of package compress.
func decompressing(r io.Reader) io.ReadCloser {
	inner, err := compress.NewFile(r)
	if err != nil {
		return failing{err}
	}
	return inner
}

// endsLikeZip reports whether a file, such as a program that unpacks itself, has a zip
// archive at its end.
func (s *stream) endsLikeZip() bool {
	if s.at == nil {
		return false
	}
	const endSize = 22 // of the end of central directory record without a comment
	var end [4]byte
	n, _ := s.at.ReadAt(end[:], s.size-endSize)
	return s.size > endSize && n == len(end) && string(end[:]) == "PK\x05\x06"
}

func (s *Scanner) eachInZip(
	ctx context.Context, z *zip.Reader, each func(string, fs.FileMode, io.Reader) error,
) error {
	for _, f := range z.File {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !f.Mode().IsRegular() {
			continue
		}
		const encrypted = 1
		content, err := f.Open()
		switch {
		case f.Flags&encrypted != 0:
			err = errors.New("encrypted, and not looked into")
		case errors.Is(err, zip.ErrAlgorithm):
			err = fmt.Errorf("compressed by method %d of zip archives, and not looked into", f.Method)
		}
		if err != nil { // of this file alone
			content = failing{err}
		}
		max := s.options.MaxSize
		err = each(path.Clean("/" + f.Name)[1:], f.Mode(), &limited{ReadCloser: content, left: max, limit: max})
		content.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// eachInAr goes through an ar archive (ar(5)), such as a library. A header has the name in 16
// bytes, times, owners and the mode in 32, the size in 10, all as text, and two bytes that end
// it. Members begin at even offsets.
func eachInAr(ctx context.Context, r io.Reader, each func(string, fs.FileMode, io.Reader) error) error {
	if _, err := io.CopyN(io.Discard, r, int64(len(arMagic))); err != nil {
		return err
	}
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var header [60]byte
		switch _, err := io.ReadFull(r, header[:]); {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("ar archive is damaged: %w", err)
		}
		size, err := strconv.ParseInt(strings.TrimRight(string(header[48:58]), " "), 10, 64)
		if err != nil || size < 0 || string(header[58:]) != "`\n" {
			return errors.New("ar archive is damaged: a member has no header")
		}
		name := strings.TrimRight(string(header[:16]), " ")
		if name != "/" { // not the index of the others
			name = strings.TrimSuffix(name, "/")
		}
		member := &io.LimitedReader{R: r, N: size}
		if err := each(path.Clean("/" + name)[1:], 0, member); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, member); err != nil {
			return err
		}
		if member.N > 0 {
			return fmt.Errorf("ar archive is cut off: %w", io.ErrUnexpectedEOF)
		}
		if _, err := io.CopyN(io.Discard, r, size&1); err != nil && err != io.EOF {
			return err
		}
	}
}

// lookInside looks at the files of an archive. What is wrong with one of them is a failure
// of its own; what is wrong with the archive is the error.
func (s *Scanner) lookInside(ctx context.Context, f *file, open opened, depth int) error {
	return open(ctx, func(name string, mode fs.FileMode, content io.Reader) error {
		for dir := name; dir != "."; dir = path.Dir(dir) { // an archive need not have its directories
			if s.isExcluded(dir) {
				return nil
			}
		}
		child := &file{path: name, archive: f.name(), mode: mode.Perm(), budget: f.budget, held: f.held, seen: f.seen}
		s.files.Add(1)
		if err := s.look(ctx, child, &stream{rest: content}, depth+1); err != nil {
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case errors.Is(err, errBudget): // for all that is still to come, too
				return err
			}
			s.fail(child, err)
		}
		return nil
	})
}
