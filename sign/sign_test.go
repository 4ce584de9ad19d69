package sign

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.mozilla.org/pkcs7"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
)

func newSigner(t testing.TB, algorithm string, hash crypto.Hash, useKeyID bool) *Signer {
	t.Helper()
	key := testmod.NewKey(t, algorithm)
	s, err := NewSigner(key.Private, key.Certificate, SignerOptions{Hash: hash, UseKeyID: useKeyID})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openTree(t testing.TB, source Source) *Tree {
	t.Helper()
	tree, err := Open(t.Context(), source)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tree.Close)
	return tree
}

// sign opens a source and signs it, or takes the signatures off if there is no
// signer. It returns the results in the order in which they came.
func sign(t testing.TB, signer *Signer, source Source, opts Options) (Summary, []Result) {
	t.Helper()
	tree := openTree(t, source)
	defer tree.Close()
	var results []Result
	opts.Report.Result = func(r Result) { results = append(results, r) }
	var summary Summary
	var err error
	if signer != nil {
		summary, err = tree.Sign(t.Context(), signer, opts)
	} else {
		summary, err = tree.RemoveSignatures(t.Context(), opts.WriteOptions)
	}
	if err != nil && !errors.Is(err, ErrIncomplete) {
		t.Fatal(err)
	}
	if failed := summary.Failed > 0; failed != (err != nil) {
		t.Errorf("%d modules failed, and the error is %v", summary.Failed, err)
	}
	if len(results) != tree.Modules() || len(results) != summary.Modules {
		t.Errorf("%d results for %d modules, of which the summary has %d", len(results), tree.Modules(), summary.Modules)
	}
	return summary, results
}

// mustSign is sign for a tree in which nothing may fail.
func mustSign(t testing.TB, signer *Signer, source Source, opts Options) Summary {
	t.Helper()
	summary, results := sign(t, signer, source, opts)
	for _, r := range results {
		if r.Err != nil {
			t.Fatalf("%s: %v", r.Path, r.Err)
		}
	}
	return summary
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// put writes a file and the directories above it.
func put(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// directory makes a directory for the test: in memory where there is plenty, for tests
// that write much.
func directory(t testing.TB) string {
	t.Helper()
	var fs syscall.Statfs_t
	if err := syscall.Statfs("/dev/shm", &fs); err != nil || fs.Bavail*uint64(fs.Bsize) < 4<<30 {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "modsign-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// signed is a payload as it looks when it is signed, made apart from Tree and
// File.
func signed(t testing.TB, s *Signer, payload []byte) []byte {
	t.Helper()
	sig, err := s.Sign(bytes.NewReader(payload))
	if err != nil {
		t.Fatal(err)
	}
	return module.AppendSignature(bytes.Clone(payload), module.TypePKCS7, sig)
}

// compressed is what the programs of the kernel's build make of data.
func compressed(t testing.TB, f compress.Format, data []byte) []byte {
	t.Helper()
	switch f {
	case compress.None:
		return data
	case compress.Gzip:
		return filter(t, data, testmod.Program(t, "gzip", "gzip"), "-n")
	case compress.XZ:
		return filter(t, data, testmod.Program(t, "xz", "xz-utils"), "--check=crc32", "--lzma2=dict=1MiB")
	}
	return filter(t, data, testmod.Program(t, "zstd", "zstd"), "-q")
}

// decompressed is what the format's own program makes of data.
func decompressed(t testing.TB, f compress.Format, data []byte) []byte {
	t.Helper()
	switch f {
	case compress.None:
		return data
	case compress.Gzip:
		return filter(t, data, testmod.Program(t, "gzip", "gzip"), "-dc")
	case compress.XZ:
		return filter(t, data, testmod.Program(t, "xz", "xz-utils"), "-dc")
	}
	return filter(t, data, testmod.Program(t, "zstd", "zstd"), "-dcq")
}

func filter(t testing.TB, data []byte, program string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", program, err)
	}
	return out
}

// payload is what of a module, plain or compressed, is signed.
func payload(t testing.TB, path string) []byte {
	t.Helper()
	content := decompressed(t, compress.FromName(path), read(t, path))
	layers, err := module.Layers(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if len(layers) > 0 {
		content = content[:layers[len(layers)-1].Offset]
	}
	return content
}

// realModules writes n modules of a Debian kernel without their signatures to a
// directory and returns their paths. Most are small; their sizes are spread from
// the smallest to some of a few hundred KB.
func realModules(t testing.TB, dir string, n int) []string {
	t.Helper()
	i := slices.IndexFunc(
		testmod.Kernels(t),
		func(k testmod.Kernel) bool { return strings.HasSuffix(k.Modules[0], ".ko") },
	)
	if i < 0 {
		testmod.Missing(t, "a kernel package with plain modules", "run scripts/kernels")
	}
	type candidate struct {
		path string
		size int64
	}
	var all []candidate
	for _, path := range testmod.Kernels(t)[i].Modules {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, candidate{path, info.Size()})
	}
	slices.SortStableFunc(all, func(a, b candidate) int { return cmp.Compare(a.size, b.size) })
	for i := range n {
		// The square makes the steps small among the small ones.
		place := int(float64(i*i) / float64(n*n) * 0.95 * float64(len(all)))
		put(t, filepath.Join(dir, fmt.Sprintf("%02d-%s", i, filepath.Base(all[place].path))), read(t, all[place].path))
	}
	if s := mustSign(
		t, nil, Source{Roots: []string{dir}}, Options{WriteOptions: WriteOptions{Sync: SyncNone}},
	); s.Stripped != n {
		t.Fatalf("of %d modules, %d had a signature", n, s.Stripped)
	}
	found, err := filepath.Glob(filepath.Join(dir, "*.ko"))
	if err != nil || len(found) != n {
		t.Fatalf("%d modules instead of %d (%v)", len(found), n, err)
	}
	return found
}

// parallel does f for each path, as many at once as there are processors, until
// one has failed.
func parallel(t *testing.T, paths []string, f func(path string) error) {
	t.Helper()
	next := make(chan string)
	failures := make(chan error, 2)
	var wg sync.WaitGroup
	for range cap(failures) {
		wg.Go(func() {
			for path := range next {
				if err := f(path); err != nil {
					failures <- err
					for range next {
					}
				}
			}
		})
	}
	for _, path := range paths {
		next <- path
	}
	close(next)
	wg.Wait()
	close(failures)
	for err := range failures {
		t.Error(err)
	}
}

func execute(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

var hashes = []crypto.Hash{
	crypto.SHA512, crypto.SHA256, crypto.SHA1, crypto.SHA224, crypto.SHA384,
	crypto.SHA3_256, crypto.SHA3_384, crypto.SHA3_512,
}

// RSA signatures have no choice: every byte is the kernel's sign-file's, in
// each of the ways in which it writes them.
func TestSameAsSignFile(t *testing.T) {
	t.Parallel()
	signFile := testmod.SignFile(t)
	modules := testmod.Rounds(50, 5)
	base := directory(t)
	paths := realModules(t, filepath.Join(base, "in"), modules)
	key, cert := testmod.NewKey(t, "rsa:2048").Files(t)
	for _, hash := range testmod.Few(hashes, 2) {
		for _, useKeyID := range []bool{false, true} {
			name, dir := cms.HashName(hash), filepath.Join(base, cms.HashName(hash))
			var byKeyID []string
			if useKeyID {
				byKeyID = []string{"-k"}
				name, dir = name+" with key id", dir+"-k"
			}
			t.Run(name, func(t *testing.T) {
				signer := newSigner(t, "rsa:2048", hash, useKeyID)
				source := Source{Roots: []string{filepath.Join(base, "in")}, Output: filepath.Join(dir, "tree")}
				if s := mustSign(t, signer, source, Options{WriteOptions: WriteOptions{Sync: SyncNone}}); s.Signed != modules {
					t.Fatalf("signed %d modules of %d", s.Signed, modules)
				}
				mustSign(t, signer, source, Options{WriteOptions: WriteOptions{Sync: SyncNone}, Detached: true})
				parallel(t, paths, func(path string) error {
					base := filepath.Base(path)
					ours := filepath.Join(dir, "tree", base)
					at := func(sub string) (string, error) {
						to := filepath.Join(dir, sub, base)
						return to, errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), copyFile(to, path))
					}
					theirs, err := at("kernel")
					if err != nil {
						return err
					}
					again, err := at("file")
					if err != nil {
						return err
					}
					rest := []string{cms.HashName(hash), key, cert, theirs}
					// The .p7s of -d, that of -p with the module signed in place, and a
					// module to which -s appends that signature.
					if err := execute(signFile, slices.Concat([]string{"-d"}, byKeyID, rest)...); err != nil {
						return err
					}
					detached, err := os.ReadFile(theirs + ".p7s")
					if err != nil {
						return err
					}
					raw := theirs + ".raw"
					if err := execute(signFile, "-s", theirs+".p7s", cms.HashName(hash), cert, theirs, raw); err != nil {
						return err
					}
					if err := execute(signFile, slices.Concat([]string{"-p"}, byKeyID, rest)...); err != nil {
						return err
					}
					if err := same(t, "Options.Detached and sign-file -d", ours+".p7s", detached); err != nil {
						return err
					}
					if err := same(t, "Tree.Sign and sign-file", ours, theirs); err != nil {
						return err
					}

					if err := File(t.Context(), signer, again, again+".out", FileOptions{Detached: true}); err != nil {
						return err
					}
					if err := same(t, "File with Detached and sign-file -d", again+".p7s", detached); err != nil {
						return err
					}
					if _, err := os.Stat(again + ".out"); !errors.Is(err, os.ErrNotExist) {
						return fmt.Errorf("File with Detached wrote more: %v", err)
					}
					if err := File(t.Context(), nil, again, again+".raw", FileOptions{Signature: detached}); err != nil {
						return err
					}
					if err := same(t, "File with Signature and sign-file -s", again+".raw", raw); err != nil {
						return err
					}
					if err := errors.Join(
						os.Remove(again+".p7s"), File(t.Context(), signer, again, "", FileOptions{Save: true}),
					); err != nil {
						return err
					}
					if err := same(t, "File and sign-file", again, theirs); err != nil {
						return err
					}
					return same(t, "File with Save and sign-file -p", again+".p7s", theirs+".p7s")
				})
			})
		}
	}
}

func copyFile(to, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

// same says whether two files are equal, and where their signatures differ. The
// second is a path or what it holds.
func same[T string | []byte](t *testing.T, what, path string, other T) error {
	got, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	want, ok := any(other).([]byte)
	if !ok {
		if want, err = os.ReadFile(any(other).(string)); err != nil {
			return err
		}
	}
	if bytes.Equal(got, want) {
		return nil
	}
	testmod.DiffDER(t, signatureOf(got), signatureOf(want))
	return fmt.Errorf("%s: %s differs", what, path)
}

// signatureOf is the outermost signature of a module; what is no signed module
// is a signature itself.
func signatureOf(b []byte) []byte {
	layer, err := module.Split(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return b
	}
	sig, _ := layer.Signature(bytes.NewReader(b))
	return sig
}

// Who has nothing to do with this project verifies what it signs.
func TestOthersVerify(t *testing.T) {
	testmod.Slow(t, "it runs openssl for every key and hash")
	t.Parallel()
	openssl := testmod.Program(t, "openssl", "openssl")
	dir := directory(t)
	paths := realModules(t, filepath.Join(dir, "in"), 3)
	verifiedByGo := 0
	algorithms := testmod.Few([]string{"ecdsa:p384", "rsa:2048", "rsa:4096", "ecdsa:p256", "ecdsa:p521"}, 1)
	for _, algorithm := range algorithms {
		key := testmod.NewKey(t, algorithm)
		_, cert := key.Files(t)
		for _, hash := range hashes {
			if strings.HasPrefix(algorithm, "ecdsa") && hash >= crypto.SHA3_224 {
				continue // OpenSSL 3.0 knows no name for these
			}
			for _, useKeyID := range []bool{false, true} {
				name := fmt.Sprintf("%s-%s-%v", algorithm, cms.HashName(hash), useKeyID)
				signer := newSigner(t, algorithm, hash, useKeyID)
				out := filepath.Join(dir, name)
				mustSign(
					t,
					signer,
					Source{Roots: []string{filepath.Join(dir, "in")}, Output: out},
					Options{WriteOptions: WriteOptions{Sync: SyncNone}},
				)
				path := paths[(int(hash)+len(algorithm))%len(paths)]
				unsigned := read(t, path)
				alone := filepath.Join(out, "file")
				if err := File(t.Context(), signer, path, alone, FileOptions{}); err != nil {
					t.Fatal(err)
				}
				for _, made := range []string{filepath.Join(out, filepath.Base(path)), alone} {
					sig := signatureOf(read(t, made))
					if !bytes.Equal(module.AppendSignature(bytes.Clone(unsigned), module.TypePKCS7, sig), read(t, made)) {
						t.Fatalf("%s: more than a signature was appended", made)
					}
					p7s := filepath.Join(out, "p7s")
					put(t, p7s, sig)
					args := []string{
						"cms", "-verify", "-binary", "-inform", "DER", "-in", p7s, "-content", path, "-certfile", cert,
						"-nointern", "-noverify", "-out", os.DevNull,
					}
					if err := execute(openssl, args...); err != nil {
						t.Errorf("%s: %v", name, err)
					}
					if !useKeyID && slices.Contains([]crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512}, hash) {
						if err := verifyPKCS7(sig, unsigned, key.Certificate); err != nil {
							t.Errorf("%s: go.mozilla.org/pkcs7: %v", name, err)
						}
						if err := verifyPKCS7(sig, unsigned[1:], key.Certificate); err == nil {
							t.Errorf("%s: go.mozilla.org/pkcs7 verifies it for another module", name)
						}
						verifiedByGo++
					}
				}
			}
		}
	}
	if want := len(algorithms) * 3 * 2; verifiedByGo != want {
		t.Errorf("go.mozilla.org/pkcs7 was asked %d times, not %d", verifiedByGo, want)
	}
}

func verifyPKCS7(sig, content []byte, cert *x509.Certificate) error {
	p, err := pkcs7.Parse(sig)
	if err != nil {
		return err
	}
	p.Content, p.Certificates = content, []*x509.Certificate{cert}
	return p.Verify()
}

// The repository's own modules of every machine and compression.
func TestCompressed(t *testing.T) {
	testmod.Slow(t, "it compresses many modules")
	modinfo := testmod.Program(t, "modinfo", "kmod")
	// Debian 12 builds it so.
	withoutGzip := bytes.Contains(testmod.Run(t, modinfo, "--version"), []byte("-ZLIB"))
	testdata := testmod.Testdata(t)
	root := testdata[0]
	for filepath.Base(root) != "modules" {
		root = filepath.Dir(root)
	}
	signer := newSigner(t, "rsa:2048", crypto.SHA384, false)
	out := t.TempDir()
	if s := mustSign(t, signer, Source{Roots: []string{root}, Output: out}, Options{}); s.Signed != len(testdata) ||
		s.Signed == 0 {
		t.Fatalf("signed %d of %d", s.Signed, len(testdata))
	}
	counts := make(map[compress.Format]int)
	for _, path := range testdata {
		rel, err := filepath.Rel(root, path)
		if err != nil {
			t.Fatal(err)
		}
		f := compress.FromName(path)
		counts[f]++
		// The plain module beside, signed.
		plain := filepath.Join(filepath.Dir(filepath.Dir(path)), "plain", module.BaseName(filepath.Base(path)))
		want := signed(t, signer, read(t, plain))
		got := read(t, filepath.Join(out, rel))
		if !bytes.Equal(decompressed(t, f, got), want) {
			t.Errorf("%s: decompressed it is not the signed module", rel)
		}
		if f == compress.XZ && !bytes.Equal(got, compressed(t, f, want)) {
			t.Errorf("%s: not what xz makes of the signed module", rel)
		}
		shown := filepath.Join(out, rel)
		if f == compress.Gzip && withoutGzip {
			shown = testmod.WriteFile(t, "m.ko", decompressed(t, f, got))
		}
		for field, want := range map[string]string{
			"signer":       "modsign test key rsa:2048",
			"sig_hashalgo": "sha384",
			"sig_id":       "PKCS#7",
		} {
			if got := strings.TrimSpace(string(testmod.Run(t, modinfo, "-F", field, shown))); got != want {
				t.Errorf("%s: modinfo says %s is %q, not %q", rel, field, got, want)
			}
		}
	}
	for f := range compress.Zstd + 1 {
		if counts[f] == 0 {
			t.Errorf("no module in testdata is compressed with %v", f)
		}
	}
}

// What Debian signed and compressed comes out as what it was before.
func TestStripDebian(t *testing.T) {
	dir := directory(t)
	const want = 4
	n := 0
	for _, k := range testmod.Kernels(t) {
		for i := 0; i < len(k.Modules) && n < want; i += len(k.Modules) / 5 {
			if strings.HasSuffix(k.Modules[i], ".xz") {
				put(t, filepath.Join(dir, "in", filepath.Base(k.Modules[i])), read(t, k.Modules[i]))
				n++
			}
		}
	}
	if n < want {
		testmod.Missing(t, "a kernel package with xz modules", "run scripts/kernels")
	}
	out := filepath.Join(dir, "out")
	if s := mustSign(t, nil, Source{Roots: []string{filepath.Join(dir, "in")}, Output: out}, Options{}); s.Stripped != n ||
		s.Replaced != n ||
		s.Stacked != 0 {
		t.Errorf("summary %+v", s)
	}
	found, _ := filepath.Glob(filepath.Join(dir, "in", "*"))
	for _, path := range found {
		was := read(t, path)
		unsigned := payload(t, path)
		if content := decompressed(t, compress.XZ, was); len(content) == len(unsigned) {
			t.Fatalf("%s is not signed", path)
		}
		if got := read(t, filepath.Join(out, filepath.Base(path))); !bytes.Equal(got, compressed(t, compress.XZ, unsigned)) {
			t.Errorf("%s: not what xz makes of the payload", path)
		}
	}
}

func TestSignerOfReader(t *testing.T) {
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	broken := errors.New("broken")
	if _, err := signer.Sign(io.MultiReader(strings.NewReader("x"), failing{broken})); !errors.Is(err, broken) {
		t.Errorf("a payload that cannot be read: %v", err)
	}
	other := testmod.NewKey(t, "rsa:3072")
	if _, err := NewSigner(
		other.Private, testmod.NewKey(t, "rsa:2048").Certificate, SignerOptions{Hash: crypto.SHA256},
	); err == nil ||
		!strings.Contains(err.Error(), "does not match") {
		t.Errorf("the certificate of another key: %v", err)
	}
	if _, err := NewSigner(other.Private, other.Certificate, SignerOptions{Hash: crypto.MD5}); err == nil {
		t.Error("MD5 is taken")
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestParse(t *testing.T) {
	for i, name := range []string{"replace", "skip", "refuse", "add"} {
		if e, err := ParseExisting(name); err != nil || int(e) != i || e.String() != name {
			t.Errorf("%s: %v, %v", name, e, err)
		}
	}
	for i, name := range []string{"tree", "none", "file"} {
		if s, err := ParseSync(name); err != nil || int(s) != i || s.String() != name {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
	for i, name := range []string{"none", "gzip", "xz", "zstd"} {
		if f, err := ParseFormat(name); err != nil || int(f) != i || f.String() != name {
			t.Errorf("%s: %v, %v", name, f, err)
		}
	}
	for _, name := range []string{"", "Replace", "no"} {
		if _, err := ParseFormat(name); err == nil || !strings.Contains(err.Error(), "none, gz, xz or zst") {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := ParseExisting(name); err == nil || !strings.Contains(err.Error(), "replace, skip, refuse or add") {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := ParseSync(name); err == nil || !strings.Contains(err.Error(), "tree, none or file") {
			t.Errorf("%q: %v", name, err)
		}
	}
}
