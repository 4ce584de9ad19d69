package compress

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

var packed = []Format{Gzip, XZ, Zstd}

// program returns the content of the test's own program.
var program = sync.OnceValue(func() []byte {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	return data
})

// machineCode returns n bytes that compress like a module.
func machineCode(t testing.TB, n int) []byte {
	t.Helper()
	if len(program()) < n {
		t.Fatalf("the test program has %d bytes; %d are wanted", len(program()), n)
	}
	return program()[:n:n]
}

func newEncoder(t testing.TB, level int) *Encoder {
	t.Helper()
	e, err := NewEncoder(Options{Level: level})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func compressed(t testing.TB, e *Encoder, f Format, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := e.Compress(t.Context(), f, &out, bytes.NewReader(data), int64(len(data))); err != nil {
		t.Fatalf("%v, %d bytes: %v", f, len(data), err)
	}
	return out.Bytes()
}

// decompress reads a stream to its end or to the first error.
func decompress(f Format, r io.Reader, limit int64) ([]byte, error) {
	d, err := NewReader(f, r, limit)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return io.ReadAll(d)
}

// pipe runs a program with data as its input, and returns its output.
func pipe(t testing.TB, data []byte, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(testmod.Program(t, name, debian[name]), args...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(data), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, &stderr)
	}
	return out
}

var debian = map[string]string{"gzip": "gzip", "xz": "xz-utils", "zstd": "zstd", "modinfo": "kmod"}

// programOf names the program of each format. All take the same arguments.
var programOf = map[Format]string{Gzip: "gzip", XZ: "xz", Zstd: "zstd"}

func TestFormat(t *testing.T) {
	for _, c := range []struct {
		format             Format
		name, suffix, head string
	}{
		{None, "none", "", "\x7fELF\x02\x01"},
		{Gzip, "gzip", ".gz", "\x1f\x8b\x08\x00\x00\x00"},
		{XZ, "xz", ".xz", "\xfd7zXZ\x00"},
		{Zstd, "zstd", ".zst", "\x28\xb5\x2f\xfd\x24\x00"},
	} {
		if got := c.format.String(); got != c.name {
			t.Errorf("String() = %q, want %q", got, c.name)
		}
		if got := c.format.Suffix(); got != c.suffix {
			t.Errorf("%v: Suffix() = %q, want %q", c.format, got, c.suffix)
		}
		if got := FromName("/lib/modules/6.12/kernel/fs/xfs.ko" + c.suffix); got != c.format {
			t.Errorf("%v: FromName = %v", c.format, got)
		}
		for tail := range 3 {
			if got := FromMagic([]byte(c.head + "more"[:tail])); got != c.format {
				t.Errorf("%v: FromMagic = %v", c.format, got)
			}
		}
	}
	for _, head := range []string{"", "\x1f", "\x1f\x8b", "\x1f\x8b\x07", "\xfd7zXZ", "\x28\xb5\x2f",
		"(\xb5/\xfe\x00\x00"} {
		if got := FromMagic([]byte(head)); got != None {
			t.Errorf("FromMagic(%q) = %v", head, got)
		}
	}
	if got := FromName("zst"); got != None {
		t.Errorf("FromName(zst) = %v", got)
	}
	if got := Format(9); got.Suffix() != "" || got.String() != "compression format 9" {
		t.Errorf("unknown format: %q, %q", got.Suffix(), got)
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	e := newEncoder(t, 0)
	sizes := testmod.Few([]int{0, 1, 257, 1024, 2, 255, 256, 1023, 1025, 2_200_000}, 4)
	for _, boundary := range testmod.Few([]int{64 << 10, 128 << 10, 1 << 20}, 1) {
		sizes = append(sizes, boundary-1, boundary, boundary+1)
	}
	for _, f := range append(packed, None) {
		for _, size := range sizes {
			t.Run(fmt.Sprint(f, " ", size), func(t *testing.T) {
				t.Parallel()
				data := machineCode(t, size)
				stream := compressed(t, e, f, data)
				got, err := decompress(f, bytes.NewReader(stream), int64(size))
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, data) {
					t.Fatal("other bytes came back")
				}
				if hint := SizeHint(f, bytes.NewReader(stream), int64(len(stream))); hint != int64(size) {
					t.Errorf("SizeHint = %d, want %d", hint, size)
				}
				if f == None {
					return
				}
				if size > 0 { // a module of no bytes is a case for no one
					if err := KernelError(f, bytes.NewReader(stream), int64(len(stream))); err != nil {
						t.Errorf("KernelError: %v", err)
					}
				}
				if got := pipe(t, stream, programOf[f], "-dc"); !bytes.Equal(got, data) {
					t.Errorf("%v -dc returns other bytes", f)
				}
			})
		}
	}
}

// A written stream begins like that of the kernel's commands, and passes their own
// tests.
func TestWritten(t *testing.T) {
	t.Parallel()
	data := machineCode(t, 200_000)
	for _, level := range []int{0, 1, 3, 6, 9} {
		e := newEncoder(t, level)
		for _, f := range packed {
			t.Run(fmt.Sprint(f, " ", level), func(t *testing.T) {
				t.Parallel()
				stream := compressed(t, e, f, data)
				pipe(t, stream, programOf[f], "-t")
				switch f {
				case Gzip:
					// The byte before the last shows the lowest and the highest level.
					args := []string{"-n", "-c"}
					if level != 0 {
						args = append(args, fmt.Sprint("-", level))
					}
					if want := pipe(t, data, "gzip", args...)[:10]; !bytes.Equal(stream[:10], want) {
						t.Errorf("header % x, gzip -n writes % x", stream[:10], want)
					}
				case XZ:
					if head := string(stream[:8]); head != xzKernelHead {
						t.Errorf("header % x", head)
					}
					h, err := parseXZBlockHeader(stream[12:24])
					if err != nil || len(h.filters) != 1 || h.dict != 1<<20 {
						t.Errorf("block header %v, %v: want one filter and a dictionary of 1 MiB", h, err)
					}
				case Zstd:
					h, window, err := parseZstdHeader(stream)
					if err != nil || !h.HasFCS || h.FrameContentSize != uint64(len(data)) || !h.HasCheckSum || h.DictionaryID != 0 ||
						window > zstdWindow {
						t.Errorf("frame header %+v, %v", h, err)
					}
				}
			})
		}
	}
}

func TestLevels(t *testing.T) {
	testmod.Slow(t, "it compresses at every level")
	t.Parallel()
	data := machineCode(t, 250_000)
	for _, c := range []struct {
		format Format
		levels []int // each compresses better than the one before
	}{
		{Gzip, []int{1, 6, 9}},
		{XZ, []int{1, 4, 6}},
		{Zstd, []int{1, 3, 9, 19}},
	} {
		last := len(data)
		for _, level := range c.levels {
			if c.format == XZ {
				testmod.Program(t, "xz", "xz-utils") // the library has no levels
			}
			got := len(compressed(t, newEncoder(t, level), c.format, data))
			if got >= last {
				t.Errorf("%v level %d: %d bytes, not less than %d", c.format, level, got, last)
			}
			last = got
		}
	}

	for _, level := range []int{-1, 23} {
		if _, err := NewEncoder(Options{Level: level}); err == nil {
			t.Errorf("level %d is taken", level)
		}
	}
	e := newEncoder(t, 19)
	for _, f := range []Format{Gzip, XZ, 9} {
		err := e.Compress(t.Context(), f, io.Discard, strings.NewReader(""), 0)
		if err == nil {
			t.Errorf("%v takes level 19", f)
		}
	}
}

// With the xz program, the bytes are the same as in the kernel's build.
func TestXZSameBytes(t *testing.T) {
	testmod.Slow(t, "it compresses large modules")
	t.Parallel()
	xz := testmod.Program(t, "xz", "xz-utils")
	for _, size := range []int{0, 1, 65537, 1_100_000} {
		data := machineCode(t, size)
		name := testmod.WriteFile(t, "m.ko", data)
		testmod.Run(t, xz, "--check=crc32", "--lzma2=dict=1MiB", "-f", name)
		want, err := os.ReadFile(name + ".xz")
		if err != nil {
			t.Fatal(err)
		}
		e := newEncoder(t, 0)
		if got := compressed(t, e, XZ, data); !bytes.Equal(got, want) {
			t.Errorf("%d bytes: ours are not those of xz", size)
		}
		if notes := e.Notes(); notes != nil {
			t.Errorf("notes: %q", notes)
		}
	}
}

// Streams of the programs, with options of the kernel's build and others.
func TestReadPrograms(t *testing.T) {
	t.Parallel()
	data := machineCode(t, 300_000)
	name := testmod.WriteFile(t, "m.ko", data)
	for _, c := range []struct {
		format Format
		args   string
		kernel string // the error of KernelError
	}{
		{Gzip, "-n", ""},
		{Gzip, "-N", ""}, // the name is skipped
		{Gzip, "-1", ""},
		{Gzip, "-9", ""},
		{XZ, "--check=crc32 --lzma2=dict=1MiB", ""},
		{XZ, "--check=none", ""},
		{XZ, "", "CRC64"},
		{XZ, "--check=sha256", "SHA-256"},
		{XZ, "--check=crc32 -9", ""},
		{XZ, "--check=crc32 --block-size=50000", ""},
		{XZ, "--check=crc32 --threads=2 --block-size=100000", ""},
		{XZ, "--check=crc32 --x86 --lzma2=dict=128MiB", ""}, // a kernel image
		{XZ, "--check=crc32 --powerpc --lzma2=lp=2,lc=2", ""},
		{XZ, "--check=crc32 --arm --lzma2", ""},
		{XZ, "--check=crc32 --armthumb --lzma2", ""},
		{XZ, "--check=crc32 --sparc --lzma2", ""},
		{XZ, "--check=crc32 --x86=start=4096 --lzma2", "start offset"},
		{XZ, "--check=crc32 --delta --lzma2", "delta"},
		{XZ, "--check=crc32 --delta --x86 --lzma2", "two filters"},
		{Zstd, "-q", ""},
		{Zstd, "-q -19", ""},
		{Zstd, "-q --ultra -22", ""}, // a kernel image
		{Zstd, "-q --long=27", ""},
		{Zstd, "-q --no-check", ""},
		{Zstd, "-q --no-content-size", "content size"},
	} {
		t.Run(fmt.Sprint(c.format, " ", c.args), func(t *testing.T) {
			t.Parallel()
			if strings.Contains(c.args, "128MiB") || strings.Contains(c.args, "--ultra") || strings.Contains(c.args, "-T") {
				testmod.Slow(t, "large windows")
			}
			args := append(strings.Fields(c.args), "-c", name)
			stream := testmod.Run(t, testmod.Program(t, programOf[c.format], debian[programOf[c.format]]), args...)
			got, err := decompress(c.format, bytes.NewReader(stream), int64(len(data)))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, data) {
				t.Fatal("other bytes came out")
			}
			err = KernelError(c.format, bytes.NewReader(stream), int64(len(stream)))
			if c.kernel == "" && err != nil || c.kernel != "" && (err == nil || !strings.Contains(err.Error(), c.kernel)) {
				t.Errorf("KernelError = %v, want %q", err, c.kernel)
			}
			want := int64(len(data))
			if c.kernel == "content size" {
				want = 0
			}
			if hint := SizeHint(c.format, bytes.NewReader(stream), int64(len(stream))); hint != want {
				t.Errorf("SizeHint = %d, want %d", hint, want)
			}
		})
	}
}

// kmod reads the written modules.
func TestModinfo(t *testing.T) {
	t.Parallel()
	modinfo := testmod.Program(t, "modinfo", "kmod")
	e := newEncoder(t, 0)
	built := string(testmod.Run(t, modinfo, "--version"))
	for _, f := range packed {
		if f == Gzip && strings.Contains(built, "-ZLIB") {
			continue // Debian's kmod reads no gzip
		}
		name := testmod.WriteFile(t, "tiny.ko"+f.Suffix(), compressed(t, e, f, tinyModule()))
		if got := string(testmod.Run(t, modinfo, "-F", "description", name)); got != "a module of no code\n" {
			t.Errorf("%v: modinfo says %q", f, got)
		}
	}
}

// tinyModule returns an ELF object that has only a .modinfo section.
func tinyModule() []byte {
	const modinfo = "license=GPL\x00description=a module of no code\x00name=tiny\x00vermagic=6.12.0 SMP \x00"
	const names = "\x00.modinfo\x00.shstrtab\x00"
	le := binary.LittleEndian
	b := []byte("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9))
	b = le.AppendUint16(b, 1)  // ET_REL
	b = le.AppendUint16(b, 62) // x86-64
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, 0) // entry
	b = le.AppendUint64(b, 0) // program headers
	sections := 64 + len(modinfo) + len(names)
	b = le.AppendUint64(b, uint64(sections))
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 0, 0, 64, 3, 2} {
		b = le.AppendUint16(b, v)
	}
	b = append(b, modinfo+names...)
	section := func(name, kind uint32, offset, size int) {
		b = le.AppendUint32(b, name)
		b = le.AppendUint32(b, kind)
		for _, v := range []int{0, 0, offset, size, 0, 1, 0} {
			b = le.AppendUint64(b, uint64(v))
		}
	}
	section(0, 0, 0, 0)
	section(1, 1, 64, len(modinfo))
	section(10, 3, 64+len(modinfo), len(names))
	return b
}

// Modules of real kernel packages are readable; xz modules are rewritten to the same
// bytes.
func TestRealModules(t *testing.T) {
	t.Parallel()
	kernels := testmod.Kernels(t)
	e := newEncoder(t, 0)
	for _, k := range kernels {
		step := max(1, len(k.Modules)/8)
		for i := 0; i < len(k.Modules); i += step {
			stream, err := os.ReadFile(k.Modules[i])
			if err != nil {
				t.Fatal(err)
			}
			f := FromName(k.Modules[i])
			if magic := FromMagic(stream); magic != f {
				t.Fatalf("%s is %v inside", k.Modules[i], magic)
			}
			data, err := decompress(f, bytes.NewReader(stream), 1<<30)
			if err != nil {
				t.Fatalf("%s: %v", k.Modules[i], err)
			}
			if hint := SizeHint(f, bytes.NewReader(stream), int64(len(stream))); hint != int64(len(data)) {
				t.Errorf("%s: SizeHint = %d, want %d", k.Modules[i], hint, len(data))
			}
			if f == XZ && !bytes.Equal(compressed(t, e, XZ, data), stream) {
				t.Errorf("%s: compressed again it is not the same", k.Modules[i])
			}
		}
	}
}

func TestConcurrent(t *testing.T) {
	testmod.Slow(t, "it compresses many modules")
	t.Parallel()
	e := newEncoder(t, 0)
	var wg sync.WaitGroup
	for i := range 24 {
		f := packed[i%len(packed)]
		data := machineCode(t, 100_000+i)
		wg.Go(func() {
			for range 2 {
				var out bytes.Buffer
				if err := e.Compress(context.Background(), f, &out, bytes.NewReader(data), int64(len(data))); err != nil {
					t.Errorf("%v: %v", f, err)
					return
				}
				got, err := decompress(f, &out, 1<<20)
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%v: other bytes came back (%v)", f, err)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkCompress(b *testing.B) {
	for _, f := range packed {
		for _, size := range []int{100 << 10, 4 << 20} {
			b.Run(fmt.Sprintf("%v/%dK", f, size>>10), func(b *testing.B) {
				e, data := newEncoder(b, 0), machineCode(b, size)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if err := e.Compress(b.Context(), f, io.Discard, bytes.NewReader(data), int64(size)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkRead(b *testing.B) {
	e := newEncoder(b, 0)
	for _, f := range packed {
		for _, size := range []int{100 << 10, 4 << 20} {
			b.Run(fmt.Sprintf("%v/%dK", f, size>>10), func(b *testing.B) {
				stream := compressed(b, e, f, machineCode(b, size))
				buffer := make([]byte, 64<<10)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					r, err := NewReader(f, bytes.NewReader(stream), int64(size))
					if err != nil {
						b.Fatal(err)
					}
					if _, err := io.CopyBuffer(onlyWriter{io.Discard}, r, buffer); err != nil {
						b.Fatal(err)
					}
					r.Close()
				}
			})
		}
	}
}
