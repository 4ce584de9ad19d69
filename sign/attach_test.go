package sign

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/sign/manifest"
	"github.com/modsign/modsign/verify"
)

// attach puts signatures on a tree, and returns what was refused, or the results.
func attach(
	t testing.TB, algorithm string, s manifest.Signatures, source Source, opts Options,
) (Summary, []Result, error) {
	t.Helper()
	a, err := NewAttachment(t.Context(), testmod.NewKey(t, algorithm).Certificate, s)
	if err != nil {
		return Summary{}, nil, err
	}
	tree := openTree(t, source)
	defer tree.Close()
	var results []Result
	opts.Report.Result = func(r Result) { results = append(results, r) }
	summary, err := tree.Attach(
		t.Context(),
		a,
		AttachOptions{WriteOptions: opts.WriteOptions, Existing: opts.Existing, Detached: opts.Detached},
	)
	return summary, results, err
}

// sameTrees compares the files of two trees.
func sameTrees(t testing.TB, got, want string) {
	t.Helper()
	one, two := contents(t, got), contents(t, want)
	if len(one) == 0 {
		t.Errorf("%s is empty", got)
	}
	for name := range one {
		if _, ok := two[name]; !ok {
			t.Errorf("%s has %s, and %s has not", got, name, want)
		}
	}
	for name, content := range two {
		if one[name] != content {
			t.Errorf("%s differs between %s and %s", name, got, want)
		}
	}
}

func contents(t testing.TB, root string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	for path, state := range snapshot(t, root) {
		if state.Mode.IsRegular() {
			files[strings.TrimPrefix(path, root)] = state.Content
		}
	}
	return files
}

// Two phases write what one phase writes: modules of all machines and forms, every
// hash, both ways to name the certificate.
func TestTwoPhases(t *testing.T) {
	testmod.Slow(t, "TestTwoPhasesECDSA does the same with a faster key")
	t.Parallel()
	root := filepath.Join("..", "testdata", "modules")
	base := directory(t)
	for _, hash := range testmod.Few(hashes, 1) {
		for _, useKeyID := range []bool{false, true} {
			name := fmt.Sprintf("%s-%v", cms.HashName(hash), useKeyID)
			signer := newSigner(t, "rsa:2048", hash, useKeyID)
			direct := filepath.Join(base, name, "direct")
			mustSign(
				t, signer, Source{Roots: []string{root}, Output: direct},
				Options{WriteOptions: WriteOptions{Sync: SyncNone}},
			)
			// Through both files, as they are sent.
			m, err := manifest.Read(strings.NewReader(text(t, manifestOf(t, hash, root))))
			if err != nil {
				t.Fatal(err)
			}
			s, err := manifest.ReadSignatures(strings.NewReader(text(t, signManifest(t, signer, m))))
			if err != nil {
				t.Fatal(err)
			}
			out := filepath.Join(base, name, "attached")
			summary, _, err := attach(
				t, "rsa:2048", s, Source{Roots: []string{root}, Output: out},
				Options{WriteOptions: WriteOptions{Sync: SyncNone}},
			)
			if err != nil || summary.Signed != len(m) || summary.Signed != len(testmod.Testdata(t)) {
				t.Fatalf("%s: %+v, %v", name, summary, err)
			}
			sameTrees(t, out, direct)
			if hash != crypto.SHA512 {
				os.RemoveAll(filepath.Join(base, name))
				continue
			}
			// In place, over the signatures of another key, and once more.
			other := filepath.Join(base, name, "other")
			mustSign(
				t, newSigner(t, "ecdsa:p256", crypto.SHA512, false), Source{Roots: []string{root}, Output: other},
				Options{WriteOptions: WriteOptions{Sync: SyncNone}},
			)
			for range 2 {
				summary, _, err = attach(
					t, "rsa:2048", s, Source{Roots: []string{other}}, Options{WriteOptions: WriteOptions{Sync: SyncNone}},
				)
				if err != nil || summary.Replaced != len(m) {
					t.Fatalf("%s: %+v, %v", name, summary, err)
				}
				sameTrees(t, other, direct)
			}
		}
	}
}

// ECDSA signatures differ each time, and openssl takes them.
func TestTwoPhasesECDSA(t *testing.T) {
	testmod.Slow(t, "TestManifest and TestAttachRefuses are fast")
	t.Parallel()
	openssl := testmod.Program(t, "openssl", "openssl")
	plain := filepath.Join("..", "testdata", "modules", "armhf", "plain")
	for _, algorithm := range []string{"ecdsa:p256", "ecdsa:p384", "ecdsa:p521"} {
		_, cert := testmod.NewKey(t, algorithm).Files(t)
		for _, useKeyID := range []bool{false, true} {
			signer := newSigner(t, algorithm, crypto.SHA384, useKeyID)
			out := t.TempDir()
			s := signManifest(t, signer, manifestOf(t, crypto.SHA384, plain))
			if summary, _, err := attach(t, algorithm, s, Source{Roots: []string{plain}, Output: out}, Options{}); err != nil ||
				summary.Signed != len(s) {
				t.Fatalf("%+v, %v", summary, err)
			}
			for _, s := range s {
				signed, unsigned := read(t, filepath.Join(out, s.Path)), filepath.Join(plain, s.Path)
				if !bytes.Equal(module.AppendSignature(read(t, unsigned), module.TypePKCS7, s.Message), signed) {
					t.Errorf("%s: more than the signature was attached", s.Path)
				}
				p7s := testmod.WriteFile(t, "p7s", signatureOf(signed))
				testmod.Run(
					t, openssl, "cms", "-verify", "-binary", "-inform", "DER", "-in", p7s, "-content", unsigned, "-certfile",
					cert, "-nointern", "-noverify", "-out", os.DevNull,
				)
			}
		}
	}
}

// All options of a run are those of Sign.
func TestAttachOptions(t *testing.T) {
	t.Parallel()
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	base := t.TempDir()
	root := filepath.Join(base, "in")
	for _, name := range []string{"a/hello.ko", "b/counter.ko"} {
		put(t, filepath.Join(root, name), read(t, filepath.Join("../testdata/modules/amd64-6.12/plain", filepath.Base(name))))
	}
	s := signManifest(t, signer, manifestOf(t, crypto.SHA256, root))
	mode := os.FileMode(0o600)
	for name, test := range map[string]struct {
		source Source
		opts   Options
	}{
		"xz":       {Source{Compress: 2, Recompress: true}, Options{}},
		"mode":     {Source{}, Options{WriteOptions: WriteOptions{Mode: &mode, Sync: SyncFile, Jobs: 1}}},
		"detached": {Source{}, Options{Detached: true}},
	} {
		attached, direct := test.source, test.source
		attached.Roots, attached.Output = []string{root}, filepath.Join(base, name, "attached")
		direct.Roots, direct.Output = []string{root}, filepath.Join(base, name, "direct")
		mustSign(t, signer, direct, test.opts)
		if summary, _, err := attach(t, "rsa:2048", s, attached, test.opts); err != nil || summary.Signed != 2 {
			t.Fatalf("%s: %+v, %v", name, summary, err)
		}
		sameTrees(t, attached.Output, direct.Output)
		for path, state := range snapshot(t, attached.Output) {
			if twin := stateOf(t, direct.Output+strings.TrimPrefix(path, attached.Output)); state.Mode != twin.Mode {
				t.Errorf("%s: %v and %v", path, state.Mode, twin.Mode)
			}
		}
	}
	// What is signed already may stay, or be refused.
	mustSign(
		t, newSigner(t, "ecdsa:p256", crypto.SHA256, false), Source{Roots: []string{filepath.Join(root, "a")}},
		Options{},
	)
	signedBefore := read(t, filepath.Join(root, "a/hello.ko"))
	for _, existing := range []Existing{Skip, Refuse} {
		summary, _, err := attach(t, "rsa:2048", s, Source{Roots: []string{root}}, Options{Existing: existing})
		if errors.Is(err, ErrIncomplete) != (existing == Refuse) || summary.Skipped+summary.Failed == 0 ||
			!bytes.Equal(read(t, filepath.Join(root, "a/hello.ko")), signedBefore) {
			t.Errorf("%v: %+v, %v", existing, summary, err)
		}
	}
}

// Whatever is wrong with signatures is refused by name before anything is written.
func TestAttachRefuses(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "tree")
	modules := []string{"a.ko", "b/c.ko", "d.ko"}
	for i, name := range modules {
		put(t, filepath.Join(root, name), append(testmod.ELF(), byte(i)))
	}
	before := snapshot(t, root)
	m := manifestOf(t, crypto.SHA256, root)
	good := signManifest(t, newSigner(t, "rsa:2048", crypto.SHA256, false), m)
	foreign := signManifest(t, newSigner(t, "rsa:3072", crypto.SHA256, false), m)
	ec := signManifest(t, newSigner(t, "ecdsa:p256", crypto.SHA256, false), m)
	// Another key whose certificate goes by the same name.
	twin := testmod.NewKey(t, "rsa:3072").Private
	impostorCert := *testmod.NewKey(t, "rsa:2048").Certificate
	impostorCert.PublicKey = twin.Public()
	impostor, err := NewSigner(twin, &impostorCert, SignerOptions{Hash: crypto.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	sha512 := signManifest(t, newSigner(t, "rsa:2048", crypto.SHA512, false), manifestOf(t, crypto.SHA512, root))

	change := func(f func(s manifest.Signatures) manifest.Signatures) manifest.Signatures {
		s := slices.Clone(good)
		for i := range s {
			s[i].Message = bytes.Clone(s[i].Message)
		}
		return f(s)
	}
	for name, test := range map[string]struct {
		s    manifest.Signatures
		want []string // all of it, in this order
	}{
		"a line is missing":        {good[:2], []string{root + "/d.ko: no signature for this module (d.ko)"}},
		"all but one line missing": {good[2:], []string{root + "/a.ko: no signature", root + "/b/c.ko: no signature"}},
		"a line too many": {change(func(s manifest.Signatures) manifest.Signatures {
			more := s[0]
			more.Path = "e.ko"
			return append(s, more)
		}), []string{"e.ko: signature without a module in " + root}},
		"a module is called otherwise": {change(func(s manifest.Signatures) manifest.Signatures {
			s[2].Path = "D.ko"
			return s
		}), []string{root + "/d.ko: no signature", "D.ko: signature without a module"}},
		"doubled": {append(slices.Clone(good), good[1]), []string{"b/c.ko occurs twice"}},
		"none":    {nil, []string{"no signature to attach"}},
		"a path that leads out": {change(func(s manifest.Signatures) manifest.Signatures {
			s[0].Path, s[2].Path = "../a.ko", "d\n.ko"
			return s
		}), []string{`"../a.ko": `, `"d\n.ko": `}},
		"another size": {change(func(s manifest.Signatures) manifest.Signatures {
			s[1].Size = -1
			return s
		}), []string{`"b/c.ko": size -1`}},
		"another key": {
			foreign,
			[]string{
				"a.ko: the signature names a certificate other than", "b/c.ko: the signature names a certificate",
				"d.ko: the signature names a certificate",
			},
		},
		"one by another key": {
			manifest.Signatures{good[0], foreign[1], good[2]}, []string{"b/c.ko: the signature names a certificate other than"},
		},
		"another kind of key": {
			manifest.Signatures{good[0], ec[1], good[2]}, []string{"b/c.ko: the signature names a certificate other than"},
		},
		"by an impostor": {manifest.Signatures{good[0], signManifest(t, impostor, m)[1], good[2]}, []string{"b/c.ko: the signature does not match the module, or is not by the key"}},
		"one with another hash": {
			manifest.Signatures{good[0], sha512[1], good[2]}, []string{"b/c.ko: its digest is sha512, others are sha256"},
		},
		"a hash that is not the digest's": {change(func(s manifest.Signatures) manifest.Signatures {
			s[1].Message = sha512[1].Message
			return s
		}), []string{"b/c.ko: the signature uses sha512, its digest sha256"}},
		"exchanged": {change(func(s manifest.Signatures) manifest.Signatures {
			s[0].Message, s[2].Message = s[2].Message, s[0].Message
			return s
		}), []string{"a.ko: the signature does not match", "d.ko: the signature does not match"}},
		"another digest": {change(func(s manifest.Signatures) manifest.Signatures {
			s[1].Sum = bytes.Clone(s[1].Sum)
			s[1].Sum[3] ^= 1
			return s
		}), []string{"b/c.ko: the signature does not match"}},
		"cut off": {change(func(s manifest.Signatures) manifest.Signatures {
			s[1].Message = s[1].Message[:len(s[1].Message)-1]
			return s
		}), []string{"b/c.ko: not a signature that the kernel reads"}},
		"more behind": {change(func(s manifest.Signatures) manifest.Signatures {
			s[1].Message = append(s[1].Message, 0)
			return s
		}), []string{"b/c.ko: not as sign-file writes it: 1 bytes after the message"}},
		"a module instead": {change(func(s manifest.Signatures) manifest.Signatures {
			s[1].Message = testmod.ELF()
			return s
		}), []string{"b/c.ko: not a signature that the kernel reads"}},
	} {
		for _, dry := range []bool{false, true} {
			_, results, err := attach(
				t, "rsa:2048", test.s, Source{Roots: []string{root}}, Options{WriteOptions: WriteOptions{DryRun: dry}},
			)
			if err == nil || len(results) > 0 {
				t.Errorf("%s: not refused: %v", name, results)
				continue
			}
			errs := []error{err}
			if r, ok := errors.AsType[*RefusedError](err); ok {
				errs = r.Errs
			}
			if !slices.EqualFunc(
				errs,
				test.want,
				func(err error, want string) bool { return strings.HasPrefix(err.Error(), want) },
			) {
				t.Errorf("%s: %v\nwant %q", name, errs, test.want)
			}
			unchanged(t, name, root, before, true)
		}
	}

	// Each bit of a message counts.
	key := testmod.NewKey(t, "rsa:2048").Certificate
	for i := range good[1].Message {
		s := change(func(s manifest.Signatures) manifest.Signatures {
			s[1].Message[i] ^= 1 << (i % 8)
			return s
		})
		if _, err := NewAttachment(t.Context(), key, s); err == nil || !strings.HasPrefix(err.Error(), "b/c.ko: ") {
			t.Errorf("byte %d of a message changed: %v", i, err)
		}
	}
	// As does each character of a line, with a last line that fits.
	lines := strings.SplitAfter(text(t, good), "\n")
	start := strings.Index(lines[2], `"signature":"`) + len(`"signature":"`)
	for i := start; i < len(lines[2])-3; i++ {
		b := []byte(lines[2])
		b[i] = map[bool]byte{true: 'B', false: 'A'}[b[i] == 'A']
		s, err := manifest.ReadSignatures(strings.NewReader(withSum(lines[0], lines[1], string(b), lines[3])))
		if err == nil {
			_, err = NewAttachment(t.Context(), key, s)
		}
		if err == nil || !strings.HasPrefix(err.Error(), "b/c.ko: ") && !strings.HasPrefix(err.Error(), "line 3: ") {
			t.Errorf("character %d of a signature changed: %v", i-start, err)
		}
	}
	if _, err := base64.StdEncoding.DecodeString(lines[2][start : len(lines[2])-3]); err != nil {
		t.Error(err)
	}
	unchanged(t, "after all", root, before, true)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := NewAttachment(ctx, key, good); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

// A module that has changed since fails alone, whatever its other names.
func TestAttachChanged(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "tree")
	for i, name := range []string{"a.ko", "b.ko", "c.ko", "linked.ko"} {
		put(t, filepath.Join(root, name), append(testmod.ELF(), byte(i)))
	}
	if err := os.Link(filepath.Join(root, "linked.ko"), filepath.Join(root, "other-name.ko")); err != nil {
		t.Fatal(err)
	}
	s := signManifest(t, newSigner(t, "rsa:2048", crypto.SHA256, false), manifestOf(t, crypto.SHA256, root))
	changed := read(t, filepath.Join(root, "b.ko"))
	changed[len(changed)-1] ^= 1
	put(t, filepath.Join(root, "b.ko"), changed)
	// A link to another module now, whose line is another's.
	if err := errors.Join(
		os.Remove(filepath.Join(root, "linked.ko")), os.Link(filepath.Join(root, "c.ko"), filepath.Join(root, "linked.ko")),
	); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, root)
	for _, dry := range []bool{true, false} {
		summary, results, err := attach(
			t, "rsa:2048", s, Source{Roots: []string{root}}, Options{WriteOptions: WriteOptions{DryRun: dry}},
		)
		if !errors.Is(err, ErrIncomplete) || summary.Signed != 2 || summary.Failed != 3 || summary.Modules != 5 {
			t.Errorf("dry run %v: %+v, %v", dry, summary, err)
		}
		for i, want := range []string{
			"", "as b.ko: its sha256 begins with", "as linked.ko: its sha256 begins with",
			"as linked.ko: its sha256 begins with", "",
		} {
			if (results[i].Err != nil) != (want != "") || want != "" && !strings.Contains(results[i].Err.Error(), want) {
				t.Errorf("dry run %v: %s: %v, want %q", dry, results[i].Path, results[i].Err, want)
			}
		}
		if dry {
			unchanged(t, "a dry run", root, before, true)
		}
	}
	for _, name := range []string{"b.ko", "c.ko", "linked.ko"} {
		path := filepath.Join(root, name)
		if stateOf(t, path) != before[path] {
			t.Errorf("%s was changed", name)
		}
	}
	for _, i := range []int{0, 4} {
		path := filepath.Join(root, s[i].Path)
		if !bytes.Equal(read(t, path), module.AppendSignature([]byte(before[path].Content), module.TypePKCS7, s[i].Message)) {
			t.Errorf("%s is not signed", path)
		}
	}
	if left := temps(t, root); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// found attaches signatures that lie in files.
func found(t testing.TB, algorithm string, from FoundSignatures, source Source) (notes []string, err error) {
	t.Helper()
	tree := openTree(t, source)
	defer tree.Close()
	cert := testmod.NewKey(t, algorithm).Certificate
	from.Note = func(note string) { notes = append(notes, note) }
	s, err := tree.FindSignatures(t.Context(), cert, from, ReadOptions{})
	if err != nil {
		return notes, err
	}
	a, err := NewAttachment(t.Context(), cert, s)
	if err != nil {
		return notes, err
	}
	summary, err := tree.Attach(t.Context(), a, AttachOptions{})
	if err == nil && summary.Signed != tree.Modules() {
		err = fmt.Errorf("%+v", summary)
	}
	return notes, err
}

// signaturesIn is a tree of modules of every form, and the signatures of others for
// it: by openssl, and by the kernel's sign-file.
type signaturesIn struct {
	tree, signed     string // the tree, and as sign-file signs it
	p7s, raw, debian string
	packages         map[string]any
}

const installed = "lib/modules/6.12.0/kernel"

func othersSignatures(t *testing.T) *signaturesIn {
	t.Helper()
	signFile, openssl := testmod.SignFile(t), testmod.Program(t, "openssl", "openssl")
	key, cert := testmod.NewKey(t, "rsa:2048").Files(t)
	base := t.TempDir()
	s := &signaturesIn{tree: filepath.Join(base, "root", installed), signed: filepath.Join(base, "signed"),
		p7s: filepath.Join(base, "p7s"), raw: filepath.Join(base, "raw"), debian: filepath.Join(base, "debian")}
	var files []any
	for _, name := range []string{"plain/hello.ko", "gz/counter.ko.gz", "xz/ring.ko.xz", "zst/hello.ko.zst"} {
		plain := filepath.Join("../testdata/modules/amd64-6.12/plain", module.BaseName(filepath.Base(name)))
		bare := module.BaseName(name)
		put(t, filepath.Join(s.tree, name), read(t, filepath.Join("../testdata/modules/amd64-6.12", name)))
		put(t, filepath.Join(s.p7s, bare), read(t, plain))
		put(t, filepath.Join(s.raw, bare+".sig"), nil)
		put(t, filepath.Join(s.signed, bare), read(t, plain))
		testmod.Run(t, signFile, "-d", "sha256", key, cert, filepath.Join(s.p7s, bare))
		testmod.Run(t, signFile, "sha256", key, cert, filepath.Join(s.signed, bare))
		if err := os.Remove(filepath.Join(s.p7s, bare)); err != nil {
			t.Fatal(err)
		}
		digest := testmod.WriteFile(t, "digest", sumOf(string(read(t, plain))))
		testmod.Run(
			t, openssl, "pkeyutl", "-sign", "-inkey", key, "-pkeyopt", "digest:sha256", "-in", digest, "-out",
			filepath.Join(s.raw, bare+".sig"),
		)
		file := filepath.Join(installed, bare)
		put(t, filepath.Join(s.debian, "signatures/linux-image", file+".sig"), read(t, filepath.Join(s.p7s, bare+".p7s")))
		files = append(files, map[string]string{"sig_type": "linux-module", "file": file})
	}
	fingerprint := sha256.Sum256(testmod.NewKey(t, "rsa:2048").Certificate.Raw)
	s.packages = map[string]any{
		"linux-image": map[string]any{"trusted_certs": []string{strings.Repeat("00", 32), hex.EncodeToString(fingerprint[:])},
			"files": append(files, map[string]string{"sig_type": "efi", "file": "boot/vmlinuz-6.12.0"})},
		"linux-image-other": map[string]any{
			"trusted_certs": []string{},
			"files":         []any{map[string]string{"sig_type": "linux-module", "file": "lib/modules/7/x.ko"}},
		},
	}
	s.writePackages(t)
	return s
}

func (s *signaturesIn) writePackages(t *testing.T) {
	t.Helper()
	b, err := json.Marshal(map[string]any{"packages": s.packages})
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(s.debian, "files.json"), b)
}

func (s *signaturesIn) layouts() map[string]FoundSignatures {
	return map[string]FoundSignatures{
		"p7s":    {Layout: P7S, Dir: s.p7s},
		"raw":    {Layout: Raw, Dir: s.raw},
		"debian": {Layout: Debian, Dir: s.debian},
	}
}

// The signatures of others, attached, give what sign-file gives.
func TestFoundSignatures(t *testing.T) {
	t.Parallel()
	s := othersSignatures(t)
	plain := func(root string) string { return filepath.Join(t.TempDir(), filepath.Base(root)) }
	for name, from := range s.layouts() {
		out := plain(s.tree)
		notes, err := found(t, "rsa:2048", from, Source{Roots: []string{s.tree}, Output: out, Recompress: true})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		sameTrees(t, out, s.signed)
		want := 0
		if name == "debian" {
			want = 2
		}
		if len(notes) != want ||
			want > 0 &&
				(!strings.Contains(notes[0], "linux-image: skipped 1 of 5 files, which are not modules (sig_type efi)") || !strings.Contains(notes[1], "linux-image-other: skipped, since none of its modules is in")) {
			t.Errorf("%s: %q", name, notes)
		}
	}
	// Debian's again, with usr/ before, and all of the package given.
	s.packages["linux-image"] = json.RawMessage(
		strings.ReplaceAll(mustJSON(t, s.packages["linux-image"]), `"lib/modules`, `"usr/lib/modules`),
	)
	s.writePackages(t)
	dir := filepath.Join(s.debian, "signatures/linux-image")
	if err := errors.Join(
		os.Mkdir(filepath.Join(dir, "usr"), 0o755), os.Rename(filepath.Join(dir, "lib"), filepath.Join(dir, "usr/lib")),
	); err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	if _, err := found(
		t, "rsa:2048", s.layouts()["debian"],
		Source{Roots: []string{filepath.Join(s.tree, "../../../..")}, Output: out, Recompress: true},
	); err != nil {
		t.Fatal(err)
	}
	sameTrees(t, filepath.Join(out, installed), s.signed)

	// Beside the modules, in place.
	for from, suffix := range map[Layout]string{P7S: ".p7s", Raw: ".sig"} {
		root := filepath.Join(t.TempDir(), "tree")
		if err := os.CopyFS(root, os.DirFS(s.tree)); err != nil {
			t.Fatal(err)
		}
		beside := map[Layout]string{P7S: s.p7s, Raw: s.raw}[from]
		if err := os.CopyFS(root, os.DirFS(beside)); err != nil {
			t.Fatal(err)
		}
		if _, err := found(
			t, "rsa:2048", FoundSignatures{Layout: from}, Source{Roots: []string{root}, Recompress: true},
		); err != nil {
			t.Fatal(err)
		}
		for name := range contents(t, beside) {
			if !strings.HasSuffix(name, suffix) {
				t.Fatalf("%s among the signatures", name)
			}
			if err := os.Remove(filepath.Join(root, name)); err != nil {
				t.Error(err)
			}
		}
		sameTrees(t, root, s.signed)
	}

	// The other form of a message around a raw signature.
	_, err := found(
		t, "rsa:2048", FoundSignatures{Layout: Raw, Dir: s.raw, UseKeyID: true}, Source{Roots: []string{s.tree}},
	)
	if err != nil {
		t.Fatal(err)
	}
	direct := t.TempDir()
	mustSign(t, newSigner(t, "rsa:2048", crypto.SHA256, true), Source{Roots: []string{s.tree}, Output: direct}, Options{})
	sameTrees(t, s.tree, direct)
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A file that is missing, wrong, foreign or cut off is refused by name before
// anything is written.
func TestFoundSignaturesRefused(t *testing.T) {
	t.Parallel()
	s := othersSignatures(t)
	otherKey, otherCert := testmod.NewKey(t, "rsa:3072").Files(t)
	signFile, openssl := testmod.SignFile(t), testmod.Program(t, "openssl", "openssl")
	foreign := testmod.WriteFile(t, "m", read(t, "../testdata/modules/amd64-6.12/plain/ring.ko"))
	testmod.Run(t, signFile, "-d", "sha256", otherKey, otherCert, foreign)
	digest := testmod.WriteFile(t, "digest", sumOf(string(read(t, foreign))))
	sha512 := testmod.WriteFile(t, "sha512", make([]byte, 64))
	key, cert := testmod.NewKey(t, "rsa:2048").Files(t)
	for out, args := range map[string][]string{"foreign": {otherKey, "sha256", digest}, "512": {key, "sha512", sha512}} {
		testmod.Run(
			t, openssl, "pkeyutl", "-sign", "-inkey", args[0], "-pkeyopt", "digest:"+args[1], "-in", args[2], "-out",
			foreign+"."+out,
		)
	}
	testmod.Run(
		t, openssl, "cms", "-sign", "-binary", "-nocerts", "-nosmimecap", "-md", "sha256", "-signer", cert,
		"-inkey", key, "-outform", "DER", "-in", foreign, "-out", foreign+".attributes",
	)

	before := snapshot(t, filepath.Dir(s.tree))
	at := map[string]string{ // of xz/ring.ko
		"p7s":    filepath.Join(s.p7s, "xz/ring.ko.p7s"),
		"raw":    filepath.Join(s.raw, "xz/ring.ko.sig"),
		"debian": filepath.Join(s.debian, "signatures/linux-image", installed, "xz/ring.ko.sig"),
	}
	for layout, from := range s.layouts() {
		good := read(t, at[layout])
		short, wrong := "not a signature that the kernel reads", "does not match the module"
		strange, hash := "names a certificate other than", ""
		swapped := read(
			t,
			filepath.Join(filepath.Dir(at[layout]), "../gz", strings.Replace(filepath.Base(at[layout]), "ring", "counter", 1)),
		)
		foreignSig := read(t, foreign+".p7s")
		if layout == "raw" {
			short, wrong = "bytes: an RSA signature by the certificate's key has 256", "for another digest"
			strange, hash = "384 bytes", "all need the same hash"
			foreignSig = read(t, foreign+".foreign")
		}
		flipped := bytes.Clone(good)
		flipped[len(flipped)-3] ^= 4
		for name, test := range map[string]struct {
			content []byte
			want    string
		}{
			"missing":   {nil, ": no signature for this module (" + at[layout] + ")"},
			"empty":     {[]byte{}, at[layout] + ": "},
			"cut off":   {good[:len(good)-1], short},
			"longer":    {append(bytes.Clone(good), 0), at[layout] + ": "},
			"huge":      {make([]byte, cms.MaxSize+1), at[layout] + ": more than 65535 bytes"},
			"another's": {swapped, at[layout] + ": the signature"},
			"flipped":   {flipped, at[layout] + ": "},
			"foreign":   {foreignSig, at[layout] + ": "},
			"a module":  {read(t, foreign), at[layout] + ": "},
			"another hash": {
				map[bool][]byte{true: read(t, foreign+".512"), false: nil}[layout == "raw"], cmp.Or(hash, at[layout]),
			},
			"in another form": {map[bool][]byte{false: read(t, foreign+".attributes"), true: nil}[layout == "raw"], at[layout]},
		} {
			if err := os.Remove(at[layout]); err != nil {
				t.Fatal(err)
			}
			if test.content != nil {
				put(t, at[layout], test.content)
			}
			_, err := found(t, "rsa:2048", from, Source{Roots: []string{s.tree}})
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "ring.ko") {
				t.Errorf("%s, %s: %v, want %q", layout, name, err, test.want)
			}
			extra := map[string]string{"another's": wrong, "foreign": strange}[name]
			if layout != "raw" && name == "in another form" {
				extra = "not as sign-file writes it: signed attributes"
			}
			if err != nil && !strings.Contains(err.Error(), extra) {
				t.Errorf("%s, %s: %v, want %q", layout, name, err, extra)
			}
			unchanged(t, layout+", "+name, filepath.Dir(s.tree), before, true)
			put(t, at[layout], good)
		}
		// One too many.
		more := filepath.Join(filepath.Dir(at[layout]), "more.ko"+filepath.Ext(at[layout]))
		put(t, more, good)
		if _, err := found(t, "rsa:2048", from, Source{Roots: []string{s.tree}}); err == nil ||
			!strings.HasPrefix(err.Error(), more+": ") {
			t.Errorf("%s: a signature too many: %v", layout, err)
		}
		if err := os.Remove(more); err != nil {
			t.Fatal(err)
		}
		// A key that is no RSA key, and a module that is none.
		if _, err := found(t, "ecdsa:p256", from, Source{Roots: []string{s.tree}}); err == nil ||
			layout == "raw" && !strings.Contains(err.Error(), "raw signatures are RSA or ML-DSA, and the certificate's key is ecdsa-nist-p256") {
			t.Errorf("%s: with an ECDSA certificate: %v", layout, err)
		}
	}
	unchanged(t, "after all", filepath.Dir(s.tree), before, true)

	// Debian's list.
	packages := s.packages
	for name, test := range map[string]struct {
		change func(p map[string]any)
		want   string
	}{
		"another certificate": {
			func(p map[string]any) { p["trusted_certs"] = []string{strings.Repeat("ab", 32)} },
			"trusted_certs lacks the certificate",
		},
		"a module too many": {func(p map[string]any) {
			p["files"] = append(p["files"].([]any), entry("linux-module", installed+"/no.ko"))
		}, "linux-image: " + installed + "/no.ko is not a module in"},
		"a module missing": {
			func(p map[string]any) { p["files"] = p["files"].([]any)[1:] }, "plain/hello.ko: no signature for this module: ",
		},
		"twice": {
			func(p map[string]any) { p["files"] = append(p["files"].([]any), p["files"].([]any)[0]) },
			"plain/hello.ko occurs twice",
		},
		"twice, with usr": {func(p map[string]any) {
			p["files"] = append(p["files"].([]any), entry("linux-module", "usr/"+installed+"/plain/hello.ko"))
		}, "plain/hello.ko occurs twice"},
		"out of the package": {
			func(p map[string]any) { p["files"] = append(p["files"].([]any), entry("linux-module", "../x.ko")) },
			`"../x.ko": path is not`,
		},
		"another type": {
			func(p map[string]any) { p["files"] = append(p["files"].([]any), entry("rpm", "x.rpm")) },
			`sig_type "rpm" is neither`,
		},
	} {
		p := maps.Clone(packages["linux-image"].(map[string]any))
		test.change(p)
		s.packages = map[string]any{"linux-image": p}
		s.writePackages(t)
		if _, err := found(t, "rsa:2048", s.layouts()["debian"], Source{Roots: []string{s.tree}}); err == nil ||
			!strings.Contains(err.Error(), test.want) {
			t.Errorf("files.json, %s: %v, want %q", name, err, test.want)
		}
	}
	for _, list := range []string{"", "[]", `{"packages":{}}`, `{"packages":{"../x":{}}}`} {
		put(t, filepath.Join(s.debian, "files.json"), []byte(list))
		if _, err := found(t, "rsa:2048", s.layouts()["debian"], Source{Roots: []string{s.tree}}); err == nil ||
			!strings.Contains(err.Error(), "files.json: ") {
			t.Errorf("files.json is %q: %v", list, err)
		}
	}
	unchanged(t, "after all", filepath.Dir(s.tree), before, true)
}

func entry(kind, file string) map[string]string {
	return map[string]string{"sig_type": kind, "file": file}
}

// TestAttachmentIsItsOwn changes signatures after they were checked.
func TestAttachmentIsItsOwn(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "tree")
	put(t, filepath.Join(root, "a.ko"), testmod.ELF())
	signer := newSigner(t, "ecdsa:p256", crypto.SHA256, false)
	s := signManifest(t, signer, manifestOf(t, crypto.SHA256, root))
	key := testmod.NewKey(t, "ecdsa:p256")
	a, err := NewAttachment(t.Context(), key.Certificate, s)
	if err != nil {
		t.Fatal(err)
	}
	clear(s[0].Message)
	clear(s[0].Sum)
	if _, err := openTree(t, Source{Roots: []string{root}}).Attach(t.Context(), a, AttachOptions{}); err != nil {
		t.Fatal(err)
	}
	keys := new(verify.Keyring)
	if err := keys.Add(key.Certificate, "key"); err != nil {
		t.Fatal(err)
	}
	if _, err := verify.Tree(t.Context(), keys, []string{root}, verify.Options{}); err != nil {
		t.Errorf("what is attached is not what was checked: %v", err)
	}
}
