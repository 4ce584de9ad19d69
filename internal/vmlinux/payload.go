package vmlinux

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"fmt"
	"io"
	"slices"

	"github.com/pierrec/lz4/v4"

	"github.com/modsign/modsign/internal/compress"
)

// maxKernel is the size limit of a decompressed image, in bytes. Kernels with
// everything built in have about 200 MB.
const maxKernel = 1 << 30

// maxRatio is the largest compression ratio of a kernel, beyond the first MiB. Real
// kernels have 4 to 8; a bomb has thousands.
const maxRatio = 100

// compression is one of Kbuild's ways to compress a kernel.
type compression struct {
	name  string
	magic string
	sized bool // the format itself ends with the uncompressed size
	// open returns a decompressor for at most limit bytes of output.
	open func(r *bufio.Reader, limit int64) (io.ReadCloser, error)
}

func compressions() []compression {
	shared := func(f compress.Format) func(*bufio.Reader, int64) (io.ReadCloser, error) {
		return func(r *bufio.Reader, limit int64) (io.ReadCloser, error) { return compress.NewReader(f, r, limit) }
	}
	return []compression{
		{"gzip", "\x1f\x8b", true, shared(compress.Gzip)},
		{"bzip2", "BZh", false, func(r *bufio.Reader, _ int64) (io.ReadCloser, error) {
			return io.NopCloser(bzip2.NewReader(r)), nil
		}},
		{"lzma", "\x5d\x00\x00", false, compress.NewLZMAReader},
		{"xz", "\xfd7zXZ\x00", false, shared(compress.XZ)},
		{"lzo", compress.LzopMagic, false, func(r *bufio.Reader, _ int64) (io.ReadCloser, error) {
			return compress.NewLzopReader(r)
		}},
		{"lz4", "\x02\x21\x4c\x18", false, func(r *bufio.Reader, _ int64) (io.ReadCloser, error) {
			return io.NopCloser(lz4.NewReader(r)), nil
		}},
		{"zstd", "\x28\xb5\x2f\xfd", false, shared(compress.Zstd)},
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
// -1 if unknown.
func (c *compression) decompress(r *io.SectionReader, size int64) (memory, error) {
	limit := min(maxKernel, r.Size()*maxRatio+1<<20)
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
