package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/detached"
	"github.com/modsign/modsign/keygen"
)

// The signature of a list lies beside it, under the names that gpg and openssl people
// give theirs.
const (
	openPGPSuffix = ".asc"
	cmsSuffix     = ".p7s"
)

type hashlistSignOptions struct {
	keyOptions
	openPGP string
	output  string
}

func newHashlistSignCommand(u *ui) *cobra.Command {
	var o hashlistSignOptions
	cmd := &cobra.Command{
		Use:   "sign LIST {--openpgp-key FILE | --key FILE}",
		Short: "Sign a hash list",
		Long: `Sign makes a signature of a hash list, in a file of its own, by which people know
whose list it is. The kernel does not look at it.

With an OpenPGP key it writes LIST.asc, which modsign hashlist check, gpg --verify and
gpgv check. The key is in a file, as gpg --export-secret-keys writes it. With a key
that signs modules, or another in PEM with its certificate, it writes LIST.p7s, a CMS
message in DER for hashlist check and openssl cms -verify.

What is not a whole hash list is not signed.`,
		Example: `  modsign hashlist sign hashes --openpgp-key release.asc
  gpg --verify hashes.asc hashes
  modsign hashlist sign hashes --key signing_key.pem
  openssl cms -verify -binary -inform DER -in hashes.p7s -content hashes -CAfile cert.pem -out /dev/null`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&o.openPGP, "openpgp-key", "", "sign with the OpenPGP key in `FILE`")
	o.keyOptions.addFlags(flags)
	flags.StringVarP(&o.output, "output", "o", "", "write the signature to `FILE` (default: LIST.asc or LIST.p7s)")
	flags.BoolVarP(&u.quiet, "quiet", "q", false, "say nothing but errors")
	return cmd
}

func (o *hashlistSignOptions) run(ctx context.Context, u *ui, args []string) error {
	switch {
	case len(args) != 1:
		return usagef("which list? Give one")
	case o.openPGP == "" && o.key == "":
		return usagef("no key: give --openpgp-key FILE or --key FILE")
	case o.openPGP != "" && o.key != "":
		return usagef("--openpgp-key and --key: a signature is by one of them")
	case o.openPGP != "" && o.cert != "":
		return usagef("--cert goes with --key: an OpenPGP key has none")
	}
	path := args[0]
	data, err := readLimited(path)
	if err != nil {
		return err
	}
	list, err := hashlist.Parse(bytes.NewReader(data))
	if err != nil {
		return withHint(fmt.Errorf("%s: %w", path, err), "nothing is signed: have modsign hashlist build write it anew")
	}
	sign, output := o.signCMS, path+cmsSuffix
	if o.openPGP != "" {
		sign, output = o.signOpenPGP, path+openPGPSuffix
	}
	if o.output != "" {
		output = o.output
	}
	signature, name, err := sign(ctx, u, data)
	if err != nil {
		return err
	}
	u.beginAt(output)
	if err := atomicfile.WriteOutput(output, signature, true); err != nil {
		return err
	}
	u.note("signed %s, as %q: %s", listOf(list), name, output)
	return nil
}

// signOpenPGP returns the signature, and whose it is.
func (o *hashlistSignOptions) signOpenPGP(ctx context.Context, u *ui, data []byte) ([]byte, string, error) {
	keepSecrets()
	private, err := keygen.ReadPrivate(o.openPGP, keygen.LoadOptions{AllowInsecure: o.allowInsecure})
	if err != nil {
		return nil, "", nameInsecureFlag(err)
	}
	now := time.Now()
	key, err := detached.ParseSecretKey(private, now)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", o.openPGP, err)
	}
	options := o.keyOptions
	options.key = o.openPGP // which is asked for
	signature, err := key.Sign(data, now, func() ([]byte, error) { return options.passphrase(ctx, u) })
	switch {
	case errors.Is(err, keygen.ErrNoPassphrase):
		return nil, "", withHint(fmt.Errorf("%s: %w", o.openPGP, err), "set KBUILD_SIGN_PIN, use --passphrase-file, or run on a terminal to be asked")
	case err != nil:
		return nil, "", fmt.Errorf("%s: %w", o.openPGP, err)
	}
	return signature, key.Name(), nil
}

func (o *hashlistSignOptions) signCMS(ctx context.Context, u *ui, data []byte) ([]byte, string, error) {
	pair, err := o.load(ctx, u)
	if err != nil {
		return nil, "", err
	}
	signature, err := detached.SignCMS(data, pair.Signer, pair.Certificate)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", o.key, err)
	}
	return signature, pair.Certificate.Subject.CommonName, nil
}

type hashlistCheckOptions struct {
	keyring string
	certs   []string
}

func newHashlistCheckCommand(u *ui) *cobra.Command {
	var o hashlistCheckOptions
	cmd := &cobra.Command{
		Use:   "check LIST [SIGNATURE] {--keyring FILE | --cert FILE...}",
		Short: "Check the signature of a hash list",
		Long: `Check tells who has signed a hash list, and of which kernel it is: with --keyring by
an OpenPGP signature (LIST.asc, unless it is named), with --cert by a CMS message
(LIST.p7s). It takes what modsign hashlist sign, gpg --detach-sign, and openssl cms
-sign -binary -outform DER have made, of one signer.

It refuses a list that was changed since, a signer who is not known, and a key or
certificate that had expired when it signed, or has since, or is revoked. The modules
are another matter: see modsign hashlist verify.`,
		Example: `  gpg --export --armor release@example.org > release.asc
  modsign hashlist check hashes --keyring release.asc
  modsign hashlist check hashes --cert signing_key.x509 && modsign hashlist verify --list hashes TREE`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&o.keyring, "keyring", "", "trust the OpenPGP keys in `FILE`, as gpg --export writes them")
	flags.StringArrayVarP(&o.certs, "cert", "c", nil, "trust the certificates in `FILE`, and of those that are CAs what they have issued (PEM or DER, any number; may be repeated)")
	flags.BoolVarP(&u.quiet, "quiet", "q", false, "say nothing but errors")
	return cmd
}

func (o *hashlistCheckOptions) run(u *ui, args []string) error {
	switch {
	case len(args) == 0:
		return usagef("which list? Give it, and its signature if that is not LIST%s or LIST%s", openPGPSuffix, cmsSuffix)
	case len(args) > 2:
		return usagef("one list at a time, with one signature: %q is too much", args[2])
	case o.keyring == "" && len(o.certs) == 0:
		return usagef("whom to trust? Give --keyring FILE or --cert FILE")
	case o.keyring != "" && len(o.certs) > 0:
		return usagef("--keyring is for OpenPGP signatures, and --cert for CMS: give one of them")
	}
	path, signature := args[0], args[0]+cmsSuffix
	if o.keyring != "" {
		signature = path + openPGPSuffix
	}
	if len(args) == 2 {
		signature = args[1]
	}
	check, err := o.trust()
	if err != nil {
		return err
	}
	data, err := readLimited(path)
	if err != nil {
		return err
	}
	signed, err := readLimited(signature)
	if err != nil {
		return err
	}
	signer, err := check(data, signed, time.Now())
	if err != nil {
		return &failure{code: exitRefused, err: fmt.Errorf("%s: %w", signature, err)}
	}
	list, err := hashlist.Parse(bytes.NewReader(data))
	if err != nil {
		return &failure{code: exitRefused, err: fmt.Errorf("%s is signed by %q, and is no whole list: %w", path, signer.Name, err)}
	}
	u.note("%s is %s, signed by %q on %s (%s)", path, listOf(list), signer.Name, signer.Time.UTC().Format("2006-01-02 15:04:05 UTC"), signer.Fingerprint)
	return nil
}

// trust returns the check by those who are trusted.
func (o *hashlistCheckOptions) trust() (func(content, signature []byte, now time.Time) (*detached.Signer, error), error) {
	if o.keyring != "" {
		data, err := readLimited(o.keyring)
		if err != nil {
			return nil, err
		}
		keyring, err := detached.ParseKeyring(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o.keyring, err)
		}
		return keyring.Check, nil
	}
	var trusted []*x509.Certificate
	for _, path := range o.certs {
		certs, err := keygen.LoadCertificates(path)
		if err != nil {
			return nil, err
		}
		trusted = append(trusted, certs...)
	}
	return func(content, signature []byte, now time.Time) (*detached.Signer, error) {
		return detached.CheckCMS(content, signature, trusted, now)
	}, nil
}

func listOf(l *hashlist.List) string {
	return fmt.Sprintf("the hash list of %s (%s)", l.Release, plural(len(l.Modules), "module"))
}

// readLimited reads a whole file: a hash list, of which one of ten thousand modules has
// a MB, a signature, or a keyring, of which that of all of Debian has 30.
func readLimited(path string) ([]byte, error) {
	return readAtMost(path, 64<<20)
}

func readAtMost(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s: more than %s are too many for what it should be", path, megabytes(limit))
	}
	return data, err
}
