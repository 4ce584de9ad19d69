// Package cms writes, parses and checks the signatures of kernel modules. They are
// Cryptographic Message Syntax (RFC 5652), in the form that the kernel's
// scripts/sign-file writes and crypto/asymmetric_keys reads.
//
// Use a [Signer] to sign digests. To verify a signature, call [Parse] and then
// [Message.Check].
//
// # What sign-file writes
//
// Distinguished encoding (DER), lengths definite and minimal, nothing optional:
//
//	ContentInfo SEQUENCE
//	  OID 1.2.840.113549.1.7.2                    signedData
//	  [0] SignedData SEQUENCE
//	    INTEGER 1                                 3 if the signer is named by key id
//	    SET { SEQUENCE { digest OID } }           no parameters
//	    SEQUENCE { OID 1.2.840.113549.1.7.1 }     data, detached: the content is the module
//	    SET
//	      SignerInfo SEQUENCE
//	        INTEGER 1                             3 if the signer is named by key id
//	        SEQUENCE { issuer Name, INTEGER serial }   or [0] subject key identifier
//	        SEQUENCE { digest OID }               no parameters
//	        [0] SET { contentType, messageDigest }     with Form.Attributes only
//	        SEQUENCE { rsaEncryption, NULL }      or SEQUENCE { ecdsa-with-HASH }
//	                                              or SEQUENCE { id-ml-dsa-NN }
//	        OCTET STRING signature
//
// There are no certificates, no unsigned attributes and no time. Issuer and
// serial number are byte for byte those of the signer's certificate: the kernel
// compares them as bytes. The RSA signature is PKCS #1 v1.5 over the digest. The ECDSA
// signature is SEQUENCE { INTEGER r, INTEGER s }. The ML-DSA signature (FIPS 204, pure, no
// context) is of the module itself, and digestAlgorithm says nothing (RFC 9882, 3.3). A
// [Signer] writes exactly this form.
//
// OpenSSL 3.5 and 3.6 cannot make that one with ML-DSA, and sign-file has them sign the
// SHA-512 of the module in signed attributes instead. No kernel takes these but those that
// are configured to; see [Form].
//
// A message may have several signers, which sign-file cannot write: [Message.Add] makes
// one, in the same form but for the two sets. digestAlgorithms has the digest of each
// signer once. Both sets are in the order of DER, as openssl cms writes them.
// [Message.Canonical] reports whether a message has this form, and [Message.Marshal] is
// the inverse of [Parse] for such messages.
//
// # What the kernel reads
//
// The kernel's decoder (lib/asn1_decoder.c) accepts BER: indefinite lengths, lengths of
// up to two octets that need not be minimal, bytes after the end. The parsers on top of
// it (pkcs7_parser.c, x509_cert_parser.c) ignore some fields, and are strict where RFC
// 5652 is not. [Rules] hold what differs between versions of the kernel. [Rules.Parse],
// [Rules.ParseCertificate] and [Message.Check] give the verdicts of such a version with its
// errno. This package trusts a message only if that kernel trusts it. The only messages
// that the kernel trusts and this package does not are those whose keys Go cannot use. The
// following bytes of a message have no effect, and can change without invalidating the
// signature:
//
//   - the contents of digestAlgorithms in SignedData, and the parameters of every
//     AlgorithmIdentifier;
//   - the digestAlgorithm of an ML-DSA signature without signed attributes;
//   - which of the ecdsa-with-HASH identifiers is in signatureAlgorithm: the
//     SignerInfo's digestAlgorithm decides;
//   - unsigned attributes, and attributes in the obsolete form with tag [2], of which the
//     kernel compares a signing time with the signer's certificate if that is inside;
//   - the choice between SET and SEQUENCE for digestAlgorithms and signerInfos,
//     and the constructed bit of constructed types (but not inside of the issuer's
//     name);
//   - the encoding of lengths and of the two integers of an ECDSA signature;
//   - whatever follows the message.
//
// A certificate's validity, key usage, extended key usage and basic constraints never
// count. Its names count only as bytes.
//
// # What the package does not do
//
// The package is not a general CMS library: no enveloped data, no attributes, no
// content inside the message. It does not find the signature in a module, and does not
// read key files.
package cms

import (
	"fmt"
	"syscall"
)

// MaxSize is the largest message and the largest certificate that the kernel accepts,
// in bytes. For larger ones it returns EMSGSIZE (lib/asn1_decoder.c).
const MaxSize = 65535

// Kind is the reason why a message is not trusted.
type Kind int

const (
	// Malformed: not a message, or not one that the kernel accepts as the signature of
	// a module. The kernel always rejects the module.
	Malformed Kind = iota + 1
	// Unsupported: unknown algorithms (ENOPKG). A kernel that does not enforce
	// signatures loads the module, and is tainted.
	Unsupported
	// UnknownKey: no trusted certificate is that of the signer (ENOKEY). The signature
	// is not verified. A kernel that does not enforce signatures loads the module, and
	// is tainted.
	UnknownKey
	// BadSignature: the certificate is known, but the signature does not verify with
	// its key. The kernel always rejects the module.
	BadSignature
	// Revoked: the signature is good, but its certificate is revoked. The kernel always
	// rejects the module.
	Revoked
)

func (k Kind) String() string {
	switch k {
	case Malformed:
		return "malformed"
	case Unsupported:
		return "unsupported"
	case UnknownKey:
		return "unknown key"
	case BadSignature:
		return "bad signature"
	case Revoked:
		return "revoked"
	}
	return fmt.Sprintf("Kind(%d)", int(k))
}

// Error reports why the kernel rejects a message or a certificate.
type Error struct {
	Kind   Kind
	Errno  syscall.Errno // result of the kernel's function, before it considers sig_enforce
	Reason string        // in this package's words
	// Dmesg is the line that the kernel logs, or "" if it logs none. N stands for the
	// kernel's own number of an object identifier, which differs between versions.
	Dmesg string
}

func (e *Error) Error() string { return e.Reason }

// Unwrap returns the errno, so that errors.Is(err, syscall.EKEYREJECTED) and the like
// work.
func (e *Error) Unwrap() error { return e.Errno }
