package explain

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
)

// Kernels before 6.12 check in another order.
func TestELFOrder(t *testing.T) {
	hello := real(t, "hello")
	sections := int(binary.LittleEndian.Uint64(hello[40:]))
	both := poke(poke(hello, 62, 0xf0, 0xff), sections, 0, 0, 0, 0, 1) // the type of section 0
	for v, want := range map[version]string{
		{6, 1}: "Invalid ELF section name index", {6, 12}: "ELF Spec violation: section 0",
		{}: "ELF Spec violation: section 0",
	} {
		f := &elfFile{ReaderAt: bytes.NewReader(both), size: uint64(len(both)), wide: true, order: binary.LittleEndian}
		if line, err := f.check(v); err != nil || !strings.HasPrefix(line, want) {
			t.Errorf("%v: %q, %v", v, line, err)
		}
	}
}

// The kernel has no limit of its own for .modinfo: there is no verdict.
func TestLargeModinfo(t *testing.T) {
	key := testmod.NewKey(t, "ecdsa:p256")
	dir := t.TempDir()
	path, tags := filepath.Join(dir, "m.ko"), filepath.Join(dir, "tags")
	write(t, path, real(t, "hello"), 0o644)
	write(t, tags, bytes.Repeat([]byte("alias=x\x00"), 1<<18), 0o644)
	testmod.Run(t, testmod.Program(t, "objcopy", "binutils"), "--update-section", ".modinfo="+tags, path)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	k, err := Open(t.Context(), source(t, key))
	if err != nil {
		t.Fatal(err)
	}
	if r := k.Module(t.Context(), path); r.Verdict != Refused || len(r.Unchecked) != 1 || r.Causes[0].ID != NotSigned {
		t.Errorf("not signed: %s, %+v, %q", r.Verdict, r.Causes, r.Unchecked)
	}
	r := k.Module(t.Context(), testmod.WriteFile(t, "m.ko", sign(t, key, b)))
	if r.Verdict != Unreadable || r.Err == nil {
		t.Errorf("signed: %s, %+v", r.Verdict, r.Causes)
	}
}

func FuzzELF(f *testing.F) {
	small := testmod.ELF() // large ones take the fuzzer long
	f.Add(small, true)
	f.Add(small, false)
	f.Add(small[:len(small)/2], true)
	f.Add(poke(small, 62, 0xf0, 0xff), true)
	f.Fuzz(func(t *testing.T, b []byte, old bool) {
		file := &elfFile{ReaderAt: bytes.NewReader(b), size: uint64(len(b)), wide: len(b) > 4 && b[4] == 2,
			order: binary.LittleEndian}
		if len(b) > 5 && b[5] == 2 {
			file.order = binary.BigEndian
		}
		v := version{7, 2}
		if old {
			v = version{6, 1}
		}
		line, err := file.check(v)
		if err != nil {
			t.Fatal(err)
		}
		// What the kernel's checks pass lies within the file.
		if _, err := module.ReadFacts(bytes.NewReader(b), int64(len(b))); line == "" && err != nil &&
			strings.Contains(err.Error(), "cut off") && len(file.sections) > 0 {
			t.Errorf("passed, and %v", err)
		}
	})
}
