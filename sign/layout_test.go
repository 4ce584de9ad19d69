package sign

import (
	"bytes"
	"crypto"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
)

// oldModules are modules with signatures that no kernel of today accepts, of which the
// layout is whole.
func oldModules(t *testing.T, elf []byte) map[string][]byte {
	old := testmod.OldSigned(t, testmod.NewKey(t, "rsa:2048"), "Example: kernel key", elf)
	modules := map[string][]byte{
		"x509.ko":       old,
		"packed.ko.zst": compressed(t, compress.Zstd, old),
		"twice.ko":      testmod.OldSigned(t, testmod.NewKey(t, "rsa:3072"), "", old),
		"inside.ko":     module.AppendSignature(bytes.Clone(old), module.TypePKCS7, []byte("outer")),
	}
	for _, info := range []module.Info{
		{IDType: module.TypePGP}, {IDType: module.TypeX509}, {IDType: 4}, {IDType: 255},
		{IDType: module.TypePKCS7, Algo: 1}, {IDType: module.TypePKCS7, Hash: 4},
		{IDType: module.TypePKCS7, Pad: [3]byte{0, 0, 1}},
		{IDType: module.TypePKCS7, SignerLen: 9}, {IDType: module.TypePKCS7, KeyIDLen: 20},
		{IDType: module.TypeMerkle, SignerLen: 1, KeyIDLen: 2, Algo: 3},
		{IDType: module.TypePGP, SignerLen: 255, KeyIDLen: 255},
	} {
		info.SigLen = 64
		behind := make([]byte, int(info.SignerLen)+int(info.KeyIDLen)+64)
		name := fmt.Sprintf("type%d-%d-%d-%x-%d-%d.ko",
			info.IDType, info.Algo, info.Hash, info.Pad, info.SignerLen, info.KeyIDLen)
		modules[name] = withInfo(elf, info, behind)
	}
	return modules
}

// A signature of whatever type comes off, is replaced, and counts as one.
func TestSignaturesOfOtherFormats(t *testing.T) {
	testmod.Slow(t, "it signs modules with signatures of every format")
	signer := newSigner(t, "rsa:2048", crypto.SHA256, false)
	elf := testmod.ELF()
	want := signed(t, signer, elf)
	modules := oldModules(t, elf)
	fill := func() string {
		dir := t.TempDir()
		for name, data := range modules {
			put(t, filepath.Join(dir, name), data)
		}
		return dir
	}
	content := func(dir, name string) []byte {
		return decompressed(t, compress.FromName(name), read(t, filepath.Join(dir, name)))
	}

	dir := fill()
	if s, results := sign(t, signer, Source{Roots: []string{dir}}, Options{}); s.Signed != len(modules) ||
		s.Replaced != len(modules) {
		t.Errorf("sign: %+v\n%v", s, results)
	}
	for name := range modules {
		if !bytes.Equal(content(dir, name), want) {
			t.Errorf("sign: %s is not what it would be had it not been signed before", name)
		}
	}
	dir = fill()
	if s, results := sign(t, nil, Source{Roots: []string{dir}}, Options{}); s.Stripped != len(modules) {
		t.Errorf("strip: %+v\n%v", s, results)
	}
	for name := range modules {
		if !bytes.Equal(content(dir, name), elf) {
			t.Errorf("strip: %s is not the module", name)
		}
	}
	dir = fill()
	if s, _ := sign(t, signer, Source{Roots: []string{dir}}, Options{Existing: Skip}); s.Skipped != len(modules) {
		t.Errorf("skip: %+v", s)
	}
	dir = fill()
	if s, _ := sign(t, signer, Source{Roots: []string{dir}}, Options{Existing: Refuse}); s.Failed != len(modules) {
		t.Errorf("refuse: %+v", s)
	}
	dir = fill()
	sign(t, signer, Source{Roots: []string{dir}}, Options{Detached: true})
	for name := range modules {
		if !bytes.Equal(read(t, filepath.Join(dir, module.BaseName(name)+".p7s")), signatureOf(want)) {
			t.Errorf("detached: the signature of %s is not that of the module", name)
		}
	}
	for name := range modules {
		if compress.FromName(name) != compress.None {
			continue
		}
		if err := File(t.Context(), signer, filepath.Join(dir, name), "", FileOptions{}); err != nil ||
			!bytes.Equal(read(t, filepath.Join(dir, name)), want) {
			t.Errorf("sign-file of %s: %v", name, err)
		}
	}
}
