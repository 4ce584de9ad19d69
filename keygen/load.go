package keygen

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// What Load may say; found with errors.Is.
var (
	// ErrInsecure is of a private key that others than its owner can get at.
	ErrInsecure = errors.New("private key is open to others")
	// ErrNoPassphrase is of an encrypted key without a passphrase. A
	// Passphrase that has none to give returns it too.
	ErrNoPassphrase = errors.New("private key is encrypted, and no passphrase is given")
	// ErrWrongPassphrase is of an encrypted key that the passphrase does not
	// open. A key that is damaged inside looks the same.
	ErrWrongPassphrase = errors.New("wrong passphrase")
	// ErrMismatch is of a certificate for another key.
	ErrMismatch = errors.New("private key does not belong to the certificate")
	// ErrNoPKCS11 is of a key in a token.
	ErrNoPKCS11 = errors.New("this build has no support for keys in a token (PKCS #11)")
)

// LoadError is what is wrong with a key's or certificate's file. It never holds
// a byte of a private key or passphrase.
type LoadError struct {
	Path string
	Err  error
	Hint string // what to do about it; may be empty
}

func (e *LoadError) Error() string {
	if e.Hint == "" {
		return fmt.Sprintf("%s: %v", e.Path, e.Err)
	}
	return fmt.Sprintf("%s: %v (%s)", e.Path, e.Err, e.Hint)
}

func (e *LoadError) Unwrap() error { return e.Err }

// refuse is a LoadError whose path is not known yet.
func refuse(hint, format string, args ...any) error {
	return &LoadError{Err: fmt.Errorf(format, args...), Hint: hint}
}

// inFile puts the path to an error.
func inFile(path string, err error) error {
	if e, ok := errors.AsType[*LoadError](err); ok {
		return &LoadError{Path: path, Err: e.Err, Hint: e.Hint}
	}
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		err = e.Err
	}
	return &LoadError{Path: path, Err: err}
}

// Passphrase returns the passphrase of an encrypted private key. It is asked
// once a Load at most, and only when the key is encrypted. The bytes are taken
// as they are: a newline at the end belongs to the passphrase.
type Passphrase func() ([]byte, error)

// LoadOptions says how Load goes about a private key. The zero value refuses
// encrypted keys and keys that others can read.
type LoadOptions struct {
	// Passphrase is asked for the passphrase of an encrypted key; nil means
	// that there is none to be had.
	Passphrase Passphrase

	// AllowInsecure takes a key file that group or others have access to.
	AllowInsecure bool
}

// Load reads a private key and its certificate as the kernel's sign-file does:
// of the key's file the first PEM block of any kind of private key (the package
// comment lists them), of the certificate's file the first certificate, PEM or
// DER, whatever follows. An empty certPath means the certificate in the key's
// file.
//
// A key in a regular file must be its owner's alone (mode & 077 = 0), whoever
// the owner is; what is no regular file, such as a pipe, is not looked at. Both
// are read once and in order, the key first, so that either may be a pipe.
//
// A key file that holds a certificate and no private key, and lies beside the
// agent.sock of a key agent ([ServeAgent]) whose certificate that is, stands for
// the agent's key: the Signer is that of [Agent.Pair]. When the agent has ended,
// the error holds a [*NoAgentError], which says why.
//
// Errors are of type [*LoadError]; the variables ErrInsecure, ErrNoPassphrase,
// ErrWrongPassphrase, ErrMismatch and ErrNoPKCS11 tell the ones apart that a
// program may want to handle. What the Passphrase returns as its error is
// wrapped.
func Load(keyPath, certPath string, opts LoadOptions) (*Pair, error) {
	if isToken(keyPath) || isToken(certPath) {
		// A URI may hold a PIN and goes into no error.
		return nil, inFile("pkcs11:", refuse("use a key in a file", "%w", ErrNoPKCS11))
	}
	keyFile, mode, err := readKeyFile(keyPath)
	if err != nil {
		return nil, inFile(keyPath, err)
	}
	inKey := certPath == "" || certPath == keyPath
	certFile := keyFile
	if err := checkMode(keyPath, keyFile, mode); err != nil && !opts.AllowInsecure {
		return nil, inFile(keyPath, err)
	}
	if inKey {
		certPath = keyPath
	} else if certFile, err = readFile(certPath); err != nil {
		return nil, inFile(certPath, err)
	}

	// The certificate goes before the key, so that nobody is asked for a
	// passphrase in vain. But a file without a key is no place to miss a
	// certificate in.
	var signer crypto.Signer
	block, err := findKey(keyFile)
	if err != nil {
		if signer, err = agentFor(keyPath, keyFile, err); err != nil {
			return nil, inFile(keyPath, err)
		}
	}
	cert, err := firstCertificate(certFile)
	if err != nil {
		if e, ok := errors.AsType[*LoadError](err); ok && inKey && errors.Is(err, errNoCertificate) {
			e.Err = errors.New("file holds a private key but no certificate")
			e.Hint = "give the certificate's file too (--cert)"
		}
		return nil, inFile(certPath, err)
	}
	if signer == nil {
		if signer, err = block.privateKey(opts.Passphrase, defaultLimits()); err != nil {
			return nil, inFile(keyPath, err)
		}
	}
	if public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(cert.PublicKey) {
		where := "in " + certPath
		if inKey {
			where = "in the same file"
		}
		return nil, inFile(keyPath, refuse("", "%w %s, which is of %s", ErrMismatch, where, subjectOf(cert)))
	}
	return &Pair{Signer: signer, Certificate: cert}, nil
}

// isToken reports whether a path is a PKCS #11 URI (RFC 7512).
func isToken(path string) bool {
	const scheme = "pkcs11:"
	return len(path) >= len(scheme) && strings.EqualFold(path[:len(scheme)], scheme)
}

// subjectOf names a certificate for people.
func subjectOf(cert *x509.Certificate) string {
	if name := cert.Subject.String(); name != "" {
		return fmt.Sprintf("%q", name)
	}
	return "nobody"
}

// LoadCertificates reads all certificates of a file, at least one: the
// CERTIFICATE blocks of a PEM file, whose other blocks are skipped, or one DER
// certificate after the other, as in the kernel's certs/signing_key.x509.
// Errors are of type [*LoadError].
func LoadCertificates(path string) ([]*x509.Certificate, error) {
	if isToken(path) {
		return nil, inFile("pkcs11:", refuse("use a certificate in a file", "%w", ErrNoPKCS11))
	}
	data, err := readFile(path)
	if err != nil {
		return nil, inFile(path, err)
	}
	certs, err := parseCertificates(data)
	if err != nil {
		return nil, inFile(path, err)
	}
	return certs, nil
}

// maxFileSize bounds what is read of a key's or certificate's file. The list of
// all the certificates that a distribution trusts has a few hundred KB.
const maxFileSize = 4 << 20

// readKeyFile reads the file of a private key. The mode is that of the file
// which was opened, not of whatever the path leads to a moment later; zero where
// it is no regular file.
func readKeyFile(path string) ([]byte, fs.FileMode, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	data, err := readAll(f)
	if !info.Mode().IsRegular() {
		return data, 0, err
	}
	return data, info.Mode().Perm(), err
}

// ReadPrivate reads the file of a private key that is not for [Load], one of OpenPGP,
// and refuses it as Load does where others can get at it.
func ReadPrivate(path string, allowInsecure bool) ([]byte, error) {
	data, mode, err := readKeyFile(path)
	if err == nil && !allowInsecure {
		err = checkMode(path, data, mode)
	}
	if err != nil {
		return nil, inFile(path, err)
	}
	return data, nil
}

// checkMode refuses a private key that others can get at. With a POSIX ACL the
// mode's group bits are its mask, so an entry that lets somebody in shows here
// too.
func checkMode(path string, data []byte, mode fs.FileMode) error {
	if _, err := findKey(data); err != nil && !isOpenPGPKey(data) || mode&0o077 == 0 {
		return nil
	}
	return refuse("chmod 600 "+path, "%w: its mode is %04o", ErrInsecure, mode)
}

// isOpenPGPKey reports whether the data begin with the packet of a private key, as
// OpenPGP has it without armor (RFC 9580, 4.2 and 5.5.1.3): its tag is 5.
func isOpenPGPKey(data []byte) bool {
	return len(data) > 0 && (data[0]&0xfc == 0x94 || data[0] == 0xc5)
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f)
}

func readAll(f *os.File) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFileSize {
		return nil, fmt.Errorf("file has more than %d bytes: it is no key or certificate", maxFileSize)
	}
	if len(data) == 0 {
		return nil, errors.New("file is empty")
	}
	return data, nil
}

// errNoCertificate is of a file in which no certificate was found.
var errNoCertificate = errors.New("file holds no certificate")

// firstCertificate finds the certificate that sign-file would take: the first
// two bytes tell DER, of which what follows the certificate is not looked at,
// from PEM.
func firstCertificate(data []byte) (*x509.Certificate, error) {
	if isDER(data) {
		return parseCertificate(data, 0)
	}
	for block := range pemBlocks(data) {
		if block.isCertificate() {
			return block.certificate()
		}
	}
	return nil, noCertificate(data)
}

func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	if isDER(data) {
		for offset := 0; offset < len(data); {
			cert, err := parseCertificate(data, offset)
			if err != nil {
				return nil, err
			}
			certs = append(certs, cert)
			offset += len(cert.Raw)
		}
		return certs, nil
	}
	for block := range pemBlocks(data) {
		if !block.isCertificate() {
			continue
		}
		cert, err := block.certificate()
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

// isDER reports whether the data begin with a SEQUENCE of a length that a
// certificate has.
func isDER(data []byte) bool {
	return len(data) > 1 && data[0] == 0x30 && 0x81 <= data[1] && data[1] <= 0x84
}

// parseCertificate parses the DER certificate that begins at the offset.
func parseCertificate(data []byte, offset int) (*x509.Certificate, error) {
	s := cryptobyte.String(data[offset:])
	var der cryptobyte.String
	if !s.ReadASN1Element(&der, cbasn1.SEQUENCE) {
		return nil, fmt.Errorf("no whole DER certificate at offset %d", offset)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		if what, hint := describeDER(der); what != "" {
			return nil, refuse(hint, "%w but %s", errNoCertificate, what)
		}
		return nil, fmt.Errorf("certificate at offset %d: %w", offset, err)
	}
	return cert, nil
}

// noCertificate says what is in a file instead of certificates.
func noCertificate(data []byte) error {
	for block := range pemBlocks(data) {
		switch {
		case block.kind == "TRUSTED CERTIFICATE":
			return refuse("openssl x509 -in FILE -out CERT.pem", "%w but OpenSSL's TRUSTED CERTIFICATE, which the kernel's tools do not take", errNoCertificate)
		case block.isPrivateKey():
			return refuse("", "%w but a private key", errNoCertificate)
		default:
			return refuse("", "%w but a PEM block %q", errNoCertificate, block.kind)
		}
	}
	return refuse("", "%w, neither in PEM nor in DER", errNoCertificate)
}
