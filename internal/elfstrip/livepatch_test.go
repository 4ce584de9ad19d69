package elfstrip

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// withLivepatch returns a livepatch made from amd64-6.12/hello: the relocations of
// .data become relocations of .text, which has others, for the kernel to apply.
func withLivepatch(t testing.TB) []byte {
	return edit(t, modules(t)["amd64-6.12/hello"], func(e *editor) {
		klp := e.section(".rela.data")
		klp.flags |= uint64(elf.SHF_ALLOC) | shfRelaLivepatch
		klp.info = e.section(".rela.text").info
		klp.name = e.section(".BTF").name // otherwise binutils uses the name
	})
}

// For a livepatch with other relocations for the same section, binutils writes the same
// except one flag, which it drops.
func TestLivepatch(t *testing.T) {
	b := withLivepatch(t)
	got := strip(t, b, nil)
	want := edit(t, binutils(t, testmod.Program(t, "strip", "binutils"), b), func(e *editor) {
		for i := range e.sections {
			if e.sections[i].isLivepatch() {
				e.sections[i].flags |= uint64(elf.SHF_INFO_LINK)
			}
		}
	})
	if !bytes.Equal(got, want) {
		showDifference(t, got, want)
	}
	checkStructure(t, got)
	checkLoadable(t, b, got)
	if !parse(t, got).isLivepatch() || parse(t, modules(t)["amd64-6.12/hello"]).isLivepatch() {
		t.Error("isLivepatch takes one for the other")
	}
	m, err := parse(t, b).DebugFile()
	if err != nil {
		t.Fatal(err)
	}
	checkDebugStructure(t, parse(t, b), bytesOf(t, m))

	// Symbols of the section SHN_LIVEPATCH stay as they are, and so do their
	// relocations.
	special := edit(t, b, func(e *editor) {
		s, n := e.symbol("_printk")
		binary.LittleEndian.PutUint16(s[6:], shnLivepatch)
		for i := range e.sections {
			if s := &e.sections[i]; s.isLivepatch() {
				e.order.PutUint32(e.b[s.off+12:], n)
			}
		}
	})
	out := strip(t, special, nil)
	checkStructure(t, out)
	checkLoadable(t, special, out)
}

// AddLink changes nothing else, and adds what objcopy adds.
func TestAddLink(t *testing.T) {
	readelf := testmod.Program(t, "readelf", "binutils")
	for name, b := range modules(t) {
		before := strip(t, b, nil)
		m, err := parse(t, before).AddLink(&Link{"hello.debug", 0x12345678})
		if err != nil {
			t.Fatal(err)
		}
		after := bytesOf(t, m)
		f := parse(t, after)
		e := &editor{f, after}
		link := e.section(linkSection)
		word := make([]byte, 4)
		f.order.PutUint32(word, 0x12345678)
		if got, want := after[link.off:][:link.size], append([]byte("hello.debug\x00"), word...); !bytes.Equal(got, want) {
			t.Errorf("%s: the link is %q, want %q", name, got, want)
		}
		for i, s := range parse(t, before).sections {
			now := f.sections[i]
			if uint32(i) == f.shstrndx {
				continue
			}
			if s != now || !bytes.Equal(before[s.off:][:s.length()], after[now.off:][:now.length()]) {
				t.Errorf("%s: section %d was %+v, and is %+v", name, i, s, now)
			}
		}
		path := testmod.WriteFile(t, "m.ko", after)
		if out := complaints(t, readelf, []string{path, path})[path]; out != "" {
			t.Errorf("%s: readelf says %s", name, out)
		}
		// AddLink replaces an existing link.
		m, err = parse(t, after).AddLink(&Link{"other.debug", crc32.ChecksumIEEE(nil)})
		if err != nil {
			t.Fatal(err)
		}
		again := bytesOf(t, m)
		if n := len(parse(t, again).sections); n != len(f.sections) || !bytes.Contains(again, []byte("other.debug\x00")) {
			t.Errorf("%s: linked again it has %d sections of %d", name, n, len(f.sections))
		}
	}
	if _, err := parse(t, testmod.ELF()).AddLink(&Link{Name: ""}); err == nil {
		t.Error("a link to no name")
	}
}
