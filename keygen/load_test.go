package keygen

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/modsign/modsign/internal/keyfile"
	"github.com/modsign/modsign/internal/testmod"
)

// secret is the passphrase of the tests: no error may hold it.
const secret = "corréct horse"

func passphrase(s string) Passphrase { return func() ([]byte, error) { return []byte(s), nil } }

// keyFile writes a private key file and returns its path.
func keyFile(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// form is a way in which openssl writes a private key, with the passphrase
// secret where it is encrypted.
type form struct {
	name, algorithm string
	encrypted       bool
	command         []string // of openssl; stdin is the key in PKCS #8, stdout the form
}

func forms() []form {
	pass := "pass:" + secret
	list := []form{
		{"PKCS #8", "rsa:2048", false, []string{"pkey"}},
		{"PKCS #8", "ecdsa:p521", false, []string{"pkey"}},
		{"PKCS #1", "rsa:2048", false, []string{"rsa", "-traditional"}},
		{"SEC 1", "ecdsa:p256", false, []string{"ec"}},
		{"SEC 1", "ecdsa:p384", false, []string{"ec"}},
		{"SEC 1", "ecdsa:p521", false, []string{"ec"}},
		{"SEC 1 without public key", "ecdsa:p384", false, []string{"ec", "-no_public"}},
		{"compressed point", "ecdsa:p384", false, []string{"ec", "-conv_form", "compressed"}},
		{"pkey -aes256", "rsa:2048", true, []string{"pkey", "-aes256", "-passout", pass}},
		{"scrypt", "ecdsa:p384", true, []string{"pkcs8", "-topk8", "-scrypt", "-passout", pass}},
		{"scrypt with other costs", "rsa:2048", true, []string{"pkcs8", "-topk8", "-scrypt", "-scrypt_N", "1024",
			"-scrypt_r", "4", "-scrypt_p", "3", "-v2", "aes-128-cbc", "-passout", pass}},
		{"100000 iterations", "ecdsa:p384", true, []string{"pkcs8", "-topk8", "-v2", "aes-256-cbc", "-iter", "100000",
			"-passout", pass}},
		{"PKCS #12, 3DES", "ecdsa:p384", true, []string{"pkcs8", "-topk8", "-v1", "PBE-SHA1-3DES", "-passout", pass}},
		{"PKCS #12, 3DES", "rsa:2048", true, []string{"pkcs8", "-topk8", "-v1", "PBE-SHA1-3DES", "-iter", "3", "-passout",
			pass}},
		{"PKCS #12, 2-key 3DES", "ecdsa:p384", true, []string{"pkcs8", "-topk8", "-v1", "PBE-SHA1-2DES", "-passout", pass}},
	}
	for _, cipher := range []string{"aes-128-cbc", "aes-192-cbc", "aes-256-cbc", "des3"} {
		for _, prf := range []string{"hmacWithSHA1", "hmacWithSHA224", "hmacWithSHA256", "hmacWithSHA384", "hmacWithSHA512"} {
			list = append(list, form{"PBES2 " + cipher + " " + prf, "ecdsa:p384", true,
				[]string{"pkcs8", "-topk8", "-v2", cipher, "-v2prf", prf, "-passout", pass}})
		}
	}
	for _, cipher := range []string{"-aes128", "-aes192", "-aes256", "-des3"} {
		list = append(list,
			form{"legacy " + cipher, "rsa:2048", true, []string{"rsa", "-traditional", cipher, "-passout", pass}},
			form{"legacy " + cipher, "ecdsa:p384", true, []string{"ec", cipher, "-passout", pass}})
	}
	return list
}

// make returns the key in the form.
func (f form) make(t testing.TB, key *testmod.Key) []byte {
	t.Helper()
	return openssl(t, append(f.command, "-in", keyFile(t, key.KeyPEM))...)
}

// TestLoadForms loads every form that openssl writes, and has the kernel's
// sign-file confirm that it takes it too.
func TestLoadForms(t *testing.T) {
	t.Parallel()
	signFile := testmod.SignFile(t)
	for _, f := range forms() {
		t.Run(f.name+" "+f.algorithm, func(t *testing.T) {
			t.Parallel()
			key := testmod.NewKey(t, f.algorithm)
			data := f.make(t, key)
			if encrypted := bytes.Contains(data, []byte("ENCRYPTED")); encrypted != f.encrypted {
				t.Fatalf("openssl wrote\n%s", data[:50])
			}
			_, cert := key.Files(t)
			// Other blocks, and text around, are skipped.
			data = slices.Concat([]byte("Bag Attributes\n    friendlyName: x\n"), key.CertPEM, []byte("\r\n"), data,
				key.KeyPEM[:100])
			path := keyFile(t, data)
			asked := 0
			pair, err := Load(path, cert, LoadOptions{Passphrase: func() ([]byte, error) {
				asked++
				return []byte(secret),
					nil
			}})
			if err != nil {
				t.Fatal(err)
			}
			if !equalKeys(pair.Signer, key.Private) || !pair.Certificate.Equal(key.Certificate) {
				t.Error("another key was loaded")
			}
			if want := map[bool]int{true: 1}[f.encrypted]; asked != want {
				t.Errorf("passphrase was asked for %d times, want %d", asked, want)
			}
			if _, err := Load(path, "", LoadOptions{Passphrase: passphrase(secret)}); err != nil {
				t.Errorf("certificate in the key's file: %v", err)
			}
			testmod.Run(t, "env", "KBUILD_SIGN_PIN="+secret, signFile, "-d", "sha256", path, cert,
				testmod.WriteFile(t, "a.ko", []byte("x")))
			if !f.encrypted {
				return
			}
			for _, wrong := range []string{"", "wrong", secret + "\n", secret[:len(secret)-1]} {
				_, err := Load(path, cert, LoadOptions{Passphrase: passphrase(wrong)})
				if checkError(t, err, key); !errors.Is(err, ErrWrongPassphrase) || !strings.Contains(err.Error(), path) {
					t.Errorf("passphrase %q: %v", wrong, err)
				}
			}
			_, err = Load(path, cert, LoadOptions{})
			checkNoPassphrase(t, err)
			_, err = Load(path, cert, LoadOptions{Passphrase: func() ([]byte, error) {
				return nil,
					fmt.Errorf("no terminal: %w", ErrNoPassphrase)
			}})
			checkNoPassphrase(t, err)
			interrupted := errors.New("interrupted")
			_, err = Load(path, cert, LoadOptions{Passphrase: func() ([]byte, error) { return nil, interrupted }})
			if !errors.Is(err, interrupted) {
				t.Errorf("error of the passphrase is lost: %v", err)
			}
		})
	}
}

func checkNoPassphrase(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrNoPassphrase) {
		t.Fatalf("got %v", err)
	}
}

// checkError checks that an error is a LoadError with a path, names no flag, and holds
// neither the passphrase nor anything of the key, as its hint does not.
func checkError(t *testing.T, err error, key *testmod.Key) {
	t.Helper()
	loadError, ok := errors.AsType[*LoadError](err)
	if !ok {
		t.Fatalf("got %v, want a LoadError", err)
	}
	text := fmt.Sprintf("%v %+v %#v", err, loadError.Err, loadError.Reason)
	if strings.Contains(err.Error(), "--") {
		t.Errorf("error names a flag: %v", err)
	}
	if mendable, ok := errors.AsType[*keyfile.HintError](err); ok {
		text += mendable.Hint
	}
	if loadError.Path == "" {
		t.Errorf("error names no file: %v", err)
	}
	if strings.Contains(text, secret) || strings.Contains(text, secret[:6]) {
		t.Errorf("error holds the passphrase: %s", text)
	}
	block, _ := pem.Decode(key.KeyPEM)
	for chunk := range slices.Chunk(block.Bytes, 12) {
		for _, form := range []string{string(chunk), fmt.Sprintf("%x", chunk), fmt.Sprint(chunk),
			base64.StdEncoding.EncodeToString(chunk)} {
			if len(chunk) == 12 && strings.Contains(text, form) {
				t.Fatalf("error holds a part of the key: %s", text)
			}
		}
	}
	for line := range strings.Lines(string(key.KeyPEM)) {
		if !strings.HasPrefix(line, "-") && strings.Contains(text, strings.TrimSpace(line)) {
			t.Errorf("error holds a line of the key: %s", text)
		}
	}
}

func TestEmptyPassphrase(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p384")
	plain, cert := key.Files(t)
	for _, scheme := range [][]string{{"-v2", "aes-256-cbc"}, {"-v1", "PBE-SHA1-3DES"}} {
		path := keyFile(t, openssl(t, append([]string{"pkcs8", "-topk8", "-in", plain, "-passout", "pass:"}, scheme...)...))
		if _, err := Load(path, cert, LoadOptions{Passphrase: passphrase("")}); err != nil {
			t.Errorf("%v: %v", scheme, err)
		}
	}
}

// TestPassphraseOfAnyBytes has a passphrase that is not UTF-8, which PKCS #12
// must turn into UTF-16 nevertheless.
func TestPassphraseOfAnyBytes(t *testing.T) {
	testmod.Slow(t, "it encrypts a key with every kind of passphrase")
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p384")
	plain, cert := key.Files(t)
	for _, secret := range []string{"caf\xe9", "🐧 and ü", strings.Repeat("long", 100)} {
		file := testmod.WriteFile(t, "pass", []byte(secret))
		for _, scheme := range [][]string{{"-v2", "aes-256-cbc"}, {"-v1", "PBE-SHA1-3DES"}, {"-scrypt"}} {
			path := keyFile(t, openssl(t, append([]string{"pkcs8", "-topk8", "-in", plain, "-passout", "file:" + file},
				scheme...)...))
			if _, err := Load(path, cert, LoadOptions{Passphrase: passphrase(secret)}); err != nil {
				t.Errorf("%v: %v", scheme, err)
			}
		}
	}
}

// TestLoadRefuses goes through what people hand over instead of a key.
func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p384")
	other := testmod.NewKey(t, "ecdsa:p256")
	rsaKey := testmod.NewKey(t, "rsa:2048")
	plain, cert := key.Files(t)
	rsaPlain, _ := rsaKey.Files(t)
	encrypted := openssl(t, "pkcs8", "-topk8", "-v2", "aes-256-cbc", "-in", plain, "-passout", "pass:"+secret)
	legacy := openssl(t, "ec", "-aes128", "-in", plain, "-passout", "pass:"+secret)
	generate := func(args ...string) []byte { return openssl(t, append([]string{"genpkey"}, args...)...) }
	curve := func(name string) []byte { return generate("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:"+name) }
	sec1 := func(args ...string) []byte { return openssl(t, append([]string{"ec", "-in", plain}, args...)...) }
	block := func(kind string, data []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: data}) }
	pkcs12 := filepath.Join(t.TempDir(), "key.p12")
	openssl(t, "pkcs12", "-export", "-inkey", plain, "-in", cert, "-passout", "pass:"+secret, "-out", pkcs12)
	pkcs12Data, err := os.ReadFile(pkcs12)
	if err != nil {
		t.Fatal(err)
	}
	keygen := testmod.Program(t, "ssh-keygen", "openssh-client")
	sshKey := filepath.Join(t.TempDir(), "id")
	testmod.Run(t, keygen, "-q", "-t", "ecdsa", "-N", "", "-f", sshKey)
	sshData, err := os.ReadFile(sshKey)
	if err != nil {
		t.Fatal(err)
	}
	dsaParams := testmod.WriteFile(t, "dsa.pem", openssl(t, "genpkey", "-genparam", "-algorithm", "DSA", "-pkeyopt",
		"dsa_paramgen_bits:1024"))
	dsa := generate("-paramfile", dsaParams)
	dsaOld := openssl(t, "dsa", "-in", keyFile(t, dsa))
	if !bytes.Contains(dsaOld, []byte("BEGIN DSA PRIVATE KEY")) {
		dsaOld = openssl(t, "pkey", "-traditional", "-in", keyFile(t, dsa))
	}

	tests := map[string]struct {
		data   []byte
		want   string // in the text
		reason Reason
	}{
		"empty":       {nil, "file is empty", ""},
		"text":        {[]byte("hello\n"), "not PEM", ""},
		"too big":     {make([]byte, keyfile.MaxSize+1), "no key or certificate", ""},
		"certificate": {key.CertPEM, "file is a certificate", ErrCertificateAlone},
		"public key":  {openssl(t, "pkey", "-in", plain, "-pubout"), "file is a public key", ErrPublicKey},
		"request":     {openssl(t, "req", "-new", "-key", plain, "-subj", "/CN=x"), "CERTIFICATE REQUEST", ""},
		"DER PKCS #8": {openssl(t, "pkey", "-in", plain, "-outform", "DER"), "a private key in DER", ErrDER},
		"DER SEC 1":   {sec1("-outform", "DER"), "a private key in DER", ErrDER},
		"DER PKCS #1": {openssl(t, "rsa", "-in", rsaPlain, "-traditional", "-outform", "DER"),
			"a private key in DER", ErrDER},
		"DER encrypted":   {decodePEM(t, encrypted), "encrypted private key in DER", ErrDER},
		"DER certificate": {key.Certificate.Raw, "a DER certificate", ErrCertificateAlone},
		"DER public key": {openssl(t, "pkey", "-in", plain, "-pubout", "-outform", "DER"), "a DER public key",
			ErrPublicKey},
		"PKCS #12": {pkcs12Data, "PKCS #12 store", ErrPKCS12},
		"OpenSSH":  {sshData, "OpenSSH's own format", ErrOpenSSH},
		"PuTTY":    {[]byte("PuTTY-User-Key-File-3: ssh-rsa\n"), "PuTTY", ErrPuTTY},
		"OpenPGP": {
			[]byte("-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQ==\n=abcd\n-----END PGP PRIVATE KEY BLOCK-----\n"),
			"OpenPGP",
			ErrOpenPGP,
		},
		"Ed25519":  {generate("-algorithm", "ED25519"), "Ed25519", ErrUnsupportedKey},
		"Ed448":    {generate("-algorithm", "ED448"), "Ed448", ErrUnsupportedKey},
		"X25519":   {generate("-algorithm", "X25519"), "X25519", ErrUnsupportedKey},
		"RSA-PSS":  {generate("-algorithm", "RSA-PSS"), "RSA-PSS", ErrUnsupportedKey},
		"DSA":      {dsa, "a DSA key", ErrUnsupportedKey},
		"DSA, old": {dsaOld, "a DSA key", ErrUnsupportedKey},
		"unknown algorithm": {block("PRIVATE KEY", []byte{0x30, 0x0c, 2, 1, 0, 0x30, 4, 6, 2, 42, 3, 4, 1, 0}),
			"of an unknown algorithm", ErrUnsupportedKey},
		"P-192":       {curve("prime192v1"), "P-192", ErrUnsupportedKey},
		"P-224":       {curve("secp224r1"), "P-224", ErrUnsupportedKey},
		"secp256k1":   {curve("secp256k1"), "secp256k1", ErrUnsupportedKey},
		"Brainpool":   {curve("brainpoolP384r1"), "Brainpool", ErrUnsupportedKey},
		"SM2":         {generate("-algorithm", "SM2"), "SM2", ErrUnsupportedKey},
		"other curve": {curve("sect283k1"), "on an unknown elliptic curve", ErrUnsupportedKey},
		"explicit curve": {openssl(t, "pkey", "-in", plain, "-ec_param_enc", "explicit"), "spells its curve out",
			ErrUnnamedCurve},
		"explicit curve, SEC 1": {sec1("-param_enc", "explicit"), "spells its curve out", ErrUnnamedCurve},
		"P-224, SEC 1":          {openssl(t, "ec", "-in", keyFile(t, curve("secp224r1"))), "P-224", ErrUnsupportedKey},
		"SEC 1, no curve": {block("EC PRIVATE KEY", []byte{0x30, 6, 2, 1, 1, 4, 1, 1}), "does not name its curve",
			ErrUnnamedCurve},
		"RSA of 512 bits": {generate("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:512"), "512 bits",
			ErrUnsupportedKey},
		"other kind": {block("FOO PRIVATE KEY", nil), "of an unknown kind", ErrUnsupportedKey},
		"cut off":    {key.KeyPEM[:100], `PEM block "PRIVATE KEY" at line 1 is damaged or cut off`, ""},
		"cut off, another follows": {slices.Concat(rsaKey.KeyPEM[:200], []byte("\n"), key.KeyPEM), `at line 1 is damaged`,
			""},
		"bad base64":            {bytes.Replace(key.KeyPEM, key.KeyPEM[40:44], []byte("!!!!"), 1), "is damaged", ""},
		"PKCS #8 cut inside":    {block("PRIVATE KEY", decodePEM(t, key.KeyPEM)[:60]), "damaged", ""},
		"PKCS #1 cut inside":    {block("RSA PRIVATE KEY", decodePEM(t, rsaKey.KeyPEM)[:60]), "damaged", ""},
		"too big inside":        {block("RSA PRIVATE KEY", make([]byte, maxKeySize+1)), "at most 32768", ""},
		"PKCS #8 as PKCS #1":    {block("RSA PRIVATE KEY", decodePEM(t, rsaKey.KeyPEM)), "damaged", ""},
		"PKCS #8 as SEC 1":      {block("EC PRIVATE KEY", decodePEM(t, key.KeyPEM)), "damaged", ""},
		"nothing in PEM":        {block("PRIVATE KEY", nil), "damaged", ""},
		"encrypted, cut inside": {block("ENCRYPTED PRIVATE KEY", decodePEM(t, encrypted)[:60]), "damaged", ""},
		"encrypted with RC2": {openssl(t, "pkcs8", "-topk8", "-in", plain, "-provider", "legacy", "-provider",
			"default", "-v1", "PBE-MD5-DES", "-passout", "pass:"+secret), "encrypted with PBES1", ErrUnsupportedCipher},
		"encrypted with Camellia": {openssl(t, "pkcs8", "-topk8", "-in", plain, "-v2", "camellia-256-cbc", "-passout",
			"pass:"+secret), "encrypted with Camellia", ErrUnsupportedCipher},
		"PRF SHA-512/256": {openssl(t, "pkcs8", "-topk8", "-in", plain, "-v2", "aes128", "-v2prf",
			"hmacWithSHA512-256", "-passout", "pass:"+secret), "an unknown pseudorandom function", ErrUnsupportedCipher},
		"legacy Camellia": {openssl(t, "ec", "-in", plain, "-camellia256", "-passout", "pass:"+secret),
			`CAMELLIA-256-CBC`, ErrUnsupportedCipher},
		"legacy, no DEK-Info": {bytes.Replace(legacy, []byte("DEK-Info"), []byte("DEK-None"), 1), "no DEK-Info", ""},
		"legacy, bad IV": {bytes.Replace(legacy, []byte("DEK-Info: AES-128-CBC,"),
			[]byte("DEK-Info: AES-128-CBC,zz"), 1), "damaged", ""},
		"key of another": {other.KeyPEM, "does not belong to the certificate in " + cert, ErrMismatch},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := keyFile(t, test.data)
			pair, err := Load(path, cert, LoadOptions{Passphrase: passphrase(secret)})
			if pair != nil || err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, %v, want an error with %q", pair, err, test.want)
			}
			if e, _ := errors.AsType[*LoadError](err); e == nil || e.Reason != test.reason || test.reason != "" &&
				!errors.Is(err, test.reason) {
				t.Errorf("%#v is not for the reason %q", err, test.reason)
			}
			checkError(t, err, key)
			checkError(t, err, rsaKey)
			if !strings.HasPrefix(err.Error(), path+": ") {
				t.Errorf("error does not begin with the path: %v", err)
			}
		})
	}
	t.Run("mismatch", func(t *testing.T) {
		_, err := Load(keyFile(t, slices.Concat(other.KeyPEM, key.CertPEM)), "", LoadOptions{})
		if checkError(t, err, key); !errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), "in the same file") ||
			!strings.Contains(err.Error(), "modsign test key ecdsa:p384") {
			t.Error(err)
		}
	})
	t.Run("no certificate", func(t *testing.T) {
		_, err := Load(plain, "", LoadOptions{})
		if checkError(t, err, key); !errors.Is(err, ErrKeyAlone) ||
			!strings.HasSuffix(err.Error(), "a private key but no certificate") {
			t.Error(err)
		}
	})
	t.Run("nobody is asked in vain", func(t *testing.T) {
		ask := func() ([]byte, error) { t.Error("asked"); return nil, nil }
		for _, cert := range []string{"", "/nonexistent", os.DevNull} {
			_, err := Load(keyFile(t, encrypted), cert, LoadOptions{Passphrase: ask})
			checkError(t, err, key)
		}
	})
}

func decodePEM(t testing.TB, data []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatalf("no PEM: %q", data)
	}
	return block.Bytes
}

func TestToken(t *testing.T) {
	t.Parallel()
	_, cert := testmod.NewKey(t, "ecdsa:p384").Files(t)
	for _, uri := range []string{"pkcs11:token=x;object=y?pin-value=123456", "PKCS11:object=y;pin-value=123456"} {
		_, err := Load(uri, cert, LoadOptions{})
		if !errors.Is(err, ErrNoPKCS11) || strings.Contains(err.Error(), "123456") {
			t.Error(err)
		}
		if _, err := LoadCertificates(uri); !errors.Is(err, ErrNoPKCS11) || strings.Contains(err.Error(), "123456") {
			t.Error(err)
		}
	}
}

// TestCostLimits has key derivations that would take minutes or gigabytes.
func TestCostLimits(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p384")
	plain, cert := key.Files(t)
	made := decodePEM(t, openssl(t, "pkcs8", "-topk8", "-in", plain, "-v2", "aes-256-cbc", "-iter", "100000", "-passout",
		"pass:"+secret))
	scrypted := decodePEM(t, openssl(t, "pkcs8", "-topk8", "-in", plain, "-scrypt", "-passout", "pass:"+secret))
	old := decodePEM(t, openssl(t, "pkcs8", "-topk8", "-in", plain, "-v1", "PBE-SHA1-3DES", "-iter", "100000",
		"-passout", "pass:"+secret))
	replace := func(data []byte, old, new string) []byte {
		if bytes.Count(data, []byte(old)) != 1 {
			t.Fatalf("%x not once in %x", old, data)
		}
		return bytes.Replace(data, []byte(old), []byte(new), 1)
	}
	// One byte of the salt makes room for a fourth byte of the count.
	huge := bytes.Clone(made)
	i := bytes.Index(huge, []byte("\x02\x03\x01\x86\xa0"))
	if copy(huge[i-1:], "\x02\x04\x00\x98\x96\x81"); huge[i-9] != 8 { // 10,000,001
		t.Fatalf("salt is not of 8 bytes: %x", made)
	}
	huge[i-9] = 7
	for name, data := range map[string][]byte{
		"PBKDF2 iterations":   huge,
		"PBKDF2 negative":     replace(made, "\x02\x03\x01\x86\xa0", "\x02\x03\x81\x86\xa0"),
		"PBKDF2 zero":         replace(made, "\x02\x03\x01\x86\xa0", "\x04\x03\x01\x86\xa0"),
		"PKCS #12 iterations": replace(old, "\x02\x03\x01\x86\xa0", "\x02\x03\x9f\xff\xff"),
		"scrypt N": replace(scrypted, "\x02\x02\x40\x00\x02\x01\x08\x02\x01\x01",
			"\x02\x02\x3f\xff\x02\x01\x08\x02\x01\x01"),
		"scrypt r": replace(scrypted, "\x02\x02\x40\x00\x02\x01\x08\x02\x01\x01",
			"\x02\x02\x40\x00\x02\x01\x00\x02\x01\x01"),
		"scrypt p": replace(scrypted, "\x02\x02\x40\x00\x02\x01\x08\x02\x01\x01",
			"\x02\x02\x40\x00\x02\x01\x08\x02\x01\x7f"),
		"scrypt memory": replace(scrypted, "\x02\x02\x40\x00\x02\x01\x08\x02\x01\x01",
			"\x02\x02\x40\x00\x02\x02\x08\x00\x02\x00"),
	} {
		t.Run(name, func(t *testing.T) {
			ask := func() ([]byte, error) { t.Error("asked for a passphrase"); return nil, nil }
			path := keyFile(t, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: data}))
			_, err := Load(path, cert, LoadOptions{Passphrase: ask})
			checkError(t, err, key)
		})
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p384")
	path, cert := key.Files(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for mode := range fs.FileMode(0o1000) {
		if mode&0o400 == 0 {
			continue // root reads it nevertheless
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{path, link} {
			_, err := Load(path, cert, LoadOptions{})
			if mode&0o077 == 0 {
				if err != nil {
					t.Errorf("mode %o: %v", mode, err)
				}
			} else if !errors.Is(err, ErrInsecure) || !strings.Contains(err.Error(), fmt.Sprintf("%04o", mode)) {
				t.Errorf("mode %o: %v", mode, err)
			}
		}
		if _, err := Load(path, cert, LoadOptions{AllowInsecure: true}); err != nil {
			t.Errorf("mode %o, allowed: %v", mode, err)
		}
	}
	// Nor is another kind of private key taken.
	armored := []byte("-----BEGIN PGP PRIVATE KEY BLOCK-----\n")
	for _, data := range [][]byte{armored, {0x95, 1, 2}, {0xc5, 1}, {0x99, 1, 2},
		[]byte("-----BEGIN PGP PUBLIC KEY BLOCK-----\n")} {
		private := data[0] != 0x99 && !bytes.Contains(data, []byte("PUBLIC"))
		path := keyFile(t, data)
		for _, mode := range []fs.FileMode{0o600, 0o640, 0o604} {
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
			got, err := ReadPrivate(path, LoadOptions{})
			if open := private && mode != 0o600; open != errors.Is(err, ErrInsecure) || !open && !bytes.Equal(got, data) {
				t.Errorf("%q, mode %o: %v", data, mode, err)
			}
			if got, err := ReadPrivate(path, LoadOptions{AllowInsecure: true}); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%q, mode %o, allowed: %v", data, mode, err)
			}
		}
	}
	// Certificates are no secret, wherever they are.
	if err := os.Chmod(cert, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path, cert, LoadOptions{}); err != nil {
		t.Error(err)
	}
	for _, path := range []string{t.TempDir(), filepath.Join(t.TempDir(), "none")} {
		_, err := Load(path, cert, LoadOptions{})
		checkError(t, err, key)
		if strings.Count(err.Error(), path) != 1 {
			t.Errorf("path is said twice or not at all: %v", err)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none"), cert, LoadOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// asNobody runs f with the rights of the user nobody, root's laid down: on
// Linux they belong to the thread. Without root it runs f as it is.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		var err error
		defer func() { done <- err }()
		if os.Getuid() == 0 {
			runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
			if err = syscall.Setfsgid(65534); err == nil {
				err = syscall.Setfsuid(65534)
			}
			if err != nil {
				return
			}
		}
		f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestOtherUsers(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p384")
	path, cert := key.Files(t)
	for dir := filepath.Dir(path); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	pair := &Pair{Signer: key.Private, Certificate: key.Certificate}
	if os.Getuid() != 0 {
		if err := os.Chmod(path, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Dir(path), 0o555); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Chmod(filepath.Dir(path), 0o755) })
	}
	asNobody(t, func() {
		if _, err := os.ReadFile(path); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("plain read of %s: %v", path, err)
			return
		}
		if _, err := os.ReadFile(cert); err != nil {
			t.Error(err)
		}
		_, err := Load(path, cert, LoadOptions{})
		if !errors.Is(err, fs.ErrPermission) || !strings.HasPrefix(err.Error(), path) {
			t.Error(err)
		}
		for name, write := range map[string]func(string) error{
			"key":  pair.WriteFile,
			"cert": func(path string) error { return pair.WriteCertificate(path, PEM) },
		} {
			fresh := filepath.Join(filepath.Dir(path), name)
			if err := os.WriteFile(fresh, nil, 0o600); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("plain write of %s: %v", fresh, err)
			}
			if err := write(fresh); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), fresh) {
				t.Error(err)
			}
		}
	})
	if os.Getuid() == 0 {
		// A build user's key, and root signs.
		if err := os.Chown(path, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(path, cert, LoadOptions{}); err != nil {
			t.Errorf("key of another user: %v", err)
		}
	}
}

// TestPipes has the key come from a named pipe, from an open file descriptor,
// and both key and certificate from two pipes that are written one after the
// other.
func TestPipes(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p384")
	plain, cert := key.Files(t)
	fifo := func() string {
		path := filepath.Join(t.TempDir(), "pipe")
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o666); err != nil {
			t.Fatal(err)
		}
		return path
	}
	feed := func(path string, data []byte) {
		if err := os.WriteFile(path, data, 0); err != nil {
			t.Error(err)
		}
	}
	one := fifo()
	go feed(one, key.KeyPEM)
	if _, err := Load(one, cert, LoadOptions{}); err != nil {
		t.Error(err)
	}
	// One path for both is read once.
	both := slices.Concat(key.KeyPEM, key.CertPEM)
	go feed(one, both)
	if _, err := Load(one, one, LoadOptions{}); err != nil {
		t.Error(err)
	}
	two := fifo()
	go func() { feed(one, key.KeyPEM); feed(two, key.CertPEM) }()
	if _, err := Load(one, two, LoadOptions{}); err != nil {
		t.Error(err)
	}

	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	go func() { w.Write(both); w.Close() }()
	if _, err := Load(fmt.Sprintf("/dev/fd/%d", r.Fd()), "", LoadOptions{}); err != nil {
		t.Error(err)
	}
	// A file behind a descriptor is a file.
	if err := os.Chmod(plain, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(plain)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := Load(fmt.Sprintf("/dev/fd/%d", f.Fd()), cert, LoadOptions{}); !errors.Is(err, ErrInsecure) {
		t.Error(err)
	}
	// No end, no memory.
	if _, err := Load("/dev/zero", cert, LoadOptions{}); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Error(err)
	}
	if _, err := Load(os.DevNull, cert, LoadOptions{}); err == nil || !strings.Contains(err.Error(), "empty") {
		t.Error(err)
	}
}

// TestCertificateFiles has certificate files that sign-file takes, and such that
// nobody takes.
func TestCertificateFiles(t *testing.T) {
	t.Parallel()
	key, other := testmod.NewKey(t, "ecdsa:p384"), testmod.NewKey(t, "ecdsa:p256")
	signFile := testmod.SignFile(t)
	plain, cert := key.Files(t)
	der := key.Certificate.Raw
	for name, data := range map[string][]byte{
		"PEM":                   key.CertPEM,
		"DER":                   der,
		"DER, more follows":     slices.Concat(der, []byte("trailing bytes")),
		"DER of two":            slices.Concat(der, other.Certificate.Raw),
		"PEM of two":            slices.Concat(key.CertPEM, other.CertPEM),
		"key before it":         slices.Concat(other.KeyPEM, key.CertPEM),
		"with carriage returns": bytes.ReplaceAll(key.CertPEM, []byte("\n"), []byte("\r\n")),
		"X509 CERTIFICATE":      bytes.ReplaceAll(key.CertPEM, []byte(" CERT"), []byte(" X509 CERT")),
	} {
		t.Run(name, func(t *testing.T) {
			path := testmod.WriteFile(t, "cert", data)
			pair, err := Load(plain, path, LoadOptions{})
			if err != nil || !pair.Certificate.Equal(key.Certificate) {
				t.Errorf("%v, %v", pair, err)
			}
			testmod.Run(t, signFile, "-d", "sha256", plain, path, testmod.WriteFile(t, "a.ko", nil))
		})
	}
	for name, test := range map[string]struct {
		data []byte
		want string
	}{
		"empty":            {nil, "empty"},
		"text":             {[]byte("hello"), "no certificate"},
		"key alone":        {key.KeyPEM, "a private key"},
		"cut off":          {key.CertPEM[:200], `PEM block "CERTIFICATE" at line 1 is damaged`},
		"cut, one follows": {slices.Concat(key.CertPEM[:200], []byte("\n"), key.CertPEM), "line 1 is damaged"},
		"DER cut off":      {der[:100], "no whole DER certificate"},
		"DER public key":   {openssl(t, "pkey", "-in", plain, "-pubout", "-outform", "DER"), "certificate"},
		"DER RSA key": {openssl(t, "pkey", "-in", keyFile(t, testmod.NewKey(t, "rsa:2048").KeyPEM), "-outform", "DER"),
			"a private key in DER"},
		"trusted":        {openssl(t, "x509", "-trustout", "-in", cert), "TRUSTED CERTIFICATE"},
		"request":        {openssl(t, "req", "-new", "-key", plain, "-subj", "/CN=x"), "CERTIFICATE REQUEST"},
		"garbage in PEM": {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), "line 1"},
	} {
		t.Run(name, func(t *testing.T) {
			path := testmod.WriteFile(t, "cert", test.data)
			_, err := Load(plain, path, LoadOptions{})
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.HasPrefix(err.Error(), path) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
			checkError(t, err, key)
			if certs, err := LoadCertificates(path); err == nil {
				t.Errorf("LoadCertificates found %v", certs)
			}
		})
	}
}

func TestLoadCertificates(t *testing.T) {
	t.Parallel()
	a, b, c := testmod.NewKey(t, "ecdsa:p384"), testmod.NewKey(t, "rsa:2048"), testmod.NewKey(t, "ecdsa:p521")
	want := []*x509.Certificate{a.Certificate, b.Certificate, c.Certificate}
	pemFile := slices.Concat([]byte("# trusted\n"), a.CertPEM, b.KeyPEM, b.CertPEM, []byte("\n"), c.CertPEM)
	derFile := slices.Concat(a.Certificate.Raw, b.Certificate.Raw, c.Certificate.Raw)
	extracted := filepath.Join(t.TempDir(), "extracted")
	testmod.Run(t, testmod.ExtractCert(t), testmod.WriteFile(t, "all.pem", pemFile), extracted)
	filledUp := testmod.WriteFile(t, "filled-up", slices.Concat(derFile, make([]byte, 4)))
	for _, path := range []string{testmod.WriteFile(t, "pem", pemFile), testmod.WriteFile(t, "der", derFile), filledUp,
		extracted} {
		got, err := LoadCertificates(path)
		if err != nil || !slices.EqualFunc(got, want, (*x509.Certificate).Equal) {
			t.Errorf("%s: %d certificates, %v", path, len(got), err)
		}
	}
	for name, data := range map[string][]byte{
		"bytes after DER": slices.Concat(derFile, []byte{0, 1}),
		"one cut off":     derFile[:len(derFile)-1],
		"one bad in PEM":  slices.Concat(a.CertPEM, b.CertPEM[:300], []byte("\n"), c.CertPEM),
	} {
		if certs, err := LoadCertificates(testmod.WriteFile(t, "bad", data)); err == nil {
			t.Errorf("%s: %d certificates", name, len(certs))
		}
	}
	if _, err := LoadCertificates("/nonexistent"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// FuzzLoadKey parses key files. What is found to be a key is written and parsed
// again; what is not must not let the passphrase out.
func FuzzLoadKey(f *testing.F) {
	for _, form := range forms() {
		if !strings.Contains(form.name, "100000") && !strings.Contains(form.name, "scrypt") {
			f.Add(form.make(f, testmod.NewKey(f, form.algorithm)))
		}
	}
	plain, _ := testmod.NewKey(f, "ecdsa:p256").Files(f)
	f.Add(openssl(f, "pkcs8", "-topk8", "-in", plain, "-scrypt", "-scrypt_N", "16", "-passout", "pass:"+secret))
	for _, algorithm := range mldsaNames {
		for _, form := range mldsaForms(f, testmod.NewKey(f, algorithm)) {
			f.Add(form)
		}
	}
	limits := kdfLimits{iterations: 2048, memory: 1 << 20, work: 1 << 20}
	f.Fuzz(func(t *testing.T, data []byte) {
		block, err := findKey(data)
		if err != nil {
			return
		}
		signer, err := block.privateKey(passphrase(secret), limits)
		if err != nil {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("error holds the passphrase: %v", err)
			}
			return
		}
		written, err := (&Pair{Signer: signer}).keyBlock()
		if err != nil {
			t.Fatal(err)
		}
		again, err := checkKey(parsePKCS8(written.Bytes))
		if err != nil || !equalKeys(again, signer) {
			t.Errorf("key comes back as %v, %v", again, err)
		}
	})
}

// The inputs are files of certificates with a few changes.
func FuzzLoadCertificates(f *testing.F) {
	a, b := testmod.NewKey(f, "ecdsa:p384"), testmod.NewKey(f, "ecdsa:p256")
	files := [][]byte{
		slices.Concat(a.CertPEM, b.KeyPEM, b.CertPEM), slices.Concat(a.Certificate.Raw,
			b.Certificate.Raw), a.CertPEM, a.Certificate.Raw,
	}
	for i := range files {
		f.Add(uint8(i), uint64(0), uint64(0), uint64(0))
		f.Add(uint8(i), uint64(30<<16|0x101), uint64(300<<16|0x403), uint64(900<<16|7))
	}
	f.Fuzz(func(t *testing.T, file uint8, one, two, three uint64) {
		data := testmod.Edit(files[int(file)%len(files)], one, two, three)
		defer testmod.ShowInputs(t, data)
		first, firstErr := firstCertificate(data)
		certs, err := ParseCertificates(data)
		if err != nil {
			return
		}
		if firstErr != nil || !first.Equal(certs[0]) {
			t.Errorf("first certificate is another: %v", firstErr)
		}
		var der []byte
		for _, cert := range certs {
			der = append(der, cert.Raw...)
		}
		if !isDER(der) {
			return // too short for a certificate in DER, as sign-file sees it
		}
		again, err := ParseCertificates(der)
		if err != nil || !slices.EqualFunc(again, certs, (*x509.Certificate).Equal) {
			t.Errorf("%d certificates come back as %d: %v", len(certs), len(again), err)
		}
	})
}
