package explain

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/keyfile"
	"github.com/modsign/modsign/internal/module"
)

// MachineKeys returns the keys that DKMS, akmods, shim's tools of Debian and Ubuntu, sbctl and
// a build of the kernel leave on a machine, and those that the commands of this package make,
// as far as the files exist below root. release is
// that of a kernel, whose build directory may have its key.
func MachineKeys(root, release string) []KeyPair {
	if root == "" {
		root = "/"
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return nil
	}
	in, err := module.NewRoot(root)
	if err != nil {
		return nil
	}
	resolve := func(name string) string {
		path := filepath.Join(root, name)
		if in == nil {
			return path
		}
		if path, err = in.Resolve(name); err != nil {
			return ""
		}
		return path
	}
	build := filepath.Join("lib/modules", release, "build/certs")
	var found []KeyPair
	for _, pair := range []KeyPair{
		{"var/lib/dkms/mok.key", "var/lib/dkms/mok.pub"},
		{"var/lib/shim-signed/mok/MOK.priv", "var/lib/shim-signed/mok/MOK.der"},
		{"etc/pki/akmods/private/private_key.priv", "etc/pki/akmods/certs/public_key.der"},
		{"var/lib/sbctl/keys/db/db.key", "var/lib/sbctl/keys/db/db.pem"},
		{"usr/share/secureboot/keys/db/db.key", "usr/share/secureboot/keys/db/db.pem"},
		{filepath.Join(build, "signing_key.pem"), filepath.Join(build, "signing_key.x509")},
		newKey, newAuthority,
	} {
		pair.Key, pair.Cert = resolve(pair.Key), resolve(pair.Cert)
		if isFile(pair.Key) && isFile(pair.Cert) {
			found = append(found, pair)
		}
	}
	for _, pair := range []KeyPair{newKey, newAuthority} { // commands make them here
		if !slices.Contains(found, pair) && isFile(pair.Key) && isFile(pair.Cert) {
			found = append(found, pair)
		}
	}
	return found
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// pair is a KeyPair with its certificate.
type pair struct {
	KeyPair
	cert    *cms.Certificate
	trusted bool // the kernel verifies modules with it
}

// openPairs reads the certificates of the keys on this machine.
func (k *Kernel) openPairs() {
	for _, p := range k.KeyPairs {
		cert, err := readCertificate(p.Cert)
		if err != nil {
			k.note("the commands leave the key %s out: %v", p.Key, err)
			continue
		}
		k.pairs = append(k.pairs, pair{p, cert, k.Keys.Holds(cert.Raw)})
	}
}

// readCertificate reads the first certificate of a file, PEM or DER.
func readCertificate(path string) (*cms.Certificate, error) {
	b, err := keyfile.Read(path)
	if err != nil {
		return nil, err
	}
	if len(b) == 0 || b[0] != 0x30 {
		found := false
		for block := range keyfile.Blocks(b) {
			if !block.IsCertificate() {
				continue
			}
			decoded, err := block.Decode()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			b, found = decoded.Bytes, true
			break
		}
		if !found {
			return nil, fmt.Errorf("%s has no certificate", path)
		}
	}
	cert, err := cms.ParseCertificate(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return cert, nil
}

// signingPair returns a key with which the kernel would take modules.
func (k *Kernel) signingPair() (pair, bool) {
	for _, p := range k.pairs {
		if p.trusted {
			return p, true
		}
	}
	return pair{}, false
}
