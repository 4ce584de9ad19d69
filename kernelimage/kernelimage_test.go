package kernelimage

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/internal/vmlinux"
)

const small = "../internal/vmlinux/testdata/reserve.amd64"

// bzImage returns an x86 boot image with a header of PE, of a kernel with room for a
// certificate, and with noise.
func bzImage(t *testing.T, compress ...string) []byte {
	t.Helper()
	kernel, err := os.ReadFile(small)
	if err != nil {
		t.Fatal(err)
	}
	// Text, which the compressors do not compress alike.
	for _, name := range []string{
		"kernelimage.go", "compress.go", "../internal/vmlinux/scan.go", "../internal/vmlinux/elf.go",
	} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		kernel = append(kernel, text...)
	}
	kernel = bytes.Join([][]byte{kernel, kernel[:5000]}, make([]byte, 300))
	kernel = append(kernel, make([]byte, 1<<20)...) // the streams may then differ by 2 KiB
	cmd := exec.Command(testmod.Program(t, compress[0], compress[0]), compress[1:]...)
	cmd.Stdin = bytes.NewReader(kernel)
	payload, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if compress[0] != "gzip" {
		payload = binary.LittleEndian.AppendUint32(payload, uint32(len(kernel)))
	}
	head := make([]byte, 0x400)
	copy(head, "MZ")
	head[0x3c] = 0x40
	copy(head[0x40:], "PE\x00\x00\x64\x86")
	binary.LittleEndian.PutUint16(head[0x40+20:], 160)
	binary.LittleEndian.PutUint16(head[0x40+24:], 0x20b)
	head[0x1f1] = 1
	binary.LittleEndian.PutUint16(head[0x1fe:], 0xaa55)
	copy(head[0x202:], "HdrS\x0f\x02")
	binary.LittleEndian.PutUint32(head[0x24c:], uint32(len(payload)))
	return bytes.Join([][]byte{head, payload, bytes.Repeat([]byte("code"), 20<<10)}, nil)
}

func certificates(t *testing.T, path string) []byte {
	t.Helper()
	im, err := vmlinux.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	c, err := im.Certificates()
	if err != nil {
		t.Fatal(err)
	}
	return c.Builtin
}

// TestBzImage adds certificates to a boot image that gzip has compressed, as long as there
// is a program that makes the room.
func TestBzImage(t *testing.T) {
	t.Parallel()
	testmod.Program(t, "libdeflate-gzip", "libdeflate-tools")
	one, two := testmod.NewKey(t, "ecdsa:p256").Certificate, testmod.NewKey(t, "ecdsa:p384").Certificate
	image := bzImage(t, "gzip", "-n", "-9")
	path := testmod.WriteFile(t, "bzImage", image)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	old := certificates(t, path)
	added, err := AddCertificate(t.Context(), link, one, Options{})
	if err != nil || !added.Changed || added.Used != len(one.Raw) || added.Packing != "bzImage, gzip" {
		t.Fatalf("%+v, %v", added, err)
	}
	if got := certificates(t, path); !bytes.Equal(got, append(old, one.Raw...)) {
		t.Errorf("%d bytes of certificates, not %d and %d", len(got), len(old), len(one.Raw))
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != os.ModeSymlink {
		t.Errorf("the link is replaced: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 || info.Size() != int64(len(image)) {
		t.Errorf("another mode or size: %v, %v", info, err)
	}
	again, err := AddCertificate(t.Context(), path, one, Options{Replace: true})
	if err != nil || again.Changed {
		t.Errorf("added twice: %+v, %v", again, err)
	}
	if added, err = AddCertificate(t.Context(), path, two, Options{Replace: true}); err != nil ||
		!bytes.Equal(added.Removed, one.Raw) || !bytes.Equal(certificates(t, path), append(old, two.Raw...)) {
		t.Errorf("one instead: %+v, %v", added, err)
	}
}

// TestNoRoom leaves a boot image alone if its kernel would become larger.
func TestNoRoom(t *testing.T) {
	t.Parallel()
	cert := testmod.NewKey(t, "rsa:4096").Certificate
	image := bzImage(t, "zstd", "-q", "-22", "--ultra", "--no-check")
	path := testmod.WriteFile(t, "bzImage", image)
	output := filepath.Join(t.TempDir(), "new")
	for _, o := range []Options{{}, {Output: output}} {
		if added, err := AddCertificate(t.Context(), path, cert, o); !errors.Is(err, ErrNoRoom) {
			t.Errorf("%+v, %v", added, err)
		}
	}
	if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, image) {
		t.Errorf("the image is another: %v", err)
	}
	if _, err := os.Stat(output); !os.IsNotExist(err) {
		t.Errorf("the output exists: %v", err)
	}
	path = testmod.WriteFile(t, "bzImage", bzImage(t, "gzip", "-n", "-9"))
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	cancel(stop)
	if _, err := AddCertificate(ctx, path, cert, Options{}); !errors.Is(err, stop) {
		t.Errorf("after its end: %v", err)
	}
}

// TestSigned has the signature of a boot image removed, or refuses it.
func TestSigned(t *testing.T) {
	t.Parallel()
	cert := testmod.NewKey(t, "ecdsa:p256").Certificate
	image := bzImage(t, "gzip", "-n", "-1")
	size := len(image)
	directory := image[0x40+24+112+32:]
	binary.LittleEndian.PutUint32(directory, uint32(size))
	binary.LittleEndian.PutUint32(directory[4:], 64)
	image = append(image, make([]byte, 64)...)
	path := testmod.WriteFile(t, "bzImage", image)
	if _, err := AddCertificate(t.Context(), path, cert, Options{}); !errors.Is(err, ErrSigned) {
		t.Errorf("signed: %v", err)
	}
	added, err := AddCertificate(t.Context(), path, cert, Options{DropSignature: true})
	if err != nil || !added.Dropped {
		t.Fatalf("%+v, %v", added, err)
	}
	data, err := os.ReadFile(path)
	if err != nil || len(data) != size || !bytes.Equal(data[0x40+24+112+32:][:8], make([]byte, 8)) {
		t.Errorf("%d bytes, not %d: %v", len(data), size, err)
	}
}

// TestRefused has arguments and images that nothing can be added to.
func TestRefused(t *testing.T) {
	t.Parallel()
	cert := testmod.NewKey(t, "ecdsa:p256").Certificate
	kernel, err := os.ReadFile(small)
	if err != nil {
		t.Fatal(err)
	}
	uki := make([]byte, 0x40+24+40)
	copy(uki, "MZ")
	uki[0x3c] = 0x40
	copy(uki[0x40:], "PE\x00\x00\x64\x86\x01")
	copy(uki[0x40+24:], ".linux")
	binary.LittleEndian.PutUint32(uki[0x40+24+16:], uint32(len(kernel)))
	binary.LittleEndian.PutUint32(uki[0x40+24+20:], uint32(len(uki)))
	uki = append(uki, kernel...)
	for _, test := range []struct {
		name, path string
		want       error
	}{
		{"UKI", testmod.WriteFile(t, "uki", uki), ErrWrapped},
		{"no room", "../internal/vmlinux/testdata/vmlinux.amd64", ErrNoReserve},
		{"nothing", "none", os.ErrNotExist},
	} {
		if added, err := AddCertificate(t.Context(), test.path, cert, Options{}); !errors.Is(err, test.want) {
			t.Errorf("%s: %+v, %v", test.name, added, err)
		}
	}
	for path, want := range map[string]elf.Machine{"vmlinux.amd64": elf.EM_X86_64, "vmlinux.s390": elf.EM_S390} {
		_, err := AddCertificate(t.Context(), "../internal/vmlinux/testdata/"+path, cert, Options{})
		if none, ok := errors.AsType[*NoReserveError](err); !ok || none.Machine != want {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := AddCertificate(t.Context(), small, nil, Options{}); err == nil {
		t.Error("no certificate went unnoticed")
	}
	if _, err := AddCertificate(t.Context(), t.TempDir(), cert, Options{}); err == nil ||
		!strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: %v", err)
	}
}
