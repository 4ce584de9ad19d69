//go:build kerneltest

package kerneltest

import (
	"bytes"
	"crypto"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/sign"
	"github.com/modsign/modsign/verify"
)

// TestStripped strips and signs the modules of a kernel with debug information, and
// writes debug files. Each module is byte for byte as binutils strips it, and the
// kernel loads all.
func TestStripped(t *testing.T) {
	tree, pairs := linux612.build(t, newKeys(t))
	pair := pairs["ecdsa:p384"]
	signer, err := sign.NewSigner(pair.Signer, pair.Certificate, sign.SignerOptions{Hash: crypto.SHA384})
	if err != nil {
		t.Fatal(err)
	}
	// install installs the modules with Kbuild, unsigned.
	install := func() (root, modlib string, modules []string) {
		root = t.TempDir()
		tree.Make(t, "INSTALL_MOD_PATH="+root, "CONFIG_MODULE_SIG_ALL=", "CONFIG_MODULE_COMPRESS_ALL=", "modules_install")
		modlib, modules = installed(t, root)
		if len(modules) < 40 {
			t.Fatalf("%d modules", len(modules))
		}
		for _, name := range modules {
			if !slices.Contains(sections(t, filepath.Join(modlib, name)), ".debug_info") {
				t.Fatalf("%s has no .debug_info", name)
			}
		}
		return root, modlib, modules
	}
	signTree := func(modlib string, modules []string, options sign.Options) {
		t.Helper()
		source, err := sign.Open(t.Context(), sign.Source{Roots: []string{modlib}})
		if err != nil {
			t.Fatal(err)
		}
		defer source.Close()
		options.Report.Result = func(r sign.Result) {
			if r.Err != nil {
				t.Errorf("%s: %v", r.Path, r.Err)
			}
		}
		summary, err := source.Sign(t.Context(), signer, options)
		if err != nil || summary.Signed != len(modules) || summary.Debug != len(modules) || summary.ByProgram != 0 {
			t.Fatalf("of %d modules: %+v, %v", len(modules), summary, err)
		}
		t.Logf("%d modules, %d bytes of debug information", summary.Debug, summary.DebugBytes)
	}

	_, stripped, modules := install()
	for _, name := range modules {
		testmod.Run(t, "strip", "--strip-debug", filepath.Join(stripped, name))
	}
	_, plain, _ := install()
	signTree(plain, modules, sign.Options{DebugOptions: sign.DebugOptions{StripDebug: true}})
	for _, name := range modules {
		got, want := payloadOf(t, filepath.Join(plain, name)), read(t, filepath.Join(stripped, name))
		if !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, and of strip --strip-debug %d, not the same", name, len(got), len(want))
		}
		if slices.ContainsFunc(sections(t, filepath.Join(plain, name)),
			func(s string) bool { return strings.HasPrefix(s, ".debug") || strings.HasPrefix(s, ".rela.debug") }) {
			t.Errorf("%s has debug sections", name)
		}
	}
	loads(t, tree, plain, modules)

	root, split, _ := install()
	debug := filepath.Join(root, "usr/lib/debug")
	signTree(split, modules, sign.Options{DebugOptions: sign.DebugOptions{SplitDebug: debug}})
	for _, name := range modules {
		module := filepath.Join(split, name)
		file := filepath.Join(debug, strings.TrimPrefix(module, root+"/")) + ".debug"
		checkDebugFile(t, module, file, debug)
	}
	loads(t, tree, split, modules)
	debuggers(t, filepath.Join(split, "kernel/crypto/md4.ko"), debug)
}

// loads has the kernel load modules, each after those that it needs.
func loads(t *testing.T, tree *Tree, modlib string, modules []string) {
	t.Helper()
	var keys verify.Keyring
	if err := keys.AddImage(tree.Image()); err != nil {
		t.Fatal(err)
	}
	var cases []Case
	for _, name := range modules {
		path := filepath.Join(modlib, name)
		cases = append(cases, Case{Name: name, File: path, Keep: true})
		if r := verify.File(t.Context(), &keys, path); r.Verdict != verify.Trusted {
			t.Errorf("%s: %s", name, r.Verdict)
		}
	}
	for _, v := range Boot(t, tree.Image(), cases) {
		if v.Errno != 0 {
			t.Errorf("%s: %v, %q", v.Name, v.Errno, v.Log)
		}
	}
}

// payloadOf returns a signed module without its signature.
func payloadOf(t testing.TB, path string) []byte {
	t.Helper()
	r, err := verify.Inspect(t.Context(), path)
	if err != nil || len(r.Layers) != 1 {
		t.Fatalf("%s: %+v, %v", path, r, err)
	}
	return read(t, path)[:r.Payload]
}

func sections(t testing.TB, path string) []string {
	t.Helper()
	return slices.Collect(maps.Keys(sectionData(t, path)))
}

// sectionData returns the contents of a file's sections by name.
func sectionData(t testing.TB, path string) map[string][]byte {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	defer f.Close()
	data := make(map[string][]byte)
	for _, s := range f.Sections {
		data[s.Name] = nil
		if s.Type != elf.SHT_NOBITS && s.Type != elf.SHT_NULL {
			if data[s.Name], err = s.Data(); err != nil {
				t.Fatalf("%s: %s: %v", path, s.Name, err)
			}
		}
	}
	return data
}

// checkDebugFile fails the test unless both ways lead from a module to its debug file.
func checkDebugFile(t testing.TB, module, file, dir string) {
	t.Helper()
	data := read(t, file)
	is := sectionData(t, module)
	link := is[".gnu_debuglink"]
	name, _, _ := bytes.Cut(link, []byte{0})
	if string(name) != filepath.Base(file) || len(link) < 4 ||
		binary.LittleEndian.Uint32(link[len(link)-4:]) != crc32.ChecksumIEEE(data) {
		t.Errorf("%s: .gnu_debuglink is %q, and its debug file has CRC %08x", module, link, crc32.ChecksumIEEE(data))
	}
	note := is[".note.gnu.build-id"]
	if len(note) < 17 || !bytes.Equal(note, sectionData(t, file)[".note.gnu.build-id"]) {
		t.Errorf("%s: the build id %x is not that of its debug file", module, note)
		return
	}
	id := hex.EncodeToString(note[16:])
	if got, err := filepath.EvalSymlinks(filepath.Join(dir, ".build-id", id[:2], id[2:]+".debug")); err != nil ||
		read(t, got) == nil || !bytes.Equal(read(t, got), data) {
		t.Errorf("%s: its build id leads to %s, %v", module, got, err)
	}
	if sectionData(t, file)[".debug_info"] == nil {
		t.Errorf("%s has no .debug_info", file)
	}
}

// debuggers has debuggers find lines of the source.
func debuggers(t *testing.T, module, debug string) {
	t.Helper()
	gdb := string(testmod.Run(t, "gdb", "-nx", "-batch", "-ex", "set debug-file-directory "+debug, "-ex", "file "+module,
		"-ex", "info line md4_final"))
	if !strings.Contains(gdb, `md4.c"`) {
		t.Errorf("gdb finds no line of md4_final: %s", gdb)
	}
	// elfutils uses the build ID too.
	addr := string(testmod.Run(t, "eu-addr2line", "--debuginfo-path=+"+debug, "-j", ".text", "-f", "-e", module, "0x0"))
	if !strings.Contains(addr, ".c:") && !strings.Contains(addr, ".h:") {
		t.Errorf("eu-addr2line finds no line: %s", addr)
	}
}
