package detached

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
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

// SignCMS makes a signature of the content, in DER.
func SignCMS(content []byte, key crypto.Signer, cert *x509.Certificate) ([]byte, error) {
	switch key.(type) {
	case *rsa.PrivateKey, *ecdsa.PrivateKey:
	default:
		// An agent's key signs modules and its receipt, which says so.
		return nil, errors.New("the private key has to be RSA or ECDSA, in a file")
	}
	data, err := pkcs7.NewSignedData(content)
	if err != nil {
		return nil, err
	}
	data.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA512)
	if err := data.AddSigner(cert, key, pkcs7.SignerInfoConfig{}); err != nil {
		return nil, err
	}
	data.Detach()
	signature, err := data.Finish()
	if err != nil {
		return nil, err
	}
	// A certificate that has expired, for one, makes signatures that nobody takes.
	if _, err := CheckCMS(content, signature, []*x509.Certificate{cert}, time.Now()); err != nil {
		return nil, fmt.Errorf("nobody would take the signature: %w", err)
	}
	return signature, nil
}

// message is a ContentInfo with what a signature has to have, and no more.
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

// parseMessage reads a message. It has to be encoded again as it was, since pkcs7 takes
// BER, passes over what it cannot parse, and does not look behind the message; and
// encoding/asn1 passes over what stands at the end of a SEQUENCE.
func parseMessage(der []byte) (*signerInfo, error) {
	var m message
	_, err := asn1.Unmarshal(der, &m)
	var again []byte
	if err == nil {
		again, err = asn1.Marshal(m)
	}
	if err != nil || !bytes.Equal(again, der) || !m.Type.Equal(pkcs7.OIDSignedData) || !m.Data.Content.Type.Equal(pkcs7.OIDData) {
		return nil, errors.New("not a detached CMS signature in DER: openssl cms -sign -binary -outform DER -md sha512 makes one")
	}
	if len(m.Data.Signers) != 1 {
		return nil, fmt.Errorf("the signature is of %d signers, and one is wanted", len(m.Data.Signers))
	}
	return &m.Data.Signers[0], nil
}

// check checks what pkcs7 does not, and returns when it was signed.
func (s *signerInfo) check() (time.Time, error) {
	var signed time.Time
	if len(s.Attributes) == 0 {
		return signed, errors.New("the signature has no signed attributes: openssl cms -sign without -noattr makes one that has")
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
		err = fmt.Errorf("the signature is of content of the type %v, and not of data", content)
	}
	return signed, err
}

// attribute finds the only value of an attribute.
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

// checkAlgorithms keeps to strong ones of the same hash: pkcs7 takes the digest of one
// and the signature of another, SHA-1 among them.
func (s *signerInfo) checkAlgorithms() error {
	for _, a := range algorithms {
		if alg := s.Algorithm.Algorithm; s.Digest.Algorithm.Equal(a.digest) && (alg.Equal(a.rsa) || alg.Equal(a.ecdsa) || alg.Equal(pkcs7.OIDEncryptionAlgorithmRSA)) {
			return nil
		}
	}
	return fmt.Errorf("the signature is made with the algorithms %v and %v, and RSA (PKCS #1 v1.5) or ECDSA with SHA-256, SHA-384 or SHA-512 is wanted", s.Digest.Algorithm, s.Algorithm.Algorithm)
}

// CheckCMS checks a signature of the content. The certificate of the signer has to be
// one of those that are trusted, or to be issued by one of them that is a CA; on the
// way there may be certificates of the message.
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
		return nil, fmt.Errorf("signed with the certificate of the serial number %x, which is neither there nor in the signature", info.IssuerAndSerial.Serial)
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

// checkSigner checks that a certificate is trusted, and for signing.
func checkSigner(cert *x509.Certificate, roots, intermediates *x509.CertPool, now time.Time) error {
	_, err := cert.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: intermediates,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return errors.New("the certificate is not among those to trust, nor issued by one of them")
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		return fmt.Errorf("the certificate of %q is valid from %s to %s alone", subject(e.Cert), e.Cert.NotBefore.Format(time.DateOnly), e.Cert.NotAfter.Format(time.DateOnly))
	}
	if err == nil && cert.KeyUsage != 0 && cert.KeyUsage&(x509.KeyUsageDigitalSignature|x509.KeyUsageContentCommitment) == 0 {
		return errors.New("the certificate is not for signing (keyUsage)")
	}
	return err
}

// badCMS says what is wrong when pkcs7 does not verify.
func badCMS(err error) error {
	if _, ok := errors.AsType[*pkcs7.MessageDigestMismatchError](err); ok {
		return errors.New("what is signed was changed since")
	}
	if text, ok := strings.CutPrefix(err.Error(), "pkcs7: "); ok { // the certificate was not valid then
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
