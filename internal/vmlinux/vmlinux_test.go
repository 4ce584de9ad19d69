package vmlinux

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// realKernel opens the image of a Debian kernel.
func realKernel(t testing.TB, k testmod.Kernel) *Image {
	t.Helper()
	im, err := Open(k.Image)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { im.Close() })
	return im
}

// TestRealKernels extracts the certificate from each Debian kernel's image. openssl
// checks the signatures of that kernel's modules with this certificate alone.
func TestRealKernels(t *testing.T) {
	testmod.Slow(t, "it decompresses whole kernels")
	openssl := testmod.Program(t, "openssl", "openssl")
	for _, k := range testmod.Few(testmod.Kernels(t), 1) {
		t.Run(k.Version, func(t *testing.T) {
			t.Parallel()
			im := realKernel(t, k)
			c, err := im.Certificates()
			if err != nil {
				t.Fatal(err)
			}
			if want := "bzImage, "; !strings.HasPrefix(im.Packing(), want) || c.Found != "scan" {
				t.Errorf("packing %q, found by %q", im.Packing(), c.Found)
			}
			certificate, err := x509.ParseCertificate(c.Builtin)
			if err != nil {
				t.Fatalf("the list is not one certificate: %v", err)
			}
			t.Logf("%s: %s, %d bytes", im.Packing(), certificate.Subject, len(c.Builtin))
			if !bytes.Equal(c.Module, c.Builtin) || len(c.Extra)+len(c.Dropped)+len(c.Revoked)+len(c.BlacklistHashes) > 0 {
				t.Errorf("Debian builds in one key, for modules: %+v", c)
			}

			dir := t.TempDir()
			file := func(name string, data []byte) string {
				path := filepath.Join(dir, name)
				if err := os.WriteFile(path, data, 0o644); err != nil {
					t.Fatal(err)
				}
				return path
			}
			pemFile := file("cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Builtin}))
			for i := 0; i < len(k.Modules); i += len(k.Modules)/5 + 1 {
				module, err := os.ReadFile(k.Modules[i])
				if err != nil {
					t.Fatal(err)
				}
				if strings.HasSuffix(k.Modules[i], ".xz") {
					module = testmod.Run(t, testmod.Program(t, "xz", "xz-utils"), "-dc", k.Modules[i])
				}
				const trailer = 12 + len("~Module signature appended~\n")
				end := len(module) - trailer
				start := end - int(binary.BigEndian.Uint32(module[end+8:]))
				out, err := exec.Command(openssl, "cms", "-verify", "-binary", "-inform", "DER", "-in",
					file("signature", module[start:end]),
					"-content", file("payload", module[:start]), "-certfile", pemFile, "-nointern", "-noverify", "-out",
					os.DevNull).CombinedOutput()
				if err != nil {
					t.Errorf("%s is not signed by the image's certificate: %v\n%s", k.Modules[i], err, out)
				}
			}

			// Debian's System.map in /boot tells where the real one is.
			f, err := os.Open(filepath.Join(k.Root, "boot", "System.map-"+k.Version))
			if os.IsNotExist(err) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := im.UseSystemMap(f); err == nil || !strings.Contains(err.Error(), "stub") {
				t.Errorf("UseSystemMap of a stub: %v", err)
			}
		})
	}
}

// packers are Kbuild's compressors with its options, and the expected Packing. The real
// kernel is packed with those that take less than a second.
var packers = []struct {
	name, packing, pkg string
	command            []string
	sized, real        bool
	size               int // size of the made kernel, in bytes
}{
	{"gzip", "gzip", "gzip", []string{"gzip", "-n", "-f", "-9"}, true, false, 600 << 10},
	{"bzip2", "bzip2", "bzip2", []string{"bzip2", "-9"}, false, false, 1 << 20},
	{"lzma", "lzma", "xz-utils", []string{"lzma", "-9"}, false, false, 600 << 10},
	{"xz", "xz", "xz-utils", []string{"xz", "--check=crc32", "--x86", "--lzma2=dict=32MiB"}, false, false, 600 << 10},
	{"xz 6.12", "xz", "xz-utils", []string{"xz", "--check=crc32", "-T1", "--x86", "--lzma2=dict=128MiB"}, false, false,
		600 << 10},
	{"lzop", "lzo", "lzop", []string{"lzop", "-9"}, false, false, 600 << 10},
	{"lz4", "lz4", "lz4", []string{"lz4", "-l", "-9", "-", "-"}, false, false, 9 << 20},
	{"lz4 real", "lz4", "lz4", []string{"lz4", "-l", "-1", "-", "-"}, false, true, 0},
	{"zstd", "zstd", "zstd", []string{"zstd", "-22", "--ultra"}, false, false, 600 << 10},
	{"zstd real", "zstd", "zstd", []string{"zstd", "-1", "--long=27"}, false, true, 0},
}

// TestPackings makes boot images as arch/x86/boot does: a kernel packed with each
// compressor, followed by its size, after the setup header of a real image.
func TestPackings(t *testing.T) {
	testmod.Slow(t, "it packs kernels in every way")
	kernels := testmod.Kernels(t)
	k := kernels[len(kernels)-1]
	im := realKernel(t, k)
	real, ok := im.body.r.(memory)
	if !ok {
		t.Fatalf("%s is not decompressed into memory", k.Image)
	}
	setup, err := os.ReadFile(k.Image)
	if err != nil {
		t.Fatal(err)
	}
	setup = setup[:(int(setup[0x1f1])+1)*512+int(binary.LittleEndian.Uint32(setup[0x248:]))]
	realCertificates, err := im.Certificates()
	if err != nil {
		t.Fatal(err)
	}

	for _, p := range testmod.Few(packers, 4) {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			program := testmod.Program(t, p.command[0], p.pkg)
			unpacked, want := []byte(real), realCertificates
			if !p.real {
				// The real kernel's text gives the compressors something to compress.
				made := kernel{module: certOf(t, "ecdsa:p384"), trusted: certOf(t, "rsa:2048"), revoked: certOf(t, "ecdsa:p256"),
					text: real[1<<21:][:p.size]}
				_, stripped, _ := made.link(t, targets[0])
				var err error
				if unpacked, err = os.ReadFile(stripped); err != nil {
					t.Fatal(err)
				}
				want = &Certificates{Builtin: join(made.module, made.trusted), Module: made.module, Revoked: made.revoked,
					Found: "scan"}
			}
			cmd := exec.Command(program, p.command[1:]...)
			cmd.Stdin = bytes.NewReader(unpacked)
			stream, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %v", p.command, err)
			}
			payload := stream
			if !p.sized {
				payload = withSize(stream, len(unpacked))
			}
			image := join(setup, payload, make([]byte, 512))
			binary.LittleEndian.PutUint32(image[0x24c:], uint32(len(payload)))

			check := func(packing string, data []byte) {
				t.Helper()
				im, err := New(bytes.NewReader(data), int64(len(data)))
				if err != nil {
					t.Fatal(err)
				}
				if im.Packing() != packing {
					t.Errorf("Packing = %q, want %q", im.Packing(), packing)
				}
				if got, ok := im.body.r.(memory); !ok || !bytes.Equal(got, unpacked) {
					t.Errorf("%s: what came out differs from what went in", packing)
				}
				got, err := im.Certificates()
				if err != nil {
					t.Fatal(err)
				}
				sameCertificates(t, got, want)
			}
			check("bzImage, "+p.packing, image)
			if p.real {
				return
			}
			check("vmlinux, "+p.packing, stream)

			// A wrong size, and a truncated payload.
			binary.LittleEndian.PutUint32(image[len(setup)+len(payload)-4:], uint32(len(unpacked)-1))
			if _, err := New(bytes.NewReader(image), int64(len(image))); err == nil {
				t.Error("a size that is too small went unnoticed")
			}
			binary.LittleEndian.PutUint32(image[len(setup)+len(payload)-4:], uint32(len(unpacked)+1))
			if _, err := New(bytes.NewReader(image), int64(len(image))); err == nil {
				t.Error("a size that is too large went unnoticed")
			}
			short := image[:len(setup)+len(stream)/2]
			if _, err := New(bytes.NewReader(short), int64(len(short))); err == nil ||
				!strings.Contains(err.Error(), "cut short") {
				t.Errorf("half an image: %v", err)
			}
		})
	}
}

func TestUncompressedPayload(t *testing.T) {
	t.Parallel()
	p384 := certOf(t, "ecdsa:p384")
	_, stripped, _ := kernel{module: p384}.link(t, targets[0])
	unpacked, err := os.ReadFile(stripped)
	if err != nil {
		t.Fatal(err)
	}
	image := makeBzImage(unpacked)
	im, err := New(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	c, err := im.Certificates()
	if err != nil || !bytes.Equal(c.Builtin, p384) || im.Packing() != "bzImage, not compressed" {
		t.Errorf("%s: %v, %v", im.Packing(), c, err)
	}
}

// TestRefused checks that errors name an unsupported image and tell what to do.
func TestRefused(t *testing.T) {
	t.Parallel()
	at := func(size, offset int, magic string) []byte {
		b := make([]byte, size)
		copy(b, "MZ")
		copy(b[offset:], magic)
		return b
	}
	protocol := makeBzImage(make([]byte, 64))
	binary.LittleEndian.PutUint16(protocol[0x206:], 0x207)
	for _, test := range []struct {
		name string
		data []byte
		want []string
	}{
		{"uImage", at(128, 0, "\x27\x05\x19\x56"), []string{"uImage", "use the vmlinux"}},
		{"FIT", at(128, 0, "\xd0\x0d\xfe\xed"), []string{"FIT", "use the vmlinux"}},
		{"text", []byte("#!/bin/sh\n"), []string{"not a kernel image: use a vmlinux"}},
		{"empty", nil, []string{"not a kernel image"}},
		{"MZ alone", []byte("MZ"), []string{"EFI program"}},
		{"ELF magic alone", []byte("\x7fELF"), []string{"vmlinux", "not an ELF file"}},
		{"old boot protocol", protocol, []string{"boot protocol 2.07", "use the vmlinux"}},
		{"unknown payload", makeBzImage(make([]byte, 64)), []string{"offset 1024", "00 00 00"}},
		{"no payload", makeBzImage(nil), []string{"contains no kernel"}},
		{"lzma dictionary", makeBzImage(withSize([]byte("\x5d\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00"), 4096)),
			[]string{"lzma payload at offset 1024", "a dictionary of 4294901760 bytes"}},
		{"bomb", makeBzImage(withSize([]byte("BZh91AY&SY and then some"), 1<<30)),
			[]string{"no kernel compresses that well"}},
	} {
		_, err := New(bytes.NewReader(test.data), int64(len(test.data)))
		if err == nil {
			t.Errorf("%s: accepted", test.name)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v; want %q in it", test.name, err, want)
			}
		}
	}
}

// TestInside rejects images that contain something else than a kernel.
func TestInside(t *testing.T) {
	t.Parallel()
	image := images(t)["vmlinux.amd64"]
	other := bytes.Clone(image)
	other[len(other)-1]++
	deep := image
	for range 4 {
		deep = makeUKI(deep)
	}
	table := makeZImage(make([]byte, 100))
	copy(table[0x38:], "\xff\xff\xff\xff")
	for _, test := range []struct {
		name string
		data []byte
		want string
	}{
		{"text", gzipOf([]byte("some text")), "not a kernel image"},
		{"uImage", gzipOf([]byte("\x27\x05\x19\x56")), "uImage is not supported"},
		{"bzImage without a kernel", gzipOf(makeBzImage(make([]byte, 64))), "the payload at offset 1024 begins with"},
		{"bomb", gzipOf(make([]byte, 3<<20)), "expands to more than"},
		{"bomb in zboot", makeZboot(gzipOf(gzipOf(make([]byte, 40<<20)))), "expands to more than"},
		{"deep", deep, "too many images"},
		{"profiles", makePE(0x8664, []string{".linux", ".profile", ".linux"}, image, nil, other),
			"2 profiles with different"},
		{"UKI with text", makeUKI([]byte("a text and no kernel")), "section .linux: what it contains is not"},
		{"UKI cut short", makeUKI(image)[:400], "cut short"},
		{"EFI program", makePE(0x8664, []string{".text"}, []byte("text")), "EFI program without a kernel is not supported"},
		{"zboot cut short", makeZboot(gzipOf(image))[:500], "cut short"},
		{"zboot with text", makeZboot([]byte("a text and no kernel")), "what it contains is not"},
		{"old arm zImage", append(makeZImage(nil)[:0x30:0x30], make([]byte, 0x100)...), "a kernel before 4.15"},
		{"arm zImage without a table", table, "no table at offset 4294967295"},
		{"arm zImage without a kernel", makeZImageOf(make([]byte, 64), binary.LittleEndian), "no compressed kernel ends"},
		{"arm zImage cut short", makeZImage(make([]byte, 4096))[:0x90], "cut short"},
		{"s390 image of zeros", makeS390(make([]byte, 4096)), "no kernel in it"},
		{"s390 bzImage cut short", makeS390(gzipOf(image))[:0x11900], "cut short"},
		{"powerpc zImage", makePowerpc([]byte("a text and no kernel")), ".kernel:vmlinux.strip: what it contains is not"},
		{"arm64 Image cut short", makeArm64Image(make([]byte, 4096))[:4000], "section .text: the payload, 4096 bytes"},
		{"arm64 header", makeArm64Image(make([]byte, 256))[:60], "the header is cut short"},
	} {
		_, err := New(bytes.NewReader(test.data), int64(len(test.data)))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q in it", test.name, err, test.want)
		}
	}
	same := makePE(0x8664, []string{".linux", ".profile", ".linux"}, image, nil, image)
	if im, err := New(bytes.NewReader(same), int64(len(same))); err != nil || im.Packing() != "UKI: vmlinux" {
		t.Errorf("profiles with one kernel: %v", err)
	}
}

// TestFlat asks a flat binary for what it does not tell.
func TestFlat(t *testing.T) {
	t.Parallel()
	image := images(t)["arm64 Image"]
	im, err := New(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	if s, err := im.Section(".module_hashes"); !errors.Is(err, ErrFlat) {
		t.Errorf("Section: %v, %v", s, err)
	}
	if release, err := im.Release(); err != nil || release != "6.12.1-test" {
		t.Errorf("Release: %q, %v", release, err)
	}
	// Without the header of EFI, a 32-bit RISC-V kernel tells itself by its place in memory.
	riscv := append(make([]byte, 56), "RSC\x05    "...)
	binary.LittleEndian.PutUint64(riscv[8:], 4<<20)
	if im, err := New(bytes.NewReader(riscv), int64(len(riscv))); err != nil || im.body.wide {
		t.Errorf("a 32-bit kernel: %v", err)
	}
	if err := im.UseSystemMap(strings.NewReader("ffff800080000100 R system_certificate_list\n")); err == nil ||
		!strings.Contains(err.Error(), "_text") {
		t.Errorf("a System.map without _text: %v", err)
	}
}

// TestLzopRefused changes an lzop file.
func TestLzopRefused(t *testing.T) {
	t.Parallel()
	whole := fixtures(t, "vmlinux.bin.lzo")["vmlinux.bin.lzo"]
	nameLen := int(whole[33])
	first := 34 + nameLen + 4 // the first block
	for _, test := range []struct {
		name  string
		at    int
		bytes string
		want  string
	}{
		{"version", 9, "\x01\x00", "version 0x100"},
		{"method", 15, "\x09", "method 9 is not LZO1X"},
		{"filter", 19, "\x08", "filter or an extra field"},
		{"huge block", first, "\x7f\xff\xff\xff", "not what lzop writes"},
		{"grown block", first + 4, "\x00\x01\x00\x00", "not what lzop writes"},
		{"checksum", first + 8, "\x00\x00\x00\x00", "does not match its checksum"},
		{"no blocks", first, "\x00\x00\x00\x00", "not a kernel image"},
	} {
		spoilt := bytes.Clone(whole)
		copy(spoilt[test.at:], test.bytes)
		if _, err := New(bytes.NewReader(spoilt), int64(len(spoilt))); err == nil ||
			!strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q in it", test.name, err, test.want)
		}
	}
}

// TestOverlap rejects segments that share bytes, which would be searched again and
// again.
func TestOverlap(t *testing.T) {
	t.Parallel()
	file := makeELF(binary.LittleEndian, true, 0, make([]byte, 4096))
	binary.LittleEndian.PutUint16(file[54:], 0) // all headers are the first one
	binary.LittleEndian.PutUint16(file[56:], 1000)
	if _, err := New(bytes.NewReader(file), int64(len(file))); err == nil || !strings.Contains(err.Error(), "overlap") {
		t.Errorf("a thousand times the same segment: %v", err)
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	if _, err := Open(t.TempDir()); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("Open of a directory: %v", err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none")); !os.IsNotExist(err) {
		t.Errorf("Open of nothing: %v", err)
	}
	object := testmod.WriteFile(t, "vmlinux.o", func() []byte {
		b := makeELF(binary.LittleEndian, true, 0, make([]byte, 8))
		b[16] = 1 // ET_REL
		return b
	}())
	if _, err := Open(object); err == nil || !strings.Contains(err.Error(), object) ||
		!strings.Contains(err.Error(), "use the vmlinux") {
		t.Errorf("Open of a relocatable object: %v", err)
	}
	im, err := Open(testmod.WriteFile(t, "vmlinux", makeELF(binary.LittleEndian, true, 0, make([]byte, 8))))
	if err != nil {
		t.Fatal(err)
	}
	if im.Packing() != "vmlinux" {
		t.Errorf("Packing = %q", im.Packing())
	}
	for range 2 {
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, k := range testmod.Kernels(b) {
		b.Run(k.Version, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				im, err := Open(k.Image)
				if err != nil {
					b.Fatal(err)
				}
				im.Close()
			}
		})
	}
}

// BenchmarkCertificates finds the lists in decompressed images of real kernels without
// symbols.
func BenchmarkCertificates(b *testing.B) {
	for _, k := range testmod.Kernels(b) {
		b.Run(k.Version, func(b *testing.B) {
			im := realKernel(b, k)
			b.SetBytes(im.body.size)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := im.Certificates(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
