package agent

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/keygen"
)

// A Receipt is what a key agent leaves of its key: when it lived, what it signed,
// and that it is gone.
//
// The receipt of an agent that held a key from elsewhere has Kept, and no signature: that
// key lives on, and signs modules alone. Such a receipt is a note, and proves nothing. What
// follows is about one-time keys.
//
// The file is JSON, UTF-8, indented by two spaces, with the members in the order
// of the fields here and a newline at the end. Its last but one line is the
// signature. What is signed are the bytes of the file before that line (head -n -2):
// with RSASSA-PSS, SHA-512, MGF1 with SHA-512 and a salt of 64 bytes for an RSA
// key, with ECDSA and SHA-512 for an EC key, with pure ML-DSA and an empty context for
// an ML-DSA key.
//
// The signature is the last that the key made. An RSA key makes no PSS signature
// for anybody who asks the agent, so that nobody but the agent can have made the
// receipt. ECDSA and ML-DSA have no such second kind of signature: anyone who was allowed
// to use the agent could have had it sign the digest of a receipt of their own, and the
// receipt of such a key proves no more than that its author was allowed to use the key.
// No signature proves that the key was not copied before it was destroyed: for that,
// the agent's program and its machine must be trusted.
type Receipt struct {
	Version           int       `json:"version"`            // 2; 3 with Kept
	Certificate       string    `json:"certificate"`        // one PEM block
	CertificateSHA256 string    `json:"certificate_sha256"` // of its DER, hexadecimal
	Algorithm         string    `json:"algorithm"`          // as Algorithm.String has it
	Born              time.Time `json:"born"`               // UTC, to the second
	Died              time.Time `json:"died"`               // likewise
	Reason            string    `json:"reason"`             // why it ended, in words: forgotten
	Signatures        int       `json:"signatures"`         // how many were made, this one not counted
	DigestsSHA256     string    `json:"digests_sha256"`     // Digests.SHA256
	Installs          int       `json:"installs"`           // how many were reported
	MemoryLocked      bool      `json:"memory_locked"`      // whether it was kept out of swap
	MemoryHidden      bool      `json:"memory_hidden"`      // as in Status; not in version 1
	Kept              bool      `json:"kept,omitempty"`     // the key was kept elsewhere and lives on
	Signature         []byte    `json:"signature"`          // base64; null with Kept
}

// receiptVersion is what is written for one-time keys. Version 1, which does not have
// MemoryHidden, is read too. A program that knows versions 1 and 2 alone says so about the
// receipt of a key that was kept elsewhere, which has keptVersion.
const (
	receiptVersion = 2
	keptVersion    = 3
)

// ErrUnsigned reports the receipt of a key that was kept elsewhere. Anybody can have
// written it.
var ErrUnsigned = errors.New("receipt is not signed: its key was kept elsewhere and lives on")

// maxReceiptSize is well above the largest certificate in base64.
const maxReceiptSize = 256 << 10

// ReadReceipt reads a receipt. It takes exactly the bytes that an agent writes:
// other members, another order, other white space or trailing data are errors, so
// that nothing in the file goes unsigned. Check tells whether
// the receipt is true.
func ReadReceipt(r io.Reader) (*Receipt, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxReceiptSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxReceiptSize {
		return nil, fmt.Errorf("file has more than %d bytes: it is no receipt", maxReceiptSize)
	}
	receipt := new(Receipt)
	if err := json.Unmarshal(data, receipt); err != nil {
		return nil, errors.New("not the receipt of a key agent") // the error may quote the file, which may be any
	}
	if receipt.Version < 1 || receipt.Version > keptVersion {
		return nil, fmt.Errorf("receipt of version %d: this program knows versions 1 to %d", receipt.Version, keptVersion)
	}
	if receipt.Kept != (receipt.Version == keptVersion) {
		return nil, fmt.Errorf("receipt of version %d has the wrong members: it was edited", receipt.Version)
	}
	if receipt.Version == 1 && receipt.MemoryHidden {
		return nil, errors.New("receipt of version 1 has a member of version 2: it was edited")
	}
	if encoded, err := receipt.encode(); err != nil || !bytes.Equal(encoded, data) {
		return nil, errors.New("receipt is not as a key agent writes it: it was edited, or has more in it")
	}
	return receipt, nil
}

func (r *Receipt) encode() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(r); err != nil {
		return nil, err
	}
	if r.Version == 1 {
		return bytes.Replace(b.Bytes(), []byte("  \"memory_hidden\": false,\n"), nil, 1), nil
	}
	return b.Bytes(), nil
}

// digest is the hash of what is signed.
func (r *Receipt) digest(hash cms.Hash) ([]byte, error) {
	unsigned := *r
	unsigned.Signature = nil
	encoded, err := unsigned.encode()
	if err != nil {
		return nil, err
	}
	signed, ok := bytes.CutSuffix(encoded, []byte("  \"signature\": null\n}\n"))
	if !ok {
		return nil, errors.New("internal error: the signature is not the last member of a receipt")
	}
	h := hash.New()
	h.Write(signed)
	return h.Sum(nil), nil
}

// receiptHash returns the hash for the receipt of a key.
func receiptHash(public crypto.PublicKey) cms.Hash { return cms.HashFor(public, crypto.SHA512) }

func receiptPadding() *rsa.PSSOptions {
	return &rsa.PSSOptions{SaltLength: sha512.Size, Hash: crypto.SHA512}
}

// sign adds the signature.
func (r *Receipt) sign(key crypto.Signer) error {
	hash := receiptHash(key.Public())
	digest, err := r.digest(hash)
	if err != nil {
		return err
	}
	var opts crypto.SignerOpts = hash
	if _, ok := key.Public().(*rsa.PublicKey); ok {
		opts = receiptPadding()
	}
	r.Signature, err = key.Sign(rand.Reader, digest, opts)
	return err
}

// Check returns an error unless the receipt is consistent and signed by the key of
// the certificate in it. The caller has to compare it with the
// certificate that the kernel trusts. For a consistent receipt with Kept, the error is
// [ErrUnsigned].
func (r *Receipt) Check() error {
	cert, err := r.X509()
	if err != nil {
		return fmt.Errorf("certificate in the receipt: %w", err)
	}
	if r.CertificateSHA256 != fingerprint(cert) {
		return errors.New("receipt names another SHA-256 than that of the certificate in it")
	}
	if name := keygen.KeyName(cert.PublicKey); r.Algorithm != name {
		return fmt.Errorf("receipt is of another kind of key than the certificate in it, which has %s", name)
	}
	if r.Kept {
		if r.Signature != nil {
			return errors.New("receipt of a key that was kept elsewhere has a signature: it was edited")
		}
		return ErrUnsigned
	}
	hash := receiptHash(cert.PublicKey)
	digest, err := r.digest(hash)
	if err != nil {
		return err
	}
	var good bool
	if key, ok := cert.PublicKey.(*rsa.PublicKey); ok {
		good = rsa.VerifyPSS(key, crypto.SHA512, digest, r.Signature, receiptPadding()) == nil
	} else {
		good = cms.Verifies(cert.PublicKey, hash.HashFunc(), digest, r.Signature)
	}
	if !good {
		return errors.New("the signature is not one over this receipt by the key of its certificate")
	}
	return nil
}

// X509 parses the certificate.
func (r *Receipt) X509() (*x509.Certificate, error) {
	block, rest := pem.Decode([]byte(r.Certificate))
	if block == nil || len(rest) > 0 || block.Type != "CERTIFICATE" {
		return nil, errors.New("not one block of PEM")
	}
	cert, err := cms.ParseX509(block.Bytes)
	if err == nil && len(cert.Raw) < len(block.Bytes) {
		return nil, errors.New("more than a certificate")
	}
	return cert, err
}

// receiptName is the name of the receipt that an agent leaves of a certificate.
func receiptName(cert *x509.Certificate) string {
	return "receipt-" + fingerprint(cert)[:16] + ".json"
}

func (r *Receipt) write(dir *dirfd.Dir, name string) error {
	data, err := r.encode()
	if err != nil {
		return err
	}
	return atomicfile.WriteIn(dir, name, data, 0o644, true)
}

// checkedReceipt reads a receipt and checks it. One without a signature is good enough for
// a message.
func checkedReceipt(dir *dirfd.Dir, name string) (*Receipt, error) {
	data, err := dir.ReadFile(name, maxReceiptSize)
	if err != nil {
		return nil, err
	}
	r, err := ReadReceipt(bytes.NewReader(data))
	if err == nil {
		err = r.Check()
	}
	if err != nil && err != ErrUnsigned {
		return nil, fmt.Errorf("%s: %w", dir.Path(name), err)
	}
	return r, nil
}

func fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}
