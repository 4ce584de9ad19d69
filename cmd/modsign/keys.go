package main

import (
	"cmp"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/spf13/pflag"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/keyfile"
	"github.com/modsign/modsign/internal/rsabatch"
	"github.com/modsign/modsign/internal/undump"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/keygen/agent"
	"github.com/modsign/modsign/keygen/keystore"
	"github.com/modsign/modsign/sign"
)

// keyOptions are the flags about the private key.
type keyOptions struct {
	key            string
	cert           string
	passphraseFile string
	allowInsecure  bool
	rsa            string // how RSA signs: see addRSA
	lists          bool   // what is signed is no module

	notes notes // the remarks about the key
}

// notes are remarks of several goroutines.
type notes struct {
	mu    sync.Mutex
	texts []string
}

func (n *notes) add(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.texts = append(n.texts, text)
}

// all returns the notes so far.
func (n *notes) all() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.texts)
}

func (o *keyOptions) addFlags(flags *pflag.FlagSet) {
	flags.StringVarP(&o.key, "key", "k", "", "sign with the private key in `FILE` (PEM), or by its URI")
	flags.StringVarP(&o.cert, "cert", "c", "", "certificate `FILE`, PEM or DER (default: the key's file)")
	flags.StringVar(&o.passphraseFile, "passphrase-file", "",
		"passphrase in line 1 of `FILE` (else KBUILD_SIGN_PIN or prompt)")
	flags.BoolVar(&o.allowInsecure, "allow-insecure-key", false, "accept a private key that others can access")
}

// addRSA adds the flag for commands that sign many modules.
func (o *keyOptions) addRSA(flags *pflag.FlagSet) {
	addChoice(flags, &o.rsa, "rsa", "single", "sign with RSA by `METHOD`: single (default) or batch")
}

// inBatches returns a key that signs as --rsa batch says. Where it cannot, it says why, and
// returns the key itself.
func inBatches(u *ui, key crypto.Signer) crypto.Signer {
	if _, ok := key.(interface{ BatchSize() int }); ok { // an agent's
		return key
	}
	single, _ := key.(*rsa.PrivateKey)
	batch, err := rsabatch.New(single, warning(u))
	if err != nil {
		u.Note("--rsa batch: %v: signing one module at a time", err)
		return key
	}
	return batch
}

// warning is for packages that have something to say.
func warning(u *ui) func(string) { return func(text string) { u.Note("warning: %s", text) } }

func (o *keyOptions) load(ctx context.Context, u *ui) (*keygen.Pair, error) {
	keepSecrets()
	if belongsToModules(o.key) && !keystore.IsURI(o.key) {
		return nil, usagef("--key: %s has the name of a file of modules, which signing replaces: rename the key", o.key)
	}
	batch, err := choice("rsa", cmp.Or(o.rsa, "single"), "single", "batch")
	if err != nil {
		return nil, err
	}
	pair, err := loadKey(ctx, o.key, o.cert, keygen.LoadOptions{
		AllowInsecure: o.allowInsecure,
		KeyOf:         o.keyOf(),
		Passphrase:    func() ([]byte, error) { return o.passphrase(ctx, u, o.key) },
		Note: func(note string) {
			o.notes.add(note)
			u.Note("%s", note)
		},
	})
	if err != nil {
		return nil, nameInsecureFlag(err)
	}
	if batch {
		pair.Signer = inBatches(u, pair.Signer)
	}
	return pair, nil
}

// keyOf leads from a certificate to its agent, whose key signs modules alone, as its receipt
// promises.
func (o *keyOptions) keyOf() func(string, *x509.Certificate) (crypto.Signer, error) {
	if !o.lists {
		return agent.KeyOf
	}
	return func(path string, cert *x509.Certificate) (crypto.Signer, error) {
		if key, err := agent.KeyOf(path, cert); key == nil || err != nil {
			return nil, err
		}
		return nil, errors.New("a key agent signs modules alone")
	}
}

// loadKey loads a key from its file or, if it has a URI, opens it until ctx ends. Both take
// the options that they know.
func loadKey(ctx context.Context, key, cert string, o keygen.LoadOptions) (_ *keygen.Pair, err error) {
	defer func() {
		if err != nil && ctx.Err() != nil { // no fault of the key's
			err = context.Cause(ctx)
		}
	}()
	if !keystore.IsURI(key) {
		o.OpenTPM = keystore.TPM(ctx, os.LookupEnv)
		return keygen.Load(key, cert, o)
	}
	options := keystore.Options{PIN: o.Passphrase, LookupEnv: os.LookupEnv, Environ: os.Environ(), Note: o.Note}
	if cert != "" {
		certs, err := keygen.LoadCertificates(cert)
		if err != nil {
			return nil, err
		}
		options.Certificate = certs[0]
	}
	opened, err := keystore.Open(ctx, key, options)
	if err != nil {
		return nil, err
	}
	return &keygen.Pair{Signer: opened, Certificate: opened.Certificate()}, nil
}

// closeKey closes a key at the end of a command, whose error it may be.
func closeKey(pair *keygen.Pair, err *error) {
	if closing := pair.Close(); *err == nil {
		*err = closing
	}
}

// newSigner returns the signer for a key and its certificate. Its errors name certFile.
func newSigner(pair *keygen.Pair, certFile string, o sign.SignerOptions) (*sign.Signer, error) {
	signer, err := sign.NewSigner(pair.Signer, pair.Certificate, o)
	if err != nil && certFile != "" {
		return nil, fmt.Errorf("%s: %w", certFile, err)
	}
	return signer, err
}

// certFile returns the name of the certificate's file.
func (o *keyOptions) certFile() string { return cmp.Or(o.cert, keystore.Redact(o.key)) }

// refuseUnloadable refuses a certificate that no kernel loads, for the modules of an
// installed kernel: it can be enrolled nowhere, and the next run may skip the modules
// because they are signed.
func refuseUnloadable(path string, cert *x509.Certificate) error {
	if err := cms.Loadable(cert.Raw); err != nil {
		return withHint(fmt.Errorf("%s: no kernel loads this certificate: %w", path, err),
			"modsign keygen makes one that kernels load")
	}
	return nil
}

// warnUnloadable warns of a certificate that no kernel loads. It is not an error:
// sign-file signs with it, and the kernel may be another one. The result is the warning,
// for the summary in JSON.
func warnUnloadable(u *ui, path string, cert *x509.Certificate) []string {
	err := cms.Loadable(cert.Raw)
	if err == nil {
		return nil
	}
	warning := fmt.Sprintf("warning: %s: no kernel loads this certificate: %v", path, err)
	u.Note("%s", warning)
	return []string{warning}
}

// passphrase returns the passphrase of the key in a file.
func (o *keyOptions) passphrase(ctx context.Context, u *ui, key string) ([]byte, error) {
	if o.passphraseFile != "" {
		passphrase, err := keyfile.Passphrase(o.passphraseFile)
		if err != nil {
			err = errors.New(describe(o.passphraseFile, err)) // not to be taken for one about the key's file
		}
		return passphrase, err
	}
	if pin, err := buildPIN(); err == nil {
		return pin, nil
	}
	if !u.Asks() {
		return nil, keygen.ErrNoPassphrase
	}
	what := "Passphrase"
	if keystore.IsURI(key) {
		what = "PIN"
	}
	return u.Passphrase(ctx, what+" for "+keystore.Redact(key)+":")
}

// buildPIN returns the passphrase of a kernel's build, which does not prompt.
func buildPIN() ([]byte, error) {
	if pin, ok := os.LookupEnv("KBUILD_SIGN_PIN"); ok {
		return []byte(pin), nil
	}
	return nil, keygen.ErrNoPassphrase
}

// signedWith describes what modules are signed with. hash is 0 if none counts.
func signedWith(cert *x509.Certificate, hash crypto.Hash) string {
	and := ""
	if hash != 0 && !cms.IsMu(hash) {
		and = " and " + cms.HashName(hash)
	}
	return fmt.Sprintf(" with %s%s, as %q", keygen.KeyName(cert.PublicKey), and, cert.Subject.CommonName)
}

// keepSecrets keeps the memory of this process out of core dumps and from other
// processes of the same user, as far as the system can. Call it before a key is in
// memory.
func keepSecrets() { _ = undump.Close() } // best effort: nothing is promised
