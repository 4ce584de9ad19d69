package compress

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/adler32"
	"hash/crc32"
	"io"

	lzo1x "github.com/anchore/go-lzo"
	"github.com/ulikunitz/xz/lzma"
)

// NewLZMAReader reads the format of the old lzma program: five bytes of properties, the last
// four of which are the dictionary's size, and the uncompressed size or -1 in eight
// bytes. A dictionary larger than the output is never filled. NewLZMAReader reduces it,
// because the decoder allocates all of it. It reads no byte of r behind the end of the
// stream if that ends with a mark.
func NewLZMAReader(r *bufio.Reader, limit int64) (io.ReadCloser, error) {
	var header [lzma.HeaderLen]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	dict := int64(binary.LittleEndian.Uint32(header[1:]))
	if dict > MaxWindow {
		return nil, fmt.Errorf("the stream asks for a dictionary of %d bytes; the limit is %d", dict, MaxWindow)
	}
	binary.LittleEndian.PutUint32(header[1:], uint32(min(dict, max(limit, lzma.MinDictCap))))
	out, err := lzma.NewReader(&prefixed{header[:], r})
	if err != nil {
		return nil, err
	}
	return io.NopCloser(out), nil
}

// prefixed is a reader of head and then of r that reads single bytes and no more than it
// is asked for.
type prefixed struct {
	head []byte
	r    *bufio.Reader
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.head) == 0 {
		return p.r.Read(b)
	}
	n := copy(b, p.head)
	p.head = p.head[n:]
	return n, nil
}

func (p *prefixed) ReadByte() (byte, error) {
	if len(p.head) == 0 {
		return p.r.ReadByte()
	}
	b := p.head[0]
	p.head = p.head[1:]
	return b, nil
}

// LzopMagic is the beginning of a file of the lzop program.
const LzopMagic = "\x89LZO\x00\r\n\x1a\n"

// maxLzopBlock is the largest block that lzop and the kernel's lib/decompress_unlzo.c
// use, in bytes.
const maxLzopBlock = 256 << 10

// Flags in an lzop header.
const (
	lzopAdlerOut = 1 << 0 // Adler-32 of each uncompressed block
	lzopAdlerIn  = 1 << 1 // Adler-32 of each compressed block
	lzopExtra    = 1 << 6
	lzopCRCOut   = 1 << 8 // the same with CRC-32
	lzopCRCIn    = 1 << 9
	lzopFilter   = 1 << 11
)

// lzop reads the container of the lzop program, numbers in big-endian order:
//
//	magic, 9 bytes; u16 version, library version, version needed to extract;
//	u8 method, level; u32 flags, [filter,] mode, mtime low, mtime high;
//	u8 length of a name, the name; u32 checksum of the header
//
// and blocks: u32 uncompressed size (0 ends the file), compressed size, the checksums
// of the uncompressed and, if smaller, of the compressed data, then the data, which is
// stored uncompressed if compression did not make it smaller.
type lzop struct {
	r     *bufio.Reader
	flags uint32
	in    []byte
	out   []byte // buffer of the block
	rest  []byte // part of out not yet read
	err   error
}

// NewLzopReader returns a reader of the file of the lzop program that begins in r. It
// reads no byte behind its end.
func NewLzopReader(r *bufio.Reader) (io.ReadCloser, error) {
	z := &lzop{r: r}
	var h struct {
		Magic                     [len(LzopMagic)]byte
		Version, Library, Extract uint16
		Method, Level             byte
		Flags                     uint32
	}
	if err := binary.Read(r, binary.BigEndian, &h); err != nil {
		return nil, fmt.Errorf("lzop header: %w", err)
	}
	if h.Version < 0x0940 {
		return nil, fmt.Errorf("made by lzop from before 1997 (version %#x)", h.Version)
	}
	if h.Method < 1 || h.Method > 3 {
		return nil, fmt.Errorf("method %d is not LZO1X", h.Method)
	}
	z.flags = h.Flags
	if h.Flags&(lzopFilter|lzopExtra) != 0 {
		return nil, fmt.Errorf("flags %#x ask for a filter or an extra field, which kernels do not use", h.Flags)
	}
	var tail struct {
		Mode, TimeLow, TimeHigh uint32
		NameLen                 byte
	}
	if err := binary.Read(r, binary.BigEndian, &tail); err != nil {
		return nil, fmt.Errorf("lzop header: %w", err)
	}
	if _, err := r.Discard(int(tail.NameLen) + 4); err != nil {
		return nil, fmt.Errorf("lzop header: %w", err)
	}
	return io.NopCloser(z), nil
}

func (z *lzop) Read(p []byte) (int, error) {
	for len(z.rest) == 0 && z.err == nil {
		if z.rest, z.err = z.block(); z.err != nil {
			z.rest = nil
		}
	}
	if z.err != nil {
		return 0, z.err
	}
	n := copy(p, z.rest)
	z.rest = z.rest[n:]
	return n, nil
}

// block reads and decompresses the next block. It returns io.EOF after the last.
func (z *lzop) block() ([]byte, error) {
	var err error
	u32 := func() uint32 {
		var b [4]byte
		if err == nil {
			if _, err = io.ReadFull(z.r, b[:]); err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
		}
		return binary.BigEndian.Uint32(b[:])
	}
	size := u32()
	if err != nil {
		return nil, err
	}
	if size == 0 {
		return nil, io.EOF
	}
	packed := u32()
	var adler, crc uint32
	if z.flags&lzopAdlerOut != 0 {
		adler = u32()
	}
	if z.flags&lzopCRCOut != 0 {
		crc = u32()
	}
	if packed < size {
		for _, flag := range []uint32{lzopAdlerIn, lzopCRCIn} {
			if z.flags&flag != 0 {
				u32()
			}
		}
	}
	if err != nil {
		return nil, err
	}
	if size > maxLzopBlock || packed > size {
		return nil, fmt.Errorf("block of %d bytes in %d: not what lzop writes", size, packed)
	}
	if z.out == nil {
		z.in, z.out = make([]byte, maxLzopBlock), make([]byte, maxLzopBlock)
	}
	out := z.out[:size]
	if packed == size {
		_, err = io.ReadFull(z.r, out)
	} else if _, err = io.ReadFull(z.r, z.in[:packed]); err == nil {
		var n int
		n, err = lzo1x.Decompress(z.in[:packed], out)
		if err == nil && n != len(out) {
			err = fmt.Errorf("block of %d bytes expands to %d", size, n)
		}
	}
	switch {
	case err == io.EOF:
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	case z.flags&lzopAdlerOut != 0 && adler32.Checksum(out) != adler,
		z.flags&lzopCRCOut != 0 && crc32.ChecksumIEEE(out) != crc:
		return nil, errors.New("block does not match its checksum")
	}
	return out, nil
}
