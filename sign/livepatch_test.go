package sign

import (
	"bytes"
	"crypto"
	"debug/elf"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/elfstrip"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
)

const livepatchSource = `
extern int old(int) __asm__("\".klp.sym.vmlinux.old,1\"");
int counter = 3;
int usual(int x) { return x + counter; }
__attribute__((section(".text.patched"))) int patched(int x) { return old(x); }
__asm__(".section \".klp.rela.vmlinux..text.patched\",\"\"\n.previous\n"); // its name is what is wanted
`

// livepatch compiles a module as the build of a livepatch leaves it
// (Documentation/livepatch/module-elf-format.rst): relocations for the kernel to apply are
// in a section that is loaded, of the type and flags SHF_RELA_LIVEPATCH, and their symbol
// is in the section SHN_LIVEPATCH.
func livepatch(t testing.TB) []byte {
	t.Helper()
	dir := t.TempDir()
	source, object := filepath.Join(dir, "livepatch.c"), filepath.Join(dir, "livepatch.o")
	put(t, source, []byte(livepatchSource))
	if err := execute(
		testmod.Program(t, "gcc", "gcc"),
		"-g", "-O1", "-fno-pic", "-fno-asynchronous-unwind-tables", "-c", "-o", object, source,
	); err != nil {
		t.Fatal(err)
	}
	b := read(t, object)
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if f.Class != elf.ELFCLASS64 || f.ByteOrder != binary.LittleEndian {
		testmod.Missing(t, "a compiler for 64 bits, little-endian", "an amd64 or arm64 machine")
	}
	shoff := binary.LittleEndian.Uint64(b[40:])
	header := func(name string) []byte {
		i := slices.IndexFunc(f.Sections, func(s *elf.Section) bool { return s.Name == name })
		if i < 0 {
			t.Fatalf("the compiler made no section %s", name)
		}
		return b[shoff+uint64(64*i):][:64]
	}
	klp := header(".rela.text.patched")
	copy(klp[:4], header(".klp.rela.vmlinux..text.patched")[:4])
	binary.LittleEndian.PutUint64(klp[8:], uint64(elf.SHF_ALLOC|elf.SHF_INFO_LINK)|0x00100000)
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(symbols, func(s elf.Symbol) bool { return s.Name == ".klp.sym.vmlinux.old,1" })
	binary.LittleEndian.PutUint16(b[f.Section(".symtab").Offset+uint64(24*(i+1))+6:], 0xff20)
	return b
}

// livepatchRelocations are the symbols that the kernel would look for, by the sections
// of a module that say so.
func livepatchRelocations(t testing.TB, b []byte) (found []string) {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range f.Sections {
		if s.Flags&0x00100000 == 0 {
			continue
		}
		data, err := s.Data()
		if err != nil || s.Type != elf.SHT_RELA || s.Flags&elf.SHF_ALLOC == 0 || f.Sections[s.Info].Name != ".text.patched" {
			t.Fatalf("%+v: %v", s.SectionHeader, err)
		}
		for r := range slices.Chunk(data, 24) {
			y := symbols[binary.LittleEndian.Uint64(r[8:])>>32-1]
			if y.Section != 0xff20 {
				t.Errorf("symbol %s is in section %v", y.Name, y.Section)
			}
			found = append(found, s.Name+" "+y.Name)
		}
	}
	return found
}

// A livepatch keeps what the kernel applies when its debug information is split off, or
// stripped. strip of binutils would spoil it, so it is never asked.
func TestSplitLivepatch(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	want := livepatchRelocations(t, livepatch(t))
	if len(want) != 1 || want[0] != ".klp.rela.vmlinux..text.patched .klp.sym.vmlinux.old,1" {
		t.Fatalf("the module has the relocations %q", want)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "livepatch.ko")
	put(t, path, livepatch(t))
	options := Options{
		DebugOptions: DebugOptions{
			SplitDebug:   filepath.Join(dir, "debug"),
			StripProgram: testmod.Program(t, "false", "coreutils"),
		},
	}
	before := snapshot(t, dir)
	if s, results := sign(t, signer, Source{Roots: []string{path}, DryRun: true}, options); s.Signed != 1 ||
		s.ByProgram != 0 {
		t.Errorf("dry: %+v, %v", s, results)
	}
	unchanged(t, "a dry run", dir, before, true)
	s, results := sign(t, signer, Source{Roots: []string{path}}, options)
	if s.Signed != 1 || s.ByProgram != 0 || s.DebugFiles != 1 || s.Debug != 1 || results[0].Debug <= 0 {
		t.Fatalf("%+v, %v", s, results)
	}
	signed := read(t, path)
	layers, err := module.Layers(bytes.NewReader(signed), int64(len(signed)))
	if err != nil || len(layers) != 1 || layers[0].Offset != results[0].Payload {
		t.Fatalf("%v, %v, the payload has %d bytes", layers, err, results[0].Payload)
	}
	if got := livepatchRelocations(t, signed); !slices.Equal(got, want) {
		t.Errorf("the kernel would apply %q, not %q", got, want)
	}
	f, err := elf.NewFile(bytes.NewReader(signed))
	if err != nil {
		t.Fatal(err)
	}
	if f.Section(".debug_info") != nil {
		t.Error("debug information is left")
	}
	debug := read(t, results[0].DebugFile)
	link, err := f.Section(".gnu_debuglink").Data()
	if err != nil || !bytes.HasPrefix(link, []byte("livepatch.ko.debug\x00")) ||
		binary.LittleEndian.Uint32(link[len(link)-4:]) != crc32.ChecksumIEEE(debug) {
		t.Errorf("link %q, %v", link, err)
	}
	out := string(testmod.Run(t, testmod.Program(t, "readelf", "binutils"), "-SWs", "--lint", path))
	if strings.Contains(out, "Warning") || strings.Contains(out, "Error") {
		t.Errorf("readelf says\n%s", out)
	}

	// A debugger finds lines through the link.
	if err := os.Rename(results[0].DebugFile, path+".debug"); err != nil {
		t.Fatal(err)
	}
	out = string(testmod.Run(t, testmod.Program(t, "gdb", "gdb"), "-nx", "-batch", "-ex", "info line patched", path))
	if !strings.Contains(out, "livepatch.c") {
		t.Errorf("gdb says %q", out)
	}

	// Again: what has no debug information keeps its link.
	if s, _ := sign(t, signer, Source{Roots: []string{path}}, options); s.Signed != 1 || s.DebugFiles != 0 ||
		s.Debug != 0 {
		t.Errorf("again: %+v", s)
	}
	if !bytes.Equal(read(t, path), signed) {
		t.Error("again: the module is another")
	}
	put(t, path, livepatch(t))
	if s := mustSign(
		t, signer, Source{Roots: []string{path}}, Options{DebugOptions: DebugOptions{StripDebug: true}},
	); s.Debug != 1 {
		t.Errorf("%+v", s)
	}
	if got := livepatchRelocations(t, read(t, path)); !slices.Equal(got, want) {
		t.Errorf("stripped: the kernel would apply %q, not %q", got, want)
	}
	// One that is odd besides, with a type of symbol that no module has, is refused, and
	// not left to strip.
	odd := livepatch(t)
	f, err = elf.NewFile(bytes.NewReader(odd))
	if err != nil {
		t.Fatal(err)
	}
	symtab := f.Section(".symtab")
	odd[symtab.Offset+symtab.Size-24+4] |= 0x0a
	for _, options := range []Options{
		{DebugOptions: DebugOptions{StripDebug: true}}, {DebugOptions: DebugOptions{SplitDebug: filepath.Join(dir, "debug")}},
	} {
		options.StripProgram = testmod.Program(t, "strip", "binutils")
		put(t, path, odd)
		if s, results := sign(t, signer, Source{Roots: []string{path}}, options); s.Failed != 1 ||
			!errors.Is(results[0].Err, elfstrip.ErrShape) ||
			!bytes.Equal(read(t, path), odd) {
			t.Errorf("%+v, %v", s, results)
		}
	}
}
