package archive

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The magic numbers of cpio archives (Documentation/driver-api/early-userspace/buffer-format.rst
// of the kernel), and of rpm's form without headers (lib/cpio.c of rpm).
const (
	cpioNewc     = "070701"
	cpioCRC      = "070702" // newc with the sum of a file's bytes
	cpioStripped = "07070X"
	cpioTrailer  = "TRAILER!!!"
)

// isBinaryCpio reports whether a file begins like a cpio archive of the oldest format: 13 numbers of
// 16 bits, of which the first is 070707 in base 8 and the eleventh the length of the name behind them.
func isBinaryCpio(head []byte) bool {
	if len(head) < 26 {
		return false
	}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		end := 26 + int(order.Uint16(head[20:]))
		if order.Uint16(head) == 0o070707 && end > 27 && end <= len(head) && head[end-1] == 0 && head[26] != 0 {
			return true
		}
	}
	return false
}

// cpio reads cpio archives.
type cpio struct {
	walk *walk
	r    *bufio.Reader
	n    int64 // bytes taken from r
	// stripped tells what rpm's form leaves out: the file with an index. It is nil outside
	// of an rpm.
	stripped func(index uint32) (*rpmFile, error)
	// waiting are hard links without content, by device and inode: the content comes with
	// one of them, usually the last.
	waiting map[inode][]*File
}

type inode struct{ major, minor, ino uint32 }

func newCpio(w *walk, r io.Reader) *cpio {
	return &cpio{walk: w, r: bufio.NewReaderSize(r, 64<<10)}
}

func (c *cpio) read(b []byte) error {
	n, err := io.ReadFull(c.r, b)
	c.n += int64(n)
	return cutOff(err)
}

// archive reads one archive, up to its trailer.
func (c *cpio) archive() error {
	c.waiting = make(map[inode][]*File)
	for {
		end, err := c.entry()
		if err == io.ErrUnexpectedEOF {
			err = fmt.Errorf("cpio archive is cut off after %d bytes: %w", c.n, err)
		}
		if err != nil {
			return err
		}
		if end {
			return c.flush()
		}
	}
}

// flush passes on the hard links that never got content: they are empty.
func (c *cpio) flush() error {
	var left [][]*File
	for _, files := range c.waiting {
		if files[0].Name != "" { // else it got content
			left = append(left, files)
		}
	}
	slices.SortFunc(left, func(a, b []*File) int { return strings.Compare(a[0].Name, b[0].Name) })
	for _, files := range left {
		for i, f := range files {
			c.walk.drop(f.Name)
			if i > 0 {
				f.Link = files[0].Name
			}
			if err := c.walk.emit(f); err != nil {
				return err
			}
		}
	}
	c.waiting = nil
	return nil
}

// entry reads the next entry. It reports the trailer as the end.
func (c *cpio) entry() (end bool, err error) {
	var magic [6]byte
	if err := c.read(magic[:]); err != nil {
		return false, err
	}
	if string(magic[:]) == cpioStripped && c.stripped != nil {
		return false, c.strippedEntry()
	}
	if m := string(magic[:]); m != cpioNewc && m != cpioCRC {
		return false, fmt.Errorf("cpio archive is corrupt at byte %d: no header begins there", c.n-6)
	}
	var header [104]byte
	if err := c.read(header[:]); err != nil {
		return false, err
	}
	var fields [13]uint32
	for i := range fields {
		n, err := strconv.ParseUint(string(header[8*i:8*i+8]), 16, 32)
		if err != nil {
			return false, fmt.Errorf("cpio archive is corrupt at byte %d: not a hexadecimal number", c.n-104+int64(8*i))
		}
		fields[i] = uint32(n)
	}
	ino, mode, links, size := fields[0], fields[1], fields[4], int64(fields[6])
	node, nameSize, sum := inode{fields[7], fields[8], ino}, int(fields[11]), fields[12]
	if nameSize > c.walk.limits.Name {
		return false, c.walk.limits.exceeded("bytes in a name", int64(c.walk.limits.Name))
	}
	name := make([]byte, nameSize)
	if err := c.read(name); err != nil {
		return false, err
	}
	if err := c.pad(); err != nil {
		return false, err
	}
	// dracut aligns content with more zeros behind the name.
	text, _, _ := strings.Cut(string(name), "\x00")
	if hasParent(text) {
		return false, fmt.Errorf("%s: \"..\" in a name of the cpio archive", cleanName(text))
	}
	f := &File{Name: text, Mode: fileMode(mode)}
	if text == cpioTrailer {
		if _, err := io.Copy(io.Discard, &part{c, size}); err != nil {
			return true, err
		}
		return true, c.pad()
	}
	content := io.Reader(&part{c, size})
	if string(magic[:]) == cpioCRC && f.Mode.IsRegular() {
		content = &summed{r: content, left: size, want: sum}
	}
	return false, c.file(f, node, links, size, content)
}

// file passes on an entry, and drops the rest of its content and the padding behind it.
func (c *cpio) file(f *File, node inode, links uint32, size int64, content io.Reader) (err error) {
	switch {
	case f.Mode.IsRegular() && links > 1:
		err = c.linked(f, node, size, content)
	case f.Mode.IsRegular():
		f.Size, f.content = size, content
		err = c.walk.emit(f)
	default:
		err = c.special(f, size, content)
	}
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, content); err != nil {
		return err
	}
	return c.pad()
}

// Read reads content.
func (c *cpio) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

// special passes on what is not regular. The content of a symbolic link is its target.
func (c *cpio) special(f *File, size int64, content io.Reader) error {
	if f.Mode.Type() == fs.ModeSymlink {
		if size > int64(c.walk.limits.Name) {
			return c.walk.limits.exceeded("bytes in the target of a link", int64(c.walk.limits.Name))
		}
		target := make([]byte, size)
		if _, err := io.ReadFull(content, target); err != nil {
			return cutOff(err)
		}
		f.Link, _, _ = strings.Cut(string(target), "\x00")
	}
	if f.Link == "" && size > 0 && c.stripped == nil {
		return fmt.Errorf("%s: content of what is no regular file: the kernel passes over it, and cpio reads it as "+
			"further files", cleanName(f.Name))
	}
	return c.walk.emit(f)
}

// linked passes on one of several hard links to a file, as soon as the content is there.
func (c *cpio) linked(f *File, node inode, size int64, content io.Reader) error {
	f.shared = c.stripped == nil
	waiting, again := c.waiting[node]
	switch {
	case again && waiting[0].Name == "": // the content was there before
		if size > 0 { // which the kernel writes over it, and so into all links before this one
			return fmt.Errorf("%s: a second content of the file with hard links %s", cleanName(f.Name), waiting[0].Link)
		}
		f.Link = waiting[0].Link
		return c.walk.emit(f)
	case size == 0:
		if err := c.walk.keep(f.Name); err != nil {
			return err
		}
		c.waiting[node] = append(waiting, f)
		return nil
	}
	f.Size, f.content = size, content
	name := f.Name
	if err := c.walk.emit(f); err != nil {
		return err
	}
	for _, w := range waiting {
		w.Link = name
		c.walk.drop(w.Name)
		if err := c.walk.emit(w); err != nil {
			return err
		}
	}
	// Links that follow without content lead to this one.
	if err := c.walk.keep(name); err != nil {
		return err
	}
	c.waiting[node] = []*File{{Link: name}}
	return nil
}

// pad goes on to the next multiple of four bytes.
func (c *cpio) pad() error {
	var padding [3]byte
	return c.read(padding[:-c.n&3])
}

// fileMode translates st_mode.
func fileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for _, bit := range []struct {
		of   uint32
		flag fs.FileMode
	}{{unix.S_ISUID, fs.ModeSetuid}, {unix.S_ISGID, fs.ModeSetgid}, {unix.S_ISVTX, fs.ModeSticky}} {
		if mode&bit.of != 0 {
			m |= bit.flag
		}
	}
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		m |= fs.ModeDir
	case unix.S_IFLNK:
		m |= fs.ModeSymlink
	case unix.S_IFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFBLK:
		m |= fs.ModeDevice
	case unix.S_IFIFO:
		m |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		m |= fs.ModeSocket
	default:
		m |= fs.ModeIrregular
	}
	return m
}

// summed compares the sum of a file's bytes at its end.
type summed struct {
	r         io.Reader
	left      int64
	sum, want uint32
}

func (s *summed) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	for _, c := range b[:n] {
		s.sum += uint32(c)
	}
	if s.left -= int64(n); s.left == 0 && s.sum != s.want && err == nil {
		err = errors.New("file in the cpio archive does not match its checksum")
	}
	return n, err
}

// initramfs reads an initramfs image as the kernel does (init/initramfs.c): cpio archives and
// compressed streams of them, one after the other, with zeros between.
func (w *walk) initramfs(section *io.SectionReader) error {
	for next := int64(0); ; {
		at, err := nextNonzero(section, next)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		s := &stream{walk: w, section: section, at: at, single: true}
		head, err := s.peek()
		if err != nil {
			return err
		}
		switch format, err := s.format(); {
		case err != nil:
			return err
		case strings.HasPrefix(string(head), "0707"):
			s.plain = true
			if _, err := section.Seek(at, io.SeekStart); err != nil {
				return err
			}
			c := newCpio(w, s)
			if err := c.archive(); err != nil {
				return err
			}
			s.at = at + c.n
		case format == "":
			return fmt.Errorf("initramfs is corrupt at byte %d: neither a cpio archive nor compressed", at)
		default:
			if err := w.segment(s); err != nil {
				return fmt.Errorf("segment at byte %d of the initramfs: %w", at, err)
			}
		}
		if err := w.admit("", ""); err != nil {
			return err
		}
		next = s.at
	}
}

// segment reads a compressed stream of cpio archives.
func (w *walk) segment(s *stream) error {
	if err := s.open(); err != nil {
		return err
	}
	defer s.close()
	c := newCpio(w, s)
	for {
		// Zeros, up to the end or the next archive.
		for {
			b, err := c.r.Peek(1)
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if b[0] != 0 {
				break
			}
			c.r.Discard(1)
			c.n++
		}
		c.n = 0 // alignment is from the beginning of an archive, as in the kernel
		if err := c.archive(); err != nil {
			return err
		}
	}
}

// nextNonzero returns the offset of the first byte from at on that is not zero.
func nextNonzero(r io.ReaderAt, at int64) (int64, error) {
	var buf [16 << 10]byte
	for {
		n, err := r.ReadAt(buf[:], at)
		for i, c := range buf[:n] {
			if c != 0 {
				return at + int64(i), nil
			}
		}
		at += int64(n)
		if err != nil {
			return at, err
		}
	}
}
