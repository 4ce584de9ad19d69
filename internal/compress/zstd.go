package compress

import (
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// zstdMaxHeader is the size in bytes of the largest frame header with its magic (RFC
// 8878, 3.1.1.1).
const zstdMaxHeader = 18

// parseZstdHeader parses a frame header. window is in bytes.
func parseZstdHeader(b []byte) (h zstd.Header, window uint64, err error) {
	if err := h.Decode(b); err != nil {
		return h, 0, err
	}
	if h.SingleSegment {
		return h, h.FrameContentSize, nil
	}
	return h, h.WindowSize, nil
}

// zstdFrame follows a frame from block to block.
type zstdFrame struct {
	framing
	state    zstdState
	checksum bool
}

type zstdState uint8

const (
	zstdInHeader zstdState = iota
	zstdInBlock
	zstdInChecksum
	zstdAtEnd
)

func (f *zstdFrame) piece() (int64, error) {
	switch f.state {
	case zstdInHeader:
		// The shortest frame has 9 bytes, fewer than the longest header.
		b, err := f.in.Peek(zstdMaxHeader)
		if err != nil && err != io.EOF {
			return 0, err
		}
		h, window, err := parseZstdHeader(b)
		switch {
		case err == io.ErrUnexpectedEOF:
			return 0, f.in.cutOff()
		case err != nil:
			return 0, f.in.corrupt("%v", err)
		case h.Skippable:
			return 0, fmt.Errorf("zstd stream begins with a skippable frame, which modules do not have")
		case h.DictionaryID != 0:
			return 0, fmt.Errorf("zstd stream needs the dictionary with the ID %d, which modules do not have", h.DictionaryID)
		}
		if err := f.admit("window", window); err != nil {
			return 0, err
		}
		f.checksum = h.HasCheckSum
		f.state = zstdInBlock
		return int64(h.HeaderSize), nil

	case zstdInBlock:
		b, err := f.in.header(3)
		if err != nil {
			return 0, err
		}
		header := int64(b[0]) | int64(b[1])<<8 | int64(b[2])<<16
		last, kind, size := header&1 != 0, header>>1&3, header>>3
		switch kind {
		case 1: // one byte, repeated
			size = 1
		case 3:
			return 0, f.in.corrupt("block type is reserved")
		}
		if last {
			f.state = zstdInChecksum
		}
		return 3 + size, nil

	case zstdInChecksum:
		f.state = zstdAtEnd
		if f.checksum {
			return 4, nil
		}
	}
	return 0, io.EOF
}
