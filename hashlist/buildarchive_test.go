package hashlist

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// TestBuildArchive makes the list of a Debian package and of the unpacked package.
func TestBuildArchive(t *testing.T) {
	t.Parallel()
	testmod.Program(t, "dpkg-deb", "dpkg")
	root, unpacked := t.TempDir(), t.TempDir()
	lib := "usr/lib/modules/" + release
	order := []string{"kernel/fs/c.ko", "kernel/a.ko", "kernel/fs/b.ko"}
	for name, data := range modules(t) {
		put(t, root, filepath.Join(lib, name), data)
	}
	put(t, root, "usr/lib/debug/"+lib+"/kernel/a.ko", testmod.ELF())
	put(t, root, lib+"/modules.order", []byte(strings.Join(order, "\n")+"\n"))
	put(t, root, "DEBIAN/control", []byte("Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n"))
	testmod.Run(t, "xz", "--check=crc32", filepath.Join(root, lib, "kernel/fs/b.ko"))
	if err := os.Symlink("a.ko", filepath.Join(root, lib, "kernel/link.ko")); err != nil {
		t.Fatal(err)
	}
	pack := func() string {
		deb := filepath.Join(t.TempDir(), "x.deb")
		testmod.Run(t, "dpkg-deb", "--root-owner-group", "-Zgzip", "-b", root, deb)
		return deb
	}
	for _, ordered := range []bool{true, false} {
		source := Source{Dir: filepath.Join(unpacked, lib), Names: order, Release: release}
		if !ordered {
			os.Remove(filepath.Join(root, lib, "modules.order"))
		}
		deb := pack()
		testmod.Run(t, "dpkg-deb", "-x", deb, unpacked)
		if !ordered {
			var err error
			if source.Names, err = FindNames(source.Dir); err != nil {
				t.Fatal(err)
			}
		}
		want, err := Build(t.Context(), source, BuildOptions{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := BuildArchive(t.Context(), deb, "", BuildOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if a, b := written(t, got), written(t, want); a != b || got.Order != want.Order || got.Bytes != want.Bytes {
			t.Errorf("with modules.order %t:\ngot  %s\nwant %s", ordered, a, b)
		}
	}

	fails := func(what string, want error, text string) {
		t.Helper()
		built, err := BuildArchive(t.Context(), pack(), "", BuildOptions{})
		if built != nil || err == nil || want != nil && !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", what, err)
		}
	}
	put(t, root, lib+"/modules.order", []byte("kernel/z.ko\n"))
	fails("a module is missing", nil, "modules.order names kernel/z.ko, which is not in the package")
	os.Remove(filepath.Join(root, lib, "modules.order"))
	put(t, root, lib+"/kernel/fs/b.ko.gz", nil)
	fails("two forms", nil, "are one module")
	os.Remove(filepath.Join(root, lib, "kernel/fs/b.ko.gz"))
	put(t, root, lib+"/kernel/fs/d.ko", []byte("rubbish"))
	fails("no module", ErrIncomplete, "1 of 4 modules could not be hashed")
	os.RemoveAll(filepath.Join(root, "usr"))
	fails("no modules", ErrNoModules, "below lib/modules/KVER")
}

func written(t *testing.T, b *Built) string {
	t.Helper()
	var text bytes.Buffer
	if err := b.List.Write(&text); err != nil {
		t.Fatal(err)
	}
	return text.String()
}
