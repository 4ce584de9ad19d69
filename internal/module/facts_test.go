package module_test

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
)

// TestReadFacts compares with readelf, and with what debug/elf finds in these honest files.
func TestReadFacts(t *testing.T) {
	t.Parallel()
	readelf := testmod.Program(t, "readelf", "binutils")
	for _, dir := range []string{"amd64-6.12", "arm64", "armhf", "s390x"} {
		path := filepath.Join("../../testdata/modules", dir, "plain/counter.ko")
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		f, err := module.ReadFacts(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		file, err := elf.NewFile(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if f.Machine != file.Machine || f.Order != file.ByteOrder || f.Wide != (file.Class == elf.ELFCLASS64) ||
			f.Symbols != 1 || f.Struct != file.Section(".gnu.linkonce.this_module").Size ||
			f.Debug != (file.Section(".debug_info") != nil) {
			t.Errorf("%s: %+v", path, f)
		}
		if name, ok := f.Tag("name"); dir == "amd64-6.12" && (name != "counter" || !ok) {
			t.Errorf("%s: name %q", path, name)
		}
		notes := string(testmod.Run(t, readelf, "-n", path))
		if id := fmt.Sprintf("Build ID: %x", f.BuildID); len(f.BuildID) > 0 != strings.Contains(notes, "Build ID: ") ||
			len(f.BuildID) > 0 && !strings.Contains(notes, id) {
			t.Errorf("%s: %s, and readelf says %s", path, id, notes)
		}
		if end, err := module.End(bytes.NewReader(b), int64(len(b))); err != nil || end != int64(len(b)) {
			t.Errorf("%s: ends at %d of %d: %v", path, end, len(b), err)
		}
		more := append(slices.Clone(b), "more"...)
		if end, err := module.End(bytes.NewReader(more), int64(len(more))); err != nil || end != int64(len(b)) {
			t.Errorf("%s with more behind it: ends at %d of %d: %v", path, end, len(b), err)
		}
		versions := file.Section("__versions")
		if versions == nil {
			if f.Versioned {
				t.Errorf("%s: versions %v without a section", path, f.Versions)
			}
			continue
		}
		data, err := versions.Data()
		if err != nil {
			t.Fatal(err)
		}
		if !f.Versioned || len(f.Versions) != len(data)/64 || len(f.Versions) == 0 {
			t.Fatalf("%s: %d versions in %d bytes", path, len(f.Versions), len(data))
		}
		for i, v := range f.Versions {
			entry := data[i*64:]
			if v.CRC != uint32(binary.LittleEndian.Uint64(entry)) || !strings.HasPrefix(string(entry[8:]), v.Name+"\x00") {
				t.Errorf("%s: version %+v of %q", path, v, entry[:64])
			}
		}
	}
}

func TestJoin(t *testing.T) {
	t.Parallel()
	r := module.Join(strings.NewReader("module and more"), 6, []byte(" signature"))
	b, err := io.ReadAll(io.NewSectionReader(r, 0, 16))
	if err != nil || string(b) != "module signature" {
		t.Errorf("%q, %v", b, err)
	}
	for off, want := range map[int64]string{4: "le s", 6: " sig", 12: "ture", 14: "re"} {
		b := make([]byte, 4)
		if n, err := r.ReadAt(b, off); string(b[:n]) != want || (n < 4) != (err == io.EOF) {
			t.Errorf("at %d: %q, %v", off, b[:n], err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := module.At(ctx, r).ReadAt(make([]byte, 1), 0); err != context.Canceled {
		t.Errorf("after the end of the context: %v", err)
	}
}

// withSections is a little module with sections of these names and contents.
func withSections(named ...string) []byte {
	names, bodies := "\x00", []byte(nil)
	var table []byte
	header := func(name, kind, at, size int) {
		table = binary.LittleEndian.AppendUint32(table, uint32(name))
		table = binary.LittleEndian.AppendUint32(table, uint32(kind))
		for _, v := range []int{2, 0, at, size, 0, 1, 0} { // flags, address, offset, size, link and info, alignment, entry
			table = binary.LittleEndian.AppendUint64(table, uint64(v))
		}
	}
	header(0, int(elf.SHT_NULL), 0, 0)
	for i := 0; i < len(named); i += 2 {
		header(len(names), int(elf.SHT_PROGBITS), 64+len(bodies), len(named[i+1]))
		names, bodies = names+named[i]+"\x00", append(bodies, named[i+1]...)
	}
	const own = ".shstrtab\x00"
	header(len(names), int(elf.SHT_STRTAB), 64+len(bodies), len(names)+len(own))
	bodies = append(bodies, names+own...)
	b := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...)
	b = append(b, 1, 0, byte(elf.EM_X86_64), 0, 1, 0, 0, 0)
	for _, v := range []int{0, 0, 64 + len(bodies)} {
		b = binary.LittleEndian.AppendUint64(b, uint64(v))
	}
	b = binary.LittleEndian.AppendUint32(b, 0)
	sections := len(named)/2 + 2
	for _, v := range []int{64, 0, 0, 64, sections, sections - 1} {
		b = binary.LittleEndian.AppendUint16(b, uint16(v))
	}
	return append(append(b, bodies...), table...)
}

// noteOf is the note of a linker with a build id.
const noteOf = "\x04\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00GNU\x00\xab\xcd"

func TestMadeFacts(t *testing.T) {
	t.Parallel()
	read := func(b []byte) (*module.Facts, error) { return module.ReadFacts(bytes.NewReader(b), int64(len(b))) }
	// The sections of CONFIG_EXTENDED_MODVERSIONS win.
	f, err := read(withSections("__versions", strings.Repeat("x", 64),
		"__version_ext_crcs", "\x01\x00\x00\x00\x02\x00\x00\x00", "__version_ext_names", "one\x00two\x00",
		".note.gnu.build-id", noteOf, ".modinfo", "name=a\x00name=b\x00"))
	if err != nil {
		t.Fatal(err)
	}
	want := []module.SymbolVersion{{Name: "one", CRC: 1}, {Name: "two", CRC: 2}}
	name, _ := f.Tag("name")
	if !slices.Equal(f.Versions, want) || fmt.Sprintf("%x", f.BuildID) != "abcd" || name != "a" || !f.Versioned {
		t.Errorf("%+v", f)
	}
	if _, ok := f.Tag("nam"); ok {
		t.Error("a tag that is not there")
	}
	// No versions at all is not the same as no section.
	if f, err = read(withSections("__versions", "")); err != nil || !f.Versioned || len(f.Versions) > 0 {
		t.Errorf("an empty section: %+v, %v", f, err)
	}
	if f, err = read(withSections(".text", "")); err != nil || f.Versioned {
		t.Errorf("no section: %+v, %v", f, err)
	}
	for name, bad := range map[string]string{
		"a name that is cut off": noteOf[:14], "lengths that lie": "\x04\x00\x00\x00\xff\xff\xff\xff" + noteOf[8:],
		"another owner": strings.Replace(noteOf, "GNU", "XNU", 1), "nothing": "",
	} {
		if f, err := read(withSections(".note.gnu.build-id", bad)); err != nil || f.BuildID != nil {
			t.Errorf("a build id with %s: %+v, %v", name, f, err)
		}
	}
	if _, err := read(withSections("__versions", strings.Repeat("x", 5<<20))); !errors.Is(err, module.ErrNotModule) {
		t.Errorf("5 MB of versions: %v", err)
	}
}

func FuzzReadFacts(f *testing.F) {
	f.Add(withSections("__versions", strings.Repeat("x", 128), ".note.gnu.build-id", noteOf, ".modinfo", "name=a\x00"))
	f.Add(withSections("__version_ext_crcs", "\x01\x00\x00\x00", "__version_ext_names", "one\x00"))
	f.Add(testmod.ELFOf(32, binary.BigEndian))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		facts, err := module.ReadFacts(r, int64(len(b)))
		if err != nil {
			return
		}
		if len(facts.BuildID) > len(b) || len(facts.Versions)*4 > len(b) || len(facts.Tags) > len(b) {
			t.Errorf("more facts than bytes: %+v", facts)
		}
		end, err := module.End(r, int64(len(b)))
		if err != nil || end < 0 || end > int64(len(b)) {
			t.Errorf("the end of %d bytes is %d: %v", len(b), end, err)
		}
	})
}
