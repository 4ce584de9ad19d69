package verify

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// ringOf returns where a keyring has a certificate, and what it says of it.
func ringOf(t testing.TB, k *Keyring, cert *x509.Certificate) Known {
	t.Helper()
	for _, known := range k.Known() {
		if string(known.DER) == string(cert.Raw) {
			return known
		}
	}
	t.Fatalf("no certificate of %s", cert.Subject)
	return Known{}
}

// Which rings count for modules, by what is known of the kernel.
func TestRings(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "rsa:2048")
	data := signed(t, key, testmod.ELF())
	module := func(k *Keyring) Result { return Module(strings.NewReader(string(data)), int64(len(data)), k) }
	for _, test := range []struct {
		name  string
		ring  Ring
		facts Facts
		want  Verdict
		words string // of the problem
	}{
		{"builtin", Builtin, Facts{}, Trusted, ""},
		{"machine, nothing known", Machine, Facts{}, Trusted, ""},
		{"no machine", Machine, Facts{Machine: No}, UnknownKey, "INTEGRITY_MACHINE_KEYRING"},
		{"machine without secondary", Machine, Facts{Secondary: No}, UnknownKey, "SECONDARY_TRUSTED_KEYRING"},
		{"platform, nothing known", Platform, Facts{}, UnknownKey, "does not tell"},
		{"platform of Debian", Platform, Facts{PlatformModules: Yes}, Trusted, ""},
		{"platform of kernel.org", Platform, Facts{PlatformModules: No}, UnknownKey, "does not verify modules"},
		{"no platform", Platform, Facts{PlatformModules: Yes, Platform: No}, UnknownKey, "INTEGRITY_PLATFORM_KEYRING"},
		{"blacklist", Blacklist, Facts{}, Revoked, ""},
		{"blacklist without revocation", Blacklist, Facts{Revocation: No}, Trusted, "SYSTEM_REVOCATION_LIST"},
		{"an authority's .machine", Machine, Facts{MachineCA: Yes}, UnknownKey, "authority"},
		{"secondary, nobody vouches", Secondary, Facts{}, UnknownKey, "no key in the keyring"},
	} {
		keys := new(Keyring)
		if test.ring == Blacklist {
			if err := keys.Add(key.Certificate, "image"); err != nil {
				t.Fatal(err)
			}
		}
		if err := keys.AddTo(test.ring, key.Certificate, "here"); err != nil {
			t.Fatal(err)
		}
		if err := keys.Follow(test.facts); err != nil {
			t.Fatal(err)
		}
		r := module(keys)
		if r.Verdict != test.want {
			t.Errorf("%s: %s, want %s (%v)", test.name, r.Verdict, test.want, r.Err)
		}
		var problem string
		for _, known := range keys.Known() {
			if known.Source == "here" {
				problem = known.Problem
			}
		}
		if !strings.Contains(problem, test.words) || test.words == "" && problem != "" {
			t.Errorf("%s: the problem is %q, want one with %q", test.name, problem, test.words)
		}
		matches := keys.Lookup(r.Signers[0].Signer)
		if len(matches) == 0 || !matches[0].SameKey {
			t.Errorf("%s: Lookup found %v", test.name, matches)
		}
	}
}

// Who may vouch for a certificate that root adds to .secondary_trusted_keys.
func TestSecondary(t *testing.T) {
	t.Parallel()
	ca, leaf := testmod.NewKey(t, "ecdsa:p384"), testmod.NewKey(t, "rsa:2048")
	template := *leaf.Certificate
	template.AuthorityKeyId, template.SignatureAlgorithm = ca.Certificate.SubjectKeyId, 0
	der, err := x509.CreateCertificate(rand.Reader, &template, ca.Certificate, leaf.Private.Public(), ca.Private)
	if err != nil {
		t.Fatal(err)
	}
	issued := mustParse(t, der)
	for _, test := range []struct {
		name  string
		ca    Ring
		facts Facts
		want  Ring
	}{
		{"built-in", Builtin, Facts{}, Secondary},
		{"built-in, which alone may", Builtin, Facts{SecondaryBuiltin: Yes}, Secondary},
		{"enrolled", Machine, Facts{}, Secondary},
		{"enrolled, and built-in keys alone may", Machine, Facts{SecondaryBuiltin: Yes}, ""},
		{"of the firmware", Platform, Facts{PlatformModules: Yes}, ""},
	} {
		keys := new(Keyring)
		if err := errors.Join(keys.AddTo(Secondary, issued, "root"), keys.AddTo(test.ca, ca.Certificate, "authority"),
			keys.Follow(test.facts)); err != nil {
			t.Fatal(err)
		}
		if got := ringOf(t, keys, issued); got.Ring != test.want || got.Counts != (test.want != "") {
			t.Errorf("%s: %+v", test.name, got)
		}
	}
}

// chain returns certificates of one key, each signed by the one before it; without an identifier of
// the authority, if that is not wanted, so that the name tells who has signed.
func chain(t testing.TB, n int, identified bool) []*x509.Certificate {
	t.Helper()
	key := testmod.NewKey(t, "ecdsa:p384")
	certs := []*x509.Certificate{key.Certificate}
	for i := range n {
		parent := certs[i]
		template := *key.Certificate
		template.SerialNumber, template.SignatureAlgorithm = big.NewInt(int64(i+1)), 0
		template.Subject, template.RawSubject = pkix.Name{CommonName: fmt.Sprint("link ", i)}, nil
		template.SubjectKeyId, template.AuthorityKeyId = []byte{byte(i >> 8), byte(i), 1}, nil
		if !identified {
			unnamed := *parent
			unnamed.SubjectKeyId, parent = nil, &unnamed
		}
		der, err := x509.CreateCertificate(rand.Reader, &template, parent, key.Private.Public(), key.Private)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, mustParse(t, der))
	}
	return certs
}

// A certificate vouches for those behind it, and for none in front.
func TestSecondaryChain(t *testing.T) {
	t.Parallel()
	for _, identified := range []bool{true, false} {
		certs := chain(t, 4, identified)
		for _, test := range []struct {
			root  Ring
			facts Facts
			order []int
			taken string
		}{
			{Builtin, Facts{}, []int{1, 2, 3, 4}, "1234"},
			{Builtin, Facts{}, []int{4, 1, 3, 2}, "12"},
			{Builtin, Facts{}, []int{2, 3, 4}, ""},
			{Builtin, Facts{SecondaryBuiltin: Yes}, []int{1, 2, 3, 4}, "1"},
			{Machine, Facts{}, []int{1, 2, 4}, "12"},
			{Machine, Facts{SecondaryBuiltin: Yes}, []int{1, 2}, ""},
		} {
			keys := new(Keyring)
			if err := keys.Follow(test.facts); err != nil {
				t.Fatal(err)
			}
			for _, i := range test.order {
				if err := keys.AddTo(Secondary, certs[i], "root"); err != nil {
					t.Fatal(err)
				}
			}
			if err := keys.AddTo(test.root, certs[0], "authority"); err != nil {
				t.Fatal(err)
			}
			var taken string
			for i, c := range certs[1:] {
				if slices.Contains(test.order, i+1) && ringOf(t, keys, c).Ring == Secondary {
					taken += fmt.Sprint(i + 1)
				}
			}
			if taken != test.taken {
				t.Errorf("identified %t, root in %s, %+v, order %v: takes %q, want %q", identified, test.root,
					test.facts.SecondaryBuiltin, test.order, taken, test.taken)
			}
		}
	}
}

// BenchmarkSecondary adds a file of certificates, each of which vouches for the next one. The time
// of a certificate is the same for a few and many.
func BenchmarkSecondary(b *testing.B) {
	certs := chain(b, 2000, true)
	for _, n := range []int{200, 2000} {
		var text []byte
		for _, c := range certs[1 : n+1] {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
		path := testmod.WriteFile(b, "certs.pem", text)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				keys := new(Keyring)
				if err := errors.Join(keys.AddTo(Builtin, certs[0], "root"), keys.AddFileTo(Secondary, path)); err != nil {
					b.Fatal(err)
				}
				if last := ringOf(b, keys, certs[n]); last.Ring != Secondary {
					b.Fatal(last.Problem)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*n), "µs/cert")
		})
	}
}

// A certificate is parsed once, however often it is there and the index is made: that verifies
// its signature.
func TestParseOnce(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "rsa:2048")
	keys := new(Keyring)
	for _, ring := range []Ring{Builtin, Platform, Machine} {
		if err := keys.AddTo(ring, key.Certificate, string(ring)); err != nil {
			t.Fatal(err)
		}
	}
	if len(keys.parsed) != 1 || len(keys.held) != 3 {
		t.Errorf("parsed %d certificates for %d places", len(keys.parsed), len(keys.held))
	}
	data := signed(t, key, testmod.ELF())
	if r := Module(strings.NewReader(string(data)), int64(len(data)), keys); r.Source != string(Builtin) {
		t.Errorf("the source is %q", r.Source)
	}
	if err := keys.FollowRelease("6.1.0"); err != nil || len(keys.parsed) != 1 || keys.held[0].cert == nil {
		t.Errorf("by other rules: %v, %d parsed", err, len(keys.parsed))
	}
}

// What Lookup returns for a key that was made again with the same name.
func TestLookup(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "rsa:2048")
	keys := keyring(t, key)
	r := Module(strings.NewReader(string(signed(t, key, testmod.ELF()))), int64(len(signed(t, key, testmod.ELF()))), keys)
	signer := r.Signers[0].Signer
	signer.Serial = "00"
	if m := keys.Lookup(signer); len(m) != 1 || m[0].SameKey || m[0].Ring != Builtin {
		t.Errorf("by the name alone: %+v", m)
	}
	signer.Issuer = "somebody else"
	if m := keys.Lookup(signer); len(m) != 0 {
		t.Errorf("by nothing: %+v", m)
	}
	var none *Keyring
	if none.Lookup(signer) != nil || none.Known() != nil || none.Facts() != (Facts{}) {
		t.Error("a nil keyring knows something")
	}
	cert := key.Certificate
	if none.AddTo(Machine, cert, "") == nil || none.AddFileTo(Machine, "x") == nil || none.Follow(Facts{}) == nil ||
		keys.AddTo(".ima", cert, "") == nil || keys.AddFileTo("", "x") == nil || keys.AddTo(Machine, nil, "") == nil {
		t.Error("a call without a keyring, a certificate or a ring succeeds")
	}
}

// A list of hashes takes a certificate from the kernel's keyrings.
func TestHashFile(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "rsa:2048")
	tbs := keyring(t, key).held[0].cert.TBSHash()
	path := filepath.Join(t.TempDir(), "hashes")
	for text, want := range map[string]string{
		"\"tbs:" + hexOf(tbs) + "\",\n\"bin:00ff\"\n": "",
		"bin:00ff\n":             "is trusted",
		"tbs:0g\n":               "no hash",
		"bin:00, x509:00":        "does not begin",
		"these are not hashes\n": "no certificate found",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		keys := keyring(t, key)
		got := ""
		if err := keys.AddFileTo(Blacklist, path); err != nil {
			got = err.Error()
		} else if keys.Holds(key.Certificate.Raw) {
			got = "is trusted"
		}
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

// The facts of Debian's kernels, by their images alone and by their configurations.
func TestFacts(t *testing.T) {
	t.Parallel()
	for _, k := range testmod.Kernels(t) {
		keys := new(Keyring)
		if err := keys.AddImage(k.Image); err != nil {
			t.Fatal(err)
		}
		got := keys.Facts()
		want := Facts{
			Secondary: Yes, Machine: Yes, Platform: Yes, LoadUEFI: Yes, SecureBoot: Yes, Blacklist: Yes, Revocation: No,
			PlatformModules: Yes, MachineAlways: Yes, ModuleHashes: Yes,
		}
		if got != want {
			t.Errorf("%s: got %+v, want %+v", k.Version, got, want)
		}
		if ring := ringOf(t, keys, mustParse(t, keys.Known()[0].DER)); ring.Ring != Builtin || !ring.Counts {
			t.Errorf("%s: %+v", k.Version, ring)
		}
	}
}

func mustParse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func hexOf(b []byte) string { return hex.EncodeToString(b) }
