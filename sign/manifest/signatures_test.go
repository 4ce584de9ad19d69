package manifest_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/sign"
	"github.com/modsign/modsign/sign/manifest"
)

// The inputs are files of signatures with a few changes, with the sum of what they were or
// of what they have become.
func FuzzReadSignatures(f *testing.F) {
	tree, err := sign.Open(
		f.Context(),
		sign.Source{Roots: []string{"../../testdata/modules/s390x/plain/hello.ko"}, DryRun: true},
	)
	if err != nil {
		f.Fatal(err)
	}
	defer tree.Close()
	m, err := tree.Manifest(f.Context(), crypto.SHA384, sign.ReadOptions{})
	if err != nil {
		f.Fatal(err)
	}
	var files []string
	for _, algorithm := range []string{"ecdsa:p384", "ecdsa:p256"} {
		key := testmod.NewKey(f, algorithm)
		signer, err := sign.NewSigner(key.Private, key.Certificate, sign.SignerOptions{Hash: crypto.SHA384, UseKeyID: true})
		if err != nil {
			f.Fatal(err)
		}
		s, err := signer.SignManifest(f.Context(), m, sign.SignManifestOptions{})
		if err != nil {
			f.Fatal(err)
		}
		files = append(files, manifest.Text(f, s))
	}
	files = append(files, manifest.Text(f, m))
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
			s = manifest.WithSum(slices.Collect(strings.Lines(s))...)
		} else {
			s = string(testmod.Edit([]byte(s), one, two, three))
		}
		defer testmod.ShowInputs(t, []byte(s), c.Raw)
		readSignatures(t, c, []byte(s))
	})
}

func readSignatures(t *testing.T, c *x509.Certificate, b []byte) {
	s, err := manifest.ReadSignatures(bytes.NewReader(b))
	if err != nil {
		return
	}
	if manifest.Text(t, s) != string(b) {
		t.Errorf("read\n%q\nwhich is written\n%q", b, manifest.Text(t, s))
	}
	if a, err := sign.NewAttachment(t.Context(), c, s); err == nil && a.Hash() != s[0].Hash {
		t.Errorf("signatures of %v became those of %v", s[0].Hash, a.Hash())
	}
}
