package compress

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// streamed is what each of madeStreams holds.
const streamed = "modsign modsign modsign modsign modsign modsign 0123456789"

// madeStreams are made by the programs of these names.
var madeStreams = []struct{ name, hex string }{
	{"gzip", "1f8b0800000000000003cbcd4f29ce4ccf53c825923630343236313533b7b004001e90b2283a000000"},
	{"xz", "fd377a585a0000016922de360200210116000000742fe5a3e0003900195d00369bc8b1868f91b6fb344cc67441815172" +
		"b15cf91a56966e60000000001e90b2280001313a2b6bd7209042990d010000000001595a"},
	{"xz blocks", "fd377a585a000004e6d6b4460200210116000000742fe5a3e00013000e5d00369bc8b1868f91b6fb01626bc000000000" +
		"b8af2f2470c99d630200210116000000742fe5a3e00013000e5d003499ca1c1ae3c0b13937c868c00000000064f5d4ba" +
		"9597aa300200210116000000742fe5a30100116d6f647369676e20303132333435363738390000005b37fe50b61f3c09" +
		"00032a142a142a12702bef2fb1c467fb020000000004595a"},
	{"zstd", "28b52ffd0458c50000906d6f647369676e2030313233343536373839010057162e7c4453a6"},
	{"bzip2", "425a6839314159265359553db4df000013998040007fe004a38800200021b540003214d323131313c884653a56d7c659" +
		"1e43a362eb21d0e8f8bb9229c28482a9eda6f8"},
	{"lzma", "5d00008000ffffffffffffffff00369bc8b1868f91b6fb344cc67441815172b15cf91a5e390c0bfffce6f000"},
	{"lz4 -l", "02214c18170000008f6d6f647369676e20080015a030313233343536373839"},
	{"lz4", "04224d186440a7170000008f6d6f647369676e20080015a0303132333435363738390000000094d61486"},
	{"lzop", "894c5a4f000d0a1a0a104020a0094001050300000d000000006b0dfcae00000000002e7f03920000003a0000001f8c6f" +
		"1474056d6f647369676e2020031c000b69676e203031323334353637383911000000000000"},
}

func madeStream(t testing.TB, i int) []byte {
	t.Helper()
	b, err := hex.DecodeString(madeStreams[i].hex)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// readStream reads the first stream of some bytes.
func readStream(b []byte) (content []byte, used int64, err error) {
	s, err := NewStream(io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))))
	if err != nil {
		return nil, 0, err
	}
	defer s.Close()
	content, err = io.ReadAll(io.LimitReader(s, 1<<20))
	return content, s.Used(), err
}

// TestSkippable passes over frames before a stream, between two and behind them, as zstd and lz4 do.
func TestSkippable(t *testing.T) {
	t.Parallel()
	frames := "\x50\x2a\x4d\x18\x03\x00\x00\x00abc" + "\x5f\x2a\x4d\x18\x00\x00\x00\x00"
	for i, z := range madeStreams {
		if z.name != "zstd" && z.name != "lz4" {
			continue
		}
		stream := string(madeStream(t, i))
		content, used, err := readStream([]byte(frames + stream + "behind"))
		if z.name == "lz4" && err != nil { // its library looks for a further frame
			content, used, err = readStream([]byte(frames + stream))
		}
		if string(content) != streamed || used != int64(len(frames+stream)) || err != nil {
			t.Errorf("%s: %q, %d bytes used: %v", z.name, content, used, err)
		}
		if format := StreamFormat([]byte(frames)); format == "" {
			t.Error("no stream begins with a frame that is to be skipped")
		}
		r, err := NewFile(strings.NewReader(frames + stream + frames + stream + frames))
		if err != nil {
			t.Fatal(err)
		}
		whole, err := io.ReadAll(r)
		if string(whole) != streamed+streamed || err != nil {
			t.Errorf("%s file: %q: %v", z.name, whole, err)
		}
		r.Close()
	}
	for _, b := range []string{frames, frames[:10], frames + "x", strings.Repeat(frames[11:], 100_000)} {
		if _, _, err := readStream([]byte(b)); !errors.Is(err, ErrNoStream) {
			t.Errorf("no stream: %v", err)
		}
		if _, err := NewFile(strings.NewReader(b)); err == nil {
			t.Error("a file of frames that are to be skipped alone is no error")
		}
	}
}

// TestStream reads streams of every program alone and with other bytes behind, and finds
// where they end.
func TestStream(t *testing.T) {
	t.Parallel()
	for i, z := range madeStreams {
		t.Run(z.name, func(t *testing.T) {
			b := madeStream(t, i)
			if got := StreamFormat(b); !strings.HasPrefix(z.name, strings.TrimSuffix(got, "o")) {
				t.Errorf("recognized as %q", got)
			}
			content, used, err := readStream(b)
			if err != nil || string(content) != streamed || used != int64(len(b)) {
				t.Errorf("%q, %d of %d bytes used, error %v", content, used, len(b), err)
			}
			if z.name == "lz4" { // whose frames initramfs images cannot have
				return
			}
			more := append(bytes.Clone(b), make([]byte, 64)...)
			content, used, err = readStream(more)
			// The library reads two bytes behind a stream of bzip2.
			if err != nil || string(content) != streamed || used < int64(len(b)) || used > int64(len(b))+2 {
				t.Errorf("with zeros behind: %q, %d of %d bytes used, error %v", content, used, len(b), err)
			}
			for n := range b {
				// Nothing marks the end of lz4 -l, and the last bytes of xz and zstd may be padding.
				content, _, err := readStream(b[:n])
				if err == nil && z.name != "lz4 -l" {
					t.Errorf("cut off after %d of %d bytes: %q", n, len(b), content)
				}
			}
		})
	}
	if _, _, err := readStream([]byte("neither")); !errors.Is(err, ErrNoStream) {
		t.Errorf("no stream: %v", err)
	}
}

// TestXZBlocks decompresses blocks in parallel, and finds what is wrong with one of them.
func TestXZBlocks(t *testing.T) {
	t.Parallel()
	testmod.Program(t, "xz", "xz-utils")
	plain := bytes.Repeat([]byte("blocks of xz, decompressed in parallel\n"), 5000)
	path := testmod.WriteFile(t, "plain", plain)
	b := testmod.Run(t, "xz", "-c", "--block-size=10000", path)
	section := io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
	if _, blocks := xzIndex(section, section.Size()); len(blocks) != 20 {
		t.Fatalf("%d blocks", len(blocks))
	}
	content, used, err := readStream(b)
	if err != nil || !bytes.Equal(content, plain) || used != int64(len(b)) {
		t.Errorf("%d bytes, %d used, error %v", len(content), used, err)
	}
	for at := xzHeaderSize; at < len(b)-xzFooterSize; at += 7 {
		changed := bytes.Clone(b)
		changed[at] ^= 0x10
		if content, _, err := readStream(changed); err == nil {
			t.Errorf("byte %d is changed, and %d bytes are read without an error", at, len(content))
		}
	}
	// A reader that is closed early leaves no goroutine that works.
	s, err := NewStream(section)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read(make([]byte, 10)); err != nil {
		t.Error(err)
	}
	s.Close()
}

// FuzzStream reads streams with changes.
func FuzzStream(f *testing.F) {
	var seeds [][]byte
	for i := range madeStreams {
		seeds = append(seeds, madeStream(f, i))
		f.Add(uint8(i), uint64(0), uint64(0), uint64(0))
		f.Add(uint8(i), uint64(20<<16|0x101), uint64(30<<16|0x6ff), uint64(0))
	}
	f.Fuzz(func(t *testing.T, seed uint8, one, two, three uint64) {
		b := testmod.Edit(seeds[int(seed)%len(seeds)], one, two, three)
		if _, used, err := readStream(b); err == nil && used > int64(len(b)) {
			t.Fatalf("%d of %d bytes used", used, len(b))
		}
	})
}
