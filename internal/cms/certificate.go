package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode"

	"filippo.io/mldsa"

	"github.com/modsign/modsign/internal/mldsamu"
)

// Certificate is an X.509 certificate as the kernel reads it. Its byte slices refer to
// the parsed bytes.
type Certificate struct {
	Raw        []byte // the whole certificate, without trailing bytes
	RawTBS     []byte // the TBSCertificate element
	RawIssuer  []byte // the Name element
	RawSubject []byte // the Name element

	Serial       []byte // contents of the INTEGER
	SubjectKeyID []byte // nil if it has none

	// The kernel compares them with the time that a message with the certificate inside says
	// it was signed at, and with nothing else.
	NotBefore, NotAfter time.Time

	// PublicKey is a *rsa.PublicKey, an *ecdsa.PublicKey on P-256, P-384 or P-521, a
	// *mldsa.PublicKey, or nil. If it is nil, KeyProblem tells why this package cannot
	// verify signatures with the key.
	PublicKey    any
	KeyAlgorithm string // the kernel's name: rsa, ecdsa-nist-p256, ecrdsa, mldsa65, ...
	KeyProblem   string

	// What the kernel reads in the extensions, from Linux 6.4 on: basic constraints with
	// CA:TRUE, and the key usages keyCertSign and digitalSignature.
	CA, CertSign, DigitalSignature bool

	id             []byte // serial ‖ issuer: the kernel's first key id
	issuer         []byte // contents of RawIssuer
	subject        []byte // contents of RawSubject
	authority      []byte // issuer and serial in the authority key identifier, nil if absent
	authorityKeyID []byte // key identifier in it, nil if absent
	keyErrno       syscall.Errno
	mldsa          *mldsamu.PublicKey // of PublicKey
	signature      signature
	selfSigned     bool
	rules          *Rules
}

// signature holds the algorithms and the value of a signature in a SignerInfo or
// certificate.
type signature struct {
	algorithm string      // rsa, ecdsa, ecrdsa, mldsa44...
	hash      crypto.Hash // 0 if there is none, or this package cannot compute it
	hashName  string      // the kernel's
	value     []byte
	// attributes, if there are any, are what was signed: as a SET.
	attributes []byte
}

const (
	pkcs1Arc = "\x2a\x86\x48\x86\xf7\x0d\x01\x01" // 1.2.840.113549.1.1
	gostArc  = "\x2a\x85\x03\x07\x01\x01"         // 1.2.643.7.1.1

	oidRSA      = pkcs1Arc + "\x01"
	oidEC       = ansiX962 + "\x02\x01"
	oidP192     = ansiX962 + "\x03\x01\x01"
	oidP256     = ansiX962 + "\x03\x01\x07"
	oidP384     = "\x2b\x81\x04\x00\x22"
	oidP521     = "\x2b\x81\x04\x00\x23"
	oidGOST256  = gostArc + "\x01\x01"
	oidGOST512  = gostArc + "\x01\x02"
	oidMLDSA44  = nistSignatures + "\x11"
	oidMLDSA65  = nistSignatures + "\x12"
	oidMLDSA87  = nistSignatures + "\x13"
	oidSM3      = "\x2a\x81\x1c\xcf\x55\x01\x83\x11" // 1.2.156.10197.1.401
	oidStreebog = gostArc + "\x02"                   // and 2 or 3
	oidSM2      = "\x2a\x81\x1c\xcf\x55\x01\x82\x2d" // 1.2.156.10197.1.301

	oidSM2WithSM3 = "\x2a\x81\x1c\xcf\x55\x01\x83\x75" // 1.2.156.10197.1.501

	oidCommonName   = "\x55\x04\x03"
	oidOrganization = "\x55\x04\x0a"
	oidEmailAddress = "\x2a\x86\x48\x86\xf7\x0d\x01\x09\x01"

	oidSubjectKeyID     = "\x55\x1d\x0e"
	oidKeyUsage         = "\x55\x1d\x0f"
	oidBasicConstraints = "\x55\x1d\x13"
	oidAuthorityKeyID   = "\x55\x1d\x23"
)

// rsaWithHash maps the signature algorithms that name both RSA and a digest.
var rsaWithHash = map[string]crypto.Hash{
	pkcs1Arc + "\x05":       crypto.SHA1,
	pkcs1Arc + "\x0e":       crypto.SHA224,
	pkcs1Arc + "\x0b":       crypto.SHA256,
	pkcs1Arc + "\x0c":       crypto.SHA384,
	pkcs1Arc + "\x0d":       crypto.SHA512,
	nistSignatures + "\x0e": crypto.SHA3_256,
	nistSignatures + "\x0f": crypto.SHA3_384,
	nistSignatures + "\x10": crypto.SHA3_512,
}

// certificateSignature returns the algorithms of a certificate's signatureAlgorithm,
// and whether the kernel supports it.
func (r *Rules) certificateSignature(oid string) (signature, bool) {
	if h, ok := rsaWithHash[oid]; ok {
		return signature{algorithm: "rsa", hash: h, hashName: HashName(h)}, r.sha3 || !isSHA3(h)
	}
	for i := range hashes {
		if a := &hashes[i]; a.ecdsa == oid {
			return signature{algorithm: "ecdsa", hash: a.hash, hashName: a.name}, r.sha3 || !isSHA3(a.hash)
		}
	}
	switch oid {
	case gostArc + "\x03\x02":
		return signature{algorithm: "ecrdsa", hashName: "streebog256"}, true
	case gostArc + "\x03\x03":
		return signature{algorithm: "ecrdsa", hashName: "streebog512"}, true
	}
	if set := mldsaByOID(oid); set != nil {
		return signature{algorithm: set.name}, r.mldsa
	}
	if oid == oidSM2WithSM3 {
		return signature{algorithm: "sm2", hashName: "sm3"}, r.sm2
	}
	return signature{}, false
}

func isSHA3(h crypto.Hash) bool {
	return h == crypto.SHA3_256 || h == crypto.SHA3_384 || h == crypto.SHA3_512
}

// ParseCertificate parses a certificate by the kernel's rules (x509_cert_parser.c), and
// ignores trailing bytes. A self-signed certificate with a wrong signature is an error,
// as in the kernel. A key that the kernel can use and this package cannot is not an
// error: see PublicKey. Errors are of type *Error, with the kernel's errno.
func (r *Rules) ParseCertificate(der []byte) (*Certificate, error) {
	c, err := r.decodeCertificate(der)
	if err != nil {
		return nil, err
	}
	if err := c.checkSelfSigned(); err != nil {
		return nil, err
	}
	return c, nil
}

// ParseCertificates parses successive certificates with [Rules.ParseCertificate], up to the
// end of der or to zero bytes that fill it.
func (r *Rules) ParseCertificates(der []byte) ([]*Certificate, error) {
	var certs []*Certificate
	for rest := der; len(bytes.TrimLeft(rest, "\x00")) > 0; {
		c, err := r.ParseCertificate(rest[:min(len(rest), MaxSize)])
		if err != nil {
			return nil, fmt.Errorf("certificate %d at offset %d: %w", len(certs)+1, len(der)-len(rest), err)
		}
		certs = append(certs, c)
		rest = rest[len(c.Raw):]
	}
	return certs, nil
}

// ParseCertificateList parses the list of certificates that is built into a kernel as
// that kernel does at boot (x509_loader.c). A certificate that the kernel cannot load
// is left out. The list ends at a certificate that does not begin with the octets 30
// 82, that is, one shorter than 256 bytes. The error names every certificate left out
// and where the list ended early; the returned certificates are still valid.
func (r *Rules) ParseCertificateList(der []byte) ([]*Certificate, error) {
	var certs []*Certificate
	var problems []error
	for offset := 0; offset < len(der); {
		rest := der[offset:]
		length := 0
		if len(rest) >= 4 && rest[0] == tagSequence && rest[1] == 0x82 {
			length = 4 + int(rest[2])<<8 + int(rest[3])
		}
		if length == 0 || length > len(rest) {
			problems = append(problems, fmt.Errorf("offset %d: %w", offset, &Error{Kind: Malformed, Errno: syscall.EBADMSG,
				Reason: fmt.Sprintf(
					"no certificate of 256 to 65535 bytes; the kernel ignores this and the following %d bytes", len(rest)),
				Dmesg: "Problem parsing in-kernel X.509 certificate list"}))
			break
		}
		c, err := r.ParseCertificate(rest[:length])
		if err != nil {
			problems = append(problems, fmt.Errorf("certificate at offset %d: %w", offset, err))
		} else {
			certs = append(certs, c)
		}
		offset += length
	}
	return certs, errors.Join(problems...)
}

// decodeCertificate is ParseCertificate without the check of a self-signature.
func (r *Rules) decodeCertificate(der []byte) (*Certificate, error) {
	if len(der) > MaxSize {
		return nil, tooLarge(len(der))
	}
	d := newDecoder(der)
	c := &Certificate{rules: r}
	var authorityKeyID []byte
	d.need(tagSequence)
	d.need(tagSequence)
	if d.maybe(constructed0) { // version, ignored
		d.need(tagInteger)
		d.leave()
	}
	d.need(tagInteger)
	c.Serial = d.value()
	d.need(tagSequence)
	inner, _ := d.algorithm()
	if d.err == nil {
		var known bool
		if c.signature, known = r.certificateSignature(inner); !known {
			d.fail(&Error{Kind: Unsupported, Errno: syscall.ENOPKG,
				Reason: "certificate signed with an algorithm that the kernel does not support: " + describeOID(inner)})
		}
	}
	d.need(tagSequence)
	d.name()
	c.RawIssuer, c.issuer = d.element(), d.value()
	d.need(tagSequence)
	c.NotBefore = d.time()
	c.NotAfter = d.time()
	d.leave()
	d.need(tagSequence)
	d.name()
	c.RawSubject, c.subject = d.element(), d.value()
	d.need(tagSequence)
	d.need(tagSequence)
	algorithm, parameters := d.algorithm()
	d.need(tagBitString)
	c.publicKey(&d, algorithm, parameters, d.value())
	d.leave()
	d.maybe(primitive0 + 1) // issuerUniqueID and subjectUniqueID
	d.maybe(primitive0 + 2)
	if d.maybe(constructed0 + 3) {
		d.need(tagSequence)
		for {
			d.need(tagSequence)
			d.need(tagOID)
			extension := string(d.value())
			d.maybe(tagBoolean)
			d.need(tagOctetString)
			if d.err == nil {
				authorityKeyID = c.extension(&d, extension, d.value(), authorityKeyID)
			}
			d.leave()
			if !d.again() {
				break
			}
		}
		d.leave()
	}
	d.leave()
	if d.err == nil {
		// Not element: the end of an indefinite length is not signed.
		c.RawTBS = d.data[d.start-d.header : d.after : d.after]
	}
	d.need(tagSequence)
	outer, _ := d.algorithm()
	d.need(tagBitString)
	if d.err == nil && outer != inner {
		d.fail(&Error{Kind: Malformed, Errno: syscall.EINVAL,
			Reason: fmt.Sprintf("certificate's signatureAlgorithm %s differs from tbsCertificate.signature %s",
				describeOID(outer), describeOID(inner)),
			Dmesg: "X.509: signatureAlgorithm (N) differs from tbsCertificate.signature (N)"})
	}
	c.signature.value = d.bitString(d.value())
	d.leave()
	c.Raw = d.data[:d.pos:d.pos]
	if d.err == nil && authorityKeyID != nil {
		d.fail(c.parseAuthorityKeyID(authorityKeyID))
	}
	if d.err != nil {
		return nil, d.err
	}
	c.id = slices.Concat(c.Serial, c.issuer)
	return c, nil
}

func tooLarge(size int) error {
	return &Error{Kind: Malformed, Errno: syscall.EMSGSIZE,
		Reason: fmt.Sprintf("%d bytes of ASN.1; the kernel takes at most %d", size, MaxSize)}
}

// bitString returns the octets of a BIT STRING, which must consist of whole octets.
func (d *decoder) bitString(contents []byte) []byte {
	if d.err != nil {
		return nil
	}
	if len(contents) < 1 || contents[0] != 0 {
		d.broken(d.start, "bit string that is not a whole number of octets")
		return nil
	}
	return contents[1:]
}

// time reads a Time in a certificate's validity.
func (d *decoder) time() time.Time {
	d.choice(tagUTCTime, tagGeneralizedTime)
	if d.err != nil {
		return time.Time{}
	}
	// At the end of the validity choice has read nothing, and this is the previous
	// element again: like the kernel, use a lone notBefore as notAfter too.
	return d.decodeTime(d.tag, d.data[d.start:d.after])
}

// decodeTime parses YYMMDDHHMMSSZ and YYYYMMDDHHMMSSZ within the limits of the kernel's
// x509_decode_time.
func (d *decoder) decodeTime(tag byte, value []byte) time.Time {
	digits, wantDigits := value, 12
	if tag == tagGeneralizedTime {
		wantDigits = 14
	}
	if tag != tagUTCTime && tag != tagGeneralizedTime || len(value) != wantDigits+1 || value[wantDigits] != 'Z' ||
		slices.ContainsFunc(value[:wantDigits], func(b byte) bool { return b < '0' || b > '9' }) {
		d.broken(d.start, "time %q is neither YYMMDDHHMMSSZ nor YYYYMMDDHHMMSSZ", value)
		return time.Time{}
	}
	two := func() int {
		n := int(digits[0]-'0')*10 + int(digits[1]-'0')
		digits = digits[2:]
		return n
	}
	year := two()
	switch {
	case tag == tagGeneralizedTime:
		year = year*100 + two()
		if year >= 1950 && year <= 2049 {
			d.broken(d.start, "GeneralizedTime %q for a year that requires UTCTime", value)
			return time.Time{}
		}
	case year >= 50:
		year += 1900
	default:
		year += 2000
	}
	month, day, hour, minute, second := two(), two(), two(), two(), two()
	// The kernel accepts hour 24 and second 60.
	if year < 1970 || month < 1 || month > 12 || day < 1 || hour > 24 || minute > 59 || second > 60 ||
		day > time.Date(year, time.Month(month)+1, 0, 0, 0, 0, 0, time.UTC).Day() {
		d.broken(d.start, "invalid time %q", value)
		return time.Time{}
	}
	return time.Date(year, time.Month(month), day, hour, minute, second, 0, time.UTC)
}

// publicKey sets the key from a SubjectPublicKeyInfo. An algorithm that no kernel
// supports is an error. A key that only this package cannot use sets KeyProblem.
func (c *Certificate) publicKey(d *decoder, algorithm string, parameters, bits []byte) {
	if d.err != nil {
		return
	}
	curve := ""
	unsupported := func() {
		d.fail(&Error{Kind: Unsupported, Errno: syscall.ENOPKG,
			Reason: "certificate's key is of an algorithm that the kernel does not support: " + describeOID(algorithm)})
	}
	switch algorithm {
	case oidRSA:
		c.KeyAlgorithm = "rsa"
	case oidGOST256, oidGOST512:
		c.KeyAlgorithm = "ecrdsa"
	case oidMLDSA44, oidMLDSA65, oidMLDSA87:
		if c.KeyAlgorithm = mldsaByOID(algorithm).name; !c.rules.mldsa {
			unsupported()
			return
		}
	case oidSM2:
		if c.KeyAlgorithm = "sm2"; !c.rules.sm2 {
			unsupported()
			return
		}
	case oidEC:
		if len(parameters) < 3 || parameters[0] != tagOID || int(parameters[1]) != len(parameters)-2 {
			d.broken(d.start, "elliptic curve key without a named curve")
			return
		}
		switch curve = string(parameters[2:]); curve {
		case oidP192:
			c.KeyAlgorithm = "ecdsa-nist-p192"
		case oidP256:
			c.KeyAlgorithm = "ecdsa-nist-p256"
		case oidP384:
			c.KeyAlgorithm = "ecdsa-nist-p384"
		case oidP521:
			c.KeyAlgorithm = "ecdsa-nist-p521"
		case oidSM2:
			c.KeyAlgorithm = "sm2"
		}
		if c.KeyAlgorithm == "" || curve == oidP521 && !c.rules.p521 || curve == oidSM2 && !c.rules.sm2 {
			d.fail(&Error{Kind: Unsupported, Errno: syscall.ENOPKG,
				Reason: "certificate's key is on a curve that the kernel does not support: " + describeOID(curve)})
			return
		}
	default:
		unsupported()
		return
	}
	key := d.bitString(bits)
	if d.err != nil {
		return
	}
	switch c.KeyAlgorithm {
	case "rsa":
		c.rsaKey(key)
	case "ecdsa-nist-p256":
		c.ecdsaKey(elliptic.P256(), key)
	case "ecdsa-nist-p384":
		c.ecdsaKey(elliptic.P384(), key)
	case "ecdsa-nist-p521":
		c.ecdsaKey(elliptic.P521(), key)
	default:
		if set := mldsaByName(c.KeyAlgorithm); set != nil {
			c.mldsaKey(set.parameters, key)
			return
		}
		c.keyErrno, c.KeyProblem = syscall.ENOPKG, "modsign cannot verify "+c.KeyAlgorithm+" signatures"
	}
}

// rsaKey reads SEQUENCE { INTEGER n, INTEGER e }. The kernel reads it only when it
// verifies a signature, and takes both numbers as positive.
func (c *Certificate) rsaKey(der []byte) {
	d := newDecoder(der)
	d.need(tagSequence)
	d.need(tagInteger)
	n := new(big.Int).SetBytes(d.value())
	d.need(tagInteger)
	e := new(big.Int).SetBytes(d.value())
	d.leave()
	switch {
	case d.err != nil:
		c.keyErrno, c.KeyProblem = syscall.EBADMSG, "broken RSA key: "+d.err.Error()
	case (n.BitLen()+7)/8 == 64:
		c.keyErrno, c.KeyProblem = syscall.ENOPKG, "modsign cannot verify with RSA keys of 512 bits"
	case !slices.Contains(rsaSizes, (n.BitLen()+7)/8*8):
		c.keyErrno = syscall.EINVAL
		c.KeyProblem = fmt.Sprintf("RSA key of %d bits; the kernel verifies only %s", n.BitLen(), rsaSizeNames())
	case e.BitLen() > 31:
		c.keyErrno = syscall.ENOPKG
		c.KeyProblem = fmt.Sprintf("modsign cannot verify with an RSA exponent of %d bits", e.BitLen())
	default:
		c.PublicKey = &rsa.PublicKey{N: n, E: int(e.Int64())}
	}
}

// rsaSizes are the RSA key lengths, in bits, that the kernel's crypto/rsa.c accepts,
// except 512, which Go's crypto/rsa rejects. In the kernel's FIPS mode the smallest is
// 2048.
var rsaSizes = []int{1024, 1536, 2048, 3072, 4096}

func rsaSizeNames() string {
	return strings.ReplaceAll(strings.Trim(fmt.Sprint(rsaSizes), "[]"), " ", ", ") + " bits"
}

func (c *Certificate) ecdsaKey(curve elliptic.Curve, point []byte) {
	key, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		c.keyErrno, c.KeyProblem = syscall.EINVAL, "elliptic curve key is not an uncompressed point on "+curve.Params().Name
		return
	}
	c.PublicKey = key
}

func (c *Certificate) mldsaKey(p mldsa.Parameters, encoded []byte) {
	key, err := mldsa.NewPublicKey(p, encoded)
	if err != nil {
		c.keyErrno = syscall.EINVAL
		c.KeyProblem = fmt.Sprintf("%s key of %d bytes, which has %d", p, len(encoded), p.PublicKeySize())
		return
	}
	c.PublicKey, c.mldsa = key, mldsamu.NewPublicKey(key)
}

// extension handles the extensions that the kernel reads. It returns the contents of
// the last authority key identifier, which is decoded at the end.
func (c *Certificate) extension(d *decoder, oid string, v, authorityKeyID []byte) []byte {
	switch oid {
	case oidSubjectKeyID:
		switch {
		case c.SubjectKeyID != nil:
			d.broken(d.start, "two subject key identifiers")
		case len(v) < 3 || v[0] != tagOctetString || int(v[1]) != len(v)-2:
			d.broken(d.start, "bad subject key identifier")
		default:
			c.SubjectKeyID = v[2:]
		}
	case oidKeyUsage:
		if !c.rules.extensions {
			break
		}
		if len(v) < 4 || v[0] != tagBitString || v[2] >= 8 {
			d.broken(d.start, "bad key usage")
			break
		}
		c.DigitalSignature = v[3]&0x80 != 0
		// The kernel's test, which wants the bits that are not used counted (x509_cert_parser.c).
		c.CertSign = v[3]&0x04 != 0 && (v[1] == 2 && v[2] <= 2 || v[1] == 3 && len(v) > 4)
	case oidBasicConstraints:
		switch {
		case !c.rules.extensions:
		case len(v) < 2 || v[0] != tagSequence || int(v[1]) != len(v)-2:
			d.broken(d.start, "bad basic constraints")
		case len(v) > 2 && (len(v) < 5 || !bytes.Equal(v[2:5], []byte{tagBoolean, 1, 0xff})):
			d.broken(d.start, "basic constraints that are neither empty nor begin with CA:TRUE")
		default:
			c.CA = len(v) > 2
		}
	case oidAuthorityKeyID:
		return v
	}
	return authorityKeyID
}

// parseAuthorityKeyID reads the identifiers of the issuer's certificate.
func (c *Certificate) parseAuthorityKeyID(der []byte) error {
	d := newDecoder(der)
	var issuer []byte
	readName := d.generalName
	if !c.rules.otherNames {
		readName = d.oldGeneralName
	}
	d.need(tagSequence)
	if d.maybe(primitive0) {
		c.authorityKeyID = d.value()
	}
	if d.maybe(constructed0 + 1) {
		for {
			if name := readName(); name != nil {
				issuer = name
			}
			if !d.again() {
				break
			}
		}
	}
	if d.maybe(primitive0+2) && issuer != nil {
		c.authority = slices.Concat(d.value(), issuer)
	}
	d.leave()
	if broken, ok := errors.AsType[*Error](d.err); ok {
		return &Error{Kind: Malformed, Errno: broken.Errno, Reason: "authority key identifier: " + broken.Reason,
			Dmesg: "X.509: Couldn't decode AuthKeyIdentifier"}
	}
	return nil
}

// generalName reads a GeneralName and returns the contents of the Name in a
// directoryName.
func (d *decoder) generalName() (name []byte) {
	switch d.choice(constructed0, primitive0+1, primitive0+2, constructed0+3, constructed0+4, constructed0+5, primitive0+6,
		primitive0+7, primitive0+8) {
	case constructed0: // otherName
		d.need(tagOID)
		d.need(constructed0)
		d.needAny()
		d.leave()
		d.leave()
	case constructed0 + 3: // x400Address
		d.needAny()
		d.leave()
	case constructed0 + 4:
		d.need(tagSequence)
		d.name()
		name = d.value()
		d.leave()
	case constructed0 + 5: // ediPartyName
		if d.maybe(constructed0) {
			d.needAny()
			d.leave()
		}
		d.need(constructed0 + 1)
		d.needAny()
		d.leave()
		d.leave()
	}
	return name
}

// oldGeneralName is generalName with the grammar of Linux 6.1, in which every choice has its
// own type inside of its tag.
func (d *decoder) oldGeneralName() (name []byte) {
	tag := d.choice(constructed0, constructed0+1, constructed0+2, constructed0+3, constructed0+4, constructed0+5,
		constructed0+6, constructed0+7, constructed0+8)
	switch tag {
	case constructed0, constructed0 + 3, constructed0 + 5:
		d.needAny()
	case constructed0 + 4:
		d.need(tagSequence)
		d.name()
		name = d.value()
	case constructed0 + 7:
		d.need(tagOctetString)
	case constructed0 + 8:
		d.need(tagOID)
	default:
		d.need(tagIA5String)
	}
	d.leave()
	return name
}

// checkSelfSigned determines whether the certificate is self-signed. It fails if issuer
// and subject are the same and the signature is wrong, as x509_check_for_self_signed
// does.
func (c *Certificate) checkSelfSigned() error {
	if !bytes.Equal(c.subject, c.issuer) {
		return nil
	}
	if c.authority != nil || c.authorityKeyID != nil {
		byKeyID := sameID(c.SubjectKeyID, c.authorityKeyID)
		bySerial := sameID(c.id, c.authority)
		if !byKeyID && !bySerial {
			return nil
		}
		if byKeyID != bySerial && c.authority != nil && c.authorityKeyID != nil {
			return &Error{Kind: Malformed, Errno: syscall.EKEYREJECTED,
				Reason: "certificate's authority key identifier names two different issuers"}
		}
	}
	err := c.verify(&c.signature, c.tbs)
	if e, ok := errors.AsType[*Error](err); ok {
		if e.Errno == syscall.ENOPKG {
			return nil
		}
		return &Error{Kind: e.Kind, Errno: e.Errno, Reason: "self-signed certificate: " + e.Reason}
	}
	c.selfSigned = true
	return nil
}

// sameID compares two key ids; nil equals none.
func sameID(a, b []byte) bool { return a != nil && b != nil && bytes.Equal(a, b) }

// Name returns the kernel's name for the certificate's subject: its common name, after
// the organisation unless the name begins with that; without a common name, the
// organisation or else the e-mail address. Unprintable characters are replaced.
func (c *Certificate) Name() string { return kernelName(c.subject) }

// Issuer returns the kernel's name for the certificate's issuer; see
// [Certificate.Name].
func (c *Certificate) Issuer() string { return kernelName(c.issuer) }

// Description returns the quoted part of the kernel's line "Loaded X.509 cert '...'":
// the name, and the subject key identifier in hexadecimal or else the serial number.
func (c *Certificate) Description() string {
	id := c.Serial
	if c.SubjectKeyID != nil {
		id = c.SubjectKeyID
	}
	return c.Name() + ": " + hex.EncodeToString(id)
}

// kernelName does what x509_fabricate_name does, for the contents of a parsed Name. The
// last of several values counts.
func kernelName(contents []byte) string {
	var commonName, organization, email []byte
	d := newDecoder(contents)
	for d.pos < d.end && d.err == nil {
		d.need(tagSet)
		for {
			d.need(tagSequence)
			d.need(tagOID)
			attribute := string(d.value())
			d.needAny()
			switch attribute {
			case oidCommonName:
				commonName = d.value()
			case oidOrganization:
				organization = d.value()
			case oidEmailAddress:
				email = d.value()
			}
			d.leave()
			if !d.again() {
				break
			}
		}
	}
	name := commonName
	switch {
	case len(commonName) > 0 && len(organization) > 0:
		const significant = 7
		if !bytes.HasPrefix(commonName, organization) &&
			(len(commonName) < significant || len(organization) < significant ||
				!bytes.Equal(commonName[:significant], organization[:significant])) {
			name = slices.Concat(organization, []byte(": "), commonName)
		}
	case len(commonName) > 0:
	case len(organization) > 0:
		name = organization
	default:
		name = email
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, string(name))
}

// describeOID names algorithms that are used in certificates and that the kernel does
// not support.
func describeOID(oid string) string {
	switch oid {
	case pkcs1Arc + "\x0a":
		return "RSASSA-PSS"
	case "\x2b\x65\x70":
		return "Ed25519"
	case "\x2b\x65\x71":
		return "Ed448"
	case "\x2b\x81\x04\x00\x21":
		return "P-224"
	case "\x2b\x81\x04\x00\x0a":
		return "secp256k1"
	case pkcs1Arc + "\x04":
		return "md5WithRSAEncryption"
	}
	if set := mldsaByOID(oid); set != nil {
		return set.name
	}
	return dotted(oid)
}

// Mu returns the Hash of the certificate's key if that is of ML-DSA, or nil.
func (c *Certificate) Mu() Hash {
	if c.mldsa == nil {
		return nil
	}
	return c.mldsa
}

// Blacklisted reports whether a list as in CONFIG_SYSTEM_BLACKLIST_HASH_LIST names the
// certificate (tbs:).
func (c *Certificate) Blacklisted(list []string) bool {
	sum := c.TBSHash()
	return sum != nil && slices.ContainsFunc(list, func(entry string) bool {
		digest, ok := strings.CutPrefix(entry, "tbs:")
		listed, err := hex.DecodeString(digest)
		return ok && err == nil && bytes.Equal(listed, sum)
	})
}

// tbs is the digest of what the signature on the certificate is for.
func (c *Certificate) tbs(h Hash) ([]byte, error) { return sum(h, c.RawTBS), nil }

// TBSHash returns the hash by which a blacklist names the certificate (tbs:). It is nil if
// this package cannot compute it.
func (c *Certificate) TBSHash() []byte {
	switch {
	case c.rules.tbsSHA256:
		return sum(crypto.SHA256, c.RawTBS)
	case c.signature.hash == 0:
		return nil
	}
	return sum(c.signature.hash, c.RawTBS)
}
