package testmod

import (
	"os"
	"path/filepath"
	"testing"
)

// OpenSSL35 returns the path of the openssl of Debian 13, which knows ML-DSA, as Debian 12's
// does not. It is beside the system's, in the cache of scripts/openssl.
func OpenSSL35(t testing.TB) string {
	t.Helper()
	cache := os.Getenv("MODSIGN_CACHE")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(dir, "modsign")
	}
	path := filepath.Join(cache, "openssl/trixie/bin/openssl")
	if _, err := os.Stat(path); err != nil {
		Missing(t, "OpenSSL 3.5", "run scripts/openssl")
	}
	return path
}
