package sign_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/sign"
	"github.com/modsign/modsign/sign/manifest"
)

// An importer, which has no more than the package's own names.

func newSigner(t testing.TB) *sign.Signer {
	t.Helper()
	key := testmod.NewKey(t, "ecdsa:p256")
	signer, err := sign.NewSigner(key.Private, key.Certificate, sign.SignerOptions{Hash: crypto.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// directory holds files.
func directory(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func open(t testing.TB, source sign.Source) *sign.Tree {
	t.Helper()
	tree, err := sign.Open(t.Context(), source)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tree.Close)
	return tree
}

// attachment has the signatures of the modules in a directory.
func attachment(t testing.TB, dir string) *sign.Attachment {
	t.Helper()
	m, err := open(
		t,
		sign.Source{Roots: []string{dir}, DryRun: true},
	).Manifest(t.Context(), crypto.SHA256, sign.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSigner(t).SignManifest(t.Context(), m, sign.SignManifestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a, err := sign.NewAttachment(t.Context(), testmod.NewKey(t, "ecdsa:p256").Certificate, s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// prover proves all modules but one.
type prover struct{ refuse error }

func (p prover) NewHash(string) hash.Hash { return crypto.SHA256.New() }

func (p prover) Proof(name string, _ []byte) ([]byte, error) {
	if name == "b.ko" {
		return nil, p.refuse
	}
	return []byte("proof"), nil
}

// Whatever the work is, a module that fails makes an error that says why.
func TestIncomplete(t *testing.T) {
	t.Parallel()
	lacks := errors.New("no proof of it")
	for name, work := range map[string]struct {
		do  func(*sign.Tree, string, sign.Options) (sign.Summary, error)
		why error
	}{
		"Sign": {func(t1 *sign.Tree, _ string, o sign.Options) (sign.Summary, error) {
			return t1.Sign(t.Context(), newSigner(t), o)
		}, sign.ErrNotModule},
		"RemoveSignatures": {func(t1 *sign.Tree, _ string, o sign.Options) (sign.Summary, error) {
			return t1.RemoveSignatures(t.Context(), o.WriteOptions)
		}, sign.ErrNotModule},
		"Digest": {func(t1 *sign.Tree, _ string, o sign.Options) (sign.Summary, error) {
			return t1.Digest(t.Context(), crypto.SHA256, sign.ReadOptions{Jobs: o.Jobs, MaxSize: o.MaxSize, Report: o.Report})
		}, sign.ErrNotModule},
		"Prove": {func(t1 *sign.Tree, _ string, o sign.Options) (sign.Summary, error) {
			return t1.Prove(t.Context(), prover{lacks}, sign.ProveOptions{WriteOptions: o.WriteOptions})
		}, sign.ErrNotModule},
		"Manifest": {func(t1 *sign.Tree, _ string, o sign.Options) (sign.Summary, error) {
			m, err := t1.Manifest(
				t.Context(), crypto.SHA256, sign.ReadOptions{Jobs: o.Jobs, MaxSize: o.MaxSize, Report: o.Report},
			)
			return sign.Summary{Failed: 1, Modules: 2 + len(m)}, err
		}, sign.ErrNotModule},
		"Attach": {func(t1 *sign.Tree, dir string, o sign.Options) (sign.Summary, error) {
			good := directory(t, map[string][]byte{"a.ko": testmod.ELF(), "b.ko": testmod.ELF()})
			return t1.Attach(
				t.Context(), attachment(t, good),
				sign.AttachOptions{WriteOptions: o.WriteOptions, Existing: o.Existing, Detached: o.Detached},
			)
		}, sign.ErrNotModule},
	} {
		for _, dry := range []bool{false, true} {
			for _, report := range []func(sign.Result){nil, func(sign.Result) {}} {
				dir := directory(t, map[string][]byte{"a.ko": testmod.ELF(), "b.ko": []byte("text")})
				tree := open(t, sign.Source{Roots: []string{dir}})
				s, err := work.do(
					tree,
					dir,
					sign.Options{WriteOptions: sign.WriteOptions{DryRun: dry, Report: sign.Report{Result: report}}},
				)
				tree.Close()
				if !errors.Is(err, sign.ErrIncomplete) || !errors.Is(err, work.why) || s.Failed != 1 || s.Modules != 2 {
					t.Errorf("%s, dry run %v: %+v, %v", name, dry, s, err)
					continue
				}
				if text := err.Error(); !strings.HasPrefix(text, "1 of 2 modules failed: "+filepath.Join(dir, "b.ko")+": ") ||
					strings.Contains(text, "\n") {
					t.Errorf("%s: %q", name, err)
				}
			}
		}
	}

	dir := directory(t, map[string][]byte{"a.ko": testmod.ELF(), "b.ko": testmod.ELF()})
	if _, err := open(t, sign.Source{Roots: []string{dir}}).Prove(
		t.Context(), prover{lacks}, sign.ProveOptions{},
	); !errors.Is(err, sign.ErrIncomplete) ||
		!errors.Is(err, lacks) {
		t.Errorf("a module without a proof: %v", err)
	}
	signed := sign.Options{Existing: sign.Refuse}
	if _, err := open(
		t, sign.Source{Roots: []string{directory(t, map[string][]byte{"a.ko": read(t, filepath.Join(dir, "a.ko"))})}},
	).Sign(t.Context(), newSigner(t), signed); !errors.Is(err, sign.ErrSigned) {
		t.Errorf("a module that was signed: %v", err)
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// An error holds a few of many failures.
func TestIncompleteIsBounded(t *testing.T) {
	t.Parallel()
	files := make(map[string][]byte)
	for i := range 300 {
		files[fmt.Sprintf("%03d.ko", i)] = []byte("text")
	}
	dir := directory(t, files)
	_, err := open(t, sign.Source{Roots: []string{dir}}).Sign(t.Context(), newSigner(t), sign.Options{})
	text := err.Error()
	if !strings.HasPrefix(text, "300 of 300 modules failed: "+dir+"/000.ko: ") ||
		!strings.HasSuffix(text, "; and 290 more") ||
		strings.Count(text, ".ko: ") != 10 {
		t.Errorf("%q", text)
	}
}

// An interrupt is the context's cause, also where modules have failed.
func TestIncompleteInterrupted(t *testing.T) {
	t.Parallel()
	files := make(map[string][]byte)
	for i := range 100 {
		files[fmt.Sprintf("%03d.ko", i)] = []byte("text")
	}
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	s, err := open(
		t,
		sign.Source{Roots: []string{directory(t, files)}},
	).Sign(
		ctx, newSigner(t),
		sign.Options{
			WriteOptions: sign.WriteOptions{Jobs: 1, Report: sign.Report{Result: func(sign.Result) { cancel(cause) }}},
		},
	)
	if !errors.Is(err, cause) || errors.Is(err, sign.ErrIncomplete) || s.Failed == 0 {
		t.Errorf("%+v, %v", s, err)
	}
}

type embedsNothing struct{ crypto.Signer }

// What was never made, or is nil, is an error wherever it goes.
func TestNothing(t *testing.T) {
	t.Parallel()
	key, other := testmod.NewKey(t, "rsa:2048"), testmod.NewKey(t, "ecdsa:p256")
	public := *key.Private.Public().(*rsa.PublicKey)
	certificate := func(change func(*x509.Certificate)) *x509.Certificate {
		c := *key.Certificate
		change(&c)
		return &c
	}
	made := func(key crypto.Signer, cert *x509.Certificate) func() error {
		return func() error {
			for _, keyID := range []bool{false, true} {
				signer, err := sign.NewSigner(key, cert, sign.SignerOptions{Hash: crypto.SHA256, UseKeyID: keyID})
				if err == nil || signer != nil {
					return nil
				}
			}
			return errors.New("refused")
		}
	}
	module := filepath.Join(directory(t, map[string][]byte{"a.ko": testmod.ELF()}), "a.ko")
	tree := open(t, sign.Source{Roots: []string{module}})
	ctx := t.Context()
	ignore := func(_ any, err error) error { return err }
	for name, f := range map[string]func() error{
		"NewSigner without a key":             made(nil, key.Certificate),
		"NewSigner without a certificate":     made(key.Private, nil),
		"NewSigner with nothing":              made(nil, nil),
		"a nil RSA key":                       made((*rsa.PrivateKey)(nil), key.Certificate),
		"a zero RSA key":                      made(&rsa.PrivateKey{}, key.Certificate),
		"an RSA key without its private part": made(&rsa.PrivateKey{PublicKey: public}, key.Certificate),
		"a nil ECDSA key":                     made((*ecdsa.PrivateKey)(nil), other.Certificate),
		"a zero ECDSA key":                    made(&ecdsa.PrivateKey{}, other.Certificate),
		"an ECDSA key without numbers": made(
			&ecdsa.PrivateKey{PublicKey: ecdsa.PublicKey{Curve: elliptic.P256()}}, other.Certificate,
		),
		"an ECDSA key without private part": made(
			&ecdsa.PrivateKey{PublicKey: *other.Private.Public().(*ecdsa.PublicKey)}, other.Certificate,
		),
		"a nil Ed25519 key":      made(ed25519.PrivateKey(nil), key.Certificate),
		"an empty Ed25519 key":   made(ed25519.PrivateKey{}, key.Certificate),
		"a key that embeds none": made(embedsNothing{}, key.Certificate),
		"a certificate without a key": made(key.Private, certificate(func(c *x509.Certificate) {
			c.PublicKey = nil
		})),
		"a certificate with a nil key": made(key.Private, certificate(func(c *x509.Certificate) {
			c.PublicKey = (*rsa.PublicKey)(nil)
		})),
		"a certificate with a zero RSA key": made(key.Private, certificate(func(c *x509.Certificate) {
			c.PublicKey = &rsa.PublicKey{}
		})),
		"a certificate with a zero EC key": made(key.Private, certificate(func(c *x509.Certificate) {
			c.PublicKey = &ecdsa.PublicKey{}
		})),
		"a certificate that was not parsed": made(key.Private, certificate(func(c *x509.Certificate) { c.Raw = nil })),
		"a zero certificate":                made(key.Private, &x509.Certificate{}),

		"Sign of a nil Signer":  func() error { return ignore((*sign.Signer)(nil).Sign(strings.NewReader("x"))) },
		"Sign of a zero Signer": func() error { return ignore(new(sign.Signer).Sign(strings.NewReader("x"))) },
		"Sign of no payload":    func() error { return ignore(newSigner(t).Sign(nil)) },
		"Sign of a nil payload": func() error { return ignore(newSigner(t).Sign((*bytes.Buffer)(nil))) },
		"File with nothing":     func() error { return sign.File(t.Context(), nil, module, "", sign.FileOptions{}) },
		"File with nothing, detached": func() error {
			return sign.File(t.Context(), nil, module, "", sign.FileOptions{Detached: true})
		},
		"File with a zero Signer": func() error {
			return sign.File(t.Context(), new(sign.Signer), module, "", sign.FileOptions{})
		},
		"File with two things": func() error {
			return sign.File(t.Context(), newSigner(t), module, "", sign.FileOptions{Signature: []byte("x")})
		},
		"Tree.Sign with nothing":       func() error { return ignore(tree.Sign(ctx, nil, sign.Options{})) },
		"Tree.Sign with a zero Signer": func() error { return ignore(tree.Sign(ctx, new(sign.Signer), sign.Options{})) },
		"Tree.Prove with nothing":      func() error { return ignore(tree.Prove(ctx, nil, sign.ProveOptions{})) },
		"Tree.Prove with a nil Prover": func() error {
			return ignore(tree.Prove(ctx, (*prover)(nil), sign.ProveOptions{}))
		},
		"Tree.Prove without a hash": func() error { return ignore(tree.Prove(ctx, noHashes{}, sign.ProveOptions{})) },
		"Tree.Digest with no hash":  func() error { return ignore(tree.Digest(ctx, nil, sign.ReadOptions{})) },
		"Tree.Attach of nothing":    func() error { return ignore(tree.Attach(ctx, nil, sign.AttachOptions{})) },
		"Tree.Attach of a zero one": func() error {
			return ignore(tree.Attach(ctx, new(sign.Attachment), sign.AttachOptions{}))
		},
		"Tree.CheckComplete of nothing":    func() error { return tree.CheckComplete(nil) },
		"Tree.CheckComplete of a zero one": func() error { return tree.CheckComplete(new(sign.Attachment)) },
		"NewAttachment without a cert": func() error {
			return ignore(sign.NewAttachment(ctx, nil, make(manifest.Signatures, 1)))
		},
		"NewAttachment with a zero cert": func() error {
			return ignore(sign.NewAttachment(ctx, &x509.Certificate{}, make(manifest.Signatures, 1)))
		},
		"NewAttachment of zeros": func() error {
			return ignore(sign.NewAttachment(ctx, key.Certificate, make(manifest.Signatures, 1)))
		},
		"FindSignatures without a cert": func() error {
			return ignore(tree.FindSignatures(ctx, nil, sign.FoundSignatures{}, sign.ReadOptions{}))
		},
		"FindSignatures of Debian's": func() error {
			return ignore(tree.FindSignatures(
				ctx, key.Certificate, sign.FoundSignatures{Layout: sign.Debian}, sign.ReadOptions{},
			))
		},
		"SignManifest with nothing": func() error {
			return ignore((*sign.Signer)(nil).SignManifest(ctx, make(manifest.Manifest, 1), sign.SignManifestOptions{}))
		},
		"SignManifest with a zero one": func() error {
			return ignore(new(sign.Signer).SignManifest(ctx, make(manifest.Manifest, 1), sign.SignManifestOptions{}))
		},
		"SignManifest of zeros": func() error {
			return ignore(newSigner(t).SignManifest(ctx, make(manifest.Manifest, 1), sign.SignManifestOptions{}))
		},
		"SignManifest of no module": func() error {
			return ignore(newSigner(t).SignManifest(ctx, manifest.Manifest{}, sign.SignManifestOptions{}))
		},
		"Manifest.Write of zeros": func() error { return make(manifest.Manifest, 1).Write(io.Discard) },
		"Open of nothing":         func() error { return ignore(sign.Open(t.Context(), sign.Source{})) },
		"Sign of a tree that is not open": func() error {
			return ignore(new(sign.Tree).Sign(ctx, newSigner(t), sign.Options{}))
		},
		"RemoveSignatures of a nil tree": func() error {
			return ignore((*sign.Tree)(nil).RemoveSignatures(ctx, sign.WriteOptions{}))
		},
	} {
		if err := f(); err == nil || err.Error() == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := read(t, module); !bytes.Equal(got, testmod.ELF()) {
		t.Error("the module was changed")
	}
	if h := (*sign.Attachment)(nil).Hash(); h != 0 {
		t.Errorf("the hash of no Attachment is %v", h)
	}
	(*sign.Tree)(nil).Close()
	if n := (*sign.Tree)(nil).Modules(); n != 0 {
		t.Errorf("%d modules of no tree", n)
	}
}

type noHashes struct{}

func (noHashes) NewHash(string) hash.Hash             { return nil }
func (noHashes) Proof(string, []byte) ([]byte, error) { return []byte("proof"), nil }

// A tree that is closed does nothing any more: others may have it.
func TestClosed(t *testing.T) {
	t.Parallel()
	dir := directory(t, map[string][]byte{"a.ko": testmod.ELF()})
	a, ctx := attachment(t, dir), t.Context()
	tree := open(t, sign.Source{Roots: []string{dir}})
	tree.Close()
	tree.Close()
	ignore := func(_ any, err error) error { return err }
	for name, err := range map[string]error{
		"Sign":             ignore(tree.Sign(ctx, newSigner(t), sign.Options{})),
		"RemoveSignatures": ignore(tree.RemoveSignatures(ctx, sign.WriteOptions{})),
		"Digest":           ignore(tree.Digest(ctx, crypto.SHA256, sign.ReadOptions{})),
		"Prove":            ignore(tree.Prove(ctx, prover{}, sign.ProveOptions{})),
		"Attach":           ignore(tree.Attach(ctx, a, sign.AttachOptions{})),
		"dry Attach":       ignore(tree.Attach(ctx, a, sign.AttachOptions{WriteOptions: sign.WriteOptions{DryRun: true}})),
		"CheckComplete":    tree.CheckComplete(a),
		"Manifest":         ignore(tree.Manifest(ctx, crypto.SHA256, sign.ReadOptions{})),
		"FindSignatures": ignore(tree.FindSignatures(
			ctx, testmod.NewKey(t, "rsa:2048").Certificate, sign.FoundSignatures{}, sign.ReadOptions{},
		)),
		"MissingDebugFiles": ignore(tree.MissingDebugFiles(ctx, dir, sign.ReadOptions{})),
	} {
		if !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := read(t, filepath.Join(dir, "a.ko")); !bytes.Equal(got, testmod.ELF()) {
		t.Error("the module was changed")
	}
}

// Values that are none of those that there are have a String, and are refused.
func TestUnknownValues(t *testing.T) {
	t.Parallel()
	for i := range 256 {
		for _, s := range []string{
			sign.Existing(i).String(), sign.Sync(i).String(), sign.Format(i).String(), sign.Layout(i).String(),
		} {
			if s == "" || i > 3 && !strings.Contains(s, fmt.Sprint(i)) {
				t.Errorf("%d: %q", i, s)
			}
		}
	}
	if s := sign.Existing(7).String(); s != "Existing(7)" {
		t.Errorf("Existing(7) is %q", s)
	}
	dir := directory(t, map[string][]byte{"a.ko": testmod.ELF()})
	tree := open(t, sign.Source{Roots: []string{dir}})
	refused := func(what any, errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err == nil || !strings.Contains(err.Error(), "Options.") {
				t.Errorf("%+v: %v", what, err)
			}
		}
	}
	attachment := attachment(t, dir)
	for _, existing := range []sign.Existing{4, 255} {
		_, signed := tree.Sign(t.Context(), newSigner(t), sign.Options{Existing: existing})
		_, attached := tree.Attach(t.Context(), attachment, sign.AttachOptions{Existing: existing})
		refused(existing, signed, attached)
	}
	for _, opts := range []sign.WriteOptions{{Sync: 3}, {Sync: 255}, {Jobs: -1}, {MaxSize: -1}} {
		_, signed := tree.Sign(t.Context(), newSigner(t), sign.Options{WriteOptions: opts})
		_, attached := tree.Attach(t.Context(), attachment, sign.AttachOptions{WriteOptions: opts})
		_, proven := tree.Prove(t.Context(), prover{}, sign.ProveOptions{WriteOptions: opts})
		_, unsigned := tree.RemoveSignatures(t.Context(), opts)
		_, stripped := tree.StripDebug(t.Context(), sign.StripOptions{WriteOptions: opts})
		refused(opts, signed, attached, proven, unsigned, stripped)
	}
	for _, opts := range []sign.ReadOptions{{Jobs: -1}, {MaxSize: -1}} {
		_, digested := tree.Digest(t.Context(), crypto.SHA256, opts)
		_, listed := tree.Manifest(t.Context(), crypto.SHA256, opts)
		_, missing := tree.MissingDebugFiles(t.Context(), dir, opts)
		refused(opts, digested, listed, missing)
	}
	for _, layout := range []sign.Layout{3, 255} {
		if _, err := tree.FindSignatures(
			t.Context(), testmod.NewKey(t, "rsa:2048").Certificate, sign.FoundSignatures{Layout: layout}, sign.ReadOptions{},
		); err == nil ||
			!strings.Contains(err.Error(), fmt.Sprintf("Layout(%d)", layout)) {
			t.Errorf("%v: %v", layout, err)
		}
	}
	tree.Close()
	for _, format := range []sign.Format{4, 255} {
		if tree, err := sign.Open(t.Context(), sign.Source{Roots: []string{dir}, Compress: format}); err == nil ||
			!strings.Contains(err.Error(), "Source.Compress") {
			t.Errorf("%v: %v, %v", format, tree, err)
		}
	}
	if got := read(t, filepath.Join(dir, "a.ko")); !bytes.Equal(got, testmod.ELF()) {
		t.Error("the module was changed")
	}
}

// growing is a Prover that writes to the module when it is read.
type growing func() error

func (g growing) NewHash(string) hash.Hash {
	if err := g(); err != nil {
		panic(err)
	}
	return crypto.SHA256.New()
}

func (growing) Proof(string, []byte) ([]byte, error) { return []byte("proof"), nil }

// What the documentation names can be named, and matched.
func TestNames(t *testing.T) {
	t.Parallel()
	dir := directory(t, map[string][]byte{"a.ko": testmod.ELF(), "b.ko.xz": testmod.ELF(), "c.ko": []byte("text")})
	tree := open(t, sign.Source{Roots: []string{dir}})
	_, err := sign.Open(t.Context(), sign.Source{Roots: []string{dir}})
	if locked, ok := errors.AsType[*sign.LockedError](err); !ok || locked.Path == "" || locked.Holder == "" {
		t.Errorf("a locked tree: %v", err)
	}
	_, err = tree.Sign(t.Context(), newSigner(t), sign.Options{})
	if misnamed, ok := errors.AsType[*sign.MisnamedError](err); !ok || misnamed.Is != sign.None ||
		misnamed.Right != "b.ko" {
		t.Errorf("a name that promises xz: %v", err)
	}
	if !errors.Is(err, sign.ErrNotModule) {
		t.Errorf("a text: %v", err)
	}
	tree.Close()

	// It grows while it is read.
	large := append(testmod.ELF(), make([]byte, 1<<20)...)
	path := filepath.Join(directory(t, map[string][]byte{"a.ko": large}), "a.ko")
	tree = open(t, sign.Source{Roots: []string{path}})
	grow := growing(func() error { return os.WriteFile(path, large[:len(large)-1], 0o644) })
	if _, err := tree.Prove(t.Context(), grow, sign.ProveOptions{}); !errors.Is(err, sign.ErrChanged) ||
		!errors.Is(err, sign.ErrIncomplete) {
		t.Errorf("a module that changes: %v", err)
	}
	tree.Close()

	packed := directory(t, map[string][]byte{"a.ko": large})
	for _, format := range []sign.Format{sign.Gzip, sign.XZ, sign.Zstd, sign.None} {
		if parsed, err := sign.ParseFormat(format.String()); err != nil || parsed != format {
			t.Errorf("%v: %v, %v", format, parsed, err)
		}
		tree := open(t, sign.Source{Roots: []string{packed}, Compress: format, Recompress: true})
		if _, err := tree.Sign(t.Context(), newSigner(t), sign.Options{}); err != nil {
			t.Errorf("%v: %v", format, err)
		}
		tree.Close()
		tree = open(t, sign.Source{Roots: []string{packed}, DryRun: true})
		_, err := tree.RemoveSignatures(t.Context(), sign.WriteOptions{MaxSize: 1000})
		if errors.Is(err, sign.ErrTooLarge) != (format != sign.None) {
			t.Errorf("%v: %v", format, err)
		}
		tree.Close()
	}

	for name, want := range map[string]crypto.Hash{
		"sha1":     crypto.SHA1,
		"sha256":   crypto.SHA256,
		"sha512":   crypto.SHA512,
		"sha3-256": crypto.SHA3_256,
		"SHA2-384": crypto.SHA384,
	} {
		if h, err := sign.ParseHash(name); err != nil || h != want {
			t.Errorf("%s: %v, %v", name, h, err)
		}
	}
	for _, name := range []string{"", "md5", "sha3-224", "sha9"} {
		if h, err := sign.ParseHash(name); err == nil || h != 0 {
			t.Errorf("%q: %v, %v", name, h, err)
		}
	}
	for _, action := range []sign.Action{sign.Signed, sign.Stripped, sign.Digested, sign.Skipped, sign.Failed} {
		if parsed, err := sign.ParseAction(action.String()); err != nil || parsed != action {
			t.Errorf("%v: %v, %v", action, parsed, err)
		}
	}
	if action, err := sign.ParseAction("eaten"); err == nil {
		t.Errorf("eaten is %v", action)
	}
	for _, layout := range []sign.Layout{sign.P7S, sign.Debian, sign.Raw} {
		if parsed, err := sign.ParseLayout(layout.String()); err != nil || parsed != layout {
			t.Errorf("%v: %v, %v", layout, parsed, err)
		}
	}
	if name := sign.HashName(crypto.SHA3_512); name != "sha3-512" {
		t.Errorf("SHA3-512 is %q", name)
	}
}

// A signature that is given is appended as it is; rand shows that it is not made.
func TestFileAppends(t *testing.T) {
	t.Parallel()
	sig := make([]byte, 64)
	rand.Read(sig)
	path := filepath.Join(directory(t, map[string][]byte{"a.ko": testmod.ELF()}), "a.ko")
	if err := sign.File(t.Context(), nil, path, "", sign.FileOptions{Signature: sig}); err != nil ||
		!bytes.Contains(read(t, path), sig) {
		t.Errorf("%v", err)
	}
}
