package main

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/internal/detached"
	"github.com/modsign/modsign/keygen"
)

type hashlistCheckOptions struct {
	keyring string
	certs   []string
}

func newHashlistCheckCommand(u *ui) *cobra.Command {
	var o hashlistCheckOptions
	cmd := &cobra.Command{
		Use:   "check LIST [SIGNATURE] {--keyring FILE | --cert FILE...}",
		Short: "Check the signature of a hash list",
		Long: `Check reports who signed a hash list, and which kernel the list is for. With --keyring
it checks an OpenPGP signature (default: LIST.asc), with --cert a CMS message (default:
LIST.p7s). It reads signatures of one signer that modsign hashlist sign, gpg
--detach-sign or openssl cms -sign -binary -outform DER made.

It rejects a list that was changed since, a signer who is not trusted, and a key or
certificate that is revoked, or had expired when it signed, or has expired since. It
does not look at modules: see modsign hashlist verify.`,
		Example: `  gpg --export --armor release@example.org > release.asc
  modsign hashlist check hashes --keyring release.asc
  modsign hashlist check hashes --cert signing_key.x509
  modsign hashlist verify --list hashes TREE`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(u, args) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&o.keyring, "keyring", "", "trust the OpenPGP keys in `FILE` (from gpg --export)")
	flags.StringArrayVarP(&o.certs, "cert", "c", nil,
		"trust the certificates in `FILE`, and what they issued if CAs (repeatable)")
	addQuiet(flags, u)
	return cmd
}

func (o *hashlistCheckOptions) run(u *ui, args []string) error {
	switch {
	case len(args) == 0:
		return usagef("no hash list given")
	case len(args) > 2:
		return usagef("unexpected argument %q", args[2])
	case o.keyring == "" && len(o.certs) == 0:
		return usagef("no signer to trust: use --keyring FILE or --cert FILE")
	case o.keyring != "" && len(o.certs) > 0:
		return usagef("--keyring and --cert exclude each other: --keyring checks OpenPGP signatures, --cert CMS")
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
		err = fmt.Errorf("%s is signed by %q, but is not a whole hash list: %w", path, signer.Name, err)
		return &failure{code: exitRefused, err: err}
	}
	u.Note("%s is %s, signed by %q on %s (%s)", path, listOf(list), signer.Name,
		signer.Time.UTC().Format("2006-01-02 15:04:05 UTC"), signer.Fingerprint)
	return nil
}

// A signatureCheck checks that a trusted signer has signed content.
type signatureCheck func(content, signature []byte, now time.Time) (*detached.Signer, error)

func (o *hashlistCheckOptions) trust() (signatureCheck, error) {
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
