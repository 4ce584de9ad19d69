package cms

import (
	"crypto"
	"os/exec"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// spellings are names of digests, each with the kernel's name for it, "unverifiable" or
// "unknown".
var spellings = []struct{ name, want string }{
	{"sha1", "sha1"}, {"SHA1", "sha1"}, {"sha-1", "sha1"}, {"ssl3-sha1", "sha1"}, {"RSA-SHA1", "sha1"},
	{"RSA-SHA1-2", "sha1"},
	{"sha1WithRSAEncryption", "sha1"}, {"1.3.14.3.2.26", "sha1"},
	{"sha224", "sha224"}, {"sha2-224", "sha224"}, {"2.16.840.1.101.3.4.2.4", "sha224"},
	{"sha256", "sha256"}, {"SHA256", "sha256"}, {"sha-256", "sha256"}, {"SHA2-256", "sha256"}, {"sha2-256", "sha256"},
	{"2.16.840.1.101.3.4.2.1", "sha256"}, {"RSA-SHA256", "sha256"}, {"rsa-sha256", "sha256"},
	{"sha256WithRSAEncryption", "sha256"},
	{"SHA384", "sha384"}, {"RSA-SHA384", "sha384"}, {"2.16.840.1.101.3.4.2.2", "sha384"},
	{"sha512", "sha512"}, {"Sha-512", "sha512"}, {"2.16.840.1.101.3.4.2.3", "sha512"}, {"RSA-SHA512", "sha512"},
	{"sha3-256", "sha3-256"}, {"SHA3-256", "sha3-256"}, {"2.16.840.1.101.3.4.2.8", "sha3-256"},
	{"RSA-SHA3-256", "sha3-256"},
	{"id-rsassa-pkcs1-v1_5-with-sha3-256", "sha3-256"}, {"sha3-384", "sha3-384"}, {"2.16.840.1.101.3.4.2.9", "sha3-384"},
	{"sha3-512", "sha3-512"}, {"2.16.840.1.101.3.4.2.10", "sha3-512"}, {"RSA-SHA3-512", "sha3-512"},

	{"md5", "unverifiable"}, {"MD5", "unverifiable"}, {"RSA-MD5", "unverifiable"}, {"ripemd160", "unverifiable"},
	{"RIPEMD-160", "unverifiable"},
	{"sha3-224", "unverifiable"}, {"sha512-256", "unverifiable"}, {"SHA-512/256", "unverifiable"},
	{"sha2-512/256", "unverifiable"},
	{"sha512-224", "unverifiable"}, {"2.16.840.1.101.3.4.2.7", "unverifiable"}, {"sm3", "unverifiable"},
	{"blake2b512", "unverifiable"}, {"shake256", "unverifiable"},

	{"", "unknown"}, {"sha", "unknown"}, {"sha_512", "unknown"}, {"sha3256", "unknown"}, {"sha256 ", "unknown"},
	{"1.2.840.113549.1.1.11", "unknown"}, {"ecdsa-with-SHA256", "unknown"},
}

func TestHashByName(t *testing.T) {
	t.Parallel()
	for _, s := range spellings {
		h, err := HashByName(s.name)
		switch s.want {
		case "unverifiable":
			if err == nil || !strings.Contains(err.Error(), "ENOPKG") || !strings.Contains(err.Error(), "sha3-512") {
				t.Errorf("%q: %v", s.name, err)
			}
		case "unknown":
			if err == nil || !strings.Contains(err.Error(), "unknown hash") || !strings.Contains(err.Error(), "sha256, ") {
				t.Errorf("%q: %v", s.name, err)
			}
		default:
			if err != nil || HashName(h) != s.want {
				t.Errorf("%q: %v, %v; want %s", s.name, h, err, s.want)
			}
		}
	}
	if name := HashName(crypto.MD5SHA1); name != "md5+sha1" {
		t.Error(name)
	}
}

// sign-file accepts the same names for the same digests.
func TestHashByNameAsSignFile(t *testing.T) {
	t.Parallel()
	signFile := testmod.SignFile(t)
	key, cert := testmod.NewKey(t, "rsa:2048").Files(t)
	module := testmod.WriteFile(t, "m.ko", payload)
	for _, s := range spellings {
		err := exec.Command(signFile, "-d", s.name, key, cert, module).Run()
		switch s.want {
		case "unknown":
			if err == nil {
				t.Errorf("sign-file takes %q", s.name)
			}
		case "unverifiable":
			// Some of these fail in sign-file, others only in the kernel.
			if err == nil {
				_, err := Parse(readFile(t, module+".p7s"))
				wantError(t, err, Unsupported, enopkg)
			}
		default:
			if err != nil {
				t.Errorf("sign-file %q: %v", s.name, err)
				continue
			}
			if got := parse(t, readFile(t, module+".p7s")).Signers[0].HashName; got != s.want {
				t.Errorf("sign-file takes %q for %s", s.name, got)
			}
		}
	}
}
