package hashlist

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/elfstrip"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
)

// objectTree has modules of several sizes, one of which is signed and one compressed,
// and returns them as they are hashed, in the order of modules.order.
func objectTree(t testing.TB) (source Source, payloads [][]byte) {
	t.Helper()
	dir := t.TempDir()
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join("../testdata/modules/amd64-6.12", name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	plain := [][]byte{read("plain/counter.ko"), testmod.ELF(), read("plain/hello.ko"), read("plain/ring.ko")}
	put(t, dir, "net/counter.ko", plain[0])
	put(t, dir, "tiny.ko", module.AppendSignature(slices.Clone(plain[1]), module.TypePKCS7, []byte("a signature")))
	put(t, dir, "crypto/hello.ko", plain[2])
	put(t, dir, "fs/ring.ko.xz", read("xz/ring.ko.xz"))
	put(t, dir, "not-in-modules.order.ko", plain[1])
	names := []string{"net/counter.ko", "tiny.ko", "crypto/hello.ko", "fs/ring.ko"}
	return Source{Dir: dir, Names: names, Prefix: "kernel/", Release: release}, plain
}

func TestBuild(t *testing.T) {
	t.Parallel()
	source, payloads := objectTree(t)
	for _, jobs := range []int{0, 1, 3} {
		var last Count
		calls := 0
		progress := func(done, total Count) {
			if calls++; done.Modules != calls || done.Bytes < last.Bytes || total.Modules != len(payloads) {
				t.Errorf("%+v after %+v, of %+v", done, last, total)
			}
			if last = done; done.Modules == total.Modules && done != total {
				t.Errorf("%+v at the end, of %+v", done, total)
			}
		}
		b, err := Build(t.Context(), source, BuildOptions{Format: FormatMerkle, Jobs: jobs, Progress: progress})
		if err != nil {
			t.Fatal(err)
		}
		if calls != len(payloads) || b.List.Release != release || len(b.List.Modules) != len(payloads) ||
			len(b.Leaves) != len(payloads) {
			t.Fatalf("%d calls, %+v", calls, b)
		}
		bytesRead := int64(0)
		for i, data := range payloads {
			hash, size, err := Sum(bytes.NewReader(data))
			if want := (Module{"kernel/" + source.Names[i], size, hash}); err != nil || b.List.Modules[i] != want {
				t.Errorf("%+v, want %+v (%v)", b.List.Modules[i], want, err)
			}
			if b.Leaves[i] != leaf(uint32(i), data) {
				t.Errorf("%s: leaf %v", source.Names[i], b.Leaves[i])
			}
			bytesRead += size
		}
		if b.Bytes != bytesRead || b.Order != binary.LittleEndian {
			t.Errorf("%d bytes in %v, want %d", b.Bytes, b.Order, bytesRead)
		}
		if root := NewTree(b.Leaves).Root(); *b.Embedded().Root != root || b.Proofs().Root() != root ||
			b.Proofs().Trailer("fs/ring.ko") == nil {
			t.Errorf("%v", b.Embedded())
		}

		alone, err := Build(t.Context(), source, BuildOptions{Format: FormatMerkle, LeavesOnly: true, Jobs: jobs})
		if err != nil || alone.List != nil || !slices.Equal(alone.Leaves, b.Leaves) || alone.Bytes != bytesRead {
			t.Errorf("leaves alone: %+v, %v", alone, err)
		}
		list, err := Build(t.Context(), source, BuildOptions{Jobs: jobs})
		if err != nil || list.Leaves != nil || !slices.Equal(list.List.Modules, b.List.Modules) ||
			list.Embedded().Format() != FormatList ||
			len(list.Embedded().Hashes) != len(payloads) {
			t.Errorf("list: %+v, %v", list, err)
		}
		// As other tools see it.
		sum := exec.Command("sha256sum", filepath.Join(source.Dir, source.Names[0]))
		if out, err := sum.Output(); err != nil || !strings.HasPrefix(string(out), list.List.Modules[0].Hash.String()) {
			t.Errorf("sha256sum prints %s, %v", out, err)
		}
	}
	big := Source{Dir: "../testdata/modules/s390x/plain", Names: []string{"hello.ko"}, Release: release}
	if b, err := Build(t.Context(), big, BuildOptions{}); err != nil || b.Order != binary.BigEndian ||
		b.List.Modules[0].Path != "hello.ko" {
		t.Errorf("s390x: %+v, %v", b, err)
	}
	none, err := Build(t.Context(), Source{Dir: source.Dir, Release: release}, BuildOptions{Format: FormatMerkle})
	if err != nil || *none.Embedded().Root != (Root{}) || len(none.List.Modules) != 0 ||
		none.Order != binary.LittleEndian {
		t.Errorf("no modules: %+v, %v", none, err)
	}
}

func TestBuildStrips(t *testing.T) {
	t.Parallel()
	whole, stripped := compiled(t, "answer")
	source := Source{Dir: t.TempDir(), Names: []string{"tiny.ko", "debug.ko"}, Release: release}
	put(t, source.Dir, "tiny.ko", testmod.ELF())
	put(t, source.Dir, "debug.ko", module.AppendSignature(slices.Clone(whole), module.TypePKCS7, []byte("a signature")))
	want, err := Build(t.Context(), source, BuildOptions{Strip: true})
	if err != nil {
		t.Fatal(err)
	}
	hash, size, _ := Sum(bytes.NewReader(stripped))
	if m := want.List.Modules[1]; m.Hash != hash || m.Size != size || int64(len(whole)) <= size {
		t.Errorf("%+v, and strip leaves %d bytes of %d with the hash %v", m, size, len(whole), hash)
	}
	if want.Bytes != size+want.List.Modules[0].Size {
		t.Errorf("%d bytes, and the list has %+v", want.Bytes, want.List.Modules)
	}

	// What has thread-local storage is no module to elfstrip.
	c, odd := filepath.Join(t.TempDir(), "odd.c"), filepath.Join(source.Dir, "odd.ko")
	put(t, filepath.Dir(c), "odd.c", []byte("__thread int counter;\nint count(void) { return ++counter; }\n"))
	testmod.Run(t, testmod.Program(t, "gcc", "gcc"), "-g", "-c", "-o", odd, c)
	source.Names = []string{"odd.ko"}
	if _, err := Build(t.Context(), source, BuildOptions{Strip: true}); !errors.Is(err, ErrIncomplete) ||
		!errors.Is(err, elfstrip.ErrShape) {
		t.Errorf("without a program: %v", err)
	}
	program := testmod.Program(t, "strip", "binutils")
	b, err := Build(t.Context(), source, BuildOptions{Strip: true, StripProgram: program, Format: FormatMerkle})
	if err != nil {
		t.Fatal(err)
	}
	testmod.Run(t, program, "--strip-debug", odd)
	left, err := os.ReadFile(odd)
	if hash, size, _ := Sum(bytes.NewReader(left)); err != nil || b.List.Modules[0].Hash != hash || b.Bytes != size ||
		b.Leaves[0] != leaf(0, left) {
		t.Errorf("%+v, want %v (%v)", b.List.Modules[0], hash, err)
	}
	for _, name := range []string{"false", "true"} { // fails, and strips nothing
		_, err := Build(t.Context(), source, BuildOptions{Strip: true, StripProgram: testmod.Program(t, name, "coreutils")})
		if errors.Is(err, ErrIncomplete) != (name == "false") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Each name of a file has a place in the tree of its own.
func TestBuildHardLinks(t *testing.T) {
	t.Parallel()
	source := Source{Dir: t.TempDir(), Names: []string{"b.ko", "a.ko", "c.ko"}, Release: release}
	put(t, source.Dir, "a.ko", testmod.ELF())
	for _, name := range []string{"b.ko", "c.ko"} {
		if err := os.Link(filepath.Join(source.Dir, "a.ko"), filepath.Join(source.Dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	b, err := Build(t.Context(), source, BuildOptions{Format: FormatMerkle})
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range b.List.Modules {
		if m.Path != source.Names[i] || m.Hash != b.List.Modules[0].Hash || b.Leaves[i] != leaf(uint32(i), testmod.ELF()) {
			t.Errorf("%+v, leaf %v", m, b.Leaves[i])
		}
	}
}

func TestBuildIncomplete(t *testing.T) {
	t.Parallel()
	source, _ := objectTree(t)
	put(t, source.Dir, "tiny.ko", []byte("These are notes.\n"))
	os.Remove(filepath.Join(source.Dir, "fs/ring.ko.xz"))
	put(t, source.Dir, "fs/ring.ko.xz", testmod.ELF())
	var failed []string
	o := BuildOptions{
		Jobs:   3,
		Failed: func(path string, err error) { failed = append(failed, fmt.Sprintf("%s: %v", path, err)) },
	}
	b, err := Build(t.Context(), source, o)
	if b != nil || !errors.Is(err, ErrIncomplete) || !errors.Is(err, ErrNotModule) ||
		!strings.HasPrefix(err.Error(), "2 of 4 modules could not be hashed: ") {
		t.Errorf("%v, %v", b, err)
	}
	if misnamed, ok := errors.AsType[*MisnamedError](err); !ok || misnamed.Right != "ring.ko" {
		t.Errorf("%v", err)
	}
	if len(failed) != 2 || !strings.HasPrefix(failed[0], filepath.Join(source.Dir, "tiny.ko")+": ") ||
		!strings.HasPrefix(failed[1], filepath.Join(source.Dir, "fs/ring.ko.xz")+": ") {
		t.Errorf("%q", failed)
	}
	if _, err := Build(t.Context(), source, BuildOptions{}); !errors.Is(err, ErrIncomplete) {
		t.Errorf("without a report: %v", err)
	}
}

// A watched context calls reads, after as many calls as it is given, when Build looks
// whether it has ended: before each module, and before each read of its content.
type watched struct {
	context.Context
	calls int
	read  func()
}

func (w *watched) Err() error {
	if w.calls--; w.calls == 0 {
		w.read()
	}
	return nil
}

func TestBuildSeesChange(t *testing.T) {
	t.Parallel()
	data := testmod.ELF()
	for name, change := range map[string]func(path string) error{
		"cut off": func(path string) error { return os.Truncate(path, 10) },
		"longer": func(path string) error {
			return os.Truncate(path, int64(len(data))+1)
		},
		"overwritten": func(path string) error { return os.WriteFile(path, data, 0o644) },
		"replaced": func(path string) error {
			if err := os.WriteFile(path+".new", data, 0o644); err != nil {
				return err
			}
			return os.Rename(path+".new", path)
		},
	} {
		source := Source{Dir: t.TempDir(), Names: []string{"a.ko"}, Release: release}
		put(t, source.Dir, "a.ko", data)
		path := filepath.Join(source.Dir, "a.ko")
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond) // the clock of a file system has steps
		changed := false
		ctx := &watched{t.Context(), 2, func() {
			changed = true
			if err := change(path); err != nil {
				t.Error(err)
			}
		}}
		b, err := Build(ctx, source, BuildOptions{Jobs: 1})
		if !changed || b != nil || !errors.Is(err, ErrChanged) || !errors.Is(err, ErrIncomplete) {
			t.Errorf("%s (%v): %v, %v", name, changed, b, err)
		}
	}
}

func TestBuildCancelled(t *testing.T) {
	t.Parallel()
	source, _ := objectTree(t)
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := 0
	o := BuildOptions{Jobs: 1, Progress: func(Count, Count) {
		done++
		cancel(cause)
	}, Failed: func(path string, err error) { t.Errorf("%s: %v", path, err) }}
	if b, err := Build(ctx, source, o); b != nil || !errors.Is(err, cause) || errors.Is(err, ErrIncomplete) || done != 1 {
		t.Errorf("%d done: %v, %v", done, b, err)
	}
}

func TestBuildRefuses(t *testing.T) {
	t.Parallel()
	source, _ := objectTree(t)
	outside := filepath.Join(t.TempDir(), "outside.ko")
	put(t, filepath.Dir(outside), "outside.ko", testmod.ELF())
	for name, target := range map[string]string{"link.ko": outside, "linked": filepath.Dir(outside)} {
		if err := os.Symlink(target, filepath.Join(source.Dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for want, test := range map[string]struct {
		names []string
		o     BuildOptions
	}{
		"1 of 2 modules missing":  {[]string{"tiny.ko", "none.ko"}, BuildOptions{}},
		"tiny.ko is named twice":  {[]string{"tiny.ko", "tiny.ko"}, BuildOptions{}},
		"../tiny.ko":              {[]string{"../tiny.ko"}, BuildOptions{}},
		"not a regular file":      {[]string{"link.ko"}, BuildOptions{}},
		"behind a symbolic link":  {[]string{"linked/outside.ko"}, BuildOptions{}},
		"BuildOptions.Format":     {source.Names, BuildOptions{Format: "tree"}},
		"BuildOptions.Jobs":       {source.Names, BuildOptions{Jobs: -1}},
		"BuildOptions.LeavesOnly": {source.Names, BuildOptions{LeavesOnly: true}},
	} {
		b, err := Build(t.Context(), Source{Dir: source.Dir, Names: test.names, Release: release}, test.o)
		if b != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v", want, b, err)
		}
	}
	if _, err := Build(
		t.Context(), Source{Dir: filepath.Join(source.Dir, "none"), Names: source.Names}, BuildOptions{},
	); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

func TestFindNames(t *testing.T) {
	t.Parallel()
	source, _ := objectTree(t)
	names, err := FindNames(source.Dir)
	want := []string{"crypto/hello.ko", "fs/ring.ko", "net/counter.ko", "not-in-modules.order.ko", "tiny.ko"}
	if err != nil || !slices.Equal(names, want) {
		t.Errorf("%q, %v", names, err)
	}
	put(t, source.Dir, "tiny.ko.gz", nil)
	if _, err := FindNames(source.Dir); err == nil ||
		!strings.Contains(err.Error(), "tiny.ko exists in more than one form") {
		t.Errorf("two forms: %v", err)
	}
	empty := t.TempDir()
	if _, err := FindNames(empty); !errors.Is(err, ErrNoModules) {
		t.Errorf("no module: %v", err)
	}
	if err := os.Symlink(source.Dir, filepath.Join(empty, "modules")); err != nil {
		t.Fatal(err)
	}
	if _, err := FindNames(empty); !errors.Is(err, ErrNoModules) ||
		!strings.Contains(err.Error(), "symbolic links are not followed") {
		t.Errorf("a link alone: %v", err)
	}
	if _, err := FindNames(filepath.Join(empty, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// What is done in an object tree is done in an order in which it can be killed.
func TestEmbedInTree(t *testing.T) {
	t.Parallel()
	source, _ := objectTree(t)
	vmlinux := link(t, embeddings()["blank root"])
	b, err := Build(t.Context(), source, BuildOptions{Format: FormatMerkle})
	if err != nil {
		t.Fatal(err)
	}
	boot := filepath.Join(source.Dir, "bzImage")
	proof := filepath.Join(source.Dir, "net/counter.merkle")
	asked, lists := 0, 0
	tree := ObjectTree{
		Vmlinux: vmlinux,
		BootFiles: func() ([]string, error) {
			asked++
			if k, err := OpenKernel(vmlinux); err != nil || k.Has(b.Embedded()) {
				t.Errorf("vmlinux was written before the boot files were removed (%v)", err)
			}
			return []string{boot}, nil
		},
		WriteList: func(text []byte) error {
			lists++
			if k, err := OpenKernel(vmlinux); err != nil || !k.Has(b.Embedded()) {
				t.Errorf("the list is written before vmlinux (%v)", err)
			}
			if list, err := Parse(bytes.NewReader(text)); err != nil || !slices.Equal(list.Modules, b.List.Modules) {
				t.Errorf("%s (%v)", text, err)
			}
			return nil
		},
	}
	put(t, source.Dir, "bzImage", nil)
	old, err := b.Embed(tree)
	if err != nil || old.Has(b.Embedded()) || !old.Embedded.Blank() || asked != 1 || lists != 1 {
		t.Fatalf("%+v, %v; %d times asked, %d lists", old, err, asked, lists)
	}
	if trailer, err := os.ReadFile(proof); err != nil || !bytes.Equal(trailer, b.Proofs().Trailer("net/counter.ko")) {
		t.Errorf("%x, %v", trailer, err)
	}
	if _, err := os.Lstat(boot); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the boot file: %v", err)
	}
	// Nothing to do, but for a list that may be out of date.
	put(t, source.Dir, "bzImage", nil)
	if old, err := b.Embed(tree); err != nil || !old.Has(b.Embedded()) || asked != 1 || lists != 2 {
		t.Errorf("again: %+v, %v; %d times asked, %d lists", old, err, asked, lists)
	}
	// What does not fit changes nothing.
	put(t, source.Dir, "net/counter.merkle", nil)
	plain, err := Build(t.Context(), source, BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := plain.Embed(tree); err == nil ||
		!strings.HasPrefix(err.Error(), vmlinux+": the kernel is built for a Merkle tree") {
		t.Errorf("a list: %v", err)
	}
	leaves, err := Build(t.Context(), source, BuildOptions{Format: FormatMerkle, LeavesOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaves.Embed(tree); err == nil {
		t.Error("wrote a list that there is not")
	}
	if data, err := os.ReadFile(proof); err != nil || len(data) > 0 || asked != 1 || lists != 2 {
		t.Errorf("%x, %v; %d times asked, %d lists", data, err, asked, lists)
	}
	if _, err := leaves.Embed(ObjectTree{Vmlinux: vmlinux}); err != nil {
		t.Errorf("without a list: %v", err)
	}
	if _, err := (*Built)(nil).Embed(tree); err == nil {
		t.Error("embedded nothing")
	}
	if _, err := b.Embed(ObjectTree{Vmlinux: link(t, nil)}); !errors.Is(err, ErrNoSection) {
		t.Errorf("a kernel without hashes: %v", err)
	}
}
