package keygen

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"filippo.io/mldsa/x509"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/mldsamu"
)

// WritePEM writes the private key, as unencrypted PKCS #8, and then the certificate:
// the form of the kernel's certs/signing_key.pem. A Signer that has another form, as the
// key of a TPM has, returns it by a method PrivateKeyBlock() *pem.Block. WritePEM fails
// before it writes anything when Signer is neither that nor a [*rsa.PrivateKey],
// [*ecdsa.PrivateKey] or a key of this package.
func (p *Pair) WritePEM(w io.Writer) error {
	if err := p.check(); err != nil {
		return err
	}
	key, err := p.keyBlock()
	if err != nil {
		return err
	}
	if err := pem.Encode(w, key); err != nil {
		return err
	}
	return pem.Encode(w, p.certificateBlock())
}

func (p *Pair) keyBlock() (*pem.Block, error) {
	switch key := p.Signer.(type) {
	case interface{ PrivateKeyBlock() *pem.Block }:
		return key.PrivateKeyBlock(), nil
	case *rsa.PrivateKey, *ecdsa.PrivateKey:
		return pkcs8Block(key)
	case *mldsamu.PrivateKey:
		return pkcs8Block(key.Key())
	}
	return nil, fmt.Errorf("a private key of type %T cannot be written", p.Signer)
}

func pkcs8Block(key any) (*pem.Block, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	return &pem.Block{Type: "PRIVATE KEY", Bytes: der}, nil
}

func (p *Pair) certificateBlock() *pem.Block {
	return &pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate.Raw}
}

// WriteFile writes key and certificate, in the form of WritePEM, to a new file of mode
// 0600 and flushes it to disk. It never replaces a file or follows a symbolic link: the
// error is then fs.ErrExist. When it fails later, it removes the file.
func (p *Pair) WriteFile(path string) error {
	if err := p.check(); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w: a key never replaces a file; choose another name, or move the old file away", path,
			fs.ErrExist)
	}
	if err != nil {
		return err
	}
	if err = errors.Join(p.WritePEM(f), f.Sync(), f.Close()); err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing the private key to %s: %w", path, err), os.Remove(path))
	}
	return nil
}

// Encoding is how a certificate is written.
type Encoding uint8

const (
	PEM Encoding = iota // a CERTIFICATE block
	DER                 // as in the kernel's certs/signing_key.x509
)

// String returns "PEM" or "DER".
func (e Encoding) String() string {
	switch e {
	case PEM:
		return "PEM"
	case DER:
		return "DER"
	}
	return fmt.Sprintf("Encoding(%d)", uint8(e))
}

// WriteCertificate writes the certificate alone to a file, with mode 0666 less the
// umask. It replaces a regular file as a whole, so that nobody sees half a certificate,
// and writes into any other kind of file, such as /dev/stdout.
func (p *Pair) WriteCertificate(path string, encoding Encoding) error {
	if err := p.checkCertificate(); err != nil {
		return err
	}
	var data []byte
	switch encoding {
	case PEM:
		data = pem.EncodeToMemory(p.certificateBlock())
	case DER:
		data = p.Certificate.Raw
	default:
		return fmt.Errorf("certificates are written as PEM or DER, not as %v", encoding)
	}
	if err := atomicfile.WriteOutput(path, data, true); err != nil {
		return fmt.Errorf("writing the certificate to %s: %w", path, err)
	}
	return nil
}

// syncDir flushes a new name in a directory to disk.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
