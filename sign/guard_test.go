package sign

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/sign/manifest"
	"github.com/modsign/modsign/sign/policy"
)

func policyOf(t testing.TB, lines ...string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse("p", strings.NewReader("policy 1\n"+strings.Join(lines, "\n")+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// made returns a module with another tag, of the same length, than testmod's.
func made(t testing.TB, old, tag string) []byte {
	t.Helper()
	b := bytes.Replace(testmod.ELF(), []byte(old), []byte(tag), 1)
	if len(old) != len(tag) || bytes.Equal(b, testmod.ELF()) {
		t.Fatalf("%q is not there, or no %q", old, tag)
	}
	return b
}

// TestPolicyRefuses checks that every refused module is named with its rule, before the key
// signs anything.
func TestPolicyRefuses(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "net/a.ko"), testmod.ELF())
	put(t, filepath.Join(dir, "net/b.ko.xz"), compressed(t, compress.XZ, made(t, "license=GPL", "license=MIT")))
	put(t, filepath.Join(dir, "fs/c.ko"), signed(t, newSigner(t, "rsa:2048", crypto.SHA256, false),
		made(t, "vermagic=6.12.0", "vermagic=6.13.0")))
	put(t, filepath.Join(dir, "fs/d.ko.gz"), compressed(t, compress.Gzip, made(t, "name=made", "name=evil")))
	put(t, filepath.Join(dir, "fs/e.ko"), made(t, "license=GPL", "licence=GPL"))
	if err := os.Link(filepath.Join(dir, "net/a.ko"), filepath.Join(dir, "fs/link.ko")); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "fs/text.ko"), []byte("no module"))
	before := snapshot(t, dir)
	for _, test := range []struct {
		lines string
		want  []string // the paths and the rules of refused modules, in the order of paths
	}{
		{"path net/*", []string{
			`fs/c.ko: refused by p:2: path: the path "fs/c.ko" is not "net/*"`, "fs/d.ko.gz: refused by p:2: path: ",
			"fs/e.ko: refused by p:2: path: ", `fs/link.ko: refused by p:2: path: the path "fs/link.ko" is not`,
			`net/a.ko: refused by p:2: path: the path "fs/link.ko" is not "net/*"`, // it is the same file
		}},
		{"path fs/*", []string{
			`fs/link.ko: refused by p:2: path: the path "net/a.ko" is not "fs/*"`, // it is the same file
			`net/a.ko: refused by p:2: path: the path "net/a.ko" is not "fs/*"`, "net/b.ko.xz: refused by p:2: path: ",
		}},
		{"path **\nnot-path net/b.*", []string{`net/b.ko.xz: refused by p:3: not-path: the path "net/b.ko" fits "net/b.*"`}},
		{"path **\nnot-name evil", []string{`fs/d.ko.gz: refused by p:3: not-name: the name "evil"`}},
		{"path **\nlicense GPL", []string{
			"fs/e.ko: refused by p:3: license: the module has no license",
			`net/b.ko.xz: refused by p:3: license: the license "MIT" is not "GPL"`,
		}},
		{"path **\nvermagic 6.12.*", []string{`fs/c.ko: refused by p:3: vermagic: the vermagic "6.13.0 SMP" is not "6.12.*"`}},
		{"path **\nmax-modules 4", []string{"refused by p:3: max-modules: 5 modules are to be signed, and 4 may be"}},
		{"path **\nhash sha256", []string{`refused by p:3: hash: the hash "sha512" is not "sha256"`}},
		{"path **\nexpires 2020-01-01", []string{"refused by p:3: expires: the policy has expired; it is 20"}},
		{"path **\nlist kernel.hashes", []string{
			"fs/c.ko: refused by p:3: list: kernel.hashes was not read", "fs/d.ko.gz: ", "fs/e.ko: ", "fs/link.ko: ",
			"net/a.ko: ", "net/b.ko.xz: ",
		}},
	} {
		for _, dryRun := range []bool{false, true} {
			_, k := tokenSigner(t, 100, nil)
			signer := ofHash(t, k, crypto.SHA512)
			tree := openTree(t, Source{Roots: []string{dir}})
			opts := Options{Policy: policyOf(t, test.lines)}
			opts.DryRun = dryRun
			_, err := tree.Sign(t.Context(), signer, opts)
			tree.Close()
			refused, ok := errors.AsType[*RefusedError](err)
			if !ok || len(refused.Errs) != len(test.want) {
				t.Errorf("%q: %v", test.lines, err)
				continue
			}
			for i, err := range refused.Errs {
				if text := strings.TrimPrefix(err.Error(), dir+"/"); !strings.HasPrefix(text, test.want[i]) {
					t.Errorf("%q: got %s, want %s", test.lines, text, test.want[i])
				}
				if _, ok := errors.AsType[*policy.RefusedError](err); !ok {
					t.Errorf("%q: %v is not of the policy", test.lines, err)
				}
			}
			if len(k.seen) > 0 {
				t.Errorf("%q: the key signed %v", test.lines, k.seen)
			}
			unchanged(t, test.lines, dir, before, true)
		}
	}
	// What is skipped is not judged, and what is no module fails alone.
	signer := newSigner(t, "ecdsa:p256", crypto.SHA512, false)
	summary, _ := sign(t, signer, Source{Roots: []string{dir}}, Options{
		Existing: Skip, Policy: policyOf(t, "path **", "vermagic 6.12.*", "max-modules 4"),
	})
	if summary.Signed != 5 || summary.Skipped != 1 || summary.Failed != 1 {
		t.Errorf("%+v", summary)
	}
}

// TestPolicyChecksAgain changes modules after they were checked.
func TestPolicyChecksAgain(t *testing.T) {
	dir, sums := t.TempDir(), [][32]byte(nil)
	for _, name := range []string{"a.ko", "b.ko", "c.ko"} {
		put(t, filepath.Join(dir, name), testmod.ELF())
	}
	tree := openTree(t, Source{Roots: []string{dir}})
	if _, err := tree.Digest(t.Context(), crypto.SHA256, ReadOptions{Report: Report{Result: func(r Result) {
		sums = append(sums, [32]byte(r.Digest))
	}}}); err != nil {
		t.Fatal(err)
	}
	p := policyOf(t, "path **", "license GPL", "list l")
	if err := p.SetList(nil, sums); err != nil {
		t.Fatal(err)
	}
	_, key := tokenSigner(t, 100, nil)
	signer := ofHash(t, key, crypto.SHA512)
	opts := Options{Policy: p}
	if err := tree.CheckPolicy(t.Context(), signer, opts); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "a.ko"), made(t, "license=GPL", "license=MIT"))
	put(t, filepath.Join(dir, "c.ko"), bytes.Replace(testmod.ELF(), []byte("\xc3\xc3"), []byte("\xc3\x90"), 1))
	failed := make(map[string]string)
	opts.Report.Result = func(r Result) {
		if r.Err != nil {
			failed[r.Name] = r.Err.Error()
		}
	}
	summary, err := tree.Sign(t.Context(), signer, opts)
	if !errors.Is(err, ErrIncomplete) || summary.Signed != 1 || len(key.seen) != 1 || key.seen[0].Path != "b.ko" {
		t.Errorf("%v: %+v, the key has seen %v", err, summary, key.seen)
	}
	if !strings.HasPrefix(failed["a.ko"], "refused by p:3: license: ") ||
		!strings.HasPrefix(failed["c.ko"], "refused by p:4: list: ") {
		t.Errorf("failed: %v", failed)
	}
}

// TestPolicyOverlap checks that a module is judged by all its paths, in whatever order they
// are given.
func TestPolicyOverlap(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "net/a.ko")
	put(t, file, testmod.ELF())
	signer := newSigner(t, "ecdsa:p256", crypto.SHA512, false)
	net := filepath.Dir(file)
	for _, roots := range [][]string{{dir, file}, {file, dir}, {net, dir}, {file, net, dir}} {
		tree := openTree(t, Source{Roots: roots})
		_, err := tree.Sign(t.Context(), signer, Options{Policy: policyOf(t, "path **", "not-path net/*")})
		tree.Close()
		if refused, ok := errors.AsType[*RefusedError](err); !ok || len(refused.Errs) != 1 {
			t.Errorf("%q: %v", roots, err)
		}
	}
}

// TestPolicyUnreadable checks that a dry run fails as the run does for a module of which the
// policy cannot see the tags.
func TestPolicyUnreadable(t *testing.T) {
	b := testmod.ELF()
	sections := b[binary.LittleEndian.Uint64(b[0x28:]):]
	copy(sections[3*64:][:4], sections[2*64:][:4]) // a second section .modinfo
	dir := t.TempDir()
	put(t, filepath.Join(dir, "a.ko"), b)
	signer := newSigner(t, "ecdsa:p256", crypto.SHA512, false)
	for _, dryRun := range []bool{true, false} {
		opts := Options{Policy: policyOf(t, "path **", "license GPL")}
		opts.DryRun = dryRun
		tree := openTree(t, Source{Roots: []string{dir}})
		summary, err := tree.Sign(t.Context(), signer, opts)
		tree.Close()
		if !errors.Is(err, ErrIncomplete) || summary.Failed != 1 {
			t.Errorf("dry run %v: %v, %+v", dryRun, err, summary)
		}
	}
}

// ofHash is a signer with the key of tokenSigner and another hash.
func ofHash(t *testing.T, key *token, hash crypto.Hash) *Signer {
	t.Helper()
	signer, err := NewSigner(key, testmod.NewKey(t, "ecdsa:p256").Certificate, SignerOptions{Hash: hash})
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// TestPolicyList checks that the hash that is looked for in a list is that of the module as
// it will be signed: stripped, with the link to the debug file, and without compression.
func TestPolicyList(t *testing.T) {
	signer := newSigner(t, "ecdsa:p256", crypto.SHA512, false)
	source := t.TempDir()
	for _, name := range []string{"plain/hello.ko", "xz/ring.ko.xz", "zst/counter.ko.zst"} {
		put(t, filepath.Join(source, name), read(t, filepath.Join("../testdata/modules/amd64-6.12", name)))
	}
	for name, opts := range map[string]Options{
		"as they are": {}, "stripped": {DebugOptions: DebugOptions{StripDebug: true}}, "split": {},
	} {
		out := func() string {
			if name == "split" {
				opts.SplitDebug = t.TempDir()
			}
			return t.TempDir()
		}
		want := out()
		mustSign(t, signer, Source{Roots: []string{source}, Output: want}, opts)
		var sums [][32]byte
		if _, err := openTree(t, Source{Roots: []string{want}}).Digest(t.Context(), crypto.SHA256, ReadOptions{
			Report: Report{Result: func(r Result) { sums = append(sums, [32]byte(r.Digest)) }},
		}); err != nil {
			t.Fatal(err)
		}
		opts.Policy = policyOf(t, "list l")
		if err := opts.Policy.SetList(nil, sums); err != nil {
			t.Fatal(err)
		}
		if s := mustSign(t, signer, Source{Roots: []string{source}, Output: out()}, opts); s.Signed != 3 {
			t.Errorf("%s: %+v", name, s)
		}
		opts.Policy = policyOf(t, "list l")
		if err := opts.Policy.SetList(nil, sums[:2]); err != nil {
			t.Fatal(err)
		}
		tree := openTree(t, Source{Roots: []string{source}, Output: out()})
		_, err := tree.Sign(t.Context(), signer, opts)
		if refused, ok := errors.AsType[*RefusedError](err); !ok || len(refused.Errs) != 1 {
			t.Errorf("%s, one is not in the list: %v", name, err)
		}
	}
}

// TestPolicyCountsFiles checks that names of one file count once.
func TestPolicyCountsFiles(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "a.ko"), testmod.ELF())
	for i := range 3 {
		if err := os.Link(filepath.Join(dir, "a.ko"), filepath.Join(dir, fmt.Sprintf("l%d.ko", i))); err != nil {
			t.Fatal(err)
		}
	}
	signer := newSigner(t, "ecdsa:p256", crypto.SHA512, false)
	opts := Options{Policy: policyOf(t, "path **", "max-modules 1")}
	if s := mustSign(t, signer, Source{Roots: []string{dir}}, opts); s.Signed != 4 {
		t.Errorf("%+v", s)
	}
}

func TestPolicyOfManifest(t *testing.T) {
	digest := func(path string, hash crypto.Hash) manifest.Digest {
		return manifest.Digest{Path: path, Size: 1, Hash: hash, Sum: make([]byte, hash.Size())}
	}
	listed := func(lines string, sums ...[32]byte) *policy.Policy {
		p := policyOf(t, lines)
		if err := p.SetList(nil, sums); err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, test := range []struct {
		hash   crypto.Hash
		policy *policy.Policy
		want   []string
	}{
		{crypto.SHA512, policyOf(t, "path **"), nil},
		{crypto.SHA256, listed("list l", [32]byte{}), nil},
		{crypto.SHA256, listed("list l", [32]byte{1}),
			[]string{"a/b.ko: refused by p:2: list: l does not have", "c.ko: refused by p:2: list: "}},
		{crypto.SHA512, listed("list l", [32]byte{}),
			[]string{"refused by p:2: list: it has SHA-256, and the digests of the manifest are sha512"}},
		{crypto.SHA512, policyOf(t, "path a/*"), []string{`c.ko: refused by p:2: path: the path "c.ko" is not "a/*"`}},
		{crypto.SHA512, policyOf(t, "name b"), []string{`c.ko: refused by p:2: name: the name "c" is not "b"`}},
		{crypto.SHA512, policyOf(t, "path **", "max-modules 1", "not-name c"),
			[]string{"refused by p:3: max-modules: 2 modules", "c.ko: refused by p:4: not-name: "}},
		{crypto.SHA512, policyOf(t, "path **", "vermagic *"),
			[]string{"refused by p:3: vermagic: a manifest does not tell it"}},
		{crypto.SHA512, policyOf(t, "path **", "license GPL"),
			[]string{"refused by p:3: license: a manifest does not tell it"}},
		{crypto.SHA1, policyOf(t, "path **", "hash sha512", "hash sha256"),
			[]string{`refused by p:3: hash: the hash "sha1" is in none of 2 lines`}},
	} {
		_, key := tokenSigner(t, 100, nil)
		signer := ofHash(t, key, test.hash)
		m := manifest.Manifest{digest("a/b.ko", test.hash), digest("c.ko", test.hash)}
		signed, err := signer.SignManifest(t.Context(), m, SignManifestOptions{Policy: test.policy})
		var got []string
		if refused, ok := errors.AsType[*RefusedError](err); ok {
			for _, err := range refused.Errs {
				got = append(got, err.Error())
			}
		} else if err != nil || len(signed) != 2 {
			t.Errorf("%v: %v", test.want, err)
		}
		if !slices.EqualFunc(got, test.want, strings.HasPrefix) {
			t.Errorf("got %q, want %q", got, test.want)
		}
		if len(key.seen) > 0 && len(test.want) > 0 {
			t.Errorf("%q: the key signed %v", test.want, key.seen)
		}
	}
}

// TestPolicyOfDigests takes digests of modules that a policy allows, and of no others.
func TestPolicyOfDigests(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "a.ko"), testmod.ELF())
	put(t, filepath.Join(dir, "b.ko.xz"), compressed(t, compress.XZ, made(t, "license=GPL", "license=MIT")))
	tree := openTree(t, Source{Roots: []string{dir}, DryRun: true})
	digests := func(lines ...string) (manifest.Manifest, error) {
		return tree.Manifest(t.Context(), crypto.SHA512, ReadOptions{Policy: policyOf(t, lines...)})
	}
	want, err := tree.Manifest(t.Context(), crypto.SHA512, ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := digests("path **", "license GPL", "license MIT", "max-modules 2")
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v: %v", err, got)
	}
	m, err := digests("path **", "license GPL")
	e, ok := errors.AsType[*policy.RefusedError](err)
	if !ok || !errors.Is(err, ErrIncomplete) || e.Line != 3 || m != nil {
		t.Errorf("%v: %v", err, m)
	}
	for _, lines := range []string{"path **\nmax-modules 1", "path **\nhash sha256", "path **\nexpires 2020-01-01"} {
		m, err := digests(lines)
		if e, ok := errors.AsType[*RefusedError](err); !ok || len(e.Errs) != 1 || m != nil {
			t.Errorf("%s: %v, %v", lines, err, m)
		}
	}
}
