package keygen

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"iter"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// pemBlock is a PEM block that is not decoded yet. encoding/pem passes over a
// block that is damaged and takes the next: of several keys, that may be another
// one than the file's owner means.
type pemBlock struct {
	kind string // between BEGIN and the dashes
	line int    // of BEGIN, from 1
	text []byte // from BEGIN to END, both lines included
}

// pemBlocks finds the PEM blocks of a file by their BEGIN and END lines. One
// that lacks its END ends before the next BEGIN.
func pemBlocks(data []byte) iter.Seq[pemBlock] {
	return func(yield func(pemBlock) bool) {
		var block pemBlock
		begin, offset, number := 0, 0, 0
		for line := range bytes.Lines(data) {
			number++
			if kind, ok := pemBoundary(line, "-----BEGIN "); ok {
				if block.text = data[begin:offset]; block.kind != "" && !yield(block) {
					return
				}
				block = pemBlock{kind: kind, line: number}
				begin = offset
			}
			offset += len(line)
			if kind, ok := pemBoundary(line, "-----END "); ok && block.kind != "" && kind == block.kind {
				if block.text = data[begin:offset]; !yield(block) {
					return
				}
				block = pemBlock{}
			}
		}
		if block.text = data[begin:]; block.kind != "" {
			yield(block)
		}
	}
}

// pemBoundary returns what stands in a BEGIN or END line.
func pemBoundary(line []byte, prefix string) (kind string, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte(prefix))
	if !ok {
		return "", false
	}
	rest, ok = bytes.CutSuffix(bytes.TrimRight(rest, " \t\r\n"), []byte("-----"))
	return string(rest), ok && len(rest) > 0
}

func (b pemBlock) isPrivateKey() bool {
	return strings.HasSuffix(b.kind, "PRIVATE KEY") || b.kind == "PGP PRIVATE KEY BLOCK"
}

func (b pemBlock) isCertificate() bool {
	return b.kind == "CERTIFICATE" || b.kind == "X509 CERTIFICATE"
}

func (b pemBlock) decode() (*pem.Block, error) {
	block, _ := pem.Decode(b.text)
	if block == nil {
		return nil, fmt.Errorf("PEM block %q at line %d is damaged or cut off", b.kind, b.line)
	}
	return block, nil
}

func (b pemBlock) certificate() (*x509.Certificate, error) {
	block, err := b.decode()
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("certificate at line %d: %w", b.line, err)
	}
	return cert, nil
}

// findKey returns the first private key of a file.
func findKey(data []byte) (pemBlock, error) {
	var other pemBlock
	for block := range pemBlocks(data) {
		if block.isPrivateKey() {
			return block, nil
		}
		if other.kind == "" {
			other = block
		}
	}
	none := func(hint, format string, args ...any) (pemBlock, error) {
		return pemBlock{}, refuse(hint, "no private key: file is "+format, args...)
	}
	switch {
	case other.isCertificate():
		return none("the private key comes first, the certificate after it or with --cert", "a certificate")
	case strings.HasSuffix(other.kind, "PUBLIC KEY"):
		return none("signing needs the private half", "a public key")
	case other.kind != "":
		return none("", "PEM, but of a %q", other.kind)
	case bytes.HasPrefix(data, []byte("PuTTY-User-Key-File-")):
		return none("puttygen FILE -O private-openssh, then ssh-keygen -p -m PKCS8", "a PuTTY key")
	}
	if what, hint := describeDER(data); what != "" {
		return none(hint, "%s", what)
	}
	return none("", "not PEM")
}

// describeDER tells apart the DER files that people take for a key or a
// certificate.
func describeDER(data []byte) (what, hint string) {
	s := cryptobyte.String(data)
	var body cryptobyte.String
	if !s.ReadASN1(&body, cbasn1.SEQUENCE) {
		return "", ""
	}
	if _, err := x509.ParseCertificate(data[:len(data)-len(s)]); err == nil {
		return "a DER certificate", "the private key comes first, the certificate with --cert"
	}
	if _, err := x509.ParsePKIXPublicKey(data); err == nil {
		return "a DER public key", "signing needs the private half"
	}
	const toPEM = "openssl pkey -inform DER -in FILE -out KEY.pem"
	var version int
	if first := body; first.ReadASN1Integer(&version) {
		var next cryptobyte.String
		var tag cbasn1.Tag
		if !first.ReadAnyASN1(&next, &tag) {
			return "", ""
		}
		var oid asn1.ObjectIdentifier
		switch {
		case version == 3 && tag == cbasn1.SEQUENCE && next.ReadASN1ObjectIdentifier(&oid) && strings.HasPrefix(oid.String(), "1.2.840.113549.1.7."):
			return "a PKCS #12 store", "openssl pkcs12 -in FILE -noenc -out KEY.pem, then chmod 600 KEY.pem"
		case version == 0, version == 1:
			return "a private key in DER, and the kernel's sign-file takes PEM", toPEM
		}
		return "", ""
	}
	var oid asn1.ObjectIdentifier
	var algorithm, encrypted cryptobyte.String
	if body.ReadASN1(&algorithm, cbasn1.SEQUENCE) && algorithm.ReadASN1ObjectIdentifier(&oid) &&
		body.ReadASN1(&encrypted, cbasn1.OCTET_STRING) && body.Empty() {
		return "an encrypted private key in DER, and the kernel's sign-file takes PEM", toPEM
	}
	return "", ""
}

// maxKeySize bounds a private key in DER. An RSA key of 16384 bits, the most that
// OpenSSL knows, has 9 KB; checking one of a hundred KB takes seconds.
const maxKeySize = 32 << 10

// privateKey decodes the key of the block and asks for a passphrase if it needs
// one.
func (b pemBlock) privateKey(ask Passphrase, limits kdfLimits) (crypto.Signer, error) {
	switch b.kind {
	case "OPENSSH PRIVATE KEY":
		return nil, refuse("on a copy: ssh-keygen -p -m PKCS8 -f COPY", "private key is in OpenSSH's own format")
	case "PGP PRIVATE KEY BLOCK":
		return nil, refuse("the kernel knows X.509 alone: make a key with modsign keygen", "private key is an OpenPGP key")
	case "DSA PRIVATE KEY":
		return nil, unsupportedKey("DSA")
	}
	block, err := b.decode()
	if err != nil {
		return nil, err
	}
	if len(block.Bytes) > maxKeySize {
		return nil, fmt.Errorf("private key has %d bytes, and at most %d are taken", len(block.Bytes), maxKeySize)
	}
	switch b.kind {
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
		if b.kind == "RSA PRIVATE KEY" {
			return checkKey(x509.ParsePKCS1PrivateKey(der))
		}
		return checkKey(parseSEC1(der))
	}
	return nil, unsupportedKey(strings.TrimSuffix(b.kind, " PRIVATE KEY"))
}

// passphrase asks for the passphrase.
func (ask Passphrase) passphrase() ([]byte, error) {
	if ask == nil {
		return nil, noPassphrase()
	}
	passphrase, err := ask()
	if errors.Is(err, ErrNoPassphrase) {
		return nil, noPassphrase()
	}
	if err != nil {
		return nil, fmt.Errorf("private key is encrypted, and asking for its passphrase failed: %w", err)
	}
	return passphrase, nil
}

func noPassphrase() error {
	return refuse("set KBUILD_SIGN_PIN, use --passphrase-file, or run on a terminal to be asked", "%w", ErrNoPassphrase)
}

// unsupportedKey refuses a kind of key.
func unsupportedKey(kind string) error {
	return refuse("make one with modsign keygen", "private key is a %s key, and modules are signed with RSA or ECDSA (P-256, P-384, P-521)", kind)
}

// checkKey keeps the keys that modules are signed with here. It takes what the
// parsers of crypto/x509 return, which have computed an RSA key's CRT values:
// without them each signature would take twice as long.
func checkKey(key any, err error) (crypto.Signer, error) {
	if _, ok := errors.AsType[*LoadError](err); ok {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("private key is damaged or not supported: %w", err)
	}
	switch key := key.(type) {
	case *rsa.PrivateKey:
		// What crypto/rsa would say at the first signature.
		if bits := key.N.BitLen(); bits < 1024 {
			return nil, refuse("make one with modsign keygen", "RSA key has %d bits, and at least 1024 are needed", bits)
		}
		return key, nil
	case *ecdsa.PrivateKey:
		switch key.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return key, nil
		}
		return nil, unsupportedKey(key.Curve.Params().Name)
	}
	return nil, unsupportedKey(fmt.Sprintf("%T", key))
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
	switch name := oid.String(); name {
	case "1.2.840.113549.1.1.1":
		return x509.ParsePKCS8PrivateKey(der)
	case "1.2.840.10045.2.1":
		if err := checkCurve(algorithm); err != nil {
			return nil, err
		}
		return x509.ParsePKCS8PrivateKey(der)
	case "1.2.840.113549.1.1.10":
		return nil, unsupportedKey("RSA-PSS")
	case "1.2.840.10040.4.1":
		return nil, unsupportedKey("DSA")
	case "1.2.840.113549.1.3.1":
		return nil, unsupportedKey("Diffie-Hellman")
	case "1.3.101.110", "1.3.101.111":
		return nil, unsupportedKey("key agreement (X25519, X448)")
	case "1.3.101.112":
		return nil, unsupportedKey("Ed25519")
	case "1.3.101.113":
		return nil, unsupportedKey("Ed448")
	case "2.16.840.1.101.3.4.3.17", "2.16.840.1.101.3.4.3.18", "2.16.840.1.101.3.4.3.19":
		return nil, unsupportedKey("ML-DSA")
	default:
		return nil, unsupportedKey("(algorithm " + name + ")")
	}
}

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
		return nil, refuse("openssl pkey -in FILE -out KEY.pem", "EC key does not name its curve")
	}
	if err := checkCurve(params); err != nil {
		return nil, err
	}
	return x509.ParseECPrivateKey(der)
}

// checkCurve names the curves that are refused.
func checkCurve(params cryptobyte.String) error {
	if params.PeekASN1Tag(cbasn1.SEQUENCE) {
		return refuse("openssl pkey -in FILE -ec_param_enc named_curve -out KEY.pem", "EC key spells its curve out instead of naming it")
	}
	var oid asn1.ObjectIdentifier
	if !params.ReadASN1ObjectIdentifier(&oid) {
		return errors.New("EC key has no curve")
	}
	switch name := oid.String(); name {
	case "1.2.840.10045.3.1.7", "1.3.132.0.34", "1.3.132.0.35":
		return nil
	case "1.2.840.10045.3.1.1":
		return unsupportedKey("P-192")
	case "1.3.132.0.33":
		return unsupportedKey("P-224")
	case "1.3.132.0.10":
		return unsupportedKey("secp256k1")
	case "1.2.156.10197.1.301":
		return unsupportedKey("SM2")
	default:
		if strings.HasPrefix(name, "1.3.36.3.3.2.8.1.1.") {
			return unsupportedKey("Brainpool")
		}
		return unsupportedKey("EC (curve " + name + ")")
	}
}
