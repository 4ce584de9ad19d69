package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/module"
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
	if len(found.Boot) != 1 || found.Boot[0] != "boot/initrd.img-1" {
		t.Errorf("booted, and not looked into: %q", found.Boot)
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

// TestReplacedThroughLink has files that are written over others by a link in their names, and links to
// what they replace: nobody may take the one for the other.
func TestReplacedThroughLink(t *testing.T) {
	t.Parallel()
	lower := []tar.Header{file("usr/lib/data", "good"), symlink("lib", "usr/lib")}
	over, link := file("lib/data", "bad"), symlink("usr/lib/modules/1/x.ko", "../../data")
	directory := tar.Header{Name: "lib", Typeflag: tar.TypeDir}
	hard := hardlink("usr/lib/modules/1/y.ko", "usr/lib/data")
	for name, test := range map[string]struct{ content, want string }{
		"tar":       {tarOf(t, append(slices.Clone(lower), over, link)...), "lib/data may replace"},
		"hard link": {tarOf(t, append(slices.Clone(lower), over, hard)...), "lib/data may replace"},
		"image":     {ociTar(t, tarOf(t, lower...), tarOf(t, over, link)), "lib/data may replace"},
		"hidden":    {ociTar(t, tarOf(t, lower...), tarOf(t, over, link), tarOf(t, directory)), "lib is a symbolic link"},
		"one layer": {ociTar(t, tarOf(t, append(slices.Clone(lower), over)...), tarOf(t, directory, link)),
			"lib is a symbolic link"},
		"another": {ociTar(t, tarOf(t, lower...), tarOf(t, file("lib/other", "bad"), link)), "x.ko=good"},
	} {
		work := names()
		var got []string
		work.Emit = func(s string) { got = append(got, s) }
		_, err := Modules(t.Context(), inMemory(t, test.content, Limits{}), work)
		if text := fmt.Sprint(got, err); !strings.Contains(text, test.want) || strings.Contains(text, "bad") {
			t.Errorf("%s: %s", name, text)
		}
	}
}

// TestInitramfsInside looks into initramfs images in a package and in layers, also in the second
// reading, but not into what is in them.
func TestInitramfsInside(t *testing.T) {
	t.Parallel()
	large := strings.Repeat("m", module.DefaultMemory+1) // waits for its kernel on disk
	inner := newc("lib", 0o120777, 1, 1, "usr/lib") + newc("usr/lib/modules/1/a.ko", 0o100644, 2, 1, large) +
		newc("usr/lib/modules/1/b.ko", 0o120777, 3, 1, "other") + newc("usr/lib/modules/1/other", 0o100644, 4, 1, "o") +
		newc("boot/vmlinuz-1", 0o100644, 5, 1, "L") + newcEnd
	nested := newc("boot/initrd.img-2", 0o100644, 1, 1, newc("d.ko", 0o100644, 1, 1, "d")+newcEnd) +
		newc("c.ko", 0o100644, 2, 1, "c") + newcEnd
	files := []tar.Header{file("a.ko", "m"), file("boot/initrd.img-1", newcEnd+gz(inner)),
		file("usr/lib/modules/1/initrd", gz(nested)), file("other.cpio", nested), symlink("x.ko", "boot/initrd.img-1"),
		file("boot/vmlinuz-1", "K")}
	want := "a.ko=1K boot/initrd.img-1!usr/lib/modules/1/a.ko=" + fmt.Sprint(len(large)) +
		"K boot/initrd.img-1!usr/lib/modules/1/b.ko->boot/initrd.img-1!usr/lib/modules/1/other=1K " +
		"usr/lib/modules/1/initrd!c.ko=1K x.ko->boot/initrd.img-1=" + fmt.Sprint(len(newcEnd+gz(inner))) + "K"
	for name, content := range map[string]string{"tar": tarOf(t, files...), "image": ociTar(t, tarOf(t, files[0],
		files[3]), tarOf(t, files[1:]...), tarOf(t, file("unrelated", ""), files[0], files[3]))} {
		work := Work[string, string]{OpenKernel: func(_ Kernel, r io.ReaderAt, size int64) (string, string, error) {
			b, err := io.ReadAll(io.NewSectionReader(r, 0, size))
			return string(b), "1", err
		}}
		work.Do = func(judge string, m Module) string {
			if m.Err != nil {
				return m.Path() + ": " + m.Err.Error()
			}
			_, size := m.Content()
			return fmt.Sprintf("%s=%d%s", m.Path(), size, judge)
		}
		work.Alias = func(link Module, of string) string {
			_, of, _ = strings.Cut(of, "=")
			return link.Path() + "->" + link.Target + "=" + of
		}
		var got []string
		work.Emit = func(s string) { got = append(got, s) }
		found, err := Modules(t.Context(), inMemory(t, content, Limits{}), work)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		text := strings.Join(got, " ")
		slices.Sort(got)
		sorted := strings.Split(want, " ")
		slices.Sort(sorted)
		if !slices.Equal(got, sorted) {
			t.Errorf("%s:\ngot  %s\nwant %s", name, text, want)
		}
		slices.Sort(found.Inner)
		if text := strings.Join(found.Inner, " "); text != "other.cpio usr/lib/modules/1/initrd!boot/initrd.img-2" ||
			len(found.Outside) > 0 {
			t.Errorf("%s: not looked into: %s, outside: %s", name, text, found.Outside)
		}
	}
}

// TestBadInitramfsInside has a package with a bad initramfs: there is no verdict.
func TestBadInitramfsInside(t *testing.T) {
	t.Parallel()
	good := newc("a.ko", 0o100644, 1, 1, "m") + newcEnd
	limits := Limits{Bytes: 1 << 20, Entries: 100, Kept: 600}
	many := strings.Repeat(newc("x", 0o100644, 1, 1, ""), 100) + newcEnd
	links := newc("a", 0o100644, 1, 2, "") + newc("b", 0o100644, 2, 2, "") + newc("c", 0o100644, 3, 2, "") +
		newc("d", 0o100644, 4, 2, "") + newc("e", 0o100644, 5, 2, "") + newcEnd
	zeros := gz(newc("zeros", 0o100644, 1, 1, strings.Repeat("\x00", 1<<19)) + newcEnd)
	for name, test := range map[string]struct{ inner, want string }{
		"cut off": {good[:100], "cut off"}, "rubbish follows": {good + "rubbish", "boot/initrd.img-1: initramfs is corrupt"},
		"many entries": {many, "entries"}, "links": {links, "names to remember"},
		"bytes":            {good + zeros + zeros, "more than 1048576 bytes"},
		"compressed twice": {good + zeros + zeros, "expand to"},
		"module cut off":   {good + gz(newcSized("a.ko", 0o100644, 1, 1, 1000, "m")), "cut off"},
	} {
		a := inMemory(t, gz(tarOf(t, file("boot/initrd.img-1", test.inner))), limits)
		if name == "compressed twice" {
			a.limits.free, a.limits.Bytes = 1<<19, 1<<22
		}
		if _, err := Modules(t.Context(), a, names()); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
