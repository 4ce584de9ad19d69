package keyscan

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"

	"github.com/modsign/modsign/internal/archive"
)

// maxNested is the most that an archive inside another one may have, in bytes, if it has to
// be in memory for its reader. One at a time is.
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
}

func (s *stream) whole() io.Reader { return io.MultiReader(bytes.NewReader(s.head), s.rest) }

const (
	cpioMagic = "07070"
	peMagic   = "MZ"
)

// archiveOf returns the archive that a stream is, or nil if it is none. Its files are
// streams like this one. tar archives are read here and not as package archive does it:
// a container image is shipped with all its layers, also with what a higher one hides.
func (s *Scanner) archiveOf(st *stream) (opened, error) {
	head := st.head
	begins := func(magic string) bool { return bytes.HasPrefix(head, []byte(magic)) }
	switch {
	case len(head) > 262 && bytes.HasPrefix(head[257:], []byte("ustar")):
		return func(ctx context.Context, each func(string, fs.FileMode, io.Reader) error) error {
			return eachInTar(ctx, st.whole(), each)
		}, nil
	case begins("PK\x03\x04"), begins(cpioMagic), begins(peMagic),
		begins("!<arch>\ndebian-binary"), begins("\xed\xab\xee\xdb"),
		begins("hsqs"):
	default:
		return nil, nil
	}
	if st.at == nil {
		data, err := io.ReadAll(io.LimitReader(st.whole(), maxNested+1))
		switch {
		case err != nil:
			return nil, err
		case len(data) > maxNested && begins(peMagic): // a program, most likely
			st.head, st.rest = data, io.MultiReader(st.rest)
			return nil, nil
		case len(data) > maxNested:
			return nil, errNested
		}
		st.head, st.rest = data, bytes.NewReader(nil)
		st.at, st.size = bytes.NewReader(data), int64(len(data))
	}
	if begins("PK") {
		z, err := zip.NewReader(st.at, st.size)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context, each func(string, fs.FileMode, io.Reader) error) error {
			return s.eachInZip(ctx, z, each)
		}, nil
	}
	return openArchive(st.at, st.size)
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
			return nil
		case err != nil:
			return fmt.Errorf("tar archive is damaged: %w", err)
		case h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeGNUSparse:
			continue
		}
		if err := each(path.Clean("/" + h.Name)[1:], h.FileInfo().Mode(), t); err != nil {
			return err
		}
	}
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
		content, err := f.Open()
		if err != nil {
			return fmt.Errorf("zip archive: %w", err)
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

// lookInside looks at the files of an archive. What is wrong with one of them is a failure
// of its own; what is wrong with the archive is the error.
func (s *Scanner) lookInside(ctx context.Context, f *file, open opened, depth int) error {
	return open(ctx, func(name string, mode fs.FileMode, content io.Reader) error {
		for dir := name; dir != "."; dir = path.Dir(dir) { // an archive need not have its directories
			if s.isExcluded(dir) {
				return nil
			}
		}
		child := &file{path: name, archive: f.name(), mode: mode.Perm()}
		s.files.Add(1)
		if err := s.look(ctx, child, &stream{rest: content}, depth+1); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			s.fail(child, err)
		}
		return nil
	})
}
