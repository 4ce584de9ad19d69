package compress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Sizes of the xz format (xz-file-format.txt, 2.1 and 3.1), in bytes.
const (
	xzHeaderSize         = 12
	xzFooterSize         = 12
	xzMaxBlockHeaderSize = 1024
)

// Checks of a stream (xz-file-format.txt, 2.1.1.2).
const (
	xzCheckNone   = 0x0
	xzCheckCRC32  = 0x1
	xzCheckCRC64  = 0x4
	xzCheckSHA256 = 0xa
)

// Filters (xz-file-format.txt, 5.3 and 5.4).
const (
	xzDelta    = 0x03
	xzX86      = 0x04
	xzPowerPC  = 0x05
	xzIA64     = 0x06
	xzARM      = 0x07
	xzARMThumb = 0x08
	xzSPARC    = 0x09
	xzARM64    = 0x0a
	xzRISCV    = 0x0b
	xzLZMA2    = 0x21
)

var xzFilterNames = map[uint64]string{
	xzDelta: "delta", xzX86: "x86", xzPowerPC: "powerpc", xzIA64: "ia64", xzARM: "arm", xzARMThumb: "armthumb",
	xzSPARC: "sparc", xzARM64: "arm64", xzRISCV: "riscv", xzLZMA2: "lzma2",
}

// xzFilter is one filter of a block.
type xzFilter struct {
	id    uint64
	props []byte
}

func (f xzFilter) String() string {
	if name, ok := xzFilterNames[f.id]; ok {
		return name
	}
	return fmt.Sprintf("%#x", f.id)
}

// xzBlockHeader describes how to read a block.
type xzBlockHeader struct {
	filters []xzFilter // the last is LZMA2
	dict    uint64     // dictionary of LZMA2, in bytes
}

// parseXZBlockHeader reads a block header. It leaves the CRC32 to the decoder.
func parseXZBlockHeader(b []byte) (h xzBlockHeader, err error) {
	flags, b := b[1], b[2:len(b)-4]
	uvarint := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			err = errors.New("block header is too short")
			return 0
		}
		b = b[n:]
		return v
	}
	if flags&0x40 != 0 {
		uvarint() // compressed size
	}
	if flags&0x80 != 0 {
		uvarint() // uncompressed size
	}
	for range flags&3 + 1 {
		id, size := uvarint(), uvarint()
		if err == nil && size > uint64(len(b)) {
			err = errors.New("block header is too short")
		}
		if err != nil {
			return h, err
		}
		h.filters = append(h.filters, xzFilter{id, b[:size]})
		b = b[size:]
	}
	last := h.filters[len(h.filters)-1]
	if last.id != xzLZMA2 || len(last.props) != 1 || last.props[0] > 40 {
		return h, fmt.Errorf("last filter is %v % x, not lzma2", last, last.props)
	}
	h.dict = xzDictSize(last.props[0])
	return h, nil
}

// xzDictSize returns the dictionary size in bytes for LZMA2's property byte
// (xz-file-format.txt, 5.3.1): 40 is 4 GiB - 1.
func xzDictSize(bits byte) uint64 { return min((2|uint64(bits)&1)<<(bits/2+11), 1<<32-1) }

// xzFrame follows a stream through its blocks and their LZMA2 chunks to the end.
type xzFrame struct {
	framing
	state  xzState
	check  int64  // bytes of check after each block
	packed int64  // bytes of LZMA2 data in this block, or of the index
	fields uint64 // numbers of the index not yet read
}

type xzState uint8

const (
	xzInHeader xzState = iota
	xzInBlock
	xzInChunk
	xzInIndex
	xzInFooter
)

func (f *xzFrame) piece() (int64, error) {
	switch f.state {
	case xzInHeader:
		b, err := f.in.header(xzHeaderSize)
		if err != nil {
			return 0, err
		}
		if FromMagic(b) != XZ {
			return 0, f.in.corrupt("not an xz header")
		}
		switch b[7] {
		case xzCheckNone:
			f.check = 0
		case xzCheckCRC32:
			f.check = 4
		case xzCheckCRC64:
			f.check = 8
		case xzCheckSHA256:
			f.check = 32
		default:
			return 0, f.in.corrupt("unknown check type %#x", b[7])
		}
		f.state = xzInBlock
		return xzHeaderSize, nil

	case xzInBlock:
		b, err := f.in.header(1)
		if err != nil {
			return 0, err
		}
		if b[0] == 0 {
			return f.index()
		}
		if b, err = f.in.header((int(b[0]) + 1) * 4); err != nil {
			return 0, err
		}
		h, err := parseXZBlockHeader(b)
		if err != nil {
			return 0, f.in.corrupt("%v", err)
		}
		for _, filter := range h.filters[:len(h.filters)-1] {
			if !slices.Contains([]uint64{xzDelta, xzX86, xzPowerPC, xzIA64, xzARM, xzARMThumb, xzSPARC}, filter.id) {
				return 0, fmt.Errorf("%w: xz stream uses the %v filter", ErrUnreadable, filter)
			}
		}
		if err := f.admit("dictionary", h.dict); err != nil {
			return 0, err
		}
		f.packed = 0
		f.state = xzInChunk
		return int64(len(b)), nil

	case xzInChunk:
		n, err := f.chunk()
		f.packed += n
		if n == 1 { // the end of the block: padding and check follow
			f.state = xzInBlock
			n += -f.packed&3 + f.check
		}
		return n, err

	case xzInIndex:
		if f.fields > 0 {
			f.fields--
			n, err := f.uvarint(0)
			f.packed += n
			return n, err
		}
		f.state = xzInFooter
		return -f.packed&3 + 4 + xzFooterSize, nil
	}
	return 0, io.EOF
}

// chunk returns the length of the next LZMA2 chunk. It is 1 for the end marker of a
// block.
func (f *xzFrame) chunk() (int64, error) {
	b, err := f.in.header(1)
	if err != nil {
		return 0, err
	}
	control := b[0]
	switch {
	case control == 0:
		return 1, nil
	case control <= 2: // stored
		if b, err = f.in.header(3); err != nil {
			return 0, err
		}
		return 3 + int64(binary.BigEndian.Uint16(b[1:])) + 1, nil
	case control < 0x80:
		return 0, f.in.corrupt("unknown LZMA2 chunk type %#x", control)
	}
	if b, err = f.in.header(5); err != nil {
		return 0, err
	}
	n := 5 + int64(binary.BigEndian.Uint16(b[3:])) + 1
	if control >= 0xc0 { // new properties
		n++
	}
	return n, nil
}

// index starts the index: the indicator and the number of records. Each record is two
// numbers.
func (f *xzFrame) index() (int64, error) {
	n, err := f.uvarint(1)
	if err != nil {
		return 0, err
	}
	b, _ := f.in.Peek(int(n))
	records, _ := binary.Uvarint(b[1:])
	f.state = xzInIndex
	f.fields = 2 * min(records, 1<<62)
	f.packed = n
	return n, nil
}

// uvarint returns the end of the number that begins after the next skip bytes.
func (f *xzFrame) uvarint(skip int) (int64, error) {
	for n := skip + 1; n <= skip+9; n++ {
		b, err := f.in.header(n)
		if err != nil {
			return 0, err
		}
		if b[n-1] < 0x80 {
			return int64(n), nil
		}
	}
	return 0, f.in.corrupt("number in the index is too long")
}

// xzContentSize returns the sum of the sizes in the index at the end of a stream, or 0
// if it cannot be read.
func xzContentSize(r io.ReaderAt, size int64) int64 {
	// Larger indexes exist, with one record for each block, but not in modules.
	const maxIndex = 64 << 10
	var footer [xzFooterSize]byte
	if size < xzHeaderSize+xzFooterSize {
		return 0
	}
	if _, err := r.ReadAt(footer[:], size-xzFooterSize); err != nil || string(footer[10:]) != "YZ" {
		return 0
	}
	n := (int64(binary.LittleEndian.Uint32(footer[4:])) + 1) * 4
	if n > maxIndex || n > size-xzHeaderSize-xzFooterSize {
		return 0
	}
	index := make([]byte, n)
	if _, err := r.ReadAt(index, size-xzFooterSize-n); err != nil || index[0] != 0 {
		return 0
	}
	records, k := binary.Uvarint(index[1:])
	if k <= 0 || records > uint64(n) {
		return 0
	}
	index = index[1+k:]
	var total int64
	for range records {
		_, k := binary.Uvarint(index)
		if k <= 0 {
			return 0
		}
		index = index[k:]
		content, k := binary.Uvarint(index)
		if k <= 0 || content > 1<<62 {
			return 0
		}
		index = index[k:]
		if total += int64(content); total > 1<<62 {
			return 0
		}
	}
	return total
}
