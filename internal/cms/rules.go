package cms

import "fmt"

// Rules are what one version of the kernel accepts. Versions differ in few things, all of
// which stand here. What is marked so was found by comparing the sources of Linux 6.1.192,
// 6.12.117 and 7.2.13: it changed somewhere between two of them, and versions between count
// as the older one.
type Rules struct {
	major, minor int

	// SHA-3 in messages and certificates: since 6.7 (crypto/asymmetric_keys/pkcs7_parser.c,
	// x509_cert_parser.c). Before, the kernel parsed MD4 and MD5 instead.
	sha3 bool
	// P-521: since 6.10 (x509_cert_parser.c, crypto/ecdsa.c).
	p521 bool
	// ML-DSA: since 7.0 (pkcs7_parser.c, pkcs7_verify.c, x509_cert_parser.c).
	mldsa bool
	// SM2: in 6.1, no more in 6.12 (pkcs7_parser.c, x509_cert_parser.c).
	sm2 bool
	// Key usage and basic constraints have to be well formed: since 6.4 (x509_cert_parser.c).
	extensions bool
	// otherName and ediPartyName in an authority key identifier: not in 6.1, in 6.12
	// (x509_akid.asn1).
	otherNames bool
	// A message is compared with the revoked certificates whatever keyring is meant: in
	// 6.12. In 6.1 only for the platform keyring, which is for modules in kernels of some
	// distributions alone (certs/system_keyring.c).
	revocation bool
	// The hash of a blacklisted certificate (tbs:) is its SHA-256: in 7.2. In 6.12 it is
	// that of the signature on it (x509_public_key.c).
	tbsSHA256 bool
	// ML-DSA signatures may have signed attributes: CONFIG_PKCS7_WAIVE_AUTHATTRS_REJECTION_FOR_MLDSA.
	waiver bool
}

// RulesOf returns the rules of a version of Linux, of which the last known one stands for
// all later ones. waived tells that the kernel takes signed attributes with ML-DSA.
func RulesOf(major, minor int, waived bool) *Rules {
	since := func(a, b int) bool { return major > a || major == a && minor >= b }
	return &Rules{
		major: major, minor: minor,
		sha3:       since(6, 7),
		p521:       since(6, 10),
		mldsa:      since(7, 0),
		sm2:        !since(6, 12),
		extensions: since(6, 4),
		otherNames: since(6, 12),
		revocation: since(6, 12),
		tbsSHA256:  since(7, 0),
		waiver:     since(7, 0) && waived,
	}
}

var (
	// Newest are the rules of the last version of Linux that this package knows.
	Newest = RulesOf(7, 2, false)
	// Any are the rules of a kernel of that version with everything that it can be
	// configured to accept.
	Any = RulesOf(7, 2, true)
)

// Waived are the rules of such a kernel that takes signed attributes with ML-DSA.
func (r *Rules) Waived() *Rules { return RulesOf(r.major, r.minor, true) }

// RevokesModules reports whether a kernel compares the signers of modules with the revoked
// certificates, whatever keyring they are in.
func (r *Rules) RevokesModules() bool { return r.revocation }

// OlderThan compares the versions.
func (r *Rules) OlderThan(other *Rules) bool {
	return r.major < other.major || r.major == other.major && r.minor < other.minor
}

// String returns the version: "Linux 6.12".
func (r *Rules) String() string { return fmt.Sprintf("Linux %d.%d", r.major, r.minor) }

// Parse parses a message by the rules of [Any] kernel.
func Parse(der []byte) (*Message, error) { return Any.Parse(der) }

// ParseCertificate parses a certificate by the rules of [Any] kernel.
func ParseCertificate(der []byte) (*Certificate, error) { return Any.ParseCertificate(der) }
