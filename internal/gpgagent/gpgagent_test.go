package gpgagent

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/keyfile"
	"github.com/modsign/modsign/internal/testmod"
)

// atom encodes an atom.
func atom(b []byte) string { return fmt.Sprintf("%d:%s", len(b), b) }

// publicOf encodes a public key as an agent does.
func publicOf(t testing.TB, public crypto.PublicKey) string {
	t.Helper()
	switch key := public.(type) {
	case *rsa.PublicKey:
		return "(10:public-key(3:rsa(1:n" + atom(append([]byte{0}, key.N.Bytes()...)) + ")(1:e3:\x01\x00\x01)))"
	case *ecdsa.PublicKey:
		q, err := key.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		return "(10:public-key(3:ecc(5:curve10:NIST " + key.Params().Name + ")(1:q" + atom(q) + ")))"
	}
	t.Fatal("unknown key")
	return ""
}

// escape encodes data for a D line.
func escape(data string) string {
	return strings.NewReplacer("%", "%25", "\n", "%0A", "\r", "%0D").Replace(data)
}

// script is an agent that answers as it is told, whatever it is asked. It is for answers
// that no agent gives; keystore's tests have a real one.
func script(t *testing.T, answers ...string) Config {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "S")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buffer := make([]byte, 4096)
		for i, answer := range answers {
			if _, err := io.WriteString(c, answer); err != nil {
				return
			}
			if i < len(answers)-1 {
				if _, err := c.Read(buffer); err != nil {
					return
				}
			}
		}
	}()
	return Config{Socket: socket, Keygrip: strings.Repeat("0", 40)}
}

// TestAnswers has answers of all kinds to PKSIGN.
func TestAnswers(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p384")
	ok, public := "OK\n", "D "+escape(publicOf(t, key.Private.Public()))+"\nOK\n"
	for name, c := range map[string]struct{ answer, want, hint string }{
		"cancelled": {"ERR 83886179 Operation cancelled <Pinentry>\n", "gpg-agent: Operation cancelled <Pinentry>", ""},
		"no pinentry": {"ERR 67108949 No pinentry <GPG Agent>\n", "gpg-agent: No pinentry <GPG Agent>",
			"export GPG_TTY=$(tty)"},
		"no card": {"S PROGRESS x\n# a comment\nERR 100663408 Card not present <SCD>\n",
			"Card not present", "gpg --card-status"},
		"no text":    {"ERR 1\n", "gpg-agent: error 1", ""},
		"escapes":    {"ERR 1 a\x1b[31mb\n", "gpg-agent: a[31mb", ""},
		"no code":    {"ERR x\n", "does not keep to its protocol", ""},
		"unknown":    {"HELLO\n", "does not keep to its protocol", ""},
		"empty line": {"\n", "does not keep to its protocol", ""},
		"long line":  {strings.Repeat("x", 2000) + "\n", "does not keep to its protocol", ""},
		"much data":  {strings.Repeat("D "+strings.Repeat("x", 900)+"\n", 20) + "OK\n", "does not keep to its protocol", ""},
		"many lines": {strings.Repeat("S x\n", 1001) + "OK\n", "does not keep to its protocol", ""},
		"half":       {"D (7:sig", "closed the connection", ""},
		"gone":       {"", "closed the connection", ""},
		"no data":    {"OK\n", "answer is damaged", ""},
		"other kind": {"D (7:sig-val(3:rsa(1:s1:x)))\nOK\n", "answer is damaged", ""},
		"zero":       {"D (7:sig-val(5:ecdsa(1:r1:x)(1:s1:\x00)))\nOK\n", "answer is damaged", ""},
		"bad escape": {"D %zz\nOK\n", "does not keep to its protocol", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k, err := Open(t.Context(), script(t, ok, public, ok, ok, ok, c.answer))
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			for range 2 { // the second is not asked
				_, err = k.Sign(nil, make([]byte, 48), crypto.SHA384)
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("%v, want %q", err, c.want)
				}
			}
			hint := ""
			if e, ok := errors.AsType[*keyfile.HintError](err); ok {
				hint = e.Hint
			}
			if (hint == "") != (c.hint == "") || !strings.Contains(hint, c.hint) || !k.Lost() {
				t.Errorf("hint %q, want %q; lost: %v", hint, c.hint, k.Lost())
			}
		})
	}
}

// TestOpenAnswers has answers to READKEY.
func TestOpenAnswers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answers    []string
		want, hint string
	}{
		"no key": {[]string{"OK\n", "ERR 67141713 No such file or directory <GPG Agent>\n"},
			"no key of this keygrip", listKeys},
		"ed25519": {[]string{"OK\n", "D (10:public-key(3:ecc(5:curve7:Ed25519)(1:q1:x)))\nOK\n"},
			`on the curve "Ed25519"`, ""},
		"dsa": {[]string{"OK\n", "D (10:public-key(3:dsa(1:p1:x)))\nOK\n"}, `of type "dsa"`, ""},
		"no point": {[]string{"OK\n", "D (10:public-key(3:ecc(5:curve10:NIST P-256)(1:q1:x)))\nOK\n"},
			"damaged", ""},
		"tiny":    {[]string{"OK\n", "D (10:public-key(3:rsa(1:n1:x)(1:e1:\x03)))\nOK\n"}, "damaged", ""},
		"refused": {[]string{"ERR 1 no entry\n"}, "gpg-agent: no entry", ""},
		"gone":    {nil, "closed the connection", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Open(t.Context(), script(t, c.answers...))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, want %q", err, c.want)
			}
			e, ok := errors.AsType[*keyfile.HintError](err)
			if ok != (c.hint != "") || ok && !strings.Contains(e.Hint, c.hint) {
				t.Errorf("%v: want the hint %q", err, c.hint)
			}
		})
	}
	_, err := Open(t.Context(), Config{Socket: filepath.Join(t.TempDir(), "none")})
	if err == nil || !strings.Contains(err.Error(), "none: no such file or directory") {
		t.Errorf("no socket: %v", err)
	}
}

func TestParseURI(t *testing.T) {
	t.Parallel()
	grip := strings.Repeat("0123456789abcdef", 3)[:40]
	for uri, ok := range map[string]bool{
		"gpg:" + grip: true, "GPG:" + strings.ToUpper(grip): true,
		"gpg:": false, "gpg:" + grip[1:]: false, "gpg:" + grip + "0": false, "gpg:" + grip[1:] + "g": false,
		"gpg:me@example.org": false,
	} {
		got, err := ParseURI(uri)
		if ok != (err == nil) || ok && got != strings.ToUpper(grip) {
			t.Errorf("%s: %q, %v", uri, got, err)
		}
	}
}

func TestParseSignature(t *testing.T) {
	t.Parallel()
	digest := bytes.Repeat([]byte{1}, 64)
	for _, algorithm := range []string{"rsa:2048", "ecdsa:p256", "ecdsa:p384", "ecdsa:p521"} {
		key := testmod.NewKey(t, algorithm)
		public, err := parsePublic([]byte(publicOf(t, key.Private.Public())))
		if err != nil || !public.(interface{ Equal(crypto.PublicKey) bool }).Equal(key.Private.Public()) {
			t.Fatalf("%s: %v", algorithm, err)
		}
		// Many, so that some begin with a zero byte, which the agent drops.
		for range testmod.Rounds(300, 50) {
			if key, ok := key.Private.(*rsa.PrivateKey); ok {
				rand.Read(digest)
				s, err := rsa.SignPKCS1v15(nil, key, crypto.SHA512, digest)
				if err != nil {
					t.Fatal(err)
				}
				got, err := parseSignature([]byte("(7:sig-val(3:rsa(1:s"+atom(bytes.TrimLeft(s, "\x00"))+")))"), public)
				if err != nil || !bytes.Equal(got, s) {
					t.Fatalf("%s: %v", algorithm, err)
				}
				continue
			}
			r, s, err := ecdsa.Sign(rand.Reader, key.Private.(*ecdsa.PrivateKey), digest)
			if err != nil {
				t.Fatal(err)
			}
			got, err := parseSignature([]byte("(7:sig-val(5:ecdsa(1:r"+atom(r.Bytes())+")(1:s"+atom(s.Bytes())+")))"), public)
			if err != nil || !cms.Verifies(public, crypto.SHA512, digest, got) {
				t.Fatalf("%s: %v", algorithm, err)
			}
		}
	}
}

// FuzzAnswer reads answers of all kinds.
func FuzzAnswer(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("D " + escape(publicOf(f, key.Public())) + "\nOK closing\n"))
	f.Add([]byte("INQUIRE PINENTRY_LAUNCHED 1\nD (7:sig-val(5:ecdsa(1:r1:x)(1:s1:y)))\nOK\n"))
	f.Add([]byte("D (7:sig-val(3:rsa(1:s2:%25%0A)))\r\nOK\n"))
	f.Add([]byte("S KEYINFO\n# no\nINQUIRE PASSPHRASE\nERR 83886179 Operation cancelled <Pinentry>\n"))
	f.Add([]byte("D ((((((((((((\nOK\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		c := newConn(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(answer), io.Discard}, func() {}, nil)
		data, err := c.call(t.Context(), "PKSIGN")
		if len(data) > maxAnswer {
			t.Errorf("%d bytes of data", len(data))
		}
		if e, ok := err.(*agentError); ok && (e.text == "" || strings.ContainsAny(e.text, "\n\x1b")) {
			t.Errorf("text %q", e.text)
		}
		for _, data := range [][]byte{data, answer} {
			if public, err := parsePublic(data); err == nil {
				_ = cms.Verifies(public, crypto.SHA256, make([]byte, 32), make([]byte, 70))
			}
			for _, public := range []crypto.PublicKey{&key.PublicKey, &rsa.PublicKey{N: key.X, E: 65537}} {
				if signature, err := parseSignature(data, public); err == nil && len(signature) == 0 {
					t.Error("an empty signature")
				}
			}
		}
	})
}
