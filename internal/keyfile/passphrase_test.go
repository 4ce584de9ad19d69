package keyfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPassphrase(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "pass")
	if _, err := Passphrase(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	for content, want := range map[string]string{
		"secret": "secret", "secret\nmore\n": "secret", "\xef\xbb\xbfsecret \r\n": "secret ",
		"": "", "\nsecret": "", strings.Repeat("s", 4096): "", "-----BEGIN KEY-----\n": "",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := Passphrase(path)
		if string(got) != want || (err == nil) != (want != "") {
			t.Errorf("%.20q: %q, %v; want %q", content, got, err, want)
		}
		if err != nil && (!strings.HasPrefix(err.Error(), path+": ") ||
			strings.Contains(err.Error(), "KEY") || strings.Contains(err.Error(), "sss")) {
			t.Errorf("%.20q: %v", content, err)
		}
	}
}
