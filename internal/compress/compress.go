// Package compress reads and writes kernel modules in the three compressed
// forms that the kernel and kmod load: .ko.gz, .ko.xz and .ko.zst.
//
// A module is one stream of its format, and nothing follows it. What is written
// is what scripts/Makefile.modinst of the kernel makes:
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
// The readers of a module differ in what else they take. The kernel's own
// decompressor (kernel/module/decompress.c) stops at the end of the first
// stream and never looks further; it takes neither CRC64 nor SHA-256 in xz,
// which are common elsewhere, and no optional field but the name in a gzip
// header; it does not look at the checksum of gzip, and takes what there is of a
// zstd stream that is cut off for all of it. kmod reads on: streams of gzip and
// xz that follow one another it joins, rubbish after gzip it ignores, rubbish
// after xz it refuses, and of zstd it reads no more than the first frame's
// content size, which must be there.
// [NewReader] takes every form of one stream that any of them takes and refuses
// what follows it, because they do not agree on what such a file holds.
// [KernelError] says why the kernel would not take a stream that NewReader
// reads.
//
// This package is no general archive library: it knows neither streams in
// sequence nor dictionaries of zstd, and it has no codec of its own.
package compress

import (
	"errors"
	"fmt"
	"strings"
)

// Format is a form of compression.
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

// Suffix returns what the format adds to a file's name: "", ".gz", ".xz" or
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

// FromName returns the format that a file's name claims by its suffix.
func FromName(name string) Format {
	for f := Gzip; int(f) < len(formats); f++ {
		if strings.HasSuffix(name, f.Suffix()) {
			return f
		}
	}
	return None
}

// FromMagic returns the format that begins with head, of which the first 6
// bytes are enough.
func FromMagic(head []byte) Format {
	for f := Gzip; int(f) < len(formats); f++ {
		if strings.HasPrefix(string(head[:min(len(head), 6)]), formats[f].magic) {
			return f
		}
	}
	return None
}

// ErrTooLarge is what every [TooLargeError] is, for errors.Is.
var ErrTooLarge = errors.New("decompressed size is over the limit")

// ErrUnreadable says that a stream is none that this package reads, though the
// kernel may: it has a branch filter that is not known here, or wants more memory
// than [MaxWindow].
var ErrUnreadable = errors.New("modsign does not read it, though the kernel may")

// TooLargeError says that a stream holds more bytes than its reader was to let
// through.
type TooLargeError struct {
	Format Format
	Limit  int64 // bytes
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("%s data expands to more than the limit of %d bytes", e.Format, e.Limit)
}

func (e *TooLargeError) Is(target error) bool { return target == ErrTooLarge }
