package compress

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz/lzma"
)

// smallStreams returns streams by name that are small enough to test at every position.
func smallStreams(t testing.TB) map[string][]byte {
	data := append(machineCode(t, 300), make([]byte, 100)...)
	streams := make(map[string][]byte)
	for _, f := range packed {
		streams[f.String()] = pipe(t, data, programOf[f], map[Format][]string{Gzip: {"-nc"},
			XZ: {"--check=crc32", "--lzma2=dict=1MiB"}, Zstd: {"-q"}}[f]...)
	}
	streams["gzip name"] = append([]byte("\x1f\x8b\x08\x08\x01\x02\x03\x04\x00\x03a module.ko\x00"),
		streams["gzip"][10:]...)
	streams["xz blocks"] = pipe(t, data, "xz", "--check=crc64", "--block-size=200")
	streams["xz sizes"] = pipe(t, data, "xz", "--check=sha256", "-T2", "--block-size=200")
	streams["xz x86"] = pipe(t, data, "xz", "--x86", "--lzma2=dict=4KiB")
	streams["xz empty"] = pipe(t, nil, "xz", "--check=crc32")
	streams["zstd empty"] = pipe(t, nil, "zstd", "-q")
	streams["zstd run"] = pipe(t, bytes.Repeat([]byte{7}, 140_000), "zstd", "-q")
	return streams
}

// formatOf returns the format of a stream by its first bytes.
func formatOf(t testing.TB, stream []byte) Format {
	f := FromMagic(stream)
	if f == None {
		t.Fatalf("no stream: % x", stream[:min(6, len(stream))])
	}
	return f
}

func TestTruncated(t *testing.T) {
	t.Parallel()
	for name, stream := range smallStreams(t) {
		f := formatOf(t, stream)
		want, err := decompress(f, bytes.NewReader(stream), 1<<20)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for n := range stream {
			got, err := decompress(f, bytes.NewReader(stream[:n]), 1<<20)
			if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "cut off") {
				t.Errorf("%s: %d of %d bytes: %v", name, n, len(stream), err)
			}
			if !bytes.HasPrefix(want, got) {
				t.Errorf("%s: %d of %d bytes: other data", name, n, len(stream))
			}
		}
		// The decoder that failed so often still works.
		if got, err := decompress(f, bytes.NewReader(stream), 1<<20); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s, after all that: %v", name, err)
		}
	}
}

// A stream with one changed byte gives an error or, if the byte means nothing, the same
// data.
func TestFlipped(t *testing.T) {
	t.Parallel()
	for name, stream := range smallStreams(t) {
		f := formatOf(t, stream)
		want, err := decompress(f, bytes.NewReader(stream), 1<<20)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		refused := 0
		for i := range stream {
			for _, change := range []byte{1 << (i % 8), 0xff} {
				bad := bytes.Clone(stream)
				bad[i] ^= change
				got, err := decompress(f, bytes.NewReader(bad), 1<<20)
				if err != nil {
					refused++
				} else if !bytes.Equal(got, want) {
					t.Errorf("%s: %#x in byte %d changed: other data and no error", name, change, i)
				}
			}
		}
		if refused < len(stream) {
			t.Errorf("%s: only %d of %d changes were refused", name, refused, 2*len(stream))
		}
	}
}

func TestTrailing(t *testing.T) {
	t.Parallel()
	for name, stream := range smallStreams(t) {
		f := formatOf(t, stream)
		want, err := decompress(f, bytes.NewReader(stream), 1<<20)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, c := range []struct {
			what, tail, err string
		}{
			{"a byte", "x", "other data follows"},
			{"a zero", "\x00", "other data follows"},
			{"a kernel image's size", "\x00\x9c\x6f\x03", "other data follows"},
			{"much", strings.Repeat("more", 1<<16), "other data follows"},
			{"a stream", string(stream), "a second " + f.String() + " stream follows"},
			{"padding", "\x00\x00\x00\x00\x00\x00\x00\x00", map[Format]string{Gzip: "other data", Zstd: "other data"}[f]},
		} {
			tail := append(bytes.Clone(stream), c.tail...)
			got, err := decompress(f, bytes.NewReader(tail), 1<<20)
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("%s followed by %s: error %v, want %q", name, c.what, err, c.err)
			}
			if err != nil && errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s followed by %s is called cut off", name, c.what)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s followed by %s: other data", name, c.what)
			}

			r, err := NewEmbeddedReader(f, bytes.NewReader(tail), 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s embedded before %s: %v", name, c.what, err)
			}
			r.Close()
		}
	}
}

func TestNotAStream(t *testing.T) {
	t.Parallel()
	for _, f := range packed {
		for _, data := range []string{"hello, world of modules", "\x7fELF\x02\x01\x01\x00" + strings.Repeat("\x00", 100),
			strings.Repeat("\xff", 5000)} {
			if _, err := NewReader(f, strings.NewReader(data), 1<<20); err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%v: %.8q: error %v", f, data, err)
			}
			r := strings.NewReader(data)
			if err := KernelError(f, r, r.Size()); err == nil {
				t.Errorf("%v: the kernel would take %.8q", f, data)
			}
			if f != Gzip { // which has a number at the end of anything
				if hint := SizeHint(f, r, r.Size()); hint != 0 {
					t.Errorf("%v: SizeHint of %.8q = %d", f, data, hint)
				}
			}
		}
	}
	if _, err := NewReader(9, strings.NewReader(""), 1); err == nil {
		t.Error("an unknown format is read")
	}
}

// A source may return any number of bytes at a time, and its errors are passed on.
func TestSources(t *testing.T) {
	t.Parallel()
	for name, stream := range smallStreams(t) {
		f := formatOf(t, stream)
		want, err := decompress(f, bytes.NewReader(stream), 1<<20)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for kind, wrap := range map[string]func(io.Reader) io.Reader{"one byte": iotest.OneByteReader,
			"half": iotest.HalfReader, "data with error": iotest.DataErrReader} {
			if got, err := decompress(f, wrap(bytes.NewReader(stream)), 1<<20); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, %s: %v", name, kind, err)
			}
		}
		r, err := NewReader(f, bytes.NewReader(stream), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(iotest.OneByteReader(r)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s read byte by byte: %v", name, err)
		}
		r.Close()
		r.Close() // Close may be called twice
		if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil || err == io.EOF {
			t.Errorf("%s: read after Close: %d, %v", name, n, err)
		}
		broken := errors.New("input/output error")
		for _, n := range []int{0, 1, len(stream) / 2, len(stream)} {
			src := io.MultiReader(bytes.NewReader(stream[:n]), iotest.ErrReader(broken))
			if _, err := decompress(f, src, 1<<20); !errors.Is(err, broken) {
				t.Errorf("%s, source broken after %d: %v", name, n, err)
			}
		}
	}
}

// bomb returns a small stream of more than 10 GB, without its end.
func bomb(t testing.TB, f Format) []byte {
	var b bytes.Buffer
	switch f {
	case Gzip:
		w := gzip.NewWriter(&b)
		w.Write(make([]byte, 1<<20))
		w.Flush()
		n := b.Len()
		w.Write(make([]byte, 1<<20))
		w.Flush()
		again := bytes.Clone(b.Bytes()[n:])
		for range 10 << 10 {
			b.Write(again)
		}
	case XZ:
		b.WriteString("\xfd7zXZ\x00\x00\x01")
		b.Write(binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE([]byte("\x00\x01"))))
		header := []byte("\x02\x00\x21\x01\x10\x00\x00\x00")
		b.Write(binary.LittleEndian.AppendUint32(header, crc32.ChecksumIEEE(header)))
		var chunks bytes.Buffer
		w, err := lzma.Writer2Config{DictCap: 1 << 20}.NewWriter2(&chunks)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(make([]byte, 1<<20))
		w.Flush() // without the end marker
		for range 10 << 10 {
			b.Write(chunks.Bytes())
		}
	case Zstd:
		b.WriteString("\x28\xb5\x2f\xfd\x00\x58") // a window of 2 MiB
		const size = 128 << 10
		for range 10 << 13 {
			header := uint32(size<<3 | 1<<1) // one byte, repeated; not the last
			b.Write([]byte{byte(header), byte(header >> 8), byte(header >> 16), 0})
		}
	}
	return b.Bytes()
}

// allocated returns the number of bytes that f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestTooLarge(t *testing.T) {
	for _, f := range packed {
		stream := bomb(t, f)
		if len(stream) > 16<<20 {
			t.Errorf("%v: bomb has %d bytes", f, len(stream))
		}
		const limit = 8 << 20
		var n int64
		var err error
		grown := allocated(func() {
			var r io.ReadCloser
			if r, err = NewReader(f, bytes.NewReader(stream), limit); err != nil {
				return
			}
			defer r.Close()
			n, err = io.Copy(onlyWriter{io.Discard}, r)
		})
		var tooLarge *TooLargeError
		if !errors.As(err, &tooLarge) || tooLarge.Limit != limit || !errors.Is(err, ErrTooLarge) ||
			!strings.Contains(err.Error(), "8388608") {
			t.Errorf("%v: error %v", f, err)
		}
		if n != limit {
			t.Errorf("%v: %d bytes came out, want %d", f, n, limit)
		}
		if grown > 4<<20 {
			t.Errorf("%v: %d bytes were allocated", f, grown)
		}
	}
}

func TestLimit(t *testing.T) {
	t.Parallel()
	data := machineCode(t, 10_000)
	e := newEncoder(t, 0)
	for _, f := range append(packed, None) {
		stream := compressed(t, e, f, data)
		for _, limit := range []int64{-1, 0, 1, 9_999} {
			got, err := decompress(f, bytes.NewReader(stream), limit)
			if !errors.Is(err, ErrTooLarge) || int64(len(got)) != max(limit, 0) {
				t.Errorf("%v, limit %d: %d bytes, %v", f, limit, len(got), err)
			}
		}
		for _, limit := range []int64{10_000, 10_001, 1<<63 - 1} {
			if got, err := decompress(f, bytes.NewReader(stream), limit); err != nil || len(got) != len(data) {
				t.Errorf("%v, limit %d: %d bytes, %v", f, limit, len(got), err)
			}
		}
	}
}

// A reader rejects a claim of much memory before it allocates the memory, in later
// blocks too.
func TestWindowClaims(t *testing.T) {
	xzHead := []byte("\xfd7zXZ\x00\x00\x01\x69\x22\xde\x36")
	block := func(dict byte) []byte {
		header := []byte{2, 0, 0x21, 1, dict, 0, 0, 0}
		return binary.LittleEndian.AppendUint32(header, crc32.ChecksumIEEE(header))
	}
	// A stored chunk of 1 byte, the end of the block, padding and CRC32.
	first := append(block(0), 1, 0, 0, 'x', 0, 0, 0, 0)
	first = binary.LittleEndian.AppendUint32(first, crc32.ChecksumIEEE([]byte("x")))
	join := func(parts ...[]byte) []byte { return append(bytes.Join(parts, nil), make([]byte, 100)...) }
	for name, stream := range map[string][]byte{
		"xz 192 MiB":              join(xzHead, block(31)),
		"xz 1 GiB":                join(xzHead, block(36)),
		"xz 4 GiB":                join(xzHead, block(40)),
		"xz no size":              join(xzHead, block(41)),
		"xz 2 GiB in block 2":     join(xzHead, first, block(38)),
		"zstd 144 MiB":            join([]byte("\x28\xb5\x2f\xfd\x00\x89")),
		"zstd 1 TiB":              join([]byte("\x28\xb5\x2f\xfd\x00\xf0")),
		"zstd one segment, 2 GiB": join([]byte("\x28\xb5\x2f\xfd\xa0\x00\x00\x00\x80")),
		"zstd one segment, 2^63":  join([]byte("\x28\xb5\x2f\xfd\xe0\x00\x00\x00\x00\x00\x00\x00\x80")),
	} {
		f := formatOf(t, stream)
		decompress(f, bytes.NewReader(stream), 1<<30) // creates the decoder
		var err error
		grown := allocated(func() { _, err = decompress(f, bytes.NewReader(stream), 1<<30) })
		if err == nil || !strings.Contains(err.Error(), "128 MiB is the limit") && name != "xz no size" {
			t.Errorf("%s: error %v", name, err)
		}
		if grown > 1<<20 {
			t.Errorf("%s: %d bytes were allocated", name, grown)
		}
	}
}

func TestZstdRefused(t *testing.T) {
	t.Parallel()
	skippable := append([]byte("\x50\x2a\x4d\x18\x04\x00\x00\x00ever"), pipe(t, []byte("data"), "zstd", "-q")...)
	dictionary, err := zstd.NewWriter(nil, zstd.WithEncoderDictRaw(77, machineCode(t, 1000)),
		zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	for what, stream := range map[string][]byte{
		"skippable":  skippable,
		"dictionary": dictionary.EncodeAll(machineCode(t, 900), nil),
	} {
		if _, err := NewReader(Zstd, bytes.NewReader(stream), 1<<20); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("error %v, want one about a %s", err, what)
		}
		if err := KernelError(Zstd, bytes.NewReader(stream), int64(len(stream))); err == nil ||
			!strings.Contains(err.Error(), what) {
			t.Errorf("KernelError = %v, want one about a %s", err, what)
		}
	}
}

// NewReader accepts optional fields of a gzip header, which the kernel does not skip.
func TestGzipHeader(t *testing.T) {
	t.Parallel()
	stream := smallStreams(t)["gzip"]
	want, err := decompress(Gzip, bytes.NewReader(stream), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		flags          byte
		fields, kernel string
	}{
		{0, "", ""},
		{1, "", ""}, // the hint that it is text
		{4, "\x03\x00abc", "an extra field"},
		{16, "a comment\x00", "a comment"},
		{28, "\x00\x00name\x00comment\x00", "an extra field"},
		{2, "sum", "a header checksum"},
	} {
		head := []byte{0x1f, 0x8b, 8, c.flags, 0, 0, 0, 0, 0, 3}
		if c.fields == "sum" {
			c.fields = string(binary.LittleEndian.AppendUint16(nil, uint16(crc32.ChecksumIEEE(head))))
		}
		s := append(append(head, c.fields...), stream[10:]...)
		if got, err := decompress(Gzip, bytes.NewReader(s), 1<<20); err != nil || !bytes.Equal(got, want) {
			t.Errorf("flags %#x: %v", c.flags, err)
		}
		err := KernelError(Gzip, bytes.NewReader(s), int64(len(s)))
		if c.kernel == "" && err != nil || c.kernel != "" && (err == nil || !strings.Contains(err.Error(), c.kernel)) {
			t.Errorf("flags %#x: KernelError = %v, want %q", c.flags, err, c.kernel)
		}
	}
}

// The package does not support the arm64 filters of newer kernels, and the error says
// so.
func TestXZFilterRefused(t *testing.T) {
	t.Parallel()
	stream := pipe(t, machineCode(t, 1000), "xz", "--arm64", "--lzma2=dict=1MiB", "--check=crc32")
	if _, err := decompress(XZ, bytes.NewReader(stream), 1<<20); !errors.Is(err, ErrUnreadable) ||
		!strings.Contains(err.Error(), "arm64 filter") {
		t.Errorf("error %v", err)
	}
	if err := KernelError(XZ, bytes.NewReader(stream), int64(len(stream))); err != nil {
		t.Errorf("KernelError = %v", err)
	}
}

func fuzz(f *testing.F, format Format) {
	seeds := 0
	for _, stream := range smallStreams(f) {
		if FromMagic(stream) == format {
			f.Add(stream)
			f.Add(append(bytes.Clone(stream), "tail"...))
			seeds++
		}
	}
	f.Add(bomb(f, format)[:2000])
	if seeds < 2 {
		f.Fatal("no seeds")
	}
	e := newEncoder(f, 0)
	f.Fuzz(func(t *testing.T, stream []byte) {
		const limit = 1 << 20
		r := bytes.NewReader(stream)
		if hint := SizeHint(format, r, r.Size()); hint < 0 {
			t.Fatalf("SizeHint = %d", hint)
		}
		KernelError(format, r, r.Size())
		data, err := decompress(format, bytes.NewReader(stream), limit)
		if len(data) > limit {
			t.Fatalf("%d bytes came out", len(data))
		}
		embedded, embeddedErr := readEmbedded(format, stream, limit)
		// The amount of data before the error may differ for a broken stream.
		broken := err != nil && embeddedErr != nil && (bytes.HasPrefix(data, embedded) || bytes.HasPrefix(embedded, data))
		if !broken && (!bytes.Equal(embedded, data) || err == nil && embeddedErr != nil) {
			t.Fatalf("alone %d bytes and %v, embedded %d bytes and %v", len(data), err, len(embedded), embeddedErr)
		}
		if err != nil {
			return
		}
		format := format
		if format == XZ { // a process for each would be slow
			format = Zstd
		}
		again, err := decompress(format, bytes.NewReader(compressed(t, e, format, data)), limit)
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("compressed and read again: %v", err)
		}
	})
}

func readEmbedded(f Format, stream []byte, limit int64) ([]byte, error) {
	r, err := NewEmbeddedReader(f, bytes.NewReader(stream), limit)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func FuzzGzip(f *testing.F) { fuzz(f, Gzip) }
func FuzzXZ(f *testing.F)   { fuzz(f, XZ) }
func FuzzZstd(f *testing.F) { fuzz(f, Zstd) }
