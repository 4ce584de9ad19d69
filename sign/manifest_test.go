package sign

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/testmod"
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

// manifestOf is the manifest of a tree.
func manifestOf(t testing.TB, hash crypto.Hash, roots ...string) Manifest {
	t.Helper()
	m, err := openTree(t, Source{Roots: roots, DryRun: true}).Manifest(t.Context(), hash, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func signManifest(t testing.TB, signer *Signer, m Manifest) Signatures {
	t.Helper()
	s, err := m.Sign(t.Context(), signer, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// withSum gives the lines of a file a last line that fits them.
func withSum(lines ...string) string {
	body := strings.Join(lines, "")
	return body + string(lastLine(len(lines)-1, sumOf(body)))
}

func sumOf(s string) []byte {
	sum := sha256.Sum256([]byte(s))
	return sum[:]
}

// docExample finds the three blocks of the example in docs/manifest.md.
func docExample(t *testing.T) (manifest, signatures string, cert *x509.Certificate) {
	t.Helper()
	_, example, _ := strings.Cut(string(read(t, "../docs/manifest.md")), "\n## An example\n")
	example, _, _ = strings.Cut(example, "\n## ")
	var blocks []string
	in := false
	for line := range strings.Lines(example) {
		code, ok := strings.CutPrefix(line, "    ")
		if ok && !in {
			blocks = append(blocks, "")
		}
		if in = ok; ok {
			blocks[len(blocks)-1] += code
		}
	}
	if len(blocks) != 3 {
		t.Fatalf("%d blocks in the example of docs/manifest.md", len(blocks))
	}
	block, _ := pem.Decode([]byte(blocks[2]))
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return blocks[0], blocks[1], cert
}

// The example of docs/manifest.md is what it says that it is.
func TestManifestExample(t *testing.T) {
	t.Parallel()
	manifest, signatures, cert := docExample(t)
	plain := "../testdata/modules/amd64-6.12/plain"
	m := manifestOf(t, crypto.SHA256, plain)
	if got := text(t, m); got != manifest {
		t.Errorf("docs/manifest.md has\n%s\nand the manifest is\n%s", manifest, got)
	}
	s, err := ReadSignatures(strings.NewReader(signatures))
	if err != nil {
		t.Fatal(err)
	}
	if got := text(t, s); got != signatures {
		t.Errorf("docs/manifest.md has\n%s\nand written anew it is\n%s", signatures, got)
	}
	a, err := NewAttachment(t.Context(), cert, s)
	if err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	summary, err := openTree(t, Source{Roots: []string{plain}, Output: out}).Attach(t.Context(), a, Options{})
	if err != nil || summary.Signed != 3 || summary.Failed != 0 {
		t.Errorf("%+v, %v", summary, err)
	}
	// openssl says so too.
	certFile := testmod.WriteFile(t, "cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	for _, name := range []string{"counter.ko", "hello.ko", "ring.ko"} {
		sig := testmod.WriteFile(t, "p7s", signatureOf(read(t, filepath.Join(out, name))))
		testmod.Run(t, testmod.Program(t, "openssl", "openssl"), "cms", "-verify", "-binary", "-inform", "DER", "-in", sig,
			"-content", filepath.Join(plain, name), "-certfile", certFile, "-nointern", "-noverify", "-out", os.DevNull)
	}
}

// A manifest has the digests that sha256sum and its like compute, of modules of
// every form.
func TestManifest(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "testdata", "modules")
	for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		program := testmod.Program(t, cms.HashName(hash)+"sum", "coreutils")
		m := manifestOf(t, hash, root)
		if len(m) != len(testmod.Testdata(t)) {
			t.Fatalf("%d modules of %d", len(m), len(testmod.Testdata(t)))
		}
		for _, d := range m {
			arch, rest, _ := strings.Cut(d.Path, "/")
			plain := filepath.Join(root, arch, "plain", filepath.Base(rest))
			want, _, _ := strings.Cut(string(testmod.Run(t, program, plain)), " ")
			if got := fmt.Sprintf("%x", d.Sum); got != want || d.Size != int64(len(read(t, plain))) || d.Hash != hash {
				t.Errorf("%s: %s of %d bytes, and %s says %s", d.Path, got, d.Size, program, want)
			}
		}
		again, err := ReadManifest(strings.NewReader(text(t, m)))
		if err != nil || text(t, again) != text(t, m) || len(again) != len(m) {
			t.Errorf("%v: read again it is another: %v", hash, err)
		}
	}

	// Signatures do not count.
	dir := t.TempDir()
	unsigned := manifestOf(t, crypto.SHA256, root)
	mustSign(t, newSigner(t, "ecdsa:p256", crypto.SHA512, false), Source{Roots: []string{root}, Output: dir}, Options{})
	before := snapshot(t, dir)
	if text(t, manifestOf(t, crypto.SHA256, dir)) != text(t, unsigned) {
		t.Error("signed modules have another manifest")
	}
	unchanged(t, "Manifest", dir, before, true)
}

// What cannot be signed as a whole gives no manifest.
func TestManifestRefused(t *testing.T) {
	t.Parallel()
	manifest := func(hash crypto.Hash, roots ...string) error {
		_, err := openTree(t, Source{Roots: roots, DryRun: true}).Manifest(t.Context(), hash, Options{})
		return err
	}
	elf := testmod.ELF()
	for _, test := range []struct {
		want  string
		files map[string][]byte
		roots []string
	}{
		{"1 of 2 modules failed", map[string][]byte{"a.ko": elf, "b.ko": []byte("no module")}, nil},
		{"would both be called a.ko", map[string][]byte{"a.ko": elf, "a.ko.gz": compressed(t, compress.Gzip, elf)}, nil},
		{"would both be called a.ko", map[string][]byte{"1/a.ko": elf, "2/a.ko": elf}, []string{"1", "2"}},
		{"path with a control character", map[string][]byte{"a\nb.ko": elf}, nil},
		{"path that is not UTF-8", map[string][]byte{"a\xff.ko": elf}, nil},
	} {
		dir := t.TempDir()
		for name, data := range test.files {
			put(t, filepath.Join(dir, name), data)
		}
		roots := []string{dir}
		for i, root := range test.roots {
			roots = append(roots[:i:i], filepath.Join(dir, root))
		}
		if err := manifest(crypto.SHA256, roots...); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v, want %q", err, test.want)
		}
	}
	// Nor does one that the format cannot hold.
	sum := make([]byte, 32)
	for _, m := range []Manifest{
		{},
		{{"a.ko", 1, crypto.SHA256, sum}, {"a.ko", 1, crypto.SHA256, sum}},
		{{"a.ko", 0, crypto.SHA256, sum}},
		{{"a.ko", 1, crypto.SHA256, sum[1:]}},
		{{"a.ko", 1, crypto.MD5, sum[:16]}},
		{{"a.ko", 1, crypto.SHA256, sum}, {"b.ko", 1, crypto.SHA3_256, sum}},
		{{"/a.ko", 1, crypto.SHA256, sum}},
	} {
		var b bytes.Buffer
		if err := m.Write(&b); err == nil || b.Len() > 0 {
			t.Errorf("%v was written: %v", m, err)
		}
	}
	if err := (Signatures{{Digest: Digest{"a.ko", 1, crypto.SHA256, sum}}}).Write(io.Discard); err == nil {
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
	if _, err := ReadManifest(strings.NewReader(whole)); err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(whole, "\n")
	without := func(i int) string { return strings.Join(slices.Delete(slices.Clone(lines), i, i+1), "") }
	for _, test := range []struct{ text, want string }{
		{"", "it is empty"},
		{"\n", "line 1: this is no file of digests"},
		{"no JSON\n", "line 1: this is no file of digests"},
		{`{"message_type":"summary"}` + "\n", "line 1: this is no file of digests"},
		{string(firstLine(signaturesKind)), "line 1: these are signatures already"},
		{strings.Replace(whole, `"version":1`, `"version":2,"more":3`, 1), "line 1: version 2 is not known, and 1 is"},
		{strings.Replace(whole, `"version":1`, `"version": 1`, 1), "line 1: not written as it has to be"},
		{first, "the file ends after line 1, without its last line: it is cut off"},
		{strings.Join(lines[:3], ""), "the file ends after line 3, without its last line: it is cut off"},
		{whole[:len(whole)-1], "line 5: the file is cut off in it"},
		{whole[:200], "line 3: the file is cut off in it"},
		{first + strings.Repeat("x", maxLine), "line 2: longer than 131072 bytes"},
		{withSum(first), "line 2: there is no module in it"},
		{without(0), "line 1: this is no file of digests"},
		{without(1), "line 4: it counts 3 modules, and 2 are there: 1 missing"},
		{without(3), "line 4: it counts 3 modules, and 2 are there: 1 missing"},
		{strings.Join(slices.Insert(slices.Clone(lines), 4, line("c.ko")), ""), "line 6: it counts 3 modules, and 4 are there: 1 too many"},
		{withSum(first, line("a.ko"), line("a.ko")), "line 3: a.ko is there twice"},
		{withSum(first, line("b.ko"), line("a.ko")), "line 3: a.ko stands behind b.ko"},
		{withSum(first, line("b/a.ko"), line("b.ko")), "line 3: b.ko stands behind b/a.ko"}, // bytes, not folders
		{strings.Replace(whole, "b.ko", "b-.ko", 1), "line 5: the lines before are not those that were written"},
		{strings.Replace(whole, `"digest":"0`, `"digest":"1`, 1), "line 5: the lines before are not those that were written"},
		{whole + "\n", "line 6: something follows the last line"},
		{whole + whole, "line 6: something follows the last line"},
		{whole + "x", "line 6: the file is cut off in it"},
		{withSum(first, line("a.ko"), first), `line 3: message_type "manifest" is not known`},
		{withSum(first, line("a.ko"), "{}\n"), `line 3: message_type "" is not known`},
		{withSum(first, line("a.ko"), "[]\n"), `line 3: not a line of such a file`},
		{withSum(first, line("a.ko"), line("b.ko")[1:]), "line 3: not a line of such a file"},
		{withSum(first, line("a.ko"), strings.Replace(line("b.ko"), "sha256", "sha3-256", 1)), "line 3: b.ko has the hash sha3-256, and a.ko has sha256"},
		{change("sha256", "md5"), `line 2: hash "md5" is none`},
		{change("sha256", "SHA256"), `line 2: hash "SHA256" is none`},
		{change("sha256", "sha512"), "line 2: digest of 32 bytes: sha512 has 64"},
		{change(":7", ":0"), "line 2: size 0"},
		{change(":7", ":-7"), "line 2: size -7"},
		{change(":7", ":7.5"), "line 2: not a line of such a file"},
		{change(":7", ":07"), "line 2: not a line of such a file"},
		{change(":7", ":7e0"), "line 2: not a line of such a file"},
		{change(`"0`, `"g`), "line 2: digest: "},
		{change(`"0`, `"A`), "line 2: not written as it has to be"},
		{change(`"size"`, `"Size"`), "line 2: not written as it has to be"},
		{change(`"size":7`, `"size":8,"size":7`), "line 2: not written as it has to be"},
		{change(`"size":7`, `"size":7,"more":1`), "line 2: not written as it has to be"},
		{change(`"path":"a.ko","size":7`, `"size":7,"path":"a.ko"`), "line 2: not written as it has to be"},
		{change(`a.ko`, `\u0061.ko`), "line 2: not written as it has to be"},
		{change("\n", " \n"), "line 2: not written as it has to be"},
		{change("\n", "\r\n"), "line 2: not written as it has to be"},
		{change(`"}`, `","signature":"AA=="}`), "line 2: a.ko has a signature, in a manifest"},
		{change(`a.ko`, ``), "line 2: path of 0 bytes"},
		{change(`a.ko`, strings.Repeat("a", 4097)), "line 2: path of 4097 bytes"},
		{change(`a.ko`, `/a.ko`), "line 2: absolute path"},
		{change(`a.ko`, `../a.ko`), "line 2: path that is not the shortest way down"},
		{change(`a.ko`, `..`), "line 2: path that is not the shortest way down"},
		{change(`a.ko`, `.`), "line 2: path that is not the shortest way down"},
		{change(`a.ko`, `./a.ko`), "line 2: path that is not the shortest way down"},
		{change(`a.ko`, `b//a.ko`), "line 2: path that is not the shortest way down"},
		{change(`a.ko`, `b/../a.ko`), "line 2: path that is not the shortest way down"},
		{change(`a.ko`, `a.ko/`), "line 2: path that is not the shortest way down"},
		{change(`a.ko`, `a\nb.ko`), "line 2: path with a control character"},
		{change(`a.ko`, `a\u0000.ko`), "line 2: path with a control character"},
		{change(`a.ko`, "a\u009b.ko"), "line 2: path with a control character"},
		{change(`a.ko`, "a\u2028.ko"), "line 2: path with a control character"},
		{change(`a.ko`, "a\xff.ko"), "line 2: not written as it has to be"},
	} {
		_, err := ReadManifest(strings.NewReader(test.text))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.300q:\n%v, want %q", test.text, err, test.want)
		}
	}
	// Names that are odd and go.
	for _, name := range []string{`a"b\c.ko`, "ü/é ñ.ko", "a..ko", "..a/-.ko", "<&>.ko", strings.Repeat(`\`, 4096)} {
		m := Manifest{{name, 1, crypto.SHA256, make([]byte, 32)}}
		if got, err := ReadManifest(strings.NewReader(text(t, m))); err != nil || got[0].Path != name {
			t.Errorf("%.40q: %v", name, err)
		}
	}
	// And in signatures.
	for _, test := range []struct{ text, want string }{
		{whole, "line 1: this is a manifest, without signatures"},
		{withSum(string(firstLine(signaturesKind)), line("a.ko")), "line 2: a.ko has no signature"},
		{withSum(string(firstLine(signaturesKind)), strings.Replace(line("a.ko"), `"}`, `","signature":""}`, 1)), "line 2: a.ko has no signature"},
		{withSum(string(firstLine(signaturesKind)), strings.Replace(line("a.ko"), `"}`, `","signature":"A"}`, 1)), "line 2: not a line of such a file: illegal base64"},
		{withSum(string(firstLine(signaturesKind)), strings.Replace(line("a.ko"), `"}`, `","signature":"AB=="}`, 1)), "line 2: not written as it has to be"},
		{withSum(string(firstLine(signaturesKind)), strings.Replace(line("a.ko"), `"}`, `","signature":"AA"}`, 1)), "line 2: not a line of such a file"},
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
	if _, err := ReadManifest(io.MultiReader(strings.NewReader(whole[:100]), failing{broken})); !errors.Is(err, broken) {
		t.Errorf("an error of the reader became %v", err)
	}
}

// No truncation and no changed byte of a file is overlooked.
func TestEveryByteOfManifestCounts(t *testing.T) {
	t.Parallel()
	m := manifestOf(t, crypto.SHA256, "../testdata/modules/amd64-6.12/plain")[:2]
	s := signManifest(t, newSigner(t, "ecdsa:p256", crypto.SHA256, false), m)
	files := map[string]struct {
		text string
		read func(io.Reader) error
	}{
		"manifest":   {text(t, m), func(r io.Reader) error { _, err := ReadManifest(r); return err }},
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

// What signs takes the whole manifest or nothing of it.
func TestSignManifest(t *testing.T) {
	t.Parallel()
	m := manifestOf(t, crypto.SHA256, "../testdata/modules")
	var seen []int
	s, err := m.Sign(t.Context(), newSigner(t, "rsa:2048", crypto.SHA256, true), Options{Jobs: 3, Report: Report{Progress: func(done, total Count) {
		seen = append(seen, done.Modules)
		if total.Modules != len(m) {
			t.Errorf("%d of %d", total.Modules, len(m))
		}
	}}})
	if err != nil || len(s) != len(m) || len(seen) != len(m) || !slices.IsSorted(seen) {
		t.Fatalf("%d signatures, progress %v, %v", len(s), seen, err)
	}
	if _, err := m.Sign(t.Context(), newSigner(t, "rsa:2048", crypto.SHA512, true), Options{}); err == nil || !strings.Contains(err.Error(), "its digest is sha256") {
		t.Errorf("another hash: %v", err)
	}
	key := testmod.NewKey(t, "rsa:2048")
	lost := errors.New("the token is gone")
	failingKey, err := NewSigner(failingSigner{key.Private, lost}, key.Certificate, crypto.SHA256, false)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := m.Sign(t.Context(), failingKey, Options{}); !errors.Is(err, lost) || s != nil {
		t.Errorf("a key that fails: %v", err)
	}
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if s, err := m.Sign(ctx, newSigner(t, "rsa:2048", crypto.SHA256, true), Options{}); !errors.Is(err, why) || s != nil {
		t.Errorf("interrupted: %v", err)
	}
}

// A file that is written is there whole, and a pipe stays one.
func TestWriteManifest(t *testing.T) {
	t.Parallel()
	m := Manifest{{"a.ko", 1, crypto.SHA256, make([]byte, 32)}}
	dir := t.TempDir()
	name := filepath.Join(dir, "manifest")
	put(t, name, []byte("old"))
	link := filepath.Join(dir, "link")
	if err := os.Symlink("manifest", link); err != nil {
		t.Fatal(err)
	}
	if err := m.WriteFile(link); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().IsRegular() || string(read(t, name)) != text(t, m) {
		t.Errorf("a link was replaced, or not followed: %v", err)
	}
	if err := (Manifest{}).WriteFile(name); err == nil || string(read(t, name)) != text(t, m) {
		t.Errorf("what cannot be written replaced the file: %v", err)
	}
	if err := m.WriteFile(filepath.Join(dir, "no/manifest")); err == nil {
		t.Error("written to no folder")
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
	if left := temps(t, dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// What a reader takes is what a writer writes.
func FuzzReadManifest(f *testing.F) {
	manifest := text(f, manifestOf(f, crypto.SHA256, "../testdata/modules/arm64/plain"))
	f.Add([]byte(manifest))
	f.Add([]byte(manifest[:len(manifest)/2]))
	f.Add([]byte(strings.Replace(manifest, "hello", `h\"e`, 1)))
	f.Add([]byte(withSum(string(firstLine(manifestKind)), `{"message_type":"module","path":"a\"\\/ü.ko","size":9223372036854775807,"hash":"sha1","digest":"0000000000000000000000000000000000000000"}`+"\n")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := ReadManifest(bytes.NewReader(b)); err == nil && text(t, m) != string(b) {
			t.Errorf("read\n%q\nwhich is written\n%q", b, text(t, m))
		}
	})
}

// The inputs are files of signatures with a few changes, with the sum of what they were or
// of what they have become.
func FuzzReadSignatures(f *testing.F) {
	m := manifestOf(f, crypto.SHA384, "../testdata/modules/s390x/plain/hello.ko")
	var files []string
	for _, algorithm := range []string{"ecdsa:p384", "ecdsa:p256"} {
		files = append(files, text(f, signManifest(f, newSigner(f, algorithm, crypto.SHA384, true), m)))
	}
	files = append(files, text(f, m))
	for i := range files {
		for _, right := range []bool{false, true} {
			f.Add(uint8(i), right, uint64(0), uint64(0), uint64(0))
			f.Add(uint8(i), right, uint64(200<<16|'x'), uint64(0), uint64(0))
			f.Add(uint8(i), right, uint64(60<<16|0x400|30), uint64(7<<16|0x700), uint64(0))
		}
	}
	c := testmod.NewKey(f, "ecdsa:p384").Certificate
	f.Fuzz(func(t *testing.T, file uint8, right bool, one, two, three uint64) {
		s := files[int(file)%len(files)]
		if right {
			lines := slices.Collect(strings.Lines(s))
			s = string(testmod.Edit([]byte(strings.Join(lines[:len(lines)-1], "")), one, two, three))
			s = withSum(slices.Collect(strings.Lines(s))...)
		} else {
			s = string(testmod.Edit([]byte(s), one, two, three))
		}
		defer testmod.ShowInputs(t, []byte(s), c.Raw)
		readSignatures(t, c, []byte(s))
	})
}

func readSignatures(t *testing.T, c *x509.Certificate, b []byte) {
	s, err := ReadSignatures(bytes.NewReader(b))
	if err != nil {
		return
	}
	if text(t, s) != string(b) {
		t.Errorf("read\n%q\nwhich is written\n%q", b, text(t, s))
	}
	if a, err := NewAttachment(t.Context(), c, s); err == nil && len(a.signatures) != len(s) {
		t.Errorf("%d signatures became %d", len(s), len(a.signatures))
	}
}
