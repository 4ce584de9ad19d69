package detached

import (
	"bytes"
	"crypto"
	_ "crypto/sha256" // the accepted hashes
	_ "crypto/sha3"
	_ "crypto/sha512"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
)

// config returns go-crypto's configuration for signing and checking at a time. Its
// defaults reject weak keys: RSA below 2048 bits, DSA, secp256k1.
func config(now time.Time) *packet.Config {
	return &packet.Config{
		Time:        func() time.Time { return now },
		DefaultHash: crypto.SHA512,
		// Keep signatures reproducible; gpg would also display the notation.
		NonDeterministicSignaturesViaNotation: packet.BoolPointer(false),
	}
}

// SecretKey is an OpenPGP key that can sign.
type SecretKey struct {
	entity *openpgp.Entity
	key    openpgp.Key
}

// ParseSecretKey parses the output of gpg --export-secret-keys for one key, armored or
// not. It selects a part that may sign now and whose private key is present. Like gpg,
// it prefers a subkey to the primary key, and a newer subkey to an older one.
func ParseSecretKey(data []byte, now time.Time) (*SecretKey, error) {
	entities, err := parseKeys(data, "PRIVATE KEY BLOCK", "PUBLIC KEY BLOCK")
	if err != nil {
		return nil, err
	}
	if len(entities) != 1 {
		return nil, fmt.Errorf("%d OpenPGP keys instead of one: "+
			"export the signing key with gpg --export-secret-keys --armor NAME", len(entities))
	}
	k := &SecretKey{entity: entities[0]}
	if k.entity.PrivateKey == nil {
		return nil, errors.New("OpenPGP public key instead of the secret key: " +
			"export the secret key with gpg --export-secret-keys --armor NAME")
	}
	elsewhere := false
	for _, part := range entities.KeysById(0) {
		key, ok := k.entity.SigningKeyById(now, part.PublicKey.KeyId, config(now))
		switch best := k.key.PublicKey; {
		case !ok:
		case key.PrivateKey == nil || key.PrivateKey.Dummy():
			elsewhere = true
		case best == nil || !best.IsSubkey || key.PublicKey.CreationTime.After(best.CreationTime):
			k.key = key
		}
	}
	switch {
	case k.key.PublicKey != nil:
		return k, nil
	case elsewhere:
		return nil, fmt.Errorf("the secret key of %q is elsewhere, such as on a smart card: "+
			"sign with gpg --armor --detach-sign", k.Name())
	}
	return nil, fmt.Errorf("%q cannot sign now: %w", k.Name(), cannotSign(k.entity, 0, now))
}

// Name returns the user ID of the key.
func (k *SecretKey) Name() string { return userID(k.entity) }

// Sign returns an armored signature of the content. It calls passphrase if the key
// needs one, and returns an error of passphrase unchanged.
func (k *SecretKey) Sign(content []byte, now time.Time, passphrase func() ([]byte, error)) ([]byte, error) {
	if private := k.key.PrivateKey; private.Encrypted {
		p, err := passphrase()
		if err != nil {
			return nil, err
		}
		if err := private.Decrypt(p); err != nil {
			return nil, errors.New("wrong passphrase or damaged key")
		}
	}
	config := config(now)
	config.SigningKeyId = k.key.PublicKey.KeyId
	var b bytes.Buffer
	// Newer versions of GnuPG need no checksum, but GnuPG up to 2.2 misses the end of
	// armored signatures of some lengths without it.
	w, err := armor.EncodeWithChecksumOption(&b, openpgp.SignatureType, nil, true)
	if err != nil {
		return nil, err
	}
	if err := openpgp.DetachSign(w, []*openpgp.Entity{k.entity}, bytes.NewReader(content), config); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

// Keyring holds the OpenPGP keys to trust.
type Keyring struct{ entities openpgp.EntityList }

// ParseKeyring parses public keys: the output of gpg --export, armored or not, or
// several such files concatenated.
func ParseKeyring(data []byte) (*Keyring, error) {
	entities, err := parseKeys(data, "PUBLIC KEY BLOCK", "PRIVATE KEY BLOCK")
	if err != nil {
		return nil, err
	}
	for _, e := range entities {
		if e.PrivateKey != nil {
			return nil, errors.New("OpenPGP secret key instead of public keys: " +
				"export the public keys with gpg --export --armor NAME")
		}
	}
	return &Keyring{entities}, nil
}

// Check checks a signature of the content, armored or not. A key of the keyring must
// have made it.
func (k *Keyring) Check(content, signature []byte, now time.Time) (*Signer, error) {
	if err := checkSize(signature); err != nil {
		return nil, err
	}
	packets, err := unarmor(signature, "SIGNATURE")
	if err != nil {
		return nil, err
	}
	sig, err := parseSignature(packets)
	if err != nil {
		return nil, err
	}
	entities := k.entities.EntitiesById(*sig.IssuerKeyId)
	if len(entities) == 0 {
		return nil, fmt.Errorf("signed by the key %s, which is not in the keyring", keyName(sig))
	}
	// A keyring may hold two versions of a key, one of them outdated.
	for _, e := range entities {
		if err = checkBy(e, sig, content, packets, now); err == nil {
			return &Signer{Name: userID(e), Fingerprint: fmt.Sprintf("%X", e.PrimaryKey.Fingerprint),
				Time: sig.CreationTime}, nil
		}
	}
	return nil, fmt.Errorf("signed as %q: %w", userID(entities[len(entities)-1]), err)
}

// checkBy checks a signature by a key or one of its subkeys.
func checkBy(e *openpgp.Entity, sig *packet.Signature, content, packets []byte, now time.Time) error {
	for _, at := range []time.Time{sig.CreationTime, now} {
		if _, ok := e.SigningKeyById(at, *sig.IssuerKeyId, config(at)); !ok {
			return cannotSign(e, *sig.IssuerKeyId, at)
		}
	}
	_, _, err := openpgp.VerifyDetachedSignature(openpgp.EntityList{e}, bytes.NewReader(content), bytes.NewReader(packets),
		config(now))
	if _, ok := errors.AsType[pgperrors.SignatureError](err); ok {
		return errors.New("the signature is bad: the content or the signature has changed")
	}
	return inWords(err)
}

// parseSignature parses a single signature packet. The readers of go-crypto would skip
// unknown packets.
func parseSignature(packets []byte) (*packet.Signature, error) {
	r := bytes.NewReader(packets)
	p, err := packet.Read(r)
	if err != nil {
		return nil, fmt.Errorf("not an OpenPGP signature, or a damaged one: %w", err)
	}
	sig, ok := p.(*packet.Signature)
	switch {
	case !ok:
		return nil, errors.New("OpenPGP, but not a detached signature: create one with gpg --armor --detach-sign")
	case r.Len() > 0:
		return nil, errors.New("other data follows the signature; only one signature of one signer is allowed")
	case sig.SigType != packet.SigTypeBinary:
		return nil, errors.New("the signature is of a text or something else, not of a binary file: " +
			"create one with gpg --armor --detach-sign")
	case sig.IssuerKeyId == nil:
		return nil, errors.New("the signature does not name its key")
	}
	switch sig.Hash {
	case crypto.SHA256, crypto.SHA384, crypto.SHA512, crypto.SHA3_256, crypto.SHA3_512:
	default:
		return nil, fmt.Errorf("the signature is made with %v instead of at least SHA-256: "+
			"sign with gpg --digest-algo SHA512", sig.Hash)
	}
	for _, notation := range sig.Notations {
		if notation.IsCritical {
			return nil, fmt.Errorf("the signature has the unknown critical notation %q", notation.Name)
		}
	}
	return sig, nil
}

// cannotSign returns why a key may not sign at a time. id selects one of its subkeys; 0
// means any.
func cannotSign(e *openpgp.Entity, id uint64, now time.Time) error {
	if _, err := e.VerifyPrimaryKey(now, config(now)); err != nil {
		return inWords(err)
	}
	for _, subkey := range e.Subkeys {
		binding, err := subkey.LatestValidBindingSignature(time.Time{}, config(now))
		if err != nil || !binding.FlagSign || id != 0 && id != subkey.PublicKey.KeyId {
			continue
		}
		if _, err := subkey.Verify(now, config(now)); err != nil {
			return inWords(err)
		}
	}
	return errors.New("the key is not for signing, or too weak")
}

// inWords replaces common errors by clearer ones.
func inWords(err error) error {
	switch {
	case errors.Is(err, pgperrors.ErrKeyExpired):
		return errors.New("the key has expired: its owner can extend it (gpg --edit-key, expire) and export it again")
	case errors.Is(err, pgperrors.ErrKeyRevoked):
		return errors.New("the key is revoked")
	case errors.Is(err, pgperrors.ErrSignatureExpired):
		return errors.New("the signature has expired, or is from the future")
	}
	return err
}

// userID returns a user ID of a key for messages.
func userID(e *openpgp.Entity) string {
	// Also of a key that is no longer valid.
	if _, id := e.PrimaryIdentity(time.Time{}, nil); id != nil {
		return id.Name
	}
	return fmt.Sprintf("%X", e.PrimaryKey.Fingerprint)
}

func keyName(sig *packet.Signature) string {
	if sig.IssuerFingerprint != nil {
		return fmt.Sprintf("%X", sig.IssuerFingerprint)
	}
	return fmt.Sprintf("%016X", *sig.IssuerKeyId)
}

// parseKeys reads keys of both kinds, and names the first in the error about another file.
func parseKeys(data []byte, kinds ...string) (openpgp.EntityList, error) {
	if bytes.HasPrefix(data[min(8, len(data)):], []byte("KBXf")) {
		return nil, errors.New("key box of gpg, which only gpg reads: export the keys with gpg --export --armor NAME")
	}
	packets, err := unarmor(data, kinds...)
	if err != nil {
		return nil, err
	}
	entities, err := openpgp.ReadKeyRing(bytes.NewReader(packets))
	if err != nil {
		return nil, fmt.Errorf("not an OpenPGP key, or a damaged one: %w", err)
	}
	if len(entities) == 0 {
		return nil, errors.New("no OpenPGP key")
	}
	return entities, nil
}

const armorBegin = "-----BEGIN PGP "

// unarmor returns the packets of a file: those of all its armored blocks, which must be
// of these kinds, or the file itself if it is binary. The reader of go-crypto reads
// only the first block, and does not notice a missing end.
func unarmor(data []byte, kinds ...string) ([]byte, error) {
	if len(data) > 0 && data[0]&0x80 != 0 { // every packet begins so
		return data, nil
	}
	blocks := bytes.Split(data, []byte(armorBegin))[1:]
	if len(blocks) == 0 {
		return nil, fmt.Errorf("not OpenPGP: expected a PGP %s, armored or binary", kinds[0])
	}
	var packets []byte
	for _, block := range blocks {
		kind, _, _ := strings.Cut(string(block[:min(80, len(block))]), "-----")
		if !slices.Contains(kinds, kind) {
			if !slices.Contains([]string{"SIGNATURE", "MESSAGE", "SIGNED MESSAGE", "PUBLIC KEY BLOCK", "PRIVATE KEY BLOCK"},
				kind) {
				kind = "block of an unknown kind" // an unknown label may be anything
			}
			return nil, fmt.Errorf("PGP %s instead of a PGP %s", kind, kinds[0])
		}
		if !bytes.Contains(block, []byte("\n-----END PGP "+kind+"-----")) {
			return nil, fmt.Errorf("the PGP %s has no END line: the file is cut off", kind)
		}
		decoded, err := armor.Decode(io.MultiReader(strings.NewReader(armorBegin), bytes.NewReader(block)))
		if err != nil {
			return nil, fmt.Errorf("the armor of the PGP %s is damaged", kind)
		}
		body, err := io.ReadAll(decoded.Body)
		if err != nil {
			return nil, fmt.Errorf("the armor of the PGP %s is damaged: %w", kind, err)
		}
		packets = append(packets, body...)
	}
	return packets, nil
}
