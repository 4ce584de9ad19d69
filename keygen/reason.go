package keygen

import (
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"

	"github.com/modsign/modsign/internal/keyfile"
)

// Reason says why a file of a key or certificate is refused. It is an error, so that
// errors.Is finds it in a [*LoadError].
type Reason string

func (r Reason) Error() string { return string(r) }

// The reasons that a program may want to tell apart.
const (
	// ErrInsecure reports a private key file that group or others can access. The
	// error is also an [*InsecureError].
	ErrInsecure Reason = "private key is open to others"

	// ErrNoPassphrase reports an encrypted key without a passphrase. A [Passphrase]
	// that has none to give returns it too.
	ErrNoPassphrase Reason = "private key is encrypted, and no passphrase is given"

	// ErrWrongPassphrase reports an encrypted key that the passphrase does not open.
	// A key that is damaged inside looks the same.
	ErrWrongPassphrase Reason = "wrong passphrase"

	// ErrMismatch reports a certificate of another key.
	ErrMismatch Reason = "private key does not belong to the certificate"

	// ErrNoCertificate reports a file without a certificate.
	ErrNoCertificate Reason = "file holds no certificate"

	// ErrKeyAlone reports a key file without a certificate where no other file is
	// named for it.
	ErrKeyAlone Reason = "file holds a private key but no certificate"

	// ErrCertificateAlone reports a certificate in the place of a private key.
	ErrCertificateAlone Reason = "file is a certificate"

	// ErrPublicKey reports a public key in the place of a private key.
	ErrPublicKey Reason = "file is a public key"

	// ErrMangled reports PEM that was changed on its way: line breaks are lost, or the
	// text is in UTF-16.
	ErrMangled Reason = "file is damaged PEM"

	// ErrNotPath reports the text of a key or certificate in the place of a file's name.
	ErrNotPath Reason = "the text of a key or certificate is given where the name of its file is wanted"

	// ErrNoPKCS11 reports a PKCS #11 URI in the place of a file's name: Load and
	// LoadCertificates read files. Package keystore opens keys in tokens.
	ErrNoPKCS11 Reason = "a PKCS #11 URI is given where the name of a file is wanted"

	// ErrNoTPM reports a key of a TPM without a way to open it ([LoadOptions]).
	ErrNoTPM Reason = "private key is in a TPM, which is not supported here"

	// ErrTPM reports a key of a TPM that could not be opened. A hint is in the error.
	ErrTPM Reason = "private key in a TPM cannot be opened"

	// ErrDER, ErrPKCS12, ErrOpenSSH, ErrPuTTY and ErrOpenPGP report a private key in
	// another format than PEM with PKCS #8, PKCS #1 or SEC 1.
	ErrDER     Reason = "private key is in DER"
	ErrPKCS12  Reason = "private key is in a PKCS #12 store"
	ErrOpenSSH Reason = "private key is in OpenSSH's own format"
	ErrPuTTY   Reason = "private key is in PuTTY's own format"
	ErrOpenPGP Reason = "private key is an OpenPGP key"

	// ErrUnsupportedKey reports a private key of a kind with which no module is signed.
	ErrUnsupportedKey Reason = "private key is of an unsupported kind"

	// ErrUnsupportedCipher reports a private key that is encrypted in an unsupported way.
	ErrUnsupportedCipher Reason = "private key is encrypted in an unsupported way"

	// ErrUnnamedCurve reports an EC key without its curve's name.
	ErrUnnamedCurve Reason = "EC key does not name its curve"
)

// LoadError says what is wrong with a file of a key or certificate. It never holds
// a byte of a private key or passphrase.
type LoadError struct {
	Path   string
	Reason Reason // may be empty
	Err    error
}

func (e *LoadError) Error() string { return fmt.Sprintf("%s: %v", e.Path, e.Err) }

// Unwrap returns the reason, if there is one, and Err.
func (e *LoadError) Unwrap() []error {
	if e.Reason == "" {
		return []error{e.Err}
	}
	return []error{e.Reason, e.Err}
}

// InsecureError says who can access a private key's file, and who can change that.
type InsecureError struct {
	Mode     fs.FileMode // permission bits
	NotOwner bool        // this user may not change the mode
	ReadOnly bool        // nobody may: the mount is read-only
}

func (e *InsecureError) Error() string {
	return fmt.Sprintf("%v: its mode is %04o", ErrInsecure, e.Mode)
}

// refuse returns a LoadError whose path is not known yet.
func refuse(reason Reason, format string, args ...any) error {
	return &LoadError{Reason: reason, Err: fmt.Errorf(format, args...)}
}

// refuseMangled returns a LoadError with a command that may mend the file.
func refuseMangled(reason Reason, hint, format string, args ...any) error {
	return &LoadError{Reason: reason, Err: &keyfile.HintError{Err: fmt.Errorf(format, args...), Hint: hint}}
}

// inFile adds the path to an error.
func inFile(path string, err error) error {
	reason, known := errors.AsType[Reason](err)
	if _, mangled := errors.AsType[*keyfile.HintError](err); mangled && !known {
		reason = ErrMangled
	}
	if e, ok := errors.AsType[*LoadError](err); ok {
		err = e.Err
	} else if e, ok := errors.AsType[*fs.PathError](err); ok {
		err = e.Err
	}
	return &LoadError{Path: path, Reason: reason, Err: err}
}

// derInBase64 matches a key without its BEGIN. In base64, DER begins with M.
var derInBase64 = regexp.MustCompile(`^\s*M[A-Za-z0-9+/=\s]{99,}`)

// notPath refuses a key itself, or any PEM, in the place of its file's name. No error
// quotes it, as errors may end up in a log.
func notPath(paths ...string) error {
	for _, path := range paths {
		if strings.Contains(path, "-----BEGIN") || derInBase64.MatchString(path) {
			return inFile("(not shown)", ErrNotPath)
		}
	}
	return nil
}

// isToken reports whether a path is a PKCS #11 URI (RFC 7512).
func isToken(path string) bool {
	const scheme = "pkcs11:"
	return len(path) >= len(scheme) && strings.EqualFold(path[:len(scheme)], scheme)
}

// notToken refuses a PKCS #11 URI. It may hold a PIN and goes into no error.
func notToken(paths ...string) error {
	for _, path := range paths {
		if isToken(path) {
			return inFile("pkcs11", ErrNoPKCS11)
		}
	}
	return nil
}
