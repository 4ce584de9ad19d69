package machine

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// keyPlaces are where builds of kernels and of modules leave private keys, below the root
// directory; * stands for any name.
var keyPlaces = []string{
	"var/lib/dkms/*.key", "var/lib/dkms/*.priv",
	"var/lib/shim-signed/mok/*.priv", "var/lib/shim-signed/mok/*.key", "var/lib/shim-signed/mok/*.pem",
	"etc/pki/akmods/private/*", "etc/pki/akmods/*.priv",
	"etc/pki/tls/private/*", "etc/pki/*.key", "etc/pki/*.priv", "etc/pki/*.pem",
	"var/lib/sbctl/keys/*/*.key", "usr/share/secureboot/keys/*/*.key", "etc/secureboot/keys/*/*.key",
	"etc/efikeys/*.key", "etc/kernel/*.pem", "etc/kernel/*.key", "etc/kernel/*.priv",
	"root/mok/*", "root/.mok/*", "etc/mok/*", "root/*.priv", "root/*.key", "root/*.pem",
	"usr/src/*/certs/*.pem", "usr/src/*/certs/*.priv", "usr/src/*/certs/*.key", "usr/src/*/signing_key.*",
	"usr/lib/modules/*/build/certs/*.pem", "usr/lib/modules/*/source/certs/*.pem",
	"lib/modules/*/build/certs/*.pem", "lib/modules/*/source/certs/*.pem",
}

// moduleCerts are certificates that programs sign modules with.
var moduleCerts = []struct{ program, cert string }{
	{"DKMS", "var/lib/dkms/mok.pub"},
	{"DKMS", "var/lib/shim-signed/mok/MOK.der"},
	{"akmods", "etc/pki/akmods/certs/public_key.der"},
}

const (
	maxKeys    = 4096    // files that are looked at
	maxKeySize = 1 << 20 // bytes of one
	maxEntries = 1 << 14
	dkmsConfig = "etc/dkms/framework.conf"
)

// expand returns the files below the root directory that a pattern names, as the system's
// links lead.
func (s *system) expand(pattern string) (paths []string, err error) {
	dirs := []string{""}
	for part := range strings.SplitSeq(pattern, "/") {
		var next []string
		for _, dir := range dirs {
			if !strings.Contains(part, "*") {
				next = append(next, path.Join(dir, part))
				continue
			}
			real, resolveErr := s.path(dir)
			if resolveErr != nil {
				continue
			}
			f, openErr := os.Open(real)
			if openErr != nil {
				if os.IsPermission(openErr) {
					err = openErr
				}
				continue
			}
			names, _ := f.Readdirnames(maxEntries)
			f.Close()
			for _, name := range names {
				if ok, _ := path.Match(part, name); ok {
					next = append(next, path.Join(dir, name))
				}
			}
		}
		dirs = next
	}
	return dirs, err
}

// A keyFile is a private key in a file.
type keyFile struct {
	path string
	info fs.FileInfo
	open string // who gets at it besides its owner; empty if nobody
}

// keys finds private keys in the places where builds leave them.
func (s *system) keys(isKey func(path string) (bool, error)) (keys []keyFile, problems []Problem) {
	seen := make(map[string]bool)
	for _, pattern := range append(keyPlaces, s.dkmsSettings().key) {
		files, err := s.expand(strings.TrimPrefix(pattern, "/"))
		if err != nil {
			problems = append(problems, problemOf(err))
		}
		for _, name := range files {
			real, err := s.path(name)
			if err != nil || name == "" || seen[real] || len(seen) == maxKeys {
				continue
			}
			info, err := os.Lstat(real)
			if err != nil || !info.Mode().IsRegular() {
				if os.IsPermission(err) {
					problems = append(problems, problemOf(err))
				}
				continue
			}
			seen[real] = true
			if info.Size() > maxKeySize {
				continue
			}
			found, err := isKey(real)
			if err != nil {
				problems = append(problems, problemOf(err))
			}
			if found {
				keys = append(keys, keyFile{real, info, s.openTo(real, info)})
			}
		}
	}
	return keys, problems
}

func problemOf(err error) Problem {
	var s State
	s.problem("private keys", err)
	return s.Problems[0]
}

// openTo says who gets at a private key besides its owner and its group. Directories count up to
// the root directory of the system.
func (s *system) openTo(file string, info fs.FileInfo) string {
	mode := info.Mode().Perm()
	if mode&0o006 == 0 {
		return ""
	}
	for dir := filepath.Dir(file); ; dir = filepath.Dir(dir) {
		parent, err := os.Stat(dir)
		if err != nil || parent.Mode().Perm()&0o001 == 0 {
			return "" // nobody else gets there
		}
		if dir == filepath.Clean(s.dir) || dir == filepath.Dir(dir) {
			break
		}
	}
	if mode&0o002 != 0 {
		return "every user can write it"
	}
	return "every user can read it"
}

// dkmsKeys are the key and the certificate that DKMS is told to use.
type dkmsKeys struct{ key, cert string }

// dkmsSettings reads mok_signing_key and mok_certificate. A value with a variable of the shell
// is left out.
func (s *system) dkmsSettings() (k dkmsKeys) {
	b, _ := s.read(dkmsConfig)
	for line := range strings.Lines(string(b)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(strings.TrimSpace(value), `"'`)
		if !ok || strings.HasPrefix(name, "#") || strings.ContainsAny(value, "$*`") {
			continue
		}
		switch name {
		case "mok_signing_key":
			k.key = value
		case "mok_certificate":
			k.cert = value
		}
	}
	return k
}

// A moduleCert is a certificate that a program signs modules with.
type moduleCert struct {
	program, path string
	ders          [][]byte
}

// moduleCerts finds the certificates that programs sign modules with.
func (s *system) moduleCerts(load func(path string) ([][]byte, error)) (certs []moduleCert, problems []Problem) {
	places := moduleCerts
	if cert := s.dkmsSettings().cert; cert != "" {
		places = append([]struct{ program, cert string }{{"DKMS", strings.TrimPrefix(cert, "/")}}, places[1:]...)
	}
	for _, place := range places {
		real, err := s.path(place.cert)
		if err != nil {
			continue
		}
		info, err := os.Stat(real)
		if err != nil || !info.Mode().IsRegular() {
			if os.IsPermission(err) {
				problems = append(problems, problemOf(err))
			}
			continue
		}
		ders, err := load(real)
		if err != nil {
			problems = append(problems, Problem{real, fmt.Errorf("%w", cmp.Or(err, fs.ErrInvalid))})
			continue
		}
		certs = append(certs, moduleCert{place.program, real, ders})
	}
	return certs, problems
}
