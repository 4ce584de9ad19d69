package vmlinux

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// ErrSigned reports an image with a signature for Secure Boot, which a change makes
// invalid.
var ErrSigned = errors.New("the image is signed for Secure Boot, and a change makes the signature invalid")

// ErrNoRoom reports that a kernel, compressed, is larger than the one that it replaces in a
// boot image.
var ErrNoRoom = errors.New("the boot image has no room for the kernel")

// Repack returns an x86 boot image (bzImage) with another kernel of the same size.
// compress compresses the kernel with the named method, such as "gzip"; it is called with
// efforts from 0, which is Kbuild's own, until the result is small enough or nil. signed
// allows an image with signatures for Secure Boot, which are removed.
//
// The boot image is linked around its payload: code follows it, and the decompressor,
// which unpacks in place, has the payload's address and length in its code. So the new
// payload has to fit in the place of the old one (arch/x86/boot/compressed). What a gzip
// stream is shorter, it gets as empty blocks at its beginning, so that it ends where the
// old one did; xz gets zeros at the end, of at most a part of the margin that header.S adds
// for unpacking in place, a 256th of the kernel and 128 KiB. The error of other
// compressions is [ErrNoRoom]: Kbuild uses their best, or their decompressors do not
// accept what follows a stream.
func Repack(image, kernel []byte, signed bool, compress func(method string, effort int) ([]byte, error)) (
	[]byte, error,
) {
	head := image[:min(len(image), headSize)]
	start, length, err := bzImagePayload(int64(len(image)), head)
	if err != nil {
		return nil, err
	}
	o := opener{limit: maxKernel}
	old, method, err := o.unpack(memory(image), start, length)
	if err != nil {
		return nil, err
	}
	if len(old) != len(kernel) {
		return nil, fmt.Errorf("the image has a kernel of %d bytes, and the new one has %d", len(old), len(kernel))
	}
	made := bytes.Clone(image)
	room := made[start : start+placeOf(image, start, length, len(old))]
	if method == "not compressed" {
		copy(room, kernel)
		return seal(made, image, signed)
	}
	if method != "gzip" && method != "xz" {
		return nil, fmt.Errorf("%w: a kernel compressed with %s cannot be replaced in its place", ErrNoRoom, method)
	}
	c := compressionOf(room)
	size := binary.LittleEndian.AppendUint32(nil, uint32(len(kernel)))
	if c.sized {
		size = nil
	}
	var best int
	for effort := 0; ; effort++ {
		stream, err := compress(method, effort)
		if err != nil {
			return nil, err
		}
		if stream == nil {
			return nil, fmt.Errorf("%w: compressed with %s it has %d bytes, and the old one %d", ErrNoRoom, method,
				best, len(room))
		}
		if best == 0 || len(stream)+len(size) < best {
			best = len(stream) + len(size)
		}
		missing := len(room) - len(size) - len(stream)
		if missing < 0 {
			continue
		}
		if stream, err = stretch(method, stream, missing); err != nil {
			return nil, err
		}
		payload := append(stream, size...)
		if len(room)-len(payload) > len(kernel)/512 {
			return nil, fmt.Errorf("a %s stream of %d bytes in the place of %d is too short to unpack in place",
				method, len(payload), len(room))
		}
		clear(room)
		copy(room, payload)
		binary.LittleEndian.PutUint32(made[0x24c:], uint32(len(payload)))
		break
	}
	// The stream is another program's: read it as the kernel will.
	again := opener{limit: maxKernel}
	check, _, err := again.unpack(memory(made), start, int64(binary.LittleEndian.Uint32(made[0x24c:])))
	if err != nil {
		return nil, fmt.Errorf("the new payload: %w", err)
	}
	if !bytes.Equal(check, kernel) {
		return nil, errors.New("the new payload does not contain the new kernel")
	}
	return seal(made, image, signed)
}

// placeOf returns the length of the place of a payload. An earlier Repack may have put a
// shorter one there, and zeros after it; the decompressor still has the length of the first
// one, as input_len before output_len (arch/x86/boot/compressed/mkpiggy.c).
func placeOf(image []byte, start, length int64, kernel int) int64 {
	output := binary.LittleEndian.AppendUint32(nil, uint32(kernel))
	place := length
	for at := start + length; ; at += 4 {
		i := bytes.Index(image[at:], output)
		if i < 0 {
			return place
		}
		at += int64(i)
		first := int64(binary.LittleEndian.Uint32(image[at-4:]))
		if first <= length || first-length > int64(kernel)/512 || start+first > at-4 {
			continue
		}
		if len(bytes.TrimLeft(image[start+length:start+first], "\x00")) > 0 || place != length {
			return length
		}
		place = first
	}
}

// stretch makes a stream longer by up to n bytes, with empty blocks at its beginning.
func stretch(method string, stream []byte, n int) ([]byte, error) {
	if method != "gzip" {
		return stream, nil
	}
	// RFC 1952, 2.3: a header of 10 bytes if there are no flags. RFC 1951, 3.2.4: a
	// stored block.
	const at = 10
	if len(stream) < 18 || stream[3] != 0 {
		return nil, errors.New("the gzip stream has a name or other optional fields")
	}
	empty := []byte{0, 0, 0, 0xff, 0xff}
	return bytes.Join([][]byte{stream[:at], bytes.Repeat(empty, n/len(empty)), stream[at:]}, nil), nil
}

// seal brings the rest of an x86 boot image up to date with its contents: the checksum that
// older images have at the end, the checksum of the PE header, and the table
// of signatures, which it removes.
func seal(made, old []byte, signed bool) ([]byte, error) {
	made, err := unsign(made, signed)
	if err != nil {
		return nil, err
	}
	end := (int64(cmp.Or(old[0x1f1], 4))+1)*512 + int64(binary.LittleEndian.Uint32(old[0x1f4:]))*16
	if end < 1024 || end > int64(len(made)) {
		return made, nil
	}
	// A CRC-32 that is not inverted at the end.
	sum := func(b []byte) uint32 { return ^crc32.ChecksumIEEE(b[:end-4]) }
	if binary.LittleEndian.Uint32(old[end-4:]) == sum(old) {
		binary.LittleEndian.PutUint32(made[end-4:], sum(made))
	}
	return made, nil
}

// peSecurity returns the entry for signatures in the PE header, the offset and size of the
// table, and the header's checksum: parts of image, or nil if it is no PE file.
func peSecurity(image []byte) (table, checksum []byte) {
	if len(image) < 0x40 || string(image[:2]) != "MZ" {
		return nil, nil
	}
	at := int64(binary.LittleEndian.Uint32(image[0x3c:]))
	if at+24+64+4 > int64(len(image)) || string(image[at:at+4]) != "PE\x00\x00" {
		return nil, nil
	}
	optional := image[at+24:]
	directories := 96
	if binary.LittleEndian.Uint16(optional) == 0x20b {
		directories = 112
	}
	const security = 4 * 8
	if len(optional) < directories+security+8 ||
		int(binary.LittleEndian.Uint16(image[at+20:])) < directories+security+8 {
		return nil, nil
	}
	return optional[directories+security:][:8:8], optional[64:68:68]
}

// Unsign removes the signatures for Secure Boot from a PE file, if it is one and has them.
func Unsign(image []byte) ([]byte, error) { return unsign(image, true) }

func unsign(made []byte, signed bool) ([]byte, error) {
	table, checksum := peSecurity(made)
	if table == nil {
		return made, nil
	}
	clear(checksum)
	off, size := int64(binary.LittleEndian.Uint32(table)), int64(binary.LittleEndian.Uint32(table[4:]))
	if off == 0 && size == 0 {
		return made, nil
	}
	if !signed {
		return nil, ErrSigned
	}
	if off > int64(len(made)) || off+size < int64(len(made)) || off < headSize {
		return nil, fmt.Errorf("the signatures, %d bytes at offset %d, are not the end of the image", size, off)
	}
	clear(table)
	return made[:off], nil
}

// Signed reports whether a file has a PE header with a signature for Secure Boot.
func Signed(r io.ReaderAt, size int64) (bool, error) {
	head := make([]byte, min(size, headSize))
	if _, err := r.ReadAt(head, 0); err != nil && err != io.EOF {
		return false, err
	}
	table, _ := peSecurity(head)
	return table != nil && !bytes.Equal(table, make([]byte, 8)), nil
}
