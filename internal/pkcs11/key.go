package pkcs11

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/keyfile"
)

// A privateKey is one that a session can see.
type privateKey struct {
	token  *token
	handle uint64
	id     []byte
	label  string
	kind   uint64 // CKK_
}

// String returns the URI of the key.
func (k privateKey) String() string {
	values := map[string]string{
		"token": k.token.values["token"], "serial": k.token.values["serial"], "id": string(k.id), "object": k.label,
	}
	return format(values, "token", "serial", "id", "object")
}

// template are the attributes of the objects that belong to the key.
func (k privateKey) template(class uint64) []attribute {
	if len(k.id) > 0 {
		return []attribute{ulong(attrClass, class), {attrID, k.id}}
	}
	return []attribute{ulong(attrClass, class), {attrLabel, []byte(k.label)}}
}

// privateKeys returns the private keys that the URI names.
func (s *session) privateKeys(u *URI) ([]privateKey, error) {
	template := []attribute{ulong(attrClass, classPrivateKey)}
	if id, ok := u.path["id"]; ok {
		template = append(template, attribute{attrID, []byte(id)})
	}
	if label, ok := u.path["object"]; ok {
		template = append(template, attribute{attrLabel, []byte(label)})
	}
	objects, err := s.find(template...)
	if err != nil {
		return nil, err
	}
	var keys []privateKey
	for _, object := range objects {
		values, err := s.attributes(object, attrKeyType, attrID, attrLabel)
		if err != nil {
			return nil, err
		}
		k := privateKey{token: s.token, handle: object, id: values[attrID], label: string(values[attrLabel])}
		if kind := values[attrKeyType]; len(kind) == 8 {
			k.kind = binary.BigEndian.Uint64(kind)
		} else {
			return nil, fmt.Errorf("the token does not tell the type of the key %v", k)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// findKey returns the key that the URI names, the only one.
func (s *session) findKey(u *URI) (privateKey, error) {
	keys, err := s.privateKeys(u)
	if err != nil {
		return privateKey{}, err
	}
	if len(keys) > 1 { // one of them may be for decryption
		var signing []privateKey
		for _, k := range keys {
			signs, err := s.flag(k.handle, attrSign)
			if err != nil {
				return privateKey{}, err
			}
			if signs {
				signing = append(signing, k)
			}
		}
		if len(signing) > 0 {
			keys = signing
		}
	}
	switch len(keys) {
	case 1:
		return keys[0], checkKind(keys[0].kind)
	case 0:
		all, err := s.privateKeys(&URI{})
		if err != nil {
			return privateKey{}, err
		}
		return privateKey{}, &keyfile.HintError{
			Err:  errors.New("no such private key in the token"),
			Hint: listed("the private keys that are there: ", all),
		}
	}
	return privateKey{}, &keyfile.HintError{
		Err:  fmt.Errorf("the URI names %d private keys", len(keys)),
		Hint: listed("name one of them: ", keys),
	}
}

// checkKind refuses keys with which no module is signed.
func checkKind(kind uint64) error {
	switch kind {
	case keyRSA, keyEC:
		return nil
	case keyMLDSA:
		return &keyfile.HintError{
			Err:  errors.New("the key is an ML-DSA key, and p11-kit has no way to sign with one over its RPC"),
			Hint: "sign with an RSA or ECDSA key, or with an ML-DSA key in a file",
		}
	}
	return fmt.Errorf("the key is of type CKK 0x%x, and modsign signs with RSA and ECDSA keys (P-256, P-384, P-521) of a token",
		kind)
}

// public returns the public half of a key: that of the public key in the token or of the
// private key's own attributes.  It returns nil if the token does not have it.
func (s *session) public(k privateKey) (crypto.PublicKey, error) {
	objects, err := s.find(k.template(classPublicKey)...)
	if err != nil {
		return nil, err
	}
	kinds := []uint32{attrModulus, attrPublicExponent}
	parse := rsaPublic
	if k.kind == keyEC {
		kinds = []uint32{attrECParams, attrECPoint}
		parse = ecPublic
	}
	var bad error
	for _, object := range append(objects, k.handle) {
		values, err := s.attributes(object, kinds...)
		if s.conn.broken != nil {
			return nil, err
		}
		if len(values[kinds[0]]) == 0 || len(values[kinds[1]]) == 0 {
			continue // it does not have them, or does not tell
		}
		public, err := parse(values)
		if err == nil {
			return public, nil
		}
		bad = err
	}
	return nil, bad
}

func rsaPublic(values map[uint32][]byte) (crypto.PublicKey, error) {
	n, e := new(big.Int).SetBytes(values[attrModulus]), new(big.Int).SetBytes(values[attrPublicExponent])
	if !e.IsInt64() || e.Int64() != int64(int(e.Int64())) || e.Sign() <= 0 || n.BitLen() < 512 {
		return nil, errors.New("the token's RSA key is not one that modules are signed with")
	}
	return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
}

var curves = map[string]elliptic.Curve{
	"1.2.840.10045.3.1.7": elliptic.P256(),
	"1.3.132.0.34":        elliptic.P384(),
	"1.3.132.0.35":        elliptic.P521(),
}

// ecPublic takes a point in an OCTET STRING, as PKCS #11 has it, and one that stands there
// bare, as many tokens do.
func ecPublic(values map[uint32][]byte) (crypto.PublicKey, error) {
	var oid asn1.ObjectIdentifier
	if rest, err := asn1.Unmarshal(values[attrECParams], &oid); err != nil || len(rest) != 0 {
		return nil, errors.New("the token's EC key does not name its curve")
	}
	curve, known := curves[oid.String()]
	if !known {
		return nil, fmt.Errorf("the token's EC key is on the curve %v, and modules are signed with P-256, P-384 and P-521", oid)
	}
	point := values[attrECPoint]
	public, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err == nil {
		return public, nil
	}
	var wrapped []byte
	if rest, wrong := asn1.Unmarshal(point, &wrapped); wrong == nil && len(rest) == 0 {
		public, err = ecdsa.ParseUncompressedPublicKey(curve, wrapped)
	}
	if err != nil {
		return nil, errors.New("the token's EC key has no point of its curve")
	}
	return public, nil
}

// certificates returns the certificates that belong to a key.
func (s *session) certificates(k privateKey) ([]*x509.Certificate, error) {
	objects, err := s.find(k.template(classCertificate)...)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for _, object := range objects {
		values, err := s.attributes(object, attrValue)
		if s.conn.broken != nil {
			return nil, err
		}
		cert, err := cms.ParseX509(values[attrValue])
		if err == nil { // others are not of X.509, or not of this key
			certs = append(certs, cert)
		}
	}
	return certs, nil
}

// digestAlgorithms have a DigestInfo (RFC 8017, 9.2, and for SHA-3 those of NIST).
var digestAlgorithms = map[crypto.Hash]asn1.ObjectIdentifier{
	crypto.SHA1:     {1, 3, 14, 3, 2, 26},
	crypto.SHA224:   nist(4),
	crypto.SHA256:   nist(1),
	crypto.SHA384:   nist(2),
	crypto.SHA512:   nist(3),
	crypto.SHA3_224: nist(7),
	crypto.SHA3_256: nist(8),
	crypto.SHA3_384: nist(9),
	crypto.SHA3_512: nist(10),
}

func nist(n int) asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, n} }

// digestInfo is what RSA signs.
func digestInfo(hash crypto.Hash, digest []byte) ([]byte, error) {
	oid, known := digestAlgorithms[hash]
	if !known {
		return nil, fmt.Errorf("no DigestInfo for hash %v", hash)
	}
	return asn1.Marshal(struct {
		Algorithm pkix.AlgorithmIdentifier
		Digest    []byte
	}{pkix.AlgorithmIdentifier{Algorithm: oid, Parameters: asn1.NullRawValue}, digest})
}

// ecdsaDER turns r and s, one after the other and of one length, into a SEQUENCE.
func ecdsaDER(curve elliptic.Curve, raw []byte) ([]byte, error) {
	half := len(raw) / 2
	if half == 0 || len(raw)%2 != 0 || half > orderSize(curve) {
		return nil, fmt.Errorf("the token has made an ECDSA signature of %d bytes", len(raw))
	}
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(raw[:half]), new(big.Int).SetBytes(raw[half:])})
}

func orderSize(curve elliptic.Curve) int { return (curve.Params().N.BitLen() + 7) / 8 }

// certificateOf returns the certificate of a public key, the only one, or nil.
func certificateOf(public crypto.PublicKey, certs []*x509.Certificate) (*x509.Certificate, error) {
	var found *x509.Certificate
	for _, cert := range certs {
		own, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
		if !ok || !own.Equal(public) {
			continue
		}
		if found != nil && !bytes.Equal(found.Raw, cert.Raw) {
			return nil, &keyfile.HintError{
				Err:  errors.New("the token has several certificates of the key"),
				Hint: "give the file of the certificate to use",
			}
		}
		found = cert
	}
	return found, nil
}
