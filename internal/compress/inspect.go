package compress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// SizeHint returns the decompressed size that the stream of size bytes in r claims: the
// last four bytes of a gzip stream (the size modulo 4 GiB), the index of an xz stream,
// the content size of a zstd frame. It returns 0 if the stream does not tell or cannot
// be read, and size for [None]. The claim may be false: use it for planning only.
func SizeHint(f Format, r io.ReaderAt, size int64) int64 {
	switch f {
	case None:
		return size
	case Gzip:
		var trailer [4]byte
		if size < 18 { // even an empty stream has 20 bytes
			return 0
		}
		if _, err := r.ReadAt(trailer[:], size-4); err != nil {
			return 0
		}
		return int64(binary.LittleEndian.Uint32(trailer[:]))
	case XZ:
		return xzContentSize(r, size)
	case Zstd:
		head, err := readHead(r, size, zstdMaxHeader)
		if err != nil {
			return 0
		}
		h, _, err := parseZstdHeader(head)
		if err != nil || !h.HasFCS || h.FrameContentSize > 1<<62 {
			return 0
		}
		return int64(h.FrameContentSize)
	}
	return 0
}

// ErrContentSize reports a zstd stream that the kernel reads and kmod does not.
var ErrContentSize = errors.New("kmod does not read a zstd frame without content size: compress a file, not a pipe")

// KernelError reports, from the first headers of the stream of size bytes in r, why the
// kernel or kmod would not load a module that [NewReader] reads. It returns nil if it
// finds no reason.
//
// A large dictionary is no reason: the kernel allocates what the stream asks for.
func KernelError(f Format, r io.ReaderAt, size int64) error {
	switch f {
	case Gzip:
		return gzipKernelError(r, size)
	case XZ:
		return xzKernelError(r, size)
	case Zstd:
		return zstdKernelError(r, size)
	}
	return nil
}

// gzipKernelError does the checks of module_gzip_header_len in
// kernel/module/decompress.c.
func gzipKernelError(r io.ReaderAt, size int64) error {
	head, err := readHead(r, size, 10)
	if err != nil {
		return err
	}
	if len(head) < 10 || FromMagic(head) != Gzip {
		return errors.New("not a gzip stream")
	}
	for _, field := range []struct {
		flag byte // RFC 1952, 2.3.1
		name string
	}{{1 << 1, "a header checksum"}, {1 << 2, "an extra field"}, {1 << 4, "a comment"}} {
		if head[3]&field.flag != 0 {
			return fmt.Errorf("the kernel does not skip %s in a gzip header: compress with gzip -n", field.name)
		}
	}
	return nil
}

// xzKernelError does the checks of the kernel's lib/xz/xz_dec_stream.c.
func xzKernelError(r io.ReaderAt, size int64) error {
	head, err := readHead(r, size, xzHeaderSize+xzMaxBlockHeaderSize)
	if err != nil {
		return err
	}
	if len(head) <= xzHeaderSize || FromMagic(head) != XZ {
		return errors.New("not an xz stream")
	}
	switch check := head[7]; check {
	case xzCheckNone, xzCheckCRC32:
	case xzCheckCRC64:
		return errors.New("the kernel does not support the CRC64 check of xz: compress with xz --check=crc32")
	case xzCheckSHA256:
		return errors.New("the kernel does not support the SHA-256 check of xz: compress with xz --check=crc32")
	default:
		return fmt.Errorf("the kernel does not support the check type %#x of xz", check)
	}
	block := head[xzHeaderSize:]
	if block[0] == 0 { // no block
		return nil
	}
	n := (int(block[0]) + 1) * 4
	if n > len(block) {
		return errors.New("xz stream is truncated in its first block header")
	}
	h, err := parseXZBlockHeader(block[:n])
	if err != nil {
		return err
	}
	branch := h.filters[:len(h.filters)-1]
	if len(branch) > 1 {
		return fmt.Errorf("the kernel does not support more than two filters of xz: %v", h.filters)
	}
	for _, filter := range branch {
		switch filter.id {
		case xzX86, xzPowerPC, xzARM, xzARMThumb, xzSPARC, xzARM64, xzRISCV:
		default:
			return fmt.Errorf("the kernel does not support the %v filter of xz", filter)
		}
		if len(filter.props) > 0 {
			return fmt.Errorf("the kernel does not support a start offset of the %v filter of xz", filter)
		}
	}
	if h.dict == 1<<32-1 {
		return errors.New("the kernel does not support an xz dictionary of 4 GiB")
	}
	return nil
}

// zstdKernelError does the checks of module_zstd_decompress in
// kernel/module/decompress.c, and of libkmod/libkmod-file-zstd.c in kmod, which
// allocates the content size.
func zstdKernelError(r io.ReaderAt, size int64) error {
	head, err := readHead(r, size, zstdMaxHeader)
	if err != nil {
		return err
	}
	h, window, err := parseZstdHeader(head)
	switch {
	case err != nil:
		return fmt.Errorf("not a zstd stream: %w", err)
	case h.Skippable:
		return errors.New("the kernel does not accept a zstd stream that begins with a skippable frame")
	case h.DictionaryID != 0:
		return fmt.Errorf("the kernel does not have the zstd dictionary with the ID %d", h.DictionaryID)
	case window >= 1<<31:
		return fmt.Errorf("the kernel cannot allocate a zstd window of %d MiB", window>>20)
	case !h.HasFCS || h.FrameContentSize == 0:
		return ErrContentSize
	}
	return nil
}

// readHead reads the first n bytes, or all bytes if there are fewer.
func readHead(r io.ReaderAt, size int64, n int) ([]byte, error) {
	head := make([]byte, min(int64(n), max(size, 0)))
	k, err := r.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	return head[:k], nil
}
