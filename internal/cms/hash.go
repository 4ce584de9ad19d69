package cms

import (
	"crypto"
	_ "crypto/sha1" // for crypto.Hash.New, as the two below
	_ "crypto/sha256"
	_ "crypto/sha3"
	_ "crypto/sha512"
	"crypto/x509"
	"fmt"
	"hash"
	"slices"
	"strings"

	"filippo.io/mldsa"

	"github.com/modsign/modsign/internal/mldsamu"
)

// Hash makes the digest that a signature is for. A crypto.Hash is one. For a key of ML-DSA,
// it is a [mldsamu.PublicKey], and the digest is mu. Values of Hash can be compared.
type Hash interface {
	crypto.SignerOpts
	New() hash.Hash
}

// HashFor returns the Hash for signatures by a key: mu for one of ML-DSA, otherwise h.
func HashFor(public crypto.PublicKey, h crypto.Hash) Hash {
	if key, ok := public.(*mldsa.PublicKey); ok {
		return mldsamu.NewPublicKey(key)
	}
	return h
}

// KeyOf returns the SHA-256 of the SubjectPublicKeyInfo of the key on which digests of a
// Hash depend, or nil if they depend on none.
func KeyOf(h Hash) []byte {
	if mu, ok := h.(*mldsamu.PublicKey); ok {
		return mu.ID()
	}
	return nil
}

// IsMu reports whether a digest is mu.
func IsMu(h crypto.Hash) bool { return mldsamu.IsMu(h) }

// HashOf returns the Hash of a [Signer] with that certificate.
func HashOf(cert *x509.Certificate, h crypto.Hash, form Form) (Hash, error) {
	cert, err := WithKey(cert)
	if err != nil {
		return nil, err
	}
	s, err := NewSigner(madeAlready{public: cert.PublicKey}, cert, h, form)
	if err != nil {
		return nil, err
	}
	return s.Hash(), nil
}

// DigestSize returns the length of a digest in bytes.
func DigestSize(h crypto.Hash) int {
	if mldsamu.IsMu(h) {
		return mldsamu.Size
	}
	return h.Size()
}

// DigestByName returns the digest that [HashName] calls so: what [HashByName] knows by its
// common name, or mu.
func DigestByName(name string) (crypto.Hash, error) {
	if set := findMLDSA(func(s mldsaSet) bool { return s.muName() == name }); set != nil {
		return set.mu, nil
	}
	h, err := HashByName(name)
	if err == nil && HashName(h) != name {
		return 0, fmt.Errorf("hash %q is spelled %s here", name, HashName(h))
	}
	return h, err
}

// hashAlgorithm is a digest that the kernel's CMS parser and sign-file both support.
type hashAlgorithm struct {
	hash  crypto.Hash
	name  string // the kernel's crypto API name, as in CONFIG_MODULE_SIG_HASH
	oid   string // content octets
	ecdsa string // ecdsa-with-HASH, content octets
	spell []string
}

const (
	nistHashes     = "\x60\x86\x48\x01\x65\x03\x04\x02" // 2.16.840.1.101.3.4.2
	nistSignatures = "\x60\x86\x48\x01\x65\x03\x04\x03" // 2.16.840.1.101.3.4.3
	ansiX962       = "\x2a\x86\x48\xce\x3d"             // 1.2.840.10045
)

// hashes lists the digests that modules can be signed with. The spellings are the other
// names that OpenSSL's EVP_get_digestbyname accepts, in lower case.
var hashes = []hashAlgorithm{
	{crypto.SHA1, "sha1", "\x2b\x0e\x03\x02\x1a", ansiX962 + "\x04\x01",
		[]string{"sha-1", "1.3.14.3.2.26", "rsa-sha1", "rsa-sha1-2", "sha1withrsaencryption", "ssl3-sha1"}},
	{crypto.SHA224, "sha224", nistHashes + "\x04", ansiX962 + "\x04\x03\x01",
		[]string{"sha-224", "sha2-224", "2.16.840.1.101.3.4.2.4", "rsa-sha224", "sha224withrsaencryption"}},
	{crypto.SHA256, "sha256", nistHashes + "\x01", ansiX962 + "\x04\x03\x02",
		[]string{"sha-256", "sha2-256", "2.16.840.1.101.3.4.2.1", "rsa-sha256", "sha256withrsaencryption"}},
	{crypto.SHA384, "sha384", nistHashes + "\x02", ansiX962 + "\x04\x03\x03",
		[]string{"sha-384", "sha2-384", "2.16.840.1.101.3.4.2.2", "rsa-sha384", "sha384withrsaencryption"}},
	{crypto.SHA512, "sha512", nistHashes + "\x03", ansiX962 + "\x04\x03\x04",
		[]string{"sha-512", "sha2-512", "2.16.840.1.101.3.4.2.3", "rsa-sha512", "sha512withrsaencryption"}},
	{crypto.SHA3_256, "sha3-256", nistHashes + "\x08", nistSignatures + "\x0a",
		[]string{"2.16.840.1.101.3.4.2.8", "rsa-sha3-256", "id-rsassa-pkcs1-v1_5-with-sha3-256"}},
	{crypto.SHA3_384, "sha3-384", nistHashes + "\x09", nistSignatures + "\x0b",
		[]string{"2.16.840.1.101.3.4.2.9", "rsa-sha3-384", "id-rsassa-pkcs1-v1_5-with-sha3-384"}},
	{crypto.SHA3_512, "sha3-512", nistHashes + "\x0a", nistSignatures + "\x0c",
		[]string{"2.16.840.1.101.3.4.2.10", "rsa-sha3-512", "id-rsassa-pkcs1-v1_5-with-sha3-512"}},
}

// unverifiable lists digests that OpenSSL knows by name and for which the kernel's
// parser returns ENOPKG, as prefixes of the name without dashes and slashes.
var unverifiable = []string{
	"md4", "md5", "mdc2", "ripemd", "rmd160", "sha3224", "sha512224", "sha512256", "sha2512224", "sha2512256",
	"shake", "sm3", "blake2", "whirlpool", "streebog", "keccak",
	"1.2.840.113549.2.", "2.16.840.1.101.3.4.2.",
}

// HashByName returns the digest that sign-file uses for this name: its common name
// (sha256), one of OpenSSL's other names (SHA2-256, RSA-SHA256, ...) or its dotted
// object identifier, in upper or lower case. A digest that OpenSSL supports and the
// kernel does not verify is an error.
func HashByName(name string) (crypto.Hash, error) {
	lower := strings.ToLower(name)
	for i := range hashes {
		if a := &hashes[i]; a.name == lower || slices.Contains(a.spell, lower) {
			return a.hash, nil
		}
	}
	bare := strings.NewReplacer("rsa-", "", "ssl3-", "", "-", "", "/", "").Replace(lower)
	for _, known := range unverifiable {
		if strings.HasPrefix(bare, known) {
			return 0, fmt.Errorf("hash %q: the kernel verifies no module signature made with it (ENOPKG); use one of %s", name,
				hashNames())
		}
	}
	return 0, fmt.Errorf("unknown hash %q; use one of %s", name, hashNames())
}

func hashNames() string {
	names := make([]string, len(hashes))
	for i := range hashes {
		names[i] = hashes[i].name
	}
	return strings.Join(names, ", ")
}

// HashName returns the name of a digest in CONFIG_MODULE_SIG_HASH: sha512, sha3-256. That of
// mu is mldsa65-mu and the like.
func HashName(h crypto.Hash) string {
	if set := findMLDSA(func(s mldsaSet) bool { return s.mu == h }); set != nil {
		return set.muName()
	}
	if a := hashAlgorithmOf(h); a != nil {
		return a.name
	}
	return strings.ToLower(h.String())
}

// hashAlgorithmOf returns nil for a digest that modules cannot be signed with.
func hashAlgorithmOf(h crypto.Hash) *hashAlgorithm {
	i := slices.IndexFunc(hashes, func(a hashAlgorithm) bool { return a.hash == h })
	if i < 0 {
		return nil
	}
	return &hashes[i]
}

func hashAlgorithmByOID(oid string) *hashAlgorithm {
	i := slices.IndexFunc(hashes, func(a hashAlgorithm) bool { return a.oid == oid })
	if i < 0 {
		return nil
	}
	return &hashes[i]
}

func sum(h Hash, data []byte) []byte {
	hash := h.New()
	hash.Write(data)
	return hash.Sum(nil)
}
