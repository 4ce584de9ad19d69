package detached

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"go.mozilla.org/pkcs7"
)

// SignCMS returns a signature of the content, in DER. The key is RSA or ECDSA.
func SignCMS(content []byte, key crypto.Signer, cert *x509.Certificate) ([]byte, error) {
	// By hand, as pkcs7 signs only with keys whose private half it sees.
	signature, err := newMessage(content, key, cert)
	if err != nil {
		return nil, err
	}
	// Reject a certificate whose signatures would not verify, such as an expired one.
	if _, err := CheckCMS(content, signature, []*x509.Certificate{cert}, time.Now()); err != nil {
		return nil, fmt.Errorf("the signature would not verify: %w", err)
	}
	return signature, nil
}

// message is a ContentInfo with only the parts that a signature must have.
type message struct {
	Type asn1.ObjectIdentifier
	Data struct {
		Version          int
		DigestAlgorithms []pkix.AlgorithmIdentifier `asn1:"set"`
		Content          struct{ Type asn1.ObjectIdentifier }
		Certificates     asn1.RawValue `asn1:"optional,tag:0"`
		Signers          []signerInfo  `asn1:"set"`
	} `asn1:"explicit,tag:0"`
}

type signerInfo struct {
	Version         int
	IssuerAndSerial struct {
		Issuer asn1.RawValue
		Serial *big.Int
	}
	Digest     pkix.AlgorithmIdentifier
	Attributes []attribute `asn1:"optional,set,tag:0"`
	Algorithm  pkix.AlgorithmIdentifier
	Signature  []byte
}

type attribute struct {
	Type   asn1.ObjectIdentifier
	Values []asn1.RawValue `asn1:"set"`
}

// newMessage signs with SHA-512.
func newMessage(content []byte, key crypto.Signer, cert *x509.Certificate) ([]byte, error) {
	oids := algorithms[len(algorithms)-1]
	hash := func(data []byte) []byte { sum := sha512.Sum512(data); return sum[:] }
	s := signerInfo{Version: 1}
	s.IssuerAndSerial.Issuer, s.IssuerAndSerial.Serial = asn1.RawValue{FullBytes: cert.RawIssuer}, cert.SerialNumber
	s.Digest.Algorithm, s.Algorithm.Algorithm = oids.digest, oids.ecdsa
	switch key.Public().(type) {
	case *rsa.PublicKey:
		s.Algorithm.Algorithm = oids.rsa
	case *ecdsa.PublicKey:
	default:
		return nil, errors.New("key signs modules alone: a signature beside a file is by RSA, ECDSA or OpenPGP")
	}
	for _, a := range []struct {
		kind  asn1.ObjectIdentifier
		value any
	}{
		{pkcs7.OIDAttributeContentType, pkcs7.OIDData},
		{pkcs7.OIDAttributeMessageDigest, hash(content)},
		{pkcs7.OIDAttributeSigningTime, time.Now().UTC()},
	} {
		value, err := asn1.Marshal(a.value)
		if err != nil {
			return nil, err
		}
		s.Attributes = append(s.Attributes, attribute{a.kind, []asn1.RawValue{{FullBytes: value}}})
	}
	attributes, err := asn1.MarshalWithParams(s.Attributes, "set")
	if err != nil {
		return nil, err
	}
	if s.Signature, err = key.Sign(rand.Reader, hash(attributes), crypto.SHA512); err != nil {
		return nil, err
	}
	m := message{Type: pkcs7.OIDSignedData}
	m.Data.Version = 1
	m.Data.DigestAlgorithms = []pkix.AlgorithmIdentifier{s.Digest}
	m.Data.Content.Type = pkcs7.OIDData
	m.Data.Certificates = asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: cert.Raw}
	m.Data.Signers = []signerInfo{s}
	return asn1.Marshal(m)
}

// parseMessage parses a message, and checks that encoding it again gives the same
// bytes. The pkcs7 library accepts BER, skips what it cannot parse, and ignores data
// after the message; encoding/asn1 ignores data at the end of a SEQUENCE.
func parseMessage(der []byte) (*signerInfo, error) {
	var m message
	_, err := asn1.Unmarshal(der, &m)
	var again []byte
	if err == nil {
		again, err = asn1.Marshal(m)
	}
	if err != nil || !bytes.Equal(again, der) || !m.Type.Equal(pkcs7.OIDSignedData) ||
		!m.Data.Content.Type.Equal(pkcs7.OIDData) {
		return nil, errors.New("not a detached CMS signature in DER: " +
			"create one with openssl cms -sign -binary -outform DER -md sha512")
	}
	if len(m.Data.Signers) != 1 {
		return nil, fmt.Errorf("the signature is of %d signers instead of one", len(m.Data.Signers))
	}
	return &m.Data.Signers[0], nil
}

// check checks what pkcs7 does not, and returns the signing time.
func (s *signerInfo) check() (time.Time, error) {
	var signed time.Time
	if len(s.Attributes) == 0 {
		return signed, errors.New("the signature has no signed attributes: sign without the option -noattr of openssl cms")
	}
	if err := s.checkAlgorithms(); err != nil {
		return signed, err
	}
	var content asn1.ObjectIdentifier
	var digest []byte
	err := errors.Join(
		s.attribute("content type", pkcs7.OIDAttributeContentType, &content),
		s.attribute("message digest", pkcs7.OIDAttributeMessageDigest, &digest),
		s.attribute("signing time", pkcs7.OIDAttributeSigningTime, &signed))
	if err == nil && !content.Equal(pkcs7.OIDData) {
		err = fmt.Errorf("the signed content has the type %v instead of data", content)
	}
	return signed, err
}

// attribute returns the only value of an attribute.
func (s *signerInfo) attribute(name string, oid asn1.ObjectIdentifier, out any) error {
	var values []asn1.RawValue
	for _, a := range s.Attributes {
		if a.Type.Equal(oid) {
			values = append(values, a.Values...)
		}
	}
	if len(values) != 1 {
		return fmt.Errorf("the signature has the %s %d times", name, len(values))
	}
	if rest, err := asn1.Unmarshal(values[0].FullBytes, out); err != nil || len(rest) > 0 {
		return fmt.Errorf("the %s of the signature is damaged", name)
	}
	return nil
}

var algorithms = []struct{ digest, rsa, ecdsa asn1.ObjectIdentifier }{
	{pkcs7.OIDDigestAlgorithmSHA256, pkcs7.OIDEncryptionAlgorithmRSASHA256, pkcs7.OIDDigestAlgorithmECDSASHA256},
	{pkcs7.OIDDigestAlgorithmSHA384, pkcs7.OIDEncryptionAlgorithmRSASHA384, pkcs7.OIDDigestAlgorithmECDSASHA384},
	{pkcs7.OIDDigestAlgorithmSHA512, pkcs7.OIDEncryptionAlgorithmRSASHA512, pkcs7.OIDDigestAlgorithmECDSASHA512},
}

// checkAlgorithms accepts only strong algorithms of the same hash. The pkcs7 library
// also accepts different hashes for digest and signature, and SHA-1.
func (s *signerInfo) checkAlgorithms() error {
	for _, a := range algorithms {
		if alg := s.Algorithm.Algorithm; s.Digest.Algorithm.Equal(a.digest) &&
			(alg.Equal(a.rsa) || alg.Equal(a.ecdsa) || alg.Equal(pkcs7.OIDEncryptionAlgorithmRSA)) {
			return nil
		}
	}
	return fmt.Errorf("the signature algorithms are %v and %v, not RSA (PKCS #1 v1.5) or ECDSA "+
		"with SHA-256, SHA-384 or SHA-512", s.Digest.Algorithm, s.Algorithm.Algorithm)
}

// CheckCMS checks a signature of the content. The signer's certificate must be trusted,
// or issued by a trusted CA. The chain may include certificates from the message.
func CheckCMS(content, signature []byte, trusted []*x509.Certificate, now time.Time) (*Signer, error) {
	if err := checkSize(signature); err != nil {
		return nil, err
	}
	info, err := parseMessage(signature)
	if err != nil {
		return nil, err
	}
	signed, err := info.check()
	if err != nil {
		return nil, err
	}
	p7, err := pkcs7.Parse(signature)
	if err != nil {
		return nil, fmt.Errorf("the signature is damaged: %w", err)
	}
	intermediates, roots := x509.NewCertPool(), x509.NewCertPool()
	for _, cert := range p7.Certificates {
		intermediates.AddCert(cert)
	}
	for _, cert := range trusted {
		roots.AddCert(cert)
	}
	p7.Content, p7.Certificates = content, append(p7.Certificates, trusted...)
	cert := p7.GetOnlySigner()
	if cert == nil {
		return nil, fmt.Errorf("signed with the certificate with serial number %x, "+
			"which is neither given nor in the signature", info.IssuerAndSerial.Serial)
	}
	who := subject(cert)
	if err := checkSigner(cert, roots, intermediates, now); err != nil {
		return nil, fmt.Errorf("signed as %q: %w", who, err)
	}
	if signed.After(now) {
		return nil, fmt.Errorf("signed as %q: the signature is from the future", who)
	}
	if err := p7.Verify(); err != nil {
		return nil, fmt.Errorf("signed as %q: %w", who, badCMS(err))
	}
	return &Signer{Name: who, Fingerprint: fmt.Sprintf("%X", sha256.Sum256(cert.Raw)), Time: signed}, nil
}

// checkSigner checks that a certificate is trusted and may sign.
func checkSigner(cert *x509.Certificate, roots, intermediates *x509.CertPool, now time.Time) error {
	_, err := cert.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: intermediates,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		if cert.SignatureAlgorithm == x509.UnknownSignatureAlgorithm {
			return fmt.Errorf("the certificate is not trusted itself, and whether %q has issued it cannot be checked: "+
				"lists are signed with RSA and ECDSA, also their certificates", cert.Issuer.String())
		}
		return errors.New("the certificate is neither trusted nor issued by a trusted certificate")
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		return fmt.Errorf("the certificate of %q is valid only from %s to %s", subject(e.Cert),
			e.Cert.NotBefore.Format(time.DateOnly), e.Cert.NotAfter.Format(time.DateOnly))
	}
	if err == nil && cert.KeyUsage != 0 &&
		cert.KeyUsage&(x509.KeyUsageDigitalSignature|x509.KeyUsageContentCommitment) == 0 {
		return errors.New("the certificate is not for signing (keyUsage)")
	}
	return err
}

// badCMS describes why pkcs7 could not verify a signature.
func badCMS(err error) error {
	if _, ok := errors.AsType[*pkcs7.MessageDigestMismatchError](err); ok {
		return errors.New("the content has changed since it was signed")
	}
	if text, ok := strings.CutPrefix(err.Error(), "pkcs7: "); ok { // such as: the certificate was not valid at that time
		return errors.New(text)
	}
	return errors.New("the signature is bad")
}

func subject(cert *x509.Certificate) string {
	if cert.Subject.CommonName != "" {
		return cert.Subject.CommonName
	}
	return cert.Subject.String()
}
