package elfstrip

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// editor changes a module in memory.
type editor struct {
	*File
	b []byte
}

// section returns the section with the given name.
func (e *editor) section(name string) *section {
	for i := range e.sections {
		if e.sections[i].label == name {
			return &e.sections[i]
		}
	}
	panic("no section " + name)
}

// symbol returns the bytes of a symbol in the file, and its number.
func (e *editor) symbol(name string) ([]byte, uint32) {
	t := e.section(".symtab")
	names := e.b[e.section(".strtab").off:]
	for i := range t.size / t.entsize {
		raw := e.b[t.off+i*t.entsize:][:t.entsize]
		s := names[e.order.Uint32(raw):]
		if string(s[:bytes.IndexByte(s, 0)]) == name {
			return raw, uint32(i)
		}
	}
	panic("no symbol " + name)
}

// relocation returns r_info of the first relocation of a section.
func (e *editor) relocation(name string) []byte { return e.b[e.section(name).off+8:][:8] }

// edit returns a changed copy of a module.
func edit(t testing.TB, b []byte, change func(e *editor)) []byte {
	t.Helper()
	b = slices.Clone(b)
	e := &editor{parse(t, b), b}
	change(e)
	for i := range e.sections {
		e.encode(e.b[e.sectionAt(i):], &e.sections[i])
	}
	return e.b
}

// edits are of amd64-6.12/hello. want is part of the error, or "" if the result equals
// that of binutils.
var edits = map[string]struct {
	change func(e *editor)
	want   string
	shape  bool
}{
	"relocations without an entry":       {change: func(e *editor) { e.section(".rela.data").size = 0 }},
	"debug relocations without an entry": {change: func(e *editor) { e.section(".rela.debug_line").size = 0 }},
	"relocations of another name": {change: func(e *editor) {
		e.section(".rela.data").name = e.section(".rela.text").name
	}},
	"relocations without flags": {change: func(e *editor) {
		e.section(".rela.data").flags, e.section(".rela.data").align = 0, 1
	}},
	"no alignment": {change: func(e *editor) {
		e.section(".modinfo").align, e.section(".comment").align = 0, 0
	}},
	"size of entries": {change: func(e *editor) {
		e.section(".BTF").entsize, e.section(".comment").entsize = 3, 0
	}},
	"addresses": {change: func(e *editor) { e.section(".text").addr = 0x20 }},
	"header": {change: func(e *editor) {
		copy(e.b[7:], "\x09\x02junkpad")
		e.b[24],
			e.b[49] = 0x77, 0x12
	}},
	"header with size of program headers": {change: func(e *editor) { e.b[32], e.b[54] = 64, 56 }},
	"data that is not there":              {change: func(e *editor) { e.section(".BTF").kind = elf.SHT_NOBITS }},
	"strings":                             {change: func(e *editor) { e.section(".BTF").kind = elf.SHT_STRTAB }},
	"processor's flags":                   {change: func(e *editor) { e.section(".BTF").flags |= 0x10000000 }},
	"debug information that is loaded": {change: func(e *editor) {
		e.section(".debug_frame").flags |= uint64(elf.SHF_ALLOC)
	}},
	"named section symbol": {change: func(e *editor) {
		e.order.PutUint32(e.b[e.section(".symtab").off+24*11:], 5)
	}},
	"section symbols with value": {change: func(e *editor) {
		e.b[e.section(".symtab").off+24*11+8], e.b[e.section(".symtab").off+24*11+16] = 4, 4
	}},
	"relocation without symbol": {change: func(e *editor) { clear(e.relocation(".rela.text")[4:]) }},
	"st_other":                  {change: func(e *editor) { s, _ := e.symbol("whom"); s[5] = 0x63 }},
	"symbol without name":       {change: func(e *editor) { s, _ := e.symbol("hello_exit"); clear(s[:4]) }},
	"absolute symbol": {change: func(e *editor) {
		s, _ := e.symbol("whom")
		s[6], s[7] = 0xf1, 0xff
		s[8] = 9
	}},
	"absolute zero": {change: func(e *editor) {
		s, n := e.symbol("hello_init")
		s[6], s[7] = 0xf1, 0xff
		clear(s[8:16])
		e.order.PutUint32(e.relocation(".rela.text")[4:], n)
	}},
	"absolute one": {change: func(e *editor) {
		s, n := e.symbol("hello_init")
		s[6], s[7] = 0xf1, 0xff
		s[8] = 1
		e.order.PutUint32(e.relocation(".rela.text")[4:], n)
	}},
	"common": {change: func(e *editor) {
		s, _ := e.symbol("__this_module")
		s[6], s[7] = 0xf2, 0xff
		s[8] = 16
	}},
	"build ID that is no note":    {change: func(e *editor) { e.section(".note.gnu.build-id").kind = elf.SHT_PROGBITS }},
	"value in the null symbol":    {change: func(e *editor) { e.b[e.section(".symtab").off+8] = 3 }},
	"padding":                     {change: func(e *editor) { s := e.section(".text"); e.b[s.off+s.size+0x26] = 0x99 }},
	"address that is not aligned": {change: func(e *editor) { e.section(".data").addr = 0x34 }},
	"array of functions":          {change: func(e *editor) { e.section(".orc_unwind").kind = elf.SHT_FINI_ARRAY }},
	"no BTF":                      {change: func(e *editor) { e.section(".BTF").size = 0 }},

	"program headers": {func(e *editor) { e.b[56] = 1 }, "program headers", true},
	"alignment of 3": {func(e *editor) { e.section(".modinfo").align = 3 }, ".modinfo) has an alignment of 0x3",
		true},
	"alignment of 2^40": {func(e *editor) { e.section(".modinfo").align = 1 << 40 }, ".modinfo) has an alignment",
		true},
	"two symbol tables": {func(e *editor) { e.section(".BTF").kind = elf.SHT_SYMTAB }, "both symbol tables", true},
	"inactive section":  {func(e *editor) { e.section(".BTF").kind = elf.SHT_NULL }, "inactive", true},
	"unknown type":      {func(e *editor) { e.section(".BTF").kind = 0x6fff4c03 }, "(.BTF) is of type", true},
	"dynamic": {func(e *editor) { e.section(".BTF").kind = elf.SHT_DYNAMIC },
		"(.BTF) is of type SHT_DYNAMIC", true},
	"unknown flags": {func(e *editor) { e.section(".BTF").flags = 0x100000 }, "(.BTF) has flags 0x100000", true},
	"compressed, not debug": {func(e *editor) { e.section(".BTF").flags = uint64(elf.SHF_COMPRESSED) },
		"(.BTF) has flags 0x800", true},
	"link":        {func(e *editor) { e.section(".BTF").link = 3 }, "link to section 3", true},
	"information": {func(e *editor) { e.section(".BTF").info = 3 }, "information 3", true},
	"livepatch":   {func(e *editor) { e.section(".rela.data").flags |= shfRelaLivepatch }, "livepatch", true},
	"loaded relocations": {func(e *editor) { e.section(".rela.data").flags |= uint64(elf.SHF_ALLOC) },
		"(.rela.data) has relocations and is allocated", true},
	"loaded symbols": {func(e *editor) { e.section(".symtab").flags |= uint64(elf.SHF_ALLOC) },
		"(.symtab) is a table that is allocated", true},
	"two relocation sections": {func(e *editor) { e.section(".rela.data").info = 1 }, "both have relocations", true},
	"relocations of zeros": {func(e *editor) { e.section(".data").kind = elf.SHT_NOBITS }, "which has no contents",
		true},
	"size of entries of 2^40": {func(e *editor) { e.section(".BTF").entsize = 1 << 40 }, "entries of 0x10000000000 bytes",
		true},
	"relocated symbols": {func(e *editor) { e.section(".rela.data").info = 57 }, "which is of type SHT_SYMTAB",
		true},
	"overlap":              {func(e *editor) { e.section(".modinfo").off -= 1 }, "overlap", true},
	"overlap with headers": {func(e *editor) { e.section(".modinfo").off = 16 }, "overlap", true},
	"needs debug information": {func(e *editor) { e.order.PutUint32(e.relocation(".rela.text")[4:], 27) },
		"(.debug_info) does not stay", true},
	"needs a file's name": {func(e *editor) { e.order.PutUint32(e.relocation(".rela.text")[4:], 37) },
		"names a file and is needed", true},
	"order of symbols": {func(e *editor) { s, _ := e.symbol("whom"); s[4] |= 0x10 }, "has binding STB_GLOBAL among",
		true},
	"binding":            {func(e *editor) { s, _ := e.symbol("hello_greet"); s[4] |= 0xf0 }, "of binding", true},
	"type":               {func(e *editor) { s, _ := e.symbol("hello_greet"); s[4] = 0x18 }, "of type", true},
	"local, not defined": {func(e *editor) { s, _ := e.symbol("whom"); s[6] = 0 }, "local and not defined", true},
	"symbol of the symbols": {func(e *editor) { s, _ := e.symbol("hello_greet"); s[6] = 57 },
		"in section 57, which is of type", true},
	"special section": {func(e *editor) { s, _ := e.symbol("hello_greet"); s[6], s[7] = 0x20, 0xff },
		"special section 0xff20", true},
	"ordered by debug": {func(e *editor) { e.section("__patchable_function_entries").link = 41 },
		"ordered by section 41 (.debug_info)", true},
	"group without a list": {func(e *editor) { e.section(".data").flags |= uint64(elf.SHF_GROUP) },
		"(.data) is marked as a group member, but no group lists the section", true},
	"relocations, no symbols": {func(e *editor) {
		e.section(".symtab").kind = elf.SHT_PROGBITS
		e.section(".symtab").link = 0
	}, "no symbol table", true},

	"not relocatable":         {func(e *editor) { e.b[16] = 3 }, "not a relocatable ELF object but ET_DYN", false},
	"class":                   {func(e *editor) { e.b[4] = 3 }, "at offset 0x4: unknown class 3", false},
	"byte order":              {func(e *editor) { e.b[5] = 0 }, "at offset 0x5: unknown byte order 0", false},
	"version":                 {func(e *editor) { e.b[6] = 2 }, "at offset 0x6: unknown version 2", false},
	"magic":                   {func(e *editor) { e.b[0] = 0 }, "not an ELF file", false},
	"section headers":         {func(e *editor) { e.b[46] = 1 }, "past the end of the file", false},
	"no section headers":      {func(e *editor) { clear(e.b[40:48]) }, "no section headers", false},
	"size of section headers": {func(e *editor) { e.b[58] = 63 }, "size of section headers 63", false},
	"number of sections":      {func(e *editor) { e.b[61] = 9 }, "more than the file holds", false},
	"number of the names":     {func(e *editor) { e.b[62] = 99 }, "section names in section 99", false},
	"names that are none": {func(e *editor) { e.b[62] = 1 }, "section names in a section of type SHT_PROGBITS",
		false},
	"first section": {func(e *editor) { e.sections[0].kind = elf.SHT_PROGBITS },
		"the first section is of type", false},
	"contents past the end": {func(e *editor) { e.section(".BTF").size = 1 << 20 }, "past the end of the file", false},
	"contents that wrap": {func(e *editor) { e.section(".BTF").off = 1<<64 - 8 }, "past the end of the file",
		false},
	"name past the end":   {func(e *editor) { e.section(".BTF").name = 0x10000 }, "name at 0x10000", false},
	"name without an end": {func(e *editor) { e.section(".shstrtab").size = 5 }, "name", false},
	"symbol size": {func(e *editor) { e.section(".symtab").entsize = 23 }, "entries of 23 instead of 24",
		false},
	"part of a symbol": {func(e *editor) { e.section(".symtab").size-- }, "symbol table of", false},
	"symbols' names": {func(e *editor) { e.section(".symtab").link = 1 }, "names of symbols in section 1",
		false},
	"local symbols": {func(e *editor) { e.section(".symtab").info = 9999 }, "9999 local symbols", false},
	"relocation size": {func(e *editor) { e.section(".rela.data").entsize = 16 }, "entries of 16 instead of 24",
		false},
	"part of a relocation": {func(e *editor) { e.section(".rela.data").size-- }, ".rela.data has", false},
	"relocations' symbols": {func(e *editor) { e.section(".rela.data").link = 3 }, "symbols from section 3", false},
	"relocations of nothing": {func(e *editor) { e.section(".rela.data").info = 999 }, "relocations of section 999",
		false},
	"relocation's symbol": {func(e *editor) { e.relocation(".rela.text")[6] = 1 }, "needs symbol 65", false},
	"symbol's name":       {func(e *editor) { s, _ := e.symbol("whom"); s[2] = 1 }, "name at 0x1", false},
	"symbol's section": {func(e *editor) { s, _ := e.symbol("whom"); s[6] = 99 }, "is in section 99 of 60",
		false},
	"symbol's extended section": {func(e *editor) { s, _ := e.symbol("whom"); s[6], s[7] = 0xff, 0xff },
		"in a missing table", false},
	"ordered by nothing": {func(e *editor) { e.section("__patchable_function_entries").link = 999 },
		"ordered by section 999", false},
}

func TestStripEdited(t *testing.T) {
	b := modules(t)["amd64-6.12/hello"]
	for name, c := range edits {
		t.Run(name, func(t *testing.T) {
			b := edit(t, b, c.change)
			if c.want == "" {
				checkStripped(t, program(t, "amd64-6.12/hello", "strip"), b)
				return
			}
			f, err := Parse(bytes.NewReader(b), int64(len(b)))
			var m *Image
			if err == nil {
				m, err = f.Strip(nil)
			}
			if err == nil || m != nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrShape) != c.shape {
				t.Errorf("error %v, image %v", err, m)
			}
		})
	}
}

// relayout rewrites a module with its section headers in another order: order holds the
// old index of each. Contents follow the order of the headers. With shared, the names
// of sections and symbols are in one table, as in LLVM's assembler.
func relayout(t testing.TB, b []byte, order []int, shared bool) []byte {
	t.Helper()
	f := parse(t, b)
	number := make([]uint32, len(order))
	for to, from := range order {
		number[from] = uint32(to)
	}
	e := &editor{f, slices.Clone(b)}
	tables := make([][]byte, len(f.sections))
	for i := range f.sections {
		s := &f.sections[i]
		tables[i] = e.b[s.off:][:s.length()]
		switch s.kind {
		case elf.SHT_GROUP:
			for at := 4; at < len(tables[i]); at += 4 {
				f.order.PutUint32(tables[i][at:], number[f.order.Uint32(tables[i][at:])])
			}
		case elf.SHT_SYMTAB:
			for at := f.shndxAt(); at < len(tables[i]); at += f.layout.symbol {
				if n := f.order.Uint16(tables[i][at:]); n < uint16(elf.SHN_LORESERVE) {
					f.order.PutUint16(tables[i][at:], uint16(number[n]))
				}
			}
		}
		s.link = number[s.link]
		if s.isRel() {
			s.info = number[s.info]
		}
	}
	shstrndx := number[f.shstrndx]
	out := slices.Clone(f.header)
	headers := make([]byte, len(order)*f.layout.section)
	strtab := e.index(".strtab")
	grown := uint32(0)
	if shared {
		grown = uint32(len(tables[strtab]))
		tables[strtab] = slices.Concat(tables[strtab], tables[f.shstrndx])
		f.sections[strtab].size = uint64(len(tables[strtab]))
		shstrndx = number[strtab]
	}
	for to, from := range order {
		s := f.sections[from]
		if s.align > 1 {
			out = append(out, make([]byte, alignUp(uint64(len(out)), s.align)-uint64(len(out)))...)
		}
		if from != 0 {
			s.off, s.name = uint64(len(out)), s.name+grown
		}
		out = append(out, tables[from]...)
		f.encode(headers[to*f.layout.section:], &s)
	}
	out = append(out, make([]byte, alignUp(uint64(len(out)), 8)-uint64(len(out)))...)
	f.putWord(out[f.shoffAt():], uint64(len(out)))
	f.order.PutUint16(out[f.tail()+10:], uint16(shstrndx))
	return append(out, headers...)
}

func (e *editor) index(name string) int {
	return slices.IndexFunc(e.sections, func(s section) bool { return s.label == name })
}

// orders are comparisons that sort the sections of a module, except the null section.
var orders = map[string]func(a, b *section) int{
	"as it is":          func(a, b *section) int { return 0 },
	"relocations last":  func(a, b *section) int { return compareBool(a.isRel(), b.isRel()) },
	"relocations first": func(a, b *section) int { return compareBool(b.isRel(), a.isRel()) },
	"tables first":      func(a, b *section) int { return compareBool(isTable(b), isTable(a)) },
	"groups last":       func(a, b *section) int { return compareBool(a.kind == elf.SHT_GROUP, b.kind == elf.SHT_GROUP) },
	"debug first":       func(a, b *section) int { return compareBool(b.isDebug(), a.isDebug()) },
	"reversed":          func(a, b *section) int { return -1 },
	"by name":           func(a, b *section) int { return strings.Compare(a.label, b.label) },
}

func isTable(s *section) bool { return s.kind == elf.SHT_SYMTAB || s.kind == elf.SHT_STRTAB }

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// TestStripOrders has sections in orders that binutils does not produce.
func TestStripOrders(t *testing.T) {
	testmod.Slow(t, "runs strip on every order of sections")
	inputs := modules(t)
	dir := sourceDir(t)
	inputs["amd64-6.12/groups"] = compile(t, dir, compiled["groups"])
	inputs["amd64-6.12/macros"] = compile(t, dir, compiled["macros in groups"])
	inputs["amd64-6.12/ordered"] = compile(t, dir, compiled["ordered"])
	for name, b := range inputs {
		for by, compare := range orders {
			for _, shared := range []bool{false, true} {
				t.Run(name+"/"+by, func(t *testing.T) {
					f := parse(t, b)
					order := make([]int, len(f.sections))
					for i := range order {
						order[i] = i
					}
					if by == "reversed" {
						slices.Reverse(order[1:])
					} else {
						slices.SortStableFunc(order[1:], func(i, j int) int { return compare(&f.sections[i], &f.sections[j]) })
					}
					checkStripped(t, program(t, name, "strip"), relayout(t, b, order, shared))
				})
			}
		}
	}
}

// TestShortInput has a file that is shorter than its stated size.
func TestShortInput(t *testing.T) {
	b := modules(t)["arm64/hello"]
	for n := int64(0); n < int64(len(b)); n += 7 {
		r := io.NewSectionReader(bytes.NewReader(b), 0, n)
		f, err := Parse(r, int64(len(b)))
		if err == nil {
			var m *Image
			if m, err = f.Strip(nil); err == nil {
				_, err = io.Copy(io.Discard, m.Reader())
			}
			if err == nil {
				continue // what is missing was debug information
			}
		}
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("of %d bytes %d: %v", len(b), n, err)
		}
	}
}

// careful is an input that counts reads, and fails on reads of some ranges.
type careful struct {
	io.ReaderAt
	forbidden []section
	read      uint64
}

func (c *careful) ReadAt(b []byte, off int64) (int, error) {
	c.read += uint64(len(b))
	for _, s := range c.forbidden {
		if uint64(off) < s.off+s.size && s.off < uint64(off)+uint64(len(b)) {
			return 0, errors.New("reading " + s.label)
		}
	}
	return c.ReaderAt.ReadAt(b, off)
}

// TestReadsNoDebugInformation checks that Strip reads no removed contents, and reads
// kept contents only when the output is read.
func TestReadsNoDebugInformation(t *testing.T) {
	for name, b := range modules(t) {
		c := &careful{ReaderAt: bytes.NewReader(b)}
		f, err := Parse(c, int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		kept := uint64(0)
		for _, s := range f.sections {
			if s.isDebug() || s.isRel() && f.sections[s.info].isDebug() {
				c.forbidden = append(c.forbidden, s)
			} else if !s.isRel() && s.kind != elf.SHT_SYMTAB && s.kind != elf.SHT_STRTAB {
				kept += s.length()
			}
		}
		m, err := f.Strip(nil)
		if err != nil {
			t.Fatal(err)
		}
		before := c.read
		if _, err := io.Copy(io.Discard, m.Reader()); err != nil {
			t.Fatal(err)
		}
		if c.read-before != kept || len(c.forbidden) < 2 || kept == 0 {
			t.Errorf("%s: the image read %d bytes to keep %d", name, c.read-before, kept)
		}
	}
}

// TestCutInput checks the error for a truncated file.
func TestCutInput(t *testing.T) {
	b := modules(t)["armhf/hello"]
	for n := range b {
		if _, err := Parse(bytes.NewReader(b[:n]), int64(n)); err == nil || errors.Is(err, ErrShape) {
			t.Fatalf("the first %d of %d bytes: %v", n, len(b), err)
		}
	}
}

// TestNamesThatOverlap has 200,000 symbols whose names are tails of one another.
// Without a limit, Strip would work for hours.
func TestNamesThatOverlap(t *testing.T) {
	const n = 200_000
	symbols := make([]byte, 24*n)
	for i := 1; i < n; i++ {
		binary.LittleEndian.PutUint32(symbols[24*i:], uint32(i))
		symbols[24*i+4], symbols[24*i+6] = 0x10, 1
	}
	names := append(bytes.Repeat([]byte("x"), 4*n), 0)
	names[0] = 0
	b := testmod.ELF()
	f := parse(t, b)
	sections := append(f.sections,
		section{kind: elf.SHT_SYMTAB, off: uint64(len(b)), size: uint64(len(symbols)), entsize: 24,
			link: uint32(len(f.sections) + 1), info: 1},
		section{kind: elf.SHT_STRTAB, off: uint64(len(b) + len(symbols)), size: uint64(len(names))})
	b = slices.Concat(b, symbols, names)
	b = append(b, make([]byte, alignUp(uint64(len(b)), 8)-uint64(len(b)))...)
	f.putWord(b[f.shoffAt():], uint64(len(b)))
	f.order.PutUint16(b[f.tail()+8:], uint16(len(sections)))
	for i := range sections {
		var header [64]byte
		f.encode(header[:], &sections[i])
		b = append(b, header[:]...)
	}
	if m, err := parse(t, b).Strip(nil); !errors.Is(err, ErrShape) || !strings.Contains(err.Error(), "overlap") ||
		m != nil {
		t.Errorf("%v, %v", m, err)
	}
}
