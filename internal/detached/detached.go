// Package detached makes and checks signatures in separate files, in the formats of
// common tools. [SignCMS] and [CheckCMS] are for CMS; [ParseSecretKey] and
// [ParseKeyring] begin signing and checking with OpenPGP. For signatures of modules see
// internal/cms.
//
// # OpenPGP
//
// A signature packet of type binary (RFC 9580), armored or not, as gpg --detach-sign
// writes, and gpg --verify and gpgv check. The package signs with SHA-512 unless the
// key prefers another hash, and accepts SHA-256, SHA-384, SHA-512 and SHA-3.
//
// # CMS
//
// A message as openssl cms -sign -binary -outform DER writes (RFC 5652):
//
//	SignedData    without the content, which is of type data; with certificates or
//	              without, and without revocation lists
//	SignerInfo    one, that names its certificate by issuer and serial number; no
//	              unsigned attributes
//	attributes    signed: content type, message digest, signing time, each once and
//	              with one value, and any others
//	algorithms    RSA (PKCS #1 v1.5) or ECDSA, with SHA-256, SHA-384 or SHA-512
//
// The message is DER, and nothing follows it. The package signs with SHA-512 and
// includes the signer's certificate.
//
// # Validity
//
// The key or certificate must be valid at the signing time that the signature claims,
// and also now: the holder of an expired key could backdate signatures. The caller
// chooses whom to trust, by a keyring or certificates.
package detached

import (
	"fmt"
	"time"
)

// Signer tells who signed, and when.
type Signer struct {
	Name        string    // user ID, or subject of the certificate; may contain anything
	Fingerprint string    // fingerprint of the OpenPGP key, or SHA-256 of the certificate
	Time        time.Time // claimed by the signature
}

// maxSignature is the size limit of a signature in bytes. Signatures of the largest
// keys, with a chain of certificates, have a few KB. pkcs7 takes a second for a deeply
// nested one of 100 KB.
const maxSignature = 64 << 10

func checkSize(signature []byte) error {
	if len(signature) > maxSignature {
		return fmt.Errorf("%d bytes, too many for a signature", len(signature))
	}
	return nil
}
