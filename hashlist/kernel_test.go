package hashlist

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/testmod"
)

const release = "6.12.0-test"

// link makes a vmlinux with the hashes, by the real assembler and linker; without a
// section where there are none.
func link(t testing.TB, e *Embedded) string {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "hashes.S")
	text := "\t.section .rodata\n\t.asciz \"Linux version %s (\"\n\t.asciz \"Linux version " + release + " (user@host) #1\"\n\t.text\n\t.globl _start\n_start:\tnop\n"
	if e != nil {
		if err := e.WriteSource(source); err != nil {
			t.Fatal(err)
		}
		hashes, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		text += string(hashes)
	}
	if err := os.WriteFile(source, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	object, vmlinux := filepath.Join(dir, "hashes.o"), filepath.Join(dir, "vmlinux")
	testmod.Run(t, testmod.Program(t, "as", "binutils"), "-o", object, source)
	testmod.Run(t, testmod.Program(t, "ld", "binutils"), "-o", vmlinux, object)
	return vmlinux
}

func hashesOf(n int) []Hash {
	hashes := make([]Hash, n)
	for i := range hashes {
		hashes[i] = leaf(7, payload(i))
	}
	return hashes
}

// embeddings are what kernels may have.
func embeddings() map[string]*Embedded {
	root := NewTree(leaves(5)).Root()
	return map[string]*Embedded{
		"root": {Root: &root}, "list": {Hashes: hashesOf(3)}, "list of one": {Hashes: hashesOf(1)},
		"blank root": {Root: new(Root)}, "blank list": {Hashes: make([]Hash, 3)}, "empty list": {Hashes: []Hash{}},
	}
}

func TestOpenKernel(t *testing.T) {
	t.Parallel()
	for name, e := range embeddings() {
		vmlinux := link(t, e)
		if name == "empty list" { // the assembler leaves such a section out, or not
			continue
		}
		k, err := OpenKernel(vmlinux)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if k.Release != release || !k.Has(e) || k.Embedded.Blank() != strings.HasPrefix(name, "blank") ||
			k.Embedded.Format() != e.Format() {
			t.Errorf("%s: %+v, %v", name, k, k.Embedded)
		}
		// objcopy finds the same there.
		section := filepath.Join(t.TempDir(), "section")
		testmod.Run(
			t, testmod.Program(t, "objcopy", "binutils"), "-O", "binary", "--only-section="+SectionName, vmlinux,
			section,
		)
		if got, err := os.ReadFile(section); err != nil || !bytes.Equal(got, e.Append(nil, binary.LittleEndian)) {
			t.Errorf("%s: objcopy finds %x, %v", name, got, err)
		}
	}
	if _, err := OpenKernel(link(t, nil)); !errors.Is(err, ErrNoSection) {
		t.Errorf("without a section: %v", err)
	}
	for _, size := range []int{35, 37, 31, 33, 65} {
		if e, err := ParseSection(make([]byte, size), binary.LittleEndian); err == nil {
			t.Errorf("a section of %d bytes is %v", size, e)
		}
	}
}

func TestEmbed(t *testing.T) {
	t.Parallel()
	all := embeddings()
	for _, test := range []struct{ from, to string }{
		{"blank root", "root"}, {"root", "blank root"}, {"blank list", "list"},
	} {
		vmlinux := link(t, all[test.from])
		linked, err := os.ReadFile(vmlinux)
		if err != nil {
			t.Fatal(err)
		}
		then := time.Date(2024, 5, 6, 7, 8, 9, 123, time.UTC)
		if err := os.Chtimes(vmlinux, then, then); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(vmlinux, 0o751); err != nil {
			t.Fatal(err)
		}
		other := filepath.Join(filepath.Dir(vmlinux), "hard link")
		if err := os.Link(vmlinux, other); err != nil {
			t.Fatal(err)
		}
		alias := filepath.Join(t.TempDir(), "vmlinux")
		if err := os.Symlink(vmlinux, alias); err != nil {
			t.Fatal(err)
		}
		old, err := Embed(alias, all[test.to])
		if err != nil || !old.Has(all[test.from]) {
			t.Errorf("%+v: %v, %v", test, old, err)
			continue
		}
		// What objcopy would have made of it is the same, but for what it sorts anew.
		got, err := os.ReadFile(vmlinux)
		if err != nil {
			t.Fatal(err)
		}
		differ := 0
		for i := range got {
			if got[i] != linked[i] {
				differ++
			}
		}
		if size := len(all[test.to].Append(nil, binary.LittleEndian)); len(got) != len(linked) || differ == 0 ||
			differ > size {
			t.Errorf("%+v: %d bytes of %d differ", test, differ, size)
		}
		if k, err := OpenKernel(vmlinux); err != nil || !k.Has(all[test.to]) {
			t.Errorf("%+v: %v, %v", test, k, err)
		}
		info, err := os.Stat(vmlinux)
		if err != nil || !info.ModTime().Equal(then) || info.Mode().Perm() != 0o751 {
			t.Errorf("%+v: %v %v %v", test, info.ModTime(), info.Mode(), err)
		}
		if untouched, err := os.ReadFile(other); err != nil || !bytes.Equal(untouched, linked) {
			t.Errorf("%+v: another name of the file has changed (%v)", test, err)
		}
		if link, err := os.Readlink(alias); err != nil || link != vmlinux {
			t.Errorf("%+v: the link is now %q, %v", test, link, err)
		}
		// Once more there is nothing to do.
		if old, err := Embed(vmlinux, all[test.to]); err != nil || !old.Has(all[test.to]) {
			t.Errorf("%+v, again: %v", test, err)
		}
		if again, err := os.Stat(vmlinux); err != nil || !os.SameFile(info, again) {
			t.Errorf("%+v: written again for nothing (%v)", test, err)
		}
	}
}

func TestEmbedRefuses(t *testing.T) {
	t.Parallel()
	all := embeddings()
	for name, test := range map[string]struct {
		vmlinux *Embedded
		e       *Embedded
		want    string
	}{
		"no section":         {nil, all["root"], "CONFIG_MODULE_HASHES"},
		"a list into a tree": {all["blank root"], all["list"], "built for a Merkle tree"},
		"a root into a list": {all["blank list"], all["root"], "built for a list"},
		"too small": {
			all["blank list"], &Embedded{Hashes: hashesOf(4)}, "room for 3 hashes, but there are 4 modules",
		},
		"too large": {
			all["blank list"], &Embedded{Hashes: hashesOf(2)}, "room for 3 hashes, but there are 2 modules",
		},
	} {
		vmlinux := link(t, test.vmlinux)
		before, err := os.ReadFile(vmlinux)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Embed(vmlinux, test.e); err == nil || !strings.Contains(err.Error(), test.want) ||
			!strings.Contains(err.Error(), vmlinux) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		if after, err := os.ReadFile(vmlinux); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s: refused, and written all the same (%v)", name, err)
		}
		if left, err := os.ReadDir(filepath.Dir(vmlinux)); err != nil || len(left) != 3 {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
	}
	vmlinux := link(t, all["root"])
	testmod.Run(t, testmod.Program(t, "gzip", "gzip"), vmlinux)
	if _, err := Embed(vmlinux+".gz", all["blank root"]); err == nil || !strings.Contains(err.Error(), "use the vmlinux") {
		t.Errorf("compressed: %v", err)
	}
}

// The two forms of source make the same section.
func TestSource(t *testing.T) {
	t.Parallel()
	header := `
typedef unsigned char u8;
typedef unsigned int u32;
#define __section(s) __attribute__((section(s)))
struct module_hashes_root { u32 levels; u8 hash[32]; };
`
	for name, e := range embeddings() {
		dir := t.TempDir()
		c := filepath.Join(dir, "hashes.c")
		if err := e.WriteSource(c); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, "linux"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "linux/module_hashes.h"), []byte(header), 0o644); err != nil {
			t.Fatal(err)
		}
		object := filepath.Join(dir, "hashes.o")
		testmod.Run(t, testmod.Program(t, "gcc", "gcc"), "-Wall", "-Wno-main", "-Werror", "-I", dir, "-c", "-o", object, c)
		section := filepath.Join(dir, "section")
		testmod.Run(
			t, testmod.Program(t, "objcopy", "binutils"), "-O", "binary", "--only-section="+SectionName,
			"--set-section-flags", SectionName+"=alloc,load,contents", object, section,
		)
		got, err := os.ReadFile(section)
		if err != nil && name != "empty list" || !bytes.Equal(got, e.Append(nil, binary.LittleEndian)) {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
	if IsSource("hashes.h") || !IsSource("a/hashes.s") {
		t.Error("what is source is not known by its name")
	}
}

func FuzzParseSection(f *testing.F) {
	for _, e := range embeddings() {
		f.Add(e.Append(nil, binary.LittleEndian), false)
		f.Add(e.Append(nil, binary.BigEndian), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, big bool) {
		var order interface {
			binary.ByteOrder
			binary.AppendByteOrder
		} = binary.LittleEndian
		if big {
			order = binary.BigEndian
		}
		e, err := ParseSection(b, order)
		if err != nil {
			return
		}
		if again := e.Append(nil, order); !bytes.Equal(again, b) {
			t.Errorf("%x becomes %x", b, again)
		}
		_ = e.String()
	})
}
