package keygen

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"math/big"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/scrypt"
)

// kdfLimits bounds what a key file may make its reader spend.
type kdfLimits struct {
	iterations int // of PBKDF2 and PKCS #12
	memory     int // of scrypt, bytes
	work       int // of scrypt, bytes over all p passes
}

// defaultLimits allows seconds. OpenSSL writes 2048 iterations, or scrypt with
// 16 MiB in one pass, and reads no more than 32 MiB.
func defaultLimits() kdfLimits {
	return kdfLimits{iterations: 10_000_000, memory: 256 << 20, work: 1 << 30}
}

// encryption is how an encrypted PKCS #8 key is opened: the key derivation and
// the block cipher in CBC mode, both complete but for the passphrase.
type encryption struct {
	// derive returns the cipher's key, and the initialization vector where
	// that depends on the passphrase too.
	derive     func(passphrase []byte) (key, iv []byte, err error)
	newCipher  func(key []byte) (cipher.Block, error)
	iv         []byte
	ciphertext []byte
}

// parseEncryptedPKCS8 parses an EncryptedPrivateKeyInfo: everything that can be
// refused without the passphrase is.
func parseEncryptedPKCS8(der []byte, limits kdfLimits) (*encryption, error) {
	s := cryptobyte.String(der)
	var algorithm, ciphertext cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !s.ReadASN1(&s, cbasn1.SEQUENCE) || !s.ReadASN1(&algorithm, cbasn1.SEQUENCE) ||
		!algorithm.ReadASN1ObjectIdentifier(&oid) || !s.ReadASN1(&ciphertext, cbasn1.OCTET_STRING) {
		return nil, errors.New("encrypted private key is damaged: not a PKCS #8 EncryptedPrivateKeyInfo")
	}
	e := &encryption{ciphertext: ciphertext}
	var err error
	switch name := oid.String(); name {
	case "1.2.840.113549.1.5.13":
		err = e.parsePBES2(algorithm, limits)
	case "1.2.840.113549.1.12.1.3":
		err = e.parsePKCS12(algorithm, 24, limits)
	case "1.2.840.113549.1.12.1.4":
		err = e.parsePKCS12(algorithm, 16, limits)
	case "1.2.840.113549.1.5.1", "1.2.840.113549.1.5.3", "1.2.840.113549.1.5.4", "1.2.840.113549.1.5.6",
		"1.2.840.113549.1.5.10", "1.2.840.113549.1.5.11":
		err = unsupportedCipher("PBES1 with MD2, MD5, DES or RC2")
	default:
		err = unsupportedCipher("an unknown algorithm")
	}
	if err != nil {
		return nil, err
	}
	return e, nil
}

func unsupportedCipher(what string) error {
	return refuse(ErrUnsupportedCipher, "private key is encrypted with %s, which is not supported", what)
}

func damagedParameters(of string) error {
	return fmt.Errorf("encrypted private key is damaged: parameters of %s", of)
}

// parsePBES2 reads PBES2-params (RFC 8018, A.4).
func (e *encryption) parsePBES2(s cryptobyte.String, limits kdfLimits) error {
	var kdf, scheme cryptobyte.String
	var kdfOID, cipherOID asn1.ObjectIdentifier
	if !s.ReadASN1(&s, cbasn1.SEQUENCE) || !s.ReadASN1(&kdf, cbasn1.SEQUENCE) || !kdf.ReadASN1ObjectIdentifier(&kdfOID) ||
		!s.ReadASN1(&scheme, cbasn1.SEQUENCE) || !scheme.ReadASN1ObjectIdentifier(&cipherOID) || !s.Empty() {
		return damagedParameters("PBES2")
	}
	var keySize, blockSize int
	switch name := cipherOID.String(); name {
	case "2.16.840.1.101.3.4.1.2":
		keySize, blockSize, e.newCipher = 16, aes.BlockSize, aes.NewCipher
	case "2.16.840.1.101.3.4.1.22":
		keySize, blockSize, e.newCipher = 24, aes.BlockSize, aes.NewCipher
	case "2.16.840.1.101.3.4.1.42":
		keySize, blockSize, e.newCipher = 32, aes.BlockSize, aes.NewCipher
	case "1.2.840.113549.3.7":
		keySize, blockSize, e.newCipher = 24, des.BlockSize, des.NewTripleDESCipher
	case "1.2.392.200011.61.1.1.1.2", "1.2.392.200011.61.1.1.1.3", "1.2.392.200011.61.1.1.1.4":
		return unsupportedCipher("Camellia")
	case "1.2.840.113549.3.2", "1.3.14.3.2.7":
		return unsupportedCipher("DES or RC2")
	default:
		return unsupportedCipher("an unknown cipher")
	}
	if !scheme.ReadASN1Bytes(&e.iv, cbasn1.OCTET_STRING) || len(e.iv) != blockSize {
		return damagedParameters("the cipher")
	}
	switch name := kdfOID.String(); name {
	case "1.2.840.113549.1.5.12":
		return e.parsePBKDF2(kdf, keySize, limits)
	case "1.3.6.1.4.1.11591.4.11":
		return e.parseScrypt(kdf, keySize, limits)
	default:
		return unsupportedCipher("an unknown key derivation")
	}
}

// parsePBKDF2 reads PBKDF2-params (RFC 8018, A.2).
func (e *encryption) parsePBKDF2(s cryptobyte.String, keySize int, limits kdfLimits) error {
	var salt []byte
	if !s.ReadASN1(&s, cbasn1.SEQUENCE) || !s.ReadASN1Bytes(&salt, cbasn1.OCTET_STRING) {
		return damagedParameters("PBKDF2")
	}
	iterations, err := readIterations(&s, limits)
	if err != nil {
		return err
	}
	if s.PeekASN1Tag(cbasn1.INTEGER) {
		var n int
		if !s.ReadASN1Integer(&n) || n != keySize {
			return damagedParameters("PBKDF2")
		}
	}
	prf := sha1.New
	if !s.Empty() {
		var algorithm cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !s.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&oid) || !s.Empty() {
			return damagedParameters("PBKDF2")
		}
		switch name := oid.String(); name {
		case "1.2.840.113549.2.7":
			prf = sha1.New
		case "1.2.840.113549.2.8":
			prf = sha256.New224
		case "1.2.840.113549.2.9":
			prf = sha256.New
		case "1.2.840.113549.2.10":
			prf = sha512.New384
		case "1.2.840.113549.2.11":
			prf = sha512.New
		default:
			return unsupportedCipher("PBKDF2 and an unknown pseudorandom function")
		}
	}
	e.derive = func(passphrase []byte) (key, iv []byte, err error) {
		key, err = pbkdf2.Key[hash.Hash](prf, string(passphrase), salt, iterations, keySize)
		return key, e.iv, err
	}
	return nil
}

// readIterations reads an iteration count. It goes through big.Int because a
// count beyond an int is to be refused for what it is.
func readIterations(s *cryptobyte.String, limits kdfLimits) (int, error) {
	n := new(big.Int)
	if !s.ReadASN1Integer(n) || n.Sign() <= 0 {
		return 0, errors.New("encrypted private key is damaged: iteration count")
	}
	if n.Cmp(big.NewInt(int64(limits.iterations))) > 0 {
		return 0, fmt.Errorf("encrypted private key wants more than %d iterations of its key derivation, the most that is done", limits.iterations)
	}
	return int(n.Int64()), nil
}

// parseScrypt reads scrypt-params (RFC 7914, 7.1).
func (e *encryption) parseScrypt(s cryptobyte.String, keySize int, limits kdfLimits) error {
	var salt []byte
	var n, r, p uint32
	if !s.ReadASN1(&s, cbasn1.SEQUENCE) || !s.ReadASN1Bytes(&salt, cbasn1.OCTET_STRING) ||
		!s.ReadASN1Integer(&n) || !s.ReadASN1Integer(&r) || !s.ReadASN1Integer(&p) {
		return damagedParameters("scrypt")
	}
	if s.PeekASN1Tag(cbasn1.INTEGER) {
		var size int
		if !s.ReadASN1Integer(&size) || size != keySize {
			return damagedParameters("scrypt")
		}
	}
	if !s.Empty() || n < 2 || n&(n-1) != 0 || r == 0 || p == 0 {
		return damagedParameters("scrypt")
	}
	// 128·r bytes for each of N and p; big, because three 32-bit factors
	// overflow.
	cost := func(factors ...uint32) *big.Int {
		c := big.NewInt(128)
		for _, f := range factors {
			c.Mul(c, big.NewInt(int64(f)))
		}
		return c
	}
	if cost(n, r).Cmp(big.NewInt(int64(limits.memory))) > 0 || cost(p, r).Cmp(big.NewInt(int64(limits.memory))) > 0 ||
		cost(n, r, p).Cmp(big.NewInt(int64(limits.work))) > 0 {
		return fmt.Errorf("encrypted private key wants scrypt with N=%d r=%d p=%d, and at most %d MiB are used for it", n, r, p, limits.memory>>20)
	}
	e.derive = func(passphrase []byte) (key, iv []byte, err error) {
		key, err = scrypt.Key(passphrase, salt, int(n), int(r), int(p), keySize)
		return key, e.iv, err
	}
	return nil
}

// parsePKCS12 reads pkcs-12PbeParams (RFC 7292, appendix C) for triple DES with
// a key of 24 bytes, or of 16, whose first half is used twice.
func (e *encryption) parsePKCS12(s cryptobyte.String, keySize int, limits kdfLimits) error {
	var salt []byte
	if !s.ReadASN1(&s, cbasn1.SEQUENCE) || !s.ReadASN1Bytes(&salt, cbasn1.OCTET_STRING) {
		return damagedParameters("PKCS #12")
	}
	iterations, err := readIterations(&s, limits)
	if err != nil {
		return err
	}
	e.newCipher = des.NewTripleDESCipher
	e.derive = func(passphrase []byte) (key, iv []byte, err error) {
		password := bmpString(passphrase)
		key = pkcs12Key(1, password, salt, iterations, keySize)
		if keySize == 16 {
			key = append(key, key[:8]...)
		}
		return key, pkcs12Key(2, password, salt, iterations, des.BlockSize), nil
	}
	return nil
}

// bmpString encodes a passphrase in UTF-16, big endian, with a NUL at the end
// (RFC 7292, B.1). As in OpenSSL, what is not UTF-8 is taken for Latin-1.
func bmpString(passphrase []byte) []byte {
	var units []uint16
	if utf8.Valid(passphrase) {
		units = utf16.Encode([]rune(string(passphrase)))
	} else {
		for _, c := range passphrase {
			units = append(units, uint16(c))
		}
	}
	var out []byte
	for _, u := range append(units, 0) {
		out = append(out, byte(u>>8), byte(u))
	}
	return out
}

// pkcs12Key derives size bytes with SHA-1 (RFC 7292, B.2); id is 1 for a key, 2
// for an initialization vector.
func pkcs12Key(id byte, password, salt []byte, iterations, size int) []byte {
	const v = sha1.BlockSize
	fill := func(b []byte) []byte {
		if len(b) == 0 {
			return nil
		}
		n := (len(b) + v - 1) / v * v
		return bytes.Repeat(b, n/len(b)+1)[:n]
	}
	diversifier := bytes.Repeat([]byte{id}, v)
	input := slices.Concat(fill(salt), fill(password))
	var out []byte
	for {
		a := sha1.Sum(append(slices.Clip(diversifier), input...))
		for range iterations - 1 {
			a = sha1.Sum(a[:])
		}
		if out = append(out, a[:]...); len(out) >= size {
			return out[:size]
		}
		// Each block of the input becomes input + B + 1 mod 2^(8v).
		b := bytes.Repeat(a[:], v/sha1.Size+1)[:v]
		for block := range slices.Chunk(input, v) {
			carry := 1
			for i := v - 1; i >= 0; i-- {
				carry += int(block[i]) + int(b[i])
				block[i] = byte(carry)
				carry >>= 8
			}
		}
	}
}

// decrypt opens the key. Wrong padding, and a result that is no DER, mean a
// wrong passphrase.
func (e *encryption) decrypt(passphrase []byte) ([]byte, error) {
	key, iv, err := e.derive(passphrase)
	if err != nil {
		return nil, fmt.Errorf("encrypted private key: %w", err)
	}
	block, err := e.newCipher(key)
	if err != nil {
		return nil, fmt.Errorf("encrypted private key: %w", err)
	}
	size := block.BlockSize()
	if len(e.ciphertext) == 0 || len(e.ciphertext)%size != 0 {
		return nil, errors.New("encrypted private key is damaged: its length is not that of whole cipher blocks")
	}
	plain := make([]byte, len(e.ciphertext))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(plain, e.ciphertext)
	n := int(plain[len(plain)-1])
	if n == 0 || n > size || !bytes.Equal(plain[len(plain)-n:], bytes.Repeat([]byte{byte(n)}, n)) {
		return nil, ErrWrongPassphrase
	}
	plain = plain[:len(plain)-n]
	if !wholeSequence(plain) {
		return nil, ErrWrongPassphrase
	}
	return plain, nil
}

// wholeSequence reports whether the data are one DER SEQUENCE. One wrong
// passphrase in about 256 leaves a padding that looks right.
func wholeSequence(der []byte) bool {
	s := cryptobyte.String(der)
	return s.SkipASN1(cbasn1.SEQUENCE) && s.Empty()
}

// decryptLegacy returns what is in a block of OpenSSL's old kind, which may be
// encrypted (Proc-Type: 4,ENCRYPTED).
func decryptLegacy(block *pem.Block, ask Passphrase) ([]byte, error) {
	name, _, encrypted := strings.Cut(block.Headers["DEK-Info"], ",")
	if !encrypted {
		if strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED") {
			return nil, errors.New("encrypted private key is damaged: it has no DEK-Info header")
		}
		return block.Bytes, nil
	}
	if !slices.Contains([]string{"AES-128-CBC", "AES-192-CBC", "AES-256-CBC", "DES-EDE3-CBC"}, name) {
		if !slices.Contains([]string{"DES-CBC", "DES-EDE-CBC", "RC2-CBC", "IDEA-CBC", "BF-CBC", "CAST5-CBC", "SEED-CBC", "SM4-CBC",
			"CAMELLIA-128-CBC", "CAMELLIA-192-CBC", "CAMELLIA-256-CBC", "ARIA-128-CBC", "ARIA-192-CBC", "ARIA-256-CBC"}, name) {
			name = "an unknown cipher"
		}
		return nil, unsupportedCipher(name)
	}
	passphrase, err := ask.passphrase()
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 the kernel's sign-file takes keys encrypted this way; weak as it is, it is read, never written
	der, err := x509.DecryptPEMBlock(block, passphrase)
	if errors.Is(err, x509.IncorrectPasswordError) || err == nil && !wholeSequence(der) {
		return nil, ErrWrongPassphrase
	}
	if err != nil {
		return nil, errors.New("encrypted private key is damaged: its length, or its DEK-Info header") // the error may quote either
	}
	return der, nil
}
