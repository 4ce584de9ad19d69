package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/keyfile"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/keygen/agent"
	"github.com/modsign/modsign/sign"
)

// keyOptions say where the private key is.
type keyOptions struct {
	key            string
	cert           string
	passphraseFile string
	allowInsecure  bool

	notes []string // what load has said
}

func (o *keyOptions) addFlags(flags *pflag.FlagSet) {
	flags.StringVarP(&o.key, "key", "k", "", "sign with the private key in `FILE` (PEM)")
	flags.StringVarP(&o.cert, "cert", "c", "", "its certificate, in `FILE` (PEM or DER; default: the one in the key's file)")
	flags.StringVar(&o.passphraseFile, "passphrase-file", "", "the passphrase of the key is the first line of `FILE` (else KBUILD_SIGN_PIN, else the terminal is asked)")
	flags.BoolVar(&o.allowInsecure, "allow-insecure-key", false, "take a private key that others can read")
}

func (o *keyOptions) load(ctx context.Context, u *ui) (*keygen.Pair, error) {
	keepSecrets()
	pair, err := keygen.Load(o.key, o.cert, keygen.LoadOptions{
		AllowInsecure: o.allowInsecure,
		KeyOf:         agent.KeyOf,
		Passphrase:    func() ([]byte, error) { return o.passphrase(ctx, u) },
		Note: func(note string) {
			o.notes = append(o.notes, note)
			u.note("%s", note)
		},
	})
	return pair, nameInsecureFlag(err)
}

// newSigner returns what signs with a key and its certificate. Its errors are about
// the certificate, of which the file is given.
func newSigner(pair *keygen.Pair, certFile string, hash crypto.Hash, keyID bool) (*sign.Signer, error) {
	signer, err := sign.NewSigner(pair.Signer, pair.Certificate, sign.SignerOptions{Hash: hash, UseKeyID: keyID})
	if err != nil && certFile != "" {
		return nil, fmt.Errorf("%s: %w", certFile, err)
	}
	return signer, err
}

// certFile is the file of the certificate.
func (o *keyOptions) certFile() string { return cmp.Or(o.cert, o.key) }

// refuseUnloadable refuses a certificate with which no kernel will verify what is
// signed, for the modules of one that is installed: it can be enrolled nowhere, and
// the next run may skip the modules because they are signed.
func refuseUnloadable(path string, cert *x509.Certificate) error {
	if err := cms.Loadable(cert.Raw); err != nil {
		return withHint(fmt.Errorf("%s: no kernel loads this certificate: %w", path, err), "modsign keygen makes one that kernels load")
	}
	return nil
}

// warnUnloadable says that no kernel will verify what is signed with a certificate.
// To sign with it is no error: sign-file does, and the kernel may be another one. It
// returns what it says, for the summary in JSON.
func warnUnloadable(u *ui, path string, cert *x509.Certificate) []string {
	err := cms.Loadable(cert.Raw)
	if err == nil {
		return nil
	}
	warning := fmt.Sprintf("warning: %s: no kernel loads this certificate: %v", path, err)
	u.note("%s", warning)
	return []string{warning}
}

// passphrase is asked for when a key turns out to need one.
func (o *keyOptions) passphrase(ctx context.Context, u *ui) ([]byte, error) {
	if o.passphraseFile != "" {
		return passphraseFrom(o.passphraseFile)
	}
	if pin, err := buildPIN(); err == nil {
		return pin, nil
	}
	stdin, ok := u.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(stdin.Fd())) {
		return nil, keygen.ErrNoPassphrase
	}
	fmt.Fprintf(u.stderr, "Passphrase for %s: ", printable(o.key))
	defer fmt.Fprintln(u.stderr)
	return readPassphrase(ctx, int(stdin.Fd()))
}

// buildPIN is the passphrase of a kernel's build, which asks nobody.
func buildPIN() ([]byte, error) {
	if pin, ok := os.LookupEnv("KBUILD_SIGN_PIN"); ok {
		return []byte(pin), nil
	}
	return nil, keygen.ErrNoPassphrase
}

// readPassphrase reads a line from a terminal that does not show it. An interrupt
// ends it, and leaves the terminal as it was.
func readPassphrase(ctx context.Context, fd int) ([]byte, error) {
	before, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	type answer struct {
		passphrase []byte
		err        error
	}
	answers := make(chan answer, 1)
	go func() {
		passphrase, err := term.ReadPassword(fd)
		answers <- answer{passphrase, err}
	}()
	select {
	case a := <-answers:
		return a.passphrase, a.err
	case <-ctx.Done():
		return nil, errors.Join(context.Cause(ctx), term.Restore(fd, before))
	}
}

// passphraseFrom reads the first line of a file, which may be a pipe.
func passphraseFrom(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, errors.New(describe(path, err)) // not to be taken for one about the key's file
	}
	defer f.Close()
	const limit = 4096
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, errors.New(describe(path, err))
	}
	line, _, _ := bytes.Cut(keyfile.TrimBOM(b), []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	switch {
	case len(line) == 0:
		return nil, fmt.Errorf("%s: the first line is empty, and should be the passphrase", path)
	case len(line) >= limit:
		return nil, fmt.Errorf("%s: the first line has %d bytes or more, and should be the passphrase", path, limit)
	case bytes.HasPrefix(line, []byte("-----BEGIN ")):
		return nil, fmt.Errorf("%s: file is PEM, and its first line should be the passphrase", path)
	}
	return line, nil
}

// signedWith says what modules are signed with.
func signedWith(cert *x509.Certificate, hash crypto.Hash) string {
	return fmt.Sprintf(" with %s and %s, as %q", keygen.KeyName(cert.PublicKey), cms.HashName(hash), cert.Subject.CommonName)
}

// keepSecrets keeps the memory of this process out of core dumps and from other
// processes of the same user, as far as the system can. It is called before a key
// is in memory.
func keepSecrets() {
	// What fails here was not promised.
	_ = errors.Join(unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0), unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}))
}
