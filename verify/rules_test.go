package verify

import (
	"crypto"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/testmod"
)

// The version of an image decides, and of two images the older one.
func TestKernelOfImage(t *testing.T) {
	t.Parallel()
	both := new(Keyring)
	for i, k := range testmod.Kernels(t) {
		version, _, _ := strings.Cut(k.Version, "-")
		parts := strings.SplitN(version, ".", 3)
		want := "Linux " + parts[0] + "." + parts[1]
		keys := new(Keyring)
		if keys.Kernel() != cms.Newest.String() {
			t.Errorf("without an image: %s", keys.Kernel())
		}
		if err := keys.AddImage(k.Image); err != nil {
			t.Fatal(err)
		}
		if keys.Kernel() != want {
			t.Errorf("%s is taken for %s", k.Version, keys.Kernel())
		}
		if err := keys.FollowRelease(k.Version); err != nil || keys.Kernel() != want {
			t.Errorf("by its release, %s is taken for %s (%v)", k.Version, keys.Kernel(), err)
		}
		if err := both.AddImage(k.Image); err != nil {
			t.Fatal(err)
		}
		if i > 0 && both.Kernel() == want { // oldest first
			t.Errorf("beside an older kernel, modules are judged as by %s", both.Kernel())
		}
	}
}

// What a kernel of some version can use, by its release alone.
func TestFollowRelease(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		release   string
		algorithm string
		hash      crypto.Hash
		loads     bool // the certificate
		reads     bool // a signature
	}{
		{"6.1.0-57-amd64", "ecdsa:p384", crypto.SHA512, true, true},
		{"6.1.0-57-amd64", "ecdsa:p384", crypto.SHA3_256, true, false},
		{"6.1.0-57-amd64", "ecdsa:p521", crypto.SHA512, false, true},
		{"6.12.117+deb12-amd64", "ecdsa:p521", crypto.SHA3_512, true, true},
		{"6.12.117+deb12-amd64", "mldsa:65", crypto.SHA512, false, false},
		{"7.2.13-amd64", "mldsa:65", crypto.SHA512, true, true},
		{"10.0", "mldsa:87", crypto.SHA512, true, true},
		{"custom", "mldsa:44", crypto.SHA512, true, true}, // as the newest
	} {
		keys := new(Keyring)
		if err := keys.FollowRelease(test.release); err != nil {
			t.Fatal(err)
		}
		key := testmod.NewKey(t, test.algorithm)
		if err := keys.Loads(key.Certificate); (err == nil) != test.loads {
			t.Errorf("%s loads a certificate of %s: %v", test.release, test.algorithm, err)
		}
		signer, err := cms.NewSigner(key.Private, key.Certificate, test.hash, cms.Form{})
		if err != nil {
			t.Fatal(err)
		}
		if err := keys.Reads(signer.Draft()); (err == nil) != test.reads {
			t.Errorf("%s reads a signature of %s with %v: %v", test.release, test.algorithm, test.hash, err)
		}
	}
	// A certificate that is there, and that the kernel cannot use.
	keys := new(Keyring)
	if err := keys.Add(testmod.NewKey(t, "mldsa:65").Certificate, "x"); err != nil {
		t.Fatal(err)
	}
	err := keys.FollowRelease("6.12.0")
	if err == nil || !strings.Contains(err.Error(), "Linux 6.12 cannot use the certificate in x") {
		t.Error(err)
	}
}
