package tpmkey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/modsign/modsign/internal/keyfile"
)

// A File is a TPMKey of draft-bottomley-tpm2-keys that signs, the contents of a PEM block
// of [keyfile.TPMKey]:
//
//	TPMKey ::= SEQUENCE {
//	    type        OBJECT IDENTIFIER,
//	    emptyAuth   [0] EXPLICIT BOOLEAN OPTIONAL,
//	    policy      [1] EXPLICIT SEQUENCE OF TPMPolicy OPTIONAL,
//	    secret      [2] EXPLICIT OCTET STRING OPTIONAL,
//	    authPolicy  [3] EXPLICIT SEQUENCE OF TPMAuthPolicy OPTIONAL,
//	    description [4] EXPLICIT UTF8String OPTIONAL,
//	    rsaParent   [5] EXPLICIT BOOLEAN OPTIONAL,
//	    parentName  [6] EXPLICIT OCTET STRING OPTIONAL,
//	    parent      INTEGER,
//	    pubkey      OCTET STRING, -- TPM2B_PUBLIC
//	    privkey     OCTET STRING  -- TPM2B_PRIVATE
//	}
//
// Keys with a policy are refused. The description and the parent's name are ignored.
type File struct {
	emptyAuth bool
	rsaParent bool
	parent    tpm2.TPMHandle
	public    []byte // TPMT_PUBLIC
	private   []byte // what TPM2B_PRIVATE holds

	key    crypto.PublicKey
	scheme tpm2.TPMAlgID // of the key's signatures, or TPM_ALG_NULL for any
	hash   tpm2.TPMAlgID // of the scheme
}

// NeedsPassphrase reports whether the key has a passphrase.
func (f *File) NeedsPassphrase() bool { return !f.emptyAuth }

// Public returns the public key: an *rsa.PublicKey or *ecdsa.PublicKey.
func (f *File) Public() crypto.PublicKey { return f.key }

var (
	loadable   = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 3}
	importable = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 4}
	sealed     = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 5}
)

var errDamaged = errors.New("not a whole TPM key: the ASN.1 is damaged or of an unknown form")

func explicit(tag uint8) cbasn1.Tag { return cbasn1.Tag(tag).ContextSpecific().Constructed() }

// Parse parses a TPMKey in DER. Errors hold no byte of it.
func Parse(der []byte) (*File, error) {
	s := cryptobyte.String(der)
	var body cryptobyte.String
	var kind asn1.ObjectIdentifier
	if !s.ReadASN1(&body, cbasn1.SEQUENCE) || !s.Empty() || !body.ReadASN1ObjectIdentifier(&kind) {
		return nil, errDamaged
	}
	switch {
	case kind.Equal(loadable):
	case kind.Equal(importable):
		return nil, &keyfile.HintError{
			Err:  errors.New("key has to be imported into the TPM first (its type is importable)"),
			Hint: "make the key in the TPM: modsign keygen --tpm",
		}
	case kind.Equal(sealed):
		return nil, errors.New("file holds data that a TPM has sealed, not a key that signs")
	default:
		return nil, errors.New("TPM key is of an unknown type")
	}
	f := &File{}
	var optional [7]cryptobyte.String
	var present [7]bool
	for i := range optional {
		if !body.ReadOptionalASN1(&optional[i], &present[i], explicit(uint8(i))) {
			return nil, errDamaged
		}
	}
	for _, i := range []int{1, 3} {
		if present[i] {
			return nil, &keyfile.HintError{
				Err:  errors.New("key is bound to a policy of the TPM (PCRs, for example), which is not supported"),
				Hint: "make a key without a policy: modsign keygen --tpm",
			}
		}
	}
	if present[2] {
		return nil, errors.New("key has to be imported into the TPM first (it has an encrypted secret)")
	}
	var parent uint32
	var public, private cryptobyte.String
	if !isTrue(&f.emptyAuth, optional[0], present[0]) || !isTrue(&f.rsaParent, optional[5], present[5]) ||
		!body.ReadASN1Integer(&parent) || !body.ReadASN1(&public, cbasn1.OCTET_STRING) ||
		!body.ReadASN1(&private, cbasn1.OCTET_STRING) || !body.Empty() ||
		!sized(&f.public, public) || !sized(&f.private, private) {
		return nil, errDamaged
	}
	f.parent = tpm2.TPMHandle(parent)
	if parent == 0 { // of old files
		f.parent = tpm2.TPMRHOwner
	}
	if err := f.parsePublic(); err != nil {
		return nil, err
	}
	return f, nil
}

// isTrue reads a BOOLEAN. OpenSSL's provider writes TRUE as 1, which is no DER.
func isTrue(value *bool, s cryptobyte.String, present bool) bool {
	if !present {
		return true
	}
	var b cryptobyte.String
	if !s.ReadASN1(&b, cbasn1.BOOLEAN) || len(b) != 1 || !s.Empty() {
		return false
	}
	*value = b[0] != 0
	return true
}

// sized reads the contents of a TPM2B.
func sized(contents *[]byte, s cryptobyte.String) bool {
	var inner cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&inner) || !s.Empty() || len(inner) == 0 {
		return false
	}
	*contents = inner
	return true
}

// parsePublic parses the TPMT_PUBLIC (TPM 2.0 Library, Part 2, 12.2.4) of a key that signs.
func (f *File) parsePublic() error {
	s := cryptobyte.String(f.public)
	var kind, nameAlg, symmetric, scheme uint16
	var attributes uint32
	var policy cryptobyte.String
	if !s.ReadUint16(&kind) || !s.ReadUint16(&nameAlg) || !s.ReadUint32(&attributes) ||
		!s.ReadUint16LengthPrefixed(&policy) || !s.ReadUint16(&symmetric) {
		return errDamaged
	}
	const userWithAuth, restricted, sign = 1 << 6, 1 << 16, 1 << 18
	switch {
	case attributes&restricted != 0:
		return errors.New("key is restricted to data that the TPM makes itself, and signs no modules")
	case attributes&sign == 0:
		return errors.New("key is not for signatures: it has no attribute \"sign\"")
	case attributes&userWithAuth == 0:
		return errors.New("key is bound to a policy of the TPM, which is not supported (no attribute \"userwithauth\")")
	case tpm2.TPMAlgID(symmetric) != tpm2.TPMAlgNull:
		return errDamaged
	}
	if !s.ReadUint16(&scheme) {
		return errDamaged
	}
	f.scheme, f.hash = tpm2.TPMAlgID(scheme), tpm2.TPMAlgNull
	var hash uint16
	switch f.scheme {
	case tpm2.TPMAlgNull:
	case tpm2.TPMAlgRSASSA, tpm2.TPMAlgECDSA:
		if !s.ReadUint16(&hash) {
			return errDamaged
		}
		f.hash = tpm2.TPMAlgID(hash)
	default:
		return errors.New("key is for another scheme than RSA PKCS #1 v1.5 and ECDSA, with which modules are signed")
	}
	switch tpm2.TPMAlgID(kind) {
	case tpm2.TPMAlgRSA:
		return f.parseRSA(s)
	case tpm2.TPMAlgECC:
		return f.parseECC(s)
	}
	return errors.New("TPM key is neither RSA nor ECDSA")
}

func (f *File) parseRSA(s cryptobyte.String) error {
	var bits uint16
	var exponent uint32
	var modulus cryptobyte.String
	if f.scheme == tpm2.TPMAlgECDSA || !s.ReadUint16(&bits) || !s.ReadUint32(&exponent) ||
		!s.ReadUint16LengthPrefixed(&modulus) || !s.Empty() {
		return errDamaged
	}
	if exponent == 0 {
		exponent = 65537
	}
	key := &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: int(exponent)}
	if bits > 4096 || key.N.BitLen() != int(bits) || exponent >= 1<<31 || exponent < 3 {
		return errDamaged
	}
	if bits < 1024 {
		return fmt.Errorf("RSA key has %d bits, and at least 1024 are needed", bits)
	}
	f.key = key
	return nil
}

func (f *File) parseECC(s cryptobyte.String) error {
	var curve, kdf uint16
	var x, y cryptobyte.String
	if f.scheme == tpm2.TPMAlgRSASSA || !s.ReadUint16(&curve) || !s.ReadUint16(&kdf) ||
		tpm2.TPMAlgID(kdf) != tpm2.TPMAlgNull ||
		!s.ReadUint16LengthPrefixed(&x) || !s.ReadUint16LengthPrefixed(&y) || !s.Empty() {
		return errDamaged
	}
	var named elliptic.Curve
	switch tpm2.TPMECCCurve(curve) {
	case tpm2.TPMECCNistP256:
		named = elliptic.P256()
	case tpm2.TPMECCNistP384:
		named = elliptic.P384()
	case tpm2.TPMECCNistP521:
		named = elliptic.P521()
	default:
		return errors.New("TPM key is on another curve than P-256, P-384 and P-521")
	}
	size := (named.Params().BitSize + 7) / 8
	if len(x) > size || len(y) > size {
		return errDamaged
	}
	point := make([]byte, 1+2*size)
	point[0] = 4 // uncompressed (SEC 1, 2.3.3)
	copy(point[1+size-len(x):], x)
	copy(point[1+2*size-len(y):], y)
	key, err := ecdsa.ParseUncompressedPublicKey(named, point)
	if err != nil {
		return errDamaged
	}
	f.key = key
	return nil
}

// Marshal returns the TPMKey in DER.
func (f *File) Marshal() []byte {
	var b cryptobyte.Builder
	addSized := func(b *cryptobyte.Builder, data []byte) {
		b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) {
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(data) })
		})
	}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(loadable)
		if f.emptyAuth {
			b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { b.AddASN1Boolean(true) })
		}
		if f.rsaParent {
			b.AddASN1(explicit(5), func(b *cryptobyte.Builder) { b.AddASN1Boolean(true) })
		}
		b.AddASN1Uint64(uint64(f.parent))
		addSized(b, f.public)
		addSized(b, f.private)
	})
	return b.BytesOrPanic() // all lengths come from a TPM2B
}
