package elfstrip

import (
	"bytes"
	"io"
	"slices"
)

// piece is a range of an output: new bytes, or bytes of the input.
type piece struct {
	off  uint64 // in the output
	size uint64
	data []byte // new bytes, or
	src  uint64 // offset in the input
}

// Image is an output file: ranges of the input, new bytes, and zeros between them.
type Image struct {
	f      *File
	size   uint64
	pieces []piece // in order, none empty
	same   bool
}

// Size returns the length of the file.
func (m *Image) Size() int64 { return int64(m.size) }

// Same reports whether the file is byte for byte the input.
func (m *Image) Same() bool { return m.same }

// Reader returns a reader of the whole file, which reads ranges of the input when it
// reaches them. Several readers of one Image are independent.
func (m *Image) Reader() io.Reader { return &imageReader{m: m} }

func (m *Image) add(off uint64, data []byte) {
	if len(data) > 0 {
		m.pieces = append(m.pieces, piece{off: off, size: uint64(len(data)), data: data})
	}
}

func (m *Image) copy(off, src, size uint64) {
	if size > 0 {
		m.pieces = append(m.pieces, piece{off: off, size: size, src: src})
	}
}

// finish sorts the pieces, and determines whether they are equal to the input.
func (m *Image) finish() error {
	slices.SortFunc(m.pieces, func(a, b piece) int {
		if a.off < b.off {
			return -1
		}
		return 1
	})
	var err error
	m.same, err = m.compare()
	return err
}

// compare compares the new bytes and the padding with the input; the rest is the same.
func (m *Image) compare() (bool, error) {
	if m.size != m.f.size {
		return false, nil
	}
	for _, p := range m.pieces {
		if p.data == nil && p.src != p.off {
			return false, nil
		}
	}
	buf := make([]byte, compareSize)
	var at uint64
	for _, p := range m.pieces {
		if ok, err := m.f.holds(at, nil, p.off-at, buf); !ok || err != nil {
			return false, err
		}
		if p.data != nil {
			if ok, err := m.f.holds(p.off, p.data, p.size, buf); !ok || err != nil {
				return false, err
			}
		}
		at = p.off + p.size
	}
	return true, nil
}

const compareSize = 32 << 10

// holds reports whether the file has the bytes want at an offset, or size zeros if want
// is nil. buf is a read buffer.
func (f *File) holds(off uint64, want []byte, size uint64, buf []byte) (bool, error) {
	for done := uint64(0); done < size; {
		b := buf[:min(uint64(len(buf)), size-done)]
		if err := f.readAt(b, off+done); err != nil {
			return false, err
		}
		if want != nil && !bytes.Equal(b, want[done:done+uint64(len(b))]) || want == nil && !isZero(b) {
			return false, nil
		}
		done += uint64(len(b))
	}
	return true, nil
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

type imageReader struct {
	m    *Image
	next int    // the piece that contains at or follows it
	at   uint64 // in the output
	err  error
}

func (r *imageReader) Read(b []byte) (int, error) {
	n := 0
	for n < len(b) && r.err == nil {
		n += r.some(b[n:])
	}
	if n > 0 || len(b) == 0 {
		return n, nil
	}
	return 0, r.err
}

// some reads from one piece, or from the zeros before it.
func (r *imageReader) some(b []byte) int {
	if r.at == r.m.size {
		r.err = io.EOF
		return 0
	}
	end := r.m.size
	if r.next < len(r.m.pieces) {
		p := &r.m.pieces[r.next]
		if r.at >= p.off {
			return r.from(p, b)
		}
		end = p.off
	}
	b = b[:min(uint64(len(b)), end-r.at)]
	clear(b)
	r.at += uint64(len(b))
	return len(b)
}

func (r *imageReader) from(p *piece, b []byte) int {
	done := r.at - p.off
	b = b[:min(uint64(len(b)), p.size-done)]
	if p.data != nil {
		copy(b, p.data[done:])
	} else if r.err = r.m.f.readAt(b, p.src+done); r.err != nil {
		return 0
	}
	r.at += uint64(len(b))
	if r.at == p.off+p.size {
		r.next++
	}
	return len(b)
}
