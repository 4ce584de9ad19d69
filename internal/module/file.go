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
	// DefaultMaxSize is the size limit of a decompressed module, in bytes.
	DefaultMaxSize = 2 << 30
	// DefaultMemory is the size limit of a module decompressed in memory, in bytes.
	DefaultMemory = 32 << 20
)

// Limits bound the cost of opening a compressed module. The zero value means the
// defaults.
type Limits struct {
	MaxSize int64 // decompressed bytes; a larger module is an error
	Memory  int64 // decompressed bytes in memory; a larger module goes to a temporary file

	// Budget, if not nil, counts the bytes that all open modules hold in memory
	// together, including the windows of their decoders. It must come from
	// [SharedLimits].
	Budget *semaphore.Weighted

	// Encoder is the memory in bytes that the caller's compressor will need for the
	// module. It is charged from opening to Close: a caller that charged it later would
	// wait for others that hold modules and wait as well.
	Encoder int64

	// Count, if not nil, gets the number of bytes each time that some have been decompressed.
	// Its error ends that. It is called by all that open modules at once.
	Count func(n int) error
}

// SharedLimits returns the limits of a run over many modules at once. No module may be
// larger than maxSize bytes; 0 means the default.
func SharedLimits(maxSize int64) Limits {
	return Limits{MaxSize: maxSize, Budget: semaphore.NewWeighted(memoryBudget)}
}

// A File is an open module. Its ReaderAt is the decompressed content with its
// signatures.
type File struct {
	io.ReaderAt
	Path   string
	Format compress.Format // compression of the file
	Size   int64           // of the content, in bytes
	Info   fs.FileInfo     // of the file when it was opened; nil for OpenStored

	file    *os.File    // nil for OpenStored
	stored  io.ReaderAt // the content as it is stored, compressed or not
	held    int64       // its size in bytes
	release func()
}

// ErrChanged reports that a module is no longer the one that was opened.
var ErrChanged = errors.New("file changed while modsign was reading: another process writes to the file")

// A MisnamedError reports a file whose name claims another compression than its content
// has. kmod and the kernel would not load the file.
type MisnamedError struct {
	Is    compress.Format // according to its first bytes
	Right string          // the matching base name
}

func (e *MisnamedError) Error() string {
	what := e.Is.String() + " data"
	if e.Is == compress.None {
		what = "an uncompressed module"
	}
	return fmt.Sprintf("name and content disagree: content is %s; the matching name is %s", what, e.Right)
}

// IsName reports whether a file name is a module's: *.ko, compressed or not.
func IsName(name string) bool { return strings.HasSuffix(BaseName(name), ".ko") }

// BaseName returns a module's file name, or path, without the suffix of a compression.
func BaseName(name string) string {
	return strings.TrimSuffix(name, compress.FromName(name).Suffix())
}

// Open opens the module at path, and decompresses it if it is compressed. The file must
// be a regular file, not a symbolic link. A name that does not match the content is a
// [*MisnamedError]. Open does not check that the content is a module; [CheckELF] does.
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

// OpenAs is [OpenIn] for a file that does not have its right name yet.
func OpenAs(ctx context.Context, dir *dirfd.Dir, name, right string, limits Limits) (*File, error) {
	f, err := dir.Open(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	return opened(ctx, f, dir.Path(name), right, limits)
}

// OpenBelow is [Open] for a path below an open directory, and follows no link in the
// path. For callers that only read, it costs less than opening the directory of the
// module first.
func OpenBelow(ctx context.Context, base *dirfd.Dir, rel string, limits Limits) (*File, error) {
	f, err := base.OpenBelow(rel)
	if err != nil {
		return nil, err
	}
	return opened(ctx, f, base.Path(rel), filepath.Base(rel), limits)
}

// opened is [open], and closes f after an error.
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
	named, err := formatOf(ends, info.Size(), name)
	if err != nil {
		ends.release()
		return nil, err
	}
	m := &File{ReaderAt: ends, Path: path, Format: named, Size: info.Size(), Info: info, file: f,
		stored: f, held: info.Size(), release: ends.release}
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

// formatOf returns the compression that a module has by its name, or a [*MisnamedError].
func formatOf(r io.ReaderAt, size int64, name string) (compress.Format, error) {
	var head [8]byte
	n := min(size, int64(len(head)))
	if err := readFull(r, head[:n], 0); err != nil {
		return compress.None, err
	}
	named, is := compress.FromName(name), compress.FromMagic(head[:n])
	// If the name claims a compression and the format of the content is unknown, the
	// decompressor reports a better error.
	if named != is && (is != compress.None || bytes.HasPrefix(head[:n], []byte("\x7fELF"))) {
		return named, &MisnamedError{Is: is, Right: BaseName(name) + is.Suffix()}
	}
	return named, nil
}

// A window is a file that buffers its beginning and its end once something is read
// there: headers and signatures are read in many small steps, and each would be a
// system call.
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

// buffers reuses the memory of decompressed modules.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// decompress replaces the File's content by the decompressed content.
func (m *File) decompress(ctx context.Context, limits Limits) error {
	if limits.MaxSize <= 0 {
		limits.MaxSize = DefaultMaxSize
	}
	if limits.Memory <= 0 {
		limits.Memory = DefaultMemory
	}
	// The size that the file claims decides only how much memory is reserved.
	memory := min(max(compress.SizeHint(m.Format, m.stored, m.Size), 64<<10), limits.Memory)
	window := compress.Window(m.Format, m.stored, m.Size)
	held, err := limits.charge(ctx, memory+max(compress.ReaderMemory(m.Format, window), limits.Encoder))
	if err != nil {
		return err
	}
	buf := buffers.Get().(*bytes.Buffer)
	buf.Reset()
	spilled, err := m.fill(ctx, buf, memory, limits, window)
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

// fill decompresses into buf. If memory bytes are too few, it decompresses into a file
// and returns that.
func (m *File) fill(
	ctx context.Context, buf *bytes.Buffer, memory int64, limits Limits, window int64,
) (spilled *os.File, err error) {
	d, err := compress.NewWindowReader(m.Format, io.NewSectionReader(m.stored, 0, m.Size), limits.MaxSize, window)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	r := Reader(ctx, d)
	if limits.Count != nil {
		r = counter{r, limits.Count}
	}
	buf.Grow(int(memory) + bytes.MinRead) // ReadFrom needs MinRead free bytes to detect the end
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

// A counter reports how much is read.
type counter struct {
	r     io.Reader
	count func(n int) error
}

func (c counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	if n > 0 {
		if stop := c.count(n); stop != nil {
			return 0, stop
		}
	}
	return n, err
}

// spill writes the decompressed module to a file without a name: head, and the rest of
// the decompressor's output.
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

// unnamedFile opens a temporary file that disappears when it is closed, also by a kill.
// It tries /var/tmp before /tmp, which is often in memory.
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
	// Not every file system supports files without a name.
	f, err = os.CreateTemp(dir, ".modsign-spill-")
	if err != nil {
		return nil, fmt.Errorf("no temporary file for a large module (set TMPDIR to another directory): %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Descriptor returns the file as stored on disk, compressed or not. It is nil for
// OpenStored.
func (m *File) Descriptor() *os.File { return m.file }

// Stored returns the content as it is stored, compressed or not, and its size in bytes.
func (m *File) Stored() (io.ReaderAt, int64) { return m.stored, m.held }

// Payload returns a reader of the first size bytes of the content.
func (m *File) Payload(size int64) *io.SectionReader { return io.NewSectionReader(m, 0, size) }

// Unchanged returns [ErrChanged] if the file was written to since it was opened, or if
// name in the directory is now another file.
func (m *File) Unchanged(dir *dirfd.Dir, name string) error {
	return Unchanged(m.file, m.Info, dir, name)
}

// Untouched returns [ErrChanged] if the file was written to or replaced since it was
// opened: both change the inode's times. A caller that writes to the file's name needs
// [File.Unchanged], which also detects replaced directories.
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

// Unchanged is [File.Unchanged] for any open file; info is from when it was opened.
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

// Reader returns a reader of r that fails with the context's error once ctx has ended.
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

// copies reuses the buffers of [Copy].
var copies = sync.Pool{New: func() any { return new([256 << 10]byte) }}

// Copy is io.Copy with a large buffer that later calls reuse: a tree has thousands of
// modules, and Copy reads most of them in one step.
func Copy(dst io.Writer, src io.Reader) (int64, error) {
	buf := copies.Get().(*[256 << 10]byte)
	defer copies.Put(buf)
	// Hide other methods, so that neither side bypasses buf.
	return io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf[:])
}

// CopyAll is [Copy] of size bytes that end at the end of src. It returns [ErrChanged] if
// there are fewer: the module has shrunk since it was opened.
func CopyAll(dst io.Writer, src io.Reader, size int64) error {
	n, err := Copy(dst, src)
	if err == nil && n < size {
		return ErrChanged
	}
	return err
}

// Close closes the file and releases the content.
func (m *File) Close() error {
	if m.release != nil {
		m.release()
		m.release = nil
	}
	m.ReaderAt = nil
	if m.file == nil {
		return nil
	}
	return m.file.Close()
}
