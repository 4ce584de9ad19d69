package elfstrip

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// checkStructure checks an output independently of Strip: no two parts share bytes, no
// number points outside of its range, and all padding is zero.
func checkStructure(t testing.TB, b []byte) {
	t.Helper()
	f := parse(t, b)
	owner := make([]int, len(b))
	own := func(what int, off, size uint64) {
		t.Helper()
		for at := off; at < off+size; at++ {
			if owner[at] != 0 {
				t.Fatalf("sections %d and %d share offset %#x", owner[at]-2, what-2, at)
			}
			owner[at] = what
		}
	}
	own(1, 0, uint64(f.layout.header))
	own(2, f.shoff, uint64(len(f.sections)*f.layout.section))
	for i := range f.sections {
		s := &f.sections[i]
		own(i+2, s.off, s.length())
		if s.align > 1 && s.off%s.align != 0 && s.length() > 0 {
			t.Fatalf("section %d at %#x is not aligned to %#x", i, s.off, s.align)
		}
		if i > 0 && int(s.link) >= len(f.sections) {
			t.Fatalf("section %d links to section %d", i, s.link)
		}
		if s.has(elf.SHF_INFO_LINK) && int(s.info) >= len(f.sections) {
			t.Fatalf("section %d is about section %d", i, s.info)
		}
	}
	for at, what := range owner {
		if what == 0 && b[at] != 0 {
			t.Fatalf("byte %#x at %#x is of nothing", b[at], at)
		}
	}
	if f.shoff+uint64(len(f.sections)*f.layout.section) != uint64(len(b)) {
		t.Fatal("the section headers are not last")
	}
}

// checkLoadable compares what the kernel reads of a module before and after: contents
// of sections, and relocations with the names and values of their symbols.
func checkLoadable(t testing.TB, before, after []byte) {
	t.Helper()
	a, z := facts(parse(t, before)), facts(parse(t, after))
	for i := range min(len(a), len(z)) {
		if a[i] != z[i] {
			t.Fatalf("before: %s\nafter:  %s", a[i], z[i])
		}
	}
	if len(a) != len(z) {
		t.Fatalf("%d facts became %d:\n%s\n\n%s", len(a), len(z), strings.Join(a, "\n"), strings.Join(z, "\n"))
	}
}

// facts describes the sections other than debug information, their relocations, and the
// symbols defined in them, by names instead of numbers.
func facts(f *File) []string {
	var found []string
	var symtab, strtab, extension []byte
	for i := range f.sections {
		switch s := &f.sections[i]; s.kind {
		case elf.SHT_SYMTAB:
			symtab, _ = f.contents(s)
			strtab, _ = f.contents(&f.sections[s.link])
			strtab = append(strtab, 0) // an empty table has the empty name
		case elf.SHT_SYMTAB_SHNDX:
			extension, _ = f.contents(s)
		}
	}
	symbol := func(i int) (string, bool) {
		raw := symtab[i*f.layout.symbol:][:f.layout.symbol]
		n := uint32(f.order.Uint16(raw[f.shndxAt():]))
		where, stays := fmt.Sprintf("%#x", n), true
		if n == uint32(elf.SHN_XINDEX) {
			n = f.order.Uint32(extension[4*i:])
		}
		if n > 0 && int(n) < len(f.sections) && where != "0xfff1" && where != "0xfff2" {
			where, stays = f.sections[n].label, !f.sections[n].isDebug() && f.sections[n].kind != elf.SHT_GROUP
		}
		info := f.symbolInfo(raw)
		if kind := elf.ST_TYPE(info); kind == elf.STT_SECTION || kind == elf.STT_FILE {
			return fmt.Sprintf("section %s of %#x", where, f.symbolValue(raw)), false
		}
		name := strtab[f.order.Uint32(raw):]
		rest := slices.Clone(raw)
		clear(rest[:4])
		clear(rest[f.shndxAt():][:2])
		if where == "0xfff1" && f.symbolValue(raw) == 0 {
			return "zero", false
		}
		return fmt.Sprintf("%s in %s as %x", name[:bytes.IndexByte(name, 0)], where, rest), stays
	}
	for i := range f.sections {
		s := &f.sections[i]
		if i == 0 || s.isDebug() || s.kind == elf.SHT_SYMTAB || s.kind == elf.SHT_STRTAB || s.kind == elf.SHT_SYMTAB_SHNDX ||
			s.kind == elf.SHT_GROUP {
			continue
		}
		b, _ := f.contents(s)
		if !s.isRel() {
			entsize := s.entsize
			if strings.HasSuffix(s.kind.String(), "_ARRAY") {
				entsize = uint64(f.layout.word) // corrected
			}
			found = append(found, fmt.Sprintf("%s %v %#x %#x %#x %#x %x", s.label, s.kind, s.flags, s.addr, s.size, entsize, b))
			continue
		}
		of := &f.sections[s.info]
		if of.isDebug() {
			continue
		}
		r := relocations{data: b, entry: int(s.entsize), order: f.order, wide: f.class == elf.ELFCLASS64,
			low: f.machine == elf.EM_MIPS && f.class == elf.ELFCLASS64 && f.header[5] == 1}
		for at := 0; at < len(b); at += r.entry {
			name := "zero"
			if n := int(r.symbol(at)); n != 0 {
				name, _ = symbol(n)
			}
			rest := slices.Clone(b[at:][:r.entry])
			(&relocations{data: rest, entry: r.entry, order: r.order, wide: r.wide, low: r.low}).setSymbol(0, 0)
			found = append(found, fmt.Sprintf("relocation of %s %v: %x by %s", of.label, s.kind, rest, name))
		}
	}
	for i := 1; i < len(symtab)/f.layout.symbol; i++ {
		if name, stays := symbol(i); stays {
			found = append(found, "symbol "+name)
		}
	}
	slices.Sort(found)
	return found
}

// smallSeeds returns modules of all architectures and shapes.
func smallSeeds(t testing.TB) [][]byte {
	t.Helper()
	var seeds [][]byte
	found := modules(t)
	for name := range architectures {
		b := found[name+"/hello"]
		if b == nil {
			t.Fatalf("no module of %s", name)
		}
		// The contents of the debug information do not matter; without them the seeds
		// are smaller.
		seeds = append(seeds, cutDebug(t, b))
	}
	if _, err := exec.LookPath("as"); err == nil {
		dir := sourceDir(t)
		for _, name := range []string{"groups", "odd", "ordered", "stabs", "tails"} {
			seeds = append(seeds, compile(t, dir, "as -o %s "+name+".s"))
		}
	}
	return seeds
}

// cutDebug shortens the debug information of a module.
func cutDebug(t testing.TB, b []byte) []byte {
	t.Helper()
	f := parse(t, b)
	order := make([]int, len(f.sections))
	for i := range order {
		order[i] = i
	}
	b = edit(t, b, func(e *editor) {
		for i := range e.sections {
			if s := &e.sections[i]; s.isDebug() {
				s.size = min(s.size, 16)
			} else if s.isRel() && e.sections[s.info].isDebug() {
				s.size = min(s.size, s.entsize)
			}
		}
	})
	return relayout(t, b, order, false)
}

// fuzzEdited fuzzes modules: a seed with a few changes.
func fuzzEdited(f *testing.F, check func(t *testing.T, b []byte)) {
	seeds := smallSeeds(f)
	seeds = append(seeds, withLivepatch(f))
	for i, b := range seeds {
		f.Add(uint8(i), uint64(0), uint64(0), uint64(0), uint64(0))
		// The section headers are the most interesting part.
		at := parse(f, b).shoff
		f.Add(uint8(i), (at+4)<<16|7, (at+64)<<16|0x108, uint64(0), uint64(0))
	}
	f.Fuzz(func(t *testing.T, seed uint8, one, two, three, four uint64) {
		check(t, testmod.Edit(seeds[int(seed)%len(seeds)], one, two, three, four))
	})
}

func FuzzStrip(f *testing.F) {
	fuzzEdited(f, func(t *testing.T, b []byte) {
		file, err := Parse(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for _, link := range []*Link{nil, {"x.debug", 0x12345678}} {
			m, err := file.Strip(link)
			if err != nil {
				if m != nil {
					t.Fatalf("%v, and an image", err)
				}
				return
			}
			checkOutput(t, b, m, link)
		}
	})
}

// checkOutput checks the output of Strip for b.
func checkOutput(t testing.TB, b []byte, m *Image, link *Link) {
	t.Helper()
	out := bytesOf(t, m)
	if m.Same() != bytes.Equal(out, b) {
		t.Fatalf("Same says %v", m.Same())
	}
	if len(out) > 2*len(b)+maxAlign {
		t.Fatalf("%d bytes became %d", len(b), len(out))
	}
	checkStructure(t, out)
	if link == nil {
		checkLoadable(t, b, out)
	}
	stripped := parse(t, out)
	if names := stripped.DebugNames(); len(names) != 0 {
		t.Fatalf("left: %v", names)
	}
	again, err := stripped.Strip(link)
	if err != nil {
		t.Fatalf("stripping the output: %v", err)
	}
	if !again.Same() && !hasNoSymbols(stripped) {
		t.Fatal("stripping the output changes it")
	}
}

// hasNoSymbols reports whether a symbol table is empty. If no relocations are left
// either, stripping again removes it; binutils does the same.
func hasNoSymbols(f *File) bool {
	return slices.ContainsFunc(f.sections, func(s section) bool { return s.kind == elf.SHT_SYMTAB && s.size == s.entsize })
}

func FuzzDebugFile(f *testing.F) {
	fuzzEdited(f, func(t *testing.T, b []byte) {
		file, err := Parse(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		m, err := file.DebugFile()
		if err != nil {
			if m != nil {
				t.Fatalf("%v, and an image", err)
			}
			return
		}
		out := bytesOf(t, m)
		checkDebugStructure(t, file, out)
		// The headers may be wrong, but not because of the debug file.
		again, err := parse(t, out).DebugFile()
		if err != nil {
			t.Fatal(err)
		}
		if !again.Same() {
			t.Fatal("the debug file of the debug file is another")
		}
	})
}

func checkDebugStructure(t testing.TB, from *File, out []byte) {
	t.Helper()
	to := parse(t, out)
	if len(to.sections) != len(from.sections) {
		t.Fatalf("%d sections of %d", len(to.sections), len(from.sections))
	}
	for i := range to.sections {
		a, z := &from.sections[i], &to.sections[i]
		old, err1 := from.contents(a)
		now, err2 := to.contents(z)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		if z.kind == a.kind && !bytes.Equal(old, now) || z.kind != a.kind && z.kind != elf.SHT_NOBITS {
			t.Fatalf("section %d of type %v became %v, %d bytes became %d", i, a.kind, z.kind, len(old), len(now))
		}
	}
}

// TestMutated changes modules at random, mostly in the headers. It checks the output
// with readelf, and compares it with that of binutils.
func TestMutated(t *testing.T) {
	readelf, strip := testmod.Program(t, "readelf", "binutils"), testmod.Program(t, "strip", "binutils")
	r := rand.New(rand.NewPCG(1, 2))
	dir := t.TempDir()
	var inputs, outputs []string
	write := func(name string, b []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o666); err != nil {
			t.Fatal(err)
		}
		return path
	}
	refused, same, different := 0, 0, 0
	for i, seed := range slices.Repeat(smallSeeds(t), testmod.Rounds(80, 20)) {
		b := mutate(r, seed)
		f, err := Parse(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			refused++
			continue
		}
		in := write(fmt.Sprintf("%d.in", i), b)
		if m, err := f.DebugFile(); err == nil {
			inputs, outputs = append(inputs, in), append(outputs, write(fmt.Sprintf("%d.debug", i), bytesOf(t, m)))
		}
		m, err := f.Strip(nil)
		if err != nil {
			refused++
			continue
		}
		checkOutput(t, b, m, nil)
		out := bytesOf(t, m)
		inputs, outputs = append(inputs, in), append(outputs, write(fmt.Sprintf("%d.out", i), out))
		if f.machine != elf.EM_X86_64 {
			continue
		}
		// With absurd sizes, binutils may write that much.
		peer := filepath.Join(dir, "peer")
		if exec.Command("sh", "-c", `ulimit -f 20000; exec "$0" --strip-debug -o "$1" "$2"`, strip, peer, in).Run() != nil {
			continue
		}
		if bytes.Equal(read(t, peer), out) {
			same++
		} else {
			different++
		}
	}
	if least := testmod.Rounds(100, 25); len(outputs) < 2*least || refused < least || same < least {
		t.Errorf("%d outputs, %d refused, %d same as of binutils: not all sides", len(outputs), refused, same)
	}
	if different*50 > same {
		t.Errorf("%d outputs are those of binutils, %d are not", same, different)
	}
	before, after := complaints(t, readelf, inputs), complaints(t, readelf, outputs)
	for i := range inputs {
		if after[outputs[i]] != "" && before[inputs[i]] == "" {
			t.Errorf("readelf of %s: %s", outputs[i], after[outputs[i]])
		}
	}
}

// complaints runs readelf on many files and returns its errors and warnings by file.
func complaints(t *testing.T, readelf string, paths []string) map[string]string {
	t.Helper()
	out, _ := exec.Command(readelf, append([]string{"-h", "-S", "-s", "-r", "-g", "-n", "-W"},
		paths...)...).CombinedOutput()
	found := make(map[string]string)
	file, files := "", 0
	for line := range strings.Lines(string(out)) {
		if name, ok := strings.CutPrefix(line, "File: "); ok {
			file, files = strings.TrimSpace(name), files+1
		}
		if strings.HasPrefix(line, "readelf: ") {
			found[file] += line
		}
	}
	if files != len(paths) {
		t.Fatalf("readelf read %d of %d files", files, len(paths))
	}
	return found
}

// mutate changes a few bytes: of the file's header, of a section header, of the
// contents of a section, or anywhere. It leaves relocations alone: BFD keeps only the
// bits of their types that the machine can have, and Strip keeps all.
func mutate(r *rand.Rand, b []byte) []byte {
	b = slices.Clone(b)
	f, err := Parse(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		panic(err)
	}
	for range 1 + r.IntN(3) {
		s := &f.sections[1+r.IntN(len(f.sections)-1)]
		off, size := uint64(0), uint64(len(b))
		switch r.IntN(6) {
		case 0:
			size = uint64(f.layout.header)
		case 1, 2:
			off, size = f.shoff, uint64(len(b))-f.shoff
		case 3, 4:
			off, size = s.off, s.length()
		}
		if size == 0 || s.isRel() {
			continue
		}
		at := off + r.Uint64N(size)
		switch r.IntN(3) {
		case 0:
			b[at] ^= 1 << r.IntN(8)
		case 1:
			b[at] = byte(r.IntN(70))
		case 2:
			b[at]++
		}
	}
	return b
}

func BenchmarkStrip(b *testing.B) {
	found := modules(b)
	for _, name := range []string{"amd64-6.12/hello", "arm64/hello", "armhf/hello", "s390x/hello"} {
		benchmark(b, name, found[name])
	}
	if _, err := exec.LookPath("gcc"); err == nil {
		dir := sourceDir(b)
		benchmark(b, "many sections",
			compile(b, dir, "seq 20000 | awk '{print \"int f\"$1\"(int x){return x*\"$1\";}\"}' >many.c && "+
				"gcc -g -O1 -ffunction-sections -c many.c -o %s"))
	}
}

func benchmark(b *testing.B, name string, module []byte) {
	b.Run(name, func(b *testing.B) {
		b.SetBytes(int64(len(module)))
		b.ReportAllocs()
		buf := make([]byte, 64<<10)
		for b.Loop() {
			f, err := Parse(bytes.NewReader(module), int64(len(module)))
			if err != nil {
				b.Fatal(err)
			}
			m, err := f.Strip(nil)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, m.Reader(), buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}
