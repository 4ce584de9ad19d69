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
	debMagic  = "!<arch>\ndebian-binary"
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
			return nil, errNested
		}
		st.head, st.rest = data, bytes.NewReader(nil)
		st.at, st.size = bytes.NewReader(data), int64(len(data))
		f.held += st.size
	}
	if st.begins(zipMagic) {
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
			return onlyZeros(r)
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

// onlyZeros reads what fills the last block of a tar archive; other data nobody sees who
// unpacks it.
func onlyZeros(r io.Reader) error {
	block := make([]byte, 64<<10)
	for {
		n, err := r.Read(block)
		if len(bytes.TrimLeft(block[:n], "\x00")) > 0 {
			return errors.New("data follows the end of the tar archive, and was not scanned")
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
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
		child := &file{path: name, archive: f.name(), mode: mode.Perm(), budget: f.budget, held: f.held}
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
