// Package detached makes and checks signatures that lie beside the file which they
// sign, for the tools that people have. The kernel's dialect is that of internal/cms.
//
// # OpenPGP
//
// A signature packet of type binary (RFC 9580), armored or not: what gpg --detach-sign
// makes, and gpg --verify and gpgv check. Here it is made with SHA-512 where the key
// prefers nothing else; SHA-256, SHA-384, SHA-512 and SHA-3 are taken.
//
// # CMS
//
// What openssl cms -sign -binary -outform DER makes (RFC 5652):
//
//	SignedData    without the content, which is of type data; with certificates or
//	              without, and without revocation lists
//	SignerInfo    one, that names its certificate by issuer and serial number; no
//	              unsigned attributes
//	attributes    signed: content type, message digest, signing time, and what else
//	              the signer has to say; each of the three once, with one value
//	algorithms    RSA (PKCS #1 v1.5) or ECDSA, with SHA-256, SHA-384 or SHA-512
//
// It is DER, and nothing stands behind it. Here it is made with SHA-512 and the
// certificate of the signer.
//
// # What is good
//
// The key or certificate has to be valid twice: when it signed, as the signature says,
// and now, since who gets hold of a key that has expired dates signatures back. Whom
// to trust is the caller's to say: a keyring, or certificates.
package detached

import (
	"fmt"
	"time"
)

// Signer says who has signed, and when.
type Signer struct {
	Name        string    // user ID, or subject of the certificate; may hold anything
	Fingerprint string    // of the OpenPGP key, or the SHA-256 of the certificate
	Time        time.Time // as the signature says
}

// maxSignature bounds a signature: those of the largest keys, with a chain of
// certificates, have a few KB, and pkcs7 takes a second for one of 100 KB that is
// nested deeply.
const maxSignature = 64 << 10

func checkSize(signature []byte) error {
	if len(signature) > maxSignature {
		return fmt.Errorf("%d bytes are too many for a signature", len(signature))
	}
	return nil
}
