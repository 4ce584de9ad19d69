package vmlinux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// apply returns a file with edits.
func apply(data []byte, edits []Edit) []byte {
	b := bytes.Clone(data)
	for _, e := range edits {
		copy(b[e.Offset:], e.Data)
	}
	return b
}

// TestReserve adds certificates to kernels: each becomes, byte for byte, the kernel that is
// linked with the certificates. How it finds the room is the same as for the lists.
func TestReserve(t *testing.T) {
	var (
		p256, p384, p521 = certOf(t, "ecdsa:p256"), certOf(t, "ecdsa:p384"), certOf(t, "ecdsa:p521")
		rsa              = certOf(t, "rsa:2048")
	)
	tests := []struct {
		name string
		kernel
		certs []byte
		scan  string // part of the scan's error
		err   string // part of the other errors
	}{
		{name: "empty", kernel: kernel{module: p384, reserve: 4096}, certs: p521},
		{name: "trusted, revoked", kernel: kernel{module: p384, trusted: rsa, reserve: 4096, revoked: p256}, certs: p521},
		{name: "one more", kernel: kernel{module: p384, reserve: 4096, extra: p521}, certs: join(p521, rsa)},
		{name: "one instead", kernel: kernel{trusted: p384, reserve: 4096, extra: rsa, revoked: p256}, certs: p256},
		{name: "before 5.13", kernel: kernel{module: p384, old: true, reserve: 4096, after: ".fill 32, 1, 0x55"}, certs: rsa},
		{name: "full", kernel: kernel{module: p384, reserve: len(rsa)}, certs: rsa, scan: "the size that is the default"},
		{name: "large, in use", kernel: kernel{module: p384, reserve: 8192, extra: rsa}, certs: join(rsa, p521)},
		{name: "large", kernel: kernel{module: p384, reserve: 8192}, certs: rsa, scan: "the size that is the default"},
		{name: "nothing else", kernel: kernel{reserve: 4096}, certs: rsa, scan: "no certificate list"},
		{name: "none", kernel: kernel{module: p384}, certs: rsa, scan: ErrNoReserve.Error(), err: ErrNoReserve.Error()},
	}
	for _, g := range testmod.Few(targets, 1) {
		if g.name == "armhf" { // its Image is compressed
			continue
		}
		for _, test := range tests {
			t.Run(g.name+"/"+test.name, func(t *testing.T) {
				t.Parallel()
				vmlinux, stripped, systemMap := test.link(t, g)
				with := test.kernel
				with.extra = test.certs
				with.reserve = max(with.reserve, len(with.extra))
				wantVmlinux, wantStripped, _ := with.link(t, g)
				for _, way := range []struct{ found, image, systemMap, want, err string }{
					{"symbols", vmlinux, "", wantVmlinux, test.err},
					{"System.map", stripped, systemMap, wantStripped, test.err},
					{"scan", stripped, "", wantStripped, test.scan},
				} {
					data, err := os.ReadFile(way.image)
					if err != nil {
						t.Fatal(err)
					}
					want, err := os.ReadFile(way.want)
					if err != nil {
						t.Fatal(err)
					}
					im, err := New(bytes.NewReader(data), int64(len(data)))
					if err != nil {
						t.Fatal(err)
					}
					if way.systemMap != "" {
						b, err := os.ReadFile(systemMap)
						if err == nil {
							err = im.UseSystemMap(bytes.NewReader(b))
						}
						if err != nil {
							t.Fatal(err)
						}
					}
					r, err := im.Reserve()
					if way.err != "" {
						if err == nil || !strings.Contains(err.Error(), way.err) {
							t.Errorf("%s: %+v, %v; want an error with %q", way.found, r, err, way.err)
						}
						continue
					}
					if err != nil {
						t.Errorf("%s: %v", way.found, err)
						continue
					}
					if r.Found != way.found || !bytes.Equal(r.Certificates, test.extra) || !im.Bare() {
						t.Errorf("%s: by %s, %d bytes", way.found, r.Found, len(r.Certificates))
					}
					if r.Size < test.reserve || test.reserve == 4096 && r.Size != 4096 {
						t.Errorf("%s: a room of %d bytes, not %d", way.found, r.Size, test.reserve)
					}
					edits, err := r.Fill(test.certs)
					if err != nil {
						t.Errorf("%s: %v", way.found, err)
					} else if !bytes.Equal(apply(data, edits), want) {
						t.Errorf("%s: not the kernel that is linked with the certificates", way.found)
					}
					if _, err := r.Fill(bytes.Repeat(rsa, 1+r.Size/len(rsa))); err == nil ||
						!strings.Contains(err.Error(), "do not fit") {
						t.Errorf("%s: too much: %v", way.found, err)
					}
					for _, none := range [][]byte{nil, rsa[:len(rsa)-1], join(rsa, []byte("x")), {0x30, 0x81, 0x80}} {
						if _, err := r.Fill(none); err == nil || !strings.Contains(err.Error(), "30 82") {
							t.Errorf("%s: % x: %v", way.found, none[:min(len(none), 3)], err)
						}
					}
				}
			})
		}
	}
}

// repacked are compressors with a lower and a higher effort.
var repacked = []struct {
	name, pkg string
	old, made []string
}{
	{"gzip", "gzip", []string{"gzip", "-n", "-1"}, []string{"gzip", "-n", "-9"}},
	{"zstd", "zstd", []string{"zstd", "-q", "-1"}, []string{"zstd", "-q", "-19"}},
	{"xz", "xz-utils", []string{"xz", "--check=crc32", "-6"}, []string{"xz", "--check=crc32", "-6"}},
	{"lz4", "lz4", []string{"lz4", "-l", "-9", "-", "-"}, []string{"lz4", "-l", "-12", "-", "-"}},
	{"lzma", "xz-utils", []string{"lzma", "-9"}, []string{"lzma", "-9"}},
	{"bzip2", "bzip2", []string{"bzip2", "-9"}, []string{"bzip2", "-9"}},
	{"lzo", "lzop", []string{"lzop", "-9"}, []string{"lzop", "-9"}},
}

// TestRepack puts a kernel into boot images whose old one compressed a little worse.
func TestRepack(t *testing.T) {
	t.Parallel()
	p384 := certOf(t, "ecdsa:p384")
	noise := make([]byte, 200<<10)
	rand.NewChaCha8([32]byte{}).Read(noise)
	_, path, _ := kernel{module: p384, text: noise}.link(t, targets[0])
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Clone(old)
	clear(changed[bytes.Index(changed, noise[:64]):][:64])
	for _, c := range repacked {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			compress := func(command []string, data []byte) []byte {
				cmd := exec.Command(testmod.Program(t, command[0], c.pkg), command[1:]...)
				cmd.Stdin = bytes.NewReader(data)
				out, err := cmd.Output()
				if err != nil {
					t.Fatal(err)
				}
				return out
			}
			payload := compress(c.old, old)
			if c.name != "gzip" {
				payload = withSize(payload, len(old))
			}
			image := append(makeBzImage(payload), "code"...)
			image = binary.LittleEndian.AppendUint32(image, uint32(len(payload)))
			image = binary.LittleEndian.AppendUint32(image, uint32(len(old)))
			image = append(image, make([]byte, 1000)...)
			efforts := 0
			made, err := Repack(image, changed, false, func(method string, effort int) ([]byte, error) {
				if method != c.name || effort != efforts {
					t.Errorf("%s, effort %d", method, effort)
				}
				if efforts++; efforts > 1 {
					return nil, nil
				}
				return compress(c.made, changed), nil
			})
			if c.name != "gzip" && c.name != "xz" {
				if !errors.Is(err, ErrNoRoom) || efforts > 0 {
					t.Errorf("%d efforts: %v", efforts, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			im, err := New(bytes.NewReader(made), int64(len(made)))
			if err != nil {
				t.Fatal(err)
			}
			if kernel, err := im.Kernel(); err != nil || !bytes.Equal(kernel, changed) || !im.Repackable() || im.Bare() {
				t.Errorf("another kernel comes out: %v", err)
			}
			if len(made) != len(image) || !bytes.Equal(made[0x250:0x400], image[0x250:0x400]) ||
				!bytes.Equal(made[0x400+len(payload):], image[0x400+len(payload):]) {
				t.Error("more than the payload has changed")
			}
			_, length, err := bzImagePayload(int64(len(made)), made)
			if gap := len(payload) - int(length); err != nil || gap < 0 || gap > len(old)/512 ||
				gap > 4 && c.name == "gzip" {
				t.Errorf("the new payload ends %d bytes before the old one: %v", gap, err)
			}
			if place := placeOf(made, 0x400, length, len(old)); place != int64(len(payload)) {
				t.Errorf("the place of the new payload has %d bytes, not the %d of the old one", place, len(payload))
			}
			// The old one fits again.
			again, err := Repack(made, old, false, func(_ string, effort int) ([]byte, error) {
				if effort > 0 {
					return nil, nil
				}
				return compress(c.old, old), nil
			})
			if err != nil || !bytes.Equal(again, image) {
				t.Errorf("the old kernel again: %v", err)
			}
			// What does not fit is an error.
			_, err = Repack(image, changed, false, func(_ string, effort int) ([]byte, error) {
				if effort > 2 {
					return nil, nil
				}
				return bytes.Repeat([]byte("x"), len(payload)+1), nil
			})
			if !errors.Is(err, ErrNoRoom) {
				t.Errorf("a stream that is too large: %v", err)
			}
			// So is a stream of something else.
			if _, err := Repack(image, changed, false, func(_ string, effort int) ([]byte, error) {
				if effort > 0 {
					return nil, nil
				}
				return compress(c.made, changed[:len(old)-64]), nil
			}); err == nil {
				t.Error("a stream of another kernel went unnoticed")
			}
			if _, err := Repack(image, changed[1:], false, nil); err == nil {
				t.Error("a kernel of another size went unnoticed")
			}
		})
	}
}

// TestSeal changes the checksum at the end of an image that has one.
func TestSeal(t *testing.T) {
	t.Parallel()
	_, path, _ := kernel{module: certOf(t, "ecdsa:p384")}.link(t, targets[0])
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	old = append(old, make([]byte, -len(old)&15)...)
	image := makeBzImage(old)
	image[0x1f4], image[0x1f5] = byte(len(old)/16+1), byte((len(old)/16+1)>>8)
	image = append(image, make([]byte, 16)...)
	// python3: ~zlib.crc32(image[:-4]) & 0xffffffff
	crc := testmod.Run(t, testmod.Program(t, "python3", "python3"), "-c",
		"import sys, zlib; b = open(sys.argv[1], 'rb').read()[:-4]; "+
			"sys.stdout.buffer.write((~zlib.crc32(b) & 0xffffffff).to_bytes(4, 'little'))",
		testmod.WriteFile(t, "image", image))
	copy(image[len(image)-4:], crc)
	made, err := Repack(image, old, false, nil)
	if err != nil || !bytes.Equal(made, image) {
		t.Errorf("the same kernel: another image, %v", err)
	}
	changed := bytes.Clone(old)
	changed[len(changed)-1]++
	if made, err = Repack(image, changed, false, nil); err != nil || bytes.Equal(made[len(made)-4:], crc) {
		t.Errorf("another kernel: the same checksum, %v", err)
	}
	// Without a checksum, none is written.
	copy(image[len(image)-4:], "    ")
	if made, err = Repack(image, changed, false, nil); err != nil || string(made[len(made)-4:]) != "    " {
		t.Errorf("without a checksum: % x, %v", made[len(made)-4:], err)
	}
}

// TestUnsign removes what sbsign has added to a kernel of Debian.
func TestUnsign(t *testing.T) {
	testmod.Slow(t, "it signs a whole kernel")
	sbsign, openssl := testmod.Program(t, "sbsign", "sbsigntool"), testmod.Program(t, "openssl", "openssl")
	dir := t.TempDir()
	key, cert, signed := filepath.Join(dir, "key"), filepath.Join(dir, "cert"), filepath.Join(dir, "signed")
	testmod.Run(t, openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-keyout", key,
		"-out", cert)
	for _, image := range testmod.PortedImages(t) {
		if image.Arch != "amd64" && image.Arch != "arm64" {
			continue
		}
		old, err := os.ReadFile(image.Path)
		if err != nil {
			t.Fatal(err)
		}
		testmod.Run(t, sbsign, "--key", key, "--cert", cert, "--output", signed, image.Path)
		data, err := os.ReadFile(signed)
		if err != nil {
			t.Fatal(err)
		}
		if is, err := Signed(bytes.NewReader(data), int64(len(data))); err != nil || !is {
			t.Errorf("%s: Signed is %v, %v", image.Arch, is, err)
		}
		if is, err := Signed(bytes.NewReader(old), int64(len(old))); err != nil || is {
			t.Errorf("%s: Signed before is %v, %v", image.Arch, is, err)
		}
		if _, err := unsign(bytes.Clone(data), false); !errors.Is(err, ErrSigned) {
			t.Errorf("%s: %v", image.Arch, err)
		}
		made, err := Unsign(data)
		if err != nil || !bytes.Equal(made, old) {
			t.Errorf("%s: not the image before: %d bytes of %d, %v", image.Arch, len(made), len(old), err)
		}
	}
}
