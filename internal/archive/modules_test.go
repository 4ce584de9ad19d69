package archive

import (
	"archive/tar"
	"slices"
	"testing"
)

func symlink(name, target string) tar.Header {
	return tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink}
}

func hardlink(name, target string) tar.Header {
	return tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeLink}
}

// TestOutside names the links behind which modules may be that nobody has looked at, and no others.
func TestOutside(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		link, target string
		outside      bool
	}{
		{"lib", "/srv", true}, {"usr", "/srv", true}, {"usr/lib", "/srv/m", true}, {"lib/modules", "/srv/m", true},
		{"usr/lib/modules", "../srv", true}, {"lib/modules/6.12", "/srv/m", true}, {"lib/modules/6.12/extra", "/srv", true},
		{"lib/modules/6.12/extra.d", "/srv", true}, {"lib/modules/6.12/a/b", "/opt/e", true},
		{"root/lib/modules/6.12", "/srv", true}, {"lib/modules/6.12/loop", "loop", true},
		{"lib/modules/6.12/build", "/srv", false}, {"lib/modules/6.12/source", "/srv", false},
		{"lib", "opt/d", false}, {"lib/modules/6.12/updates", "/opt/d", false}, {"lib/modules/6.12/vmlinuz", "/opt/d/x.bin", false},
		{"lib/modules/6.12", "/", false}, {"etc/x", "/srv", false}, {"usr/libx", "/srv", false}, {"opt/lib", "/srv", false},
	} {
		a := inMemory(t, tarOf(t, file("opt/d/x.bin", "x"), file("opt/a.ko", "m"), symlink(test.link, test.target)), Limits{})
		found, err := Modules(t.Context(), a, names())
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(found.Outside, test.link) != test.outside {
			t.Errorf("%s -> %s: out of the package: %q", test.link, test.target, found.Outside)
		}
	}
}
