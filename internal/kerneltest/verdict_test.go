//go:build kerneltest

package kerneltest

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	_ "embed"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
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
	"github.com/modsign/modsign/verify/explain"
)

// debug is the configuration for modules with debug information.
//
//go:embed debug.config
var debug string

// A judge is a kernel that judges the made cases.
type judge struct {
	series string // of SourceOf
	config string // on top of tinyconfig
	setups []setup
	full   bool // with --full alone
	// explains compares package explain with a kernel that tolerates unsigned modules too.
	explains bool
}

// A setup is the kernel of a judge, built with other settings than before.
type setup struct {
	format compress.Format // that it decompresses
	// config is added to what the one before has.
	config string
	// all makes every case, and not only those of the format.
	all bool
	// loads are some of the cases that this kernel loads, and not all judges do.
	loads []string
}

// trusting is what judges trust and reject. The files that it names are in the object tree,
// and each run writes them anew.
const trusting = `
CONFIG_MODULE_SIG_KEY="kerneltest/module.pem"
CONFIG_SYSTEM_TRUSTED_KEYS="kerneltest/trusted.pem"
CONFIG_SYSTEM_BLACKLIST_KEYRING=y
CONFIG_SYSTEM_BLACKLIST_HASH_LIST="kerneltest/blacklist"
CONFIG_SYSTEM_REVOCATION_LIST=y
CONFIG_SYSTEM_REVOCATION_KEYS="kerneltest/revoked.pem"
`

// explained is what the cases of package explain need besides: versions of symbols, a kernel
// that can be locked down, and the configuration in the image.
const explained = `
CONFIG_IKCONFIG=y
CONFIG_MODVERSIONS=y
CONFIG_SECURITY=y
CONFIG_SECURITYFS=y
CONFIG_SECURITY_LOCKDOWN_LSM=y
`

// mldsaKey has Kbuild make a module key of ML-DSA, for which there is no file then.
const mldsaKey = `
CONFIG_CRYPTO_MLDSA=y
CONFIG_MODULE_SIG_KEY_TYPE_MLDSA_65=y
CONFIG_MODULE_SIG_KEY="certs/signing_key.pem"
`

// gone are the symbols of the configurations here that Linux 7 has no more.
var gone = []string{"CRYPTO_AES_TI", "CRYPTO_FCRYPT", "CRYPTO_KEYWRAP", "CRYPTO_MICHAEL_MIC", "CRYPTO_PCBC",
	"CRYPTO_SM3_GENERIC", "CRYPTO_VMAC"}

var judges = []judge{
	linux612,
	{
		series:   "7",
		config:   without(Base, gone...) + trusting + mldsaKey + explained,
		explains: true,
		setups: append(formatSetups([]string{"ml-dsa-44", "ml-dsa-65, by key id", "ml-dsa-87", "mldsa:65 sha512",
			"signed by module", "signed by sha512 listed"}, compress.XZ, compress.Gzip, compress.Zstd),
			setup{format: compress.Zstd, config: "CONFIG_PKCS7_WAIVE_AUTHATTRS_REJECTION_FOR_MLDSA=y\n", all: true,
				loads: []string{"ml-dsa-44, attributes", "ml-dsa-87, by key id, attributes",
					"openssl 3.5, with certificate, ml-dsa-65", "sign-file with OpenSSL 3.5, ml-dsa-65"}}),
	},
	{
		series: "6.1",
		config: without(Base, "MODULE_COMPRESS", "MODULE_COMPRESS_ALL") + trusting,
		setups: formatSetups([]string{"signed by revoked", "signed by sha256 listed"}, compress.XZ, compress.Gzip),
		full:   true,
	},
}

// linux612 has modules with debug information too, for the tests of stripping, and room for
// further certificates.
var linux612 = judge{
	series: "6.12",
	config: Base + debug + trusting + "CONFIG_SYSTEM_EXTRA_CERTIFICATE=y\n",
	setups: formatSetups([]string{"ecdsa:p521 sha3-512", "signed by sha3", "signed by sha256 listed"},
		compress.XZ, compress.Gzip, compress.Zstd),
}

// formatSetups are kernels for these formats. Base has the first of them.
func formatSetups(loads []string, formats ...compress.Format) []setup {
	setups := []setup{{format: formats[0], all: true, loads: loads}}
	for i, format := range formats[1:] {
		setups = append(setups, setup{format: format, config: fmt.Sprintf(
			"# CONFIG_MODULE_COMPRESS_%s is not set\nCONFIG_MODULE_COMPRESS_%s=y\n", kconfig(formats[i]), kconfig(format))})
	}
	return setups
}

// build builds the judge's first kernel, and returns its object tree and the signers: the
// given ones, of whom the one named module may be the tree's own.
func (j judge) build(t testing.TB, pairs keys) (*Tree, keys) {
	t.Helper()
	tree := configure(t, SourceOf(t, j.series), "judge", j.config)
	pairs.install(t, tree)
	tree.Make(t)
	if tree.Path != "" {
		pairs = maps.Clone(pairs)
		own := filepath.Join(tree.Objtree, "certs/signing_key.pem")
		pairs["module"] = readPair(t, own, own)
	}
	return tree, pairs
}

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
	for _, name := range []string{
		"module", "unknown", "stranger", "revoked", "blacklisted", "sha256 listed", "sha512 listed",
	} {
		add(name, keygen.ECDSAP256, nil)
	}
	add("expired", keygen.ECDSAP256, func(template *keygen.Template) {
		template.NotBefore, template.Days = time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC), 1
	})
	add("sha3", keygen.RSA2048, func(template *keygen.Template) { template.Hash = crypto.SHA3_256 })
	pairs["issued"] = issued(t, pairs["unknown"].Signer, pairs[keygen.ECDSAP256.String()])
	pairs.addMLDSA(t)
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
	certificates("module.pem", "module")
	certificates("trusted.pem", pairs.trusted()...)
	certificates("revoked.pem", "revoked", "ml-dsa revoked")
	// A kernel hashes a certificate with the hash of the signature on it, or a newer one with
	// SHA-256.
	var hashes []string
	add := func(h crypto.Hash, names ...string) {
		for _, name := range names {
			sum := h.New()
			sum.Write(pairs[name].Certificate.RawTBSCertificate)
			hashes = append(hashes, fmt.Sprintf("\"tbs:%x\"", sum.Sum(nil)))
		}
	}
	add(crypto.SHA256, "blacklisted", "issued", "ml-dsa blacklisted", "sha256 listed")
	add(crypto.SHA512, "blacklisted", "issued", "ml-dsa blacklisted", "sha512 listed")
	hashes = append(hashes, fmt.Sprintf("\"bin:%x\"", sha256.Sum256(pairs.listed(t))))
	list := strings.Join(hashes, ",\n") + "\n"
	if err := os.WriteFile(filepath.Join(dir, "blacklist"), []byte(list), 0o644); err != nil {
		t.Fatal(err)
	}
}

// listed is a module whose hash is on the blacklist of the judges. It is not of their kernels,
// which are built after it.
func (pairs keys) listed(t testing.TB) []byte {
	t.Helper()
	// A signature of RSA is always the same.
	return pairs.signed(t, keygen.RSA2048.String(), read(t, "../../testdata/modules/amd64-6.12/plain/hello.ko"))
}

// trusted are the names of the keys whose certificates are given to a kernel to trust.
func (pairs keys) trusted() []string {
	names := []string{"revoked", "blacklisted", "sha256 listed", "sha512 listed", "expired", "sha3"}
	for _, algorithm := range keygen.Algorithms() {
		names = append(names, algorithm.String())
	}
	return append(names, mldsaTrusted...)
}

// formats are those that modules are compressed with.
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
	for _, j := range judges {
		if !j.full || full() {
			t.Run("Linux "+j.series, func(t *testing.T) { j.judge(t, pairs) })
		}
	}
}

// judge makes the cases, and compares the verdicts of each setup.
func (j judge) judge(t *testing.T, pairs keys) {
	tree, pairs := j.build(t, pairs)
	count, accepted := 0, 0
	verdicts := make(map[verify.Verdict]int)
	for i, s := range j.setups {
		t.Run(s.String(), func(t *testing.T) {
			if i > 0 {
				tree.Reconfigure(t, s.config)
				tree.Make(t, "bzImage")
			}
			payload := modulePayload(t, tree)
			cases := compressedCases(t, pairs, s.format, payload)
			if s.all {
				cases = append(makeCases(t, pairs, tree, payload), cases...)
			}
			trusted := imageKeyring(t, tree)
			toBoot := make([]Case, len(cases))
			for i, c := range cases {
				toBoot[i] = c.Case
			}
			reasons := damagedCases(t, pairs, tree, s.format, payload)
			if i == 0 {
				reasons = append(reasons, explainCases(t, pairs, tree, s.format, payload)...)
			}
			for _, r := range reasons {
				toBoot = append(toBoot, r.Case)
			}
			dir := t.TempDir()
			judged, console := bootCases(t, tree.Image(), toBoot)
			local := pairs.file(t, "stranger")
			compareReasons(t, openExplained(t, tree, trusted, "", explain.KeyPair{Key: local, Cert: local}), reasons,
				judged[len(cases):])
			judged = judged[:len(cases)]
			if loaded := loadedCertificates(console); !slices.Equal(trusted.Names(), loaded) {
				t.Errorf("verify finds the certificates %q, and the kernel loads %q", trusted.Names(), loaded)
			}
			refused := slices.Clone(s.loads)
			for i, kernel := range judged {
				path := filepath.Join(dir, cases[i].file())
				if err := os.WriteFile(path, cases[i].Data, 0o644); err != nil {
					t.Fatal(err)
				}
				predicted := verify.File(t.Context(), trusted, path)
				cases[i].compare(t, kernel, predicted)
				verdicts[predicted.Verdict]++
				if kernel.Errno == 0 {
					accepted++
					refused = slices.DeleteFunc(refused, func(name string) bool { return name == kernel.Name })
				}
			}
			if len(refused) > 0 {
				t.Errorf("the kernel does not load %q", refused)
			}
			count += len(cases)
		})
	}
	if j.explains {
		t.Run("tolerant", func(t *testing.T) { j.tolerates(t, tree, pairs) })
	}
	if strings.Contains(j.config, "CONFIG_SYSTEM_EXTRA_CERTIFICATE=y") {
		t.Run("add-cert", func(t *testing.T) { addCert(t, tree, pairs) })
	}
	t.Logf("%d modules, %d accepted, %d refused; in the words of verify %v", count, accepted, count-accepted, verdicts)
	if count > 0 && (count < 500 || accepted == 0 || accepted == count) { // 0 if -run names another part
		t.Error("too few cases")
	}
}

func (s setup) String() string {
	if s.all && s.config != "" {
		return s.format.String() + ", " + strings.TrimSpace(s.config)
	}
	return s.format.String()
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
	if image.Len() == 0 || !slices.Equal(image.Names(), vmlinux.Names()) {
		t.Fatalf("verify finds the certificates %q in bzImage and %q in vmlinux", image.Names(), vmlinux.Names())
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
	judging = regexp.MustCompile(`^(PKCS7: |PKCS#7 |X\.509: |module: |Module hash |Unsupported |Loading of )`)
	aside   = regexp.MustCompile(`^PKCS7: (Unknown OID|Data already supplied|Waived invalid module sig)`) // the last one once
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
