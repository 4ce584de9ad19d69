package keygen

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"

	"filippo.io/mldsa"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/keyfile"
	"github.com/modsign/modsign/internal/mldsamu"
)

// pemBlock is a PEM block that holds a key or a certificate.
type pemBlock struct{ keyfile.Block }

func (b pemBlock) certificate() (*x509.Certificate, error) {
	block, err := b.Decode()
	if err != nil {
		return nil, err
	}
	cert, err := cms.ParseX509(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("certificate at line %d: %w", b.Line, err)
	}
	return cert, nil
}

// findKey returns the first private key of a file.
func findKey(data []byte) (pemBlock, error) {
	var other keyfile.Block
	for block := range keyfile.Blocks(data) {
		if block.IsPrivateKey() {
			return pemBlock{block}, nil
		}
		if other.Kind == "" {
			other = block
		}
	}
	return pemBlock{}, noKey(data, other)
}

// IsPrivateKey reports whether a file holds a private key, in any form that has a name
// among the reasons of a [LoadError]: PEM, also with lost line breaks, DER, PKCS #12,
// OpenSSH's, PuTTY's and OpenPGP's. The data may be cut off after the key. It is for
// programs that are about to replace the file.
func IsPrivateKey(data []byte) bool {
	if bytes.Contains(data, []byte("-----BEGIN")) && bytes.Contains(data, []byte("PRIVATE KEY")) {
		return true
	}
	_, reason := describeDER(data)
	return reason == ErrDER || reason == ErrPKCS12 || isSecretPacket(data) ||
		bytes.HasPrefix(data, []byte("PuTTY-User-Key-File-"))
}

// isSecretPacket reports whether data begins with a packet of OpenPGP that has a secret key
// (RFC 9580, 4.2 and 5.5.3).
func isSecretPacket(data []byte) bool {
	if len(data) < 12 || data[0]&0x80 == 0 {
		return false
	}
	tag, body := data[0]&0x3f, data[2:]
	switch {
	case data[0]&0x40 == 0: // the old form, with a length of 1, 2 or 4 bytes
		tag = tag >> 2
		body = data[1+1<<(data[0]&3):]
	case data[1] >= 192 && data[1] < 224:
		body = data[3:]
	case data[1] == 255:
		body = data[6:]
	}
	const secretKey, secretSubkey = 5, 7
	// A version, the time of the key's making, and an algorithm.
	return (tag == secretKey || tag == secretSubkey) && len(body) > 5 && body[0] >= 3 && body[0] <= 6 && body[5] < 32
}

// noKey says what is in a file instead of a private key. The first PEM block, if there
// is any, is of another kind.
func noKey(data []byte, first keyfile.Block) error {
	const none = "no private key: file is "
	if what, hint := keyfile.Mangled(data); what != "" {
		return refuseMangled(ErrMangled, hint, none+"%s", what)
	}
	switch {
	case first.IsCertificate():
		return refuse(ErrCertificateAlone, none+"a certificate")
	case strings.HasSuffix(first.Kind, "PUBLIC KEY"):
		return refuse(ErrPublicKey, none+"a public key")
	case first.Kind != "":
		return refuse("", none+"a PEM block %s", first.Label())
	case bytes.HasPrefix(data, []byte("PuTTY-User-Key-File-")):
		return refuse(ErrPuTTY, none+"a PuTTY key")
	}
	if what, reason := describeDER(data); what != "" {
		return refuse(reason, none+"%s", what)
	}
	return refuse("", none+"not PEM")
}

// describeDER tells apart the DER files that people take for a key or a
// certificate.
func describeDER(data []byte) (what string, reason Reason) {
	s := cryptobyte.String(data)
	var body cryptobyte.String
	if !s.ReadASN1(&body, cbasn1.SEQUENCE) {
		return "", ""
	}
	if _, err := cms.ParseX509(data[:len(data)-len(s)]); err == nil {
		return "a DER certificate", ErrCertificateAlone
	}
	if _, err := x509.ParsePKIXPublicKey(data); err == nil {
		return "a DER public key", ErrPublicKey
	}
	var version int
	if first := body; first.ReadASN1Integer(&version) {
		var next cryptobyte.String
		var tag cbasn1.Tag
		if !first.ReadAnyASN1(&next, &tag) {
			return "", ""
		}
		var oid asn1.ObjectIdentifier
		switch {
		case version == 3 && tag == cbasn1.SEQUENCE && next.ReadASN1ObjectIdentifier(&oid) &&
			strings.HasPrefix(oid.String(), "1.2.840.113549.1.7."):
			return "a PKCS #12 store", ErrPKCS12
		case version == 0, version == 1:
			return "a private key in DER, and the kernel's sign-file takes PEM", ErrDER
		}
		return "", ""
	}
	var oid asn1.ObjectIdentifier
	var algorithm, encrypted cryptobyte.String
	if body.ReadASN1(&algorithm, cbasn1.SEQUENCE) && algorithm.ReadASN1ObjectIdentifier(&oid) &&
		body.ReadASN1(&encrypted, cbasn1.OCTET_STRING) && body.Empty() {
		return "an encrypted private key in DER, and the kernel's sign-file takes PEM", ErrDER
	}
	return "", ""
}

// maxKeySize bounds a private key in DER. An RSA key of 16384 bits, the most that
// OpenSSL knows, has 9 KB; checking one of a hundred KB takes seconds.
const maxKeySize = 32 << 10

// privateKey decodes the key of the block and asks for a passphrase if it needs
// one.
func (b pemBlock) privateKey(ask Passphrase, limits kdfLimits) (crypto.Signer, error) {
	switch b.Kind {
	case "OPENSSH PRIVATE KEY":
		return nil, ErrOpenSSH
	case "PGP PRIVATE KEY BLOCK":
		return nil, ErrOpenPGP
	case "DSA PRIVATE KEY":
		return nil, unsupportedKey("a DSA key")
	}
	block, err := b.Decode()
	if err != nil {
		return nil, err
	}
	if len(block.Bytes) > maxKeySize {
		return nil, tooLarge(len(block.Bytes))
	}
	switch b.Kind {
	case "PRIVATE KEY":
		return checkKey(parsePKCS8(block.Bytes))
	case "ENCRYPTED PRIVATE KEY":
		scheme, err := parseEncryptedPKCS8(block.Bytes, limits)
		if err != nil {
			return nil, err
		}
		passphrase, err := ask.passphrase()
		if err != nil {
			return nil, err
		}
		der, err := scheme.decrypt(passphrase)
		if err != nil {
			return nil, err
		}
		return checkKey(parsePKCS8(der))
	case "RSA PRIVATE KEY", "EC PRIVATE KEY":
		der, err := decryptLegacy(block, ask)
		if err != nil {
			return nil, err
		}
		if b.Kind == "RSA PRIVATE KEY" {
			return checkKey(x509.ParsePKCS1PrivateKey(der))
		}
		return checkKey(parseSEC1(der))
	}
	return nil, unsupportedKey("of an unknown kind")
}

func tooLarge(size int) error {
	return fmt.Errorf("private key has %d bytes, and at most %d are taken", size, maxKeySize)
}

// passphrase asks for the passphrase.
func (ask Passphrase) passphrase() ([]byte, error) {
	if ask == nil {
		return nil, ErrNoPassphrase
	}
	passphrase, err := ask()
	if errors.Is(err, ErrNoPassphrase) {
		return nil, ErrNoPassphrase
	}
	if err != nil {
		return nil, fmt.Errorf("private key is encrypted, and there is no passphrase for it: %w", err)
	}
	return passphrase, nil
}

// unsupportedKey refuses a kind of key, which is one of the names here: what the
// file calls its algorithm may be a part of the key where the file is damaged.
func unsupportedKey(kind string) error {
	return refuse(ErrUnsupportedKey, "private key is %s, and modules are signed with %s", kind, signingKeys)
}

// checkKey keeps the keys that modules are signed with here. It takes what parseMLDSA
// and the parsers of crypto/x509 return, which have computed an RSA key's CRT values:
// without them each signature would take twice as long.
func checkKey(key any, err error) (crypto.Signer, error) {
	if _, refused := errors.AsType[Reason](err); refused {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("private key is damaged or not supported%s", reason(err))
	}
	switch key := key.(type) {
	case *rsa.PrivateKey:
		// What crypto/rsa would say at the first signature.
		if bits := key.N.BitLen(); bits < 1024 {
			return nil, refuse(ErrUnsupportedKey, "RSA key has %d bits, and at least 1024 are needed", bits)
		}
		return key, nil
	case *ecdsa.PrivateKey:
		switch key.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return key, nil
		}
		return nil, unsupportedKey("a " + key.Curve.Params().Name + " key")
	case *mldsamu.PrivateKey:
		return key, nil
	}
	return nil, unsupportedKey(fmt.Sprintf("a %T", key))
}

// reason is what crypto/x509 and crypto/rsa say of a key, but not encoding/asn1,
// which quotes tags and lengths: of a damaged key these may be any of its bytes.
func reason(err error) string {
	if text := err.Error(); !strings.Contains(text, "asn1: ") {
		return ": " + text
	}
	return ""
}

// parsePKCS8 parses a PrivateKeyInfo, and names the keys that it refuses.
func parsePKCS8(der []byte) (any, error) {
	s := cryptobyte.String(der)
	var algorithm cryptobyte.String
	var version int
	var oid asn1.ObjectIdentifier
	if !s.ReadASN1(&s, cbasn1.SEQUENCE) || !s.ReadASN1Integer(&version) ||
		!s.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&oid) {
		return nil, errors.New("not a PKCS #8 PrivateKeyInfo")
	}
	switch oid.String() {
	case "1.2.840.113549.1.1.1":
		return x509.ParsePKCS8PrivateKey(der)
	case "1.2.840.10045.2.1":
		if err := checkCurve(algorithm); err != nil {
			return nil, err
		}
		return x509.ParsePKCS8PrivateKey(der)
	case "1.2.840.113549.1.1.10":
		return nil, unsupportedKey("an RSA-PSS key")
	case "1.2.840.10040.4.1":
		return nil, unsupportedKey("a DSA key")
	case "1.2.840.113549.1.3.1":
		return nil, unsupportedKey("a Diffie-Hellman key")
	case "1.3.101.110", "1.3.101.111":
		return nil, unsupportedKey("a key for key agreement (X25519, X448)")
	case "1.3.101.112":
		return nil, unsupportedKey("an Ed25519 key")
	case "1.3.101.113":
		return nil, unsupportedKey("an Ed448 key")
	}
	for parameters, known := range mldsaOIDs {
		if known.Equal(oid) {
			return parseMLDSA(parameters, algorithm, s)
		}
	}
	return nil, unsupportedKey("of an unknown algorithm")
}

// parseMLDSA parses the rest of a PrivateKeyInfo, after the algorithm and its parameters
// (RFC 9881, section 6).
//
//	privateKey ::= OCTET STRING containing CHOICE {
//	    seed        [0] IMPLICIT OCTET STRING,
//	    expandedKey OCTET STRING,
//	    both        SEQUENCE { seed OCTET STRING, expandedKey OCTET STRING }
//	}
func parseMLDSA(parameters mldsa.Parameters, algorithm, rest cryptobyte.String) (any, error) {
	seedAlone := cbasn1.Tag(0).ContextSpecific()
	var key, seed, expanded cryptobyte.String
	if !algorithm.Empty() || !rest.ReadASN1(&key, cbasn1.OCTET_STRING) {
		return nil, errNotMLDSA
	}
	both := key.PeekASN1Tag(cbasn1.SEQUENCE)
	switch {
	case key.PeekASN1Tag(cbasn1.OCTET_STRING):
		return nil, refuseMangled(ErrUnsupportedKey, mldsaSeedHint,
			"private key is an expanded %s key without its seed, and modsign signs with the seed", parameters)
	case both:
		var pair cryptobyte.String
		if !key.ReadASN1(&pair, cbasn1.SEQUENCE) || !pair.ReadASN1(&seed, cbasn1.OCTET_STRING) ||
			!pair.ReadASN1(&expanded, cbasn1.OCTET_STRING) || !pair.Empty() {
			return nil, errNotMLDSA
		}
	case !key.ReadASN1(&seed, seedAlone):
		return nil, errNotMLDSA
	}
	if !key.Empty() || len(seed) != mldsa.PrivateKeySize {
		return nil, errNotMLDSA
	}
	plain, err := mldsa.NewPrivateKey(parameters, seed)
	if err != nil {
		return nil, errNotMLDSA
	}
	private := mldsamu.NewPrivateKey(plain)
	if both && !private.IsExpanded(expanded) {
		return nil, errors.New("the seed and the expanded key of the ML-DSA key do not belong together")
	}
	return private, nil
}

var errNotMLDSA = errors.New("not an ML-DSA key in a form of RFC 9881")

// mldsaSeedHint is for a key without its seed, which nobody can compute.
const mldsaSeedHint = "modsign keygen makes another key; or, from a file of this key that has the seed: " +
	"openssl pkey -provparam ml-dsa.output_formats=seed-only -in ORIGINAL -out KEY.pem"

// parseSEC1 parses an ECPrivateKey.
func parseSEC1(der []byte) (any, error) {
	s := cryptobyte.String(der)
	var version int
	var params cryptobyte.String
	var present bool
	if !s.ReadASN1(&s, cbasn1.SEQUENCE) || !s.ReadASN1Integer(&version) || !s.SkipASN1(cbasn1.OCTET_STRING) ||
		!s.ReadOptionalASN1(&params, &present, cbasn1.Tag(0).ContextSpecific().Constructed()) {
		return nil, errors.New("not a SEC 1 ECPrivateKey")
	}
	if !present {
		return nil, ErrUnnamedCurve
	}
	if err := checkCurve(params); err != nil {
		return nil, err
	}
	return x509.ParseECPrivateKey(der)
}

// checkCurve names the curves that are refused.
func checkCurve(params cryptobyte.String) error {
	if params.PeekASN1Tag(cbasn1.SEQUENCE) {
		return refuse(ErrUnnamedCurve, "EC key spells its curve out instead of naming it")
	}
	var oid asn1.ObjectIdentifier
	if !params.ReadASN1ObjectIdentifier(&oid) {
		return errors.New("EC key has no curve")
	}
	switch name := oid.String(); name {
	case "1.2.840.10045.3.1.7", "1.3.132.0.34", "1.3.132.0.35":
		return nil
	case "1.2.840.10045.3.1.1":
		return unsupportedKey("a P-192 key")
	case "1.3.132.0.33":
		return unsupportedKey("a P-224 key")
	case "1.3.132.0.10":
		return unsupportedKey("a secp256k1 key")
	case "1.2.156.10197.1.301":
		return unsupportedKey("an SM2 key")
	default:
		if strings.HasPrefix(name, "1.3.36.3.3.2.8.1.1.") {
			return unsupportedKey("a Brainpool key")
		}
		return unsupportedKey("on an unknown elliptic curve")
	}
}
