package keygen

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"filippo.io/mldsa"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/keyfile"
)

// Passphrase returns the passphrase of an encrypted private key. Load calls it at most
// once, and only when the key is encrypted. A newline at the end belongs to the
// passphrase.
type Passphrase func() ([]byte, error)

// LoadOptions are the options of [Load]. The zero value refuses encrypted keys and
// keys that others can access.
type LoadOptions struct {
	// Passphrase returns the passphrase of an encrypted key. It may be nil.
	Passphrase Passphrase

	// AllowInsecure accepts a key file that group or others can access.
	AllowInsecure bool

	// KeyOf returns the private key of a key file that holds a certificate alone,
	// where the key is kept elsewhere: agent.KeyOf returns the key of a key agent.
	// It returns nil where it knows of no key. It may be nil.
	KeyOf func(path string, cert *x509.Certificate) (crypto.Signer, error)

	// OpenTPM opens a key that works in one TPM alone: a PEM block TSS2 PRIVATE KEY with
	// these contents, in the file at path. Package keystore has one: keystore.TPM. What
	// it returns must check its signatures. It calls ask at most once, and only for a key
	// with a passphrase. With nil, such keys are refused.
	OpenTPM func(path string, der []byte, cert *x509.Certificate, ask Passphrase) (crypto.Signer, error)

	// Note takes remarks that are not errors, for people to read. Each begins with
	// the path of a file. It may be nil.
	Note func(string)
}

// Load reads a private key and its certificate as the kernel's sign-file does. The
// key is the first PEM block of a private key of any kind (the package comment lists
// them). The certificate is the first one in its file, PEM or DER; an empty certPath
// stands for the file of the key. opts.Note gets a remark where a certificate that
// follows is damaged, or where no kernel would load it.
//
// A regular file of a key must be accessible to its owner alone (mode & 077 = 0),
// whoever the owner is. Its group may read it too (mode & 077 = 040) where that is not
// the primary group of this user, as root:akmods is not for root; opts.Note then gets a
// remark. Load does not check the mode of any other kind of file, such as a pipe. It
// reads each file once, the key first, so that either may be a pipe, and skips a byte
// order mark of UTF-8.
//
// Errors are of type [*LoadError], with a [Reason] that errors.Is finds. They wrap the
// errors that Passphrase and KeyOf return.
func Load(keyPath, certPath string, opts LoadOptions) (*Pair, error) {
	if err := cmp.Or(notToken(keyPath, certPath), notPath(keyPath, certPath)); err != nil {
		return nil, err
	}
	keyFile, access, err := readKeyFile(keyPath)
	if err != nil {
		return nil, inFile(keyPath, err)
	}
	inKey := certPath == "" || certPath == keyPath
	certFile := keyFile
	note := func(path, text string) {
		if opts.Note != nil {
			opts.Note(path + ": " + text)
		}
	}
	if err := access.check(keyFile, func(text string) { note(keyPath, text) }); err != nil && !opts.AllowInsecure {
		return nil, inFile(keyPath, err)
	}
	if inKey {
		certPath = keyPath
	} else if certFile, err = keyfile.Read(certPath); err != nil {
		return nil, inFile(certPath, err)
	}

	// The certificate goes before the key, so that nobody is asked for a
	// passphrase in vain. But a file without a key is no place to miss a
	// certificate in.
	var signer crypto.Signer
	block, err := findKey(keyFile)
	if err != nil {
		if signer, err = opts.keyElsewhere(keyPath, keyFile, err); err != nil {
			return nil, inFile(keyPath, err)
		}
	}
	cert, err := firstCertificate(certFile)
	if err != nil {
		if inKey && errors.Is(err, ErrNoCertificate) {
			err = ErrKeyAlone
		}
		return nil, inFile(certPath, err)
	}
	if err := checkRest(certFile, cert); err != nil {
		note(certPath, fmt.Sprintf("only the first certificate is used, and modsign verify refuses the file: %v", err))
	}
	if signer == nil {
		if block.Kind == keyfile.TPMKey {
			signer, err = opts.openTPM(keyPath, block, cert)
		} else {
			signer, err = block.privateKey(opts.Passphrase, defaultLimits())
		}
	}
	where := "in " + certPath
	if inKey {
		where = "in the same file"
	}
	if errors.Is(err, ErrMismatch) { // a TPM's
		err = mismatch(where, cert)
	}
	if err != nil {
		return nil, inFile(keyPath, err)
	}
	pair := &Pair{Signer: signer, Certificate: cert}
	switch cert.PublicKey.(type) {
	case *rsa.PublicKey, *ecdsa.PublicKey, *mldsa.PublicKey:
	default: // it is no matter whose it is
		pair.Close()
		return nil, inFile(certPath, refuse("",
			"certificate's key is %s, and modules are signed with %s", cms.KeyAlgorithm(cert), signingKeys))
	}
	if public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(cert.PublicKey) {
		pair.Close()
		return nil, inFile(keyPath, mismatch(where, cert))
	}
	return pair, nil
}

// signingKeys are the kinds of keys that sign modules.
const signingKeys = "RSA, ECDSA (P-256, P-384, P-521) or ML-DSA"

func mismatch(where string, cert *x509.Certificate) error {
	return refuse(ErrMismatch, "%w %s, which is of %s", ErrMismatch, where, subjectOf(cert))
}

// openTPM opens the key of a TPM.
func (o LoadOptions) openTPM(path string, b pemBlock, cert *x509.Certificate) (crypto.Signer, error) {
	if o.OpenTPM == nil {
		return nil, ErrNoTPM
	}
	block, err := b.Decode()
	if err != nil {
		return nil, err
	}
	if len(block.Bytes) > maxKeySize {
		return nil, tooLarge(len(block.Bytes))
	}
	signer, err := o.OpenTPM(path, block.Bytes, cert, o.Passphrase.passphrase)
	if _, known := errors.AsType[Reason](err); err != nil && !known {
		err = &LoadError{Reason: ErrTPM, Err: err}
	}
	return signer, err
}

// keyElsewhere returns the key of a file that holds a certificate alone, or else the
// error about the file.
func (o LoadOptions) keyElsewhere(path string, data []byte, noKey error) (crypto.Signer, error) {
	cert, err := firstCertificate(data)
	if err != nil || o.KeyOf == nil {
		return nil, noKey
	}
	signer, err := o.KeyOf(path, cert)
	switch {
	case err != nil:
		return nil, &LoadError{Err: err}
	case signer == nil:
		return nil, noKey
	}
	return signer, nil
}

// subjectOf names a certificate for people.
func subjectOf(cert *x509.Certificate) string {
	if name := cert.Subject.String(); name != "" {
		return fmt.Sprintf("%q", name)
	}
	return "nobody"
}

// LoadCertificates returns all certificates in a file, at least one. The file is PEM,
// whose other blocks are skipped, or one DER certificate after the other, as in the
// kernel's certs/signing_key.x509. Errors are of type [*LoadError].
func LoadCertificates(path string) ([]*x509.Certificate, error) {
	if err := cmp.Or(notToken(path), notPath(path)); err != nil {
		return nil, err
	}
	data, err := keyfile.Read(path)
	if err != nil {
		return nil, inFile(path, err)
	}
	certs, err := ParseCertificates(data)
	if err != nil {
		return nil, inFile(path, err)
	}
	return certs, nil
}

// readKeyFile reads the file of a private key, and who can access the file that was
// opened, not whatever the path leads to a moment later.
func readKeyFile(path string) ([]byte, access, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, access{}, err
	}
	defer f.Close()
	who, err := accessTo(f)
	if err != nil {
		return nil, access{}, err
	}
	data, err := keyfile.ReadFrom(f)
	return data, who, err
}

// ReadPrivate reads the file of a private key that is not for [Load], such as an OpenPGP
// key. Like Load, it refuses a key that others can access, unless opts.AllowInsecure is
// set. It ignores the other options.
func ReadPrivate(path string, opts LoadOptions) ([]byte, error) {
	if err := notPath(path); err != nil {
		return nil, err
	}
	data, access, err := readKeyFile(path)
	if err == nil && !opts.AllowInsecure {
		err = access.check(data, func(string) {})
	}
	if err != nil {
		return nil, inFile(path, err)
	}
	return data, nil
}

// isOpenPGPKey reports whether the data begin with the packet of a private key, as
// OpenPGP has it without armor (RFC 9580, 4.2 and 5.5.1.3): its tag is 5.
func isOpenPGPKey(data []byte) bool {
	return len(data) > 0 && (data[0]&0xfc == 0x94 || data[0] == 0xc5)
}

// firstCertificate finds the certificate that sign-file would take: the first
// two bytes tell DER, of which what follows the certificate is not looked at,
// from PEM.
func firstCertificate(data []byte) (*x509.Certificate, error) {
	if isDER(data) {
		return parseCertificate(data, 0)
	}
	for block := range keyfile.Blocks(data) {
		if block.IsCertificate() {
			return pemBlock{block}.certificate()
		}
	}
	return nil, noCertificate(data)
}

// ParseCertificates returns all certificates in data, the contents of a file, as
// [LoadCertificates] does. No error quotes the data.
func ParseCertificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	if isDER(data) {
		for offset := 0; offset == 0 || !keyfile.IsPadding(data[offset:]); {
			cert, err := parseCertificate(data, offset)
			if err != nil {
				return nil, err
			}
			certs = append(certs, cert)
			offset += len(cert.Raw)
		}
		return certs, nil
	}
	for block := range keyfile.Blocks(data) {
		if !block.IsCertificate() {
			continue
		}
		cert, err := pemBlock{block}.certificate()
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, noCertificate(data)
	}
	return certs, nil
}

// checkRest returns what is wrong with the certificates that follow the first of a
// file, of which [firstCertificate] takes no notice.
func checkRest(data []byte, first *x509.Certificate) error {
	if isDER(data) {
		for rest := data[len(first.Raw):]; !keyfile.IsPadding(rest); {
			cert, err := parseCertificate(data, len(data)-len(rest))
			if err == nil {
				err = cms.Loadable(cert.Raw)
			}
			if err != nil {
				return err
			}
			rest = rest[len(cert.Raw):]
		}
		return nil
	}
	number := 0
	for block := range keyfile.Blocks(data) {
		if !block.IsCertificate() {
			continue
		}
		if number++; number == 1 {
			continue
		}
		cert, err := pemBlock{block}.certificate()
		if err != nil {
			return err
		}
		if err := cms.Loadable(cert.Raw); err != nil {
			return fmt.Errorf("certificate at line %d: %w", block.Line, err)
		}
	}
	return nil
}

// isDER reports whether the data begin with a SEQUENCE of a length that a
// certificate has.
func isDER(data []byte) bool {
	return len(data) > 1 && data[0] == 0x30 && 0x81 <= data[1] && data[1] <= 0x84
}

// parseCertificate parses the DER certificate that begins at the offset.
func parseCertificate(data []byte, offset int) (*x509.Certificate, error) {
	der := data[offset:]
	cert, err := cms.ParseX509(der)
	if err == nil {
		return cert, nil
	}
	s := cryptobyte.String(der)
	if !s.SkipASN1(cbasn1.SEQUENCE) {
		return nil, fmt.Errorf("no whole DER certificate at offset %d", offset)
	}
	if what, _ := describeDER(der[:len(der)-len(s)]); what != "" {
		return nil, refuse(ErrNoCertificate, "%w but %s", ErrNoCertificate, what)
	}
	return nil, fmt.Errorf("certificate at offset %d: %w", offset, err)
}

// noCertificate says what is in a file instead of certificates.
func noCertificate(data []byte) error {
	if what, hint := keyfile.Mangled(data); what != "" {
		return refuseMangled(ErrNoCertificate, hint, "%w but %s", ErrNoCertificate, what)
	}
	for block := range keyfile.Blocks(data) {
		switch {
		case block.Kind == keyfile.Trusted:
			return refuseMangled(ErrNoCertificate, keyfile.TrustedHint,
				"%w but OpenSSL's TRUSTED CERTIFICATE, which the kernel's tools do not take", ErrNoCertificate)
		case block.IsPrivateKey():
			return refuse(ErrNoCertificate, "%w but a private key", ErrNoCertificate)
		default:
			return refuse(ErrNoCertificate, "%w but a PEM block %s", ErrNoCertificate, block.Label())
		}
	}
	return refuse(ErrNoCertificate, "%w, neither in PEM nor in DER", ErrNoCertificate)
}
