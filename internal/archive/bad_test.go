package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
)

// TestBad reads archives that are cut off, lie or are bombs. Each is a clear error.
func TestBad(t *testing.T) {
	t.Parallel()
	data := tarOf(t, file("lib/modules/6.12/a.ko", "module"))
	layer := gz(data)
	regular := uint32(0o100644)
	for name, test := range map[string]struct {
		content string
		limits  Limits
		want    string
	}{
		"deb without data": {content: ar("debian-binary", "2.0\n", "control.tar", data), want: "no data.tar"},
		"deb, data twice": {content: ar("debian-binary", "2.0\n", "control.tar", data, "data.tar", data, "data.tar", data),
			want: "comes twice"},
		"deb, data before control": {content: ar("debian-binary", "2.0\n", "data.tar", data, "control.tar", data),
			want: "in this order"},
		"deb, size too large": {content: strings.Replace(ar("debian-binary", "2.0\n", "control.tar", data, "data.tar", data),
			fmt.Sprintf("%-10d`", len(data)), "9999999999`", 1), want: "cut off"},
		"deb, size negative": {content: strings.Replace(ar("debian-binary", "2.0\n", "control.tar", data, "data.tar", data),
			fmt.Sprintf("%-10d`", len(data)), "-1        `", 1), want: "no header"},
		"deb, cut off": {content: ar("debian-binary", "2.0\n", "control.tar", data, "data.tar", data)[:1000],
			want: "cut off"},
		"deb, no header":   {content: ar("debian-binary", "2.0\n") + strings.Repeat("x", 60), want: "no header"},
		"rpm, cut off":     {content: string(smallRPM(t)[:5000]), want: "cut off"},
		"rpm, only a lead": {content: string(smallRPM(t)[:100]), want: "cut off"},
		"rpm, many tags":   {content: manyTags(smallRPM(t)), want: "limit"},
		"rpm, payload lies": {content: strings.Replace(string(smallRPM(t)), "00000006000000000000",
			"7fffffff000000000000", 1), want: "cut off"},
		"cpio, no hex": {content: strings.Replace(newc("a", regular, 1, 1, "x"), "0000", "zzzz", 1),
			want: "hexadecimal"},
		"cpio, no trailer":  {content: newc("a", regular, 1, 1, "x"), want: "cut off"},
		"cpio, size lies":   {content: newcSized("a", regular, 1, 1, 1<<31, "x"), want: "cut off"},
		"cpio, long name":   {content: newc(strings.Repeat("a", 5000), regular, 1, 1, "x"), want: "limit"},
		"cpio, long target": {content: newcSized("a", 0o120777, 1, 1, 1<<30, ""), want: "limit"},
		"cpio, deep name":   {content: newc(strings.Repeat("a/", 500), regular, 1, 1, "x"), want: "limit"},
		"cpio, links kept": {content: newc("a", regular, 1, 2, "") + newc("b", regular, 2, 2, "") + newcEnd,
			limits: Limits{Kept: 100}, want: "limit"},
		"cpio, second content": {content: newc("a", regular, 7, 2, "1") + newc("b", regular, 7, 2, "2") + newcEnd,
			want: "b: a second content of the file with hard links a"},
		"cpio, directory with content": {content: newc("a", 0o40755, 1, 2, newc("b", regular, 2, 1, "1")) + newcEnd,
			want: "a: content of what is no regular file"},
		"cpio, FIFO with content": {content: newc("a.ko", 0o10644, 1, 1, "x") + newcEnd, want: "no regular file"},
		"cpio, name upwards":      {content: newc("a/../b", regular, 1, 1, "x") + newcEnd, want: `".." in a name`},
		"tar, cut off":            {content: data[:515], want: "cut off"},
		"tar, no end":             {content: data[:1024], want: "ends without the two blocks of zeros"},
		"tar, half an end":        {content: data[:1536], want: "ends without the two blocks of zeros"},
		"tar.gz, no end":          {content: gz(data[:1024]), want: "ends without the two blocks of zeros"},
		"tar, another follows":    {content: data + data, want: "data follows"},
		"tar.gz, another follows": {content: gz(data) + gz(data), want: "data follows"},
		"tar.gz, a tar follows":   {content: gz(data) + data, want: "data follows"},
		"deb, a tar follows": {content: ar("debian-binary", "2.0\n", "control.tar", data, "data.tar", data+"\x00\x00"+data),
			want: "data follows"},
		"layer, a tar follows": {content: ociTar(t, gz(data+data)), want: "data follows"},
		"image, a tar follows": {content: ociTar(t, layer) + data, want: "data follows"},
		"tar.gz, cut off":      {content: layer[:len(layer)-6], want: "cut off"},
		"tar, link to nothing": {content: tarOf(t, tar.Header{Name: "a.ko", Linkname: "/", Typeflag: tar.TypeLink}),
			want: "hard link to nothing"},
		"entries": {content: data, limits: Limits{Entries: 1, Bytes: 100}, want: "limit"},
		"image, size lies": {content: strings.Replace(ociTar(t, layer), fmt.Sprintf(`"size":%d`, len(layer)),
			fmt.Sprintf(`"size":%d`, len(layer)+1), 1), want: "digest"},
		"image compressed as a whole": {content: gz(ociTar(t, layer)), want: "decompress the archive first"},
		"docker, layer missing": {content: tarOf(t, file(manifestFile, `[{"Layers":["x"]}]`)),
			want: "x: not in the archive"},
		"docker, loop of links": {content: tarOf(t, file(manifestFile, `[{"Layers":["blobs/x"]}]`),
			tar.Header{Name: "blobs/x", Linkname: "x", Typeflag: tar.TypeSymlink}), want: "loop"},
		"image without manifests": {content: tarOf(t, file(layoutFile, "{}"), file(indexFile, `{"manifests":[]}`)),
			want: "no image"},
		"image, digest out of the layout": {content: tarOf(t, file(layoutFile, "{}"), file(indexFile,
			`{"manifests":[{"digest":"sha256:../../../etc/passwd"}]}`)), want: "digest of another form"},
		"UKI, section lies": {content: peOf(".linux", "kernel", ".initrd", newcEnd)[:150], want: "cut off"},
		"UKI, no initramfs": {content: peOf(".linux", "kernel", ".initrd", "rubbish"), want: "neither a cpio archive"},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := New(bytes.NewReader([]byte(test.content)), int64(len(test.content)), test.limits)
			if err == nil {
				err = drainAll(t, a)
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

// manyTags has a package claim that its first header has two thousand million tags.
func manyTags(rpm []byte) string {
	rpm[rpmLead+8] = 0x7f
	return string(rpm)
}

// zeros is a stream of zeros behind a beginning.
type zeros struct {
	head io.Reader
	left int64
}

func (z *zeros) Read(b []byte) (int, error) {
	if n, err := z.head.Read(b); n > 0 || err != io.EOF {
		return n, err
	}
	n := min(int64(len(b)), z.left)
	clear(b[:n])
	if z.left -= n; n == 0 {
		return 0, io.EOF
	}
	return int(n), nil
}

// TestBomb reads a tar archive of 4 GiB of zeros in 4 MB.
func TestBomb(t *testing.T) {
	testmod.Decodes(t, "it compresses gigabytes")
	t.Parallel()

	var h bytes.Buffer
	if err := tar.NewWriter(&h).WriteHeader(&tar.Header{Name: "x", Typeflag: tar.TypeReg, Size: 2 << 30,
		Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	header := h.String()
	var b bytes.Buffer
	w, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if _, err := io.Copy(w, &zeros{strings.NewReader(header), 2 << 30}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := drainAll(t, inMemory(t, b.String(), Limits{Ratio: 50})); !errors.Is(err, ErrLimit) {
		t.Errorf("a bomb: %v", err)
	}
}

// TestManyEntries reads archives of a million entries in bounded memory.
func TestManyEntries(t *testing.T) {
	testmod.Decodes(t, "it writes a million entries")
	const n = 1_000_000
	cpio := compressed(n+1, func(i int) string {
		if i == n {
			return newcEnd
		}
		return newc(fmt.Sprintf("usr/lib/%d", i), 0o100644, uint32(i), 1, "")
	})
	header := tarOf(t, file("usr/lib/0000000", ""))[:512]
	tars := func(n int) string {
		return compressed(n+1, func(i int) string {
			if i == n {
				return string(make([]byte, 1024))
			}
			b := []byte(header)
			copy(b[8:], fmt.Sprintf("%07d", i))
			sum := 8 * int(' ')
			for j, c := range b {
				if j < 148 || j >= 156 {
					sum += int(c)
				}
			}
			copy(b[148:], fmt.Sprintf("%06o", sum))
			return string(b)
		})
	}
	layer := tars(n / 8)
	for name, test := range map[string]struct {
		content string
		want    int
	}{"cpio": {cpio, n}, "tar": {tars(n), n}, "image": {ociTar(t, layer, layer, layer), n / 8}} {
		entries, most := 0, uint64(0)
		var before, now runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for _, err := range inMemory(t, test.content, Limits{}).Files(t.Context()) {
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if entries++; entries == test.want/2 || entries == test.want {
				runtime.GC()
				runtime.ReadMemStats(&now)
				most = max(most, now.HeapAlloc-min(now.HeapAlloc, before.HeapAlloc))
			}
		}
		if entries != test.want || most > 64<<20 {
			t.Errorf("%s: %d entries, %d MiB", name, entries, most>>20)
		}
	}
}

// compressed returns n pieces, compressed with gzip.
func compressed(n int, piece func(i int) string) string {
	var b bytes.Buffer
	w, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	for i := range n {
		io.WriteString(w, piece(i))
	}
	w.Close()
	return b.String()
}

// TestModulesLimit gives Modules more modules than a package may hold.
func TestModulesLimit(t *testing.T) {
	var b strings.Builder
	for i := range maxModules + 10 {
		b.WriteString(newc(fmt.Sprintf("%d.ko", i), 0o100644, uint32(i), 1, ""))
	}
	a := inMemory(t, b.String()+newcEnd, Limits{})
	work := names()
	if _, err := Modules(t.Context(), a, work); !errors.Is(err, ErrLimit) {
		t.Errorf("error %v", err)
	}
}

// names is work that returns the names of modules, with what they hold or why not.
func names() Work[string, string] {
	judge := ""
	return Work[string, string]{Judge: &judge,
		Do: func(judge string, m Module) string {
			if m.Err != nil {
				return m.Name + ": " + m.Err.Error()
			}
			opened, err := m.Open(context.Background())
			if err != nil {
				return m.Name + ": " + err.Error()
			}
			defer opened.Close()
			b, err := io.ReadAll(opened.Payload(opened.Size))
			if err != nil {
				return m.Name + ": " + err.Error()
			}
			return m.Name + "=" + string(b) + judge
		},
		Alias: func(link Module, of string) string { return link.Name + "->" + of },
		Emit:  func(string) {},
	}
}

// TestModules gives modules and kernel images in several orders.
func TestModules(t *testing.T) {
	t.Parallel()
	link := func(name, target string) tar.Header {
		return tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink}
	}
	hard := func(name, target string) tar.Header {
		return tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeLink}
	}
	for name, test := range map[string]struct {
		files []tar.Header
		want  string
		err   string
	}{
		"kernel first": {files: []tar.Header{file("boot/vmlinuz-1", "K"), file("lib/modules/1/a.ko", "m")},
			want: "lib/modules/1/a.ko=m by K"},
		"kernel last": {files: []tar.Header{file("lib/modules/1/a.ko", "m"), file("usr/lib/modules/1/vmlinuz", "K")},
			want: "lib/modules/1/a.ko=m by K"},
		"large modules before the kernel": {files: []tar.Header{file("lib/modules/1/a.ko", strings.Repeat("m",
			module.DefaultMemory+1)),
			file("lib/modules/1/b.ko", "m"), file("boot/vmlinuz-1", "K")}, want: "lib/modules/1/a.ko=" +
			strings.Repeat("m", module.DefaultMemory+1) + " by K lib/modules/1/b.ko=m by K"},
		"the only kernel judges all": {files: []tar.Header{file("opt/a.ko", "m"), file("lib/modules/2/a.ko", "n"),
			file("boot/vmlinuz-1", "K")},
			want: "opt/a.ko=m by K lib/modules/2/a.ko=n by K"},
		"two kernels": {files: []tar.Header{file("lib/modules/1/a.ko", "m"), file("boot/vmlinuz-1", "K"),
			file("boot/vmlinuz-2", "L"),
			file("lib/modules/2/a.ko", "n"), file("lib/modules/3/a.ko", "o"), file("a.ko", "p")},
			want: "lib/modules/1/a.ko=m by K lib/modules/2/a.ko=n by L " +
				"lib/modules/3/a.ko: no kernel image to judge the modules by: there are several, and none is of 3: " +
				"boot/vmlinuz-1, boot/vmlinuz-2 a.ko: no kernel image to judge the modules by: it is not below " +
				"lib/modules/KVER, and there are several: boot/vmlinuz-1, boot/vmlinuz-2"},
		"one kernel under two names": {files: []tar.Header{file("boot/vmlinuz-1", "K"), file("lib/modules/1/vmlinuz",
			"K"), file("a.ko", "m")},
			want: "a.ko=m by K"},
		"the release is in the image": {files: []tar.Header{file("boot/vmlinuz", "K7"), file("boot/vmlinuz-1", "L"),
			file("lib/modules/7/a.ko", "m")},
			want: "lib/modules/7/a.ko=m by K7"},
		"no kernel": {files: []tar.Header{file("a.ko", "m")},
			err: "no kernel image to judge the modules by: the tar archive holds none"},
		"unread kernel": {files: []tar.Header{file("a.ko", "m"), file("boot/vmlinuz-1", "?")},
			err: "boot/vmlinuz-1 is none"},
		"neither is read": {files: []tar.Header{file("boot/vmlinux-1.gz", "?"), file("boot/vmlinuz-1", "K"), file("a.ko",
			"m")}, want: "a.ko=m by K"},
		"links": {files: []tar.Header{file("boot/vmlinuz-1", "K"), link("first.ko", "usr/dir/hard.ko"),
			file("usr/dir/a.ko", "m"),
			hard("usr/dir/hard.ko", "usr/dir/a.ko"), link("lib", "usr/dir"), link("over.ko", "/lib/./../dir/a.ko"),
			link("loop.ko", "loop.ko"),
			link("gone.ko", "nowhere"), hard("bad.ko", "nothing"), link("up.ko", "../../../usr/dir/a.ko")},
			want: "first.ko->usr/dir/hard.ko->usr/dir/a.ko=m by K usr/dir/a.ko=m by K usr/dir/hard.ko->usr/dir/a.ko=m by K " +
				"over.ko->usr/dir/a.ko=m by K loop.ko: symbolic links that lead on from loop.ko form a loop " +
				"gone.ko: symbolic link to nowhere, which is no module in the archive " +
				"bad.ko: hard link to nothing, which is not in the archive up.ko->usr/dir/a.ko=m by K"},
		"odd files": {files: []tar.Header{file("boot/vmlinuz-1", "K"), {Name: "fifo.ko", Typeflag: tar.TypeFifo},
			{Name: "dir.ko", Typeflag: tar.TypeDir},
			file("a.ko.debug", "x"), file(".//up.ko", "m")}, want: "fifo.ko: not a regular file up.ko=m by K"},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			work := names()
			work.Judge = nil
			work.OpenKernel = func(k Kernel, r io.ReaderAt, size int64) (string, string, error) {
				b := make([]byte, size)
				if _, err := r.ReadAt(b, 0); err != nil && err != io.EOF {
					return "", "", err
				}
				if string(b) == "?" {
					return "", "", errors.New(k.Name + " is none")
				}
				return " by " + string(b), strings.TrimLeft(string(b), "KL"), nil
			}
			work.Emit = func(s string) { got = append(got, s) }
			_, err := Modules(t.Context(), inMemory(t, tarOf(t, test.files...), Limits{}), work)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("error %v, want %q", err, test.err)
				}
				return
			}
			if text := strings.Join(got, " "); err != nil || text != test.want {
				t.Errorf("error %v\ngot  %.2000s\nwant %.2000s", err, text, test.want)
			}
		})
	}
}

// TestInterrupted ends the context in the middle.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	var files []tar.Header
	for i := range 100 {
		files = append(files, file(fmt.Sprintf("%d.ko", i), "m"))
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("interrupted")
	work := names()
	emitted := 0
	work.Jobs = 1
	work.Emit = func(string) {
		if emitted++; emitted == 10 {
			cancel(cause)
		}
	}
	if _, err := Modules(ctx, inMemory(t, tarOf(t, files...), Limits{}), work); err != cause || emitted != 10 {
		t.Errorf("%d results, error %v", emitted, err)
	}
}

// TestLayers joins layers: whiteouts, an opaque directory, a file in the place of a directory.
func TestLayers(t *testing.T) {
	t.Parallel()
	lower := tarOf(t, file("keep", "1"), file("gone", "1"), file("dir/a", "1"), file("dir/b", "1"), file("opaque/a",
		"1"), file("tree/x/y", "1"),
		file("twice", "1"), file("was/dir/x", "1"))
	middle := gz(tarOf(t, file(".wh.gone", ""), file("dir/.wh.a", ""), file("opaque/b", "2"),
		file("opaque/.wh..wh..opq", ""), file(".wh.tree", ""),
		file("twice", "2"), file("was", "2")))
	upper := tarOf(t, file("twice", "3"), file("gone", "3"))
	want := "twice=3 gone=3 opaque/b=2 was=2 keep=1 dir/b=1"
	for name, content := range map[string]string{"OCI": ociTar(t, lower, middle, upper), "docker": dockerTar(t, lower,
		middle, upper)} {
		var got []string
		for f, err := range inMemory(t, content, Limits{}).Files(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(f)
			got = append(got, f.Name+"="+string(b))
		}
		if text := strings.Join(got, " "); text != want {
			t.Errorf("%s:\ngot  %s\nwant %s", name, text, want)
		}
	}
}

// TestImages reads several images of one archive, each with a kernel of its own.
func TestImages(t *testing.T) {
	t.Parallel()
	one := tarOf(t, file("boot/vmlinuz-1", "K"), file("lib/modules/1/a.ko", "m"))
	two := tarOf(t, file("lib/modules/1/a.ko", "n"), file("boot/vmlinuz-1", "L"))
	content := tarOf(t, file("one/layer.tar", one), file("two/layer.tar", two), file(manifestFile,
		`[{"RepoTags":["linux:1"],"Layers":["one/layer.tar"]},{"RepoTags":["linux:2"],"Layers":["two/layer.tar"]}]`))
	// The names are not those of docker save, which makes this a tar archive to Recognize.
	a := inMemory(t, content, Limits{})
	a.kind = Docker
	var got []string
	work := names()
	work.Judge = nil
	work.OpenKernel = func(k Kernel, r io.ReaderAt, size int64) (string, string, error) {
		b := make([]byte, size)
		_, err := r.ReadAt(b, 0)
		return string(b), "", err
	}
	do := work.Do
	work.Do = func(judge string, m Module) string { return m.Path() + " " + do(judge, m) }
	work.Emit = func(s string) { got = append(got, s) }
	found, err := Modules(t.Context(), a, work)
	want := "linux:1:lib/modules/1/a.ko lib/modules/1/a.ko=mK linux:2:lib/modules/1/a.ko lib/modules/1/a.ko=nL"
	if text := strings.Join(got, " "); err != nil || text != want || len(found.Kernels) != 2 {
		t.Errorf("%q, error %v, kernels %v", text, err, found.Kernels)
	}
}

// TestStripped reads an rpm whose payload leaves out what the header has.
func TestStripped(t *testing.T) {
	t.Parallel()
	want := contents(t, inMemory(t, string(smallRPM(t)), Limits{}))
	if len(want) != 3 {
		t.Fatalf("files of the whole form: %v", want)
	}
	compare(t, contents(t, inMemory(t, string(strippedRPM(t)), Limits{})), want)
}

// TestHardLinks reads cpio archives with the content at the first, at the last and at no
// link.
func TestHardLinks(t *testing.T) {
	t.Parallel()
	r := uint32(0o100644)
	for _, content := range []string{
		newc("a", r, 7, 3, "data") + newc("b", r, 7, 3, "") + newc("c", r, 7, 3, "") + newc("other", r, 8, 2, "x") + newcEnd,
		newc("a", r, 7, 3, "") + newc("b", r, 7, 3, "") + newc("other", r, 8, 2, "x") + newc("c", r, 7, 3, "data") + newcEnd,
	} {
		got := contents(t, inMemory(t, content, Limits{}))
		if len(got) != 4 || got["a"] != got["b"] || got["a"] != got["c"] || !strings.HasPrefix(got["a"], "4 bytes") {
			t.Errorf("%v", got)
		}
	}
	got := contents(t, inMemory(t, newc("a", r, 7, 2, "")+newc("b", r, 7, 2, "")+newcEnd, Limits{}))
	if len(got) != 2 || !strings.HasPrefix(got["b"], "0 bytes") {
		t.Errorf("%v", got)
	}
}

// TestFilesStops leaves the iteration in the middle, and does not read content.
func TestFilesStops(t *testing.T) {
	t.Parallel()
	for _, content := range []string{ar("debian-binary", "2.0\n", "control.tar", tarOf(t), "data.tar.gz",
		gz(tarOf(t, file("a", "1"), file("b",
			"2")))),
		gz(newc("a", 0o100644, 1, 1, "1") + newcEnd), string(smallRPM(t)), ociTar(t, tarOf(t, file("a", "1")))} {
		for f, err := range inMemory(t, content, Limits{}).Files(t.Context()) {
			if err != nil || f == nil {
				t.Error(err)
			}
			break
		}
	}
}

// fuzz reads a seed with changes as an archive. It must end, and no file's content is longer
// than its size.
func fuzz(f *testing.F, seeds ...string) {
	for i, seed := range seeds {
		end := uint64(len(seed))
		f.Add(uint8(i), uint64(0), uint64(0), uint64(0))
		f.Add(uint8(i), end/2<<16|0x101, end*3/4<<16|0x6ff, uint64(0))
		f.Add(uint8(i), end*2/3<<16|0x701, uint64(0), uint64(0))
	}
	limits := Limits{Bytes: 1 << 24, Entries: 1000, Kept: 1 << 16}
	f.Fuzz(func(t *testing.T, seed uint8, one, two, three uint64) {
		content := testmod.Edit([]byte(seeds[int(seed)%len(seeds)]), one, two, three)
		a, err := New(bytes.NewReader(content), int64(len(content)), limits)
		if err != nil {
			if !errors.Is(err, ErrNotArchive) {
				t.Fatal(err)
			}
			return
		}
		whole := true
		for file, err := range a.Files(t.Context()) {
			if err != nil {
				whole = false
				break
			}
			if parts := strings.Split(file.Name, "/"); slices.Contains(parts, "..") || len(parts) > 1 && parts[0] == "" {
				t.Fatalf("name %q", file.Name)
			}
			n, err := io.Copy(io.Discard, file)
			if n > file.Size || err == nil && n < file.Size {
				t.Fatalf("%q: %d of %d bytes, error %v", file.Name, n, file.Size, err)
			}
		}
		if _, err := Modules(t.Context(), a, names()); err == nil && !whole {
			t.Fatal("modules of an archive that cannot be read")
		}
	})
}

func FuzzDeb(f *testing.F) {
	data := tarOf(f, file("boot/vmlinuz-1", "K"), file("lib/modules/1/a.ko", "m"))
	fuzz(f, ar("debian-binary", "2.0\n", "control.tar", tarOf(f, file("control", "Package: x")), "data.tar", data),
		ar("debian-binary   ", "2.0\n", "_x", "", "control.tar", data, "data.tar.gz/", gz(data)),
		ar("debian-binary", "2.0\n", "control.tar", data, "data.tar", tarOf(f, file("boot/initrd.img-1",
			newcEnd+gz(newc("a.ko", 0o100644, 1, 1, "m")+newcEnd)))))
}

func FuzzRPM(f *testing.F) {
	fuzz(f, rpmOf(newc("./a.ko", 0o100644, 1, 1, "m")+newcEnd),
		rpmOf("07070X00000000\x00\x0007070X00000001\x00\x00m\x00\x00\x00"+newcEnd))
}

func FuzzInitramfs(f *testing.F) {
	one := newc("lib/modules/1/a.ko", 0o100644, 1, 2, "") + newc("b.ko", 0o100644, 1, 2, "m") + newc("c.ko", 0o120777,
		2, 1, "b.ko") + newcEnd
	twice := newc("a", 0o100644, 7, 2, "") + newc("l", 0o120777, 8, 1, ".") + newc("b.ko", 0o100644, 7, 2, "m") +
		newc("l/a", 0o100644, 9, 1, "n") + newcEnd
	fuzz(f, one, one+"\x00\x00\x00\x00"+gz(one)+gz(one), strings.ReplaceAll(one, cpioNewc, cpioCRC), twice)
}

func FuzzTar(f *testing.F) {
	one := tarOf(f, file("lib/modules/1/a.ko", "m"), tar.Header{Name: "b.ko", Linkname: "lib/modules/1/a.ko",
		Typeflag: tar.TypeLink})
	initrd := newc("a.ko", 0o100644, 1, 2, "") + newc("b.ko", 0o120777, 2, 1, "a.ko") + newcEnd
	two := tarOf(f, file("lib/modules/1/initrd", initrd+gz(initrd)), symlink("c.ko", "initrd"))
	extended := paxOf('g', "comment", "x") + paxOf('x', "path", "a.ko", "size", "1") + entry('0', ustar, "a", "", "m") +
		longOf('L', "b.ko") + longOf('K', "a.ko") + entry('1', gnu, "b", "a", "") + tarEnd
	fuzz(f, two, one, gz(one), gz(one[:700])+gz(one[700:]), extended)
}

func FuzzImage(f *testing.F) {
	lower, upper := tarOf(f, file("lib/modules/1/a.ko", "m")), gz(tarOf(f, file("lib/.wh.modules", ""), file("a.ko", "n")))
	both := tarOf(f, file(layoutFile, "{}"), file(indexFile, `{"manifests":[]}`), file(manifestFile, `[{"Layers":[]}]`))
	fuzz(f, ociTar(f, lower, upper), dockerTar(f, lower, upper), both)
}

func FuzzUKI(f *testing.F) {
	fuzz(f, peOf(".linux", "K", ".initrd", newc("a.ko", 0o100644, 1, 1, "m")+newcEnd, ".ucode", newcEnd))
}

// TestNothingQuoted has archives with something secret where the format has to be: no error
// repeats a part of it.
func TestNothingQuoted(t *testing.T) {
	t.Parallel()
	const secret = "MkK7EmMkK7EmMkK7Em"
	whole := newc("a", 0o100644, 1, 1, "x")
	for name, content := range map[string]string{
		"magic":    whole + strings.Repeat(secret, 20),
		"field":    whole[:20] + secret + whole[20+len(secret):],
		"manifest": tarOf(t, file(layoutFile, "{}"), file(indexFile, "{"+secret)),
		"digest":   tarOf(t, file(layoutFile, "{}"), file(indexFile, `{"manifests":[{"digest":"`+secret+`"}]}`)),
		"number":   tarOf(t, file(layoutFile, "{}"), file(indexFile, `{"manifests":12345678901234567890}`)),
	} {
		err := drainAll(t, inMemory(t, content, Limits{}))
		if err == nil || strings.Contains(err.Error(), secret[:4]) || strings.Contains(err.Error(), "1234") ||
			strings.Contains(err.Error(), "'") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
