package keystore

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"

	"github.com/modsign/modsign/internal/childenv"
	"github.com/modsign/modsign/internal/pkcs11"
	"github.com/modsign/modsign/keygen"
)

// openPKCS11 opens a key in a PKCS #11 token.
func openPKCS11(ctx context.Context, uri string, o Options) (storedKey, error) {
	u, err := pkcs11.ParseURI(uri)
	if err != nil {
		return nil, err
	}
	server, _ := o.LookupEnv("P11_KIT_SERVER_ADDRESS")
	module, _ := o.LookupEnv("PKCS11_MODULE_PATH") // as for OpenSSL's engine
	searchPath, _ := o.LookupEnv("PATH")
	key, err := pkcs11.Open(ctx, u, pkcs11.Config{
		Program:       findProgram("p11-kit", searchPath),
		Environ:       childenv.WithoutPIN(o.Environ),
		ServerAddress: server,
		ModulePath:    module,
		Certificate:   o.Certificate,
		PIN:           o.PIN,
		Note:          o.Note,
	})
	if errors.Is(err, pkcs11.ErrNoPIN) || errors.Is(err, keygen.ErrNoPassphrase) {
		err = reasonError{pkcs11.ErrNoPIN.Error(), keygen.ErrNoPassphrase}
	}
	if err != nil {
		return nil, err // not a nil key in an interface
	}
	if o.Certificate == nil && key.Certificate() == nil {
		key.Close()
		return nil, reasonError{"the token has no certificate of the key", keygen.ErrNoCertificate}
	}
	return key, nil
}

// findProgram returns the absolute path of a program, or nothing.
func findProgram(name, searchPath string) string {
	for _, dir := range filepath.SplitList(searchPath) {
		if !filepath.IsAbs(dir) {
			continue // as os/exec, nothing from where the user happens to be
		}
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	return ""
}
