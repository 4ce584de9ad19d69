package sign

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/sign/manifest"
)

// signersOf returns how many signers the signature of a module has. It fails the test
// unless a kernel that trusts any one of the keys would take the signature.
func signersOf(t testing.TB, data []byte, algorithms ...string) int {
	t.Helper()
	layer, err := module.Check(bytes.NewReader(data), int64(len(data)), module.TypePKCS7)
	if err != nil {
		t.Fatal(err)
	}
	m, err := cms.Parse(signatureOf(data))
	if err != nil {
		t.Fatal(err)
	}
	digest := func(h cms.Hash) ([]byte, error) {
		sum := h.New()
		sum.Write(data[:layer.Offset])
		return sum.Sum(nil), nil
	}
	for _, algorithm := range algorithms {
		cert, err := cms.ParseCertificate(testmod.NewKey(t, algorithm).Certificate.Raw)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Check(digest, cms.NewKeyring(cert), nil); err != nil {
			t.Errorf("%s: %v", algorithm, err)
		}
	}
	return len(m.Signers)
}

// TestAdd adds to a tree of every form of module and of signature.
func TestAdd(t *testing.T) {
	const rsa, p256, p384 = "rsa:2048", "ecdsa:p256", "ecdsa:p384"
	elf := testmod.ELF()
	vendor := newSigner(t, rsa, crypto.SHA256, false)
	owner, err := JoinSigners(newSigner(t, p256, crypto.SHA512, false), newSigner(t, p384, crypto.SHA384, false))
	if err != nil {
		t.Fatal(err)
	}
	for _, output := range []bool{false, true} {
		dir := t.TempDir()
		for _, f := range allFormats {
			put(t, filepath.Join(dir, "plain"+f.String()+".ko"+f.Suffix()), compressed(t, f, elf))
			put(t, filepath.Join(dir, "signed"+f.String()+".ko"+f.Suffix()), compressed(t, f, signed(t, vendor, elf)))
		}
		if err := os.Link(filepath.Join(dir, "signednone.ko"), filepath.Join(dir, "signedlinked.ko")); err != nil {
			t.Fatal(err)
		}
		source := Source{Roots: []string{dir}}
		before := snapshot(t, dir)
		dry, _ := sign(t, owner, source, Options{Existing: Add, WriteOptions: WriteOptions{DryRun: true}})
		unchanged(t, "dry run", dir, before, true)
		if output {
			source.Output = filepath.Join(t.TempDir(), "out")
		}
		summary, results := sign(t, owner, source, Options{Existing: Add})
		if want := len(allFormats) + 1; summary.Added != want || summary.Signed != 2*len(allFormats)+1 ||
			summary.Replaced != 0 || dry.Added != want || dry.Signed != summary.Signed {
			t.Errorf("%+v; dry %+v", summary, dry)
		}
		for _, r := range results {
			data := decompressed(t, r.Format, read(t, r.Output))
			want, kept, keys := 2, 0, []string{p256, p384}
			if strings.HasPrefix(filepath.Base(r.Path), "signed") {
				want, kept, keys = 3, 1, append(keys, rsa)
			}
			if n := signersOf(t, data, keys...); n != want || r.Kept != kept || r.Removed != 0 || r.Payload != int64(len(elf)) ||
				len(r.Digest) != crypto.SHA512.Size() || r.Signature != len(signatureOf(data)) {
				t.Errorf("%d signers: %+v", n, r)
			}
		}
		if !output && !sameInode(t, filepath.Join(dir, "signednone.ko"), filepath.Join(dir, "signedlinked.ko")) {
			t.Error("hard links are two files now")
		}
	}
}

// TestAddAgain takes the place of an older signature of the same signer.
func TestAddAgain(t *testing.T) {
	elf, dir := testmod.ELF(), t.TempDir()
	path := filepath.Join(dir, "a.ko")
	first, second := newSigner(t, "rsa:2048", crypto.SHA256, false), newSigner(t, "rsa:4096", crypto.SHA256, false)
	again := newSigner(t, "rsa:2048", crypto.SHA512, false)
	put(t, path, signed(t, first, elf))
	for _, signer := range []*Signer{second, again, second} { // all kept, one replaced, nothing new
		mustSign(t, signer, Source{Roots: []string{dir}}, Options{Existing: Add})
	}
	joined, err := JoinSigners(second, again)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, path), signed(t, joined, elf)) {
		t.Error("not what both would sign at once")
	}
	put(t, path, signed(t, first, elf))
	summary, results := sign(t, again, Source{Roots: []string{dir}}, Options{Existing: Add})
	if summary.Added != 0 || summary.Replaced != 1 || results[0].Removed != 1 ||
		!bytes.Equal(read(t, path), signed(t, again, elf)) {
		t.Errorf("alone: %+v", summary)
	}
}

// TestAddRefuses leaves modules whose signature cannot have another signer as they are.
func TestAddRefuses(t *testing.T) {
	elf, dir := testmod.ELF(), t.TempDir()
	signer := newSigner(t, "rsa:4096", crypto.SHA256, false)
	other := newSigner(t, "rsa:2048", crypto.SHA256, false)
	fields := signed(t, other, elf)
	fields[len(fields)-module.TrailerSize] = 1 // algo
	full, err := cms.Parse(signatureOf(signed(t, other, elf)))
	if err != nil {
		t.Fatal(err)
	}
	appended := func(message []byte) []byte {
		return module.AppendSignature(bytes.Clone(elf), module.TypePKCS7, message)
	}
	modules := map[string]struct {
		data []byte
		want string
	}{
		"key id":    {signed(t, newSigner(t, "rsa:2048", crypto.SHA256, true), elf), "names signers in two ways"},
		"twice":     {signed(t, other, signed(t, other, elf)), "signed 2 times"},
		"proof":     {module.AppendSignature(bytes.Clone(elf), module.TypeMerkle, make([]byte, 40)), "Merkle proof"},
		"old":       {withInfo(elf, module.Info{IDType: module.TypeX509, Algo: 1, Hash: 4}, make([]byte, 258)), "X509"},
		"nothing":   {appended(nil), "cannot have another signer"},
		"garbage":   {appended([]byte("garbage")), "cannot have another signer"},
		"cut":       {appended(full.Raw[:len(full.Raw)-1]), "cannot have another signer"},
		"too large": {appended(make([]byte, cms.MaxSize+1)), "the kernel reads at most 65535"},
		"fields":    {fields, "nonzero fields"},
		"no room":   {appended(crowd(t, other, elf)), "65535"},
		"no module": {signed(t, other, []byte("text")), "not a kernel module"},
	}
	for name, m := range modules {
		put(t, filepath.Join(dir, name+".ko"), m.data)
	}
	before := snapshot(t, dir)
	for _, dryRun := range []bool{true, false} {
		summary, results := sign(t, signer, Source{Roots: []string{dir}},
			Options{Existing: Add, WriteOptions: WriteOptions{DryRun: dryRun}})
		if summary.Failed != len(modules) || summary.Signed != 0 || summary.Added != 0 {
			t.Errorf("%+v", summary)
		}
		for _, r := range results {
			name := strings.TrimSuffix(filepath.Base(r.Path), ".ko")
			if r.Err == nil || !strings.Contains(r.Err.Error(), modules[name].want) {
				t.Errorf("%s: %v, want %q", name, r.Err, modules[name].want)
			}
		}
	}
	unchanged(t, "refused", dir, before, true)
}

// crowd is a message with so many signers that none fits in.
func crowd(t testing.TB, signer *Signer, elf []byte) []byte {
	t.Helper()
	der := signatureOf(signed(t, signer, elf))
	name := []byte{0x06, 0x03, 0x55, 0x04} // of an attribute of the issuer
	for other := byte(5); ; other++ {
		added := bytes.Replace(signatureOf(signed(t, signer, elf)), name, []byte{0x06, 0x03, 0x55, other}, 1)
		next, err := addSigners(der, added)
		if err != nil {
			return der
		}
		der = next
	}
}

func TestAddOptions(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "a.ko"), testmod.ELF())
	before := snapshot(t, dir)
	signer := newSigner(t, "ecdsa:p256", crypto.SHA256, false)
	tree := openTree(t, Source{Roots: []string{dir}})
	for _, opts := range []Options{
		{Detached: true},
		{DebugOptions: DebugOptions{StripDebug: true}},
		{DebugOptions: DebugOptions{SplitDebug: t.TempDir()}},
	} {
		opts.Existing = Add
		if _, err := tree.Sign(t.Context(), signer, opts); err == nil || errors.Is(err, ErrIncomplete) {
			t.Errorf("%+v: %v", opts, err)
		}
	}
	unchanged(t, "refused options", dir, before, true)
}

// TestJoinSigners refuses what no kernel would take.
func TestJoinSigners(t *testing.T) {
	a, b := newSigner(t, "ecdsa:p256", crypto.SHA256, false), newSigner(t, "rsa:2048", crypto.SHA512, false)
	for _, test := range []struct {
		name    string
		signers []*Signer
		want    string
	}{
		{"none", nil, "nothing to sign with"},
		{"nil", []*Signer{a, nil}, "nothing to sign with"},
		{"the same", []*Signer{a, b, a}, "occurs twice"},
		{"two names", []*Signer{a, newSigner(t, "rsa:2048", crypto.SHA512, true)}, "names signers in two ways"},
	} {
		if s, err := JoinSigners(test.signers...); err == nil || s != nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
	one, err := JoinSigners(b)
	if err != nil {
		t.Fatal(err)
	}
	elf := testmod.ELF()
	if !bytes.Equal(signed(t, one, elf), signed(t, b, elf)) {
		t.Error("one signer is not itself")
	}
	both, err := JoinSigners(a, b)
	if err != nil {
		t.Fatal(err)
	}
	if n := signersOf(t, signed(t, both, elf), "ecdsa:p256", "rsa:2048"); n != 2 {
		t.Errorf("%d signers", n)
	}
	if _, err := both.SignManifest(t.Context(), manifest.Manifest{{Path: "a.ko"}}, SignManifestOptions{}); err == nil ||
		!strings.Contains(err.Error(), "one signer") {
		t.Error(err)
	}
	// sign-file's way replaces, as ever.
	path := filepath.Join(t.TempDir(), "a.ko")
	put(t, path, signed(t, both, elf))
	if err := File(t.Context(), b, path, "", FileOptions{}); err != nil || !bytes.Equal(read(t, path), signed(t, b, elf)) {
		t.Errorf("sign-file keeps signers: %v", err)
	}
}

// TestAttachAdds attaches the signatures of a second signer.
func TestAttachAdds(t *testing.T) {
	elf, dir := testmod.ELF(), t.TempDir()
	first, second := newSigner(t, "rsa:2048", crypto.SHA256, false), newSigner(t, "rsa:4096", crypto.SHA512, false)
	path := filepath.Join(dir, "a.ko")
	put(t, path, signed(t, first, elf))
	tree := openTree(t, Source{Roots: []string{dir}})
	m, err := tree.Manifest(t.Context(), crypto.SHA512, ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	signatures, err := second.SignManifest(t.Context(), m, SignManifestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	attach := func(s manifest.Signatures, cert *x509.Certificate, opts AttachOptions) (Summary, error) {
		attachment, err := NewAttachment(t.Context(), cert, s)
		if err != nil {
			return Summary{}, err
		}
		return tree.Attach(t.Context(), attachment, opts)
	}
	cert := testmod.NewKey(t, "rsa:4096").Certificate
	summary, err := attach(signatures, cert, AttachOptions{Existing: Add})
	joined, joinErr := JoinSigners(first, second)
	if err != nil || joinErr != nil || summary.Added != 1 || !bytes.Equal(read(t, path), signed(t, joined, elf)) {
		t.Errorf("%+v, %v, %v", summary, err, joinErr)
	}
	if _, err := attach(signatures, cert, AttachOptions{Existing: Add, Detached: true}); err == nil {
		t.Error("added to a detached signature")
	}
	// A message of several signers is not what one certificate vouches for.
	signatures[0].Message = signatureOf(read(t, path))
	if _, err := attach(signatures, cert, AttachOptions{}); err == nil || !strings.Contains(err.Error(), "2 signers") {
		t.Error(err)
	}
}
