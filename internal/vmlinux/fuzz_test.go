package vmlinux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// fixtures returns the matching files of testdata, at least one. testdata/make.sh makes
// them.
func fixtures(t testing.TB, pattern string) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", pattern))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no testdata/%s (%v)", pattern, err)
	}
	files := make(map[string][]byte)
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files[filepath.Base(path)] = data
	}
	return files
}

// images returns small images of every kind.
func images(t testing.TB) map[string][]byte {
	images := fixtures(t, "vmlinux.*")
	if len(images) != 2+len(compressions()) {
		t.Fatalf("testdata has %d images, not one of each kind", len(images))
	}
	for name, stream := range fixtures(t, "vmlinux.bin.*") {
		if name != "vmlinux.bin.gz" {
			stream = withSize(stream, unpackedSize(t))
		}
		images["bzImage of "+name] = makeBzImage(stream)
	}
	return images
}

func unpackedSize(t testing.TB) int {
	gzip := fixtures(t, "vmlinux.bin.gz")["vmlinux.bin.gz"]
	return int(binary.LittleEndian.Uint32(gzip[len(gzip)-4:]))
}

// TestFixtures reads the same certificates from every kind of image.
func TestFixtures(t *testing.T) {
	t.Parallel()
	var want *Certificates
	for name, data := range images(t) {
		im, err := New(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := im.Certificates()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(got.Builtin) == 0 || len(got.Revoked) == 0 || len(got.BlacklistHashes) != 1 {
			t.Errorf("%s: %+v", name, got)
		}
		if want == nil {
			want = got
		}
		got.Found = want.Found
		sameCertificates(t, got, want)
	}
}

// TestTruncated opens truncated images of every kind, and ELF files truncated at every
// length. None may be taken for an image with other certificates than the whole one.
func TestTruncated(t *testing.T) {
	t.Parallel()
	for name, data := range images(t) {
		whole, err := New(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want, err := whole.Certificates()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		step := 37
		if whole.Packing() == "vmlinux" {
			step = 1
		}
		for n := 0; n < len(data); n += step {
			im, err := New(bytes.NewReader(data[:n]), int64(n))
			if err != nil {
				continue
			}
			got, err := im.Certificates()
			if err == nil && (!bytes.Equal(got.Builtin, want.Builtin) || !bytes.Equal(got.Revoked, want.Revoked)) {
				t.Errorf("%s: %d bytes of %d give other certificates", name, n, len(data))
			}
		}
	}
}

// checkCertificates checks what must be true of every result.
func checkCertificates(t *testing.T, c *Certificates, err error) {
	t.Helper()
	if err != nil {
		if c != nil {
			t.Errorf("certificates beside the error %v", err)
		}
		return
	}
	for name, list := range map[string][]byte{"Builtin": c.Builtin, "Revoked": c.Revoked} {
		if ends := certificates(list); len(list) > 0 && (len(ends) == 0 || ends[len(ends)-1] != len(list)) {
			t.Errorf("%s is no list of whole certificates: %x", name, list)
		}
	}
	if len(c.Builtin) == 0 {
		t.Error("no built-in certificates, and no error")
	}
	if !bytes.HasPrefix(c.Builtin, c.Module) || !bytes.HasSuffix(c.Builtin, c.Extra) {
		t.Error("Module and Extra are not the ends of Builtin")
	}
}

// FuzzNew opens any data as a kernel image: an image of these tests with a few changes.
func FuzzNew(f *testing.F) {
	all := images(f)
	names := slices.Sorted(maps.Keys(all))
	for i, name := range names {
		end := uint64(len(all[name])) - 1
		f.Add(uint8(i), uint64(0), uint64(0), uint64(0), uint64(0))
		f.Add(uint8(i), uint64(40<<16|0x101), end<<16|0x101, uint64(0), uint64(0))
		f.Add(uint8(i), end/2<<16|0x700, uint64(0), uint64(0), uint64(0))
	}
	f.Fuzz(func(t *testing.T, image uint8, one, two, three, four uint64) {
		data := testmod.Edit(all[names[int(image)%len(names)]], one, two, three, four)
		im, err := New(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		c, err := im.Certificates()
		checkCertificates(t, c, err)
		if s, err := im.Section(".rodata"); err == nil && s.Offset+int64(len(s.Data)) > im.elf.size {
			t.Errorf("a section of %d bytes at %d, and the file has %d", len(s.Data), s.Offset, im.elf.size)
		}
		if release, err := im.Release(); err == nil && len(release) > 65 {
			t.Errorf("release %q", release)
		}
	})
}

// FuzzScan scans the memory of a kernel without symbols, with a few changes.
func FuzzScan(f *testing.F) {
	p384, p256 := certOf(f, "ecdsa:p384"), certOf(f, "ecdsa:p256")
	type kernel struct {
		data      []byte
		wide, big bool
	}
	var kernels []kernel
	for _, wide := range []bool{true, false} {
		for _, big := range []bool{true, false} {
			for _, data := range [][]byte{
				memoryOf(wide, big, p384, 0, len(p384), nil), memoryOf(wide, big, join(p384, p256), 4096, len(p384), p256),
				memoryOf(wide, big, p384, 0, 0, p256),
			} {
				kernels = append(kernels, kernel{data, wide, big})
			}
		}
	}
	for i := range kernels {
		f.Add(uint8(i), uint64(0), uint64(0), uint64(0))
		f.Add(uint8(i), uint64(10<<16|0x101), uint64(300<<16|0x403), uint64(0))
	}
	f.Fuzz(func(t *testing.T, seed uint8, one, two, three uint64) {
		k := kernels[int(seed)%len(kernels)]
		data, wide, big := testmod.Edit(k.data, one, two, three), k.wide, k.big
		defer testmod.ShowInputs(t, data)
		file := makeELF(order(big), wide, 1<<20, data)
		im, err := New(bytes.NewReader(file), int64(len(file)))
		if err != nil {
			if len(data) > 0 {
				t.Fatal(err)
			}
			return
		}
		c, err := im.Certificates()
		checkCertificates(t, c, err)

		// Every list that is found is at its stated offset, and ends with its length.
		s := scanner{kernelELF: im.elf}
		if s.segment(1<<20, data) != nil {
			return
		}
		for i, l := range s.lists {
			if i > 0 && l.addr < s.lists[i-1].addr+uint64(len(s.lists[i-1].der)) {
				t.Errorf("list at %#x overlaps the one before", l.addr)
			}
			if at := l.addr - 1<<20; at%8 != 0 || !bytes.HasPrefix(data[at:], l.der) {
				t.Errorf("list at %#x is not there", l.addr)
			}
			ends := certificates(l.der)
			if l.module > 0 && !slices.Contains(ends, l.module) {
				t.Errorf("module_cert_size %d ends within a certificate", l.module)
			}
		}
	})
}

func order(big bool) binary.ByteOrder {
	if big {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

// memoryOf lays out lists as the kernel's build does.
func memoryOf(wide, big bool, builtin []byte, reserve, module int, revoked []byte) []byte {
	b := append([]byte{1, 2, 3, 4, 5, 6, 7, 8}, builtin...)
	word := func(n int) {
		b = append(b, make([]byte, -len(b)&7)...)
		if wide {
			b, _ = binary.Append(b, order(big), uint64(n))
		} else {
			b, _ = binary.Append(b, order(big), uint32(n))
		}
	}
	if reserve > 0 {
		b = append(b, make([]byte, reserve+4)...)
	}
	word(len(builtin))
	word(module)
	word(0)
	if revoked != nil {
		b = append(b, make([]byte, -len(b)&7)...)
		b = append(b, revoked...)
		word(len(revoked))
	}
	return b
}

// TestHostile scans memory that is made to be slow to scan. With quadratic time the
// test would not end.
func TestHostile(t *testing.T) {
	t.Parallel()
	const size = 16 << 20
	zeros := make([]byte, size)
	for i := range size / 2 {
		if i%(1<<16) < 1<<10 {
			copy(zeros[i:], "\x30\x82\x7f\xff\x30")
		}
	}
	for name, data := range map[string][]byte{
		"certificates everywhere": bytes.Repeat([]byte{0x30, 0x82}, size/2),
		"short certificates": bytes.Repeat(append([]byte{0x30, 0x82, 1, 0, 0x30}, make([]byte, 259-3)...),
			size/261),
		"certificates among zeros": zeros,
		"certificates, then all zeros": append(bytes.Repeat([]byte("\x30\x82\x7f\xff\x30\x00\x00\x00"), 1<<12),
			make([]byte, size)...),
		"colons": bytes.Repeat([]byte(":"), size),
		"hashes that never end": bytes.Repeat(
			[]byte("tbs:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"), size/71),
	} {
		file := makeELF(binary.LittleEndian, true, 0xffffffff81000000, data)
		im, err := New(memory(file), int64(len(file)))
		if err != nil {
			t.Fatal(err)
		}
		c, err := im.Certificates()
		if err == nil {
			t.Errorf("%s: found %d bytes of certificates", name, len(c.Builtin))
		} else if !errors.Is(err, ErrNoCertificates) && !errors.Is(err, errTooMany) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestHostileHeaders changes every byte of an ELF file's headers in turn.
func TestHostileHeaders(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"vmlinux.amd64", "vmlinux.s390"} {
		data := fixtures(t, name)[name]
		for at := range data {
			for _, value := range []byte{0, 1, 0x7f, 0x80, 0xff} {
				spoilt := bytes.Clone(data)
				spoilt[at] = value
				im, err := New(bytes.NewReader(spoilt), int64(len(spoilt)))
				if err != nil {
					continue
				}
				c, err := im.Certificates()
				checkCertificates(t, c, err)
			}
		}
	}
}
