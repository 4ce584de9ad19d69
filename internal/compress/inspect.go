package compress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// SizeHint returns how many bytes the stream of size bytes in r expands to by its
// own account: a gzip stream's last four bytes (which is the size modulo 4 GiB),
// an xz stream's index, a zstd frame's content size. It returns 0 where the
// stream does not say or cannot be read, and size for [None]. The stream may be
// lying: the number is good for planning only.
func SizeHint(f Format, r io.ReaderAt, size int64) int64 {
	switch f {
	case None:
		return size
	case Gzip:
		var trailer [4]byte
		if size < 18 { // an empty stream's header, block and trailer are longer
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

// KernelError tells from the first headers of the stream of size bytes in r why
// the kernel, or kmod, would not load a module from it although [NewReader] reads
// it. It returns nil if there is nothing against it.
//
// A large dictionary is nothing against it: the kernel allocates what the stream
// asks for.
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

// gzipKernelError follows module_gzip_header_len of kernel/module/decompress.c.
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
			return fmt.Errorf("the kernel does not skip %s in a gzip header: make it with gzip -n", field.name)
		}
	}
	return nil
}

// xzKernelError follows lib/xz/xz_dec_stream.c of the kernel.
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
		return errors.New("the kernel does not know the CRC64 check of xz: make it with xz --check=crc32")
	case xzCheckSHA256:
		return errors.New("the kernel does not know the SHA-256 check of xz: make it with xz --check=crc32")
	default:
		return fmt.Errorf("the kernel does not know the check type %#x of xz", check)
	}
	block := head[xzHeaderSize:]
	if block[0] == 0 { // no block
		return nil
	}
	n := (int(block[0]) + 1) * 4
	if n > len(block) {
		return errors.New("xz stream is cut off in its first block header")
	}
	h, err := parseXZBlockHeader(block[:n])
	if err != nil {
		return err
	}
	branch := h.filters[:len(h.filters)-1]
	if len(branch) > 1 {
		return fmt.Errorf("the kernel does not know more than two filters of xz: %v", h.filters)
	}
	for _, filter := range branch {
		switch filter.id {
		case xzX86, xzPowerPC, xzARM, xzARMThumb, xzSPARC, xzARM64, xzRISCV:
		default:
			return fmt.Errorf("the kernel does not know the %v filter of xz", filter)
		}
		if len(filter.props) > 0 {
			return fmt.Errorf("the kernel does not know a start offset of the %v filter of xz", filter)
		}
	}
	if h.dict == 1<<32-1 {
		return errors.New("the kernel does not know an xz dictionary of 4 GiB")
	}
	return nil
}

// zstdKernelError follows module_zstd_decompress of kernel/module/decompress.c,
// and libkmod/libkmod-file-zstd.c of kmod, which allocates the content size.
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
		return errors.New("the kernel does not skip the skippable frame that the zstd stream begins with")
	case h.DictionaryID != 0:
		return fmt.Errorf("the kernel does not have the zstd dictionary with the ID %d", h.DictionaryID)
	case window >= 1<<31:
		return fmt.Errorf("the kernel cannot allocate a zstd window of %d MiB", window>>20)
	case !h.HasFCS || h.FrameContentSize == 0:
		return errors.New("kmod does not read a zstd frame without content size: compress a file, not a pipe")
	}
	return nil
}

// readHead reads the first n bytes, or all where there are fewer.
func readHead(r io.ReaderAt, size int64, n int) ([]byte, error) {
	head := make([]byte, min(int64(n), max(size, 0)))
	k, err := r.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	return head[:k], nil
}
