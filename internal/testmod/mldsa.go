package testmod

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"errors"

	"filippo.io/mldsa"
	mldsax509 "filippo.io/mldsa/x509"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/modsign/modsign/internal/mldsamu"
)

var mldsaParameters = map[string]mldsa.Parameters{
	"mldsa:44": mldsa.MLDSA44(), "mldsa:65": mldsa.MLDSA65(), "mldsa:87": mldsa.MLDSA87(),
}

func makeMLDSA(p mldsa.Parameters) (crypto.Signer, error) {
	private, err := mldsa.GenerateKey(p)
	if err != nil {
		return nil, err
	}
	return mldsamu.NewPrivateKey(private), nil
}

// marshalPublic and marshalPrivate are those of crypto/x509, and know ML-DSA.
func marshalPublic(key crypto.PublicKey) ([]byte, error) { return mldsax509.MarshalPKIXPublicKey(key) }

func marshalPrivate(key crypto.Signer) ([]byte, error) {
	if key, ok := key.(*mldsamu.PrivateKey); ok {
		return mldsax509.MarshalPKCS8PrivateKey(key.Key())
	}
	return x509.MarshalPKCS8PrivateKey(key)
}

// createCertificate is x509.CreateCertificate for a self-signed certificate. For ML-DSA,
// which crypto/x509 does not know before Go 1.27, it has a certificate of another key made,
// and puts in the key, the algorithms and the signature.
func createCertificate(template *x509.Certificate, key crypto.Signer) ([]byte, error) {
	own, ok := key.(*mldsamu.PrivateKey)
	if !ok {
		return x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, other.Public(), other)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	spki, err := marshalPublic(own.Public())
	if err != nil {
		return nil, err
	}
	oid := map[string]int{"ML-DSA-44": 17, "ML-DSA-65": 18, "ML-DSA-87": 19}[own.Key().PublicKey().Parameters().String()]
	algorithm := func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 3, oid})
		})
	}
	tbs := cryptobyte.String(cert.RawTBSCertificate)
	whole := tbs.ReadASN1(&tbs, cbasn1.SEQUENCE)
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for i := 0; !tbs.Empty() && whole; i++ {
			var element cryptobyte.String
			var tag cbasn1.Tag
			whole = tbs.ReadAnyASN1Element(&element, &tag)
			switch i {
			case 2: // signature
				algorithm(b)
			case 6: // subjectPublicKeyInfo
				b.AddBytes(spki)
			default:
				b.AddBytes(element)
			}
		}
	})
	signed, err := b.Bytes()
	if err != nil || !whole {
		return nil, errors.Join(err, errors.New("the certificate cannot be taken apart"))
	}
	signature, err := own.Sign(nil, signed, crypto.Hash(0))
	if err != nil {
		return nil, err
	}
	b = cryptobyte.Builder{}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(signed)
		algorithm(b)
		b.AddASN1BitString(signature)
	})
	return b.Bytes()
}
