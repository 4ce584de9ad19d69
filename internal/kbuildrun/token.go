package kbuildrun

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"

	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/keygen/keystore"
)

// storedCertificate sees to it that the certificate of a key in a token is in the tree, and
// returns the variables that lead Kbuild to it. Kbuild itself would read the token with a
// part of OpenSSL that a machine may lack. The token is read again when the configuration
// names another key, and after make clean.
func (d *Driver) storedCertificate(ctx context.Context, tree *kbuild.Tree) (overrides []string, err error) {
	key := tree.Config.SigKey()
	file := ownFile{d.Objtree, tokenCertificate}
	begin := []byte("Certificate of " + keystore.Redact(key) + "\n")
	overrides = []string{"CONFIG_MODULE_SIG_KEY=" + tokenCertificate}
	old, err := file.read()
	if err := unlessMissing(err); err != nil {
		return nil, err
	}
	if bytes.HasPrefix(old, begin) || d.idle() && old != nil {
		return overrides, nil
	}
	if d.idle() {
		return nil, nil
	}
	pair, err := d.System.LoadKey(ctx, key, "")
	if errors.Is(err, keygen.ErrNoCertificate) {
		return nil, &HintError{err, "put the certificate into the token, with the CKA_ID of the key"}
	}
	if err != nil {
		return nil, err
	}
	if err := pair.Close(); err != nil {
		return nil, err
	}
	block := &pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate.Raw}
	return overrides, file.write(string(append(begin, pem.EncodeToMemory(block)...)), 0o666)
}
