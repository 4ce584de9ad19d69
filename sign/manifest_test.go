package sign

import (
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
	"testing"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/sign/manifest"
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
func manifestOf(t testing.TB, hash crypto.Hash, roots ...string) manifest.Manifest {
	t.Helper()
	m, err := openTree(t, Source{Roots: roots, DryRun: true}).Manifest(t.Context(), hash, ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func signManifest(t testing.TB, signer *Signer, m manifest.Manifest) manifest.Signatures {
	t.Helper()
	s, err := signer.SignManifest(t.Context(), m, SignManifestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// withSum gives the lines of a file a last line that fits them.
func withSum(lines ...string) string {
	body := strings.Join(lines, "")
	return body + fmt.Sprintf(`{"message_type":"end","modules":%d,"sha256":"%x"}`+"\n", len(lines)-1, sumOf(body))
}

func sumOf(s string) []byte {
	sum := sha256.Sum256([]byte(s))
	return sum[:]
}

// docExample finds the three blocks of the example in docs/manifest.md.
func docExample(t *testing.T) (digests, signatures string, cert *x509.Certificate) {
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
	digests, signatures, cert := docExample(t)
	plain := "../testdata/modules/amd64-6.12/plain"
	m := manifestOf(t, crypto.SHA256, plain)
	if got := text(t, m); got != digests {
		t.Errorf("docs/manifest.md has\n%s\nand the manifest is\n%s", digests, got)
	}
	s, err := manifest.ReadSignatures(strings.NewReader(signatures))
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
	summary, err := openTree(t, Source{Roots: []string{plain}, Output: out}).Attach(t.Context(), a, AttachOptions{})
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
		again, err := manifest.Read(strings.NewReader(text(t, m)))
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
	refused := func(hash crypto.Hash, roots ...string) error {
		_, err := openTree(t, Source{Roots: roots, DryRun: true}).Manifest(t.Context(), hash, ReadOptions{})
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
		{"path is not UTF-8", map[string][]byte{"a\xff.ko": elf}, nil},
	} {
		dir := t.TempDir()
		for name, data := range test.files {
			put(t, filepath.Join(dir, name), data)
		}
		roots := []string{dir}
		for i, root := range test.roots {
			roots = append(roots[:i:i], filepath.Join(dir, root))
		}
		if err := refused(crypto.SHA256, roots...); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v, want %q", err, test.want)
		}
	}
}

// What signs takes the whole manifest or nothing of it.
func TestSignManifest(t *testing.T) {
	t.Parallel()
	m := manifestOf(t, crypto.SHA256, "../testdata/modules")
	signer := newSigner(t, "rsa:2048", crypto.SHA256, true)
	var seen []int
	s, err := signer.SignManifest(t.Context(), m, SignManifestOptions{Jobs: 3, Progress: func(done, total int) {
		seen = append(seen, done)
		if total != len(m) {
			t.Errorf("%d of %d", total, len(m))
		}
	}})
	if err != nil || len(s) != len(m) || len(seen) != len(m) || !slices.IsSorted(seen) {
		t.Fatalf("%d signatures, progress %v, %v", len(s), seen, err)
	}
	if _, err := newSigner(t, "rsa:2048", crypto.SHA512, true).SignManifest(
		t.Context(), m, SignManifestOptions{},
	); err == nil ||
		!strings.Contains(err.Error(), "its digest is sha256") {
		t.Errorf("another hash: %v", err)
	}
	key := testmod.NewKey(t, "rsa:2048")
	lost := errors.New("the token is gone")
	failingKey, err := NewSigner(failingSigner{key.Private, lost}, key.Certificate, SignerOptions{Hash: crypto.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	if s, err := failingKey.SignManifest(t.Context(), m, SignManifestOptions{}); !errors.Is(err, lost) || s != nil {
		t.Errorf("a key that fails: %v", err)
	}
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if s, err := signer.SignManifest(ctx, m, SignManifestOptions{}); !errors.Is(err, why) || s != nil {
		t.Errorf("interrupted: %v", err)
	}
}
