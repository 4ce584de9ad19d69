package module

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/dirfd"
)

const (
	// DefaultMaxSize is the largest module that is decompressed, in bytes.
	DefaultMaxSize = 2 << 30
	// DefaultMemory is the largest decompressed module that is held in memory.
	DefaultMemory = 32 << 20
)

// Limits bound what opening a compressed module may cost. The zero value stands
// for the defaults.
type Limits struct {
	MaxSize int64 // decompressed bytes; a larger module is refused
	Memory  int64 // decompressed bytes held in memory; more goes to a temporary file

	// Budget, when there is one, counts the bytes that all opened modules together
	// hold in memory, with the windows of their decoders. It must be that of [SharedLimits].
	Budget *semaphore.Weighted

	// Encoder is what the caller's compressor is going to hold for the module, in
	// bytes. It counts from opening to Close: who asked for it later would wait for
	// others that hold modules and wait as well.
	Encoder int64
}

// SharedLimits are those of a run over many modules at once, of which none may be
// larger than maxSize; 0 stands for the default.
func SharedLimits(maxSize int64) Limits {
	return Limits{MaxSize: maxSize, Budget: semaphore.NewWeighted(memoryBudget)}
}

// A File is an opened module. Its ReaderAt is the decompressed content, with
// its signatures.
type File struct {
	io.ReaderAt
	Path   string
	Format compress.Format // how the file is compressed
	Size   int64           // of the content, in bytes
	Info   fs.FileInfo     // of the file as it was when it was opened

	file    *os.File
	release func()
}

// ErrChanged says that a module is no longer the one that was opened.
var ErrChanged = errors.New("file changed while it was being read: another process writes to it")

// A MisnamedError is a file whose name promises another compression than its
// content has: kmod and the kernel would not read it.
type MisnamedError struct {
	Is    compress.Format // by its first bytes
	Right string          // the base name that fits
}

func (e *MisnamedError) Error() string {
	what := e.Is.String() + " data"
	if e.Is == compress.None {
		what = "an uncompressed module"
	}
	return fmt.Sprintf("name and content disagree: it holds %s; its name would be %s", what, e.Right)
}

// IsName reports whether a file name is that of a module: *.ko, compressed or
// not.
func IsName(name string) bool { return strings.HasSuffix(BaseName(name), ".ko") }

// BaseName is a module's file name, or path, without the suffix of a
// compression.
func BaseName(name string) string {
	return strings.TrimSuffix(name, compress.FromName(name).Suffix())
}

// Open opens the module at path, a regular file and no symbolic link, and
// decompresses it if it is compressed. A name that does not fit the content
// gives a [*MisnamedError]. Whether the content is a module is for [CheckELF]
// to say.
func Open(ctx context.Context, path string, limits Limits) (*File, error) {
	return openPath(ctx, path, filepath.Base(path), limits)
}

func openPath(ctx context.Context, path, right string, limits Limits) (*File, error) {
	dir, err := dirfd.Open(filepath.Dir(path))
	if err != nil {
		return nil, renamedError(err, path)
	}
	defer dir.Close()
	m, err := OpenAs(ctx, dir, filepath.Base(path), right, limits)
	if err != nil {
		return nil, err
	}
	m.Path = path
	return m, nil
}

// OpenIn is [Open] for a name in an open directory.
func OpenIn(ctx context.Context, dir *dirfd.Dir, name string, limits Limits) (*File, error) {
	return OpenAs(ctx, dir, name, name, limits)
}

// OpenAs is [OpenIn] for a file that is not called by its right name yet.
func OpenAs(ctx context.Context, dir *dirfd.Dir, name, right string, limits Limits) (*File, error) {
	f, err := dir.Open(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	return opened(ctx, f, dir.Path(name), right, limits)
}

// OpenBelow is [Open] for a path below an open directory, on which no link is followed.
// It costs less than to open the directory of the module first, and serves who does
// nothing but read.
func OpenBelow(ctx context.Context, base *dirfd.Dir, rel string, limits Limits) (*File, error) {
	f, err := base.OpenBelow(rel)
	if err != nil {
		return nil, err
	}
	return opened(ctx, f, base.Path(rel), filepath.Base(rel), limits)
}

// opened is [open], and closes what it cannot make a module of.
func opened(ctx context.Context, f *os.File, path, name string, limits Limits) (*File, error) {
	m, err := open(ctx, f, path, name, limits)
	if err != nil {
		f.Close()
		return nil, err
	}
	return m, nil
}

func open(ctx context.Context, f *os.File, path, name string, limits Limits) (*File, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	ends := newWindow(f, info.Size())
	var head [8]byte
	n := min(info.Size(), int64(len(head)))
	if err := readFull(ends, head[:n], 0); err != nil {
		ends.release()
		return nil, err
	}
	named, is := compress.FromName(name), compress.FromMagic(head[:n])
	if named != is {
		// A name that promises a compression and bytes that are none known are
		// left to the decompressor to explain.
		if is != compress.None || bytes.HasPrefix(head[:n], []byte("\x7fELF")) {
			ends.release()
			return nil, &MisnamedError{Is: is, Right: BaseName(name) + is.Suffix()}
		}
	}
	m := &File{ReaderAt: ends, Path: path, Format: named, Size: info.Size(), Info: info, file: f, release: ends.release}
	if named != compress.None {
		ends.release()
		m.release = nil
		if err := m.decompress(ctx, limits); err != nil {
			return nil, err
		}
	} else if err := m.reserve(ctx, limits); err != nil {
		ends.release()
		return nil, err
	}
	return m, nil
}

// A window is a file of which the ends are held, once something is read there: headers
// and signatures are looked at in many small steps, each of which would be a call of
// the system.
type window struct {
	f    *os.File
	size int64
	ends *ends
}

type ends struct {
	head, tail       [4 << 10]byte
	hasHead, hasTail bool
}

var windows = sync.Pool{New: func() any { return new(ends) }}

func newWindow(f *os.File, size int64) *window {
	w := &window{f, size, windows.Get().(*ends)}
	w.ends.hasHead, w.ends.hasTail = false, false
	return w
}

func (w *window) release() {
	windows.Put(w.ends)
	w.ends = nil
}

func (w *window) ReadAt(b []byte, off int64) (int, error) {
	tail := w.size - int64(len(w.ends.tail))
	end := off + int64(len(b))
	if off < 0 || tail < 0 || end > w.size || end > int64(len(w.ends.head)) && off < tail {
		return w.f.ReadAt(b, off)
	}
	part, has, at := &w.ends.head, &w.ends.hasHead, int64(0)
	if off >= tail {
		part, has, at = &w.ends.tail, &w.ends.hasTail, tail
	}
	if !*has {
		if err := readFull(w.f, part[:], at); err != nil {
			return 0, err
		}
		*has = true
	}
	return copy(b, part[off-at:]), nil
}

// buffers holds the memory of decompressed modules for the next ones.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// decompress replaces the File's content by what it decompresses to.
func (m *File) decompress(ctx context.Context, limits Limits) error {
	if limits.MaxSize <= 0 {
		limits.MaxSize = DefaultMaxSize
	}
	if limits.Memory <= 0 {
		limits.Memory = DefaultMemory
	}
	// The file's own claim decides how much is held in memory, and nothing else.
	memory := min(max(compress.SizeHint(m.Format, m.file, m.Size), 64<<10), limits.Memory)
	window := compress.Window(m.Format, m.file, m.Size)
	held, err := limits.charge(ctx, memory+max(compress.ReaderMemory(m.Format, window), limits.Encoder))
	if err != nil {
		return err
	}
	buf := buffers.Get().(*bytes.Buffer)
	buf.Reset()
	spilled, err := m.fill(ctx, buf, memory, limits.MaxSize, window)
	switch {
	case err != nil:
		buffers.Put(buf)
		held.reduce(0)
		return err
	case spilled != nil:
		buffers.Put(buf)
		held.reduce(limits.Encoder)
		m.release = func() {
			spilled.Close()
			held.reduce(0)
		}
	default:
		held.reduce(memory + limits.Encoder)
		m.release = func() {
			buffers.Put(buf)
			held.reduce(0)
		}
	}
	return nil
}

// fill decompresses into buf, or into a file that it returns where memory bytes turn
// out to be too few.
func (m *File) fill(ctx context.Context, buf *bytes.Buffer, memory, maxSize, window int64) (spilled *os.File, err error) {
	d, err := compress.NewWindowReader(m.Format, io.NewSectionReader(m.file, 0, m.Size), maxSize, window)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	r := Reader(ctx, d)
	buf.Grow(int(memory) + bytes.MinRead) // what ReadFrom wants to be free when it asks for the end
	n, err := io.Copy(buf, io.LimitReader(r, memory+1))
	if err != nil {
		return nil, err
	}
	if n > memory {
		return m.spill(buf, r)
	}
	m.ReaderAt, m.Size = bytes.NewReader(buf.Bytes()), n
	return nil, nil
}

// spill writes the decompressed module to a file that has no name: what is in
// memory already and what the decompressor still has.
func (m *File) spill(head *bytes.Buffer, rest io.Reader) (*os.File, error) {
	spilled, err := unnamedFile()
	if err != nil {
		return nil, err
	}
	size, err := head.WriteTo(spilled)
	if err == nil {
		var n int64
		n, err = io.Copy(spilled, rest)
		size += n
	}
	if err != nil {
		spilled.Close()
		return nil, err
	}
	m.ReaderAt, m.Size = spilled, size
	return spilled, nil
}

// unnamedFile opens a temporary file that is gone when it is closed, also by a
// kill. /tmp is often memory itself, so that /var/tmp comes before it.
func unnamedFile() (*os.File, error) {
	dir := os.Getenv("TMPDIR")
	if dir == "" {
		dir = "/var/tmp"
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			dir = os.TempDir()
		}
	}
	f, err := os.OpenFile(dir, os.O_RDWR|os.O_EXCL|unix.O_TMPFILE, 0o600)
	if err == nil {
		return f, nil
	}
	// Not every file system has files without a name.
	f, err = os.CreateTemp(dir, ".modsign-spill-")
	if err != nil {
		return nil, fmt.Errorf("no place for a large module (TMPDIR names another): %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Descriptor is the file as it lies on disk, compressed or not.
func (m *File) Descriptor() *os.File { return m.file }

// Payload reads the first size bytes of the content, from its beginning.
func (m *File) Payload(size int64) *io.SectionReader { return io.NewSectionReader(m, 0, size) }

// Unchanged returns [ErrChanged] when the file was written to since it was opened, or
// is no longer what name stands for in a directory.
func (m *File) Unchanged(dir *dirfd.Dir, name string) error {
	return Unchanged(m.file, m.Info, dir, name)
}

// Untouched returns [ErrChanged] when the file was written to or replaced since it was
// opened: both change the time of its inode. Who writes to its name needs
// [File.Unchanged], which knows of directories that were exchanged, too.
func (m *File) Untouched() error {
	_, err := untouched(m.file, m.Info)
	return err
}

func untouched(f *os.File, info fs.FileInfo) (*unix.Stat_t, error) {
	var now unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &now); err != nil {
		return nil, &fs.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	was := info.Sys().(*syscall.Stat_t)
	if now.Size != was.Size || now.Mtim != unix.Timespec(was.Mtim) || now.Ctim != unix.Timespec(was.Ctim) {
		return nil, ErrChanged
	}
	return &now, nil
}

// Unchanged is [File.Unchanged] for any open file, which was info then.
func Unchanged(f *os.File, info fs.FileInfo, dir *dirfd.Dir, name string) error {
	opened, err := untouched(f, info)
	if err != nil {
		return err
	}
	named, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return ErrChanged
	}
	if err != nil {
		return err
	}
	if opened.Dev != named.Dev || opened.Ino != named.Ino {
		return ErrChanged
	}
	return nil
}

// Reader returns r, which ends with the context's error when the context does.
func Reader(ctx context.Context, r io.Reader) io.Reader { return &reader{ctx, r} }

type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r *reader) Read(b []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.r.Read(b)
}

// copies holds the buffers of [Copy].
var copies = sync.Pool{New: func() any { return new([256 << 10]byte) }}

// Copy is io.Copy through a large buffer that the next call uses again: a tree has
// thousands of modules, and most of them are read in one step.
func Copy(dst io.Writer, src io.Reader) (int64, error) {
	buf := copies.Get().(*[256 << 10]byte)
	defer copies.Put(buf)
	// Plain values, so that neither side takes another way than through buf.
	return io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf[:])
}

// Close closes the file and lets go of the content.
func (m *File) Close() error {
	if m.release != nil {
		m.release()
		m.release = nil
	}
	m.ReaderAt = nil
	return m.file.Close()
}
