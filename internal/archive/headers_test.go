package archive

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// Tar archives made header by header, for what no tool writes.

const (
	ustar = "ustar\x0000"
	gnu   = "ustar  \x00"
)

// entry returns a header, and the content behind it.
func entry(kind byte, magic, name, link, content string) string {
	size := len(content)
	return headerOf(kind, magic, name, link, size) + content + strings.Repeat("\x00", -size&511)
}

func headerOf(kind byte, magic, name, link string, size int) string {
	var h [512]byte
	copy(h[:100], name)
	copy(h[100:], "0000644\x000000000\x000000000\x00"+fmt.Sprintf("%011o\x00%011o\x00        ", size, 0))
	h[156] = kind
	copy(h[157:257], link)
	copy(h[257:], magic)
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return string(h[:])
}

// paxOf returns an extension header of records: key, value, key, value.
func paxOf(kind byte, records ...string) string {
	var body string
	for i := 0; i < len(records); i += 2 {
		rest := " " + records[i] + "=" + records[i+1] + "\n"
		n := len(rest) + 1
		for n != len(rest)+len(fmt.Sprint(n)) {
			n = len(rest) + len(fmt.Sprint(n))
		}
		body += fmt.Sprint(n) + rest
	}
	return entry(kind, ustar, "pax", "", body)
}

func longOf(kind byte, text string) string { return entry(kind, gnu, "././@LongLink", "", text+"\x00") }

var tarEnd = strings.Repeat("\x00", 1024)

// TestTarHeaders has headers of which programs make different files. Each is an error.
func TestTarHeaders(t *testing.T) {
	t.Parallel()
	file := entry('0', ustar, "foo", "", "evil")
	nested := entry('0', ustar, "foo", "", entry('0', ustar, "a.ko", "", "evil"))
	size := fmt.Sprint(1024)
	link := entry('1', ustar, "b.ko", "foo", "")
	bad := func(kind byte, magic, name string, at int, field string) string {
		h := []byte(headerOf(kind, magic, name, "", 0))
		copy(h[at:], field)
		copy(h[148:], "        ")
		sum := 0
		for _, c := range h {
			sum += int(c)
		}
		copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
		return string(h)
	}
	for name, test := range map[string]struct{ content, want string }{
		"global path":         {paxOf('g', "path", "a.ko") + file, "global header"},
		"global link":         {paxOf('g', "linkpath", "x") + link, "global header"},
		"global size":         {paxOf('g', "size", "0") + nested, "global header"},
		"global sparse":       {paxOf('g', "GNU.sparse.name", "a.ko") + file, "global header"},
		"global star":         {paxOf('g', "SCHILY.realsize", "0") + file, "global header"},
		"x and L":             {paxOf('x', "path", "a.ko") + longOf('L', "foo") + file, "several extension"},
		"L and x":             {longOf('L', "foo") + paxOf('x', "path", "a.ko") + file, "several extension"},
		"K and x":             {longOf('K', "foo") + paxOf('x', "linkpath", "x") + link, "several extension"},
		"x and K":             {paxOf('x', "linkpath", "x") + longOf('K', "foo") + link, "several extension"},
		"x and x":             {paxOf('x', "path", "a.ko") + paxOf('x', "mtime", "1") + file, "several extension"},
		"x and g":             {paxOf('x', "path", "a.ko") + paxOf('g', "comment", "1") + file, "several extension"},
		"L and L":             {longOf('L', "a.ko") + longOf('L', "foo") + file, "several extension"},
		"L and g":             {longOf('L', "a.ko") + paxOf('g', "comment", "1") + file, "several extension"},
		"empty L":             {longOf('L', "") + file, "long name"},
		"L with a zero byte":  {longOf('L', "a.ko\x00foo") + file, "long name"},
		"x at the end":        {file + paxOf('x', "path", "a.ko"), "extension headers at the end"},
		"path twice":          {paxOf('x', "path", "a.ko", "path", "foo") + file, "two with the same key"},
		"empty path":          {paxOf('x', "path", "") + file, "empty path"},
		"path, zero byte":     {paxOf('x', "path", "a.ko\x00x") + file, "zero byte"},
		"size with a space":   {paxOf('x', "size", " 0") + nested, "bad size"},
		"two sizes":           {paxOf('x', "size", "0") + nested, "two sizes"},
		"no records":          {entry('x', ustar, "pax", "", "030 path=a.ko\n") + file, "no list of records"},
		"no length":           {entry('x', ustar, "pax", "", "path=a.ko\n") + file, "no list of records"},
		"length too small":    {entry('x', ustar, "pax", "", "5 path=a.ko\n") + file, "bad record"},
		"sparse name alone":   {paxOf('x', "GNU.sparse.name", "a.ko") + file, "part of its records"},
		"sparse size alone":   {paxOf('x', "GNU.sparse.size", "0") + nested, "GNU.sparse.size"},
		"realsize alone":      {paxOf('x', "GNU.sparse.realsize", "0") + nested, "part of its records"},
		"another sparse form": {paxOf('x', "GNU.sparse.major", "0", "GNU.sparse.minor", "1") + file, "GNU.sparse.m"},
		"star's size":         {paxOf('x', "SCHILY.realsize", "0") + nested, "SCHILY.realsize"},
		"sparse link": {paxOf('x', "GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", "a.ko",
			"GNU.sparse.realsize", "0") + link, "sparse file"},
		"character set":      {paxOf('x', "hdrcharset", "ISO-IR 8859 1 1998") + file, "character set"},
		"slash with content": {entry('0', ustar, "s/", "", file), "ends in a slash"},
		"slash, v7":          {entry(0, "", "s/", "", file), "ends in a slash"},
		"slash, contiguous":  {entry('7', ustar, "s/", "", file), "ends in a slash"},
		"slash, empty":       {entry('0', ustar, "s/", "", ""), "ends in a slash"},
		"slash in x":         {paxOf('x', "path", "s/") + file, "ends in a slash"},
		"slash in L":         {longOf('L', "s/") + file, "ends in a slash"},
		"directory, content": {entry('5', ustar, "s/", "", file), "no regular file"},
		"hard link, content": {file + entry('1', ustar, "b", "foo", file), "no regular file"},
		"name upwards":       {entry('0', ustar, "x/../a.ko", "", "evil"), `".."`},
		"link upwards":       {file + entry('1', ustar, "a.ko", "x/../foo", ""), `".."`},
		"no name":            {entry('0', ustar, "", "", "evil"), ""},
		"prefix, GNU tar":    {bad('0', gnu, "a.ko", 345, "lib"), "more than the format"},
		"volume, GNU tar":    {bad('0', gnu, "a.ko", 369, "00000000001\x00"), "more than the format"},
		"star":               {bad('0', ustar, "a.ko", 508, "tar\x00"), "format of star"},
		"unknown format":     {bad('0', "", "a.ko", 345, "lib"), "no known format"},
		"blank size":         {bad('0', ustar, "a.ko", 124, strings.Repeat("\x00", 12)), "clear size"},
		"size, other digits": {bad('0', ustar, "a.ko", 124, "0000000 999\x00"), "clear size"},
		"sparse, not GNU's":  {entry('S', ustar, "a.ko", "", "evil"), "sparse file"},
	} {
		t.Run(name, func(t *testing.T) {
			a := inMemory(t, entry('0', ustar, "good.ko", "", "good")+test.content+tarEnd, Limits{})
			if err := drainAll(t, a); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
	// What tools write stays as it is.
	for name, content := range map[string]string{
		"git archive":     paxOf('g', "comment", "0123") + file,
		"x":               paxOf('x', "path", "foo", "mtime", "1.5", "size", "4", "SCHILY.xattr.a", "\x00") + file,
		"L and K":         longOf('L', "foo") + longOf('K', "x") + link,
		"K and L":         longOf('K', "x") + longOf('L', "foo") + link,
		"v7 directory":    entry(0, "", "dir/", "", "") + file,
		"size in base256": bad('0', gnu, "foo", 124, "\x80"+strings.Repeat("\x00", 11)),
		"blank link size": bad('1', ustar, "foo", 157, "x") + "",
		"large size":      size[:0] + file,
	} {
		if err := drainAll(t, inMemory(t, entry('0', ustar, "x", "", "good")+content+tarEnd, Limits{})); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// anyTar returns an archive with extension headers, or with links and names in other places.
func anyTar(r *rand.Rand) string {
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	all := entry('0', ustar, "good.ko", "", "good") + entry('0', gnu, "x.good", "", "good") +
		entry('0', "", "x.evil", "", "evil")
	if r.IntN(2) == 0 {
		return all + anyLinks(r, 3+r.IntN(4)) + tarEnd
	}
	for range 1 + r.IntN(3) {
		switch r.IntN(4) {
		case 0:
			all += longOf('L', pick("evil.ko", "foo"))
			continue
		case 1:
			all += longOf('K', pick("x.evil", "x.good"))
			continue
		}
		var records []string
		for range 1 + r.IntN(2) {
			key := pick("path", "path", "linkpath", "size", "comment", "GNU.sparse.name", "GNU.sparse.major",
				"GNU.sparse.minor", "GNU.sparse.realsize", "GNU.sparse.size", "GNU.sparse.map", "GNU.sparse.numblocks",
				"SCHILY.realsize", "hdrcharset", "GNU.volume.label")
			value := pick("0", "4", "1", "512", "1024")
			switch key {
			case "path", "GNU.sparse.name":
				value = pick("evil.ko", "foo", "foo/")
			case "linkpath":
				value = pick("x.evil", "x.good")
			}
			records = append(records, key, value)
		}
		all += paxOf(pick("x", "x", "g")[0], records...)
	}
	magic := pick(ustar, gnu, "")
	nested := entry('0', ustar, "evil.ko", "", "evil")
	switch r.IntN(5) {
	case 0:
		all += entry(pick("1", "2")[0], magic, "b.ko", pick("x.good", "x.evil"), "")
	case 1, 2:
		all += entry(pick("0", "\x00", "7", "S", "5", "2")[0], magic, pick("foo", "foo", "foo/"), "", nested)
	default:
		all += entry(pick("0", "\x00", "7")[0], magic, "foo", "", "evil")
	}
	return all + tarEnd
}

// anyLinks returns entries that lie in the same places by links.
func anyLinks(r *rand.Rand, count int) (all string) {
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	for range count {
		name := pick("opt/x", "opt/x", "alias/x", "b.ko", "y")
		switch kind := pick("0", "0", "1", "2", "2", "l", "l", "5")[0]; kind {
		case '0':
			all += entry(kind, ustar, pick("opt/x", "alias/x", "y"), "", pick("good", "evil"))
		case '1':
			all += entry(kind, ustar, name, pick("x.good", "x.evil", "opt/x", "alias/x", "y"), "")
		case '2':
			up := strings.Repeat("../", strings.Count(name, "/"))
			all += entry(kind, ustar, name, up+pick("x.good", "x.evil", "opt/x", "alias/x", "y"), "")
		case 'l':
			all += entry('2', ustar, pick("alias", "alias", "b.ko"), pick("opt", "opt", "y", "opt/x"), "")
		default:
			all += entry(kind, ustar, pick("opt/", "alias/"), "", "")
		}
	}
	return all
}

// TestTarAgainstGNU makes archives by chance, unpacks them with GNU tar, and looks for modules that
// nobody has judged: what has the name of a module, and not the content that modsign saw.
func TestTarAgainstGNU(t *testing.T) {
	t.Parallel()
	testmod.Program(t, "tar", "tar")
	read := 0
	for seed := range uint64(testmod.Rounds(400, 100)) {
		content := anyTar(rand.New(rand.NewPCG(seed, 1)))
		if againstGNU(t, content) {
			read++
		}
		if t.Failed() {
			t.Fatalf("archive %d: %q", seed, strings.ReplaceAll(content, "\x00", ""))
		}
	}
	t.Logf("%d read", read)
	if read < 10 {
		t.Errorf("%d archives without evil were read; a test of nothing", read)
	}
}

// againstGNU reports whether an archive has good modules alone for modsign, and compares with GNU tar.
func againstGNU(t *testing.T, content string) bool {
	if !allGood(t, inMemory(t, content, Limits{})) {
		return false
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.tar"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	os.Mkdir(filepath.Join(dir, "x"), 0o700)
	exec.Command("tar", "--no-same-owner", "-xf", filepath.Join(dir, "a.tar"), "-C", filepath.Join(dir, "x")).Run()
	onlyGood(t, "GNU tar", filepath.Join(dir, "x"))
	return true
}

// allGood reports whether an archive has good modules alone for modsign.
func allGood(t *testing.T, a *Archive) bool {
	trusted := true
	work := names()
	work.Do = func(_ string, m Module) string {
		if m.Err != nil {
			return "unreadable"
		}
		r, size := m.Content()
		b := make([]byte, size)
		r.ReadAt(b, 0)
		return string(b)
	}
	work.Alias = func(_ Module, of string) string { return of }
	work.Emit = func(s string) { trusted = trusted && s == "good" }
	found, err := Modules(t.Context(), a, work)
	return err == nil && trusted && len(found.Outside) == 0
}

// onlyGood looks for other modules in what a program has unpacked.
func onlyGood(t *testing.T, program, dir string) {
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(name, ".ko") {
			return err
		}
		if b, err := os.ReadFile(name); err == nil && string(b) != "good" {
			t.Errorf("%s makes %s with %.20q", program, d.Name(), b)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestImagesAgainstUmoci makes container images by chance, unpacks them with umoci, and looks for modules
// that nobody has judged.
func TestImagesAgainstUmoci(t *testing.T) {
	t.Parallel()
	testmod.Program(t, "umoci", "umoci")
	read := 0
	for seed := range uint64(testmod.Rounds(150, 30)) {
		r := rand.New(rand.NewPCG(seed, 2))
		layers := []string{entry('5', ustar, "opt/", "", "") + entry('0', ustar, "good.ko", "", "good") +
			entry('0', ustar, "x.good", "", "good") + entry('0', ustar, "x.evil", "", "evil")}
		for range 1 + r.IntN(3) {
			layer := anyLinks(r, 1+r.IntN(3))
			if r.IntN(3) == 0 {
				gone := []string{".wh.y", ".wh.alias", "opt/.wh.x", "opt/.wh..wh..opq", "alias/.wh.x", ".wh.b.ko"}
				layer += entry('0', ustar, gone[r.IntN(len(gone))], "", "")
			}
			layers = append(layers, layer)
		}
		dir := ociDir(t, layers)
		a, err := Open(dir, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		good := allGood(t, a)
		a.Close()
		if !good {
			continue
		}
		bundle := filepath.Join(t.TempDir(), "bundle")
		if exec.Command("umoci", "unpack", "--rootless", "--image", dir+":t", bundle).Run() != nil {
			continue // not an image for umoci
		}
		read++
		onlyGood(t, "umoci", filepath.Join(bundle, "rootfs"))
		if t.Failed() {
			t.Fatalf("image %d: %q", seed, strings.ReplaceAll(strings.Join(layers, " / "), "\x00", ""))
		}
	}
	t.Logf("%d read", read)
	if read < 3 {
		t.Errorf("%d images without evil were read; a test of nothing", read)
	}
}

// ociDir writes an image of layers, which lack the end of a tar archive, to a directory.
func ociDir(t *testing.T, layers []string) string {
	dir := t.TempDir()
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o700); err != nil {
		t.Fatal(err)
	}
	const kind = "application/vnd.oci.image."
	blob := func(mediaType, content, more string) string {
		write(blobOf(content), content)
		return fmt.Sprintf(`{"mediaType":%q,"digest":"sha256:%s","size":%d%s}`, kind+mediaType,
			filepath.Base(blobOf(content)), len(content), more)
	}
	var list, ids []string
	for _, layer := range layers {
		list = append(list, blob("layer.v1.tar", layer+tarEnd, ""))
		ids = append(ids, `"sha256:`+filepath.Base(blobOf(layer+tarEnd))+`"`)
	}
	config := blob("config.v1+json", `{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers",`+
		`"diff_ids":[`+strings.Join(ids, ",")+`]}}`, "")
	manifest := blob("manifest.v1+json", `{"schemaVersion":2,"mediaType":"`+kind+`manifest.v1+json","config":`+config+
		`,"layers":[`+strings.Join(list, ",")+`]}`, `,"annotations":{"org.opencontainers.image.ref.name":"t"}`)
	write(layoutFile, `{"imageLayoutVersion":"1.0.0"}`)
	write(indexFile, `{"schemaVersion":2,"manifests":[`+manifest+`]}`)
	return dir
}

// umoci insert writes layers without the end marker of tar archives. Their digests say that they are
// whole; one that ends within an entry is cut off all the same.
func TestLayerOfUmociInsert(t *testing.T) {
	umoci := testmod.Program(t, "umoci", "umoci")
	dir, content := filepath.Join(t.TempDir(), "image"), t.TempDir()
	if err := os.WriteFile(filepath.Join(content, "a.ko"), []byte("good"), 0o644); err != nil {
		t.Fatal(err)
	}
	testmod.Run(t, umoci, "init", "--layout", dir)
	testmod.Run(t, umoci, "new", "--image", dir+":t")
	testmod.Run(t, umoci, "insert", "--rootless", "--image", dir+":t", content, "/modules")
	var names []string
	a, err := Open(dir, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for f, err := range a.Files(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if f.Mode.IsRegular() {
			names = append(names, f.Name)
		}
	}
	if !slices.Equal(names, []string{"modules/a.ko"}) {
		t.Errorf("it holds %q", names)
	}
	cut := ociTar(t, tarOf(t, file("a", strings.Repeat("x", 600)))[:1024])
	for f, err := range inMemory(t, cut, Limits{}).Files(t.Context()) {
		if err != nil {
			if !strings.Contains(err.Error(), "cut off") {
				t.Error(err)
			}
			return
		}
		if _, err := io.Copy(io.Discard, f); err != nil {
			return
		}
	}
	t.Error("half an entry passes for a layer")
}
