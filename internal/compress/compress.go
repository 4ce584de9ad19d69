// Package compress reads and writes kernel modules in the three compressed forms that
// the kernel and kmod load: .ko.gz, .ko.xz and .ko.zst.
//
// [NewReader] decompresses a module, and an [Encoder] compresses modules. A module is
// one stream of its format, and nothing follows it. An Encoder writes what the kernel's
// scripts/Makefile.modinst makes:
//
//	gzip  gzip -n              no name, no time: 1f 8b 08 00 00000000 xx 03
//	xz    xz --check=crc32     made by the xz program itself, so that the bytes
//	      --lzma2=dict=1MiB    are the same; CRC32 and a dictionary of 1 MiB
//	zstd  zstd -q              one frame with content size and XXH64 checksum,
//	                           and a window of at most 2 MiB, as level 3 has it
//
// The formats are specified by RFC 1952 (gzip), RFC 8878 (zstd) and
// https://tukaani.org/xz/xz-file-format.txt.
//
// The programs that load a module accept different variants. The kernel's own
// decompressor (kernel/module/decompress.c) stops at the end of the first stream and
// ignores the rest. It rejects CRC64 and SHA-256 in xz, which are common elsewhere, and
// every optional field of a gzip header except the name. It does not check gzip's
// checksum, and takes a truncated zstd stream for a complete one. kmod concatenates
// successive streams of gzip and xz. It ignores garbage after gzip and rejects garbage
// after xz. Of zstd it reads the content size of the first frame, which must be
// present, and no more. NewReader accepts every form of a single stream that any of
// them accepts. It rejects data after the stream, because they disagree on what such a
// file contains. [KernelError] reports why the kernel would not load a module from a
// stream that NewReader reads.
//
// [NewStream] and [NewFile] read what archives and other files hold, in more formats. The
// package is not a general archive library: it does not support zstd dictionaries.
package compress

import (
	"errors"
	"fmt"
	"strings"
)

// Format is a compression format.
type Format uint8

const (
	None Format = iota // not compressed
	Gzip
	XZ
	Zstd
)

var formats = [...]struct{ name, suffix, magic string }{
	None: {name: "none"},
	Gzip: {"gzip", ".gz", "\x1f\x8b\x08"},
	XZ:   {"xz", ".xz", "\xfd7zXZ\x00"},
	Zstd: {"zstd", ".zst", "\x28\xb5\x2f\xfd"},
}

// Suffix returns the suffix that the format adds to a file name: "", ".gz", ".xz" or
// ".zst".
func (f Format) Suffix() string {
	if int(f) < len(formats) {
		return formats[f].suffix
	}
	return ""
}

// String returns "none", "gzip", "xz" or "zstd".
func (f Format) String() string {
	if int(f) < len(formats) {
		return formats[f].name
	}
	return fmt.Sprintf("compression format %d", uint8(f))
}

// FromName returns the format that a file name claims by its suffix.
func FromName(name string) Format {
	for f := Gzip; int(f) < len(formats); f++ {
		if strings.HasSuffix(name, f.Suffix()) {
			return f
		}
	}
	return None
}

// FromMagic returns the format of a file that begins with head. It needs at most 6
// bytes.
func FromMagic(head []byte) Format {
	for f := Gzip; int(f) < len(formats); f++ {
		if strings.HasPrefix(string(head[:min(len(head), 6)]), formats[f].magic) {
			return f
		}
	}
	return None
}

// ErrTooLarge matches every [TooLargeError] with errors.Is.
var ErrTooLarge = errors.New("decompressed size exceeds the limit")

// ErrUnreadable reports a stream that this package cannot read, though the kernel may:
// the stream uses an unsupported branch filter, or needs more memory than [MaxWindow].
var ErrUnreadable = errors.New("modsign cannot read the stream, though the kernel may")

// TooLargeError reports that a stream contains more bytes than its reader's limit.
type TooLargeError struct {
	Format Format
	Limit  int64 // bytes
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("%s data expands to more than the limit of %d bytes", e.Format, e.Limit)
}

func (e *TooLargeError) Is(target error) bool { return target == ErrTooLarge }
