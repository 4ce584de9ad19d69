package module

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/testmod"
)

// signed returns a module with the given trailer.
func signed(payload, signature []byte, info Info) []byte {
	b := slices.Concat(payload, signature)
	return append(info.append(b), Marker...)
}

func split(b []byte) (Layer, error) { return Split(bytes.NewReader(b), int64(len(b))) }

func TestSplit(t *testing.T) {
	payload, sig := []byte("payload"), []byte("a signature")
	b := AppendSignature(slices.Clone(payload), TypePKCS7, sig)
	if want := signed(payload, sig, Info{IDType: 2, SigLen: uint32(len(sig))}); !bytes.Equal(b, want) {
		t.Fatalf("AppendSignature made %q, want %q", b, want)
	}
	layer, err := split(b)
	if err != nil {
		t.Fatal(err)
	}
	got, err := layer.Signature(bytes.NewReader(b))
	if err != nil || layer.Offset != int64(len(payload)) || !bytes.Equal(got, sig) {
		t.Fatalf("offset %d, signature %q, error %v", layer.Offset, got, err)
	}
}

// TestInfoBytes has the descriptor of a signature of 425 bytes, as sign-file writes it.
func TestInfoBytes(t *testing.T) {
	want := []byte{0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0xa9}
	got := Info{IDType: TypePKCS7, SigLen: 425}.append(nil)
	if !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
	if back := parseInfo([infoSize]byte(want)); back != (Info{IDType: TypePKCS7, SigLen: 425}) {
		t.Errorf("parsed as %+v", back)
	}
}

// check applies the rule of a kernel with signatures and Merkle trees.
func check(b []byte) (Layer, error) {
	return Check(bytes.NewReader(b), int64(len(b)), TypePKCS7, TypeMerkle)
}

func TestCheckRefuses(t *testing.T) {
	payload, sig := bytes.Repeat([]byte("x"), 100), bytes.Repeat([]byte("s"), 50)
	ok := Info{IDType: TypePKCS7, SigLen: 50}
	tests := []struct {
		name   string
		file   []byte
		err    error
		errno  syscall.Errno
		offset int64
	}{
		{"empty", nil, ErrNotSigned, 0, 0},
		{"no marker", payload, ErrNotSigned, 0, 0},
		{"marker alone", []byte(Marker), ErrNotSigned, 0, 0},
		{"marker without its line feed", signed(payload, sig, ok)[:190-1], ErrNotSigned, 0, 0},
		{"a byte behind the marker", append(signed(payload, sig, ok), 0), ErrNotSigned, 0, 0},
		{"one byte and the marker", []byte("x" + Marker), ErrNoInfo, syscall.EBADMSG, 1},
		{"a descriptor and nothing before it", signed(nil, nil, Info{IDType: 2}), ErrNoInfo, syscall.EBADMSG, 12},
		{"no payload", signed(nil, sig, ok), ErrSigLen, syscall.EBADMSG, 50 + 8},
		{"longer than the file", signed(payload, sig, Info{IDType: 2, SigLen: 151}), ErrSigLen, syscall.EBADMSG, 150 + 8},
		{"as long as a length can be", signed(payload, sig, Info{IDType: 2, SigLen: 0xffffffff}), ErrSigLen, syscall.EBADMSG,
			150 + 8},
		{"type 0", signed(payload, sig, Info{IDType: 0, SigLen: 50}), ErrIDType, syscall.ENOPKG, 150 + 2},
		{"type 1", signed(payload, sig, Info{IDType: 1, SigLen: 50}), ErrIDType, syscall.ENOPKG, 150 + 2},
		{"type 4", signed(payload, sig, Info{IDType: 4, SigLen: 50}), ErrIDType, syscall.ENOPKG, 150 + 2},
		{"type before fields", signed(payload, sig, Info{IDType: 4, Algo: 1, SigLen: 50}), ErrIDType, syscall.ENOPKG,
			150 + 2},
		{"length before type", signed(payload, sig, Info{IDType: 4, SigLen: 1000}), ErrSigLen, syscall.EBADMSG, 150 + 8},
		{"algo", signed(payload, sig, Info{IDType: 2, Algo: 1, SigLen: 50}), ErrInfoFields, syscall.EBADMSG, 150},
		{"hash", signed(payload, sig, Info{IDType: 2, Hash: 4, SigLen: 50}), ErrInfoFields, syscall.EBADMSG, 150},
		{"signer_len", signed(payload, sig, Info{IDType: 2, SignerLen: 1, SigLen: 50}), ErrInfoFields, syscall.EBADMSG, 150},
		{"key_id_len", signed(payload, sig, Info{IDType: 2, KeyIDLen: 1, SigLen: 50}), ErrInfoFields, syscall.EBADMSG, 150},
		{"padding", signed(payload, sig, Info{IDType: 2, Pad: [3]byte{0, 0, 1}, SigLen: 50}), ErrInfoFields, syscall.EBADMSG,
			150},
	}
	for _, test := range tests {
		_, err := check(test.file)
		if !errors.Is(err, test.err) {
			t.Errorf("%s: error %v, want %v", test.name, err, test.err)
			continue
		}
		var format *FormatError
		if errors.As(err, &format) != (test.errno != 0) {
			t.Errorf("%s: error is a %T", test.name, err)
		} else if format != nil && (format.Errno() != test.errno || format.Offset != test.offset) {
			t.Errorf("%s: errno %d at offset %d, want %d at %d", test.name, format.Errno(), format.Offset, test.errno,
				test.offset)
		}
	}

	// Check accepts an empty signature and a payload of one byte; other checks reject
	// them.
	for _, file := range [][]byte{signed(payload, nil, Info{IDType: 2}), signed([]byte("x"), sig, ok),
		signed(payload, sig, Info{IDType: 3, SigLen: 50})} {
		if _, err := check(file); err != nil {
			t.Errorf("%q: %v", file, err)
		}
	}
}

func TestLayers(t *testing.T) {
	file := []byte("payload")
	var want []Layer
	for i := range 3 {
		want = slices.Insert(want, 0, Layer{Info{IDType: TypePKCS7, SigLen: uint32(10 + i)}, int64(len(file))})
		file = AppendSignature(file, TypePKCS7, make([]byte, 10+i))
	}
	got, err := Layers(bytes.NewReader(file), int64(len(file)))
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}

	for range maxLayers {
		file = AppendSignature(file, TypePKCS7, nil)
	}
	if got, err = Layers(bytes.NewReader(file), int64(len(file))); err != ErrLayers || len(got) != maxLayers {
		t.Errorf("with too many: %d layers, %v", len(got), err)
	}

	inner := signed([]byte("payload"), []byte("sig"), Info{IDType: 2, SignerLen: 1, KeyIDLen: 6, SigLen: 3})
	file = AppendSignature(inner, TypePKCS7, make([]byte, 10))
	got, err = Layers(bytes.NewReader(file), int64(len(file)))
	if !errors.Is(err, ErrSigLen) || len(got) != 1 {
		t.Errorf("with a malformed inner layer: %v, %v", got, err)
	}
}

func TestSplitOfRealSigning(t *testing.T) {
	signFile := testmod.SignFile(t)
	key, cert := testmod.NewKey(t, "rsa:2048").Files(t)
	payload := testmod.ELF()
	path := testmod.WriteFile(t, "m.ko", payload)
	for i := range 2 {
		testmod.Run(t, signFile, "sha256", key, cert, path)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		layers, err := Layers(bytes.NewReader(b), int64(len(b)))
		if err != nil || len(layers) != i+1 || layers[i].Offset != int64(len(payload)) {
			t.Fatalf("signed %d times: %v, %v", i+1, layers, err)
		}
	}
}

func FuzzSplit(f *testing.F) {
	// Split does not look into a signature, and short inputs are fast.
	f.Add([]byte(Marker))
	f.Add(signed([]byte("p"), []byte("s"), Info{IDType: 2, SigLen: 1}))
	f.Add(signed([]byte("p"), []byte("s"), Info{IDType: 2, SigLen: 2}))
	f.Add(signed([]byte("payload"), []byte("signer key id signature"),
		Info{Algo: 1, Hash: 4, IDType: TypeX509, SignerLen: 7, KeyIDLen: 7, Pad: [3]byte{1, 2, 3}, SigLen: 9}))
	f.Add(signed([]byte("p"), []byte("signer"), Info{IDType: 9, SignerLen: 6, SigLen: 1}))
	f.Add(AppendSignature(AppendSignature([]byte("p"), TypePKCS7, []byte("inner")), TypeMerkle, []byte("outer")))
	f.Fuzz(func(t *testing.T, b []byte) {
		layers, err := Layers(bytes.NewReader(b), int64(len(b)))
		var format *FormatError
		if err != nil && err != ErrLayers && !errors.As(err, &format) {
			t.Fatalf("error of type %T: %v", err, err)
		}
		rest := b
		for i, layer := range layers {
			again := slices.Clone(rest[:layer.Offset])
			for _, part := range []func(io.ReaderAt) ([]byte, error){layer.Signer, layer.KeyID, layer.Signature} {
				p, err := part(bytes.NewReader(b))
				if err != nil {
					t.Fatal(err)
				}
				again = append(again, p...)
			}
			if again = append(layer.Info.append(again), Marker...); !bytes.Equal(again, rest) {
				t.Fatalf("layer %d joined again gives other bytes", i)
			}
			// If the kernel accepts the trailer, both find the same layout.
			if accepted, err := check(rest); err == nil && accepted != layer ||
				(err == nil) != (layer.Check(TypePKCS7, TypeMerkle) == nil) {
				t.Fatalf("layer %d: %+v, and the kernel's rule has %+v, %v", i, layer, accepted, err)
			}
			if _, err := layer.NumberSize(bytes.NewReader(b)); err != nil {
				t.Fatal(err)
			}
			rest = rest[:layer.Offset]
		}
	})
}

func TestCheckELF(t *testing.T) {
	for _, order := range []testmod.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		for _, class := range []int{32, 64} {
			b := testmod.ELFOf(class, order)
			if err := CheckELF(bytes.NewReader(b), int64(len(b))); err != nil {
				t.Errorf("%d bit %v: %v", class, order, err)
			}
			for n := range b {
				if err := CheckELF(bytes.NewReader(b[:n]), int64(n)); !errors.Is(err, ErrNotModule) {
					t.Errorf("%d bit %v cut off at %d of %d bytes: %v", class, order, n, len(b), err)
				}
			}
		}
	}

	spoil := func(at int, value ...byte) []byte {
		b := testmod.ELF()
		copy(b[at:], value)
		return b
	}
	tests := []struct {
		name string
		file []byte
	}{
		{"text", []byte("#!/bin/sh\nexit 0\n")},
		{"executable", spoil(16, 2, 0)},
		{"shared object", spoil(16, 3, 0)},
		{"class 3", spoil(4, 3)},
		{"byte order 0", spoil(5, 0)},
		{"section headers of 63 bytes", spoil(58, 63)},
		{"no section headers", spoil(40, 0, 0, 0, 0, 0, 0, 0, 0)},
		{"section headers far away", spoil(40, 0, 0, 0, 0, 0, 0, 0, 0x80)},
		{"section headers at the last address", spoil(40, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)},
		{"more section headers than fit", spoil(60, 0xff, 0xff)},
	}
	for _, test := range tests {
		if err := CheckELF(bytes.NewReader(test.file), int64(len(test.file))); !errors.Is(err, ErrNotModule) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// The number of sections may be in the first section header.
func TestCheckELFManySections(t *testing.T) {
	b := testmod.ELF()
	tableAt := binary.LittleEndian.Uint64(b[40:])
	count := binary.LittleEndian.Uint16(b[60:])
	binary.LittleEndian.PutUint16(b[60:], 0)
	binary.LittleEndian.PutUint64(b[tableAt+32:], uint64(count))
	if err := CheckELF(bytes.NewReader(b), int64(len(b))); err != nil {
		t.Error(err)
	}
	binary.LittleEndian.PutUint64(b[tableAt+32:], 1<<62)
	if err := CheckELF(bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrNotModule) {
		t.Errorf("with 2^62 sections: %v", err)
	}
}

func TestCheckELFOfRealModules(t *testing.T) {
	checked := 0
	for _, path := range testmod.Testdata(t) {
		m, err := Open(t.Context(), path, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckELF(m, m.Size); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		m.Close()
		checked++
	}
	if checked == 0 {
		t.Fatal("no modules")
	}
}

// The inputs are modules with a few changes.
func FuzzCheckELF(f *testing.F) {
	var modules [][]byte
	for _, order := range []testmod.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		modules = append(modules, testmod.ELFOf(32, order), testmod.ELFOf(64, order))
	}
	for i := range modules {
		f.Add(uint8(i), uint64(0), uint64(0), uint64(0))
		f.Add(uint8(i), uint64(40<<16|0x101), uint64(50<<16|0x201), uint64(100<<16|0x700))
	}
	f.Fuzz(func(t *testing.T, module uint8, one, two, three uint64) {
		b := testmod.Edit(modules[int(module)%len(modules)], one, two, three)
		if err := CheckELF(bytes.NewReader(b), int64(len(b))); err != nil && !errors.Is(err, ErrNotModule) {
			t.Fatalf("error of type %T: %v", err, err)
		}
	})
}

func TestOpenNames(t *testing.T) {
	elf := testmod.ELF()
	var gz bytes.Buffer
	encoder, err := compress.NewEncoder(compress.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := encoder.Compress(t.Context(), compress.Gzip, &gz, bytes.NewReader(elf), int64(len(elf))); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		data  []byte
		right string // the matching name; empty if the name is right
	}{
		{"a.ko", elf, ""},
		{"a.ko.gz", gz.Bytes(), ""},
		{"vmlinux", elf, ""},
		{"a.ko", gz.Bytes(), "a.ko.gz"},
		{"a.ko.xz", gz.Bytes(), "a.ko.gz"},
		{"a.ko.zst", elf, "a.ko"},
	}
	for _, test := range tests {
		path := testmod.WriteFile(t, test.name, test.data)
		m, err := Open(t.Context(), path, Limits{})
		var misnamed *MisnamedError
		if errors.As(err, &misnamed) != (test.right != "") || misnamed != nil && misnamed.Right != test.right {
			t.Errorf("%s: %v, want the hint %q", test.name, err, test.right)
		}
		if err != nil {
			continue
		}
		got, err := io.ReadAll(m.Payload(m.Size))
		if err != nil || !bytes.Equal(got, elf) {
			t.Errorf("%s: content differs (%v)", test.name, err)
		}
		m.Close()
	}
	if m, err := Open(t.Context(), testmod.WriteFile(t, "a.ko.xz", []byte("no such stream")), Limits{}); err == nil {
		m.Close()
		t.Error("opened text as xz")
	}
}

// Content that does not fit into the allowed memory goes to a file, and reads the same.
func TestOpenSpills(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 20000)
	encoder, err := compress.NewEncoder(compress.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []compress.Format{compress.Gzip, compress.XZ, compress.Zstd} {
		for _, memory := range []int64{1, 64<<10 - 1, int64(len(content)) - 1, int64(len(content)), int64(len(content)) + 1} {
			var b bytes.Buffer
			if err := encoder.Compress(t.Context(), format, &b, bytes.NewReader(content), int64(len(content))); err != nil {
				t.Fatal(err)
			}
			m, err := Open(t.Context(), testmod.WriteFile(t, "a.ko"+format.Suffix(), b.Bytes()), Limits{Memory: memory})
			if err != nil {
				t.Fatal(err)
			}
			_, inMemory := m.ReaderAt.(*bytes.Reader)
			if want := memory >= int64(len(content)); inMemory != want {
				t.Errorf("%v, limit %d of %d bytes: in memory: %v", format, memory, len(content), inMemory)
			}
			if got, err := io.ReadAll(m.Payload(m.Size)); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%v, limit %d: content differs (%v)", format, memory, err)
			}
			m.Close()
		}
		path := testmod.WriteFile(t, "a.ko"+format.Suffix(), nil)
		var b bytes.Buffer
		if err := encoder.Compress(t.Context(), format, &b, bytes.NewReader(content), int64(len(content))); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		if m, err := Open(t.Context(), path, Limits{MaxSize: int64(len(content)) - 1}); err == nil {
			m.Close()
			t.Errorf("%v: opened a module above the limit", format)
		}
	}
}

func TestUnchanged(t *testing.T) {
	changes := map[string]func(path string) error{
		"written to": func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteString("x")
			return err
		},
		"replaced": func(path string) error {
			if err := os.WriteFile(path+".new", []byte("x"), 0o644); err != nil {
				return err
			}
			return os.Rename(path+".new", path)
		},
		"removed":  os.Remove,
		"mode set": func(path string) error { return os.Chmod(path, 0o600) },
	}
	for name, change := range changes {
		path := testmod.WriteFile(t, "a.ko", testmod.ELF())
		dir, err := dirfd.Open(filepath.Dir(path))
		if err != nil {
			t.Fatal(err)
		}
		m, err := OpenIn(t.Context(), dir, "a.ko", Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Unchanged(dir, "a.ko"); err != nil {
			t.Errorf("before it was %s: %v", name, err)
		}
		if err := change(path); err != nil {
			t.Fatal(err)
		}
		if err := m.Unchanged(dir, "a.ko"); !errors.Is(err, ErrChanged) {
			t.Errorf("when it was %s: %v", name, err)
		}
		m.Close()
		dir.Close()
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	write := func(name string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"tree/b.ko", "tree/a/x.ko.xz", "tree/a/y.ko.gz", "tree/z.ko.zst", "tree/a/readme",
		"tree/a/x.ko.bak", "outside/o.ko", "tree/koko", "far/tree/a/c.ko"} {
		write(name)
	}
	for link, to := range map[string]string{"tree/link.ko": "../outside/o.ko", "tree/out": "../outside",
		"tree/in.ko": "b.ko", "root": "tree", "elsewhere": "far/tree", "file.ko": "outside/o.ko"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	tests := []struct {
		roots []string
		paths []string
		other []string
	}{
		{[]string{"tree"}, []string{"tree/a/x.ko.xz", "tree/a/y.ko.gz", "tree/b.ko", "tree/z.ko.zst"},
			[]string{"tree/a/readme", "tree/a/x.ko.bak", "tree/koko"}},
		{[]string{"tree/a/", "tree/b.ko", "tree/a"}, []string{"tree/a/x.ko.xz", "tree/a/y.ko.gz", "tree/b.ko"},
			[]string{"tree/a/readme", "tree/a/x.ko.bak", "tree/a/readme", "tree/a/x.ko.bak"}},
		{[]string{"root"}, []string{"root/a/x.ko.xz", "root/a/y.ko.gz", "root/b.ko", "root/z.ko.zst"},
			[]string{"root/a/readme", "root/a/x.ko.bak", "root/koko"}},
		{[]string{"./tree/a"}, []string{"tree/a/x.ko.xz", "tree/a/y.ko.gz"},
			[]string{"tree/a/readme", "tree/a/x.ko.bak"}},
		{[]string{"tree/.//a/./"}, []string{"tree/a/x.ko.xz", "tree/a/y.ko.gz"},
			[]string{"tree/a/readme", "tree/a/x.ko.bak"}},
		{[]string{"outside/../tree/a"}, []string{"tree/a/x.ko.xz", "tree/a/y.ko.gz"},
			[]string{"tree/a/readme", "tree/a/x.ko.bak"}},
		{[]string{"elsewhere/../tree/a"}, []string{"far/tree/a/c.ko"}, nil}, // not tree/a
		{[]string{"file.ko"}, []string{"outside/o.ko"}, nil},
		{[]string{"tree/koko"}, []string{"tree/koko"}, nil},
	}
	for _, test := range tests {
		var other, paths []string
		found, err := Find(test.roots, func(e Entry, kind fs.FileMode) {
			if kind.IsRegular() {
				other = append(other, e.Path)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range found {
			if e.Err != nil || e.Info == nil || e.Info.Size() == 0 {
				t.Errorf("%s: %v, %v", e.Path, e.Info, e.Err)
			}
			paths = append(paths, e.Path)
		}
		if !slices.Equal(paths, test.paths) || !slices.Equal(other, test.other) {
			t.Errorf("%q: found %q, others %q; want %q, %q", test.roots, paths, other, test.paths, test.other)
		}
	}
	if found, err := Find([]string{"tree", "nowhere"}, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a root that is not there: %v, %v", found, err)
	}
}

func TestFindNames(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"tree/b.ko", "tree/sub/a.ko.xz", "tree/sub/a.ko.bak", "tree/c.ko", "tree/c.ko.gz",
		"tree/c.ko.zst"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(name), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("tree", filepath.Join(dir, "root")); err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Join(dir, "tree", "sub"))
	for _, root := range []string{"..", "../../root/", "../sub/../", "../.", dir + "/root", filepath.Join(dir, "tree")} {
		found, err := FindNames(root, []string{"sub/a.ko", "c.ko", "./b.ko", "b.ko"})
		if err != nil {
			t.Errorf("%s: %v", root, err)
			continue
		}
		for i, want := range []string{"sub/a.ko.xz", "c.ko", "b.ko"} {
			if e := found[i]; len(found) != 3 || e.Rel != want || e.Path != filepath.Join(root, want) || e.Root ||
				e.Err != nil || e.Info.Size() != int64(len("tree/"+want)) {
				t.Errorf("%s: %+v", root, e)
			}
		}
	}
	if found, err := FindNames(".", []string{"a.ko"}); err != nil || len(found) != 1 || found[0].Path != "a.ko.xz" {
		t.Errorf("%+v, %v", found, err)
	}
}
