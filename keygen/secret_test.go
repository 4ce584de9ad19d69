package keygen

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/keyfile"
	"github.com/modsign/modsign/internal/testmod"
)

// mangled are the ways in which the line breaks of PEM get lost on the way through
// shells, editors and the settings of a CI.
func mangled(data []byte) map[string][]byte {
	text := strings.TrimSuffix(string(data), "\n")
	return map[string][]byte{
		"spaces":         []byte(strings.ReplaceAll(text, "\n", " ") + "\n"),
		"nothing":        []byte(strings.ReplaceAll(text, "\n", "")),
		`\n`:             []byte(strings.ReplaceAll(text, "\n", `\n`)),
		`\r\n`:           []byte(strings.ReplaceAll(text, "\n", `\r\n`)),
		"CR":             []byte(strings.ReplaceAll(text, "\n", "\r") + "\r"),
		"indented":       []byte("  " + strings.ReplaceAll(text, "\n", "\n  ") + "\n"),
		"BOM and spaces": []byte("\xef\xbb\xbf" + strings.ReplaceAll(text, "\n", " ")),
		"UTF-16":         utf16LE(text),
		"UTF-16, no BOM": utf16LE(text)[2:],
		`\n in quotes`:   []byte(`"` + strings.ReplaceAll(text, "\n", `\n`) + `"`),
		"JSON":           []byte(`{"key": "` + strings.ReplaceAll(text, "\n", `\n`) + `\n"}` + "\n"),
		"JSON of PHP": []byte(`{"key":"` + strings.ReplaceAll(strings.ReplaceAll(text, "/", `\/`), "\n", `\n`) +
			`","n":1}`),
		"quotes":          []byte(`"` + text + `"` + "\n"),
		"NUL":             []byte(strings.ReplaceAll(text, "\n", "\x00") + "\x00"),
		"END joined":      []byte(strings.ReplaceAll(text, "\n-----END", "-----END") + "\n"),
		"after a comment": []byte("# the key\n" + strings.ReplaceAll(text, "\n", " ") + "\n"),
	}
}

func utf16LE(text string) []byte {
	out := []byte{0xff, 0xfe}
	for _, c := range []byte(text) {
		out = append(out, c, 0)
	}
	return out
}

// TestMangled loads keys and certificates whose line breaks are lost. The error holds
// nothing of the file, and its hint is a command that brings them back.
func TestMangled(t *testing.T) {
	t.Parallel()
	for _, algorithm := range []string{"rsa:2048", "ecdsa:p256"} {
		key := testmod.NewKey(t, algorithm)
		_, cert := key.Files(t)
		for name, data := range mangled(key.KeyPEM) {
			t.Run(algorithm+" "+name, func(t *testing.T) {
				t.Parallel()
				path := keyFile(t, data)
				_, err := Load(path, cert, LoadOptions{})
				if checkError(t, err, key); strings.Contains(err.Error(), "-----BEGIN P") {
					t.Errorf("error quotes the file: %v", err)
				}
				if !errors.Is(err, ErrMangled) {
					t.Errorf("error has not the reason ErrMangled: %v", err)
				}
				e, _ := errors.AsType[*keyfile.HintError](err)
				command := strings.ReplaceAll(strings.TrimPrefix(e.Hint, "if that is spaces or quotes: "), "FILE", "'"+path+"'")
				if strings.HasPrefix(name, "UTF-16") {
					testmod.Program(t, "iconv", "libc-bin")
					if !strings.Contains(err.Error(), "UTF-16") {
						t.Error(err)
					}
					path = filepath.Join(t.TempDir(), "new.pem")
					command = strings.ReplaceAll(command, "KEY.pem", path)
				}
				testmod.Run(t, "sh", "-c", "umask 022; "+command)
				if _, err := Load(path, cert, LoadOptions{}); err != nil {
					t.Errorf("after %s: %v", e.Hint, err)
				}
				openssl(t, "pkey", "-in", path, "-noout")
			})
		}
		for name, data := range mangled(key.CertPEM) {
			_, err := LoadCertificates(testmod.WriteFile(t, "cert", data))
			if err == nil || strings.Contains(err.Error(), "PEM block") && name != "END joined" {
				t.Errorf("certificate, %s: %v", name, err)
			}
		}
	}
}

// TestLegacyMangled has a key whose headers no command can tell from its body.
func TestLegacyMangled(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p256")
	plain, cert := key.Files(t)
	data := openssl(t, "ec", "-aes128", "-in", plain, "-passout", "pass:"+secret)
	_, err := Load(keyFile(t, mangled(data)["spaces"]), cert, LoadOptions{Passphrase: passphrase(secret)})
	checkError(t, err, key)
	if !strings.Contains(err.Error(), "lost its line breaks") {
		t.Error(err)
	}
}

// TestLabelsAreNotQuoted puts a secret wherever a file names something.
func TestLabelsAreNotQuoted(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p256")
	plain, cert := key.Files(t)
	const hidden = "SECRETSECRET"
	block := func(kind string, headers map[string]string) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Headers: headers, Bytes: []byte("x")})
	}
	legacy := openssl(t, "ec", "-aes128", "-in", plain, "-passout", "pass:"+secret)
	oid := append([]byte{0x30, 0x18, 2, 1, 0, 0x30, 0x10, 6, 14, 42, 3}, hidden...) // an algorithm 1.2.3.83.69...
	files := map[string][]byte{
		"kind":                block(hidden, nil),
		"kind of private key": block(hidden+" PRIVATE KEY", nil),
		"kind of public key":  block(hidden+" PUBLIC KEY", nil),
		"cipher":              bytes.Replace(legacy, []byte("AES-128-CBC"), []byte(hidden), 1),
		"IV":                  bytes.Replace(legacy, []byte("AES-128-CBC,"), []byte("AES-128-CBC,"+hidden), 1),
		"algorithm":           pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: append(oid, 4, 1, 0)}),
		"text":                []byte(hidden + "\n"),
		"cut off":             []byte("-----BEGIN PRIVATE KEY-----\n" + hidden),
	}
	for name, data := range files {
		for place, load := range map[string]func(string) error{
			"key": func(path string) error {
				_, err := Load(path, cert, LoadOptions{Passphrase: passphrase(secret)})
				return err
			},
			"certificate":    func(path string) error { _, err := Load(plain, path, LoadOptions{}); return err },
			"certificates":   func(path string) error { _, err := LoadCertificates(path); return err },
			"configuration":  func(path string) error { return parseFile(path) },
			"key and certs":  func(path string) error { _, err := Load(path, "", LoadOptions{}); return err },
			"OpenPGP's file": func(path string) error { _, err := ReadPrivate(path, LoadOptions{}); return err },
		} {
			err := load(keyFile(t, data))
			if err == nil && place != "OpenPGP's file" || err != nil &&
				(strings.Contains(err.Error(), hidden) || strings.Contains(err.Error(), "83.69")) {
				t.Errorf("%s as %s: %v", name, place, err)
			}
		}
	}
}

func parseFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, _, err = ParseConfig(f)
	return err
}

// TestConfigTellsNoSecret has configurations that are wrong at a secret: a password
// for OpenSSL, or a private key that was given for the file.
func TestConfigTellsNoSecret(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "rsa:2048")
	files := [][]byte{key.KeyPEM, openssl(t, "rsa", "-traditional", "-in", keyFile(t, key.KeyPEM))}
	for _, data := range mangled(key.KeyPEM) {
		files = append(files, data)
	}
	// A line that ends in = reads as a name with a value.
	for line := range bytes.Lines(key.KeyPEM) {
		files = append(files, []byte(genkey(string(line)+"=", "", "")),
			slices.Concat([]byte("[req]\n"), line[:20], []byte("=\n")))
	}
	const hidden = "SECRETSECRET"
	for _, config := range []string{
		"[" + hidden, "[req]" + hidden, hidden, hidden + "=$no", "a = $" + hidden, "a = ${" + hidden, "a = $ENV::" +
			hidden, "." + hidden, ".include " + hidden, ".pragma" + hidden,
		genkey("prompt = "+hidden+"\n", "", ""), genkey("string_mask = "+hidden+"\n", "",
			""), genkey("default_bits = "+hidden+"\n", "", ""),
		genkey("default_md = "+hidden+"\n", "", ""), genkey(hidden+" = y\n", "",
			""), genkey("distinguished_name = "+hidden+"\n", "", ""),
		genkey("x509_extensions = "+hidden+"\n", "", ""), genkey("", hidden+" = x\n", ""), genkey("",
			"CN = x\n+"+hidden+" = x\n", ""),
		genkey("", "C = "+hidden+"\n", ""), genkey("", "emailAddress = ä"+hidden+"\n", ""), genkey("", "C = ä\n", ""),
		genkey("", "", hidden+" = x\n"), genkey("", "", "keyUsage = "+hidden+"\n"), genkey("", "",
			"keyUsage = "+hidden+",\n"),
		genkey("", "", "basicConstraints = CA:"+hidden+"\n"), genkey("", "", "basicConstraints = "+hidden+"\n"), genkey("",
			"", "basicConstraints = CA:TRUE,pathlen:"+hidden+"\n"),
		genkey("", "", "extendedKeyUsage = "+hidden+"\n"), genkey("", "", "extendedKeyUsage = codeSigning:"+hidden+"\n"),
		genkey("", "", "subjectKeyIdentifier = "+hidden+"\n"), genkey("", "", "authorityKeyIdentifier = "+hidden+"\n"),
	} {
		files = append(files, []byte(config))
	}
	for _, data := range files {
		_, _, err := ParseConfig(bytes.NewReader(data))
		if err == nil {
			t.Errorf("taken for a configuration:\n%s", data)
			continue
		}
		if strings.Contains(err.Error(), hidden) {
			t.Errorf("error holds the secret: %v", err)
		}
		checkError(t, &LoadError{Path: "genkey", Err: err}, key)
		for line := range bytes.Lines(key.KeyPEM) {
			if !bytes.HasPrefix(line, []byte("-")) && strings.Contains(err.Error(), string(line[:12])) {
				t.Errorf("error holds a part of the key: %v", err)
			}
		}
	}
}

// TestTextAsPath gives the key itself where the name of its file is wanted.
func TestTextAsPath(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p256")
	plain, cert := key.Files(t)
	for _, text := range []string{string(key.KeyPEM), string(mangled(key.KeyPEM)["spaces"]),
		strings.TrimPrefix(string(key.KeyPEM),
			"-----BEGIN PRIVATE KEY-----\n"), base64.StdEncoding.EncodeToString(decodePEM(t, key.KeyPEM))} {
		_, err1 := Load(text, cert, LoadOptions{})
		_, err2 := Load(plain, text, LoadOptions{})
		_, err3 := LoadCertificates(text)
		_, err4 := ReadPrivate(text, LoadOptions{AllowInsecure: true})
		for _, err := range []error{err1, err2, err3, err4} {
			checkError(t, err, key)
		}
	}
}

// TestByteOrderMark has files as editors of Windows write them.
func TestByteOrderMark(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p256")
	mark := func(data []byte) []byte {
		return append([]byte("\xef\xbb\xbf"), bytes.ReplaceAll(data, []byte("\n"), []byte("\r\n"))...)
	}
	pair, err := Load(keyFile(t, mark(key.KeyPEM)), testmod.WriteFile(t, "cert", mark(key.CertPEM)), LoadOptions{})
	if err != nil || !pair.Certificate.Equal(key.Certificate) {
		t.Error(err)
	}
	if _, err := Load(keyFile(t, mark(slices.Concat(key.KeyPEM, key.CertPEM))), "", LoadOptions{}); err != nil {
		t.Error(err)
	}
	if certs, err := LoadCertificates(testmod.WriteFile(t, "certs", mark(key.CertPEM))); err != nil || len(certs) != 1 {
		t.Error(err)
	}
	if _, err := LoadCertificates(testmod.WriteFile(t, "empty", mark(nil))); err == nil ||
		!strings.Contains(err.Error(), "empty") {
		t.Error(err)
	}
}

// TestGroupOnPurpose has a key that its owner gave to a group, as packages of akmods
// do with root:akmods: no accident where the group is not the user's own.
func TestGroupOnPurpose(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p256")
	path, cert := key.Files(t)
	other := -1
	groups, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		groups = append(groups, 12345)
	}
	for _, g := range groups {
		if g != os.Getgid() {
			other = g
		}
	}
	if other < 0 {
		t.Skip("neither root nor in a second group")
	}
	load := func(mode os.FileMode, gid int) (notes []string, err error) {
		if err := os.Chown(path, -1, gid); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err = Load(path, cert, LoadOptions{Note: func(note string) { notes = append(notes, note) }})
		return notes, err
	}
	for _, mode := range []os.FileMode{0o640, 0o440} {
		if notes, err := load(mode, other); err != nil || len(notes) != 1 || !strings.Contains(notes[0], fmt.Sprint(other)) {
			t.Errorf("mode %o, group %d: %v, %q", mode, other, err, notes)
		}
		if _, err := load(mode, os.Getgid()); !errors.Is(err, ErrInsecure) {
			t.Errorf("mode %o, own group: %v", mode, err)
		}
	}
	for _, mode := range []os.FileMode{0o660, 0o644, 0o650, 0o604, 0o620} {
		if _, err := load(mode, other); !errors.Is(err, ErrInsecure) {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
	// The group's bits may be the mask of an ACL that lets others in.
	if _, err := load(0o600, other); err != nil {
		t.Fatal(err)
	}
	testmod.Run(t, testmod.Program(t, "setfacl", "acl"), "-m", "u:12346:r", path)
	if _, err := Load(path, cert, LoadOptions{}); !errors.Is(err, ErrInsecure) {
		t.Errorf("ACL: %v", err)
	}
}

// TestGenerateLoadable makes no certificate that a kernel would not load.
func TestGenerateLoadable(t *testing.T) {
	t.Parallel()
	template := DefaultTemplate()
	template.Extensions[1].Value = []byte{3, 1, 0} // keyUsage without a bit
	if pair, err := Generate(ECDSAP256, template); err == nil ||
		!strings.Contains(err.Error(), "no kernel would load it") {
		t.Errorf("%v, %v", pair, err)
	}
}

// TestInsecureError says who can change the mode of a key that others can read.
func TestInsecureError(t *testing.T) {
	key := testmod.NewKey(t, "ecdsa:p256")
	for _, test := range []struct {
		who  access
		want InsecureError
	}{
		{access{mode: 0o644, mine: true}, InsecureError{Mode: 0o644}},
		{access{mode: 0o644}, InsecureError{Mode: 0o644, NotOwner: true}},
		{access{mode: 0o644, mine: true, readOnly: true}, InsecureError{Mode: 0o644, ReadOnly: true}},
	} {
		err := test.who.check(key.KeyPEM, func(string) {})
		if e, ok := errors.AsType[*InsecureError](err); !ok || !errors.Is(err, ErrInsecure) || *e != test.want {
			t.Errorf("%+v: %v", test.who, err)
		}
	}
}
