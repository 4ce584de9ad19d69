package mldsamu

import (
	"bytes"
	"compress/gzip"
	"crypto/sha3"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/mldsa"
	"github.com/cloudflare/circl/sign"
)

// The vectors of NIST's ACVP (github.com/usnistgov/ACVP-Server, ML-DSA, FIPS204), as the
// module of circl has them. Those of signatures are for the internal interface: messages
// there begin with what the external one puts in front.

type acvpCase struct {
	ID        int    `json:"tcId"`
	Seed      octets `json:"seed"`
	Public    octets `json:"pk"`
	Private   octets `json:"sk"`
	Message   octets `json:"message"`
	Signature octets `json:"signature"`
	Passed    *bool  `json:"testPassed"`
}

type acvpGroup struct {
	Set    string     `json:"parameterSet"`
	Public octets     `json:"pk"`
	Tests  []acvpCase `json:"tests"`
}

type octets []byte

func (o *octets) UnmarshalJSON(data []byte) error {
	var text string
	err := json.Unmarshal(data, &text)
	if err == nil {
		*o, err = hex.DecodeString(text)
	}
	return err
}

// acvp calls f with each case of a mode and its expected result. Public is the key of the
// case's group, if it has one.
func acvp(
	t *testing.T, mode string,
	f func(t *testing.T, p mldsa.Parameters, circl sign.Scheme, public []byte, c, want acvpCase),
) {
	t.Helper()
	list := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/cloudflare/circl")
	out, err := list.Output()
	dir := strings.TrimSpace(string(out))
	if err != nil || dir == "" {
		t.Fatalf("%v: %v (go mod download gets the module)", list, err)
	}
	dir = filepath.Join(dir, "sign/mldsa/testdata", "ML-DSA-"+mode+"-FIPS204")
	results := make(map[int]acvpCase)
	for _, group := range readACVP(t, filepath.Join(dir, "expectedResults.json.gz")) {
		for _, want := range group.Tests {
			results[want.ID] = want
		}
	}
	ran := 0
	for _, group := range readACVP(t, filepath.Join(dir, "prompt.json.gz")) {
		for _, set := range sets {
			if set.parameters.String() != group.Set {
				continue
			}
			for _, c := range group.Tests {
				f(t, set.parameters, set.circl, group.Public, c, results[c.ID])
				ran++
			}
		}
	}
	if ran == 0 || ran != len(results) {
		t.Errorf("%d cases of %d", ran, len(results))
	}
	t.Logf("%s: %d cases", mode, ran)
}

func readACVP(t *testing.T, path string) []acvpGroup {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	unpacked, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(unpacked)
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Groups []acvpGroup `json:"testGroups"`
	}
	if err := json.Unmarshal(text, &vectors); err != nil {
		t.Fatal(err)
	}
	return vectors.Groups
}

// internalMu returns mu of a message of the internal interface.
func internalMu(public, message []byte) []byte {
	h := sha3.NewSHAKE256()
	h.Write(sha3.SumSHAKE256(public, Size))
	h.Write(message)
	mu := make([]byte, Size)
	h.Read(mu)
	return mu
}

func newPublic(t *testing.T, p mldsa.Parameters, encoded []byte) *PublicKey {
	t.Helper()
	key, err := mldsa.NewPublicKey(p, encoded)
	if err != nil {
		t.Fatal(err)
	}
	return NewPublicKey(key)
}

func TestACVPKeyGen(t *testing.T) {
	t.Parallel()
	acvp(t, "keyGen", func(t *testing.T, p mldsa.Parameters, _ sign.Scheme, _ []byte, c, want acvpCase) {
		private := newKey(t, p, c.Seed)
		if !bytes.Equal(private.public.Bytes(), want.Public) {
			t.Errorf("case %d: another public key", c.ID)
		}
		if !private.IsExpanded(want.Private) {
			t.Errorf("case %d: another private key", c.ID)
		}
	})
}

func TestACVPSigVer(t *testing.T) {
	t.Parallel()
	good := 0
	acvp(t, "sigVer", func(t *testing.T, p mldsa.Parameters, _ sign.Scheme, public []byte, c, want acvpCase) {
		err := newPublic(t, p, public).Verify(internalMu(public, c.Message), c.Signature)
		if want.Passed == nil || *want.Passed != (err == nil) {
			t.Errorf("case %d: %v", c.ID, err)
		}
		if err == nil {
			good++
		}
	})
	if good == 0 {
		t.Error("no good signature")
	}
}

// The signatures of sigGen, deterministic and hedged, are good ones. Their private keys have
// no seed, from which this package could sign, and circl finds their public keys.
func TestACVPSigGen(t *testing.T) {
	t.Parallel()
	acvp(t, "sigGen", func(t *testing.T, p mldsa.Parameters, circl sign.Scheme, _ []byte, c, want acvpCase) {
		private, err := circl.UnmarshalBinaryPrivateKey(c.Private)
		if err != nil {
			t.Fatal(err)
		}
		public, err := private.Public().(sign.PublicKey).MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		mu := internalMu(public, c.Message)
		if err := newPublic(t, p, public).Verify(mu, want.Signature); err != nil {
			t.Errorf("case %d: %v", c.ID, err)
		}
		mu[0]++
		if newPublic(t, p, public).Verify(mu, want.Signature) == nil {
			t.Errorf("case %d: also of another message", c.ID)
		}
	})
}
