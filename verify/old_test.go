package verify

import (
	"bytes"
	"encoding/hex"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
)

// modinfo returns what kmod's modinfo says of the signature, without its bytes.
func modinfo(t *testing.T, path string) map[string]string {
	t.Helper()
	fields := make(map[string]string)
	for line := range strings.Lines(string(testmod.Run(t, testmod.Program(t, "modinfo", "kmod"), path))) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		if strings.HasPrefix(name, "sig_") || name == "signer" {
			fields[name] = strings.TrimSpace(value)
		}
	}
	return fields
}

// withColons is how modinfo writes octets.
func withColons(text string) string {
	var pairs []string
	for pair := range slices.Chunk([]byte(strings.ToUpper(text)), 2) {
		pairs = append(pairs, string(pair))
	}
	return strings.Join(pairs, ":")
}

// Signatures in the format of before Linux 4.3 are described as modinfo describes them.
func TestInspectBefore43(t *testing.T) {
	key := testmod.NewKey(t, "rsa:2048")
	payload, err := os.ReadFile("../testdata/modules/amd64-6.12/plain/hello.ko")
	if err != nil {
		t.Fatal(err)
	}
	old := testmod.OldSigned(t, key, "Example: kernel key", payload)
	set := func(at int, value byte) []byte {
		b := bytes.Clone(old)
		b[len(b)+at] = value
		return b
	}
	for name, data := range map[string][]byte{
		"RSA and SHA-256": old,
		"DSA":             set(-40, 0),
		"PGP":             set(-38, 0),
		"MD4":             set(-39, 0),
		"SHA-1":           set(-39, 2),
		"SHA-224":         set(-39, 7),
	} {
		path := testmod.WriteFile(t, "m.ko", data)
		d, err := Inspect(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if len(d.Layers) != 1 || len(d.Layers[0].Signers) != 1 || d.Payload != int64(len(payload)) ||
			d.Layers[0].Problem != "" ||
			len(d.Warnings) != 0 {
			t.Fatalf("%s: %+v", name, d)
		}
		l := d.Layers[0]
		s := l.Signers[0]
		got := map[string]string{"sig_id": l.Type, "signer": s.Name, "sig_key": withColons(s.KeyID), "sig_hashalgo": s.Hash}
		for field, want := range modinfo(t, path) {
			if got[field] != want {
				t.Errorf("%s: %s is %q, and modinfo says %q", name, field, got[field], want)
			}
			delete(got, field)
		}
		if len(got) != 0 {
			t.Errorf("%s: modinfo does not say %v", name, got)
		}
		if len(l.Notes) != 1 || !strings.Contains(l.Notes[0], "unsupported signature type") {
			t.Errorf("%s: notes %q", name, l.Notes)
		}
	}

	d, err := Inspect(t.Context(), testmod.WriteFile(t, "m.ko", old))
	if err != nil {
		t.Fatal(err)
	}
	want := []Signer{
		{
			Name:      "Example: kernel key",
			KeyID:     hex.EncodeToString(key.Certificate.SubjectKeyId),
			Hash:      "sha256",
			Algorithm: "rsa",
			Size:      256,
		},
	}
	if got := d.Layers[0].Signers; !slices.Equal(got, want) || d.Layers[0].Size != 258 {
		t.Errorf("got %+v, %d bytes; want %+v", got, d.Layers[0].Size, want)
	}

	// What modinfo is silent about: other types, numbers without a name, lengths that
	// contradict one another.
	d, err = Inspect(t.Context(), testmod.WriteFile(t, "m.ko", set(-38, 9)))
	if err != nil || d.Layers[0].Type != "type 9" || d.Layers[0].Signers[0].Name != "Example: kernel key" ||
		d.Layers[0].Signers[0].Size != 258 {
		t.Errorf("type 9: %+v, %v", d, err)
	}
	d, err = Inspect(t.Context(), testmod.WriteFile(t, "m.ko", set(-40, 7)))
	if err != nil || d.Layers[0].Signers[0].Algorithm != "number 7" {
		t.Errorf("algorithm 7: %+v, %v", d, err)
	}
	d, err = Inspect(t.Context(), testmod.WriteFile(t, "m.ko", set(-40-257, 9)))
	if err != nil || d.Layers[0].Problem == "" {
		t.Errorf("a length that is wrong: %+v, %v", d, err)
	}
	// A CMS message with fields that the kernel wants to be zero is read all the same.
	signed := signed(t, key, payload)
	signed[len(signed)-39] = 4
	path := testmod.WriteFile(t, "m.ko", signed)
	d, err = Inspect(t.Context(), path)
	if err != nil || d.Layers[0].Signers[0].Issuer != modinfo(t, path)["signer"] || len(d.Layers[0].Notes) == 0 {
		t.Errorf("a CMS message with a hash: %+v, %v", d, err)
	}
	// So is a name that is no text.
	binary := testmod.OldSigned(t, key, "a\xffb", payload)
	d, err = Inspect(t.Context(), testmod.WriteFile(t, "m.ko", binary))
	if err != nil || d.Layers[0].Signers[0].Name != "a\ufffdb" {
		t.Errorf("a name that is no text: %+v, %v", d, err)
	}
	if _, err := module.Check(bytes.NewReader(old), int64(len(old)), module.TypePKCS7); err == nil {
		t.Error("the kernel's rule accepts it")
	}
}
