// Package cms writes, reads and judges the signatures of kernel modules: the
// Cryptographic Message Syntax (RFC 5652) in the dialect that the Linux kernel's
// scripts/sign-file speaks and that crypto/asymmetric_keys understands.
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
//	        SEQUENCE { rsaEncryption, NULL }      or SEQUENCE { ecdsa-with-HASH }
//	        OCTET STRING signature
//
// There are no certificates, no signed or unsigned attributes, no time. Issuer and
// serial number are those of the signer's certificate, byte for byte: the kernel
// compares them as bytes. The RSA signature is PKCS #1 v1.5 over the digest; the
// ECDSA signature is SEQUENCE { INTEGER r, INTEGER s }. [Signer] makes exactly
// this, [Message.Canonical] tells whether a message has exactly this form, and
// [Message.Marshal] is the inverse of [Parse] for those which do.
//
// # What the kernel reads
//
// The kernel's decoder (lib/asn1_decoder.c) takes BER: indefinite lengths, lengths
// of up to two octets that need not be minimal, bytes after the end. Above that,
// the parser (pkcs7_parser.c, x509_cert_parser.c) ignores some fields, and is
// strict where RFC 5652 is not. [Parse], [ParseCertificate] and [Message.Check]
// give the verdicts of Linux 6.12 with its errno. A message is trusted here only if
// that kernel would trust it; the few that the kernel would trust and this package
// does not are those whose keys Go cannot use. In a message these bytes decide
// nothing and may change without harm to the signature:
//
//   - the contents of digestAlgorithms in SignedData, and the parameters of every
//     AlgorithmIdentifier;
//   - which of the ecdsa-with-HASH identifiers stands in signatureAlgorithm: the
//     SignerInfo's digestAlgorithm decides;
//   - unsigned attributes, and attributes in the obsolete form with tag [2];
//   - the choice between SET and SEQUENCE for digestAlgorithms and signerInfos,
//     and the constructed bit of constructed types (but not inside of the issuer's
//     name);
//   - how lengths and the two integers of an ECDSA signature are written;
//   - whatever follows the message.
//
// A certificate's validity, key usage, extended key usage and basic constraints
// never count, nor do the names in it other than as bytes.
//
// # What this package is not
//
// It is no general CMS library: no enveloped data, no attributes, no content
// inside of the message. It does not look for a signature in a module, and does
// not read keys from files. ML-DSA is not here yet: a certificate with such a key
// parses, and its signatures are unsupported.
package cms

import (
	"fmt"
	"syscall"
)

// MaxSize is the largest message and the largest certificate that the kernel
// takes, in bytes. Beyond, it answers EMSGSIZE (lib/asn1_decoder.c).
const MaxSize = 65535

// Kind tells in one word why a message is not to be trusted.
type Kind int

const (
	// Malformed: it is no message, or none that the kernel takes for the
	// signature of a module. Always refused.
	Malformed Kind = iota + 1
	// Unsupported: its algorithms are not known (ENOPKG). A kernel that does not
	// enforce signatures loads the module all the same, and is tainted.
	Unsupported
	// UnknownKey: no trusted certificate belongs to it (ENOKEY). The signature
	// has not been looked at. A kernel that does not enforce signatures loads the
	// module all the same, and is tainted.
	UnknownKey
	// BadSignature: the certificate is known and the signature is not its.
	// Always refused.
	BadSignature
	// Revoked: the signature is good and its certificate is a revoked one.
	// Always refused.
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

// Error is the kernel's refusal of a message or a certificate.
type Error struct {
	Kind   Kind
	Errno  syscall.Errno // what the kernel's function returns, before sig_enforce is looked at
	Reason string        // in this package's words
	// Dmesg is the line that the kernel logs for it, if it logs one. N stands
	// for the kernel's own number of an object identifier, which differs between
	// versions.
	Dmesg string
}

func (e *Error) Error() string { return e.Reason }

// Unwrap lets errors.Is(err, syscall.EKEYREJECTED) and the like see the errno.
func (e *Error) Unwrap() error { return e.Errno }
