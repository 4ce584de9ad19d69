package vmlinux

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
	// The other images have the same certificates.
	vmlinux, err := New(memory(images["vmlinux.amd64"]), int64(len(images["vmlinux.amd64"])))
	if err != nil {
		t.Fatal(err)
	}
	c, err := vmlinux.Certificates()
	if err != nil {
		t.Fatal(err)
	}
	const texts = "Linux version 6.12.1-test (somebody)\x00" + "Loading compiled-in X.509 certificates\x00" +
		"Loading compiled-in revocation X.509 certificates\x00"
	before := join(make([]byte, headRoom), []byte(texts), []byte(c.BlacklistHashes[0]), make([]byte, 8))
	memoryOf := func(m machine) []byte { return m.memoryOf(before, c.Builtin, 0, len(c.Module), c.Revoked) }
	arm64 := makeArm64Image(memoryOf(machine{wide: true, power: true}))
	images["arm64 Image"] = arm64
	bigEndian := makeArm64Image(memoryOf(machine{wide: true, big: true, power: true}))
	bigEndian[24] = 1
	images["arm64 Image, big-endian"] = bigEndian
	images["arm64 Image, gzip"] = gzipOf(arm64)
	images["EFI zboot: arm64 Image, gzip"] = makeZboot(gzipOf(arm64))
	loongArch := makeLoongArch(memoryOf(machine{wide: true, power: true}))
	images["EFI zboot: LoongArch Image, gzip"] = makeZboot(gzipOf(loongArch))
	images["RISC-V Image"] = makeRISCV32(memoryOf(machine{power: true}))
	images["arm zImage, gzip"] = makeZImage(memoryOf(machine{power: true}))
	be32 := makeZImageOf(gzipOf(memoryOf(machine{power: true, big: true})), binary.BigEndian)
	images["arm zImage, big-endian"] = be32
	s390 := memoryOf(machine{wide: true, big: true})
	images["s390 bzImage, gzip"] = makeS390(gzipOf(s390))
	images["s390 image"] = makeS390(s390)
	images["powerpc zImage: vmlinux, gzip"] = makePowerpc(images["vmlinux.bin.gz"])
	images["powerpc zImage: vmlinux"] = makePowerpc(images["vmlinux.amd64"])
	images["UKI: bzImage, gzip"] = makeUKI(images["bzImage of vmlinux.bin.gz"])
	images["UKI: EFI zboot: arm64 Image, gzip"] = makeUKI(images["EFI zboot: arm64 Image, gzip"])
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
		// Images that are not files have the packing for their name.
		if file := strings.Contains(name, "vmlinux."); !file && im.Packing()+", big-endian" != name &&
			im.Packing() != strings.ReplaceAll(name, "big-endian", "gzip") {
			t.Errorf("%s: packing %q", name, im.Packing())
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
		step := max(37, len(data)/100)
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
	all["reserve"] = fixtures(f, "reserve.amd64")["reserve.amd64"]
	all["reserve in a bzImage"] = makeBzImage(all["reserve"])
	signed := makeArm64Image(make([]byte, 4096))
	binary.LittleEndian.PutUint16(signed[0x80+20:], 160)
	signed[0x80+24+128], signed[0x80+24+128+5] = 0xff, 0x0f
	all["signed"] = signed
	added := certOf(f, "ecdsa:p384")
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
		if s, err := im.Section(".rodata"); err == nil && s.Offset+int64(len(s.Data)) > im.body.size {
			t.Errorf("a section of %d bytes at %d, and the file has %d", len(s.Data), s.Offset, im.body.size)
		}
		if r, err := im.Reserve(); err == nil {
			edits, err := r.Fill(added)
			for _, e := range edits {
				if e.Offset < 0 || e.Offset+int64(len(e.Data)) > im.body.size {
					t.Errorf("an edit of %d bytes at %d, and the kernel has %d", len(e.Data), e.Offset, im.body.size)
				}
			}
			if (err == nil) != (len(added) <= r.Size) {
				t.Errorf("%d bytes into %d: %v", len(added), r.Size, err)
			}
		}
		if b, err := Unsign(bytes.Clone(data)); err == nil && len(b) > len(data) {
			t.Errorf("without signatures it has %d bytes, not %d", len(b), len(data))
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
		data []byte
		machine
	}
	var kernels []kernel
	before := []byte{1, 2, 3, 4, 5, 6, 7, 8}
	for i := range 8 {
		m := machine{wide: i&1 != 0, big: i&2 != 0, power: i&4 != 0}
		for _, data := range [][]byte{
			m.memoryOf(before, p384, 0, len(p384), nil), m.memoryOf(before, join(p384, p256), 4096, len(p384), p256),
			m.memoryOf(before, p384, 0, 0, p256),
		} {
			kernels = append(kernels, kernel{data, m})
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
		if k.power {
			order(big).PutUint16(file[18:], uint16(elf.EM_PPC64))
		}
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
		s := scanner{body: im.body}
		if s.segment(1<<20, data) != nil {
			return
		}
		for i, l := range s.lists {
			if i > 0 && l.addr < s.lists[i-1].addr+uint64(len(s.lists[i-1].der)) {
				t.Errorf("list at %#x overlaps the one before", l.addr)
			}
			if at := l.addr - 1<<20; at%uint64(k.align(8)) != 0 || !bytes.HasPrefix(data[at:], l.der) {
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

// machine is how a kernel lays out its lists.
type machine struct {
	wide, big bool
	power     bool // .align takes an exponent
}

func (m machine) align(n int) int {
	if m.power {
		return 1 << n
	}
	return n
}

// memoryOf lays out lists as the kernel's build does, after other contents.
func (m machine) memoryOf(before, builtin []byte, reserve, module int, revoked []byte) []byte {
	b := bytes.Clone(before)
	pad := func(n int) {
		for len(b)%m.align(n) != 0 {
			b = append(b, 0)
		}
	}
	word := func(n int) {
		pad(8)
		if m.wide {
			b, _ = binary.Append(b, order(m.big), uint64(n))
		} else {
			b, _ = binary.Append(b, order(m.big), uint32(n))
		}
	}
	pad(8)
	b = append(b, builtin...)
	if reserve > 0 {
		b = append(b, make([]byte, reserve)...)
		pad(4)
		b = append(b, 0, 0, 0, 0)
	}
	word(len(builtin))
	word(module)
	word(0)
	if revoked != nil {
		pad(8)
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
