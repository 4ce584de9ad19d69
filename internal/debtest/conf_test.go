package debtest

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// config runs a hook's parser on a setting in a modsign.conf.
func config(t testing.TB, conf, name string) result {
	t.Helper()
	root := t.TempDir()
	write(t, filepath.Join(root, "etc/modsign/modsign.conf"), 0o600, conf)
	return run(t, hookEnvironment(root), "", filepath.Join(scripts, "hooks/hook"), "config", name)
}

// A configuration may contain a passphrase or a key by mistake. No message shows its
// content.
func TestHooksShowNoSecret(t *testing.T) {
	testmod.Slow(t, "it runs the hooks with every kind of mistake")
	t.Parallel()
	const secret = "c0rrect/h0rse"
	for line, want := range map[string]string{
		secret + "=yes":              "unknown setting",
		secret + "==":                "unknown setting",
		secret:                       "not NAME=VALUE",
		"sign=" + secret:             "sign: yes or no",
		"on_failure=" + secret:       "on_failure: warn or fail",
		"hash=" + secret:             "hash: the name of a hash",
		"hash=sha256" + secret:       "hash: the name of a hash",
		"key=" + secret:              "key: the full path",
		"cert=" + secret:             "cert: the full path",
		"trust=" + secret:            "trust: the full path",
		"passphrase_file=" + secret:  "passphrase_file: the full path",
		"passphrase_file='" + secret: "passphrase_file: the value must not be quoted",
	} {
		r := config(t, "sign=no\n"+line+"\n", "sign")
		r.want(t, 1, "line 2: "+want)
		if strings.Contains(r.output, "c0rrect") || strings.Contains(r.output, "h0rse") {
			t.Errorf("%s: the secret is shown:\n%s", line, r.output)
		}
	}

	key, _ := testmod.NewKey(t, "rsa:2048").Files(t)
	r := config(t, string(read(t, key)), "sign")
	r.want(t, 1, "line 2: ")
	for i, line := range bytes.Split(bytes.TrimSpace(read(t, key)), []byte("\n")) {
		if word := string(line[:min(len(line), 12)]); strings.Contains(r.output, word) {
			t.Errorf("line %d of the key is shown:\n%s", i+1, r.output)
		}
	}
}

func TestHooksHashNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "sha1", "SHA256", "sha2-384", "RSA-SHA512", "sha3-256", "2.16.840.1.101.3.4.2.10"} {
		if r := config(t, "hash="+name+"\n", "hash"); r.code != 0 || r.output != name+"\n" {
			t.Errorf("hash=%s is read as %q (exit code %d)", name, r.output, r.code)
		}
	}
}

// Some editors put a byte order mark before the first setting.
func TestHooksByteOrderMark(t *testing.T) {
	t.Parallel()
	for _, conf := range []string{"\ufeffhash=sha384\n", "\ufeff# comment\r\nhash=sha384\r\n", "\ufeff\nhash=sha384"} {
		if r := config(t, conf, "hash"); r.code != 0 || r.output != "sha384\n" {
			t.Errorf("%q is read as %q (exit code %d)", conf, r.output, r.code)
		}
	}
}
