//go:build kerneltest

package kerneltest

import (
	"crypto"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	_ "embed"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/verify"
)

// debug is the configuration for modules with debug information.
//
//go:embed debug.config
var debug string

// judge is the configuration of the kernel that judges the made cases. The files that
// it names are in its object tree, and each run writes them anew.
var judge = Base + debug + `
CONFIG_MODULE_SIG_KEY="kerneltest/module.pem"
CONFIG_SYSTEM_TRUSTED_KEYS="kerneltest/trusted.pem"
CONFIG_SYSTEM_BLACKLIST_KEYRING=y
CONFIG_SYSTEM_BLACKLIST_HASH_LIST="kerneltest/blacklist"
CONFIG_SYSTEM_REVOCATION_LIST=y
CONFIG_SYSTEM_REVOCATION_KEYS="kerneltest/revoked.pem"
`

// keys are the signers of the cases by name.
type keys map[string]*keygen.Pair

// newKeys makes one key of each kind, and keys with special certificates.
func newKeys(t testing.TB) keys {
	t.Helper()
	pairs := make(keys)
	add := func(name string, algorithm keygen.Algorithm, change func(*keygen.Template)) {
		template := keygen.DefaultTemplate()
		attribute, err := keygen.NewAttribute("CN", "modsign kernel test: "+name)
		if err != nil {
			t.Fatal(err)
		}
		template.Subject = []keygen.Attribute{attribute}
		if change != nil {
			change(&template)
		}
		if pairs[name], err = keygen.Generate(algorithm, template); err != nil {
			t.Fatal(err)
		}
	}
	for _, algorithm := range keygen.Algorithms() {
		add(algorithm.String(), algorithm, nil)
	}
	for _, name := range []string{"module", "unknown", "stranger", "revoked", "blacklisted"} {
		add(name, keygen.ECDSAP256, nil)
	}
	add("expired", keygen.ECDSAP256, func(template *keygen.Template) {
		template.NotBefore, template.Days = time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC), 1
	})
	add("sha3", keygen.RSA2048, func(template *keygen.Template) { template.Hash = crypto.SHA3_256 })
	pairs["issued"] = issued(t, pairs["unknown"].Signer, pairs[keygen.ECDSAP256.String()])
	return pairs
}

// issued returns a key with a certificate by another one.
func issued(t testing.TB, key crypto.Signer, issuer *keygen.Pair) *keygen.Pair {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(77), Subject: pkix.Name{CommonName: "modsign kernel test: issued"},
		NotBefore: time.Now(), NotAfter: time.Now().AddDate(1, 0, 0), SignatureAlgorithm: x509.ECDSAWithSHA512,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer.Certificate, key.Public(), issuer.Signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &keygen.Pair{Signer: key, Certificate: cert}
}

// install writes the files that the configuration names into the object tree.
func (pairs keys) install(t testing.TB, tree *Tree) {
	t.Helper()
	dir := filepath.Join(tree.Objtree, "kerneltest")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	certificates := func(file string, names ...string) {
		var b []byte
		for _, name := range names {
			b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pairs[name].Certificate.Raw})...)
		}
		if err := os.WriteFile(filepath.Join(dir, file), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	trusted := []string{"revoked", "blacklisted", "expired", "sha3"}
	for _, algorithm := range keygen.Algorithms() {
		trusted = append(trusted, algorithm.String())
	}
	certificates("module.pem", "module")
	certificates("trusted.pem", trusted...)
	certificates("revoked.pem", "revoked")
	// The kernel hashes a certificate with the hash of the signature on it.
	var hashes []string
	for _, name := range []string{"blacklisted", "issued"} {
		hashes = append(hashes, fmt.Sprintf("\"tbs:%x\"", sha512.Sum512(pairs[name].Certificate.RawTBSCertificate)))
	}
	list := strings.Join(hashes, ",\n") + "\n"
	if err := os.WriteFile(filepath.Join(dir, "blacklist"), []byte(list), 0o644); err != nil {
		t.Fatal(err)
	}
}

// formats are those that a kernel can decompress, one at a time; Base has the first.
var formats = []compress.Format{compress.XZ, compress.Gzip, compress.Zstd}

// A relation is the relation between verify's verdict on a file and that of one kernel.
type relation int

const (
	same relation = iota
	// A file that is not one whole stream. Programs disagree on its content, and
	// modsign always rejects the file (see package compress).
	stricter
	// A stream that kmod may decompress and this kernel does not: verify trusts the
	// content, and warns.
	warned
	// A stream that this kernel is not configured for, which the image does not tell.
	configured
	// A stream that modsign cannot read: verify has no verdict.
	unreadable
)

// made is a case with its expected result.
type made struct {
	Case
	relation relation
}

// TestVerdicts compares the verdicts of package verify, which reads the kernel's image,
// with those of that kernel: accepted or rejected, the errno, and the log.
func TestVerdicts(t *testing.T) {
	pairs := newKeys(t)
	tree := Configure(t, "judge", judge)
	pairs.install(t, tree)
	count, accepted := 0, 0
	verdicts := make(map[verify.Verdict]int)
	for i, format := range formats {
		t.Run(format.String(), func(t *testing.T) {
			var cases []made
			if i == 0 {
				tree.Make(t)
				cases = makeCases(t, pairs, tree, modulePayload(t, tree))
			} else {
				tree.Reconfigure(t, fmt.Sprintf("# CONFIG_MODULE_COMPRESS_%s is not set\nCONFIG_MODULE_COMPRESS_%s=y\n",
					kconfig(formats[i-1]), kconfig(format)))
				tree.Make(t, "bzImage")
			}
			cases = append(cases, compressedCases(t, pairs, format, modulePayload(t, tree))...)
			trusted := imageKeyring(t, tree)
			toBoot := make([]Case, len(cases))
			for i, c := range cases {
				toBoot[i] = c.Case
			}
			dir := t.TempDir()
			for i, kernel := range Boot(t, tree.Image(), toBoot) {
				path := filepath.Join(dir, cases[i].file())
				if err := os.WriteFile(path, cases[i].Data, 0o644); err != nil {
					t.Fatal(err)
				}
				predicted := verify.File(t.Context(), trusted, path)
				cases[i].compare(t, kernel, predicted)
				verdicts[predicted.Verdict]++
				if kernel.Errno == 0 {
					accepted++
				}
			}
			count += len(cases)
		})
	}
	t.Logf("%d modules, %d accepted, %d refused; in the words of verify %v", count, accepted, count-accepted, verdicts)
	if count < 60 || accepted == 0 || accepted == count {
		t.Error("too few cases")
	}
}

func kconfig(format compress.Format) string { return strings.ToUpper(format.String()) }

// modulePayload returns a small unsigned module of the kernel without debug
// information, since a small machine must hold a thousand of them.
func modulePayload(t testing.TB, tree *Tree) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "md4.ko")
	testmod.Run(t, "strip", "--strip-debug", "-o", path, filepath.Join(tree.Objtree, "crypto/md4.ko"))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// imageKeyring returns the keyring that verify reads from the kernel that boots. The
// certificates in vmlinux are the same.
func imageKeyring(t testing.TB, tree *Tree) *verify.Keyring {
	t.Helper()
	var image, vmlinux verify.Keyring
	if err := image.AddImage(tree.Image()); err != nil {
		t.Fatal(err)
	}
	if err := vmlinux.AddImage(filepath.Join(tree.Objtree, "vmlinux")); err != nil {
		t.Fatal(err)
	}
	// The module key's certificate, one of each kind, and three special ones; one is
	// blacklisted.
	if want := 1 + len(keygen.Algorithms()) + 3; image.Len() != want || !slices.Equal(image.Names(), vmlinux.Names()) ||
		len(image.Warnings()) != 0 {
		t.Fatalf("verify finds the certificates %q in bzImage and %q in vmlinux, want %d; warnings %q",
			image.Names(), vmlinux.Names(), want, image.Warnings())
	}
	return &image
}

// compare fails the test if verify does not predict the kernel's verdict.
func (m made) compare(t *testing.T, kernel Verdict, predicted verify.Result) {
	t.Helper()
	said := fmt.Sprintf("%s: the kernel says %d (%v) and logs %q; verify says %d (%v), %s, %q, %v, warnings %q", m.Name,
		int(kernel.Errno), kernel.Errno, kernel.Log, int(predicted.Errno), predicted.Errno, predicted.Verdict,
		predicted.Dmesg, predicted.Err, predicted.Warnings)
	agree := kernel.Errno == predicted.Errno && predicted.Verdict != verify.Unreadable &&
		logged(kernel.Log, predicted.Dmesg)
	var expected bool
	switch m.relation {
	case same:
		expected = agree
	case stricter:
		expected = !agree && predicted.Verdict == verify.Malformed
	case warned:
		expected = !agree && predicted.Verdict == verify.Trusted && len(predicted.Warnings) > 0
	case configured:
		expected = !agree && kernel.Errno == syscall.EINVAL
	case unreadable:
		expected = predicted.Verdict == verify.Unreadable && errors.Is(predicted.Err, compress.ErrUnreadable)
	}
	if !expected {
		t.Errorf("not as expected (%d): %s", m.relation, said)
	}
}

// judging matches the kernel's messages about a signature; aside matches its other
// remarks.
var (
	judging = regexp.MustCompile(`^(PKCS7: |PKCS#7 |X\.509: |module: |Unsupported |Loading of )`)
	aside   = regexp.MustCompile(`^PKCS7: (Unknown OID|Data already supplied)`)
)

// logged reports whether the kernel's lines match the predicted ones, where N stands
// for a number.
func logged(lines, predicted []string) bool {
	lines = slices.DeleteFunc(slices.Clone(lines), func(line string) bool {
		return !judging.MatchString(line) || aside.MatchString(line)
	})
	return slices.EqualFunc(lines, predicted, func(line, pattern string) bool {
		pattern = regexp.MustCompile(`\bN\b`).ReplaceAllString(regexp.QuoteMeta(pattern), `\d+`)
		return regexp.MustCompile("^" + pattern + "$").MatchString(line)
	})
}

// full reports whether scripts/kernel-test runs with --full.
func full() bool { return os.Getenv("MODSIGN_KERNELTEST_FULL") != "" }
