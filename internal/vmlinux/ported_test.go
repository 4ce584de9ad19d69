package vmlinux

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// packings are the images that Debian's packages have.
var packings = map[string]string{
	"amd64":   "bzImage, zstd",
	"arm64":   "arm64 Image",
	"armhf":   "arm zImage, xz",
	"loong64": "EFI zboot: LoongArch Image, zstd",
	"ppc64el": "vmlinux",
	"riscv64": "RISC-V Image",
	"s390x":   "s390 bzImage, zstd",
}

// TestPortedImages finds the release and the certificate in the image of a Debian package
// for each architecture.
func TestPortedImages(t *testing.T) {
	testmod.Decodes(t, "it decompresses whole kernels")
	for _, image := range testmod.PortedImages(t) {
		t.Run(image.Arch, func(t *testing.T) {
			t.Parallel()
			im, err := Open(image.Path)
			if err != nil {
				t.Fatal(err)
			}
			defer im.Close()
			if im.Packing() != packings[image.Arch] {
				t.Errorf("Packing = %q, want %q", im.Packing(), packings[image.Arch])
			}
			if release, err := im.Release(); err != nil || release != image.Version {
				t.Errorf("Release = %q, %v, want %q", release, err, image.Version)
			}
			c, err := im.Certificates()
			if err != nil {
				t.Fatal(err)
			}
			found := "scan"
			if image.Arch == "ppc64el" {
				found = "symbols"
			}
			cert, err := x509.ParseCertificate(c.Builtin)
			if err != nil || string(c.Module) != string(c.Builtin) || c.Found != found ||
				len(c.Revoked)+len(c.Extra)+len(c.Dropped)+len(c.BlacklistHashes) > 0 {
				t.Fatalf("not one certificate of the module signing key: %v, %s, %q", err, c.Found, c.Module)
			}
			t.Logf("%s: %s", im.Packing(), cert.Subject)
		})
	}
}

// TestStub puts the kernels of Debian's packages into unified kernel images, as objcopy and
// systemd's stub make them.
func TestStub(t *testing.T) {
	testmod.Decodes(t, "it decompresses whole kernels")
	const stub = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
	if _, err := os.Stat(stub); err != nil {
		testmod.Missing(t, stub, "apt-get install systemd-boot-efi")
	}
	objcopy := testmod.Program(t, "objcopy", "binutils")
	osRelease := testmod.WriteFile(t, "os-release", []byte("ID=test\n"))
	for _, image := range testmod.PortedImages(t) {
		if image.Arch == "ppc64el" { // which has no EFI
			continue
		}
		uki := filepath.Join(t.TempDir(), "linux.efi")
		testmod.Run(t, objcopy, "--add-section", ".osrel="+osRelease, "--change-section-vma", ".osrel=0x20000",
			"--add-section", ".linux="+image.Path, "--change-section-vma", ".linux=0x2000000", stub, uki)
		im, err := Open(uki)
		if err != nil {
			t.Errorf("%s: %v", image.Arch, err)
			continue
		}
		defer im.Close()
		c, err := im.Certificates()
		if err != nil || len(c.Builtin) < 256 || im.Packing() != "UKI: "+packings[image.Arch] {
			t.Errorf("%s: %s: %v", image.Arch, im.Packing(), err)
		}
	}
}
