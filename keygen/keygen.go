// Package keygen makes and loads the keys that sign kernel modules.
//
// Begin with [Load], which returns a private key and its certificate as a [Pair], or
// with [Generate], which makes a new pair, and [Pair.WriteFile]. The Signer and the
// Certificate of a pair are what package sign takes.
//
// # What is made
//
// [Generate] makes a private key and its self-signed X.509 certificate as the
// kernel's build makes them with "openssl req" when CONFIG_MODULE_SIG_KEY is
// left alone (certs/Makefile, certs/default_x509.genkey). The profile, as
// OpenSSL 3.0 encodes it:
//
//	version             3 (1 when the template has no extensions)
//	serialNumber        positive, random, at most 20 octets
//	signature           RSA:    shaNNNWithRSAEncryption, parameters NULL
//	                    ECDSA:  ecdsa-with-SHANNN, no parameters
//	                    ML-DSA: id-ml-dsa-NN, no parameters: pure, with an
//	                            empty context, and deterministic (RFC 9881)
//	issuer = subject    one attribute per RDN, in the order given: UTF8String,
//	                    but countryName and serialNumber PrintableString,
//	                    emailAddress and domainComponent IA5String
//	validity            UTCTime up to 2049, GeneralizedTime from 2050 on
//	subjectPublicKey    rsaEncryption with NULL, id-ecPublicKey with the OID
//	                    of the curve, or id-ml-dsa-NN without parameters
//	extensions          in the template's order; by default
//	  basicConstraints      critical, 30 00 (the default CA:FALSE is left out:
//	                        the kernel's parser refuses it when written)
//	  keyUsage              03 02 07 80 (digitalSignature)
//	  subjectKeyIdentifier  04 14 and the SHA-1 of the public key's bits
//	                        (RFC 5280, 4.2.1.2, method 1)
//	signatureAlgorithm  as signature
//
// An authorityKeyIdentifier of "keyid" is not written: OpenSSL 3 leaves it out
// of self-signed certificates.
//
// [ParseConfig] reads an x509.genkey, the file in which a distribution sets the
// subject and the extensions. A line that would change the certificate, and that
// ParseConfig does not understand, is an error.
//
// The kernel reads the list of its built-in certificates only as far as each
// one begins with 30 82 (crypto/asymmetric_keys/x509_loader.c), that is, while
// the contents of the outer SEQUENCE are 256 to 65535 bytes long. Generate makes no
// certificate outside of these bounds.
//
// # What is written
//
// [Pair.WriteFile] writes what the kernel's build puts into
// certs/signing_key.pem: PEM, mode 0600, the unencrypted PKCS #8 private key
// ("PRIVATE KEY") first and the certificate ("CERTIFICATE") after it. Of an ML-DSA
// key that is the seed (RFC 9881, section 6). The kernel's sign-file and extract-cert
// take the file as it is, for ML-DSA with OpenSSL 3.5 or later.
// [Pair.WriteCertificate] writes the certificate alone.
//
// # What is loaded
//
// [Load] reads the files that the kernel's sign-file reads, and those of keys in a TPM.
// In a PEM file it uses the first block of a private key of any kind and skips all other
// blocks:
//
//	PRIVATE KEY            PKCS #8 (RFC 5208, RFC 5958); an ML-DSA key as its
//	                       seed, alone or, as OpenSSL writes it, beside the
//	                       expanded key (RFC 9881)
//	ENCRYPTED PRIVATE KEY  PKCS #8 under PBES2 (RFC 8018): PBKDF2 with HMAC and
//	                       SHA-1, SHA-224, SHA-256, SHA-384 or SHA-512, or
//	                       scrypt (RFC 7914); AES-128, -192, -256 or three-key
//	                       DES in CBC mode; or under PKCS #12's SHA-1 and
//	                       triple DES (RFC 7292, appendix C)
//	RSA PRIVATE KEY        PKCS #1 (RFC 8017)
//	EC PRIVATE KEY         SEC 1 (RFC 5915), with a named curve
//	TSS2 PRIVATE KEY       a key of a TPM 2.0 (draft-bottomley-tpm2-keys)
//
// The two before the last may have OpenSSL's old encryption (Proc-Type and DEK-Info
// headers: RFC 1421, 4.6.1). A key is RSA with at least 1024 bits, ECDSA on P-256, P-384 or
// P-521, or ML-DSA. A certificate is PEM or DER.
//
// # Limits
//
// All certificates are self-signed: the package is not a certificate authority. It
// reads neither the environment nor the terminal: the caller supplies the passphrase
// ([Passphrase]). It refuses keys in a token (PKCS #11), and ML-DSA keys without their
// seed. It does not promise to wipe memory, which Go's crypto packages do not offer.
// Package agent keeps a key in the memory of a process of its own.
package keygen

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"io"
	"strings"

	"filippo.io/mldsa"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/mldsamu"
)

// Algorithm is a kind of key that Generate makes. The zero value is not one.
type Algorithm uint8

// The algorithms. The kernel's build offers RSA4096 (its default), ECDSAP384 and, from
// Linux 7.0 on, those of ML-DSA, which older kernels do not know.
const (
	RSA2048 Algorithm = iota + 1
	RSA3072
	RSA4096
	ECDSAP256
	ECDSAP384
	ECDSAP521
	MLDSA44
	MLDSA65
	MLDSA87
)

// Algorithms returns all algorithms, RSA first, each family from weak to strong.
func Algorithms() []Algorithm {
	return []Algorithm{RSA2048, RSA3072, RSA4096, ECDSAP256, ECDSAP384, ECDSAP521, MLDSA44, MLDSA65, MLDSA87}
}

// String returns the name that ParseAlgorithm prefers, such as "rsa:4096",
// "ecdsa:p384" or "mldsa:65".
func (a Algorithm) String() string {
	switch a {
	case RSA2048:
		return "rsa:2048"
	case RSA3072:
		return "rsa:3072"
	case RSA4096:
		return "rsa:4096"
	case ECDSAP256:
		return "ecdsa:p256"
	case ECDSAP384:
		return "ecdsa:p384"
	case ECDSAP521:
		return "ecdsa:p521"
	case MLDSA44:
		return "mldsa:44"
	case MLDSA65:
		return "mldsa:65"
	case MLDSA87:
		return "mldsa:87"
	}
	return fmt.Sprintf("Algorithm(%d)", uint8(a))
}

// ParseAlgorithm returns the algorithm with a name. Besides the names that String
// returns it takes their usual spellings, in upper or lower case: rsa4096, rsa-4096,
// p384, P-384, ec:p384, ecdsa-p384, nistp384, the names of the curves in
// OpenSSL and SEC 2 (prime256v1, secp256r1, secp384r1, secp521r1), and mldsa65, ML-DSA-65.
func ParseAlgorithm(name string) (Algorithm, error) {
	switch strings.NewReplacer(":", "", "-", "", "_", "").Replace(strings.ToLower(name)) {
	case "rsa2048":
		return RSA2048, nil
	case "rsa3072":
		return RSA3072, nil
	case "rsa4096":
		return RSA4096, nil
	case "p256", "ecp256", "ecdsap256", "nistp256", "secp256r1", "prime256v1":
		return ECDSAP256, nil
	case "p384", "ecp384", "ecdsap384", "nistp384", "secp384r1":
		return ECDSAP384, nil
	case "p521", "ecp521", "ecdsap521", "nistp521", "secp521r1":
		return ECDSAP521, nil
	case "mldsa44":
		return MLDSA44, nil
	case "mldsa65":
		return MLDSA65, nil
	case "mldsa87":
		return MLDSA87, nil
	}
	var known []string
	for _, a := range Algorithms() {
		known = append(known, a.String())
	}
	return 0, fmt.Errorf("unknown key algorithm %q: it is one of %s", name, strings.Join(known, ", "))
}

// KeyName returns the kind of a public key, in the form of Algorithm.String:
// "rsa:2048", "ecdsa:p384", "mldsa:65".
func KeyName(public crypto.PublicKey) string {
	switch key := public.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("rsa:%d", key.N.BitLen())
	case *ecdsa.PublicKey:
		return "ecdsa:" + strings.ToLower(strings.ReplaceAll(key.Params().Name, "-", ""))
	case *mldsa.PublicKey:
		return "mldsa:" + strings.TrimPrefix(key.Parameters().String(), "ML-DSA-")
	}
	return fmt.Sprintf("%T", public)
}

// Pair is a private key with its certificate. The key is RSA, ECDSA or ML-DSA; its
// public half is the one in the certificate, where that of an ML-DSA key is a
// *mldsa.PublicKey of filippo.io/mldsa. Both are safe for concurrent use.
//
// A one-time key is a Pair that is never written.
type Pair struct {
	Signer      crypto.Signer
	Certificate *x509.Certificate
}

// Close closes the Signer if that is an io.Closer, as keys in a keystore are. Nothing signs
// after it.
func (p *Pair) Close() error {
	if closer, ok := p.Signer.(io.Closer); ok {
		return closer.Close()
	}
	return nil
}

// Generate makes a private key and its self-signed certificate. RSA4096 takes
// seconds.
//
// Generate fails when the subject is empty or X.509 or OpenSSL does not allow it, when
// the hash is missing or does not fit the algorithm, or when the validity ends before
// it begins or after the year 9999. It also fails when no kernel would load the
// certificate, or when the kernel's built-in list could not hold it. A kernel that loads
// the certificate of an ML-DSA key is Linux 7.0 or later.
func Generate(a Algorithm, t Template) (*Pair, error) {
	// Before the long search for primes.
	if err := t.check(); err != nil {
		return nil, err
	}
	if _, err := signatureOID(nil, t.Hash); err != nil && !a.isMLDSA() {
		return nil, err
	}
	signer, err := newKey(a)
	if err != nil {
		return nil, err
	}
	return Certify(signer, t)
}

// Certify makes the self-signed certificate of a key that exists. It fails as [Generate]
// does.
func Certify(signer crypto.Signer, t Template) (*Pair, error) {
	if key, ok := signer.(*mldsa.PrivateKey); ok {
		signer = mldsamu.NewPrivateKey(key)
	}
	der, err := t.selfSigned(signer)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err == nil {
		err = cms.Loadable(der)
	}
	if err != nil {
		return nil, fmt.Errorf("certificate for a new %s key: no kernel would load it: %w", KeyName(signer.Public()), err)
	}
	if cert.PublicKey == nil { // crypto/x509 does not know ML-DSA before Go 1.27
		cert.PublicKey = signer.Public()
	}
	return &Pair{Signer: signer, Certificate: cert}, nil
}

func newKey(a Algorithm) (crypto.Signer, error) {
	switch a {
	case RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case RSA3072:
		return rsa.GenerateKey(rand.Reader, 3072)
	case RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	case ECDSAP256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case ECDSAP384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case ECDSAP521:
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case MLDSA44:
		return newMLDSA(mldsa.MLDSA44())
	case MLDSA65:
		return newMLDSA(mldsa.MLDSA65())
	case MLDSA87:
		return newMLDSA(mldsa.MLDSA87())
	}
	return nil, fmt.Errorf("no such key algorithm: %v", a)
}

func newMLDSA(p mldsa.Parameters) (crypto.Signer, error) {
	key, err := mldsa.GenerateKey(p)
	if err != nil {
		return nil, err
	}
	return mldsamu.NewPrivateKey(key), nil
}

func (a Algorithm) isMLDSA() bool { return a == MLDSA44 || a == MLDSA65 || a == MLDSA87 }
