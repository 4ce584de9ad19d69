package keygen

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"

	"github.com/modsign/modsign/internal/mldsamu"
)

// check returns an error for a Pair without a key or certificate, such as a zero one,
// before anything is written.
func (p *Pair) check() error {
	if err := p.checkCertificate(); err != nil {
		return err
	}
	none := p.Signer == nil
	switch key := p.Signer.(type) {
	case *rsa.PrivateKey:
		none = key == nil
	case *ecdsa.PrivateKey:
		none = key == nil
	case *mldsamu.PrivateKey:
		none = key == nil
	}
	if none {
		return errors.New("the pair has no private key")
	}
	return nil
}

func (p *Pair) checkCertificate() error {
	if p == nil || p.Certificate == nil || len(p.Certificate.Raw) == 0 {
		return errors.New("the pair has no certificate")
	}
	return nil
}
