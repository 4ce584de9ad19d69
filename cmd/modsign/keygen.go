package main

import (
	"context"
	"crypto"
	"encoding/pem"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/keygen"
)

type keygenOptions struct {
	keyType string
	subject string
	days    int
	hash    string
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
		Long: `Keygen makes a private key and its certificate, as the kernel's build makes
certs/signing_key.pem with openssl: one PEM file with the key, not encrypted, and
then the certificate, with mode 0600. A file that exists is never replaced.

With --config the subject, the extensions and the size of an RSA key come from an
OpenSSL configuration such as the kernel's certs/x509.genkey. What it does not
say, and what flags say, is as in the kernel's build.`,
		Example: `  modsign keygen -o signing_key.pem
  modsign keygen --type ecdsa:p384 --config certs/x509.genkey -o certs/signing_key.pem
  modsign keygen --subject "/O=Example/CN=Example module key" --days 3650 -o key.pem --cert-out key.der`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), u) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVarP(&o.output, "output", "o", "signing_key.pem", "write key and certificate to `FILE`")
	flags.StringVar(&o.certOut, "cert-out", "", "write the certificate alone to `FILE` as well (DER, or PEM where the name ends in .pem or .crt)")
	flags.StringVarP(&o.keyType, "type", "t", "", "`TYPE` of key: "+strings.Join(types, ", ")+" (default: rsa:4096, or the configuration's)")
	flags.StringVar(&o.subject, "subject", "", "the certificate's `NAME`, as openssl req -subj takes it: /O=.../CN=...")
	flags.IntVar(&o.days, "days", 0, "how many `DAYS` the certificate is valid (default: 36500); the kernel does not look at it")
	flags.StringVar(&o.hash, "hash", "", "`NAME` of the hash that the certificate is signed with (default: sha512, or the configuration's)")
	flags.StringVar(&o.config, "config", "", "take the profile from `FILE`, an x509.genkey")
	return cmd
}

func (o *keygenOptions) run(ctx context.Context, u *ui) error {
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
	if isIrregular(o.certOut) {
		// Before the key is written: a run that waits in vain for somebody to read
		// the pipe leaves none.
		if pipe, err = os.OpenFile(o.certOut, os.O_WRONLY, 0); err != nil {
			return err
		}
		defer pipe.Close()
	}
	u.begin()
	if err := pair.WriteFile(o.output); err != nil {
		return err
	}
	if err := o.writeCert(pair, pipe); err != nil {
		return err
	}
	u.say("made the key %s, %s, as %q", o.output, algorithm, pair.Certificate.Subject.CommonName)
	return nil
}

// writeCert writes the certificate alone where that was asked for: to a pipe that is
// open, or to a file.
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
	template, algorithm, err := readProfile(o.config)
	if err != nil {
		return template, 0, err
	}
	if algorithm, err = keyType("type", o.keyType, algorithm); err != nil {
		return template, 0, err
	}
	if o.subject != "" {
		if template.Subject, err = keygen.ParseSubject(o.subject); err != nil {
			return template, 0, usagef("--subject: %v", err)
		}
	}
	if template.Hash, err = certificateHash(o.hash, template.Hash); err != nil {
		return template, 0, err
	}
	switch {
	case o.days < 0:
		return template, 0, usagef("--days is %d, and has to be at least 1", o.days)
	case o.days > 0:
		template.Days = o.days
	}
	return template, algorithm, nil
}

// readProfile reads an x509.genkey. Without a path, or where the file does not say,
// the result is as in the kernel's build.
func readProfile(path string) (keygen.Template, keygen.Algorithm, error) {
	if path == "" {
		return keygen.DefaultTemplate(), keygen.RSA4096, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return keygen.Template{}, 0, err
	}
	defer f.Close()
	template, algorithm, err := keygen.ParseConfig(f)
	if err != nil {
		return template, 0, fmt.Errorf("%s: %w", path, err)
	}
	if algorithm == 0 {
		algorithm = keygen.RSA4096
	}
	return template, algorithm, nil
}

// keyType parses the value of a flag, which may be empty.
func keyType(flag, name string, byDefault keygen.Algorithm) (keygen.Algorithm, error) {
	if name == "" {
		return byDefault, nil
	}
	algorithm, err := keygen.ParseAlgorithm(name)
	if err != nil {
		return 0, usagef("--%s: %v", flag, err)
	}
	return algorithm, nil
}

// certificateHash parses the value of --hash, which may be empty.
func certificateHash(name string, byDefault crypto.Hash) (crypto.Hash, error) {
	if name == "" {
		return byDefault, nil
	}
	hash, err := cms.HashByName(name)
	if err != nil {
		return 0, usagef("--hash: %v", err)
	}
	return hash, nil
}
