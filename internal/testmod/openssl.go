package testmod

import (
	"os"
	"path/filepath"
	"testing"
)

// FirstInPath returns the variable PATH for a child, with a directory before all others.
func FirstInPath(dir string) string {
	return "PATH=" + dir + string(os.PathListSeparator) + os.Getenv("PATH")
}

// OpenSSL35 returns the path of the program openssl of Debian 13, which knows ML-DSA.
// scripts/openssl has fetched it. Its directory can stand first in PATH.
func OpenSSL35(t testing.TB) string {
	t.Helper()
	cache, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cache, "openssl", "trixie", "bin", "openssl")
	if _, err := os.Stat(path); err != nil {
		Missing(t, "OpenSSL 3.5", "run scripts/openssl")
	}
	return path
}
