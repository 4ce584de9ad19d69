package keyscan

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"filippo.io/mldsa"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// A key is what the bytes of a file say about a private key.
type key struct {
	form      string // such as "PKCS #8"
	pem       bool
	algorithm string // such as "RSA 2048"; empty if the form does not tell
	public    []byte // content of subjectPublicKey; nil if it cannot be computed
	encrypted bool
	damaged   bool
	bound     string // why the bytes are no use elsewhere; empty for all but notes
}

// maxBits bounds the numbers that are multiplied to check a key: OpenSSL knows no
// larger RSA key.
const maxBits = 16384

// parseDER recognizes a private key in DER. Unless the label of a PEM block says that
// there is one, everything in the structure has to be right: a file that only begins
// like a key is none.
func parseDER(data []byte, labelled bool) (key, bool) {
	s := cryptobyte.String(data)
	var body cryptobyte.String
	if !s.ReadASN1(&body, cbasn1.SEQUENCE) {
		return key{}, false
	}
	switch {
	case body.PeekASN1Tag(cbasn1.OBJECT_IDENTIFIER):
		return parseTPMKey(body)
	case body.PeekASN1Tag(cbasn1.SEQUENCE):
		return parseEncrypted(body)
	}
	if k, ok := parsePKCS8(body, labelled); ok {
		return k, true
	}
	if k, ok := parsePKCS1(body); ok {
		return k, true
	}
	if k, ok := parseSEC1(body, nil, labelled); ok {
		return k, true
	}
	return parseDSA(body, labelled)
}

// readVersion reads the first INTEGER, which has to be one of these.
func readVersion(s *cryptobyte.String, known ...int) bool {
	var version int
	return s.PeekASN1Tag(cbasn1.INTEGER) && s.ReadASN1Integer(&version) && slices.Contains(known, version)
}

// parseTPMKey reads the beginning of a TPMKey (draft-bottomley-tpm2-keys): loadable,
// importable or sealed.
func parseTPMKey(s cryptobyte.String) (key, bool) {
	var oid asn1.ObjectIdentifier
	if !s.ReadASN1ObjectIdentifier(&oid) || !strings.HasPrefix(oid.String(), "2.23.133.10.1.") || s.Empty() {
		return key{}, false
	}
	k := key{form: "TPM 2.0 key", encrypted: true}
	if oid.String() == "2.23.133.10.1.3" {
		k.bound = "it works in one TPM alone"
	}
	return k, true
}

// parseEncrypted reads an EncryptedPrivateKeyInfo (RFC 5958, section 3) with a scheme of
// PKCS #5 or PKCS #12.
func parseEncrypted(s cryptobyte.String) (key, bool) {
	var algorithm, ciphertext cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !s.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&oid) ||
		!s.ReadASN1(&ciphertext, cbasn1.OCTET_STRING) || !s.Empty() || len(ciphertext) < 16 {
		return key{}, false
	}
	name := oid.String()
	if !strings.HasPrefix(name, "1.2.840.113549.1.5.") && !strings.HasPrefix(name, "1.2.840.113549.1.12.1.") {
		return key{}, false
	}
	return key{form: "PKCS #8", encrypted: true}, true
}

// parsePKCS8 reads a PrivateKeyInfo or OneAsymmetricKey (RFC 5958, section 2).
func parsePKCS8(s cryptobyte.String, labelled bool) (key, bool) {
	var algorithm, private cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !readVersion(&s, 0, 1) || !s.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&oid) ||
		!s.ReadASN1(&private, cbasn1.OCTET_STRING) || private.Empty() {
		return key{}, false
	}
	attributes, public := cbasn1.Tag(0).ContextSpecific().Constructed(), cbasn1.Tag(1).ContextSpecific()
	if !s.SkipOptionalASN1(attributes) || !s.SkipOptionalASN1(public) || !s.Empty() {
		return key{}, false
	}
	k, ok := parseAlgorithm(oid.String(), algorithm, private, labelled)
	k.form = "PKCS #8"
	return k, ok
}

// fixedSizes are the algorithms whose private key is an OCTET STRING of one size (RFC
// 8410).
var fixedSizes = map[string]struct {
	name string
	size int
}{
	"1.3.101.110": {"X25519", 32}, "1.3.101.111": {"X448", 56},
	"1.3.101.112": {"Ed25519", 32}, "1.3.101.113": {"Ed448", 57},
}

// mldsaParameters are the parameter sets of ML-DSA (RFC 9881, section 2), and the sizes of
// their expanded keys.
var mldsaParameters = map[string]struct {
	parameters mldsa.Parameters
	expanded   int
}{
	"2.16.840.1.101.3.4.3.17": {mldsa.MLDSA44(), 2560},
	"2.16.840.1.101.3.4.3.18": {mldsa.MLDSA65(), 4032},
	"2.16.840.1.101.3.4.3.19": {mldsa.MLDSA87(), 4896},
}

// parseAlgorithm reads the privateKey of a PrivateKeyInfo.
func parseAlgorithm(oid string, parameters, private cryptobyte.String, labelled bool) (key, bool) {
	var body, octets cryptobyte.String
	switch oid {
	case "1.2.840.113549.1.1.1", "1.2.840.113549.1.1.10":
		if !private.ReadASN1(&body, cbasn1.SEQUENCE) || !private.Empty() {
			return key{}, false
		}
		k, ok := parsePKCS1(body)
		if oid == "1.2.840.113549.1.1.10" {
			k.algorithm = strings.Replace(k.algorithm, "RSA", "RSA-PSS", 1)
		}
		return k, ok
	case "1.2.840.10045.2.1":
		var curve asn1.ObjectIdentifier
		if parameters.PeekASN1Tag(cbasn1.OBJECT_IDENTIFIER) && !parameters.ReadASN1ObjectIdentifier(&curve) ||
			!private.ReadASN1(&body, cbasn1.SEQUENCE) || !private.Empty() {
			return key{}, false
		}
		return parseSEC1(body, curve, true)
	case "1.2.840.10040.4.1", "1.2.840.113549.1.3.1":
		x := new(big.Int)
		if !private.ReadASN1Integer(x) || x.Sign() <= 0 || !private.Empty() {
			return key{}, false
		}
		if oid == "1.2.840.10040.4.1" {
			return key{algorithm: "DSA"}, true
		}
		return key{algorithm: "Diffie-Hellman"}, true
	}
	if fixed, ok := fixedSizes[oid]; ok {
		if !private.ReadASN1(&octets, cbasn1.OCTET_STRING) || len(octets) != fixed.size || !private.Empty() {
			return key{}, false
		}
		k := key{algorithm: fixed.name}
		switch fixed.name {
		case "Ed25519":
			k.public = ed25519.NewKeyFromSeed(octets).Public().(ed25519.PublicKey)
		case "X25519":
			if private, err := ecdh.X25519().NewPrivateKey(octets); err == nil {
				k.public = private.PublicKey().Bytes()
			}
		}
		return k, true
	}
	if set, ok := mldsaParameters[oid]; ok {
		return parseMLDSA(set.parameters, set.expanded, private)
	}
	switch {
	case strings.HasPrefix(oid, "2.16.840.1.101.3.4.3."):
		return key{algorithm: "SLH-DSA"}, len(private) >= 16
	case strings.HasPrefix(oid, "2.16.840.1.101.3.4.4."):
		return key{algorithm: "ML-KEM"}, len(private) >= 16
	}
	return key{}, labelled && len(private) >= 16 // of an algorithm that has no name here
}

// parseMLDSA reads the three forms of RFC 9881, section 6: the seed, the expanded key, or
// both.
func parseMLDSA(parameters mldsa.Parameters, expandedSize int, s cryptobyte.String) (key, bool) {
	k := key{algorithm: parameters.String()}
	var seed, expanded, pair cryptobyte.String
	switch {
	case s.PeekASN1Tag(cbasn1.SEQUENCE):
		if !s.ReadASN1(&pair, cbasn1.SEQUENCE) || !pair.ReadASN1(&seed, cbasn1.OCTET_STRING) ||
			!pair.ReadASN1(&expanded, cbasn1.OCTET_STRING) || !pair.Empty() || len(expanded) != expandedSize {
			return key{}, false
		}
	case s.PeekASN1Tag(cbasn1.OCTET_STRING):
		if !s.ReadASN1(&expanded, cbasn1.OCTET_STRING) || len(expanded) != expandedSize {
			return key{}, false
		}
		return k, s.Empty()
	case !s.ReadASN1(&seed, cbasn1.Tag(0).ContextSpecific()):
		return key{}, false
	}
	if !s.Empty() || len(seed) != mldsa.PrivateKeySize {
		return key{}, false
	}
	private, err := mldsa.NewPrivateKey(parameters, seed)
	if err != nil {
		return key{}, false
	}
	k.public = private.PublicKey().Bytes()
	return k, true
}

// readPositive reads INTEGERs that are positive and of at most maxBits.
func readPositive(s *cryptobyte.String, numbers ...**big.Int) bool {
	for _, n := range numbers {
		*n = new(big.Int)
		if !s.ReadASN1Integer(*n) || (*n).Sign() <= 0 || (*n).BitLen() > maxBits {
			return false
		}
	}
	return true
}

// parsePKCS1 reads an RSAPrivateKey (RFC 8017, A.1.2). Its primes have to multiply to its
// modulus, so nothing else passes for one.
func parsePKCS1(s cryptobyte.String) (key, bool) {
	var n, e, d, p, q, dp, dq, qi *big.Int
	if !readVersion(&s, 0, 1) || !readPositive(&s, &n, &e, &d, &p, &q, &dp, &dq, &qi) {
		return key{}, false
	}
	product := new(big.Int).Mul(p, q)
	for others := s; !others.Empty(); { // of a key with more than two primes
		var list cryptobyte.String
		if !others.ReadASN1(&list, cbasn1.SEQUENCE) {
			return key{}, false
		}
		for !list.Empty() {
			var prime cryptobyte.String
			var r, dr, t *big.Int
			if !list.ReadASN1(&prime, cbasn1.SEQUENCE) || !readPositive(&prime, &r, &dr, &t) ||
				product.BitLen() > maxBits {
				return key{}, false
			}
			product.Mul(product, r)
		}
	}
	if n.BitLen() < 256 || product.Cmp(n) != 0 {
		return key{}, false
	}
	return key{form: "PKCS #1", algorithm: fmt.Sprintf("RSA %d", n.BitLen()), public: rsaPublic(n, e)}, true
}

// rsaPublic encodes an RSAPublicKey.
func rsaPublic(n, e *big.Int) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(n)
		b.AddASN1BigInt(e)
	})
	return b.BytesOrPanic()
}

// curves are the curves that have a name here, and how a public key is computed on them.
var curves = map[string]struct {
	name  string
	curve ecdh.Curve
	size  int // of a scalar, bytes
}{
	"1.2.840.10045.3.1.1": {"P-192", nil, 0},
	"1.2.840.10045.3.1.7": {"P-256", ecdh.P256(), 32},
	"1.3.132.0.33":        {"P-224", nil, 0},
	"1.3.132.0.34":        {"P-384", ecdh.P384(), 48},
	"1.3.132.0.35":        {"P-521", ecdh.P521(), 66},
	"1.3.132.0.10":        {"secp256k1", nil, 0},
}

// parseSEC1 reads an ECPrivateKey (RFC 5915, section 3). The curve is that of a PrivateKeyInfo
// around it. Without that and without a label it has to name its curve itself, as every
// program writes it.
func parseSEC1(s cryptobyte.String, curve asn1.ObjectIdentifier, labelled bool) (key, bool) {
	var scalar, parameters, public cryptobyte.String
	var hasParameters, hasPublic bool
	if !readVersion(&s, 1) || !s.ReadASN1(&scalar, cbasn1.OCTET_STRING) || len(scalar) < 14 || len(scalar) > 72 ||
		!s.ReadOptionalASN1(&parameters, &hasParameters, cbasn1.Tag(0).ContextSpecific().Constructed()) ||
		!s.ReadOptionalASN1(&public, &hasPublic, cbasn1.Tag(1).ContextSpecific().Constructed()) || !s.Empty() {
		return key{}, false
	}
	switch {
	case hasParameters && parameters.PeekASN1Tag(cbasn1.OBJECT_IDENTIFIER):
		if !parameters.ReadASN1ObjectIdentifier(&curve) {
			return key{}, false
		}
	case hasParameters && !parameters.PeekASN1Tag(cbasn1.SEQUENCE), !hasParameters && !labelled:
		return key{}, false
	}
	k := key{form: "SEC 1", algorithm: "ECDSA"}
	c, known := curves[curve.String()]
	if known {
		k.algorithm += " " + c.name
	}
	if hasPublic {
		return k, public.ReadASN1BitStringAsBytes(&k.public) && public.Empty()
	}
	if c.curve == nil {
		return k, true
	}
	// Some programs write no leading zeros.
	whole := append(make([]byte, max(0, c.size-len(scalar))), scalar...)
	if private, err := c.curve.NewPrivateKey(whole); err == nil {
		k.public = private.PublicKey().Bytes()
	}
	return k, true
}

// maxDSABits bounds the exponentiation that checks a DSA key.
const maxDSABits = 4096

// parseDSA reads the form of OpenSSL: 0, p, q, g, y, x.
func parseDSA(s cryptobyte.String, labelled bool) (key, bool) {
	var p, q, g, y, x *big.Int
	if !readVersion(&s, 0) || !readPositive(&s, &p, &q, &g, &y, &x) || !s.Empty() || p.BitLen() > maxDSABits ||
		p.BitLen() < 256 || x.BitLen() > p.BitLen() {
		return key{}, false
	}
	if !labelled && new(big.Int).Exp(g, x, p).Cmp(y) != 0 {
		return key{}, false
	}
	var b cryptobyte.Builder
	b.AddASN1BigInt(y)
	return key{form: "OpenSSL's", algorithm: fmt.Sprintf("DSA %d", p.BitLen()), public: b.BytesOrPanic()}, true
}

// The bags of a PKCS #12 store that hold private keys, plain and encrypted, and a bag of
// any kind (RFC 7292, 4.2).
var (
	keyBag      = []byte("\x06\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01\x01")
	shroudedBag = []byte("\x06\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01\x02")
	// A ContentInfo of data or signedData, up to the last number of its type.
	contentInfo = []byte("\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07")
	version3    = []byte("\x02\x01\x03\x30")
)

// parsePKCS12 recognizes a PFX (RFC 7292, section 4). NSS writes its lengths in BER, which
// leaves them open, so only the beginning is read as a structure: the version, and a
// ContentInfo of data or signedData.
func parsePKCS12(data []byte) (key, bool) {
	rest, ok := skipHeader(data)
	if !ok {
		return key{}, false
	}
	if rest, ok = bytes.CutPrefix(rest, version3); !ok {
		return key{}, false
	}
	if rest, ok = skipLength(rest); !ok || len(rest) < 11 || !bytes.HasPrefix(rest, contentInfo) ||
		rest[10] != 1 && rest[10] != 2 {
		return key{}, false
	}
	k := key{form: "PKCS #12", encrypted: true}
	switch {
	case bytes.Contains(rest, shroudedBag):
	case bytes.Contains(rest, keyBag):
		k.encrypted = false
	default:
		k.bound = "all that it holds is encrypted, most often certificates alone"
	}
	return k, true
}

// skipHeader removes the tag and the length of a SEQUENCE in BER.
func skipHeader(data []byte) (rest []byte, ok bool) {
	if len(data) < 2 || data[0] != 0x30 {
		return nil, false
	}
	return skipLength(data[1:])
}

func skipLength(data []byte) (rest []byte, ok bool) {
	if len(data) == 0 {
		return nil, false
	}
	n := 1
	if data[0] > 0x80 {
		n += int(data[0] & 0x7f)
	}
	if n > 5 || n > len(data) {
		return nil, false
	}
	return data[n:], true
}
