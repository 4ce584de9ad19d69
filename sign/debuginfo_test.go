package sign

import (
	"bytes"
	"crypto"
	"debug/elf"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/elfstrip"
	"github.com/modsign/modsign/internal/testmod"
)

// debugModules are modules of our own with debug information, for amd64.
func debugModules(t testing.TB) []string {
	t.Helper()
	var found []string
	for _, path := range testmod.Testdata(t) {
		if strings.Contains(path, "amd64") && strings.HasSuffix(path, ".ko") {
			found = append(found, path)
		}
	}
	if len(found) < 3 {
		t.Fatalf("modules for amd64: %q", found)
	}
	return found
}

// stripped is what binutils makes of a module.
func stripped(t testing.TB, path string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "stripped.ko")
	if err := execute(testmod.Program(t, "strip", "binutils"), "--strip-debug", "-o", out, path); err != nil {
		t.Fatal(err)
	}
	return read(t, out)
}

// Whatever form a module has, it is stripped inside, and what is signed is what
// strip would have left.
func TestStripDebug(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	dir := t.TempDir()
	want := make(map[string][]byte)
	for _, path := range debugModules(t) {
		for _, f := range allFormats {
			name := strings.TrimSuffix(filepath.Base(path), ".ko") + "-" + f.String() + ".ko"
			// An old signature goes first.
			put(t, filepath.Join(dir, name+f.Suffix()), compressed(t, f, signed(t, signer, read(t, path))))
			want[name] = signed(t, signer, stripped(t, path))
		}
	}
	before := snapshot(t, dir)
	if s, _ := sign(
		t, signer, Source{Roots: []string{dir}, DryRun: true}, Options{DebugOptions: DebugOptions{StripDebug: true}},
	); s.Signed != len(want) || s.Debug != len(want) {
		t.Errorf("dry: %+v", s)
	}
	unchanged(t, "a dry run", dir, before, true)
	s := mustSign(
		t,
		signer,
		Source{Roots: []string{dir}, Compress: compress.None, Recompress: true},
		Options{DebugOptions: DebugOptions{StripDebug: true}},
	)
	if s.Debug != len(want) || s.DebugBytes <= 0 || s.Replaced != len(want) || s.ByProgram != 0 || s.DebugFiles != 0 {
		t.Errorf("%+v", s)
	}
	for name, data := range want {
		if !bytes.Equal(read(t, filepath.Join(dir, name)), data) {
			t.Errorf("%s is not what strip and sign-file make", name)
		}
	}
	if s := mustSign(
		t, signer, Source{Roots: []string{dir}}, Options{DebugOptions: DebugOptions{StripDebug: true}},
	); s.Debug != 0 ||
		s.Signed != len(want) {
		t.Errorf("again: %+v", s)
	}
	// Without a key, what is as it should be stays the file that it is.
	tree := openTree(t, Source{Roots: []string{dir}})
	if s, err := tree.StripDebug(t.Context(), StripOptions{DebugOptions: DebugOptions{StripDebug: true}}); err != nil ||
		s.Stripped != len(want) ||
		s.Debug != 0 {
		t.Errorf("signatures off: %+v, %v", s, err)
	}
	before = snapshot(t, dir)
	if s, err := tree.StripDebug(t.Context(), StripOptions{DebugOptions: DebugOptions{StripDebug: true}}); err != nil ||
		s.Skipped != len(want) {
		t.Errorf("nothing to strip: %+v, %v", s, err)
	}
	unchanged(t, "nothing to strip", dir, before, true)
}

// threaded is an object that no module is like: it has thread-local storage.
func threaded(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	source, object := filepath.Join(dir, "threaded.c"), filepath.Join(dir, "threaded.ko")
	put(t, source, []byte("__thread int counter;\nint count(void) { return ++counter; }\n"))
	if err := execute(testmod.Program(t, "gcc", "gcc"), "-g", "-c", "-o", object, source); err != nil {
		t.Fatal(err)
	}
	return object
}

// What is not stripped in process is left to the program strip, and counted.
func TestStripProgram(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	dir, odd := t.TempDir(), threaded(t)
	put(t, filepath.Join(dir, "odd.ko"), read(t, odd))
	put(t, filepath.Join(dir, "usual.ko"), read(t, debugModules(t)[0]))
	before := snapshot(t, dir)
	delete(before, "usual.ko")
	s, results := sign(t, signer, Source{Roots: []string{dir}}, Options{DebugOptions: DebugOptions{StripDebug: true}})
	if s.Signed != 1 || s.Failed != 1 || !errors.Is(results[0].Err, elfstrip.ErrShape) {
		t.Errorf("without the program: %+v, %v", s, results[0].Err)
	}
	if !bytes.Equal(read(t, filepath.Join(dir, "odd.ko")), read(t, odd)) {
		t.Error("what failed has changed")
	}
	s, results = sign(
		t,
		signer,
		Source{Roots: []string{dir}},
		Options{DebugOptions: DebugOptions{StripDebug: true, StripProgram: testmod.Program(t, "strip", "binutils")}},
	)
	if s.Signed != 2 || s.ByProgram != 1 || !results[0].ByProgram || results[1].ByProgram {
		t.Errorf("%+v", s)
	}
	if !bytes.Equal(read(t, filepath.Join(dir, "odd.ko")), signed(t, signer, stripped(t, odd))) {
		t.Error("odd.ko is not what strip and sign-file make")
	}
	// A program that fails, and one that leaves no module.
	put(t, filepath.Join(dir, "odd.ko"), read(t, odd))
	for program, want := range map[string]string{"false": "exit status 1", "true": ""} {
		s, results := sign(
			t,
			signer,
			Source{Roots: []string{dir}},
			Options{DebugOptions: DebugOptions{StripDebug: true, StripProgram: testmod.Program(t, program, "coreutils")}},
		)
		if want != "" && (s.Failed != 1 || !strings.Contains(results[0].Err.Error(), want)) {
			t.Errorf("%s: %+v, %v", program, s, results[0].Err)
		}
	}
	// Its debug file is made here all the same.
	put(t, filepath.Join(dir, "odd.ko"), read(t, odd))
	s, results = sign(
		t,
		signer,
		Source{Roots: []string{dir}},
		Options{DebugOptions: DebugOptions{SplitDebug: t.TempDir(), StripProgram: testmod.Program(t, "strip", "binutils")}},
	)
	if s.Signed != 2 || s.ByProgram != 1 || s.DebugFiles != 1 || results[0].DebugFile == "" {
		t.Fatalf("split: %+v, %v", s, results[0].Err)
	}
	f, err := elf.NewFile(bytes.NewReader(read(t, filepath.Join(dir, "odd.ko"))))
	if err != nil {
		t.Fatal(err)
	}
	link, err := f.Section(".gnu_debuglink").Data()
	if err != nil || !bytes.HasPrefix(link, []byte("odd.ko.debug\x00")) ||
		f.ByteOrder.Uint32(link[len(link)-4:]) != crc32.ChecksumIEEE(read(t, results[0].DebugFile)) {
		t.Errorf("link %q, %v", link, err)
	}
	readelf := testmod.Program(t, "readelf", "binutils")
	out := string(testmod.Run(t, readelf, "-SWs", "--lint", filepath.Join(dir, "odd.ko")))
	if strings.Contains(out, "Warning") || strings.Contains(out, "Error") {
		t.Errorf("readelf says\n%s", out)
	}
}

// Debug files lie where their modules do, have the modules' times, and are found by
// build ID.
func TestSplitDebug(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	top := t.TempDir()
	debug := filepath.Join(top, "usr/lib/debug")
	modlib := filepath.Join(top, "lib/modules/6.12.0")
	module := read(t, debugModules(t)[0])
	put(t, filepath.Join(modlib, "kernel/a/one.ko"), module)
	put(t, filepath.Join(modlib, "kernel/b/copy.ko.xz"), compressed(t, compress.XZ, module))
	if err := os.Link(filepath.Join(modlib, "kernel/a/one.ko"), filepath.Join(modlib, "kernel/b/one.ko")); err != nil {
		t.Fatal(err)
	}
	source := Source{Roots: []string{modlib}}
	names := []string{"kernel/a/one.ko", "kernel/b/copy.ko.xz", "kernel/b/one.ko"}
	unsplit := func() []string {
		t.Helper()
		tree := openTree(t, source)
		defer tree.Close()
		paths, err := tree.MissingDebugFiles(t.Context(), debug, ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return paths
	}
	if got := unsplit(); len(got) != 3 || got[0] != filepath.Join(modlib, names[0]) {
		t.Errorf("not split: %q", got)
	}
	s := mustSign(t, signer, source, Options{DebugOptions: DebugOptions{SplitDebug: debug}})
	if s.Signed != 3 || s.DebugFiles != 2 || s.Debug != 3 {
		t.Errorf("%+v", s)
	}
	file := func(name string) string {
		return filepath.Join(debug, "lib/modules/6.12.0", strings.TrimSuffix(name, ".xz")+".debug")
	}
	for _, name := range names {
		is, err := os.Stat(file(name))
		if err != nil {
			t.Fatal(err)
		}
		of, err := os.Stat(filepath.Join(modlib, name))
		if err != nil {
			t.Fatal(err)
		}
		if is.Mode() != 0o644 || !is.ModTime().Equal(of.ModTime()) {
			t.Errorf("%s has mode %v and is of %v, the module of %v", file(name), is.Mode(), is.ModTime(), of.ModTime())
		}
	}
	if !sameInode(t, file(names[0]), file(names[2])) {
		t.Error("the debug file of hard links is two")
	}
	// Two modules with one build ID: both have a way.
	ways, err := filepath.Glob(filepath.Join(debug, ".build-id/*/*.debug"))
	if err != nil || len(ways) != 2 {
		t.Fatalf("%q, %v", ways, err)
	}
	ends := make(map[string]bool)
	for _, way := range ways {
		end, err := filepath.EvalSymlinks(way)
		if err != nil {
			t.Error(err)
		}
		ends[end] = true
	}
	if len(ends) != 2 || !strings.Contains(ways[0]+ways[1], ".1.debug") {
		t.Errorf("%q lead to %v", ways, ends)
	}
	// A module in its old form is known by either.
	put(t, filepath.Join(modlib, names[0]), module)
	if got := unsplit(); len(got) != 0 {
		t.Errorf("split: %q", got)
	}
	if err := os.RemoveAll(filepath.Join(debug, ".build-id")); err != nil {
		t.Fatal(err)
	}
	if got := unsplit(); len(got) != 0 {
		t.Errorf("split: %q", got)
	}
	// The same run again makes the same files, and ways to them.
	before := read(t, file(names[0]))
	if s := mustSign(t, signer, source, Options{DebugOptions: DebugOptions{SplitDebug: debug}}); s.DebugFiles != 1 {
		t.Errorf("again: %+v", s)
	}
	if !bytes.Equal(read(t, file(names[0])), before) {
		t.Error("another debug file")
	}
	if ways, _ := filepath.Glob(filepath.Join(debug, ".build-id/*/*.debug")); len(ways) != 1 {
		t.Errorf("again: %q", ways)
	}
}

// Debug files of two modules are never one, and where none can be written the module
// keeps what it has.
func TestSplitDebugRefused(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	module := read(t, debugModules(t)[0])
	dir := t.TempDir()
	for _, root := range []string{"one", "two"} {
		put(t, filepath.Join(dir, root, "m.ko"), module)
	}
	s, results := sign(
		t,
		signer,
		Source{Roots: []string{filepath.Join(dir, "one"), filepath.Join(dir, "two")}},
		Options{DebugOptions: DebugOptions{SplitDebug: filepath.Join(dir, "debug")}},
	)
	if s.Signed != 1 || s.Failed != 1 || !strings.Contains(results[1].Err.Error(), "which is that of") {
		t.Errorf("%+v: %v", s, results[1].Err)
	}
	if !bytes.Equal(read(t, filepath.Join(dir, "two/m.ko")), module) {
		t.Error("what failed has changed")
	}
	put(t, filepath.Join(dir, "file"), nil)
	two := openTree(t, Source{Roots: []string{filepath.Join(dir, "two")}})
	_, err := two.Sign(t.Context(), signer, Options{DebugOptions: DebugOptions{SplitDebug: filepath.Join(dir, "file")}})
	var failed *fs.PathError
	if !errors.As(err, &failed) || !bytes.Equal(read(t, filepath.Join(dir, "two/m.ko")), module) {
		t.Errorf("a file as the directory of debug files: %v", err)
	}
	two.Close()
	for _, opts := range []Options{
		{DebugOptions: DebugOptions{StripDebug: true}, Detached: true},
		{DebugOptions: DebugOptions{SplitDebug: dir}, Detached: true},
	} {
		tree := openTree(t, Source{Roots: []string{dir}})
		if _, err := tree.Sign(t.Context(), signer, opts); err == nil {
			t.Errorf("%+v: done", opts)
		}
		tree.Close()
	}
}
