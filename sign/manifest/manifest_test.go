package manifest

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// text is what a manifest or signatures look like as a file.
func text(t testing.TB, f interface{ Write(io.Writer) error }) string {
	t.Helper()
	var b strings.Builder
	if err := f.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func read(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// example is a manifest with signatures, which hold anything.
func example() (Manifest, Signatures) {
	var m Manifest
	var s Signatures
	for _, name := range []string{"drivers/counter.ko", "hello.ko"} {
		sum := sha256.Sum256([]byte(name))
		d := Digest{Path: name, Size: 5000, Hash: crypto.SHA256, Sum: sum[:]}
		m = append(m, d)
		s = append(s, Signature{Digest: d, Message: []byte("signature of " + name)})
	}
	return m, s
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// withSum gives the lines of a file a last line that fits them.
func withSum(lines ...string) string {
	body := strings.Join(lines, "")
	return body + string(lastLine(len(lines)-1, sumOf(body)))
}

func sumOf(s string) []byte {
	sum := sha256.Sum256([]byte(s))
	return sum[:]
}

// What the format cannot hold is not written.
func TestWriteRefuses(t *testing.T) {
	t.Parallel()
	sum := make([]byte, 32)
	for _, m := range []Manifest{
		{},
		{{"a.ko", 1, crypto.SHA256, sum, nil}, {"a.ko", 1, crypto.SHA256, sum, nil}},
		{{"a.ko", 0, crypto.SHA256, sum, nil}},
		{{"a.ko", 1, crypto.SHA256, sum[1:], nil}},
		{{"a.ko", 1, crypto.MD5, sum[:16], nil}},
		{{"a.ko", 1, crypto.SHA256, sum, nil}, {"b.ko", 1, crypto.SHA3_256, sum, nil}},
		{{"/a.ko", 1, crypto.SHA256, sum, nil}},
	} {
		var b bytes.Buffer
		if err := m.Write(&b); err == nil || b.Len() > 0 {
			t.Errorf("%v was written: %v", m, err)
		}
	}
	if err := (Signatures{{Digest: Digest{"a.ko", 1, crypto.SHA256, sum, nil}}}).Write(io.Discard); err == nil {
		t.Error("a line without a signature was written")
	}
}

// What a reader refuses, and that it says in which line.
func TestReadRefuses(t *testing.T) {
	t.Parallel()
	const (
		first = `{"message_type":"manifest","version":1}` + "\n"
		zeros = `0000000000000000000000000000000000000000000000000000000000000000`
	)
	line := func(path string) string {
		return fmt.Sprintf(`{"message_type":"module","path":"%s","size":7,"hash":"sha256","digest":"%s"}`+"\n", path, zeros)
	}
	change := func(from, to string) string { return withSum(first, strings.Replace(line("a.ko"), from, to, 1)) }
	whole := withSum(first, line("a.ko"), line("b.ko"), line("b/a.ko"))
	if _, err := Read(strings.NewReader(whole)); err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(whole, "\n")
	without := func(i int) string { return strings.Join(slices.Delete(slices.Clone(lines), i, i+1), "") }
	for _, test := range []struct{ text, want string }{
		{"", "file is empty"},
		{"\n", "line 1: not a file of digests"},
		{"no JSON\n", "line 1: not a file of digests"},
		{`{"message_type":"summary"}` + "\n", "line 1: not a file of digests"},
		{string(firstLine(signaturesKind, nil)), "line 1: these are signatures and not a manifest"},
		{strings.Replace(whole, `"version":1`, `"version":3,"more":3`, 1), "line 1: unknown version 3, want 1 or 2"},
		{strings.Replace(whole, `"version":1`, `"version": 1`, 1), "line 1: not in canonical form"},
		{first, "the file is cut off after line 1: its last line is missing"},
		{strings.Join(lines[:3], ""), "the file is cut off after line 3: its last line is missing"},
		{whole[:len(whole)-1], "line 5: the file is cut off here"},
		{whole[:200], "line 3: the file is cut off here"},
		{first + strings.Repeat("x", maxLine), "line 2: longer than 131072 bytes"},
		{withSum(first), "line 2: the file has no module"},
		{without(0), "line 1: not a file of digests"},
		{without(1), "line 4: it counts 3 modules, the file has 2: 1 missing"},
		{without(3), "line 4: it counts 3 modules, the file has 2: 1 missing"},
		{
			strings.Join(slices.Insert(slices.Clone(lines), 4, line("c.ko")), ""),
			"line 6: it counts 3 modules, the file has 4: 1 too many",
		},
		{withSum(first, line("a.ko"), line("a.ko")), "line 3: a.ko occurs twice"},
		{withSum(first, line("b.ko"), line("a.ko")), "line 3: a.ko follows b.ko"},
		{withSum(first, line("b/a.ko"), line("b.ko")), "line 3: b.ko follows b/a.ko"}, // bytes, not directories
		{strings.Replace(whole, "b.ko", "b-.ko", 1), "line 5: the lines before it have changed"},
		{strings.Replace(whole, `"digest":"0`, `"digest":"1`, 1), "line 5: the lines before it have changed"},
		{whole + "\n", "line 6: more data after the last line"},
		{whole + whole, "line 6: more data after the last line"},
		{whole + "x", "line 6: the file is cut off here"},
		{withSum(first, line("a.ko"), first), `line 3: unknown message_type "manifest"`},
		{withSum(first, line("a.ko"), "{}\n"), `line 3: unknown message_type ""`},
		{withSum(first, line("a.ko"), "[]\n"), `line 3: not a line of such a file`},
		{withSum(first, line("a.ko"), line("b.ko")[1:]), "line 3: not a line of such a file"},
		{
			withSum(first, line("a.ko"), strings.Replace(line("b.ko"), "sha256", "sha3-256", 1)),
			"line 3: b.ko has hash sha3-256, but a.ko has sha256",
		},
		{change("sha256", "md5"), `line 2: hash "md5" does not sign modules`},
		{change("sha256", "SHA256"), `line 2: hash "SHA256" does not sign modules`},
		{change("sha256", "sha512"), "line 2: digest of 32 bytes, sha512 has 64"},
		{change(":7", ":0"), "line 2: size 0"},
		{change(":7", ":-7"), "line 2: size -7"},
		{change(":7", ":7.5"), "line 2: not a line of such a file"},
		{change(":7", ":07"), "line 2: not a line of such a file"},
		{change(":7", ":7e0"), "line 2: not a line of such a file"},
		{change(`"0`, `"g`), "line 2: digest: "},
		{change(`"0`, `"A`), "line 2: not in canonical form"},
		{change(`"size"`, `"Size"`), "line 2: not in canonical form"},
		{change(`"size":7`, `"size":8,"size":7`), "line 2: not in canonical form"},
		{change(`"size":7`, `"size":7,"more":1`), "line 2: not in canonical form"},
		{change(`"path":"a.ko","size":7`, `"size":7,"path":"a.ko"`), "line 2: not in canonical form"},
		{change(`a.ko`, `\u0061.ko`), "line 2: not in canonical form"},
		{change("\n", " \n"), "line 2: not in canonical form"},
		{change("\n", "\r\n"), "line 2: not in canonical form"},
		{change(`"}`, `","signature":"AA=="}`), "line 2: a.ko has a signature in a manifest"},
		{change(`a.ko`, ``), "line 2: path has 0 bytes"},
		{change(`a.ko`, strings.Repeat("a", 4097)), "line 2: path has 4097 bytes"},
		{change(`a.ko`, `/a.ko`), "line 2: absolute path"},
		{change(`a.ko`, `../a.ko`), "line 2: path is not in its shortest form"},
		{change(`a.ko`, `..`), "line 2: path is not in its shortest form"},
		{change(`a.ko`, `.`), "line 2: path is not in its shortest form"},
		{change(`a.ko`, `./a.ko`), "line 2: path is not in its shortest form"},
		{change(`a.ko`, `b//a.ko`), "line 2: path is not in its shortest form"},
		{change(`a.ko`, `b/../a.ko`), "line 2: path is not in its shortest form"},
		{change(`a.ko`, `a.ko/`), "line 2: path is not in its shortest form"},
		{change(`a.ko`, `a\nb.ko`), "line 2: path with a control character"},
		{change(`a.ko`, `a\u0000.ko`), "line 2: path with a control character"},
		{change(`a.ko`, "a\u009b.ko"), "line 2: path with a control character"},
		{change(`a.ko`, "a\u2028.ko"), "line 2: path with a control character"},
		{change(`a.ko`, "a\xff.ko"), "line 2: not in canonical form"},
	} {
		_, err := Read(strings.NewReader(test.text))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.300q:\n%v, want %q", test.text, err, test.want)
		}
	}
	// Names that are odd and go.
	for _, name := range []string{`a"b\c.ko`, "ü/é ñ.ko", "a..ko", "..a/-.ko", "<&>.ko", strings.Repeat(`\`, 4096)} {
		m := Manifest{{name, 1, crypto.SHA256, make([]byte, 32), nil}}
		if got, err := Read(strings.NewReader(text(t, m))); err != nil || got[0].Path != name {
			t.Errorf("%.40q: %v", name, err)
		}
	}
	// And in signatures.
	for _, test := range []struct{ text, want string }{
		{whole, "line 1: this is a manifest without signatures"},
		{withSum(string(firstLine(signaturesKind, nil)), line("a.ko")), "line 2: a.ko has no signature"},
		{
			withSum(string(firstLine(signaturesKind, nil)), strings.Replace(line("a.ko"), `"}`, `","signature":""}`, 1)),
			"line 2: a.ko has no signature",
		},
		{
			withSum(string(firstLine(signaturesKind, nil)), strings.Replace(line("a.ko"), `"}`, `","signature":"A"}`, 1)),
			"line 2: not a line of such a file: illegal base64",
		},
		{
			withSum(string(firstLine(signaturesKind, nil)), strings.Replace(line("a.ko"), `"}`, `","signature":"AB=="}`, 1)),
			"line 2: not in canonical form",
		},
		{
			withSum(string(firstLine(signaturesKind, nil)), strings.Replace(line("a.ko"), `"}`, `","signature":"AA"}`, 1)),
			"line 2: not a line of such a file",
		},
	} {
		_, err := ReadSignatures(strings.NewReader(test.text))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.300q:\n%v, want %q", test.text, err, test.want)
		}
	}
	r := &lineReader{lines: bufio.NewReader(strings.NewReader(whole)), left: len(lines[0])}
	if _, err := r.next(); err != nil {
		t.Error(err)
	}
	if _, err := r.next(); err == nil || !strings.Contains(err.Error(), "line 2: the file has more than 268435456 bytes") {
		t.Errorf("too large: %v", err)
	}
	broken := errors.New("the network is gone")
	if _, err := Read(io.MultiReader(strings.NewReader(whole[:100]), failing{broken})); !errors.Is(err, broken) {
		t.Errorf("an error of the reader became %v", err)
	}
}

// No truncation and no changed byte of a file is overlooked.
func TestEveryByteOfManifestCounts(t *testing.T) {
	t.Parallel()
	m, s := example()
	files := map[string]struct {
		text string
		read func(io.Reader) error
	}{
		"manifest":   {text(t, m), func(r io.Reader) error { _, err := Read(r); return err }},
		"signatures": {text(t, s), func(r io.Reader) error { _, err := ReadSignatures(r); return err }},
	}
	for name, f := range files {
		if err := f.read(strings.NewReader(f.text)); err != nil {
			t.Fatal(err)
		}
		for i := range f.text {
			if f.read(strings.NewReader(f.text[:i])) == nil {
				t.Errorf("%s: accepted when cut off after %d bytes", name, i)
			}
			for _, flip := range []byte{0x01, 0x20} {
				b := []byte(f.text)
				b[i] ^= flip
				if f.read(bytes.NewReader(b)) == nil {
					t.Errorf("%s: accepted with byte %d changed from %q to %q", name, i, f.text[i], b[i])
				}
			}
		}
	}
}

// A file that is written is there whole, and a pipe stays one.
func TestWriteManifest(t *testing.T) {
	t.Parallel()
	m := Manifest{{"a.ko", 1, crypto.SHA256, make([]byte, 32), nil}}
	dir := t.TempDir()
	name := filepath.Join(dir, "manifest")
	if err := os.WriteFile(name, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("manifest", link); err != nil {
		t.Fatal(err)
	}
	if err := m.WriteFile(link); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().IsRegular() || read(t, name) != text(t, m) {
		t.Errorf("a link was replaced, or not followed: %v", err)
	}
	if err := (Manifest{}).WriteFile(name); err == nil || read(t, name) != text(t, m) {
		t.Errorf("what cannot be written replaced the file: %v", err)
	}
	if err := m.WriteFile(filepath.Join(dir, "no/manifest")); err == nil {
		t.Error("written to no directory")
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	got := make(chan string)
	go func() {
		b, _ := os.ReadFile(pipe)
		got <- string(b)
	}()
	if err := m.WriteFile(pipe); err != nil {
		t.Error(err)
	}
	if s := <-got; s != text(t, m) {
		t.Errorf("the pipe got %q", s)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 { // nothing is left behind
		t.Errorf("%v, %v", entries, err)
	}
}

// What a reader takes is what a writer writes.
func FuzzRead(f *testing.F) {
	m, _ := example()
	manifest := text(f, m)
	f.Add([]byte(manifest))
	f.Add([]byte(manifest[:len(manifest)/2]))
	f.Add([]byte(strings.Replace(manifest, "hello", `h\"e`, 1)))
	f.Add(
		[]byte(
			withSum(
				string(firstLine(manifestKind, nil)),
				`{"message_type":"module","path":"a\"\\/ü.ko","size":9223372036854775807,"hash":"sha1","digest":"0000000000000000000000000000000000000000"}`+"\n",
			),
		),
	)
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := Read(bytes.NewReader(b)); err == nil && text(t, m) != string(b) {
			t.Errorf("read\n%q\nwhich is written\n%q", b, text(t, m))
		}
	})
}
