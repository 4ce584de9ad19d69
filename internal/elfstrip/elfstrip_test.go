package elfstrip

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// architectures are those of testdata/modules, with the binutils for each.
var architectures = map[string]struct{ prefix, pkg string }{
	"amd64-6.12": {"", "binutils"},
	"arm64":      {"aarch64-linux-gnu-", "binutils-aarch64-linux-gnu"},
	"armhf":      {"arm-linux-gnueabihf-", "binutils-arm-linux-gnueabihf"},
	"s390x":      {"s390x-linux-gnu-", "binutils-s390x-linux-gnu"},
}

// modules returns the uncompressed modules of testdata, by architecture and name, such
// as arm64/hello.
func modules(t testing.TB) map[string][]byte {
	t.Helper()
	found := make(map[string][]byte)
	for _, path := range testmod.Testdata(t) {
		if dir, name := filepath.Split(path); filepath.Base(dir) == "plain" {
			arch := filepath.Base(filepath.Dir(filepath.Clean(dir)))
			if _, ok := architectures[arch]; !ok {
				t.Fatalf("testdata has modules of %s, which this test does not know", arch)
			}
			found[arch+"/"+strings.TrimSuffix(name, ".ko")] = read(t, path)
		}
	}
	if len(found) < 2*len(architectures) {
		t.Fatalf("%d modules in testdata", len(found))
	}
	return found
}

func arch(name string) string { return strings.Split(name, "/")[0] }

// program returns the binutils program for the architecture of a module.
func program(t testing.TB, module, name string) string {
	t.Helper()
	a := architectures[arch(module)]
	return testmod.Program(t, a.prefix+name, a.pkg)
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parse(t testing.TB, b []byte) *File {
	t.Helper()
	f, err := Parse(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// bytesOf reads an image twice, the second time in odd steps, and checks its size.
func bytesOf(t testing.TB, m *Image) []byte {
	t.Helper()
	b, err := io.ReadAll(m.Reader())
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(b)) != m.Size() {
		t.Fatalf("an image of %d bytes says it has %d", len(b), m.Size())
	}
	var again bytes.Buffer
	if _, err := io.CopyBuffer(struct{ io.Writer }{&again}, struct{ io.Reader }{m.Reader()},
		make([]byte, 1021)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, again.Bytes()) {
		t.Fatal("two readers of one image differ")
	}
	return b
}

func strip(t testing.TB, b []byte, link *Link) []byte {
	t.Helper()
	m, err := parse(t, b).Strip(link)
	if err != nil {
		t.Fatal(err)
	}
	out := bytesOf(t, m)
	if m.Same() != bytes.Equal(out, b) {
		t.Fatalf("Same says %v", m.Same())
	}
	return out
}

// binutils runs strip --strip-debug.
func binutils(t testing.TB, strip string, b []byte) []byte {
	t.Helper()
	in := testmod.WriteFile(t, "in.ko", b)
	out := in + ".stripped"
	testmod.Run(t, strip, "--strip-debug", "-o", out, in)
	return read(t, out)
}

// checkStripped compares Strip with binutils.
func checkStripped(t *testing.T, program string, b []byte) []byte {
	t.Helper()
	got, want := strip(t, b, nil), binutils(t, program, b)
	if !bytes.Equal(got, want) {
		showDifference(t, got, want)
	}
	return got
}

func showDifference(t *testing.T, got, want []byte) {
	t.Helper()
	first := 0
	for first < min(len(got), len(want)) && got[first] == want[first] {
		first++
	}
	t.Errorf("%d bytes, binutils makes %d; they differ first at %#x", len(got), len(want), first)
	g, w := readelf(t, got), readelf(t, want)
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			t.Fatalf("readelf says of ours:\n%s\nof theirs:\n%s", g[i], w[i])
		}
	}
}

func readelf(t *testing.T, b []byte) []string {
	t.Helper()
	program := testmod.Program(t, "readelf", "binutils")
	out, _ := exec.Command(program, "-h", "-S", "-s", "-r", "-g", "-n", "-W",
		testmod.WriteFile(t, "readelf.ko", b)).CombinedOutput()
	return strings.Split(string(out), "\n")
}

func hasDebugSection(f *File) bool {
	return slices.ContainsFunc(f.sections, func(s section) bool {
		return strings.Contains(s.label, ".debug_") || strings.HasPrefix(s.label, ".zdebug_")
	})
}

func TestStripTestdata(t *testing.T) {
	for name, b := range modules(t) {
		t.Run(name, func(t *testing.T) {
			f := parse(t, b)
			if !f.HasDebugInfo() || !hasDebugSection(f) || len(f.DebugNames()) == 0 {
				t.Fatal("the module has no debug information to strip")
			}
			got := checkStripped(t, program(t, name, "strip"), b)
			stripped := parse(t, got)
			if stripped.HasDebugInfo() || hasDebugSection(stripped) || len(stripped.DebugNames()) != 0 {
				t.Errorf("debug information is left: %v", stripped.DebugNames())
			}
			before, err1 := f.BuildID()
			after, err2 := stripped.BuildID()
			if err1 != nil || err2 != nil || len(before) != 20 || !bytes.Equal(before, after) {
				t.Errorf("build ID %x (%v) became %x (%v)", before, err1, after, err2)
			}
			if again, err := stripped.Strip(nil); err != nil || !again.Same() {
				t.Errorf("stripping again: %v, or it changes something", err)
			}
		})
	}
}

// compiled are files that compilers and linkers make. %s is the output file.
var compiled = map[string]string{
	"plain":            "gcc -g -O1 -c a.c -o %s",
	"without debug":    "gcc -O1 -c a.c -o %s",
	"macros in groups": "gcc -g3 -O1 -c a.c -o %s",
	"compressed":       "gcc -g -gz=zlib -O1 -c a.c -o %s",
	"zdebug":           "gcc -g -gdwarf-4 -gz=zlib-gnu -c a.c -o %s",
	"dwarf 4":          "gcc -g -gdwarf-4 -O1 -c a.c -o %s",
	"split":            "gcc -g -gsplit-dwarf -c a.c -o %s",
	"sections":         "gcc -g3 -O2 -ffunction-sections -fdata-sections -c a.c -o %s",
	"fat LTO":          "gcc -g -O2 -flto -ffat-lto-objects -c a.c -o %s",
	"LTO":              "gcc -g -O2 -flto -c a.c -o %s",
	"patchable":        "gcc -g -fpatchable-function-entry=4,2 -c a.c -o %s",
	"32 bit":           "gcc -m32 -g -fno-pie -c b.c -o %s",
	"32 bit, linked":   "gcc -m32 -g -c b.c -o b32.o && ld -m elf_i386 -r -o %s b32.o",
	"large":            "gcc -g -mcmodel=large -c a.c -o %s",
	"retain":           "gcc -g -c retain.c -o %s",
	"empty":            "gcc -g -c empty.c -o %s",
	"empty, no debug":  "gcc -c empty.c -o %s",
	"no symbols":       "gcc -g -c a.c -o a1.o && strip -s -o %s a1.o",
	"linked":           "gcc -g -r -nostdlib -Wl,--build-id a.c b.c -o %s",
	"linked twice": "gcc -g3 -r -nostdlib a.c -o a2.o && gcc -c -g -gz b.c -o b2.o && " +
		"ld -r --build-id=sha1 -o %s a2.o b2.o",
	"linked, unmerged": "gcc -g3 -ffunction-sections -c a.c -o a3.o && gcc -c -g3 b.c -o b3.o && " +
		"ld -r --unique -o %s a3.o b3.o",
	"assembler":         "gcc -g -c start.s -o %s",
	"stabs":             "as -o %s stabs.s",
	"groups":            "as -o %s groups.s",
	"groups, linked":    "as -o g1.o groups.s && gcc -g -c b.c -o b4.o && ld -r -o %s g1.o b4.o",
	"odd":               "as -o %s odd.s",
	"odd, linked":       "as -o o1.o odd.s && ld -r -o %s o1.o",
	"ordered":           "as -o %s ordered.s",
	"tails":             "as -o %s tails.s",
	"sections unmerged": "gcc -g -O2 -ffunction-sections -fdata-sections -r -nostdlib -Wl,--unique a.c b.c -o %s",
	"debug link":        "gcc -g -r -nostdlib a.c -o l1.o && objcopy --add-gnu-debuglink=a.c l1.o %s",
	"extra sections": "gcc -g -r -nostdlib a.c -o e1.o && " +
		"objcopy --add-section .BTF=a.c --add-section .BTF_ids=b.c --set-section-flags .BTF_ids=alloc,readonly e1.o %s",
	"renamed": "gcc -g -r -nostdlib a.c -o r1.o && " +
		"objcopy --rename-section .text=.text.unlikely --prefix-symbols=x_ r1.o %s",
}

var sources = map[string]string{
	"empty.c": "",
	"retain.c": "__attribute__((retain, used)) int kfunc(void) { return 3; }\n" +
		"__attribute__((retain, used, section(\".mine\"))) int y = 3;\n",
	"a.c": `int printk(const char *, ...);
static int helper(int x) { return x * 3; }
__attribute__((section(".init.text"))) int init_module(void) { printk("hello %d\n", helper(4)); return 0; }
int __attribute__((noinline)) other(int a)
{
	for (int i = 0; i < a; i++)
		a += helper(i);
	return a;
}
static int (*fp)(int) = helper;
int weakling(void) __attribute__((weak));
int call_weak(void) { return weakling ? weakling() + fp(2) : 0; }
int common __attribute__((common));
static char buffer[100] __attribute__((aligned(64)));
char *get(void) { return buffer; }
`,
	"b.c": `static int v, w = 3;
extern int other(int);
int f(int i) { static int z; switch (i) { case 1: return v++; case 2: return w--; case 3: return z++;
	case 4: return other(3); case 5: return 77; } return 0; }
`,
	"start.s": ".text\n.globl start\nstart: nop\n call start\n",
	"stabs.s": `.text
foo: nop
 .stabs "x",100,0,0,foo
 .section .gdb_index,"",@progbits
 .long 1
 .section .debugfoo,"",@progbits
 .long foo
 .section .debug_alloc,"a",@progbits
 .long foo
 .section .line,"",@progbits
 .long foo
 .section .linefoo,"",@progbits
 .long foo
 .section .gnu.linkonce.wi.x,"",@progbits
 .long foo
 .section .gnu.debuglto_.debug_info,"e",@progbits
 .long foo
 .section .gnu.debuglto_.line,"e",@progbits
 .long foo
 .section .gnu.build.attributes,"",@note
 .long 4, 0, 0x100
 .asciz "GA$"
 .section debug_info,"",@progbits
 .long foo
`,
	"groups.s": `.section .text.a,"axG",@progbits,siga,comdat
a: nop
 call b
 .section .debug_x,"G",@progbits,siga,comdat
 .quad a
 .section .data.a,"awG",@progbits,siga,comdat
 .quad a
 .section .debug_y,"G",@progbits,siga,comdat
 .quad a
 .section .text.b,"axG",@progbits,sigb
b: call a
 .section .data.b,"awG",@progbits,sigb
 .quad b
 .section .text.c,"axG",@progbits,.text.c,comdat
 .globl c
c: call a
 .globl sigd
 .section .text.d,"axG",@progbits,sigd,comdat
sigd: call a
 .section .debug_only,"G",@progbits,sige,comdat
 .quad a
`,
	"odd.s": `.section .wonly,"w"
 .long 1
 .section .none,""
 .long 1
 .section .excl,"e"
 .long 1
 .section .ms,"MS",@progbits,1
 .string "a"
 .section .me,"aM",@progbits,8
 .quad 1
 .section .init_array,"aw"
 .quad foo
 .section .note.x,"",@note
 .long 1,2,3
 .section .stack,"aw",@nobits
 .skip 100
 .section .al,"aw",@nobits
 .p2align 12
 .skip 1
 .section .empty,"aw",@progbits
 .section .emptyx,"",@progbits
 .comm com,16,8
 .lcomm lcom,7
 .set absym, 0x1234
 .globl absym
 .set abszero, 0
 .globl abszero
 .weak wk
 .hidden hid
 .globl hid
hid: .quad wk, hid, com, 0, undef, abszero, absym
 .data
 .quad absym2, .data, .text
 .set absym2, 99
 .protected foo
 .type foo, @function
 .size foo, 4
 .globl foo
foo: nop
 .ident "x"
 .reloc 0, R_X86_64_NONE
 .section .debug_info
 .quad foo, .data, lcom
`,
	"ordered.s": `.text
foo: nop
 .section .lo,"ao",@progbits,.text
 .quad foo
 .section .lo0,"ao",@progbits,0
 .quad foo
 .section .debug_info
 .quad foo
`,
	"tails.s": `.globl a, ba, cba, xa, ya, abc, bc, c, dba, aa
a: ba: cba: xa: ya: abc: bc: c: dba: aa: nop
 .section .text.rela.text,"ax"
 nop
 .section text,"ax"
 .long a
 .section t,"ax"
 .section .debug_info
 .quad a
`,
}

// sourceDir writes the sources to a directory.
func sourceDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range sources {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// compile runs one of compiled and returns the output.
func compile(t testing.TB, dir, command string) []byte {
	t.Helper()
	testmod.Program(t, "gcc", "gcc")
	cmd := exec.Command("sh", "-ec", fmt.Sprintf(command, "out.o"))
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return read(t, filepath.Join(dir, "out.o"))
}

// TestStripHasNoSecrets checks that the program strip does not get the secrets of keys.
func TestStripHasNoSecrets(t *testing.T) {
	t.Setenv("KBUILD_SIGN_PIN", "secret")
	t.Setenv("VAULT_TOKEN", "secret")
	program := filepath.Join(t.TempDir(), "strip")
	if err := os.WriteFile(program, []byte("#!/bin/sh\nenv >\"$2\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := runStrip(t.Context(), program, strings.NewReader("module"), 6)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	environ, err := io.ReadAll(out)
	if err != nil || !bytes.Contains(environ, []byte("PATH=")) || bytes.Contains(environ, []byte("secret")) {
		t.Errorf("the environment of strip: %v, %q", err, environ)
	}
}

func TestStripCompiled(t *testing.T) {
	testmod.Slow(t, "it compiles modules of many shapes")
	program := testmod.Program(t, "strip", "binutils")
	dir := sourceDir(t)
	for name, command := range compiled {
		t.Run(name, func(t *testing.T) {
			b := compile(t, dir, command)
			if got := strip(t, checkStripped(t, program, b), nil); !bytes.Equal(got, strip(t, b, nil)) {
				t.Error("stripping again changes something")
			}
		})
	}
}

// manySections returns assembler source with n sections of code.
func manySections(n int) []byte {
	var b bytes.Buffer
	b.WriteString(".globl g\n.text\ng: nop\n.section .debug_info,\"\",@progbits\n.quad g\n")
	for i := range n {
		fmt.Fprintf(&b, ".section .text.f%d,\"ax\",@progbits\nf%d: nop\n", i, i)
		if i%1000 == 0 {
			fmt.Fprintf(&b, " .quad f%d\n", i/2)
		}
	}
	return b.Bytes()
}

// TestStripManySections exceeds the number of sections that fits 16 bits, in the input
// alone and in both files.
func TestStripManySections(t *testing.T) {
	testmod.Slow(t, "assembles and strips files of 65,000 sections")
	program, as := testmod.Program(t, "strip", "binutils"), testmod.Program(t, "as", "binutils")
	counts := []int{65204, 65205, 65207, 65208, 70000}
	var extended [2]int
	for _, n := range counts {
		source := testmod.WriteFile(t, "many.s", manySections(n))
		testmod.Run(t, as, "-o", source+".o", source)
		b := read(t, source+".o")
		got := checkStripped(t, program, b)
		for i, f := range []*File{parse(t, b), parse(t, got)} {
			if slices.ContainsFunc(f.sections, func(s section) bool { return s.kind == elf.SHT_SYMTAB_SHNDX }) {
				extended[i]++
			}
		}
	}
	if extended[0] <= extended[1] || extended[1] == 0 || extended[0] == len(counts) {
		t.Errorf("%d inputs and %d outputs have an extended symbol table: not both sides of the limit", extended[0],
			extended[1])
	}
}

// unsigned removes the appended signature of a module.
func unsigned(b []byte) []byte {
	const marker = "~Module signature appended~\n"
	if !bytes.HasSuffix(b, []byte(marker)) {
		return b
	}
	info := b[len(b)-len(marker)-4:]
	return b[:len(b)-len(marker)-12-int(info[0])<<24-int(info[1])<<16-int(info[2])<<8-int(info[3])]
}

// TestStripDebian checks that modules stripped by binutils do not change.
func TestStripDebian(t *testing.T) {
	var paths []string
	for _, k := range testmod.Kernels(t) {
		for _, path := range k.Modules {
			if strings.HasSuffix(path, ".ko") {
				paths = append(paths, path)
			}
		}
	}
	if len(paths) == 0 {
		t.Skip("every module is compressed")
	}
	for i := 0; i < len(paths); i += testmod.Rounds(1, 50) {
		b := unsigned(read(t, paths[i]))
		f := parse(t, b)
		m, err := f.Strip(nil)
		if err != nil {
			t.Fatalf("%s: %v", paths[i], err)
		}
		if f.HasDebugInfo() || !m.Same() || !bytes.Equal(bytesOf(t, m), b) {
			t.Errorf("%s: changed", paths[i])
		}
		if _, err := f.DebugFile(); !errors.Is(err, ErrNoDebug) {
			t.Errorf("%s: a debug file of a stripped module: %v", paths[i], err)
		}
	}
}
