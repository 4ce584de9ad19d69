package module

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

func tagsOf(t *testing.T, b []byte) []string {
	t.Helper()
	tags, err := Modinfo(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return tags
}

func TestModinfo(t *testing.T) {
	want := []string{"license=GPL", "name=made", "vermagic=6.12.0 SMP "}
	for _, class := range []int{32, 64} {
		for _, order := range []testmod.ByteOrder{binary.LittleEndian, binary.BigEndian} {
			if got := tagsOf(t, testmod.ELFOf(class, order)); !slices.Equal(got, want) {
				t.Errorf("class %d, %v: %q", class, order, got)
			}
		}
	}
}

// TestModinfoOfProgram compares with what the program modinfo reads.
func TestModinfoOfProgram(t *testing.T) {
	program := testmod.Program(t, "modinfo", "kmod")
	compared := 0
	for _, path := range testmod.Testdata(t) {
		if !strings.HasSuffix(path, ".ko") {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, field := range []string{"license", "name", "vermagic"} {
			var b strings.Builder
			for _, tag := range tagsOf(t, data) {
				if value, ok := strings.CutPrefix(tag, field+"="); ok {
					b.WriteString(value + "\n")
				}
			}
			if want := string(testmod.Run(t, program, "-F", field, path)); b.String() != want {
				t.Errorf("%s: %s is %q, and modinfo says %q", path, field, b.String(), want)
			}
			compared++
		}
	}
	if compared < 12 {
		t.Errorf("%d fields compared", compared)
	}
}

func TestModinfoRefuses(t *testing.T) {
	second := bytes.Replace(testmod.ELF(), []byte("\x00.text\x00.modinfo"), []byte("\x00.modinfo\x00.text"), 1)
	// .text now begins at 1, where the name is .modinfo, and the section of that name in the
	// middle of the second word.
	at := bytes.Index(second, []byte(".text\x00.bss"))
	if at < 0 {
		t.Fatal("the names are not where they were")
	}
	twice := slices.Clone(second)
	table := binary.LittleEndian.Uint64(twice[40:])
	binary.LittleEndian.PutUint32(twice[table+2*elfSectionSize64:], 1)
	noNames := testmod.ELF()
	binary.LittleEndian.PutUint16(noNames[62:], 1)
	noBits := testmod.ELF()
	table = binary.LittleEndian.Uint64(noBits[40:])
	binary.LittleEndian.PutUint32(noBits[table+2*elfSectionSize64+4:], 8)
	for want, b := range map[string][]byte{
		"2 sections .modinfo":                    twice,
		"no names of sections":                   noNames,
		"section .modinfo without plain content": noBits,
		"cut off":                                testmod.ELF()[:200],
		"not an ELF file":                        []byte("no module, but some text that is long enough for a header of an ELF file"),
	} {
		tags, err := Modinfo(bytes.NewReader(b), int64(len(b)))
		if err == nil || !errors.Is(err, ErrNotModule) || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %q and %v", want, tags, err)
		}
	}
	none := bytes.Replace(testmod.ELF(), []byte(".modinfo\x00"), []byte(".modinfx\x00"), 1)
	if tags := tagsOf(t, none); tags != nil {
		t.Errorf("a module without .modinfo has %q", tags)
	}
}

func FuzzModinfo(f *testing.F) {
	f.Add(testmod.ELF())
	f.Add(testmod.ELFOf(32, binary.BigEndian))
	f.Fuzz(func(t *testing.T, b []byte) {
		tags, err := Modinfo(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for _, tag := range tags {
			if tag == "" || strings.Contains(tag, "\x00") || !bytes.Contains(b, []byte(tag)) {
				t.Errorf("the tag %q is not in the module", tag)
			}
		}
	})
}
