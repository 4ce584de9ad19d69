package main

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/keygen"
)

// keyOptions say where the private key is.
type keyOptions struct {
	key            string
	cert           string
	passphraseFile string
	allowInsecure  bool
}

func (o *keyOptions) addFlags(flags *pflag.FlagSet) {
	flags.StringVarP(&o.key, "key", "k", "", "sign with the private key in `FILE` (PEM)")
	flags.StringVarP(&o.cert, "cert", "c", "", "its certificate, in `FILE` (PEM or DER; default: the one in the key's file)")
	flags.StringVar(&o.passphraseFile, "passphrase-file", "", "the passphrase of the key is the first line of `FILE` (else KBUILD_SIGN_PIN, else the terminal is asked)")
	flags.BoolVar(&o.allowInsecure, "allow-insecure-key", false, "take a private key that others can read")
}

func (o *keyOptions) load(ctx context.Context, u *ui) (*keygen.Pair, error) {
	keepSecrets()
	return keygen.Load(o.key, o.cert, keygen.LoadOptions{
		AllowInsecure: o.allowInsecure,
		Passphrase:    func() ([]byte, error) { return o.passphrase(ctx, u) },
	})
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
	b, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return nil, err
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) == 0 {
		return nil, fmt.Errorf("%s: the first line is empty, and should be the passphrase", path)
	}
	return line, nil
}

// signedWith says what modules are signed with.
func signedWith(pair *keygen.Pair, hash crypto.Hash) string {
	return fmt.Sprintf(" with %s and %s, as %q", keygen.KeyName(pair.Certificate.PublicKey), cms.HashName(hash), pair.Certificate.Subject.CommonName)
}

// keepSecrets keeps the memory of this process out of core dumps and from other
// processes of the same user, as far as the system can. It is called before a key
// is in memory.
func keepSecrets() {
	// What fails here was not promised.
	_ = errors.Join(unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0), unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}))
}
