//go:build kerneltest

package kerneltest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"filippo.io/mldsa"
	mldsax509 "filippo.io/mldsa/x509"
)

// privateKeys returns the files below the directories that contain a private key: PEM,
// or the DER of PKCS #8, PKCS #1 or SEC 1 at any offset. It ignores files with several
// names: they belong to the source, and a copy shares them.
func privateKeys(t testing.TB, dirs ...string) []string {
	t.Helper()
	var found []string
	files := 0
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			info, err := d.Info()
			if err != nil || info.Sys().(*syscall.Stat_t).Nlink > 1 {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			files++
			if holdsPrivateKey(b) {
				found = append(found, path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if files == 0 {
		t.Fatalf("no files in %q", dirs)
	}
	return found
}

func holdsPrivateKey(b []byte) bool {
	if bytes.Contains(b, []byte("PRIVATE KEY-----\n")) && bytes.Contains(b, []byte("-----BEGIN ")) {
		return true
	}
	// A SEQUENCE that begins with a version: the INTEGER 0 or 1.
	for at := 0; ; at++ {
		next := bytes.Index(b[at:], []byte{0x02, 0x01})
		if next < 0 {
			return false
		}
		at += next
		if at+2 >= len(b) || b[at+2] > 1 {
			continue
		}
		for _, header := range []int{2, 3, 4} { // short length, or one or two length bytes
			if at < header || b[at-header] != 0x30 {
				continue
			}
			length := int(b[at-header+1])
			switch {
			case header == 2 && length >= 0x80, header > 2 && length != 0x80+header-2:
				continue
			case header == 3:
				length = int(b[at-1])
			case header == 4:
				length = int(b[at-2])<<8 | int(b[at-1])
			}
			if at+length <= len(b) && isPrivateKey(b[at-header:at+length]) {
				return true
			}
		}
	}
}

func isPrivateKey(der []byte) bool {
	if _, err := mldsax509.ParsePKCS8PrivateKey(der); err == nil { // of ML-DSA, or any other
		return true
	}
	if _, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return true
	}
	_, err := x509.ParseECPrivateKey(der)
	return err == nil
}

// TestPrivateKeysFound checks that the search finds planted keys.
func TestPrivateKeysFound(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	lattice, err := mldsa.GenerateKey(mldsa.MLDSA65())
	if err != nil {
		t.Fatal(err)
	}
	encode := func(der []byte, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	pkcs8 := encode(x509.MarshalPKCS8PrivateKey(rsaKey))
	for name, key := range map[string][]byte{
		"PKCS #8, RSA": pkcs8,
		"PKCS #8, EC":  encode(x509.MarshalPKCS8PrivateKey(ec)),
		"PKCS #1":      x509.MarshalPKCS1PrivateKey(rsaKey),
		"ML-DSA":       encode(mldsax509.MarshalPKCS8PrivateKey(lattice)),
		"SEC 1":        encode(x509.MarshalECPrivateKey(ec)),
		"PEM":          pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "vmlinux")
		noise := bytes.Repeat([]byte{0x02, 0x01, 0x00, 0x30, 0x82}, 1000)
		for _, planted := range []bool{true, false} {
			text := bytes.Clone(noise)
			if planted {
				text = append(append(text, key...), noise...)
			}
			if err := os.WriteFile(path, text, 0o644); err != nil {
				t.Fatal(err)
			}
			if found := privateKeys(t, dir); (len(found) == 1) != planted {
				t.Errorf("%s planted: %v, found: %v", name, planted, found)
			}
		}
	}
}
