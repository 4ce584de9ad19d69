package explain

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/verify"
)

// explained explains a module by a kernel and returns the first cause.
func explained(t *testing.T, s Source, module []byte) (*Kernel, Cause) {
	t.Helper()
	k, err := Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	r := k.Module(t.Context(), testmod.WriteFile(t, "m.ko", module))
	if len(r.Causes) == 0 {
		t.Fatalf("no cause: %+v", r)
	}
	return k, r.Causes[0]
}

// Every build has a key of the default name, so that the name alone says nothing.
func TestDefaultName(t *testing.T) {
	key := again(t, &testmod.Key{Certificate: &x509.Certificate{Subject: pkix.Name{CommonName: defaultName}}})
	other := again(t, key)
	hello := real(t, "hello")
	s := source(t, key)
	if _, c := explained(t, s, sign(t, other, hello)); c.ID != KeyRegenerated ||
		!strings.HasSuffix(c.Mend.Then, "boot the kernel that belongs to the module") {
		t.Errorf("of the kernel's release: %+v", c)
	}
	_, c := explained(t, s, sign(t, other, replaced(t, hello, "+deb12-amd64 SMP", "+deb13-amd64 SMP")))
	if c.ID != UnknownKey || !strings.Contains(c.Reason, "another build") || !slices.ContainsFunc(c.Evidence,
		func(e string) bool { return strings.Contains(e, "+deb13-amd64") }) {
		t.Errorf("of another release: %+v", c)
	}
}

// What is only likely is not stated.
func TestSignatureLost(t *testing.T) {
	key := testmod.NewKey(t, "ecdsa:p256")
	s := source(t, key)
	s.Config = with(t, "CONFIG_MODULE_SIG_ALL=y")
	hello := inTree(t, real(t, "hello"))
	if _, c := explained(t, s, hello); c.ID != SignatureLost || !strings.Contains(c.Reason, "it was never signed") {
		t.Errorf("of the build: %+v", c)
	}
	good := sign(t, key, hello)
	if _, c := explained(t, s, good[:len(good)-30]); c.ID != SignatureLost ||
		!strings.Contains(c.Reason, "cut off within its signature") {
		t.Errorf("cut off in the signature: %+v", c)
	}
	if _, c := explained(t, s, good[:3000]); c.ID != NotSigned || !strings.Contains(c.Reason, "the file is cut off") {
		t.Errorf("cut off: %+v", c)
	}
}

// A kernel has no certificate in a keyring that it does not have, and does not read a
// Module.symvers that it does not need.
func TestMissing(t *testing.T) {
	key, builtin := testmod.NewKey(t, "rsa:2048"), testmod.NewKey(t, "ecdsa:p256")
	s := source(t, builtin)
	s.Config, s.Symvers = with(t, "CONFIG_SECONDARY_TRUSTED_KEYRING=n", "CONFIG_MODVERSIONS=n"), "/dev/zero"
	if err := s.Keys.AddTo(verify.Secondary, key.Certificate, "a file"); err != nil {
		t.Fatal(err)
	}
	k, c := explained(t, s, sign(t, key, real(t, "hello")))
	if c.ID != KeyElsewhere || !strings.Contains(c.Reason, "has no keyring .secondary_trusted_keys") ||
		slices.ContainsFunc(c.Evidence, func(e string) bool { return strings.Contains(e, "is in .secondary") }) {
		t.Errorf("%+v", c)
	}
	if !slices.ContainsFunc(k.Notes, func(n string) bool { return strings.HasPrefix(n, "/dev/zero is not read") }) {
		t.Errorf("notes %q", k.Notes)
	}
}
