package main

import (
	"context"
	"encoding/pem"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/internal/terminal"
	"github.com/modsign/modsign/keygen"
)

type keygenOptions struct {
	keyType string
	subject string
	days    int
	hash    hashFlag
	config  string
	output  string
	certOut string
}

func newKeygenCommand(u *ui) *cobra.Command {
	var o keygenOptions
	var types []string
	for _, a := range keygen.Algorithms() {
		types = append(types, a.String())
	}
	cmd := &cobra.Command{
		Use:   "keygen",
		Short: "Make a key that signs modules",
		Long: `Make a private key and its certificate, as the kernel's build makes
certs/signing_key.pem with openssl. Both go to one PEM file of mode 0600: the key,
not encrypted, and then the certificate. The file must not exist yet.

--config takes the subject, the extensions and the size of an RSA key from an
OpenSSL configuration such as the kernel's certs/x509.genkey. Flags override the
configuration, and the defaults are those of the kernel's build.

--cert-out writes the certificate alone as well: in PEM where the name of the file
ends in .pem or .crt, and otherwise in DER.

--type takes ` + strings.Join(types, ", ") + `.
The kernel does not check how long a certificate is valid.`,
		Example: `  modsign keygen -o signing_key.pem
  modsign keygen --type ecdsa:p384 --config certs/x509.genkey -o certs/signing_key.pem
  modsign keygen --subject "/O=Example/CN=Example modules" --days 3650 -o key.pem --cert-out key.der`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), u) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVarP(&o.output, "output", "o", "signing_key.pem", "write key and certificate to `FILE`")
	flags.StringVar(&o.certOut, "cert-out", "", "write the certificate alone to `FILE` as well")
	flags.StringVarP(&o.keyType, "type", "t", "", "key `TYPE` (default: the configuration's, else rsa:4096)")
	flags.StringVar(&o.subject, "subject", "", "subject `NAME`, as for openssl req -subj: /O=.../CN=...")
	flags.IntVar(&o.days, "days", 0, "number of `DAYS` the certificate is valid (default: 36500)")
	o.hash.addFlag(flags)
	flags.Lookup("hash").Usage = "hash `NAME` for the certificate (default: the configuration's, else sha512)"
	flags.StringVar(&o.config, "config", "", "certificate profile `FILE`, an x509.genkey")
	return cmd
}

func (o *keygenOptions) run(ctx context.Context, u *ui) error {
	if err := checkOutput("--cert-out", o.certOut, o.output, o.config); err != nil {
		return err
	}
	template, algorithm, err := o.template()
	if err != nil {
		return err
	}
	keepSecrets()
	pair, err := keygen.Generate(algorithm, template)
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var pipe *os.File
	if terminal.IsIrregular(o.certOut) {
		// Before the key is written: a run that waits in vain for a reader of the pipe
		// must leave no key.
		if pipe, err = os.OpenFile(o.certOut, os.O_WRONLY, 0); err != nil {
			return err
		}
		defer pipe.Close()
	}
	u.Begin()
	if err := pair.WriteFile(o.output); err != nil {
		return err
	}
	if err := o.writeCert(pair, pipe); err != nil {
		return fmt.Errorf("made the key %s, without its certificate file: %w", o.output, err)
	}
	u.Say("made the key %s, %s, as %q", o.output, algorithm, pair.Certificate.Subject.CommonName)
	return nil
}

// writeCert writes the certificate alone, if it is to be written, to the open pipe or to
// a file.
func (o *keygenOptions) writeCert(pair *keygen.Pair, pipe *os.File) error {
	encoding := keygen.DER
	if strings.HasSuffix(o.certOut, ".pem") || strings.HasSuffix(o.certOut, ".crt") {
		encoding = keygen.PEM
	}
	switch {
	case o.certOut == "":
		return nil
	case pipe == nil:
		return pair.WriteCertificate(o.certOut, encoding)
	}
	data := pair.Certificate.Raw
	if encoding == keygen.PEM {
		data = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: data})
	}
	_, err := pipe.Write(data)
	return err
}

// template is the certificate that the profile and the flags describe.
func (o *keygenOptions) template() (keygen.Template, keygen.Algorithm, error) {
	template, algorithm, err := readProfile(o.config, "type", o.keyType, o.hash)
	if err != nil {
		return template, 0, err
	}
	if o.subject != "" {
		if template.Subject, err = keygen.ParseSubject(o.subject); err != nil {
			return template, 0, usagef("--subject: %v", err)
		}
	}
	switch {
	case o.days < 0:
		return template, 0, usagef("--days: invalid value \"%d\": want at least 1", o.days)
	case o.days > 0:
		template.Days = o.days
	}
	return template, algorithm, nil
}

// readProfile reads an x509.genkey, and then the flags for the type of the key and the
// hash of the certificate. All of them may be empty.
func readProfile(path, typeFlag, keyType string, hash hashFlag) (keygen.Template, keygen.Algorithm, error) {
	template, algorithm, err := keygen.LoadConfig(path)
	if err != nil {
		return template, 0, err
	}
	if keyType != "" {
		if algorithm, err = keygen.ParseAlgorithm(keyType); err != nil {
			return template, 0, usagef("--%s: %v", typeFlag, err)
		}
	}
	template.Hash, err = hash.or(template.Hash)
	return template, algorithm, err
}
