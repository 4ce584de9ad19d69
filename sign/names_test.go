package sign

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/testmod"
)

// leave begins to replace a file, as a run does that is killed then, and returns
// what is left.
func leave(t testing.TB, target string) string {
	t.Helper()
	f, err := atomicfile.Create(target, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// exists reports whether a name is taken, be it by a link to nowhere.
func exists(t testing.TB, path string) bool {
	t.Helper()
	_, err := os.Lstat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

// Of the modules below a directory, those are signed that are named, in that order,
// and nothing else is touched.
func TestNames(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	elf := testmod.ELF()
	want := signed(t, signer, elf)
	names := []string{"z/deep/er/z.ko", "a.ko", "z/b.ko", "./a.ko", "z/../a.ko", "y.ko", "z/c.ko"}
	order := []string{"z/deep/er/z.ko", "a.ko", "z/b.ko.xz", "y.ko", "z/c.ko.gz"}
	for _, f := range []compress.Format{compress.None, compress.XZ} {
		for _, where := range []string{"in place", "output", "dry run"} {
			t.Run(where+", "+f.String(), func(t *testing.T) {
				dir := t.TempDir()
				root := filepath.Join(dir, "root")
				at := func(name string) string { return filepath.Join(root, name) }
				for _, name := range order {
					put(t, at(name), compressed(t, compress.FromName(name), elf))
				}
				var others []string
				other := func(name string, data []byte) {
					put(t, at(name), data)
					others = append(others, at(name))
				}
				other("z/other.ko", elf)
				other("z/a.ko", elf)
				other("z/other.ko.xz", compressed(t, compress.XZ, elf))
				other("y.ko.zst", elf) // y.ko is there itself, and zst not what is asked for
				other("modules.dep", nil)
				other("unnamed/a.ko", elf)
				others = append(others, leave(t, at("z/other.ko")), leave(t, at("unnamed/a.ko")), leave(t, at("unnamed/new.ko")))
				left := []string{
					leave(t, at("a.ko")), leave(t, at("a.ko.zst")), leave(t, at("a.ko.p7s")), leave(t, at("z/b.ko")),
					leave(t, at("z/b.ko.xz")),
				}
				if err := os.Symlink("nowhere", at("z/link.ko")); err != nil {
					t.Fatal(err)
				}
				others = append(others, at("z/link.ko"))
				before := snapshot(t, dir)

				source := Source{Roots: []string{root}, Names: names, Compress: f, DryRun: where == "dry run"}
				out := root
				if where == "output" {
					out = filepath.Join(dir, "out")
					source.Output = out
				}
				summary, results := sign(t, signer, source, Options{WriteOptions: WriteOptions{Jobs: 3}})
				if summary.Signed != len(order) || summary.Failed != 0 || summary.Bytes != int64(len(order)*len(elf)) {
					t.Errorf("%+v", summary)
				}
				for i, r := range results {
					output := filepath.Join(out, order[i])
					if compress.FromName(output) == compress.None {
						output += f.Suffix()
					}
					if where == "dry run" {
						output = ""
					}
					if r.Path != at(order[i]) || r.Output != output || r.Action != Signed || r.Format != compress.FromName(order[i]) {
						t.Errorf("result %d: %+v", i, r)
					}
					if output == "" {
						continue
					}
					if got := decompressed(t, compress.FromName(output), read(t, output)); !bytes.Equal(got, want) {
						t.Errorf("%s is not signed", output)
					}
					if where == "in place" && output != r.Path && exists(t, r.Path) {
						t.Errorf("%s was left", r.Path)
					}
				}
				if where != "in place" {
					unchanged(t, where, root, below(before, root), true)
					return
				}
				for _, path := range left {
					if exists(t, path) {
						t.Errorf("%s was left", path)
					}
				}
				after := snapshot(t, dir)
				for _, path := range others {
					if after[path] != before[path] {
						t.Errorf("%s was touched", path)
					}
				}
				if want := len(others) + len(order) + len([]string{"root", ".", "z", "deep", "er", "unnamed"}); len(after) != want {
					t.Errorf("%d files and directories instead of %d: %q", len(after), want, slices.Sorted(maps.Keys(after)))
				}
			})
		}
	}
}

func TestNamesRefused(t *testing.T) {
	dir := t.TempDir()
	elf := testmod.ELF()
	for _, name := range []string{
		"outside/o.ko", "root/a.ko", "root/b.ko", "root/sub/c.ko", "root/two.ko.gz", "root/two.ko.xz", "root/a.ko.bak",
	} {
		put(t, filepath.Join(dir, name), elf)
	}
	for link, to := range map[string]string{
		"root/link.ko":     "a.ko",
		"root/away.ko.zst": "../outside/o.ko",
		"root/way":         "../outside",
		"root/inside":      "sub",
		"given":            "root",
	} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "root/fifo.ko"), 0o644); err != nil {
		t.Fatal(err)
	}
	temp := leave(t, filepath.Join(dir, "root/a.ko"))
	t.Chdir(dir)
	before := snapshot(t, dir)
	for _, test := range []struct {
		roots string
		names []string
		says  string
	}{
		{"root", []string{"../outside/o.ko"}, `"../outside/o.ko" does not name a module below root`},
		{"root", []string{"sub/../../outside/o.ko"}, "does not name a module"},
		{"root", []string{filepath.Join(dir, "root/a.ko")}, "does not name a module"},
		{"root", []string{""}, "does not name a module"},
		{"root", []string{"."}, "does not name a module"},
		{"root", []string{"a.ko.bak"}, "does not name a module"},
		{"root", []string{"two.ko.gz"}, "does not name a module"},
		{"root", []string{"link.ko"}, "root/link.ko: not a regular file"},
		{"root", []string{"away.ko"}, "root/away.ko.zst: not a regular file"},
		{"root", []string{"fifo.ko"}, "not a regular file"},
		{"root", []string{"way/o.ko"}, "root/way/o.ko: lies behind a symbolic link, in outside"},
		{"root", []string{"inside/c.ko"}, "behind a symbolic link"},
		{"given", []string{"way/o.ko"}, "behind a symbolic link"},
		{"root", []string{"two.ko"}, "root/two.ko: two.ko.gz and two.ko.xz exist"},
		{"root", []string{"x.ko"}, "1 of 1 modules missing from root: x.ko"},
		{
			"root", []string{"x.ko", "b.ko", "sub/x.ko", "sub/x.ko", "new/x.ko"},
			"3 of 4 modules missing from root: x.ko, sub/x.ko, new/x.ko",
		},
		{"root", []string{"5.ko", "4.ko", "3.ko", "2.ko", "b.ko"}, "4 of 5 modules missing from root: 5.ko, 4.ko, 3.ko, ..."},
		{"root", []string{"a.ko/b.ko"}, "not a directory"},
		{"root/a.ko", []string{"a.ko"}, "not a directory"},
		{"nowhere", []string{"a.ko"}, "nowhere"},
		{"root", []string{}, "no kernel module found"},
		{"root root/sub", []string{"a.ko"}, "below one directory, and 2 are given"},
		{"", []string{"a.ko"}, "below one directory, and 0 are given"},
	} {
		for _, dry := range []bool{true, false} {
			// What can be had comes first, and is not had either.
			names := test.names
			if len(names) > 0 && !strings.Contains(test.says, " of ") {
				names = append([]string{"a.ko"}, names...)
			}
			tree, err := Open(t.Context(), Source{Roots: strings.Fields(test.roots), Names: names, DryRun: dry})
			if err == nil {
				tree.Close()
				t.Errorf("%+v is taken", test)
				continue
			}
			if !strings.Contains(err.Error(), test.says) {
				t.Errorf("%+v: %v", test, err)
			}
		}
	}
	unchanged(t, "refused", dir, before, true)
	// The directory itself may be given by a link, and is locked, not each module.
	tree := openTree(t, Source{Roots: []string{"given"}, Names: []string{"a.ko", "sub/c.ko"}})
	if _, ok := errors.AsType[*atomicfile.LockedError](openError(Source{Roots: []string{"root/b.ko"}})); !ok {
		t.Error("a module below the directory was not locked")
	}
	if tree.Modules() != 2 || exists(t, temp) {
		t.Errorf("%d modules; %s", tree.Modules(), temp)
	}
}

func openError(source Source) error {
	tree, err := Open(context.Background(), source)
	if err == nil {
		tree.Close()
	}
	return err
}

// What the programs of the kernel's build would have made of the signed module is
// made, and stands where they would have put it.
func TestCompress(t *testing.T) {
	testmod.Slow(t, "it compresses many modules")
	needRoot(t)
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	plain := slices.DeleteFunc(
		testmod.Testdata(t),
		func(path string) bool { return compress.FromName(path) != compress.None },
	)
	when := time.Date(2001, 2, 3, 4, 5, 6, 123456789, time.UTC)
	mode := fs.FileMode(0o640)
	programs := map[compress.Format][]string{
		compress.Gzip: {testmod.Program(t, "gzip", "gzip"), "-n", "-f"},
		compress.XZ:   {testmod.Program(t, "xz", "xz-utils"), "--check=crc32", "--lzma2=dict=1MiB", "-f"},
		compress.Zstd: {testmod.Program(t, "zstd", "zstd"), "--rm", "-f", "-q"},
	}
	for f, program := range programs {
		for name, opts := range map[string]Options{
			"":             {},
			", synced":     {WriteOptions: WriteOptions{Sync: SyncFile}},
			", mode given": {WriteOptions: WriteOptions{Mode: &mode}},
		} {
			t.Run(f.String()+name, func(t *testing.T) {
				if name != "" {
					testmod.Slow(t, "one of three is enough")
				}
				dir := t.TempDir()
				root, stock := filepath.Join(dir, "root"), filepath.Join(dir, "stock")
				// set gives a module what a program has to take over.
				set := func(path string, data []byte) {
					put(t, path, data)
					setXattr(t, path, "user.note", "kept")
					if err := errors.Join(
						os.Chown(path, 1234, 5678), os.Chmod(path, 0o604), os.Chtimes(path, when, when),
					); err != nil {
						t.Fatal(err)
					}
				}
				for i, path := range plain {
					name := fmt.Sprintf("%d/%s", i, filepath.Base(path))
					data := read(t, path)
					set(filepath.Join(root, name), data)
					set(filepath.Join(stock, name), signed(t, signer, data))
					put(t, filepath.Join(root, name+f.Suffix()), compressed(t, f, signed(t, signer, data))) // of a killed run
					if err := execute(program[0], append(program[1:], filepath.Join(stock, name))...); err != nil {
						t.Fatal(err)
					}
				}
				summary, results := sign(t, signer, Source{Roots: []string{root}, Compress: f}, opts)
				if summary.Signed != len(plain) {
					t.Errorf("%+v", summary)
				}
				if files, want := snapshot(t, root), snapshot(t, stock); len(files) != len(want) {
					t.Errorf("%d files instead of %d", len(files), len(want))
				}
				for _, r := range results {
					rel, err := filepath.Rel(root, r.Path)
					if err != nil || r.Output != r.Path+f.Suffix() || r.Format != compress.None || r.Err != nil {
						t.Errorf("%+v, %v", r, err)
						continue
					}
					got, want := stateOf(t, r.Output), stateOf(t, filepath.Join(stock, rel+f.Suffix()))
					if opts.Mode != nil {
						want.Mode = mode
					}
					// The other two formats are not written by their programs.
					if f == compress.XZ && got.Content != want.Content ||
						!bytes.Equal(decompressed(t, f, []byte(got.Content)), decompressed(t, f, []byte(want.Content))) {
						t.Errorf("%s: not what %v makes of the signed module", rel, f)
					}
					if got.Mode != want.Mode || got.UID != want.UID || got.GID != want.GID || got.MTime != want.MTime ||
						got.Links != 1 ||
						xattr(r.Output, "user.note") != "kept" {
						t.Errorf(
							"%s: %v, owner %d:%d, modified %v, %d links", rel, got.Mode, got.UID, got.GID, time.Unix(0, got.MTime),
							got.Links,
						)
					}
				}
			})
		}
	}
}

// Signing again what is installed compressed leaves one signature on each.
func TestNamesAgain(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	other := newSigner(t, "ecdsa:p256", crypto.SHA512, false)
	root := t.TempDir()
	source := Source{Roots: []string{root}, Names: []string{"a.ko", "b.ko", "c.ko", "d.ko"}, Compress: compress.Zstd}
	put(t, filepath.Join(root, "a.ko"), testmod.ELF())
	put(t, filepath.Join(root, "b.ko.gz"), compressed(t, compress.Gzip, testmod.ELF()))
	put(t, filepath.Join(root, "c.ko.xz"), compressed(t, compress.XZ, testmod.ELF()))
	put(t, filepath.Join(root, "d.ko.zst"), compressed(t, compress.Zstd, testmod.ELF()))
	mustSign(t, signer, source, Options{})
	first := snapshot(t, root)
	if s := mustSign(t, other, source, Options{}); s.Signed != 4 || s.Replaced != 4 || s.Stacked != 0 {
		t.Errorf("with another key: %+v", s)
	}
	if s := mustSign(t, signer, source, Options{}); s.Signed != 4 || s.Replaced != 4 || s.Stacked != 0 {
		t.Errorf("with the first key: %+v", s)
	}
	for path, s := range snapshot(t, root) {
		if s.Content != first[path].Content {
			t.Errorf("%s is not as it was after the first time", path)
		}
	}
	before := snapshot(t, root)
	if s := mustSign(t, other, source, Options{Existing: Skip}); s.Skipped != 4 {
		t.Errorf("skip: %+v", s)
	}
	unchanged(t, "skip", root, before, true)
	if s := mustSign(t, nil, source, Options{}); s.Stripped != 4 {
		t.Errorf("strip: %+v", s)
	}
	for _, name := range []string{"a.ko.zst", "b.ko.gz", "c.ko.xz", "d.ko.zst"} {
		if got := decompressed(t, compress.FromName(name), read(t, filepath.Join(root, name))); !bytes.Equal(
			got,
			testmod.ELF(),
		) {
			t.Errorf("strip: %s", name)
		}
	}
}

// Compress beside the other choices.
func TestCompressOptions(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	elf := testmod.ELF()
	old := signed(t, newSigner(t, "ecdsa:p256", crypto.SHA256, false), elf)
	set := func(t *testing.T) (root string) {
		root = filepath.Join(t.TempDir(), "root")
		put(t, filepath.Join(root, "bad.ko"), []byte("text"))
		put(t, filepath.Join(root, "new.ko"), elf)
		put(t, filepath.Join(root, "old.ko"), old)
		return root
	}
	// files checks what is in a directory, decompressed.
	files := func(t *testing.T, root string, want map[string][]byte) {
		t.Helper()
		for path, s := range snapshot(t, root) {
			rel, _ := filepath.Rel(root, path)
			if content, ok := want[rel]; ok && s.Content != "text" {
				if !bytes.Equal(decompressed(t, compress.FromName(rel), []byte(s.Content)), content) {
					t.Errorf("%s is not what it should be", rel)
				}
				delete(want, rel)
			} else if s.Mode.IsRegular() && s.Content != "text" {
				t.Errorf("there is %s", rel)
			}
		}
		for rel := range want {
			t.Errorf("there is no %s", rel)
		}
	}
	want := signed(t, signer, elf)
	for _, test := range []struct {
		name   string
		signer *Signer
		opts   Options
		want   map[string][]byte
	}{
		{"sign", signer, Options{}, map[string][]byte{"new.ko.xz": want, "old.ko.xz": want}},
		{"skip", signer, Options{Existing: Skip}, map[string][]byte{"new.ko.xz": want, "old.ko": old}},
		{"strip", nil, Options{}, map[string][]byte{"new.ko": elf, "old.ko.xz": elf}},
	} {
		for _, output := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, output %t", test.name, output), func(t *testing.T) {
				root := set(t)
				before := snapshot(t, root)
				source, at := Source{Roots: []string{root}, Compress: compress.XZ}, root
				if output {
					at = root + "-out"
					source.Output = at
				}
				dry := source
				dry.DryRun = true
				sign(t, test.signer, dry, test.opts)
				unchanged(t, "dry run", root, before, true)
				_, results := sign(t, test.signer, source, test.opts)
				for _, r := range results {
					if r.Output != "" && !exists(t, r.Output) || (r.Err != nil) != (filepath.Base(r.Path) == "bad.ko") {
						t.Errorf("%+v", r)
					}
				}
				files(t, at, maps.Clone(test.want))
				if output {
					unchanged(t, "with an output", root, before, true)
				}
			})
		}
	}

	root := set(t)
	before := snapshot(t, root)
	tree := openTree(t, Source{Roots: []string{root}, Compress: compress.XZ})
	if _, err := tree.Sign(t.Context(), signer, Options{Detached: true}); err == nil ||
		!strings.Contains(err.Error(), "cannot be compressed with xz") {
		t.Errorf("detached: %v", err)
	}
	tree.Close()
	unchanged(t, "detached", root, before, true)

	// An output that would meet an input, or another output.
	put(t, filepath.Join(root, "new.ko.xz"), compressed(t, compress.XZ, elf))
	before = snapshot(t, root)
	for says, source := range map[string]Source{
		"would both become":       {Roots: []string{root}, Output: root + "-out", Compress: compress.XZ},
		"is not compressed":       {Roots: []string{filepath.Join(root, "new.ko")}, Compress: compress.XZ},
		"would replace the input": {Roots: []string{filepath.Join(root, "new.ko")}, Output: root, Compress: compress.XZ},
	} {
		if err := openError(source); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v", source, err)
		}
	}
	unchanged(t, "refused", root, before, true)
	if s := mustSign(
		t, signer, Source{Roots: []string{filepath.Join(root, "new.ko")}, Output: root + "-one", Compress: compress.XZ},
		Options{},
	); s.Signed != 1 {
		t.Errorf("%+v", s)
	}
	files(t, root+"-one", map[string][]byte{"new.ko.xz": want})
	// In place it is what a killed run may have left.
	if s, _ := sign(t, signer, Source{Roots: []string{root}, Compress: compress.XZ}, Options{}); s.Modules != 3 ||
		s.Signed != 2 {
		t.Errorf("%+v", s)
	}
	files(t, root, map[string][]byte{"new.ko.xz": want, "old.ko.xz": want})

	// A name that cannot be had leaves the module where it is.
	root = set(t)
	put(t, filepath.Join(root, "new.ko.xz/in-the-way"), nil)
	before = snapshot(t, root)
	_, results := sign(
		t,
		signer,
		Source{Roots: []string{root}, Names: []string{"new.ko"}, Compress: compress.XZ},
		Options{},
	)
	if results[0].Err == nil || !strings.Contains(results[0].Err.Error(), "new.ko.xz") || results[0].Output != "" {
		t.Errorf("%+v", results[0])
	}
	unchanged(t, "in the way", root, before, false)
}

// The names of one file are one file afterwards, too.
func TestCompressHardLinks(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	want := signed(t, signer, testmod.ELF())
	dir := t.TempDir()
	root, outside := filepath.Join(dir, "root"), filepath.Join(dir, "outside.ko")
	put(t, filepath.Join(root, "a.ko"), testmod.ELF())
	put(t, filepath.Join(root, "sub", "x"), nil)
	for _, to := range []string{outside, filepath.Join(root, "sub/b.ko"), filepath.Join(root, "unnamed.ko")} {
		if err := os.Link(filepath.Join(root, "a.ko"), to); err != nil {
			t.Fatal(err)
		}
	}
	left := []string{outside, filepath.Join(root, "unnamed.ko")}
	summary, results := sign(
		t,
		signer,
		Source{Roots: []string{root}, Names: []string{"sub/b.ko", "a.ko"}, Compress: compress.Gzip},
		Options{},
	)
	if summary.Signed != 2 || summary.OutsideLinks != 2 || results[1].LinkOf != results[0].Path {
		t.Errorf("%+v, %+v", summary, results)
	}
	for _, path := range left {
		if s := stateOf(t, path); s.Links != 2 || s.Content != string(testmod.ELF()) {
			t.Errorf("%s has %d links", path, s.Links)
		}
	}
	for _, r := range results {
		if s := stateOf(t, r.Output); r.Output != r.Path+".gz" || s.Links != 2 ||
			!bytes.Equal(decompressed(t, compress.Gzip, []byte(s.Content)), want) ||
			exists(t, r.Path) {
			t.Errorf("%+v: %d links", r, s.Links)
		}
	}
	if !sameInode(t, results[0].Output, results[1].Output) {
		t.Error("the names are two files")
	}
}
