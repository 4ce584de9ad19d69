package hashlist

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
)

// compiled is a module with debug information, and what strip leaves of it.
func compiled(t testing.TB, name string) (whole, stripped []byte) {
	t.Helper()
	dir := t.TempDir()
	source, object := filepath.Join(dir, "m.c"), filepath.Join(dir, "m.ko")
	if err := os.WriteFile(source, []byte("int "+name+"(int a) { return a + 42; }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	testmod.Run(t, testmod.Program(t, "gcc", "gcc"), "-g", "-c", "-o", object, source)
	whole, err := os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	testmod.Run(t, testmod.Program(t, "strip", "binutils"), "--strip-debug", object)
	stripped, err = os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	return whole, stripped
}

// installed is a directory of modules, and their list.
func installed(t testing.TB, files map[string][]byte) (dir string, list *List) {
	t.Helper()
	dir, list = t.TempDir(), &List{Release: release}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		put(t, dir, name, files[name])
		hash, size, err := Sum(bytes.NewReader(files[name]))
		if err != nil {
			t.Fatal(err)
		}
		list.Modules = append(list.Modules, Module{name, size, hash})
	}
	return dir, list
}

func put(t testing.TB, dir, name string, data []byte) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// verdicts are those on all modules, by their names.
func verdictsOn(t testing.TB, r *Reference, dir string) (map[string]Verdict, map[string]string) {
	t.Helper()
	got, details := make(map[string]Verdict), make(map[string]string)
	summary, err := r.Verify(t.Context(), dir, VerifyOptions{Result: func(r Result) {
		if got[r.Name] != "" {
			t.Errorf("%s comes twice", r.Name)
		}
		got[r.Name], details[r.Name] = r.Verdict, r.Detail
	}})
	if refused := summary.Refused() > 0; errors.Is(err, ErrRefused) != refused ||
		errors.Is(err, ErrIncomplete) != (summary[Failed] > 0) ||
		err != nil && !refused {
		t.Fatalf("%v: %v", summary, err)
	}
	n := 0
	for _, count := range summary {
		n += count
	}
	if n != len(got) {
		t.Errorf("%v of %d modules", summary, len(got))
	}
	return got, details
}

func modules(t testing.TB) map[string][]byte {
	a, _ := compiled(t, "a")
	b, _ := compiled(t, "b")
	c, _ := compiled(t, "c")
	return map[string][]byte{"kernel/a.ko": a, "kernel/fs/b.ko": b, "kernel/fs/c.ko": c}
}

func TestVerifyList(t *testing.T) {
	t.Parallel()
	files := modules(t)
	_, strippedB := compiled(t, "b")
	dir, list := installed(t, files)
	all := map[string]Verdict{"kernel/a.ko": Trusted, "kernel/fs/b.ko": Trusted, "kernel/fs/c.ko": Trusted}
	of := func(change map[string]Verdict) map[string]Verdict {
		want := maps.Clone(all)
		maps.Copy(want, change)
		return want
	}
	names := []string{"kernel/a.ko", "kernel/fs/b.ko", "kernel/fs/c.ko"}
	embedded := list.Embedded()
	for _, test := range []struct {
		name   string
		change func(dir string)
		want   map[string]Verdict
		kernel map[string]Verdict // where the kernel's list has no sizes, or takes it otherwise
	}{
		{"as it was", func(string) {}, all, nil},
		{"changed", func(dir string) {
			put(t, dir, "kernel/a.ko", append(bytes.Clone(files["kernel/a.ko"]), 0))
		}, of(map[string]Verdict{"kernel/a.ko": Changed}), nil},
		{
			"missing", func(dir string) { os.Remove(filepath.Join(dir, "kernel/a.ko")) },
			of(map[string]Verdict{"kernel/a.ko": Missing}), nil,
		},
		{
			"extra", func(dir string) { put(t, dir, "updates/x.ko", testmod.ELF()) },
			of(map[string]Verdict{"updates/x.ko": Extra}), nil,
		},
		{
			"under another name", func(dir string) { put(t, dir, "updates/x.ko", files["kernel/a.ko"]) },
			of(map[string]Verdict{"updates/x.ko": Trusted}), nil,
		},
		{
			"stripped", func(dir string) { put(t, dir, "kernel/fs/b.ko", strippedB) },
			of(map[string]Verdict{"kernel/fs/b.ko": Stripped}), of(map[string]Verdict{"kernel/fs/b.ko": Changed}),
		},
		{"signed", func(dir string) {
			put(
				t, dir, "kernel/fs/b.ko",
				module.AppendSignature(bytes.Clone(files["kernel/fs/b.ko"]), module.TypePKCS7, []byte("signature")),
			)
		}, all, nil},
		{"signed twice", func(dir string) {
			once := module.AppendSignature(bytes.Clone(files["kernel/fs/b.ko"]), module.TypePKCS7, []byte("signature"))
			put(t, dir, "kernel/fs/b.ko", module.AppendSignature(once, module.TypePKCS7, []byte("signature")))
		}, of(map[string]Verdict{"kernel/fs/b.ko": Changed}), nil},
		{"with a proof", func(dir string) {
			put(
				t, dir, "kernel/fs/b.ko",
				module.AppendSignature(bytes.Clone(files["kernel/fs/b.ko"]), module.TypeMerkle, Proof{}.Append(nil)),
			)
		}, all, of(map[string]Verdict{"kernel/fs/b.ko": OtherKernel})},
		{"malformed", func(dir string) {
			put(t, dir, "kernel/fs/b.ko", append(bytes.Clone(files["kernel/fs/b.ko"]), module.Marker...))
		}, of(map[string]Verdict{"kernel/fs/b.ko": Malformed}), nil},
		{"misnamed", func(dir string) {
			os.Rename(filepath.Join(dir, "kernel/a.ko"), filepath.Join(dir, "kernel/a.ko.xz"))
		}, of(map[string]Verdict{"kernel/a.ko": Failed}), nil},
		{"compressed", func(dir string) {
			testmod.Run(t, testmod.Program(t, "xz", "xz-utils"), "--check=crc32", filepath.Join(dir, "kernel/a.ko"))
			testmod.Run(t, testmod.Program(t, "zstd", "zstd"), "-q", "--rm", filepath.Join(dir, "kernel/fs/b.ko"))
			testmod.Run(t, testmod.Program(t, "gzip", "gzip"), filepath.Join(dir, "kernel/fs/c.ko"))
		}, all, nil},
	} {
		dir := copyOf(t, dir)
		test.change(dir)
		if got, _ := verdictsOn(t, NewReference(list), dir); !maps.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
		reference, err := NewKernelReference(embedded, names)
		if err != nil {
			t.Fatal(err)
		}
		want := test.want
		if test.kernel != nil {
			want = test.kernel
		}
		if got, _ := verdictsOn(t, reference, dir); !maps.Equal(got, want) {
			t.Errorf("%s, by the kernel: %v, want %v", test.name, got, want)
		}
	}
	// The list is of stripped modules, and this one is not.
	list.Modules[1].Hash, list.Modules[1].Size, _ = Sum(bytes.NewReader(strippedB))
	if got, _ := verdictsOn(t, NewReference(list), dir); !maps.Equal(
		got,
		of(map[string]Verdict{"kernel/fs/b.ko": Unstripped}),
	) {
		t.Errorf("not stripped: %v", got)
	}
	// Without names the kernel knows hashes all the same.
	reference, err := NewKernelReference(embedded, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := verdictsOn(t, reference, dir); !maps.Equal(got, all) {
		t.Errorf("without modules.order: %v", got)
	}
}

func copyOf(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestVerifyRoot(t *testing.T) {
	t.Parallel()
	files := modules(t)
	names := slices.Sorted(maps.Keys(files))
	var l []Hash
	for i, name := range names {
		l = append(l, leaf(uint32(i), files[name]))
	}
	proofs := NewProofs(names, l)
	root := proofs.Root()
	dir := t.TempDir()
	proven := make(map[string][]byte)
	for _, name := range names {
		proven[name] = append(bytes.Clone(files[name]), proofs.Trailer(name)...)
		put(t, dir, name, proven[name])
	}
	reference, err := NewKernelReference(&Embedded{Root: &root}, names)
	if err != nil {
		t.Fatal(err)
	}
	const a, b = "kernel/a.ko", "kernel/fs/b.ko"
	other := NewProofs(names[:2], l[:2])
	for _, test := range []struct {
		name string
		data []byte
		want Verdict
	}{
		{"as it was", proven[b], Trusted},
		{"without a proof", files[b], Unproven},
		{"signed", module.AppendSignature(bytes.Clone(files[b]), module.TypePKCS7, []byte("signature")), Unproven},
		{"another's proof", append(bytes.Clone(files[b]), proofs.Trailer(a)...), Changed},
		{"another module", proven[a], Trusted},
		{"changed", append(append(bytes.Clone(files[b]), 0), proofs.Trailer(b)...), Changed},
		{"another kernel's proof", append(bytes.Clone(files[b]), other.Trailer(b)...), OtherKernel},
		{"an odd proof", module.AppendSignature(bytes.Clone(files[b]), module.TypeMerkle, []byte("12345")), OtherKernel},
	} {
		dir := copyOf(t, dir)
		put(t, dir, b, test.data)
		got, details := verdictsOn(t, reference, dir)
		if want := map[string]Verdict{a: Trusted, b: test.want, "kernel/fs/c.ko": Trusted}; !maps.Equal(got, want) {
			t.Errorf("%s: %v %v, want %v", test.name, got, details, want)
		}
	}
	os.Remove(filepath.Join(dir, b))
	if got, _ := verdictsOn(t, reference, dir); got[b] != Missing {
		t.Errorf("missing: %v", got)
	}
}

func TestReferenceRefuses(t *testing.T) {
	t.Parallel()
	all := embeddings()
	for _, test := range []struct {
		e     *Embedded
		order []string
		want  string
	}{
		{all["blank root"], nil, "no hashes yet"},
		{all["blank list"], nil, "no hashes yet"},
		{all["list"], []string{"a.ko"}, "3 hashes, but modules.order has 1 modules"},
		{all["root"], []string{"a.ko"}, "tree of 3 levels, but the 1 modules of modules.order make 1"},
	} {
		if _, err := NewKernelReference(test.e, test.order); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: %v, want %q", test.e, err, test.want)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	cancel(stop)
	dir, list := installed(t, modules(t))
	if _, err := NewReference(list).Verify(ctx, dir, VerifyOptions{}); !errors.Is(err, stop) {
		t.Errorf("ended: %v", err)
	}
}

func TestProofFiles(t *testing.T) {
	t.Parallel()
	names := []string{"a.ko", "fs/b.ko", "c.ko"}
	proofs, dir := NewProofs(names, leaves(3)), t.TempDir()
	for _, name := range names {
		put(t, dir, name, nil)
	}
	if err := proofs.Write(dir); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(filepath.Join(dir, "fs/b.merkle"))
	if err != nil {
		t.Fatal(err)
	}
	if err := proofs.Write(dir); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(filepath.Join(dir, "fs/b.merkle")); err != nil || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("written again for nothing (%v)", err)
	}
	read, err := ReadProofs(dir, names, proofs.Root())
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		h := read.NewHash(name)
		h.Write(payload(i))
		sig, err := read.Proof(name, h.Sum(nil))
		if want := NewTree(leaves(3)).Prove(i).Append(nil); err != nil || !bytes.Equal(sig, want) {
			t.Errorf("%s: %x, %v; want %x", name, sig, err, want)
		}
		h = read.NewHash(name)
		h.Write(payload(i + 1))
		if sig, err := read.Proof(name, h.Sum(nil)); !errors.Is(err, ErrForeign) {
			t.Errorf("%s, changed: %x, %v", name, sig, err)
		}
	}
	if _, err := read.Proof("x.ko", make([]byte, 32)); err == nil {
		t.Error("a module that is none has a proof")
	}
	for what, data := range map[string][]byte{
		"empty": nil, "cut off": proofs.Trailer("a.ko")[1:],
		"with something before": append([]byte{1}, proofs.Trailer("a.ko")...),
		"a signature":           module.AppendSignature(nil, module.TypePKCS7, []byte("x")),
		"an odd length":         module.AppendSignature(nil, module.TypeMerkle, []byte("12345")),
	} {
		put(t, dir, "a.merkle", data)
		if _, err := ReadProofs(dir, names, proofs.Root()); err == nil || !strings.Contains(err.Error(), "a.merkle") {
			t.Errorf("%s: %v", what, err)
		}
	}
	os.Remove(filepath.Join(dir, "a.merkle"))
	if _, err := ReadProofs(dir, names, proofs.Root()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

func TestDiff(t *testing.T) {
	t.Parallel()
	l := func(names string) *List {
		list := new(List)
		for _, name := range strings.Fields(names) {
			path, version, _ := strings.Cut(name, ":")
			list.Modules = append(list.Modules, Module{Path: path, Hash: leaf(0, []byte(path+version))})
		}
		return list
	}
	for _, test := range []struct {
		a, b, want string
		reordered  bool
	}{
		{"", "", "", false},
		{"a b c", "a b c", "", false},
		{"a b c", "a:2 b c", "a changed", false},
		{"a b c", "a c", "b removed", false},
		{"a c", "a b c", "b added", false},
		{"a b c", "c b a", "", true},
		{"a b c", "d c a:2", "a changed, b removed, d added", true},
		{"a b", "c d", "a removed, b removed, c added, d added", false},
		{"", "a", "a added", false},
	} {
		changes, reordered := Diff(l(test.a), l(test.b))
		var got []string
		for _, c := range changes {
			switch {
			case c.Old == nil:
				got = append(got, c.Path+" added")
			case c.New == nil:
				got = append(got, c.Path+" removed")
			default:
				got = append(got, c.Path+" changed")
			}
		}
		if strings.Join(got, ", ") != test.want || reordered != test.reordered {
			t.Errorf("%q and %q: %q %v", test.a, test.b, got, reordered)
		}
	}
}
