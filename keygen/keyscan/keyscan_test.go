package keyscan_test

import (
	"archive/zip"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen/keyscan"
)

// scan scans a path.
func scan(t testing.TB, o keyscan.Options, paths ...string) *keyscan.Report {
	t.Helper()
	s, err := keyscan.New(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if err := s.Tree(t.Context(), path); err != nil {
			t.Fatal(err)
		}
	}
	return s.Report()
}

// scanData scans a stream.
func scanData(t testing.TB, data []byte) []keyscan.Finding {
	t.Helper()
	s, err := keyscan.New(keyscan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.File(t.Context(), "name", 0, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	return s.Report().Findings
}

// what describes findings as the tests compare them.
func what(findings []keyscan.Finding) string {
	var parts []string
	for _, f := range findings {
		s := f.Form
		if f.Algorithm != "" {
			s = f.Algorithm + ", " + s
		}
		if f.Encrypted {
			s += ", encrypted"
		}
		if f.Damaged {
			s += ", damaged"
		}
		if f.Harmless != "" {
			s += ", harmless"
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, "; ")
}

// shell runs commands in a directory.
func shell(t testing.TB, dir, commands string) {
	t.Helper()
	cmd := exec.Command("bash", "-euxc", commands)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GNUPGHOME="+dir+"/gnupg")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// compare scans a directory and compares what is found in each file. Files that are not in
// the list have to be without a finding.
func compare(t testing.TB, dir string, want map[string]string) *keyscan.Report {
	t.Helper()
	r := scan(t, keyscan.Options{}, dir)
	got := make(map[string][]keyscan.Finding)
	for _, f := range r.Findings {
		name, err := filepath.Rel(dir, f.Path)
		if err != nil {
			t.Fatal(err)
		}
		got[name] = append(got[name], f)
	}
	for name, text := range want {
		if found := what(got[name]); found != text {
			t.Errorf("%s: found %q, want %q", name, found, text)
		}
	}
	for name, found := range got {
		if _, known := want[name]; !known {
			t.Errorf("%s: found %q, want nothing", name, what(found))
		}
	}
	for _, f := range r.Failures {
		t.Errorf("%s: %v", f.Path, f.Err)
	}
	return r
}

// TestOpenSSL scans what openssl writes: all forms of private keys, and what is none.
func TestOpenSSL(t *testing.T) {
	t.Parallel()
	testmod.Program(t, "openssl", "openssl")
	dir := t.TempDir()
	shell(t, dir, `
		pass="-passout pass:horse"
		openssl req -x509 -newkey rsa:2048 -nodes -keyout rsa.pem -out rsa.crt -subj /CN=rsa 2>/dev/null
		openssl pkcs8 -topk8 -nocrypt -in rsa.pem -outform DER -out rsa.der
		base64 rsa.der >rsa.b64
		openssl rsa -in rsa.pem -outform MSBLOB -out rsa.blob 2>/dev/null
		openssl rsa -in rsa.pem -outform PVK -pvk-none -out rsa.pvk 2>/dev/null
		openssl rsa -in rsa.pem -traditional -out rsa1.pem 2>/dev/null
		openssl rsa -in rsa.pem -traditional -outform DER -out rsa1.der 2>/dev/null
		openssl rsa -in rsa.pem -traditional -aes128 $pass -out rsa-legacy.pem 2>/dev/null
		openssl pkcs8 -topk8 -in rsa.pem $pass -out rsa8e.pem
		openssl pkcs8 -topk8 -in rsa.pem $pass -scrypt -outform DER -out rsa8e.der
		openssl pkcs8 -topk8 -in rsa.pem $pass -v1 PBE-SHA1-3DES -out rsa-pbe.pem
		openssl genpkey -algorithm RSA-PSS -pkeyopt rsa_keygen_bits:1024 -out pss.pem 2>/dev/null
		openssl genrsa -primes 3 1024 2>/dev/null | openssl rsa -traditional -outform DER -out three.der 2>/dev/null
		openssl ecparam -name secp384r1 -genkey -noout -out ec.pem
		openssl ec -in ec.pem -outform DER -out ec.der 2>/dev/null
		openssl ec -in ec.pem -no_public -out ec-short.pem 2>/dev/null
		openssl pkcs8 -topk8 -nocrypt -in ec.pem -outform DER -out ec8.der
		openssl ec -in ec.pem -aes256 $pass -out ec-legacy.pem 2>/dev/null
		openssl ecparam -name secp384r1 -genkey -param_enc explicit -noout -out ec-explicit.pem
		openssl ecparam -name secp256k1 -genkey -out k1.pem
		openssl genpkey -algorithm ed25519 -out ed25519.pem
		openssl genpkey -algorithm x448 -outform DER -out x448.der
		openssl dsaparam -genkey -noout -out dsa.any 1024 2>/dev/null
		openssl pkcs8 -topk8 -nocrypt -in dsa.any -out dsa8.pem
		openssl pkey -in dsa.any -traditional -out dsa.pem
		openssl dsa -in dsa.any -outform DER -out dsa.der
		rm dsa.any
		openssl pkcs12 -export -inkey rsa.pem -in rsa.crt $pass -out rsa.p12
		openssl pkcs12 -export -inkey rsa.pem -in rsa.crt $pass -keypbe NONE -certpbe NONE -nomac -out plain.p12
		openssl pkcs12 -export -nokeys -in rsa.crt $pass -out certs.p12
		cat rsa8e.pem rsa.crt >signing_key.pem

		openssl x509 -in rsa.crt -outform DER -out rsa.cer
		openssl pkey -in rsa.pem -pubout -out public.pem
		openssl pkey -in rsa.pem -pubout -outform DER -out public.der
		openssl req -new -key rsa.pem -subj /CN=rsa -outform DER -out request.der
		openssl dsaparam -outform DER -out dsaparam.der 1024 2>/dev/null
		openssl crl2pkcs7 -nocrl -certfile rsa.crt -outform DER -out certs.p7b
		openssl cms -sign -binary -in rsa.crt -signer rsa.crt -inkey rsa.pem -outform DER -out signature.p7s
		openssl cms -encrypt -binary -in rsa.pem -outform DER -out message.p7m rsa.crt
	`)
	r := compare(t, dir, map[string]string{
		"rsa.pem":         "RSA 2048, PEM, PKCS #8",
		"rsa.der":         "RSA 2048, PKCS #8",
		"rsa1.pem":        "RSA 2048, PEM, PKCS #1",
		"rsa1.der":        "RSA 2048, PKCS #1",
		"rsa.b64":         "RSA 2048, PKCS #8",
		"rsa.blob":        "RSA 2048, MSBLOB",
		"rsa.pvk":         "RSA 2048, PVK",
		"rsa-legacy.pem":  "RSA, PEM, PKCS #1, encrypted",
		"rsa8e.pem":       "PEM, PKCS #8, encrypted",
		"rsa8e.der":       "PKCS #8, encrypted",
		"rsa-pbe.pem":     "PEM, PKCS #8, encrypted",
		"pss.pem":         "RSA-PSS 1024, PEM, PKCS #8",
		"three.der":       "RSA 1024, PKCS #1",
		"ec.pem":          "ECDSA P-384, PEM, SEC 1",
		"ec.der":          "ECDSA P-384, SEC 1",
		"ec-short.pem":    "ECDSA P-384, PEM, SEC 1",
		"ec8.der":         "ECDSA P-384, PKCS #8",
		"ec-legacy.pem":   "ECDSA, PEM, SEC 1, encrypted",
		"ec-explicit.pem": "ECDSA, PEM, SEC 1",
		"k1.pem":          "ECDSA secp256k1, PEM, SEC 1",
		"ed25519.pem":     "Ed25519, PEM, PKCS #8",
		"x448.der":        "X448, PKCS #8",
		"dsa.pem":         "DSA 1024, PEM, OpenSSL's",
		"dsa8.pem":        "DSA, PEM, PKCS #8",
		"dsa.der":         "DSA 1024, OpenSSL's",
		"rsa.p12":         "PKCS #12, encrypted",
		"plain.p12":       "PKCS #12",
		"certs.p12":       "PKCS #12, encrypted, harmless",
		"signing_key.pem": "PEM, PKCS #8, encrypted",
	})
	// The public key of each form is the same one, and so is that of the certificate.
	id := make(map[string]string)
	for _, f := range r.Findings {
		name := filepath.Base(f.Path)
		id[name] = f.KeyID
		if strings.HasPrefix(f.Algorithm, "RSA 2048") && f.Certificate != "CN=rsa" {
			t.Errorf("%s: the certificate is %q", name, f.Certificate)
		}
	}
	cert := readCertificate(t, filepath.Join(dir, "rsa.crt"))
	if want := hex.EncodeToString(cert); id["rsa.pem"] != want || id["rsa.der"] != want || id["rsa1.der"] != want ||
		id["rsa.pvk"] != want || id["rsa.blob"] != want {
		t.Errorf("key ids %v, and the certificate has %s", id, want)
	}
	if id["ec.pem"] == "" || id["ec.pem"] != id["ec8.der"] || id["ec.pem"] != id["ec-short.pem"] {
		t.Errorf("the key ids of one EC key are %v", id)
	}
}

// readCertificate returns the subject key identifier of a certificate.
func readCertificate(t *testing.T, path string) []byte {
	t.Helper()
	out := testmod.Run(t, "openssl", "x509", "-in", path, "-noout", "-ext", "subjectKeyIdentifier")
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	id, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(lines[len(lines)-1]), ":", ""))
	if err != nil || len(id) != sha1.Size {
		t.Fatalf("openssl says %q", out)
	}
	return id
}

// TestMLDSA scans the keys of ML-DSA in the three forms that openssl 3.5 writes, and others
// of that version.
func TestMLDSA(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	shell(t, dir, strings.ReplaceAll(`
		openssl genpkey -algorithm ML-DSA-65 -out both.pem
		openssl pkey -in both.pem -provparam ml-dsa.output_formats=seed-only -out seed.pem
		openssl pkey -in both.pem -provparam ml-dsa.output_formats=priv-only -outform DER -out expanded.der
		openssl pkey -in both.pem -aes256 -passout pass:horse -out encrypted.pem
		openssl req -x509 -new -key both.pem -subj /CN=mldsa -out mldsa.crt
		openssl genpkey -algorithm SLH-DSA-SHA2-128f -outform DER -out slh.der
		openssl genpkey -algorithm ML-KEM-768 -out kem.pem
	`, "openssl ", testmod.OpenSSL35(t)+" "))
	r := compare(t, dir, map[string]string{
		"both.pem":      "ML-DSA-65, PEM, PKCS #8",
		"seed.pem":      "ML-DSA-65, PEM, PKCS #8",
		"expanded.der":  "ML-DSA-65, PKCS #8",
		"encrypted.pem": "PEM, PKCS #8, encrypted",
		"slh.der":       "SLH-DSA, PKCS #8",
		"kem.pem":       "ML-KEM, PEM, PKCS #8",
	})
	for _, f := range r.Findings {
		if name := filepath.Base(f.Path); name == "both.pem" || name == "seed.pem" {
			if f.Certificate != "CN=mldsa" {
				t.Errorf("%s: the certificate is %q", name, f.Certificate)
			}
		}
	}
}

// TestGnuPG scans a directory of gpg, and what it exports.
func TestGnuPG(t *testing.T) {
	t.Parallel()
	testmod.Program(t, "gpg", "gnupg")
	dir, err := os.MkdirTemp("/tmp", "gpg") // a short path: there is a socket in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		exec.Command("gpgconf", "--homedir", dir+"/gnupg", "--kill", "all").Run()
		os.RemoveAll(dir)
	})
	shell(t, dir, `
		mkdir -m 700 gnupg
		gpg() { command gpg --batch --quiet --pinentry-mode loopback "$@"; }
		echo s2k-count 65536 >gnupg/gpg-agent.conf
		gpg --passphrase '' --quick-gen-key rsa@example.org rsa2048
		gpg --passphrase horse --quick-gen-key ed@example.org ed25519
		gpg --export-secret-keys -a rsa@example.org >rsa.asc
		gpg --export-secret-keys rsa@example.org >rsa.gpg
		gpg --passphrase horse --export-secret-keys ed@example.org >ed.gpg
		gpg --passphrase horse --export-secret-subkeys -a ed@example.org >stub.asc
		gpg --export -a >public.asc
		gpg --export >public.gpg
	`)
	want := map[string]string{
		"rsa.asc":  "RSA 2048, PEM, OpenPGP",
		"rsa.gpg":  "RSA 2048, OpenPGP",
		"ed.gpg":   "EdDSA, OpenPGP, encrypted",
		"stub.asc": "EdDSA, PEM, OpenPGP, encrypted, harmless",
	}
	keys, err := filepath.Glob(dir + "/gnupg/private-keys-v1.d/*.key")
	if err != nil || len(keys) != 2 {
		t.Fatalf("gpg has the keys %v: %v", keys, err)
	}
	for _, path := range keys {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name := "gnupg/private-keys-v1.d/" + filepath.Base(path)
		if want[name] = "RSA, GnuPG"; bytes.Contains(data, []byte("protected-private-key")) {
			want[name] = "ECC, GnuPG, encrypted"
		}
	}
	compare(t, dir, want)
}

// TestSSH scans keys of ssh-keygen.
func TestSSH(t *testing.T) {
	t.Parallel()
	testmod.Program(t, "ssh-keygen", "openssh-client")
	dir := t.TempDir()
	shell(t, dir, `
		ssh-keygen -q -t rsa -b 2048 -N '' -f rsa
		ssh-keygen -q -t ecdsa -b 256 -N '' -f ecdsa
		ssh-keygen -q -t ed25519 -N horse -f ed25519
		mkdir -p etc/ssh
		ssh-keygen -q -t ed25519 -N '' -f etc/ssh/ssh_host_ed25519_key
	`)
	r := compare(t, dir, map[string]string{
		"rsa":                          "RSA 2048, PEM, OpenSSH",
		"ecdsa":                        "ECDSA P-256, PEM, OpenSSH",
		"ed25519":                      "Ed25519, PEM, OpenSSH, encrypted",
		"etc/ssh/ssh_host_ed25519_key": "Ed25519, PEM, OpenSSH",
	})
	if got := r.Findings[2].Origin; got != "a host key of SSH" {
		t.Errorf("%s: origin %q", r.Findings[2].Path, got)
	}
	for _, f := range r.Findings {
		if f.KeyID == "" {
			t.Errorf("%s: no key id, and the public key is not encrypted", f.Path)
		}
	}
}

// TestSoftHSM scans the directory of a token with a key and a certificate.
func TestSoftHSM(t *testing.T) {
	t.Parallel()
	token := testmod.NewSoftHSM(t, "token")
	key := testmod.NewKey(t, "rsa:2048")
	token.Import(t, "token", "modsign", "01", key)
	conf, err := os.ReadFile(token.Conf)
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(conf), "\n")
	r := scan(t, keyscan.Options{}, strings.TrimPrefix(line, "directories.tokendir = "))
	if got := what(r.Findings); got != "RSA, SoftHSM token, encrypted" || r.Files < 3 {
		t.Errorf("found %q in %d files", got, r.Files)
	}
}

// TestStores scans the files in testdata, whose README says what made them.
func TestStores(t *testing.T) {
	t.Parallel()
	compare(t, "testdata", map[string]string{
		"keystore.jks":   "JKS keystore, encrypted",
		"keystore.jceks": "JCEKS keystore, encrypted",
		"keystore.bks":   "BKS keystore, encrypted",
		"trust.p12":      "PKCS #12, encrypted, harmless",
		"nss.p12":        "PKCS #12, encrypted",
		"nss-key4.db.gz": "NSS database, encrypted",
		"nss-key3.db.gz": "NSS database, encrypted",
		"putty2.ppk":     "RSA 2048, PuTTY",
		"putty3.ppk":     "Ed25519, PuTTY, encrypted",
	})
}

// wrapped are ways in which files hold PEM.
var wrapped = map[string]func(key string) string{
	"alone":         func(key string) string { return key },
	"after text":    func(key string) string { return "some text\n\n" + key + "more\n" },
	"CRLF":          func(key string) string { return strings.ReplaceAll(key, "\n", "\r\n") },
	"CR":            func(key string) string { return strings.ReplaceAll(key, "\n", "\r") },
	"byte order":    func(key string) string { return "\xef\xbb\xbf" + key },
	"YAML":          func(key string) string { return "key: |\n" + indent(key, "    ") },
	"tabs":          func(key string) string { return indent(key, "\t\t") },
	"comment":       func(key string) string { return indent(key, "# ") },
	"comment in C":  func(key string) string { return indent(key, " * ") },
	"patch":         func(key string) string { return "@@ -0,0 +1,5 @@\n" + indent(key, "+") },
	"shell":         func(key string) string { return "cat >key.pem <<EOF\n" + key + "EOF\n" },
	"shell, quotes": func(key string) string { return "KEY='" + strings.TrimSpace(key) + "'\n" },
	"shell, one line": func(key string) string {
		return "KEY=\"" + strings.ReplaceAll(strings.TrimSpace(key), "\n", " ") + "\"\n"
	},
	"JSON": func(key string) string {
		text, err := json.Marshal(map[string]string{"private_key": key})
		if err != nil {
			panic(err)
		}
		return string(text)
	},
	"PHP":      func(key string) string { return strings.ReplaceAll(strings.ReplaceAll(key, "/", `\/`), "\n", `\n`) },
	"C":        func(key string) string { return "static const char key[] =\n" + cString(key) + ";\n" },
	"XML":      func(key string) string { return "<key>" + key + "</key>" },
	"UTF-16LE": func(key string) string { return "\xff\xfe" + wide(key, 0) },
	"UTF-16BE": func(key string) string { return wide(key, 8) },
	"Kubernetes": func(key string) string {
		return "data:\n  key.pem: " + base64.StdEncoding.EncodeToString([]byte(key)) + "\n"
	},
	"base64, one before":         func(key string) string { return base64Lines("a"+key, 1<<20, "") },
	"base64, two before":         func(key string) string { return base64Lines("ab"+key, 1<<20, "") },
	"base64, 76 columns":         func(key string) string { return base64Lines(key, 76, "\n") },
	"base64, 64 columns, CRLF":   func(key string) string { return base64Lines("a"+key, 64, "\r\n") },
	"base64, 76 columns, indent": func(key string) string { return "x:\n  " + base64Lines("ab"+key, 76, "\n  ") },
	"base64, broken in BEGIN": func(key string) string {
		return base64Lines(strings.Repeat("-", 50)+"\n"+key, 76, "\n")
	},
	"base64, broken in KEY": func(key string) string {
		return base64Lines(strings.Repeat("a", 35)+"\n"+key, 76, "\n")
	},
	"base64 in JSON": func(key string) string { return `{"x":"` + base64Lines(key, 60, `\n`) + `"}` },
	"base64, behind 3 MB": func(key string) string {
		return strings.Repeat("a line of text\n", 200_000) + base64Lines(key, 76, "\n")
	},
	"HTML": func(key string) string { return "<p>" + strings.ReplaceAll(key, "\n", "<br>") + "</p>" },
	"XML, attribute": func(key string) string {
		return `<key value="` + strings.ReplaceAll(key, "\n", "&#10;") + `"/>`
	},
	"binary": func(key string) string {
		return "\x7fELF\x02\x01\x01\x00" + strings.Repeat("\x00\x01", 500) + key + "\x00"
	},
	"JSON, number":   func(key string) string { return strings.ReplaceAll(key, "\n", `\u000a`) },
	"JSON, number A": func(key string) string { return strings.ReplaceAll(key, "\n", `\u000D\u000A`) },
	"braces":         func(key string) string { return strings.ReplaceAll(key, "\n", `\u{a}`) },
	"C, hexadecimal": func(key string) string { return strings.ReplaceAll(key, "\n", `\x0a`) },
	"C, octal":       func(key string) string { return strings.ReplaceAll(key, "\n", `\015\012`) },
	"XML, hexadecimal": func(key string) string {
		return strings.ReplaceAll(strings.ReplaceAll(key, "\n", "&#x000a;"), "+", "&#x2B;")
	},
	"XML, zeros": func(key string) string { return strings.ReplaceAll(key, "\n", "&#0010;") },
	"no END":     func(key string) string { return key[:strings.Index(key, "-----END")] },
}

func indent(text, prefix string) string {
	return prefix + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n"+prefix) + "\n"
}

func cString(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		fmt.Fprintf(&b, "\t%q\n", line)
	}
	return b.String()
}

// base64Lines encodes a text in lines.
func base64Lines(text string, columns int, end string) string {
	var b strings.Builder
	for line := range slices.Chunk([]byte(base64.StdEncoding.EncodeToString([]byte(text))), columns) {
		b.Write(line)
		b.WriteString(end)
	}
	return b.String()
}

func wide(text string, shift int) string {
	var b []byte
	for _, u := range utf16.Encode([]rune(text)) {
		b = append(b, byte(u>>shift), byte(u>>(8-shift)))
	}
	return string(b)
}

// pemKeys are keys in PEM of some kinds, by what is found.
func pemKeys(t testing.TB) map[string]string {
	t.Helper()
	dir := t.TempDir()
	testmod.Program(t, "openssl", "openssl")
	shell(t, dir, `
		openssl genrsa -traditional -aes256 -passout pass:horse -out legacy 2048 2>/dev/null
		openssl genpkey -algorithm ed25519 -aes256 -pass pass:horse -out encrypted`)
	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	return map[string]string{
		"RSA 2048, PEM, PKCS #8":       string(testmod.NewKey(t, "rsa:2048").KeyPEM),
		"ECDSA P-256, PEM, PKCS #8":    string(testmod.NewKey(t, "ecdsa:p256").KeyPEM),
		"ML-DSA-87, PEM, PKCS #8":      string(testmod.NewKey(t, "mldsa:87").KeyPEM),
		"RSA, PEM, PKCS #1, encrypted": read("legacy"),
		"PEM, PKCS #8, encrypted":      read("encrypted"),
	}
}

// TestWrapped finds keys of some kinds in whatever holds PEM.
func TestWrapped(t *testing.T) {
	t.Parallel()
	for want, key := range pemKeys(t) {
		for name, wrap := range wrapped {
			if got := what(scanData(t, []byte(wrap(key)))); got != want {
				t.Errorf("%s, %s: found %q", want, name, got)
			}
		}
	}
}

// TestDamaged checks that most of a key is a finding, and little is not.
func TestDamaged(t *testing.T) {
	t.Parallel()
	key := string(testmod.NewKey(t, "rsa:2048").KeyPEM)
	lines := strings.SplitAfter(key, "\n")
	spoilt := slices.Clone(lines)
	spoilt[3] = "AAAA" + spoilt[3][4:] // in the modulus
	for name, test := range map[string]struct{ text, want string }{
		"cut off":      {strings.Join(lines[:12], ""), "PEM, damaged"},
		"a wrong line": {strings.Join(spoilt, ""), "PEM, damaged"},
		"a lost line":  {strings.Join(slices.Delete(slices.Clone(lines), 5, 6), ""), "PEM, damaged"},
		"one line":     {strings.Join(append(slices.Clone(lines[:2]), lines[len(lines)-1]), ""), ""},
		"dots":         {strings.Join(lines[:5], "") + "...\n" + strings.Join(lines[20:], ""), ""},
		"a letter":     {"M" + strings.Repeat("\n", 30), ""},
		"labels":       {lines[0] + lines[len(lines)-1], ""},
		"a program":    {`fmt.Fprintf(w, "-----BEGIN RSA PRIVATE KEY-----\n%s\n-----END RSA PRIVATE KEY-----\n", key)`, ""},
		"a regular expression": {
			"grep -rE -- '-----BEGIN (RSA |EC )?PRIVATE KEY-----' \"$dir\" && echo 'found a private key' >&2\n" +
				strings.Repeat("echo this is a script and no key\n", 20), "",
		},
		"magic": {
			`<match value="-----BEGIN PGP PRIVATE KEY BLOCK-----"/><glob pattern="*.gpg"/><glob pattern="*.asc"/>` +
				strings.Repeat(`<alias type="application/pgp-keys"/>`, 30), "",
		},
	} {
		if got := what(scanData(t, []byte(test.text))); got != test.want {
			t.Errorf("%s: found %q, want %q", name, got, test.want)
		}
	}
}

// TestWindow puts a key and a certificate across every place where two windows may meet.
func TestWindow(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p256").KeyPEM
	const window, overlap = 1 << 20, 64<<10 + 512
	step := window - overlap
	filler := bytes.Repeat([]byte("no key on this line\n"), 3*window/20)
	for _, at := range []int{
		step - 2000, step - 300, step - 100, step - 20, step - 1, step, step + 20, step + 230, step + 250, step + 256,
		step + 300, window - 100, window - 1, window, window + 1, 2*step - 10, 2*step + 255, 3 * step, len(filler) - len(key),
	} {
		data := bytes.Clone(filler)
		copy(data[at:], key)
		found := scanData(t, data)
		if len(found) != 1 || found[0].Offset != int64(at) || found[0].Damaged {
			t.Errorf("a key at byte %d: found %+v", at, found)
			continue
		}
		if line := 1 + bytes.Count(data[:at], []byte("\n")); found[0].Line != line {
			t.Errorf("a key at byte %d: line %d, want %d", at, found[0].Line, line)
		}
	}
}

// TestCompressed finds keys in compressed files, and says what it could not look at.
func TestCompressed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"gzip", "xz", "zstd", "bzip2", "lz4", "lzop"} {
		testmod.Program(t, name, cmp.Or(map[string]string{"xz": "xz-utils"}[name], name))
	}
	key := testmod.NewKey(t, "ecdsa:p256")
	file := filepath.Join(dir, "key")
	if err := os.WriteFile(file, key.KeyPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	shell(t, dir, `
		for program in "gzip -k" "xz -k" "zstd -qk" "bzip2 -k" "lzop" "xz --format=lzma -k"; do $program key; done
		lz4 -qlk key key.lz4
		cat key.xz key.xz >two.xz; cat key.zst key.zst >two.zst
		(cat key.gz; head -c 512 /dev/zero) >padded.gz
		(tar -c key | lzop) >tar.lzo
		xz -k key.gz
		zstd -q key.gz.xz
		gzip -c /dev/null key key >two.gz
		head -c 100 key.bz2 >short.bz2
		head -c 100 key.xz >short.xz
		head -c 100 key.gz >short.gz
		head -c 100 key.zst >short.zst
		truncate -s 5M big; cat key >>big; gzip big
		skip() { printf '\120\052\115\030\003\000\000\000abc'; cat; } # a frame that zstd and lz4 pass over
		skip <key.zst >skip.zst; lz4 -qc key | skip >skip.lz4
		zstd -qdc skip.zst | cmp - key; lz4 -qdc skip.lz4 | cmp - key
		rm key key.gz.xz`)
	ko, err := os.ReadFile(testmod.Testdata(t)[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "module.ko.gz"), gzipped(ko), 0o600); err != nil {
		t.Fatal(err)
	}
	r := scan(t, keyscan.Options{MaxSize: 6 << 20}, dir)
	var names []string
	for _, f := range r.Findings {
		names = append(names, filepath.Base(f.Path))
	}
	want := "big.gz key.bz2 key.gz key.gz.xz.zst key.lz4 key.lzma key.lzo key.xz key.zst padded.gz skip.lz4 skip.zst key two.gz two.gz " +
		"two.xz two.xz two.zst two.zst"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("found keys in %s, want %s", got, want)
	}
	names = nil
	for _, f := range r.Failures {
		names = append(names, filepath.Base(f.Path))
	}
	if got := strings.Join(names, " "); got != "short.bz2 short.gz short.xz short.zst" {
		t.Errorf("failed: %s: %v", got, r.Failures)
	}
	if bytes.HasPrefix(ko, []byte("\x7fELF")) && r.Modules != 1 {
		t.Errorf("%d compressed modules, want 1", r.Modules)
	}

	// The limit: what lies behind it is not found, and that is said.
	r = scan(t, keyscan.Options{MaxSize: 4 << 20}, filepath.Join(dir, "big.gz"))
	if len(r.Findings) != 0 || len(r.Failures) != 1 || !errors.Is(r.Err(), keyscan.ErrIncomplete) {
		t.Errorf("beyond the limit: %+v", r)
	}
}

func gzipped(data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(data)
	w.Close()
	return b.Bytes()
}

// TestTree scans a tree with all that is not to be read.
func TestTree(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	key := testmod.NewKey(t, "ecdsa:p256")
	outside := testmod.WriteFile(t, "outside.pem", key.KeyPEM)
	write := func(name string, data []byte, mode fs.FileMode) {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o600)); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	write("build/certs/signing_key.pem", append(bytes.Clone(key.KeyPEM), key.CertPEM...), 0o644)
	write("build/certs/signing_key.x509", key.Certificate.Raw, 0o644)
	write("a\nb", key.KeyPEM, 0o640)
	write("tests/key.pem", key.KeyPEM, 0o600)
	write("other/tests/file", nil, 0o600)
	write(strings.Repeat("d/", 100)+"deep.pem", key.KeyPEM, 0o600)
	err := errors.Join(
		os.Symlink(outside, filepath.Join(dir, "link.pem")), os.Symlink("..", filepath.Join(dir, "other/up")),
		os.Symlink("nowhere", filepath.Join(dir, "dangling")), unix.Mkfifo(filepath.Join(dir, "fifo"), 0o666))
	if err != nil {
		t.Fatal(err)
	}
	r := scan(t, keyscan.Options{Exclude: []string{"tests/*", "*.nothing"}}, dir)
	if r.Links != 3 || r.Special != 1 || r.Excluded != 1 || r.Files != 5 ||
		!slices.Equal(r.Unused, []string{"*.nothing"}) {
		t.Errorf("links %d, special %d, excluded %d, unused %q, files %d",
			r.Links, r.Special, r.Excluded, r.Unused, r.Files)
	}
	if len(r.Findings) != 3 || !errors.Is(r.Err(), keyscan.ErrFound) {
		t.Fatalf("%d findings: %v", len(r.Findings), r.Err())
	}
	f := r.Findings[1]
	if f.Path != filepath.Join(dir, "build/certs/signing_key.pem") || f.Readers() != "others" || f.Line != 1 ||
		f.Origin != "the key that a kernel's build makes" || f.Certificate != key.Certificate.Subject.String() {
		t.Errorf("%+v", f)
	}
	if f := r.Findings[0]; f.Readers() != "group" {
		t.Errorf("mode %o: readers %q", f.Mode, f.Readers())
	}
	r = scan(t, keyscan.Options{Exclude: []string{"build", "tests", "d", "a*"}}, dir)
	if len(r.Findings) > 0 || r.Excluded != 5 {
		t.Errorf("all is excluded, and there are %d findings; %d excluded: %v", len(r.Findings), r.Excluded, r.Err())
	}

	// The path that is named may be a link, and a file.
	if r := scan(t, keyscan.Options{}, filepath.Join(dir, "link.pem")); len(r.Findings) != 1 {
		t.Errorf("a link that is named: %d findings", len(r.Findings))
	}
	if r := scan(t, keyscan.Options{}, t.TempDir()); !errors.Is(r.Err(), keyscan.ErrNothing) {
		t.Errorf("an empty directory: %v", r.Err())
	}
	s, err := keyscan.New(keyscan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "fifo"), filepath.Join(dir, "dangling"), "/dev/null"} {
		if err := s.Tree(t.Context(), path); err == nil {
			t.Errorf("%s: no error", path)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Tree(ended, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of the context: %v", err)
	}
	if _, err := keyscan.New(keyscan.Options{Exclude: []string{"["}}); err == nil {
		t.Error("a wrong pattern is no error")
	}
}

// TestUnreadable scans a tree of which an ordinary user cannot read all. Root runs it as
// one.
func TestUnreadable(t *testing.T) {
	if os.Geteuid() == 0 {
		dir, err := os.MkdirTemp("/tmp", "keyscan") // where that user can enter
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		self := filepath.Join(dir, "test")
		if data, err := os.ReadFile("/proc/self/exe"); err != nil ||
			errors.Join(os.Chmod(dir, 0o755), os.WriteFile(self, data, 0o755)) != nil {
			t.Fatal("the test cannot be copied")
		}
		cmd := exec.Command(testmod.Program(t, "setpriv", "util-linux"), "--reuid=65534", "--regid=65534", "--clear-groups",
			self, "-test.v", "-test.run=^TestUnreadable$")
		cmd.Dir, cmd.Env = "/tmp", append(os.Environ(), "TMPDIR=/tmp")
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS")) {
			t.Errorf("as another user: %v\n%s", err, out)
		}
		return
	}
	dir := t.TempDir()
	for _, name := range []string{"file", "dir/file"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0)); err != nil {
			t.Fatal(err)
		}
	}
	closed := filepath.Join(dir, "dir")
	if err := os.Chmod(closed, 0); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(closed, 0o755)
	r := scan(t, keyscan.Options{}, dir)
	if len(r.Failures) != 2 || !errors.Is(r.Err(), keyscan.ErrIncomplete) {
		t.Fatalf("%v: %+v", r.Err(), r.Failures)
	}
	for i, want := range []string{closed, filepath.Join(dir, "file")} {
		if f := r.Failures[i]; f.Path != want || !errors.Is(f.Err, fs.ErrPermission) {
			t.Errorf("%s: %v", f.Path, f.Err)
		}
	}
}

// TestKernel finds the key of a certificate that a kernel has built in.
func TestKernel(t *testing.T) {
	t.Parallel()
	as, ld := testmod.Program(t, "as", "binutils"), testmod.Program(t, "ld", "binutils")
	trusted, other := testmod.NewKey(t, "rsa:2048"), testmod.NewKey(t, "ecdsa:p384")
	dir := t.TempDir()
	cert := testmod.WriteFile(t, "cert.der", trusted.Certificate.Raw)
	source := testmod.WriteFile(t, "kernel.S", fmt.Appendf(nil, `
.section .text, "ax"
.globl _start
_start: .long 0
.section .rodata, "a"
.balign 8
.globl system_certificate_list
system_certificate_list: .incbin %q
end: .balign 8
.globl system_certificate_list_size
system_certificate_list_size: .quad end - system_certificate_list
.globl module_cert_size
module_cert_size: .quad end - system_certificate_list
`, cert))
	image := filepath.Join(dir, "vmlinux")
	testmod.Run(t, as, "--64", "-o", source+".o", source)
	testmod.Run(t, ld, "-m", "elf_x86_64", "-o", image, source+".o")
	tree := t.TempDir()
	for name, key := range map[string]*testmod.Key{"a.pem": trusted, "b.pem": other} {
		if err := os.WriteFile(filepath.Join(tree, name), key.KeyPEM, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := scan(t, keyscan.Options{Kernels: []string{image}}, tree)
	if len(r.Findings) != 2 || !slices.Equal(r.Findings[0].Kernels, []string{image}) || r.Findings[1].Kernels != nil {
		t.Errorf("%+v", r.Findings)
	}
	_, err := keyscan.New(keyscan.Options{Kernels: []string{cert}})
	if err == nil || !strings.HasPrefix(err.Error(), cert+": ") {
		t.Errorf("a certificate in the place of a kernel: %v", err)
	}
}

// TestNoFalseAlarms scans the sources and the modules of this repository, a kernel and
// programs of this system: none of them holds a key.
func TestNoFalseAlarms(t *testing.T) {
	t.Parallel()
	paths := []string{"../../testdata", "../../internal/vmlinux", "../../keygen", "../../docs", "/proc/self/exe"}
	for _, name := range []string{"openssl", "ssh-keygen", "gpg"} {
		if path, err := exec.LookPath(name); err == nil {
			paths = append(paths, path)
		}
	}
	r := scan(t, keyscan.Options{Exclude: []string{"keyscan"}}, paths...)
	for _, f := range r.Findings {
		t.Errorf("%s at byte %d: %s", f.Path, f.Offset, what([]keyscan.Finding{f}))
	}
	for _, f := range r.Failures {
		t.Errorf("%s: %v", f.Path, f.Err)
	}
}

// TestMany checks that one file cannot fill the report.
func TestMany(t *testing.T) {
	t.Parallel()
	s, err := keyscan.New(keyscan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	key := testmod.NewKey(t, "ecdsa:p256").KeyPEM
	if err := s.File(t.Context(), "many", 0, bytes.NewReader(bytes.Repeat(key, 3000))); err != nil {
		t.Fatal(err)
	}
	if r := s.Report(); len(r.Findings) != 100 || r.Omitted != 1 || r.Leaks() != 101 {
		t.Errorf("%d findings, %d omitted", len(r.Findings), r.Omitted)
	}
}

// FuzzFile scans anything: no input makes it panic, and no finding is without a form.
func FuzzFile(f *testing.F) {
	seeds, err := filepath.Glob("testdata/*")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range seeds {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		if inner, err := gzip.NewReader(bytes.NewReader(data)); err == nil {
			if data, err = io.ReadAll(inner); err != nil {
				f.Fatal(err)
			}
			f.Add(data[:min(len(data), 8192)])
		}
	}
	for _, algorithm := range []string{"rsa:2048", "ecdsa:p256", "mldsa:44"} {
		key := testmod.NewKey(f, algorithm)
		block, _ := pem.Decode(key.KeyPEM)
		f.Add(key.KeyPEM)
		f.Add(block.Bytes)
		f.Add(append(bytes.Clone(key.KeyPEM), key.CertPEM...))
		f.Add([]byte(wrapped["JSON"](string(key.KeyPEM))))
		f.Add([]byte(wrapped["UTF-16LE"](string(key.KeyPEM))))
	}
	for _, name := range []string{"base64, broken in BEGIN", "base64, 64 columns, CRLF", "base64 in JSON", "HTML"} {
		f.Add([]byte(wrapped[name](string(testmod.NewKey(f, "ecdsa:p256").KeyPEM))))
	}
	f.Add([]byte("(11:private-key(3:rsa(1:n4:abcd)(1:e1:a)))"))
	f.Add([]byte("Created: 20260101T000000\nKey: (protected-private-key (ecc (curve Ed25519)))\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := keyscan.New(keyscan.Options{MaxSize: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		s.File(t.Context(), "name", 0o644, bytes.NewReader(data)) // an error is that of a compressed file
		for _, found := range s.Report().Findings {
			if found.Form == "" || found.Offset < 0 || found.Offset > 1<<20 || found.Line < 0 {
				t.Errorf("%+v", found)
			}
		}
	})
}

// TestArchives finds a key in archives of all kinds, made by their programs.
func TestArchives(t *testing.T) {
	t.Parallel()
	for program, pkg := range map[string]string{
		"dpkg-deb": "dpkg", "cpio": "cpio", "rpmbuild": "rpm", "xz": "xz-utils", "zstd": "zstd",
	} {
		testmod.Program(t, program, pkg)
	}
	dir := t.TempDir()
	key := testmod.NewKey(t, "rsa:2048")
	block, _ := pem.Decode(key.KeyPEM)
	certs := filepath.Join(dir, "root/usr/src/linux/certs")
	if err := errors.Join(
		os.MkdirAll(certs, 0o755),
		os.WriteFile(filepath.Join(certs, "signing_key.pem"), key.KeyPEM, 0o640),
		os.WriteFile(filepath.Join(certs, "signing_key.x509"), key.Certificate.Raw, 0o644),
		os.WriteFile(filepath.Join(certs, "key.der"), block.Bytes, 0o600),
	); err != nil {
		t.Fatal(err)
	}
	shell(t, dir, `
		tar -C root -cf plain.tar usr
		tar -C root -cJf one.tar.xz usr
		mkdir root/DEBIAN
		printf 'Package: linux-headers\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n' \
			>root/DEBIAN/control
		dpkg-deb -Zxz --root-owner-group --build root headers.deb >/dev/null
		rm -r root/DEBIAN
		(cd root && find . | cpio -o -H newc --quiet >../early.cpio)
		(cat early.cpio; zstd -qc early.cpio) >initrd.img
		gzip -n <early.cpio >initrd.gz

		# An image whose upper layer takes away what the lower one has.
		mkdir upper && touch upper/.wh.usr
		tar -C root -czf layer1 usr && tar -C upper -cf layer2 .wh.usr
		tar -cf image.tar layer1 layer2 && rm -r layer1 layer2 upper

		# A package in an archive, and an archive in that.
		mkdir -p outer && cp headers.deb initrd.gz outer && tar -cf nested.tar outer && rm -r outer

		mkdir -p SPECS && cat >SPECS/x.spec <<-EOF
			Name: kernel-devel
			Version: 1
			Release: 1
			Summary: x
			License: GPL
			BuildArch: noarch
			%description
			x
			%install
			cp -r $PWD/root/usr %{buildroot}
			%files
			/usr/src
		EOF
		rpmbuild -bb --quiet --define "_topdir $PWD" --define '_build_id_links none' SPECS/x.spec >log 2>&1 || { cat log; exit 1; }
		mv RPMS/noarch/*.rpm devel.rpm
		rm -rf root RPMS SPECS BUILD* SRPMS SOURCES log`)
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.Create("certs/signing_key.pem")
	if err == nil {
		_, err = w.Write(key.KeyPEM)
	}
	if err = errors.Join(err, z.Close(), os.WriteFile(filepath.Join(dir, "sources.zip"), b.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	found := make(map[string][]string)
	r := scan(t, keyscan.Options{}, dir)
	for _, f := range r.Findings {
		name := strings.ReplaceAll(f.Archive, dir+"/", "")
		found[name] = append(found[name], f.Path)
		if f.Certificate == "" || f.Archive == "" {
			t.Errorf("%s: the certificate is %q", f.Name(), f.Certificate)
		}
		if filepath.Base(f.Path) == "signing_key.pem" && name != "sources.zip" && f.Readers() != "group" {
			t.Errorf("%s: mode %o", f.Name(), f.Mode)
		}
	}
	for _, f := range r.Failures {
		t.Errorf("%s: %v", f.Name(), f.Err)
	}
	const first, second = "usr/src/linux/certs/key.der", "usr/src/linux/certs/signing_key.pem"
	const keys = first + " " + second
	for name, want := range map[string]string{
		"plain.tar": keys, "one.tar.xz": keys, "headers.deb": keys, "early.cpio": keys, "initrd.gz": keys, "devel.rpm": keys,
		"initrd.img":                      strings.Join([]string{first, first, second, second}, " "),
		"layer1 in image.tar":             keys,
		"outer/headers.deb in nested.tar": keys,
		"outer/initrd.gz in nested.tar":   keys,
		"sources.zip":                     "certs/signing_key.pem",
	} {
		if got := strings.Join(found[name], " "); got != want {
			t.Errorf("%s: found %q, want %q", name, got, want)
		}
	}

	data, err := os.ReadFile(filepath.Join(dir, "plain.tar"))
	if err != nil {
		t.Fatal(err)
	}
	tail := testmod.WriteFile(t, "tail.tar", append(data, key.KeyPEM...))
	if r := scan(t, keyscan.Options{}, tail); len(r.Failures) != 1 {
		t.Errorf("a key behind a tar archive: %d failures", len(r.Failures))
	}

	// What is cut off is a failure, and what comes before it is found.
	for _, name := range []string{"plain.tar", "one.tar.xz", "headers.deb", "initrd.gz", "devel.rpm", "early.cpio"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		short := testmod.WriteFile(t, name, data[:len(data)*2/3])
		if r := scan(t, keyscan.Options{}, short); len(r.Failures) == 0 {
			t.Errorf("%s, cut off: no failure", name)
		}
	}
	r = scan(t, keyscan.Options{Exclude: []string{"usr/src/linux/certs"}}, filepath.Join(dir, "headers.deb"))
	if r.Leaks() > 0 {
		t.Errorf("a directory is excluded, and there are %d keys", r.Leaks())
	}
}
