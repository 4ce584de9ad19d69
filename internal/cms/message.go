package cms

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Message is a parsed CMS SignedData. Its byte slices refer to the parsed bytes.
type Message struct {
	Raw          []byte // the message, without trailing bytes
	Trailing     int    // number of bytes after it; the kernel ignores them
	Version      int    // 1 or 3
	Signers      []SignerInfo
	Certificates []*Certificate // embedded ones
	HasContent   bool           // the signed data is inside; an error for a module

	authenticode bool // content type msIndirectData
	notDER       bool
	notes        []string
	rules        *Rules

	// For Add, as elements:
	digests []algorithm // of digestAlgorithms
	content []byte      // encapContentInfo
	between []byte      // the fields certificates and crls, as far as they are there
}

// algorithm is an AlgorithmIdentifier.
type algorithm struct {
	oid string
	raw []byte
}

// SignerInfo is one signature of a message.
type SignerInfo struct {
	Version int // 1: named by issuer and serial number; 3: by key id

	RawIssuer    []byte // the Name element; nil if the signer is named by key id
	Serial       []byte // contents of the INTEGER; nil if the signer is named by key id
	SubjectKeyID []byte // nil if the signer is named by issuer and serial number

	Hash          crypto.Hash // 0 if the kernel knows the digest and this package does not: see HashName
	HashName      string      // the kernel's: sha512, sha3-256, sm3, streebog256, streebog512
	Algorithm     string      // the kernel's: rsa, ecdsa, ecrdsa, mldsa65...
	Signature     []byte
	HasAttributes bool // signed attributes; an error for a module, unless it is waived for ML-DSA
	Unsigned      bool // unsigned attributes; ignored

	raw       []byte // the whole element
	digest    string // object identifier of the digest
	issuer    []byte // contents of RawIssuer
	keyID     []byte // identifier that the kernel looks for
	signature signature

	// Of the attributes, signed or in the obsolete form [2]. Without signingTime it is zero.
	messageDigest []byte
	signingTime   time.Time
}

const (
	pkcs7Arc     = "\x2a\x86\x48\x86\xf7\x0d\x01\x07" // 1.2.840.113549.1.7
	pkcs9Arc     = "\x2a\x86\x48\x86\xf7\x0d\x01\x09" // 1.2.840.113549.1.9
	microsoftArc = "\x2b\x06\x01\x04\x01\x82\x37\x02" // 1.3.6.1.4.1.311.2

	oidData         = pkcs7Arc + "\x01"
	oidSignedData   = pkcs7Arc + "\x02"
	oidIndirectData = microsoftArc + "\x01\x04" // the content of Authenticode

	oidMD4 = "\x2a\x86\x48\x86\xf7\x0d\x02\x04" // 1.2.840.113549.2.4
	oidMD5 = "\x2a\x86\x48\x86\xf7\x0d\x02\x05"

	oidContentType       = pkcs9Arc + "\x03"
	oidMessageDigest     = pkcs9Arc + "\x04"
	oidSigningTime       = pkcs9Arc + "\x05"
	oidSMIMECapabilities = pkcs9Arc + "\x0f"
	oidStatementType     = microsoftArc + "\x01\x0b"
	oidOpusInfo          = microsoftArc + "\x01\x0c"
)

// parser is the state of one Parse.
type parser struct {
	decoder
	msg   *Message
	rules *Rules

	// As in the kernel, these outlive the SignerInfo that they were read from. A
	// SignerInfo without the identifier that its version requires gets that of the
	// SignerInfo before, or an empty one.
	bySerial, byKeyID []byte
}

// Parse parses a message by the kernel's rules (pkcs7_parser.c). [Message.Check]
// decides whether the message suits a module. Errors are of type *Error, with the
// kernel's errno.
func (r *Rules) Parse(der []byte) (*Message, error) {
	if len(der) > MaxSize {
		return nil, tooLarge(len(der))
	}
	p := parser{decoder: newDecoder(der), msg: &Message{rules: r}, rules: r}
	p.need(tagSequence)
	p.need(tagOID)
	if p.err == nil && string(p.value()) != oidSignedData {
		p.refuse(syscall.EINVAL, "content type is not signedData: "+dotted(string(p.value())),
			"PKCS7: Only support pkcs7_signedData type")
	}
	if p.maybe(constructed0) {
		p.signedData()
		p.leave()
	}
	p.leave()
	if p.err == nil && (len(p.msg.Signers) == 0 || slices.ContainsFunc(p.msg.Signers, func(s SignerInfo) bool {
		return s.HasAttributes != p.msg.Signers[0].HasAttributes
	})) {
		reason := "no SignerInfo"
		if len(p.msg.Signers) > 0 {
			reason = "some signers with signed attributes, some without"
		}
		p.refuse(syscall.EINVAL, reason, "PKCS7: Inconsistently supplied authAttrs")
	}
	if p.err != nil {
		return nil, p.err
	}
	p.msg.Raw = der[:p.pos:p.pos]
	p.msg.Trailing = len(der) - p.pos
	p.msg.notDER = p.msg.notDER || p.notDER
	return p.msg, nil
}

// refuse reports an error of the kernel's parser, as opposed to its decoder.
func (p *parser) refuse(errno syscall.Errno, reason, dmesg string) {
	kind := Malformed
	if errno == syscall.ENOPKG {
		kind = Unsupported
	}
	p.fail(&Error{Kind: kind, Errno: errno, Reason: reason, Dmesg: dmesg})
}

// note records, once, a harmless difference from sign-file's form.
func (p *parser) note(format string, args ...any) {
	if note := fmt.Sprintf(format, args...); p.err == nil && !slices.Contains(p.msg.notes, note) {
		p.msg.notes = append(p.msg.notes, note)
	}
}

func (p *parser) signedData() {
	p.need(tagSequence)
	p.msg.Version = p.version("SignedData")

	if p.choice(tagSet, tagSequence) == tagSequence {
		p.note("digestAlgorithms is a SEQUENCE")
	}
	for {
		p.need(tagSequence)
		oid, parameters := p.algorithm()
		p.msg.digests = append(p.msg.digests, algorithm{oid, p.element()})
		if parameters != nil {
			p.note("digestAlgorithms has parameters")
		}
		if !p.again() {
			break
		}
	}

	p.need(tagSequence)
	p.need(tagOID)
	contentType := string(p.value())
	if p.maybe(constructed0) {
		p.needAny()
		p.msg.HasContent = true
		p.leave()
	}
	matched := p.matched
	p.leave()
	p.matched = matched // the kernel's grammar has this sequence in line: see choice
	p.msg.content = p.element()
	between := p.pos
	if contentType != oidData && contentType != oidIndirectData {
		p.refuse(syscall.EINVAL, "content is not of type data: "+dotted(contentType), "PKCS7: Unsupported data type N")
	}
	p.msg.authenticode = contentType == oidIndirectData

	if set := p.maybeChoice(constructed0, constructed0+2); set != 0 {
		p.note("field certificates")
		for {
			// The set may be empty, because the kernel's grammar has a CHOICE in it:
			// see choice.
			if set == constructed0 && p.maybeAny() || set != constructed0 && p.needAny() {
				if c := p.certificate(); c != nil {
					p.msg.Certificates = append(p.msg.Certificates, c)
				}
			}
			if !p.again() {
				break
			}
		}
	}
	if p.maybeChoice(constructed0+1, constructed0+3) != 0 {
		p.note("field crls")
		for {
			// The kernel parses certificates here and ignores them. No revocation list
			// parses as one.
			p.need(tagSequence)
			for {
				p.needAny()
				p.certificate()
				if !p.again() {
					break
				}
			}
			if !p.again() {
				break
			}
		}
	}

	p.msg.between = p.data[between:p.pos:p.pos]

	if set := p.choice(tagSet, tagSequence); set != 0 {
		if set == tagSequence {
			p.note("signerInfos is a SEQUENCE")
		}
		for {
			p.need(tagSequence)
			p.signerInfo()
			if !p.again() {
				break
			}
		}
	}
	p.leave()
	p.noteSets()
}

// noteSets notes sets that do not hold what they should, each once and in the order of
// DER.
func (p *parser) noteSets() {
	m := p.msg
	if p.err != nil || len(m.Signers) == 0 ||
		len(m.Signers) == 1 && len(m.digests) == 1 && m.digests[0].oid == m.Signers[0].digest {
		return
	}
	unlisted, seen := make(map[string]bool), make(map[string]bool)
	for i := range m.Signers {
		s := &m.Signers[i]
		unlisted[s.digest] = true
		if seen[string(s.keyID)] {
			p.note("a signer occurs twice")
		} else { // only once: many signers may share one long identifier
			seen[string(s.keyID)] = true
		}
	}
	same := true
	for _, a := range m.digests {
		same = same && unlisted[a.oid]
		delete(unlisted, a.oid)
	}
	if !same || len(unlisted) > 0 {
		p.note("digestAlgorithms is not the digest algorithms of the signers alone")
	}
	if !slices.IsSortedFunc(m.digests, func(a, b algorithm) int { return bytes.Compare(a.raw, b.raw) }) ||
		!slices.IsSortedFunc(m.Signers, func(a, b SignerInfo) int { return bytes.Compare(a.raw, b.raw) }) {
		m.notDER = true
	}
}

// version reads the version of SignedData or of a SignerInfo.
func (p *parser) version(of string) int {
	p.need(tagInteger)
	v := p.value()
	if len(v) != 1 || v[0] != 1 && v[0] != 3 {
		p.refuse(syscall.EINVAL, fmt.Sprintf("%s version is neither 1 nor 3: 0x%x", of, v),
			"PKCS7: Unsupported "+of+" version")
		return 0
	}
	return int(v[0])
}

// certificate parses the element that was read last.
func (p *parser) certificate() *Certificate {
	if p.err != nil {
		return nil
	}
	if p.tag != tagSequence {
		p.broken(p.start-p.header, "certificate with tag 0x%02x", p.tag)
		return nil
	}
	c, err := p.rules.ParseCertificate(p.element())
	if e, ok := errors.AsType[*Error](err); ok {
		p.fail(&Error{Kind: e.Kind, Errno: e.Errno, Dmesg: e.Dmesg,
			Reason: fmt.Sprintf("embedded certificate at offset %d: %s", p.start-p.header, e.Reason)})
	}
	return c
}

func (p *parser) signerInfo() {
	var s SignerInfo
	s.Version = p.version("SignerInfo")
	if p.err == nil && s.Version != p.msg.Version {
		p.refuse(syscall.EBADMSG, fmt.Sprintf("SignerInfo version %d in SignedData version %d", s.Version, p.msg.Version),
			"PKCS7: SignedData-SignerInfo version mismatch")
	}
	switch p.choice(tagSequence, primitive0) {
	case tagSequence:
		p.need(tagSequence)
		p.name()
		s.RawIssuer, s.issuer = p.element(), p.value()
		p.need(tagInteger)
		s.Serial = p.value()
		p.leave()
		p.bySerial = slices.Concat(s.Serial, s.issuer)
	case primitive0:
		s.SubjectKeyID = p.value()
		p.byKeyID = s.SubjectKeyID
	}
	if s.Version == 1 {
		s.keyID = p.bySerial
	} else {
		s.keyID = p.byKeyID
	}
	if (s.Version == 1) != (s.RawIssuer != nil) {
		p.note("version %d does not fit the form of the signer's identifier", s.Version)
	}

	p.need(tagSequence)
	digest, parameters := p.algorithm()
	s.digest = digest
	p.digestAlgorithm(&s, digest)
	if parameters != nil {
		p.note("digestAlgorithm has parameters")
	}

	switch p.maybeChoice(constructed0, constructed0+2) {
	case constructed0:
		s.HasAttributes = true
		seen := p.attributes(&s)
		if p.err == nil {
			// Not element: the end of an indefinite length is not signed. What is signed
			// has the tag of a SET (RFC 5652, 5.4).
			s.signature.attributes = bytes.Clone(p.data[p.start-p.header : p.after])
			s.signature.attributes[0] = tagSet
		}
		if p.err == nil && (!seen[oidContentType] || !seen[oidMessageDigest]) {
			p.refuse(syscall.EBADMSG, "signed attributes without contentType and messageDigest",
				"PKCS7: Missing required AuthAttr")
		}
	case constructed0 + 2:
		// The kernel reads these one by one. It ignores them but for the signing time.
		p.note("attributes in the obsolete form [2], ignored")
		p.need(tagSequence)
		p.attributes(&s)
		p.leave()
	}

	p.need(tagSequence)
	algorithm, parameters := p.algorithm()
	p.signatureAlgorithm(&s, algorithm, parameters)
	p.need(tagOctetString)
	s.Signature = p.value()
	s.signature.algorithm, s.signature.value = s.Algorithm, s.Signature
	s.signature.hash, s.signature.hashName = s.Hash, s.HashName
	if s.HasAttributes && !(s.signsData() && s.Hash == crypto.SHA512 &&
		bytes.Equal(s.signature.attributes, signedAttributes(s.messageDigest))) {
		if s.signsData() {
			p.note("signed attributes other than contentType and the messageDigest of sha512")
		} else {
			p.note("signed attributes")
		}
	}
	switch {
	case s.Hash == 0 || s.Algorithm == "ecrdsa":
		p.note("algorithms %s and %s", s.HashName, s.Algorithm)
	case s.Algorithm == "ecdsa" && !strictECDSA(s.Signature):
		p.note("ECDSA signature is not DER of r and s")
	}

	if p.maybeChoice(constructed0+1, constructed0+3) != 0 {
		s.Unsigned = true
		p.note("unsigned attributes, ignored")
		for {
			p.need(tagSequence)
			p.need(tagOID)
			p.need(tagSet)
			for {
				p.needAny()
				if !p.again() {
					break
				}
			}
			p.leave()
			if !p.again() {
				break
			}
		}
	}
	p.leave()
	s.raw = p.element()
	if p.msg.authenticode && !s.HasAttributes {
		p.refuse(syscall.EBADMSG, "Authenticode without signed attributes", "PKCS7: Authenticode requires AuthAttrs")
	}
	if p.err == nil {
		p.msg.Signers = append(p.msg.Signers, s)
	}
}

func (p *parser) digestAlgorithm(s *SignerInfo, oid string) {
	if a := hashAlgorithmByOID(oid); a != nil && (p.rules.sha3 || !isSHA3(a.hash)) {
		s.Hash, s.HashName = a.hash, a.name
		return
	}
	switch {
	case oid == oidMD4 && !p.rules.sha3:
		s.HashName = "md4"
		return
	case oid == oidMD5 && !p.rules.sha3:
		s.HashName = "md5"
		return
	}
	switch oid {
	case oidSM3:
		s.HashName = "sm3"
	case oidStreebog + "\x02":
		s.HashName = "streebog256"
	case oidStreebog + "\x03":
		s.HashName = "streebog512"
	default:
		p.refuse(syscall.ENOPKG, "digest algorithm that the kernel does not support: "+dotted(oid),
			"Unsupported digest algo: N")
	}
}

func (p *parser) signatureAlgorithm(s *SignerInfo, oid string, parameters []byte) {
	switch {
	case oid == oidRSA:
		s.Algorithm = "rsa"
		if !bytes.Equal(parameters, null) {
			p.note("rsaEncryption without NULL parameters")
		}
	case oid == oidGOST256, oid == oidGOST512:
		s.Algorithm = "ecrdsa"
	case oid == oidSM2WithSM3 && p.rules.sm2:
		s.Algorithm = "sm2"
	case mldsaByOID(oid) != nil && p.rules.mldsa:
		s.Algorithm = mldsaByOID(oid).name
		if parameters != nil {
			p.note("ML-DSA signatureAlgorithm has parameters")
		}
	case slices.ContainsFunc(hashes, func(a hashAlgorithm) bool {
		return a.ecdsa == oid && (p.rules.sha3 || !isSHA3(a.hash))
	}):
		s.Algorithm = "ecdsa"
		if parameters != nil {
			p.note("ECDSA signatureAlgorithm has parameters")
		}
		if a := hashAlgorithmOf(s.Hash); a == nil || a.ecdsa != oid {
			p.note("ECDSA signatureAlgorithm names another digest than digestAlgorithm")
		}
	default:
		name := describeOID(oid)
		if _, ok := rsaWithHash[oid]; ok {
			name += ", RSA with a digest instead of rsaEncryption"
		}
		p.refuse(syscall.ENOPKG, "signature algorithm that the kernel does not support: "+name, "Unsupported pkey algo: N")
	}
}

// attributes parses signed attributes up to their end, and returns the types among them
// that the kernel checks.
func (p *parser) attributes(s *SignerInfo) map[string]bool {
	seen := make(map[string]bool)
	for {
		p.need(tagSequence)
		p.need(tagOID)
		oid := string(p.value())
		p.need(tagSet)
		for {
			if p.needAny() {
				p.attribute(s, oid, seen)
			}
			if !p.again() {
				break
			}
		}
		p.leave()
		if !p.again() {
			return seen
		}
	}
}

// attribute checks one value of a signed attribute.
func (p *parser) attribute(s *SignerInfo, oid string, seen map[string]bool) {
	switch oid {
	case oidContentType, oidMessageDigest, oidSigningTime, oidSMIMECapabilities, oidStatementType, oidOpusInfo:
	default:
		return
	}
	if seen[oid] {
		p.refuse(syscall.EKEYREJECTED, "signed attribute twice or with two values: "+dotted(oid),
			"PKCS7: Repeated/multivalue AuthAttrs not permitted")
		return
	}
	seen[oid] = true
	switch oid {
	case oidContentType:
		if value := string(p.value()); value != oidData && value != oidIndirectData ||
			(value == oidIndirectData) != p.msg.authenticode {
			p.refuse(syscall.EBADMSG, "signed attribute contentType differs from the content's",
				"PKCS7: Mismatch between global data type (N) and sinfo N (N)")
		}
	case oidMessageDigest:
		if p.tag != tagOctetString {
			p.broken(p.start-p.header, "messageDigest with tag 0x%02x", p.tag)
		}
		s.messageDigest = p.value()
	case oidSigningTime:
		s.signingTime = p.decodeTime(p.tag, p.value())
	case oidSMIMECapabilities:
		if !p.msg.authenticode {
			p.refuse(syscall.EKEYREJECTED, "signed attribute smimeCapabilities",
				"PKCS7: S/MIME Caps only allowed with Authenticode")
		}
	case oidStatementType, oidOpusInfo:
		if !p.msg.authenticode {
			p.refuse(syscall.EKEYREJECTED, "signed attribute of Authenticode",
				"PKCS7: Authenticode AuthAttrs only allowed with Authenticode")
		}
	}
}

// signsData reports whether the signature is one of ML-DSA, which is for data and not for a
// digest.
func (s *SignerInfo) signsData() bool { return mldsaByName(s.Algorithm) != nil }

// SumAttributes returns the digest of the signed attributes, which is what the signature is
// for. Without signed attributes it is nil.
func (s *SignerInfo) SumAttributes(h Hash) []byte {
	if !s.HasAttributes {
		return nil
	}
	return sum(h, s.signature.attributes)
}

// Digest returns what the signature is for: a digest of the data, or mu of it, or 0 if this
// package does not know the digest.
func (s *SignerInfo) Digest() crypto.Hash {
	if s.HasAttributes || !s.signsData() {
		return s.Hash
	}
	return mldsaByName(s.Algorithm).mu
}

// KeyID returns the identifier that the kernel looks for among its keys: the octets of
// serial number and issuer, or the subject key identifier. It is empty if the message
// lacks the identifier that its version requires.
func (s *SignerInfo) KeyID() []byte { return s.keyID }

// Issuer returns the name of the signer's issuer in the form of [Certificate.Name], or
// "" if the signer is named by key id.
func (s *SignerInfo) Issuer() string { return kernelName(s.issuer) }

// String describes the signer's identifier for messages.
func (s *SignerInfo) String() string {
	if s.RawIssuer == nil {
		return fmt.Sprintf("key id %x", s.SubjectKeyID)
	}
	return fmt.Sprintf("issuer %q serial %x", s.Issuer(), s.Serial)
}

// Warnings returns the differences from the form that sign-file writes, each in a few
// words. The kernel may still accept the message. There are none if and only if the
// message is canonical.
func (m *Message) Warnings() []string {
	warnings := slices.Clone(m.notes)
	if m.notDER {
		warnings = append(warnings, "not DER")
	}
	if m.HasContent {
		warnings = append(warnings, "the signed content is inside")
	}
	if m.authenticode {
		warnings = append(warnings, "Authenticode")
	}
	if m.Trailing > 0 {
		warnings = append(warnings, fmt.Sprintf("%d bytes after the message, ignored", m.Trailing))
	}
	return warnings
}

// Canonical reports whether the message has exactly the form that a [Signer] and
// [Message.Add] write (see the package comment), with nothing after it. If it has one
// signer, that is the form of sign-file.
func (m *Message) Canonical() bool {
	_, err := m.Marshal()
	return err == nil
}

// Marshal returns the bytes from which a canonical message was parsed. It fails for any
// other message.
func (m *Message) Marshal() ([]byte, error) {
	if warnings := m.Warnings(); len(warnings) > 0 {
		return nil, fmt.Errorf("not as sign-file writes it: %s", strings.Join(warnings, "; "))
	}
	var digests, signers [][]byte
	for _, a := range m.digests {
		digests = append(digests, appendAlgorithm(nil, a.oid))
	}
	for i := range m.Signers {
		s := &m.Signers[i]
		sid := keyIDIdentifier(s.SubjectKeyID)
		if s.Version == 1 {
			sid = serialIdentifier(s.RawIssuer, s.Serial)
		}
		var attributes []byte
		if s.HasAttributes {
			attributes = signedAttributes(s.messageDigest)
		}
		signers = append(signers, appendSignerInfo(nil, s.Version, hashAlgorithmOf(s.Hash), sid, attributes, s.Algorithm,
			s.Signature))
	}
	return encodeMessage(m.Version, digests, encapsulatedData, nil, signers), nil
}
