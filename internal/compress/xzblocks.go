package compress

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"runtime"
)

const (
	// maxXZIndex and maxXZBlock are the largest index, and block when decompressed, of a
	// stream whose blocks are decompressed in parallel, in bytes. xz -6 makes blocks of 24 MiB.
	maxXZIndex = 1 << 20
	maxXZBlock = 64 << 20
	// maxXZParallel is how many blocks are decompressed at once at most.
	maxXZParallel = 4
)

// An xzBlock is a block as the index of its stream has it.
type xzBlock struct {
	at, size int64 // in the file, with padding
	unpadded uint64
	content  uint64 // bytes when decompressed
}

// xzIndex returns the blocks of the single stream of a file (xz-file-format.txt, 2.1.2 and 4),
// or nil if there is something that a reader of the whole stream has to look at: several
// streams, data behind the stream, large blocks, a single block, an error.
func xzIndex(r io.ReaderAt, size int64) (header []byte, blocks []xzBlock) {
	header = make([]byte, xzHeaderSize)
	var footer [xzFooterSize]byte
	if size < xzHeaderSize+xzFooterSize || size%4 != 0 {
		return nil, nil
	}
	if _, err := r.ReadAt(header, 0); err != nil {
		return nil, nil
	}
	if _, err := r.ReadAt(footer[:], size-xzFooterSize); err != nil || string(footer[10:]) != "YZ" {
		return nil, nil
	}
	checked := func(b []byte, sum []byte) bool { return crc32.ChecksumIEEE(b) == binary.LittleEndian.Uint32(sum) }
	length := (int64(binary.LittleEndian.Uint32(footer[4:])) + 1) * 4
	if !checked(header[6:8], header[8:]) || !checked(footer[4:10], footer[:]) || !bytes.Equal(header[6:8], footer[8:10]) ||
		length > maxXZIndex || length > size-xzHeaderSize-xzFooterSize {
		return nil, nil
	}
	index := make([]byte, length)
	_, err := r.ReadAt(index, size-xzFooterSize-length)
	if err != nil || index[0] != 0 || !checked(index[:length-4], index[length-4:]) {
		return nil, nil
	}
	index = index[1 : length-4]
	next := func() uint64 {
		n, k := binary.Uvarint(index)
		if k <= 0 {
			index = nil
			return 0
		}
		index = index[k:]
		return n
	}
	at := int64(xzHeaderSize)
	for n := next(); n > 0 && index != nil; n-- {
		b := xzBlock{at: at, unpadded: next(), content: next()}
		if b.unpadded == 0 || b.unpadded > uint64(size) || b.content > maxXZBlock {
			return nil, nil
		}
		b.size = (int64(b.unpadded) + 3) &^ 3
		blocks, at = append(blocks, b), at+b.size
	}
	if at != size-xzFooterSize-length || len(index) > 3 || len(blocks) < 2 {
		return nil, nil
	}
	return header, blocks
}

// end returns the index and footer that make a stream of the header and this block.
func (b *xzBlock) end(header []byte) io.Reader {
	checked := func(b []byte) []byte { return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b)) }
	index := binary.AppendUvarint(binary.AppendUvarint([]byte{0, 1}, b.unpadded), b.content)
	for len(index)%4 != 0 {
		index = append(index, 0)
	}
	index = checked(index)
	back := binary.LittleEndian.AppendUint32(nil, uint32(len(index)/4-1))
	footer := checked(append(back, header[6:8]...))
	end := append(index, footer[6:]...)
	end = append(append(end, footer[:6]...), "YZ"...)
	return bytes.NewReader(end)
}

// xzBlocks decompresses the blocks of a stream in parallel.
type xzBlocks struct {
	blocks []xzBlock
	size   int64                // of the stream
	queue  chan chan xzBlockOut // in the order of the blocks
	free   chan []byte
	stop   chan struct{}
	now    xzBlockOut
	rest   []byte
	next   int
}

type xzBlockOut struct {
	content []byte
	err     error
}

// newXZBlocks returns a reader of the stream in r, or nil if its blocks cannot be taken one
// by one.
func newXZBlocks(r *io.SectionReader) *xzBlocks {
	parallel := min(runtime.GOMAXPROCS(0), maxXZParallel)
	if parallel < 2 {
		return nil
	}
	header, blocks := xzIndex(r, r.Size())
	if blocks == nil {
		return nil
	}
	x := &xzBlocks{blocks: blocks, size: r.Size(), queue: make(chan chan xzBlockOut, parallel),
		free: make(chan []byte, parallel+1), stop: make(chan struct{})}
	go func() {
		defer close(x.queue)
		for i := range blocks {
			out := make(chan xzBlockOut, 1)
			select {
			case x.queue <- out:
			case <-x.stop:
				return
			}
			go func() { out <- x.decode(r, header, &blocks[i]) }()
		}
	}()
	return x
}

func (x *xzBlocks) decode(r io.ReaderAt, header []byte, b *xzBlock) (out xzBlockOut) {
	select {
	case out.content = <-x.free:
	default:
	}
	if uint64(cap(out.content)) < b.content {
		out.content = make([]byte, b.content)
	}
	out.content = out.content[:b.content]
	stream := io.MultiReader(bytes.NewReader(header), io.NewSectionReader(r, b.at, b.size), b.end(header))
	d, err := NewReader(XZ, stream, int64(b.content))
	if err != nil {
		return xzBlockOut{err: err}
	}
	defer d.Close()
	if _, out.err = io.ReadFull(d, out.content); out.err == nil {
		// The checksum is compared at the end.
		_, out.err = io.Copy(io.Discard, d)
	}
	return out
}

func (x *xzBlocks) Read(b []byte) (int, error) {
	for len(x.rest) == 0 {
		if x.now.err != nil {
			return 0, x.now.err
		}
		if x.now.content != nil {
			select {
			case x.free <- x.now.content:
			default:
			}
		}
		out, ok := <-x.queue
		if !ok {
			x.now = xzBlockOut{err: io.EOF}
			continue
		}
		x.now = <-out
		x.next++
		if x.now.err != nil {
			if x.now.err == io.EOF {
				x.now.err = io.ErrUnexpectedEOF
			}
			continue
		}
		x.rest = x.now.content
	}
	n := copy(b, x.rest)
	x.rest = x.rest[n:]
	return n, nil
}

// used returns the size of the blocks up to the current one, and at the end that of the
// stream.
func (x *xzBlocks) used() int64 {
	switch {
	case x.now.err == io.EOF:
		return x.size
	case x.next == 0:
		return 0
	}
	last := x.blocks[x.next-1]
	return last.at + last.size
}

// close ends the work, and waits for what is under way.
func (x *xzBlocks) close() error {
	close(x.stop)
	for out := range x.queue {
		<-out
	}
	return nil
}
