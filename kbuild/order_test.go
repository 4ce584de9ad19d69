package kbuild

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

func TestParseOrder(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, text, base, root string
		want                   []string
	}{
		{"empty", "", "/o", "/o", nil},
		{"from 6.2 on", "drivers/net/dummy.o\nlib/x.o\n", "/o", "/o", []string{"drivers/net/dummy.ko", "lib/x.ko"}},
		{"before", "drivers/net/dummy.ko\r\n\n lib/x.ko", "/o", "/o", []string{"drivers/net/dummy.ko", "lib/x.ko"}},
		{"twice", "b.o\na.o\nb.o\n./b.ko\nc/../a.o\n", "/o", "/o", []string{"b.ko", "a.ko"}},
		{"absolute", "/o/a.o\n", "/o", "/o", []string{"a.ko"}},
		{"external, absolute", "/e/a.o\n/e/sub/b.o\n", "/o", "/e", []string{"a.ko", "sub/b.ko"}},
		{"external, relative", "../e/a.o\n", "/o", "/e", []string{"a.ko"}},
		{"external, inside", "e/e/a.o\n", "/o", "/o/e", []string{"e/a.ko"}},
		{"external, without prefix", "e/a.o\n", "/e", "/e", []string{"e/a.ko"}},
	}
	for _, test := range tests {
		got, err := parseOrder(strings.NewReader(test.text), test.base, test.root)
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, %v; want %q", test.name, got, err, test.want)
		}
	}
	for _, bad := range []string{
		"/etc/x.ko", "../x.o", "a/../../x.o", "/o/../x.o", "/ox/a.o", "..o/../../a.o",
		"x", "x.c", ".o", "a/.ko", "a/", "a b.o", "a\tb.o", "a\x00b.o", "/", "..", ".", "x.ko.xz", strings.Repeat("x", 1<<17),
	} {
		if got, err := parseOrder(strings.NewReader("a.o\n"+bad+"\n"), "/o", "/o"); err == nil ||
			len(bad) < 1000 && !strings.Contains(err.Error(), "line 2 ") {
			t.Errorf("%.80q: %q, %v", bad, got, err)
		}
	}
}

func FuzzParseOrder(f *testing.F) {
	for _, s := range []string{
		"", "a.o\nb/c.ko\n", "/o/a.o", "../a.o", "/e/../o/x.o\n\n", "kernel/a.ko", ".o", "..", "a/../.o",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		names, err := parseOrder(strings.NewReader(s), "/o", "/o")
		if err != nil {
			return
		}
		slices.Sort(names)
		if len(slices.Compact(slices.Clone(names))) != len(names) {
			t.Errorf("%q: twice in %q", s, names)
		}
		for _, name := range names {
			if !filepath.IsLocal(name) || filepath.Clean(name) != name || filepath.Ext(name) != ".ko" || name == ".ko" ||
				strings.HasSuffix(name, "/.ko") {
				t.Errorf("%q: %q", s, name)
			}
		}
	})
}

func TestModules(t *testing.T) {
	t.Parallel()
	const modules = "CONFIG_MODULES=y\n"
	objtree := makeTree(t, map[string]string{"Makefile": "VERSION = 6\n", "Kconfig": "", "scripts/Makefile.modinst": ""})
	tree, err := OpenTree(objtree, "", Vars{})
	if err != nil {
		t.Fatal(err)
	}
	if names, err := tree.Modules(); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "run make first") {
		t.Errorf("nothing built: %q, %v", names, err)
	}
	order := filepath.Join(objtree, "modules.order")
	for _, test := range []struct {
		text  string
		built string
		want  []string
	}{
		{"", "", nil},
		{"kernel/drivers/net/dummy.ko\nkernel/lib/x.ko\n", "", []string{"drivers/net/dummy.ko", "lib/x.ko"}},
		{"kernel/torture.ko\nlib/x.ko\n", "", []string{"kernel/torture.ko", "lib/x.ko"}},
		{"kernel/torture.o\nkernel/configs.o\n", "kernel/torture.ko", []string{"kernel/torture.ko", "kernel/configs.ko"}},
	} {
		writeTree(t, objtree, map[string]string{"modules.order": test.text})
		if test.built != "" {
			writeTree(t, objtree, map[string]string{test.built: ""})
		}
		if names, err := tree.Modules(); err != nil || !slices.Equal(names, test.want) {
			t.Errorf("%q: %q, %v; want %q", test.text, names, err, test.want)
		}
	}
	writeTree(t, objtree, map[string]string{"modules.order": "a.o\n/etc/b.o\n"})
	if names, err := tree.Modules(); err == nil || !strings.Contains(err.Error(), order+": line 2 ") {
		t.Errorf("%q, %v", names, err)
	}
	for config, want := range map[string]int{"CONFIG_X=y\n": 0, modules: 1} {
		if err := os.WriteFile(order, []byte("a.o\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		writeTree(t, objtree, map[string]string{".config": config})
		tree, err := OpenTree(objtree, "", Vars{})
		if err != nil {
			t.Fatal(err)
		}
		if names, err := tree.Modules(); err != nil || len(names) != want {
			t.Errorf("with %q: %q, %v", config, names, err)
		}
	}
}

func TestInstalledModules(t *testing.T) {
	t.Parallel()
	modlib := makeTree(t, map[string]string{"modules.order": "kernel/fs/b.ko\nkernel/a.ko\nextra/c.ko\n"})
	if names, err := InstalledModules(modlib); err != nil ||
		!slices.Equal(names, []string{"kernel/fs/b.ko", "kernel/a.ko", "extra/c.ko"}) {
		t.Errorf("%q, %v", names, err)
	}
	writeTree(t, modlib, map[string]string{"modules.order": "kernel/a.ko\nkernel/a.ko.xz\n"})
	if names, err := InstalledModules(modlib); err == nil ||
		!strings.Contains(err.Error(), "modules.order: line 2 is not a module") {
		t.Errorf("%q, %v", names, err)
	}
	if _, err := InstalledModules(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without modules.order: %v", err)
	}
}

// The names of real kernels are those of their packages' modules.
func TestInstalledModulesOfRealKernels(t *testing.T) {
	for _, kernel := range testmod.Kernels(t) {
		modlib := filepath.Join(kernel.Root, "lib/modules", kernel.Version)
		names, err := InstalledModules(modlib)
		if err != nil || len(names) != len(kernel.Modules) {
			t.Errorf("%s: %d names of %d modules, %v", kernel.Version, len(names), len(kernel.Modules), err)
		}
		for _, name := range names {
			if found, err := filepath.Glob(filepath.Join(modlib, name) + "*"); err != nil || len(found) != 1 {
				t.Fatalf("%s: %s: %q, %v", kernel.Version, name, found, err)
			}
		}
	}
}

func TestModulesOfExternalModule(t *testing.T) {
	t.Parallel()
	root := makeTree(t, map[string]string{
		"old/Makefile": "VERSION = 6\n", "old/Kconfig": "", "old/scripts/Makefile.modinst": "",
		"new/Makefile": "KBUILD_EXTMOD_OUTPUT := $(MO)\n", "new/Kconfig": "", "new/scripts/Makefile.modinst": "",
	})
	ext := filepath.Join(root, "ext")
	for _, test := range []struct {
		tree, extmod, file, order string
		line                      map[string]string
		destination               string
	}{
		{"old", ext, "ext/modules.order", ext + "/a.o\n" + ext + "/sub/b.o\n", nil, "/lib/modules/6.1/updates"},
		{"old", ext + "/", "ext/modules.order", ext + "/a.ko\n" + ext + "/sub/b.ko\n", nil, "/lib/modules/6.1/updates"},
		{
			"old", "../ext", "ext/modules.order", "../ext/a.o\n../ext/sub/b.o\n",
			map[string]string{"INSTALL_MOD_DIR": "extra/x"}, "/lib/modules/6.1/extra/x",
		},
		{
			"old", "ext", "old/ext/modules.order", "ext/a.o\next/sub/b.o\n", map[string]string{"INSTALL_MOD_PATH": "inst"},
			root + "/old/inst/lib/modules/6.1/updates",
		},
		{
			"new", ext, "ext/modules.order", "a.o\nsub/b.o\n", map[string]string{"INSTALL_MOD_PATH": "inst"},
			ext + "/inst/lib/modules/6.1/updates",
		},
		{
			"new", "../ext", "out/modules.order", "a.o\nsub/b.o\n",
			map[string]string{"MO": "../out", "INSTALL_MOD_PATH": "inst"}, root + "/out/inst/lib/modules/6.1/updates",
		},
	} {
		writeTree(t, root, map[string]string{test.file: test.order})
		vars := Vars{Line: map[string]string{"KERNELRELEASE": "6.1"}}
		for name, value := range test.line {
			vars.Line[name] = value
		}
		tree, err := OpenTree(filepath.Join(root, test.tree), test.extmod, vars)
		if err != nil {
			t.Fatal(err)
		}
		if names, err := tree.Modules(); err != nil || !slices.Equal(names, []string{"a.ko", "sub/b.ko"}) {
			t.Errorf("%+v: %q, %v", test, names, err)
		}
		if got, err := tree.Destination(); err != nil || got != test.destination {
			t.Errorf("%+v: %q, %v", test, got, err)
		}
		if got := tree.ModulesDir(); got != filepath.Join(root, filepath.Dir(test.file)) {
			t.Errorf("%+v: the modules are in %s", test, got)
		}
		if want := filepath.Join(root, test.tree, test.extmod); !filepath.IsAbs(test.extmod) && tree.ExtMod != want ||
			filepath.IsAbs(test.extmod) && tree.ExtMod != ext {
			t.Errorf("%+v: ExtMod is %s", test, tree.ExtMod)
		}
		if err := os.Remove(filepath.Join(root, test.file)); err != nil {
			t.Fatal(err)
		}
	}
}
