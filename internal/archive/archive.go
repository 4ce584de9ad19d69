// Package archive reads the files in what carries kernel modules: Debian and RPM
// packages, container images, tar archives, initramfs images and unified kernel images.
// Nothing is unpacked to disk.
//
// Call [Open], and go through [Archive.Files]. [Modules] goes through the kernel modules
// alone, several at a time, with the kernel image beside them.
//
// # Formats
//
// A file is recognized by its content, whatever its name:
//
//	deb        ar(5) of debian-binary, control.tar and data.tar, each tar compressed
//	           or not (deb(5)). The control files are those in DEBIAN/, as dpkg-deb -R has it.
//	rpm        lead, signature header, header and a compressed cpio archive
//	           (docs/manual/format_v4.md of rpm), also the form for files of 4 GiB and more,
//	           in which names and sizes are in the header alone
//	OCI        a directory or a tar archive with oci-layout and index.json, as
//	           https://github.com/opencontainers/image-spec (image-layout.md) has it
//	docker     a tar archive with manifest.json, as docker save writes it
//	tar        v7, ustar, pax and GNU, compressed or not
//	initramfs  cpio archives in the formats newc and crc, each compressed or not, with
//	           zeros between (Documentation/driver-api/early-userspace/buffer-format.rst)
//	UKI        a PE file with a section .linux, a file of that name here. The sections
//	           .initrd and .ucode are initramfs images.
//
// Streams are gzip, xz, zstd, bzip2, lzma, lz4 or lzo. A squashfs image is an error that says
// how to unpack it.
//
// # Files
//
// The name of a file is its path from the root of the system that the archive holds: clean,
// without a slash at the beginning, and never out of the root. Of a container image the
// files are those of all layers together: each as the highest layer has it, the highest
// layer first, and without those that a layer takes away. If there are several images,
// [File.Image] names them. In other archives, a file that comes twice is reported twice.
//
// # Limits
//
// An archive is untrusted. Its readers hold one file's header at a time. Names that must be
// kept (links, layers, files without content yet) are counted by [Limits].
package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/compress"
)

// Kind is what an archive is.
type Kind string

const (
	Deb       Kind = "deb"
	RPM       Kind = "rpm"
	OCI       Kind = "OCI image"
	Docker    Kind = "docker image"
	Tar       Kind = "tar archive"
	Initramfs Kind = "initramfs"
	UKI       Kind = "unified kernel image"
	// These are recognized, and not read.
	Squashfs  Kind = "squashfs image"
	OldDeb    Kind = "Debian package of the first format"
	OldCpio   Kind = "cpio archive in an old format"
	SkopeoDir Kind = "container image of skopeo's dir:"
)

// ErrNotArchive reports a file in none of the formats.
var ErrNotArchive = errors.New("not a package, a container image, a tar archive or an initramfs")

// Limits bound what an archive may hold. The zero value means the defaults.
type Limits struct {
	Bytes   int64 // in all files and streams together, decompressed; 1 TiB
	Entries int   // files and directories; 2 million
	Name    int   // bytes of a name, and of the target of a link; 4096
	Depth   int   // directories in a name; 128
	Kept    int64 // bytes of names that are kept at once; 128 MiB
	// Ratio is the most that the streams of the archive may expand to, and its modules, beyond
	// the first GiB; 250 bytes for each byte.
	Ratio int64

	free int64 // what Ratio leaves out; 1 GiB
}

func (l *Limits) complete() {
	set := func(n *int64, otherwise int64) {
		if *n <= 0 {
			*n = otherwise
		}
	}
	set(&l.Bytes, 1<<40)
	set(&l.Kept, 128<<20)
	set(&l.Ratio, 250)
	set(&l.free, 1<<30)
	if l.Entries <= 0 {
		l.Entries = 2_000_000
	}
	if l.Name <= 0 {
		l.Name = 4096
	}
	if l.Depth <= 0 {
		l.Depth = 128
	}
}

// ErrLimit reports an archive that goes beyond a limit.
var ErrLimit = errors.New("archive exceeds a limit")

func (l *Limits) exceeded(what string, limit int64) error {
	return fmt.Errorf("%w: more than %d %s", ErrLimit, limit, what)
}

// A File is one file, directory or link in an archive.
type File struct {
	Name  string      // the clean path from the root: "boot/vmlinuz-6.12.0"
	Image string      // of several container images, the one that has it; else empty
	Mode  fs.FileMode // type and permissions
	Size  int64       // of the content, in bytes; 0 unless the file is regular and no hard link
	// Link is the target of a symbolic link, as it is stored. If the file is regular, it is
	// a hard link, and Link the Name of a file with the content, which comes earlier.
	Link string

	walk    *walk
	inner   string // the Name of the initramfs in the archive that has the file
	content io.Reader
	layer   int  // of a container image, the lowest is 0
	shared  bool // one of the hard links to a file in an initramfs
	hidden  bool // taken away by a layer above, or this one: only a hard link leads to it
}

// Read reads the content of a regular file, which is valid until the next file. It
// returns io.ErrUnexpectedEOF if the archive ends before the content.
func (f *File) Read(b []byte) (int, error) {
	if f.content == nil {
		return 0, io.EOF
	}
	return f.content.Read(b)
}

// An Archive is an open archive.
type Archive struct {
	path   string
	kind   Kind
	r      io.ReaderAt
	size   int64
	root   *os.Root // of an OCI directory
	file   *os.File
	limits Limits
}

// Recognize tells which kind of archive is at a path. A file or directory that is none is
// [ErrNotArchive]. A file that has the format of a compressed archive without being one is
// none.
func Recognize(path string) (Kind, error) {
	a, err := Open(path, Limits{})
	if err != nil {
		return "", err
	}
	return a.kind, a.Close()
}

// Open opens the archive at a path: a regular file, or a directory with an OCI layout. The
// error is [ErrNotArchive] for everything else that can be read.
func Open(name string, limits Limits) (*Archive, error) {
	// O_NONBLOCK, as opening a FIFO would wait.
	file, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	a, err := open(file, name, limits)
	if err != nil {
		file.Close()
		return nil, err
	}
	return a, nil
}

func open(file *os.File, name string, limits Limits) (*Archive, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	switch {
	case info.IsDir() && isSkopeoDir(name):
		a := &Archive{path: name, kind: SkopeoDir, file: file, limits: limits}
		a.limits.complete()
		return a, nil
	case info.IsDir():
		if layout, err := os.Stat(filepath.Join(name, layoutFile)); err != nil || !layout.Mode().IsRegular() {
			return nil, fmt.Errorf("%s: %w", name, ErrNotArchive)
		}
		root, err := os.OpenRoot(name)
		if err != nil {
			return nil, err
		}
		a := &Archive{path: name, kind: OCI, root: root, file: file, limits: limits}
		a.limits.complete()
		return a, nil
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: %w", name, ErrNotArchive)
	}
	a, err := New(file, info.Size(), limits)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	a.path, a.file = name, file
	return a, nil
}

// isSkopeoDir reports whether a directory is an image as containers/image writes it to dir:, with a
// file that says so.
func isSkopeoDir(name string) bool {
	f, err := os.OpenFile(filepath.Join(name, "version"), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	const begins = "Directory Transport Version"
	head := make([]byte, len(begins))
	_, err = io.ReadFull(f, head)
	return err == nil && string(head) == begins
}

// New opens an archive of size bytes.
func New(r io.ReaderAt, size int64, limits Limits) (*Archive, error) {
	a := &Archive{r: r, size: size, limits: limits}
	a.limits.complete()
	var err error
	a.kind, err = recognize(r, size)
	if err != nil {
		return nil, err
	}
	return a, nil
}

// headSize is how many bytes tell the kind of an archive.
const headSize = 4096

// maxPadding is how many zeros may be before an initramfs, in bytes.
const maxPadding = 1 << 20

func recognize(r io.ReaderAt, size int64) (Kind, error) {
	head := make([]byte, min(size, headSize))
	n, err := r.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return "", err
	}
	head = head[:n]
	if isEmptyTar(r, size) {
		return Tar, nil
	}
	if kind := kindOf(head); kind != "" {
		if kind == Tar {
			return tarKind(r, size)
		}
		return kind, nil
	}
	if isUKI(r) {
		return UKI, nil
	}
	if zeros, err := nextNonzero(io.NewSectionReader(r, 0, min(size, maxPadding)), 0); err == nil && zeros > 0 {
		// The kernel passes over zeros before an initramfs as well.
		n, _ := r.ReadAt(head[:cap(head)], zeros)
		if kindOf(head[:n]) == Initramfs {
			return Initramfs, nil
		}
	}
	if compress.StreamFormat(head) == "" {
		return "", ErrNotArchive
	}
	s, err := compress.NewStream(io.NewSectionReader(r, 0, size))
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNotArchive, err)
	}
	defer s.Close()
	inner := make([]byte, 512)
	n, err = io.ReadFull(s, inner)
	switch kind := kindOf(inner[:n]); {
	case kind == Tar || kind == Initramfs || kind == OldCpio:
		return kind, nil
	case err != nil && err != io.EOF && err != io.ErrUnexpectedEOF:
		return "", fmt.Errorf("%w: %w", ErrNotArchive, err)
	}
	return "", ErrNotArchive
}

// kindOf returns the kind of an archive by its first bytes alone, and "" if they do not tell.
func kindOf(head []byte) Kind {
	begins := func(magic string) bool { return bytes.HasPrefix(head, []byte(magic)) }
	switch {
	case begins(arMagic + "debian-binary"):
		return Deb
	case begins(rpmMagic):
		return RPM
	case begins("hsqs"):
		return Squashfs
	case begins(cpioNewc), begins(cpioCRC):
		return Initramfs
	case begins("070707"), isBinaryCpio(head):
		return OldCpio
	case begins("0.939000\n"):
		return OldDeb
	case isTar(head):
		return Tar
	}
	return ""
}

// Kind returns what the archive is.
func (a *Archive) Kind() Kind { return a.kind }

// Path returns the path that the archive was opened with.
func (a *Archive) Path() string { return a.path }

// Close closes what Open opened.
func (a *Archive) Close() error {
	if a.root != nil {
		a.root.Close()
	}
	if a.file != nil {
		return a.file.Close()
	}
	return nil
}

// Files goes through the archive. An error ends it, and comes with a nil File: then the
// archive was not read to its end. The context's cause is such an error.
func (a *Archive) Files(ctx context.Context) iter.Seq2[*File, error] { return a.files(ctx, false) }

// files is Files, with hidden files if hard links in layers of container images lead to them.
func (a *Archive) files(ctx context.Context, hidden bool) iter.Seq2[*File, error] {
	return func(yield func(*File, error) bool) {
		w := &walk{ctx: ctx, limits: a.limits, hidden: hidden, file: func(f *File) error {
			if !yield(f, nil) {
				return errStopped
			}
			return nil
		}}
		if err := w.archive(a); err != nil && !errors.Is(err, errStopped) {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			yield(nil, err)
		}
	}
}

// errStopped ends a walk whose caller has seen enough.
var errStopped = errors.New("stopped")

// A walk goes through one archive.
type walk struct {
	ctx     context.Context
	limits  Limits
	file    func(*File) error
	hidden  bool // pass on hidden files
	image   string
	layer   int
	entries int
	bytes   int64 // read from streams and archives
	packed  int64 // compressed bytes of streams that have ended
	kept    int64 // bytes of names that are kept
	read    int64 // compressed bytes so far
	outer   *walk // reads the archive that this one is in, and counts for both
}

func (w *walk) archive(a *Archive) error {
	if a.kind == SkopeoDir {
		return fmt.Errorf("images as skopeo writes them to dir: are not read: skopeo copy dir:%s oci:DIR, and give DIR",
			a.path)
	}
	section := io.NewSectionReader(a.r, 0, a.size)
	switch a.kind {
	case Deb:
		return w.deb(section)
	case RPM:
		return w.rpm(section)
	case OCI, Docker:
		return w.images(a)
	case Tar:
		return w.tar(section)
	case Initramfs:
		return w.initramfs(section)
	case UKI:
		return w.uki(section)
	case OldDeb:
		return errors.New("packages in the format 0.939 are not read: unpack it with dpkg-deb -x, and give DIR")
	case OldCpio:
		return errors.New("cpio archives in another format than newc and crc are not read, as the kernel refuses them: " +
			"unpack it with cpio -i, and give DIR")
	case Squashfs:
		return errors.New("squashfs images are not read: unpack it with unsquashfs -d DIR IMAGE, and give DIR")
	}
	return ErrNotArchive
}

// emit passes on a file whose name is as stored, and drops what is left of its content.
func (w *walk) emit(f *File) error {
	if err := w.admit(f.Name, f.Link); err != nil {
		return err
	}
	f.Name, f.Image, f.layer, f.walk = cleanName(f.Name), w.image, w.layer, w
	if f.Mode.IsRegular() && f.Link != "" {
		f.Link = cleanName(f.Link)
	}
	if f.Size < 0 {
		return fmt.Errorf("%s: the archive claims a size of %d bytes", f.Name, f.Size)
	}
	return w.file(f)
}

// admit counts an entry.
func (w *walk) admit(name, link string) error {
	if w.outer != nil {
		return w.outer.admit(name, link)
	}
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if w.entries++; w.entries > w.limits.Entries {
		return w.limits.exceeded("entries", int64(w.limits.Entries))
	}
	if len(name) > w.limits.Name || len(link) > w.limits.Name {
		return w.limits.exceeded("bytes in a name", int64(w.limits.Name))
	}
	if strings.Count(name, "/") > w.limits.Depth {
		return w.limits.exceeded("directories in a name", int64(w.limits.Depth))
	}
	return nil
}

// keptEntry is what a name that is kept costs beside its bytes.
const keptEntry = 64

// keep counts a name that is kept.
func (w *walk) keep(name string) error {
	if w.outer != nil {
		return w.outer.keep(name)
	}
	if w.kept += int64(len(name)) + keptEntry; w.kept > w.limits.Kept {
		return w.limits.exceeded("bytes of names to remember", w.limits.Kept)
	}
	return nil
}

// drop takes back what keep counted.
func (w *walk) drop(name string) {
	if w.outer != nil {
		w = w.outer
	}
	w.kept -= int64(len(name)) + keptEntry
}

// cleanName returns the path from the root for a name in an archive.
func cleanName(name string) string { return path.Clean("/" + name)[1:] }

// unpacked returns a reader of a file in an archive: decompressed, if it is compressed. All
// streams that follow one another belong to it.
func (w *walk) unpacked(section *io.SectionReader) (*stream, error) {
	s := &stream{walk: w, section: section}
	if format, err := s.format(); err != nil {
		return nil, err
	} else if format == "" {
		s.plain = true
		return s, nil
	}
	return s, s.open()
}

// A stream reads a section of an archive, decompressed.
type stream struct {
	walk    *walk
	section *io.SectionReader
	at      int64 // where the stream begins, or ends after io.EOF
	single  bool  // end with the first stream
	plain   bool  // not compressed
	now     *compress.Stream
	err     error
}

// format returns the format of the stream that begins at s.at.
func (s *stream) format() (string, error) {
	head, err := s.peek()
	return compress.StreamFormat(head), err
}

func (s *stream) peek() ([]byte, error) {
	var head [16]byte
	n, err := s.section.ReadAt(head[:], s.at)
	if err == io.EOF {
		err = nil
	}
	return head[:n], err
}

func (s *stream) open() (err error) {
	s.now, err = compress.NewStream(io.NewSectionReader(s.section, s.at, s.section.Size()-s.at))
	return err
}

func (s *stream) Read(b []byte) (n int, err error) {
	if s.err == nil {
		s.err = s.walk.ctx.Err()
	}
	if s.err != nil {
		return 0, s.err
	}
	if s.plain {
		n, err = s.section.Read(b)
		s.walk.packed += int64(n)
		s.err = s.walk.count(n, err, s.walk.packed)
		return n, s.err
	}
	n, err = s.now.Read(b)
	packed := s.walk.packed + s.now.Used()
	if err == io.EOF {
		err = s.next()
	}
	s.err = s.walk.count(n, err, packed)
	return n, s.err
}

// count adds n bytes that were read, out of packed in all, and returns err or the limit that
// they exceed.
func (w *walk) count(n int, err error, packed int64) error {
	if w.outer != nil { // what is compressed twice expands no more than what is so once
		return w.outer.count(n, err, w.outer.read)
	}
	w.read = packed
	w.bytes += int64(n)
	if w.bytes > w.limits.Bytes {
		return w.limits.exceeded("bytes", w.limits.Bytes)
	}
	if bomb := w.limits.expands(packed, w.bytes); bomb != nil {
		return bomb
	}
	return err
}

// expands returns an error if packed bytes may not expand to that many.
func (l *Limits) expands(packed, to int64) error {
	if to > l.free && (to-l.free)/l.Ratio > packed {
		return fmt.Errorf("%w: %d bytes expand to %d and more: no package compresses that well", ErrLimit, packed, to)
	}
	return nil
}

// next goes on to the stream that follows the one that has ended. It returns io.EOF if there
// is none.
func (s *stream) next() error {
	s.close()
	for !s.single {
		head, err := s.peek()
		if err != nil {
			return err
		}
		if size, ok := compress.Skippable(head); ok { // as in images of zstd:chunked
			s.at += size
			continue
		}
		if compress.StreamFormat(head) == "" {
			return io.EOF // as tar and gzip do, with zeros or garbage behind
		}
		return s.open()
	}
	return io.EOF
}

func (s *stream) close() {
	if s.now != nil {
		used := s.now.Used()
		s.at += used
		s.walk.packed += used
		s.now.Close()
		s.now = nil
	}
}

// part reads the next size bytes of an archive: the content of a file.
type part struct {
	r    io.Reader
	left int64
}

func (p *part) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	n, err := p.r.Read(b[:min(int64(len(b)), p.left)])
	p.left -= int64(n)
	if err == io.EOF && p.left > 0 {
		err = fmt.Errorf("archive is cut off in a file, %d bytes before its end: %w", p.left, io.ErrUnexpectedEOF)
	} else if p.left == 0 {
		err = nil
	}
	return n, err
}

// cutOff turns the end of an archive inside of a file into an error.
func cutOff(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// drain reads the rest of a compressed archive behind its end, as the checksums of the
// stream come last.
func drain(r io.Reader) error {
	if s, ok := r.(*stream); !ok || s.plain {
		return nil
	}
	_, err := io.Copy(io.Discard, r)
	return err
}
