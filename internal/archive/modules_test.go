package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
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
		{"lib", "opt/d", false}, {"lib/modules/6.12/updates", "/opt/d", false},
		{"lib/modules/6.12/vmlinuz", "/opt/d/x.bin", false},
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

// TestTargets follows links to files that have not the name of a module.
func TestTargets(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		content, want string
	}{
		"hard": {tarOf(t, file("x.bin", "X"), hardlink("a.ko", "./x.bin")), "a.ko->a.ko=X"},
		"symbolic": {tarOf(t, symlink("a.ko", "/e/x.bin"), symlink("e", "opt"), file("opt/x.bin", "X")),
			"a.ko->a.ko=X"},
		"hard over others": {tarOf(t, file("x", "X"), hardlink("y", "x"), hardlink("a.ko", "y"), hardlink("b.ko", "a.ko"),
			symlink("c.ko", "b.ko")), "a.ko->a.ko=X b.ko->a.ko=X c.ko->a.ko=X"},
		"the last before": {tarOf(t, file("x", "0"), file("x", "1"), hardlink("a.ko", "x"), file("x", "2"),
			symlink("b.ko", "x")), "a.ko->a.ko=1 b.ko->b.ko=2"},
		"module before and after": {tarOf(t, file("a.ko", "1"), hardlink("b.ko", "a.ko"), file("a.ko", "2"),
			symlink("c.ko", "a.ko")), "a.ko=1 b.ko->a.ko=1 a.ko=2 c.ko->a.ko=2"},
		"comes later": {tarOf(t, hardlink("a.ko", "x"), file("x", "1")),
			"a.ko: hard link to x, which is not in the archive"},
		"two names": {tarOf(t, file("x", "X"), hardlink("a.ko", "x"), hardlink("b.ko.gz", "x")),
			"a.ko->a.ko=X b.ko.gz->b.ko.gz: gzip stream is cut off after 1 bytes: unexpected EOF"},
		"cpio": {newc("a.ko", 0o100644, 7, 2, "") + newc("x", 0o100644, 7, 2, "X") + newcEnd, "a.ko->a.ko=X"},
		"lower layer": {ociTar(t, tarOf(t, file("x", "1"), file("a.ko", "A")), tarOf(t, hardlink("b.ko", "x"),
			hardlink("c.ko", "a.ko"), file(".wh.a.ko", ""), file("x", "2"), symlink("d.ko", "x")), tarOf(t, file(".wh.x", ""))),
			"b.ko->b.ko=1 c.ko->c.ko=A d.ko: symbolic link to x, which is no module in the archive"},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			work := names()
			work.Emit = func(s string) { got = append(got, s) }
			_, err := Modules(t.Context(), inMemory(t, test.content, Limits{}), work)
			if text := strings.Join(got, " "); err != nil || text != test.want {
				t.Errorf("error %v\ngot  %s\nwant %s", err, text, test.want)
			}
		})
	}
}

// TestExpansion gives modules that are small as they are stored, and large when they are opened.
func TestExpansion(t *testing.T) {
	t.Parallel()
	zeros := gz(string(make([]byte, 1<<20)))
	content := tarOf(t, file("a.ko.gz", zeros), file("b.ko.gz", zeros), file("c.ko.gz", zeros))
	for free, bomb := range map[int64]bool{4 << 20: false, 2 << 20: true, 3<<20 - 1<<19: true} {
		_, err := Modules(t.Context(), inMemory(t, content, Limits{Ratio: 2, free: free}), names())
		if errors.Is(err, ErrLimit) != bomb {
			t.Errorf("%d bytes free: %v", free, err)
		}
	}
}

// TestInner names archives in an archive, whatever they are called.
func TestInner(t *testing.T) {
	t.Parallel()
	inner := newc("a.ko", 0o100644, 1, 1, "m") + newcEnd
	text := strings.Repeat("text ", 100)
	a := inMemory(t, tarOf(t, file("a.ko", "m"), file("1", inner), file("2", gz(inner+text)),
		file("3", tarOf(t, file("x", ""))),
		file("4", ar("debian-binary", "2.0\n", "data.tar", text)), file("5", peOf(".linux", text)), file("6", "hsqs"+text),
		file("no1", text), file("no2", gz(text)), file("no3", peOf(".text", text)), file("no4", "\x1f\x8b\x08"+text),
		file("boot/initrd.img-1", "?")), Limits{})
	found, err := Modules(t.Context(), a, names())
	if text := strings.Join(found.Inner, " "); err != nil || text != "1 2 3 4 5 6 boot/initrd.img-1" {
		t.Errorf("%q, error %v", text, err)
	}
}

// TestConfigs gives each kernel its configuration, wherever that comes in the archive, and opens
// none twice.
func TestConfigs(t *testing.T) {
	t.Parallel()
	image, beside := file("boot/vmlinuz-1.2", "kernel"), file("boot/config-1.2", "A=y")
	inTree := file("usr/lib/modules/1.2/config", "B=y")
	other := file("boot/config-1.3", "C=y")
	module := file("lib/modules/1.2/a.ko", "m")
	long := file("boot/config-1.2", strings.Repeat("#", maxConfig+1))
	for name, test := range map[string]struct {
		files []tar.Header
		want  string
	}{
		"before":     {[]tar.Header{other, beside, image, module}, "boot/config-1.2 A=y"},
		"after":      {[]tar.Header{module, image, module, other, beside}, "boot/config-1.2 A=y"},
		"among them": {[]tar.Header{image, module, inTree, beside}, "usr/lib/modules/1.2/config B=y"},
		"none":       {[]tar.Header{image, module, other}, " "},
		"too long":   {[]tar.Header{long, image, module}, " "},
		"two images": {[]tar.Header{image, file("lib/modules/1.2/vmlinuz", "kernel"), module, beside}, "boot/config-1.2 A=y"},
		"two kernels": {[]tar.Header{image, file("boot/vmlinuz-1.3", "kernel"), module, other, beside},
			"boot/config-1.3 C=y boot/config-1.2 A=y"},
		"no release": {[]tar.Header{file("boot/vmlinuz", "kernel"), module, beside}, " "},
	} {
		for _, wanted := range []bool{true, false} {
			var opened []string
			work := names()
			work.Judge, work.Configs = nil, wanted
			work.OpenKernel = func(k Kernel, _ io.ReaderAt, _ int64) (string, string, error) {
				opened = append(opened, k.ConfigName+" "+string(k.Config))
				return "", "", nil
			}
			modules := 0
			work.Emit = func(string) { modules++ }
			found, err := Modules(t.Context(), inMemory(t, tarOf(t, test.files...), Limits{}), work)
			if err != nil || found.Modules == 0 || modules != found.Modules || len(found.Kernels) != len(opened) {
				t.Fatalf("%s: %+v, %d results, opened %q: %v", name, found, modules, opened, err)
			}
			want := test.want
			if !wanted {
				want = strings.TrimSuffix(strings.Repeat("  ", len(opened)), " ")
			}
			if got := strings.Join(opened, " "); got != want {
				t.Errorf("%s: opened with %q, want %q", name, got, want)
			}
		}
	}
	// What waits for its configuration is bounded like names.
	many := []tar.Header{image}
	for i := range 10 {
		many = append(many, file(fmt.Sprintf("boot/config-%d", i), strings.Repeat("#", 1000)))
	}
	work := names()
	work.Judge, work.Configs = nil, true
	work.OpenKernel = func(Kernel, io.ReaderAt, int64) (string, string, error) { return "", "", nil }
	_, err := Modules(t.Context(), inMemory(t, tarOf(t, many...), Limits{Kept: 5000}), work)
	if !errors.Is(err, ErrLimit) {
		t.Errorf("more than the limit: %v", err)
	}
}
