package vmlinux

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/adler32"
	"hash/crc32"
	"io"
	"slices"

	lzo1x "github.com/anchore/go-lzo"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"

	"github.com/modsign/modsign/internal/compress"
)

// maxKernel is the size limit of a decompressed image, in bytes. Kernels with
// everything built in have about 200 MB.
const maxKernel = 1 << 30

// maxRatio is the largest compression ratio of a kernel, beyond the first MiB. Real
// kernels have 4 to 8; a bomb has thousands.
const maxRatio = 100

// lzmaMagic begins a stream of lzma -9: its properties, the dictionary of 64 MiB, and no
// size.
const lzmaMagic = "\x5d\x00\x00\x00\x04\xff\xff\xff\xff\xff\xff\xff\xff"

// maxWindow is the size limit of an lzma stream's dictionary, in bytes. lzma -9 uses 64
// MiB.
const maxWindow = 128 << 20

// compression is one of Kbuild's ways to compress a kernel.
type compression struct {
	name  string
	magic string
	// kbuild is a longer beginning, which all streams of Kbuild have and little else.
	kbuild string
	sized  bool // the format itself ends with the uncompressed size
	// open returns a decompressor for at most limit bytes of output.
	open func(r *bufio.Reader, limit int64) (io.ReadCloser, error)
}

func compressions() []compression {
	shared := func(f compress.Format) func(*bufio.Reader, int64) (io.ReadCloser, error) {
		return func(r *bufio.Reader, limit int64) (io.ReadCloser, error) { return compress.NewReader(f, r, limit) }
	}
	return []compression{
		{"gzip", "\x1f\x8b", "\x1f\x8b\x08\x00\x00\x00\x00\x00", true, shared(compress.Gzip)},
		{"bzip2", "BZh", "BZh91AY&SY", false, func(r *bufio.Reader, _ int64) (io.ReadCloser, error) {
			return io.NopCloser(bzip2.NewReader(r)), nil
		}},
		{"lzma", "\x5d\x00\x00", lzmaMagic, false, openLZMA},
		{"xz", "\xfd7zXZ\x00", "\xfd7zXZ\x00\x00\x01", false, shared(compress.XZ)},
		{"lzo", lzopMagic, lzopMagic, false, openLzop},
		{"lz4", "\x02\x21\x4c\x18", "\x02\x21\x4c\x18", false, func(r *bufio.Reader, _ int64) (io.ReadCloser, error) {
			return io.NopCloser(lz4.NewReader(r)), nil
		}},
		{"zstd", "\x28\xb5\x2f\xfd", "\x28\xb5\x2f\xfd", false, shared(compress.Zstd)},
	}
}

// compressionOf determines the compression from the first bytes; nil if Kbuild does not
// use it.
func compressionOf(head []byte) *compression {
	all := compressions()
	i := slices.IndexFunc(all, func(c compression) bool { return bytes.HasPrefix(head, []byte(c.magic)) })
	if i < 0 {
		return nil
	}
	return &all[i]
}

// decompress decompresses r, which holds only the stream. size is the expected size, or
// -1 if unknown. The image that r is from may expand to most bytes.
func (c *compression) decompress(r *io.SectionReader, size, most int64) (memory, error) {
	limit := min(most, r.Size()*maxRatio+1<<20)
	if size > limit {
		return nil, fmt.Errorf("%d bytes would expand to %d: no kernel compresses that well", r.Size(), size)
	}
	if size >= 0 {
		limit = size
	}
	out, err := c.open(bufio.NewReaderSize(r, 64<<10), limit)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	if size >= 0 {
		return readExactly(out, size)
	}
	return readUpTo(out, limit)
}

// readExactly reads size bytes, after which r must be at its end.
func readExactly(r io.Reader, size int64) (memory, error) {
	b := make([]byte, size)
	n, err := io.ReadFull(r, b)
	if err == io.ErrUnexpectedEOF || err == io.EOF && size > 0 {
		return nil, fmt.Errorf("decompressed %d of %d bytes: %w", n, size, io.ErrUnexpectedEOF)
	}
	if err != nil && err != io.EOF {
		return nil, err
	}
	// The decompressor compares the checksum only at the end of the stream.
	var more [1]byte
	switch n, err := io.ReadFull(r, more[:]); {
	case n > 0:
		return nil, fmt.Errorf("decompressed size exceeds the %d bytes that the image states", size)
	case err != io.EOF:
		return nil, err
	}
	return b, nil
}

func readUpTo(r io.Reader, limit int64) (memory, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("expands to more than %d bytes: no kernel compresses that well", limit)
	}
	return b, err
}

// openLZMA reads the format of the old lzma program: five bytes of properties, the last
// four of which are the dictionary's size, and the uncompressed size or -1 in eight
// bytes. A dictionary larger than the output is never filled. openLZMA reduces it,
// because the decoder allocates all of it.
func openLZMA(r *bufio.Reader, limit int64) (io.ReadCloser, error) {
	var header [lzma.HeaderLen]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	dict := int64(binary.LittleEndian.Uint32(header[1:]))
	if dict > maxWindow {
		return nil, fmt.Errorf("the stream asks for a dictionary of %d bytes; the limit is %d", dict, maxWindow)
	}
	binary.LittleEndian.PutUint32(header[1:], uint32(min(dict, max(limit, lzma.MinDictCap))))
	out, err := lzma.NewReader(bufio.NewReader(io.MultiReader(bytes.NewReader(header[:]), r)))
	if err != nil {
		return nil, err
	}
	return io.NopCloser(out), nil
}

const lzopMagic = "\x89LZO\x00\r\n\x1a\n"

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

func openLzop(r *bufio.Reader, _ int64) (io.ReadCloser, error) {
	z := &lzop{r: r}
	var h struct {
		Magic                     [len(lzopMagic)]byte
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
