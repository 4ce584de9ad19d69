package compress

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// twoBlocks joins two xz streams of one block each, without checks, into one stream. xz
// itself gives all blocks of a stream the same dictionary.
func twoBlocks(t testing.TB, a, b []byte) []byte {
	t.Helper()
	parts := func(stream []byte) (block, record []byte) {
		index := (int(binary.LittleEndian.Uint32(stream[len(stream)-8:])) + 1) * 4
		at := len(stream) - xzFooterSize - index
		// The index is 0, the number of records, the record, zeros and the CRC32.
		rest := stream[at+2 : len(stream)-xzFooterSize-4]
		_, n := binary.Uvarint(rest)
		_, m := binary.Uvarint(rest[n:])
		return stream[xzHeaderSize:at], rest[:n+m]
	}
	blockA, recordA := parts(a)
	blockB, recordB := parts(b)
	index := slices.Concat([]byte{0, 2}, recordA, recordB)
	index = append(index, make([]byte, -len(index)&3)...)
	index = binary.LittleEndian.AppendUint32(index, crc32.ChecksumIEEE(index))
	footer := binary.LittleEndian.AppendUint32(nil, uint32(len(index)/4-1))
	footer = append(footer, a[6:8]...)
	stream := slices.Concat(a[:xzHeaderSize], blockA, blockB, index)
	stream = binary.LittleEndian.AppendUint32(stream, crc32.ChecksumIEEE(footer))
	return append(append(stream, footer...), "YZ"...)
}

// growing returns a stream whose first block has a dictionary of mib MiB, and whose
// second block has one of 128 MiB.
func growing(t testing.TB, data []byte, mib int) []byte {
	t.Helper()
	stream := twoBlocks(t,
		pipe(t, data, "xz", "--check=none", fmt.Sprintf("--lzma2=dict=%dMiB,mf=hc3", mib), "-c"),
		pipe(t, data, "xz", "--check=none", "--lzma2=dict=128MiB,mf=hc3", "-c"))
	if back := pipe(t, stream, "xz", "-dc"); !bytes.Equal(back, slices.Concat(data, data)) {
		t.Fatal("xz reads another stream")
	}
	return stream
}

func TestWindow(t *testing.T) {
	testmod.Slow(t, "it reads streams with large windows")
	data := machineCode(t, 100_000)
	xz := func(args ...string) []byte { return pipe(t, data, "xz", append(args, "-c")...) }
	zstd := func(args ...string) []byte { return pipe(t, data, "zstd", append(args, "-qc")...) }
	one, two := growing(t, data, 1), growing(t, data, 64)
	for _, test := range []struct {
		name   string
		format Format
		stream []byte
		want   int64
	}{
		{"xz of the kernel's build", XZ, xz("--check=crc32", "--lzma2=dict=1MiB"), 1 << 20},
		{"xz", XZ, xz(), 8 << 20},
		{"xz, 96 MiB", XZ, xz("--lzma2=dict=96MiB,mf=hc3"), 96 << 20},
		{"xz, 128 MiB", XZ, xz("--lzma2=dict=128MiB,mf=hc3"), 128 << 20},
		{"xz, many blocks", XZ, xz("--block-size=10000", "--lzma2=dict=3MiB"), 3 << 20},
		{"xz, the second block wants more", XZ, one, 128 << 20},
		{"xz, the second block is cut off", XZ, one[:len(one)/3], 1 << 20},
		{"xz, both are large", XZ, two, 128 << 20},
		{"xz, over the limit", XZ, xz("--lzma2=dict=129MiB,mf=hc3"), 0}, // the reader rejects the stream
		{"zstd of a pipe", Zstd, zstd("--long=27"), 128 << 20},
		{"zstd of a file", Zstd, zstd("--long=27", "--stream-size=100000"), 100000},
		{"zstd, over the limit", Zstd, zstd("--long=28"), 0},
		{"zstd, cut off", Zstd, zstd()[:4], 0},
		{"gzip", Gzip, pipe(t, data, "gzip", "-c"), 0},
		{"no stream", XZ, []byte("text"), 0},
		{"none", None, data, 0},
	} {
		got := Window(test.format, bytes.NewReader(test.stream), int64(len(test.stream)))
		if got != test.want {
			t.Errorf("%s: %d, want %d", test.name, got, test.want)
		}
		if test.format == None || bytes.Equal(test.stream, []byte("text")) {
			continue
		}
		// A reader that knows the window returns the same data and errors.
		_, want := decompress(test.format, bytes.NewReader(test.stream), 1<<20)
		r, err := NewWindowReader(test.format, bytes.NewReader(test.stream), 1<<20, got)
		if err == nil {
			_, err = io.ReadAll(r)
			r.Close()
		}
		if fmt.Sprint(err) != fmt.Sprint(want) {
			t.Errorf("%s: the reader says %v, and without a window %v", test.name, err, want)
		}
		if got > 0 && want == nil {
			r, err := NewWindowReader(test.format, bytes.NewReader(test.stream), 1<<20, got-1)
			if err == nil {
				_, err = io.ReadAll(r)
				r.Close()
			}
			if err == nil || !strings.Contains(err.Error(), "another process writes to the file") ||
				errors.Is(err, ErrUnreadable) {
				t.Errorf("%s: with a window too small: %v", test.name, err)
			}
		}
	}
}

// A reader allocates what ReaderMemory returns, also if later blocks want larger
// dictionaries than earlier ones. The library alone would allocate one after the other.
func TestReaderMemory(t *testing.T) {
	data := machineCode(t, 100_000)
	streams := []struct {
		format Format
		stream []byte
	}{
		{XZ, pipe(t, data, "xz", "--lzma2=dict=48MiB,mf=hc3", "-c")}, {XZ, growing(t, data, 64)}, {XZ, growing(t, data, 96)},
		{Zstd, pipe(t, data, "zstd", "-q", "--long=27", "-c")}, {Zstd, pipe(t, data, "zstd", "-qc", "--stream-size=100000")},
		{Gzip, pipe(t, data, "gzip", "-c")},
	}
	for i, s := range streams {
		window := Window(s.format, bytes.NewReader(s.stream), int64(len(s.stream)))
		got := allocated(func() {
			r, err := NewWindowReader(s.format, bytes.NewReader(s.stream), 1<<20, window)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if _, err := io.CopyBuffer(onlyWriter{io.Discard}, r, make([]byte, 32<<10)); err != nil {
				t.Fatal(err)
			}
		})
		if most := ReaderMemory(s.format, window); int64(got) > most {
			t.Errorf("stream %d, %v with a window of %d: %d bytes were allocated, more than %d", i, s.format, window, got, most)
		}
	}
}

func TestEncoderMemory(t *testing.T) {
	testmod.Slow(t, "it compresses large modules")
	data := machineCode(t, 300_000)
	test := func(e *Encoder, f Format) {
		got := allocated(func() {
			if err := e.Compress(t.Context(), f, io.Discard, bytes.NewReader(data), int64(len(data))); err != nil {
				t.Fatal(err)
			}
		})
		if most := e.Memory(f); int64(got) > most {
			t.Errorf("%v, level %d: %d bytes were allocated, more than %d", f, e.options.Level, got, most)
		}
	}
	for _, level := range []int{0, 1, 6, 9, 19, 22} {
		for _, f := range packed {
			if e := newEncoder(t, level); e.options.Check(f) == nil {
				test(e, f)
			}
		}
	}
	e := newEncoder(t, 0)
	e.xzProgram = ""
	test(e, XZ)
}

func TestEmptyXZ(t *testing.T) {
	for _, window := range []uint64{0, 1, 4096, 4097, 1 << 20, 96 << 20, 96<<20 + 1, MaxWindow} {
		stream := []byte(emptyXZ(window))
		if out := pipe(t, stream, "xz", "-dc"); len(out) != 0 {
			t.Errorf("%d: xz reads %q", window, out)
		}
		if got := Window(XZ, bytes.NewReader(stream), int64(len(stream))); got < int64(window) ||
			got > max(2*int64(window), 4096) {
			t.Errorf("%d: the dictionary has %d bytes", window, got)
		}
	}
}
