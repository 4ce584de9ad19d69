package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/detached"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/keygen/keystore"
)

// The signature of a list lies beside it, with the suffix that users of gpg and openssl
// expect.
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
		Long: `Sign writes a signature of a hash list to a file of its own. It tells people whose
list it is; the kernel does not look at it.

With an OpenPGP key, exported to a file by gpg --export-secret-keys, it writes
LIST.asc, which modsign hashlist check, gpg --verify and gpgv check. With a key that
signs modules, or any other in PEM with its certificate, it writes LIST.p7s: a CMS
message in DER, which hashlist check and openssl cms -verify check.

It refuses a file that is not a whole hash list.`,
		Example: `  modsign hashlist sign hashes --openpgp-key release.asc
  gpg --verify hashes.asc hashes
  modsign hashlist sign hashes --key signing_key.pem
  openssl cms -verify -binary -inform DER -in hashes.p7s -content hashes \
          -CAfile cert.pem -out /dev/null`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&o.openPGP, "openpgp-key", "", "sign with the OpenPGP secret key in `FILE`")
	o.keyOptions.addFlags(flags)
	flags.StringVarP(&o.output, "output", "o", "", "write the signature to `FILE` (default: LIST.asc or LIST.p7s)")
	addQuiet(flags, u)
	return cmd
}

func (o *hashlistSignOptions) run(ctx context.Context, u *ui, args []string) error {
	switch {
	case len(args) == 0:
		return usagef("no hash list given")
	case len(args) > 1:
		return usagef("unexpected argument %q", args[1])
	case o.openPGP == "" && o.key == "":
		return usagef("no key given: use --openpgp-key FILE or --key FILE")
	case o.openPGP != "" && o.key != "":
		return usagef("--openpgp-key and --key exclude each other")
	case o.openPGP != "" && o.cert != "":
		return usagef("--cert requires --key: an OpenPGP key has no certificate")
	}
	path := args[0]
	data, err := readLimited(path)
	if err != nil {
		return err
	}
	list, err := hashlist.Parse(bytes.NewReader(data))
	if err != nil {
		return withHint(fmt.Errorf("%s: %w", path, err), "write the list again with modsign hashlist build")
	}
	sign, output := o.signCMS, path+cmsSuffix
	if o.openPGP != "" {
		sign, output = o.signOpenPGP, path+openPGPSuffix
	}
	if o.output != "" {
		output = o.output
	}
	if err := checkOutput("the signature", output, path, o.key, o.cert, o.openPGP, o.passphraseFile); err != nil {
		return err
	}
	signature, name, err := sign(ctx, u, data)
	if err != nil {
		return err
	}
	u.BeginAt(output)
	if err := atomicfile.WriteOutput(output, signature, true); err != nil {
		return err
	}
	u.Note("signed %s, as %q: %s", listOf(list), name, output)
	return nil
}

// signOpenPGP returns the signature and the name of its signer.
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
	signature, err := key.Sign(data, now, func() ([]byte, error) { return o.passphrase(ctx, u, o.openPGP) })
	switch {
	case errors.Is(err, keygen.ErrNoPassphrase):
		return nil, "", withHint(fmt.Errorf("%s: %w", o.openPGP, err),
			"set KBUILD_SIGN_PIN, use --passphrase-file, or run on a terminal to be asked")
	case err != nil:
		return nil, "", fmt.Errorf("%s: %w", o.openPGP, err)
	}
	return signature, key.Name(), nil
}

func (o *hashlistSignOptions) signCMS(
	ctx context.Context, u *ui, data []byte,
) (signature []byte, name string, err error) {
	o.lists = true
	pair, err := o.load(ctx, u)
	if err != nil {
		return nil, "", err
	}
	defer closeKey(pair, &err)
	signature, err = detached.SignCMS(data, pair.Signer, pair.Certificate)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", keystore.Redact(o.key), err)
	}
	return signature, pair.Certificate.Subject.CommonName, nil
}
