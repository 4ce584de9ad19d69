package main

import (
	"context"
	"encoding/pem"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/internal/keyfile"
	"github.com/modsign/modsign/internal/terminal"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/keygen/keystore"
)

type keygenOptions struct {
	keyType string
	subject string
	days    int
	hash    hashFlag
	config  string
	output  string
	certOut string

	tpm            bool
	passphraseFile string
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

--tpm makes the key in this machine's TPM 2.0, and the file holds what the TPM alone can
decrypt (TSS2 PRIVATE KEY, as OpenSSL's provider tpm2 writes it). TPM2TOOLS_TCTI names
another TPM than /dev/tpmrm0. Types are ecdsa:p384 (default), ecdsa:p256 and rsa:2048; the
size of an RSA key in the configuration is ignored. --passphrase-file sets a passphrase of
at most 32 bytes, which the TPM protects from guessing.

--type takes ` + strings.Join(types[:6], ", ") + `,
` + strings.Join(types[6:], ", ") + `.
Only Linux 7.0 and later take ML-DSA (mldsa). Such a certificate is signed without a hash,
so that --hash does not matter, and the file holds the seed of the key, which OpenSSL 3.5
and later read.
The kernel does not check how long a certificate is valid.`,
		Example: `  modsign keygen -o signing_key.pem
  modsign keygen --type ecdsa:p384 --config certs/x509.genkey -o certs/signing_key.pem
  modsign keygen --type mldsa:65 -o key.pem --cert-out key.x509
  modsign keygen --subject "/O=Example/CN=Example modules" --days 3650 -o key.pem --cert-out key.der
  modsign keygen --tpm -o tpm.pem`,
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
	flags.Lookup("hash").Usage = "hash `NAME` for the certificate (default: configuration's, else sha512)"
	flags.StringVar(&o.config, "config", "", "certificate profile `FILE`, an x509.genkey")
	flags.BoolVar(&o.tpm, "tpm", false, "make the key in the TPM 2.0 of this machine")
	flags.StringVar(&o.passphraseFile, "passphrase-file", "", "with --tpm: new key's passphrase in line 1 of `FILE`")
	return cmd
}

func (o *keygenOptions) run(ctx context.Context, u *ui) (err error) {
	if o.passphraseFile != "" && !o.tpm {
		return usagef("--passphrase-file: only keys in a TPM get a passphrase (--tpm); openssl pkey encrypts a file")
	}
	if err := checkOutput("--cert-out", o.certOut, o.output, o.config); err != nil {
		return err
	}
	template, algorithm, err := o.template()
	if err != nil {
		return err
	}
	keepSecrets()
	pair, err := o.generate(ctx, algorithm, template)
	if err != nil {
		return err
	}
	defer closeKey(pair, &err)
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
	where := ""
	if o.tpm {
		where = " in the TPM"
	}
	u.Say("made the key %s, %s%s, as %q", o.output, algorithm, where, pair.Certificate.Subject.CommonName)
	return nil
}

// generate makes the key, here or in the TPM, and its certificate.
func (o *keygenOptions) generate(ctx context.Context, a keygen.Algorithm, t keygen.Template) (*keygen.Pair, error) {
	if !o.tpm {
		return keygen.Generate(a, t)
	}
	var passphrase []byte
	var err error
	if o.passphraseFile != "" {
		if passphrase, err = keyfile.Passphrase(o.passphraseFile); err != nil {
			return nil, err
		}
	}
	key, err := keystore.NewTPM(ctx, os.LookupEnv, a, passphrase)
	if err != nil {
		return nil, hintFor("", err)
	}
	pair, err := keygen.Certify(key, t)
	if err != nil {
		(&keygen.Pair{Signer: key}).Close()
		return nil, hintFor("", err)
	}
	return pair, nil
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
	if o.tpm && o.keyType == "" {
		algorithm = keygen.ECDSAP384 // whatever size of RSA keys the configuration has
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
