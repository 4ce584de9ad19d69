package kbuildrun

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"strings"

	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/keygen/agent"
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

// holdKey has an agent hold the key of a token, unless one does, for a make that calls
// sign-file once for each module. The result ends that agent.
func (d *Driver) holdKey(ctx context.Context) (release func() error, err error) {
	nothing := func() error { return nil }
	tree, err := d.tree()
	if err != nil {
		return nil, err
	}
	key := tree.Config.SigKey()
	if d.idle() || !keystore.IsURI(key) || !signs(tree.Config, true) {
		return nothing, nil
	}
	if keystore.Redact(key) != key {
		return nil, errors.New("CONFIG_MODULE_SIG_KEY has a PIN, and a package is made with the key in an agent, " +
			"in whose arguments everybody could read it: take it out, and set KBUILD_SIGN_PIN")
	}
	if held := HeldFor(d.Objtree, d.path(tokenCertificate)); held != nil {
		return nothing, held.Close()
	}
	wanted := Agent{Dir: d.path(Dir), Tree: d.Objtree, Lifetime: d.Lifetime, Key: key}
	client, said, err := wanted.Hold(ctx, d.System.Environ, d.System.PIN)
	if failed, ok := errors.AsType[*agent.StartError](err); ok {
		return nil, saidBy(failed)
	}
	if err != nil {
		return nil, err
	}
	for _, line := range said {
		d.Front.Note("%s", strings.TrimPrefix(line, "modsign: "))
	}
	return func() error {
		defer client.Close()
		err := client.Forget()
		if _, gone := errors.AsType[*agent.UnavailableError](err); gone {
			return nil // sign-file has said so
		}
		return err
	}, nil
}
