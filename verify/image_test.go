package verify

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// TestImage opens a real kernel image as a file and as a part of something else.
func TestImage(t *testing.T) {
	t.Parallel()
	kernels := testmod.Kernels(t)
	k := kernels[len(kernels)-1]
	opened, err := OpenImage(k.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	data, err := os.ReadFile(k.Image)
	if err != nil {
		t.Fatal(err)
	}
	read, err := ReadImage("boot/vmlinuz in a package", bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	for _, im := range []*Image{opened, read} {
		release, err := im.Release()
		magic, magicErr := im.Vermagic()
		if err != nil || magicErr != nil || release != k.Version || !strings.HasPrefix(magic, release+" ") {
			t.Errorf("%s: release %q, vermagic %q, %v, %v", im.Name(), release, magic, err, magicErr)
		}
		keys := new(Keyring)
		if err := keys.AddOpened(im); err != nil || keys.Len() == 0 || keys.Release() != k.Version {
			t.Errorf("%s: %d certificates of %q: %v", im.Name(), keys.Len(), keys.Release(), err)
		}
		// Debian's kernels have no CONFIG_IKCONFIG.
		if text, name, err := im.Config(); text != nil || name != "" || err != nil {
			t.Errorf("%s: %d bytes of configuration in %q: %v", im.Name(), len(text), name, err)
		}
		im.AddConfig("boot/config", []byte("CONFIG_A=y\n"))
		if text, name, err := im.Config(); string(text) != "CONFIG_A=y\n" || name != "boot/config" || err != nil {
			t.Errorf("%s: %q of configuration in %q: %v", im.Name(), text, name, err)
		}
		if r, size := im.Content(); size != int64(len(data)) || r == nil {
			t.Errorf("%s: %d bytes, want %d", im.Name(), size, len(data))
		}
	}
}

func TestNoImage(t *testing.T) {
	t.Parallel()
	text := testmod.WriteFile(t, "vmlinuz", []byte("no kernel"))
	for _, path := range []string{text, t.TempDir(), text + ".none"} {
		if im, err := OpenImage(path); im != nil || err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if im, err := ReadImage("x", nil, 3); im != nil || err == nil {
		t.Error("an image without content has no error")
	}
	if err := new(Keyring).AddOpened(nil); err == nil {
		t.Error("no image has no error")
	}
	var none *Image
	if err := none.Close(); err != nil {
		t.Error(err)
	}
}
