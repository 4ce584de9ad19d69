// Package tpmkey makes and uses private keys that work in one TPM 2.0 alone.
//
// Such a key is a [File]: its private half is encrypted by the TPM, below a key that never
// leaves it. [Open] loads the file into the TPM, which then signs digests; [Create] makes a
// new key in the TPM.
//
// The address of the TPM is a TCTI of tpm2-tss: "device:/dev/tpmrm0", "swtpm:path=SOCKET"
// or "swtpm:host=HOST,port=PORT". Nothing that is loaded stays in the TPM after [Key.Close].
//
// A passphrase never goes to the TPM in the clear. It is proved by an HMAC whose key
// depends on a secret that is encrypted to the parent key. That stops whoever reads the
// bus, but not who can change what passes: the parent key is taken as the TPM shows it.
package tpmkey

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/modsign/modsign/internal/keyfile"
)

// A TPM runs one command at a time, and none can be stopped once it is sent.
type device struct {
	ctx    context.Context
	conn   *conn
	turn   chan struct{} // holds an element while somebody speaks with the TPM
	loaded []tpm2.TPMHandle
}

func open(ctx context.Context, tcti string) (*device, error) {
	c, err := dial(ctx, tcti)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, err
	}
	return &device{ctx: ctx, conn: c, turn: make(chan struct{}, 1)}, nil
}

// run lets a function speak with the TPM, alone. When the context ends it returns, and
// leaves the function to its end.
func run[T any](d *device, speak func() (T, error)) (result T, err error) {
	select {
	case d.turn <- struct{}{}:
	case <-d.ctx.Done():
		return result, context.Cause(d.ctx)
	}
	type answer struct {
		result T
		err    error
	}
	done := make(chan answer, 1)
	go func() {
		defer func() { <-d.turn }()
		var a answer
		if a.err = context.Cause(d.ctx); a.err == nil { // both may have been ready
			a.result, a.err = speak()
		}
		done <- a
	}()
	select {
	case a := <-done:
		return a.result, a.err
	case <-d.ctx.Done():
		return result, context.Cause(d.ctx)
	}
}

// close empties the TPM of what was loaded, and ends the connection. It waits a short time
// for a command that still runs; the kernel's resource manager does the rest.
func (d *device) close() error {
	select {
	case d.turn <- struct{}{}: // for good: nobody else is to speak
		for _, handle := range d.loaded {
			d.flush(handle)
		}
	case <-time.After(2 * time.Second):
	}
	return d.conn.Close()
}

// flush removes something from the TPM. An error is of no use: the connection is about to
// end, or the next command finds no room and says so.
func (d *device) flush(handle tpm2.TPMHandle) {
	_, _ = tpm2.FlushContext{FlushHandle: handle}.Execute(d.conn)
}

// A parent is the key below which others are stored.
type parent struct {
	tpm2.AuthHandle
	public    tpm2.TPMTPublic
	transient bool
}

const (
	persistentFirst, persistentLast = 0x81000000, 0x81ffffff
	sha256                          = tpm2.TPMAlgSHA256
	nonceSize                       = 16
)

// findParent returns the parent of a handle: a persistent key, or the primary key of a
// hierarchy, which the TPM derives anew each time.
func (d *device) findParent(handle tpm2.TPMHandle, isRSA bool) (*parent, error) {
	p := &parent{}
	var public tpm2.TPM2BPublic
	switch {
	case handle >= persistentFirst && handle <= persistentLast:
		read, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(d.conn)
		if err != nil {
			return nil, explain("to show the parent key", err, explanation{
				tpm2.TPMRCHandle, fmt.Sprintf("key's parent is not in this TPM: nothing is at %#x", uint32(handle)),
				"tpm2_getcap handles-persistent lists what is there",
			})
		}
		p.Handle, p.Name, public = handle, read.Name, read.OutPublic
	case handle == tpm2.TPMRHOwner || handle == tpm2.TPMRHEndorsement || handle == tpm2.TPMRHPlatform ||
		handle == tpm2.TPMRHNull:
		made, err := tpm2.CreatePrimary{
			PrimaryHandle: tpm2.AuthHandle{Handle: handle, Auth: tpm2.PasswordAuth(nil)},
			InPublic:      tpm2.New2B(storageKey(isRSA)),
		}.Execute(d.conn)
		if err != nil {
			const password = "TPM's hierarchy of the parent key has a password, which is not supported"
			const persistent = "make the key below a persistent parent: tpm2_evictcontrol, tpm2_create -C 0x81000001"
			return nil, explain("to make the parent key", err,
				explanation{tpm2.TPMRCBadAuth, password, persistent}, explanation{tpm2.TPMRCAuthFail, password, persistent},
				explanation{tpm2.TPMRCHierarchy, "TPM's hierarchy of the parent key is switched off", ""})
		}
		d.loaded = append(d.loaded, made.ObjectHandle)
		p.Handle, p.Name, public, p.transient = made.ObjectHandle, made.Name, made.OutPublic, true
	default:
		return nil, fmt.Errorf("key's parent %#x is neither a hierarchy of the TPM nor a persistent key", uint32(handle))
	}
	contents, err := public.Contents()
	if err != nil {
		return nil, fmt.Errorf("TPM shows a parent key that is damaged: %w", err)
	}
	p.public, p.Auth = *contents, tpm2.PasswordAuth(nil)
	return p, nil
}

// drop removes a parent that is not needed any more: a TPM has room for three keys.
func (d *device) drop(p *parent) {
	if p.transient {
		d.flush(p.Handle)
		d.loaded = d.loaded[:0]
	}
}

// storageKey returns the template H-2 of the TCG's EK Credential Profile, or H-1 for RSA,
// as the format of the files demands.
func storageKey(isRSA bool) tpm2.TPMTPublic {
	symmetric := tpm2.TPMTSymDefObject{
		Algorithm: tpm2.TPMAlgAES,
		KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
		Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
	}
	t := tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: sha256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true,
			Restricted: true, Decrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC,
			&tpm2.TPMSECCParms{Symmetric: symmetric, CurveID: tpm2.TPMECCNistP256}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	}
	if isRSA {
		t.Type = tpm2.TPMAlgRSA
		t.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{Symmetric: symmetric, KeyBits: 2048})
		t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	}
	return t
}

// Algorithm is a kind of key that [Create] makes. All TPMs know the three.
type Algorithm uint8

const (
	RSA2048 Algorithm = iota + 1
	ECDSAP256
	ECDSAP384
)

// Create makes a new key in the TPM, below the owner's storage key. An empty passphrase is
// none.
func Create(ctx context.Context, tcti string, a Algorithm, passphrase []byte) (*File, error) {
	if err := checkPassphrase(passphrase); err != nil {
		return nil, err
	}
	d, err := open(ctx, tcti)
	if err != nil {
		return nil, err
	}
	defer d.close()
	return run(d, func() (*File, error) { return d.create(a, passphrase) })
}

func (d *device) create(a Algorithm, passphrase []byte) (*File, error) {
	p, err := d.findParent(tpm2.TPMRHOwner, false)
	if err != nil {
		return nil, err
	}
	// The session hides the passphrase on its way.
	made, err := tpm2.Create{
		ParentHandle: p.AuthHandle,
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			UserAuth: tpm2.TPM2BAuth{Buffer: passphrase},
			Data:     tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{}),
		}},
		InPublic: tpm2.New2B(signingKey(a, len(passphrase) > 0)),
	}.Execute(d.conn, tpm2.HMAC(sha256, nonceSize, tpm2.Salted(p.Handle, p.public),
		tpm2.AESEncryption(128, tpm2.EncryptIn)))
	if err != nil {
		return nil, explain("to make the key", err, unknownKey...)
	}
	f := &File{
		emptyAuth: len(passphrase) == 0, parent: tpm2.TPMRHOwner,
		public: made.OutPublic.Bytes(), private: made.OutPrivate.Buffer,
	}
	if err := f.parsePublic(); err != nil {
		return nil, fmt.Errorf("TPM has made another key than it was told: %w", err)
	}
	return f, nil
}

// unknownKey explains how a TPM tells that it does not know a kind of key.
var unknownKey = []explanation{
	{tpm2.TPMRCCurve, "TPM does not know the key's curve", "ecdsa:p256 and ecdsa:p384 are what TPMs know"},
	{tpm2.TPMRCKeySize, "TPM does not know RSA keys of this size", "take ecdsa:p384, which is stronger than rsa:2048"},
	{tpm2.TPMRCValue, "TPM does not know keys of this size", "take ecdsa:p384, which is stronger than rsa:2048"},
}

// signingKey is the template of a new key. One without a passphrase works also in a TPM
// that is locked, as nobody can guess at it.
func signingKey(a Algorithm, passphrase bool) tpm2.TPMTPublic {
	t := tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: sha256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true,
			NoDA: !passphrase,
		},
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	}
	switch a {
	case RSA2048:
		t.Type = tpm2.TPMAlgRSA
		t.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048})
		t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	case ECDSAP256:
		t.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256})
	case ECDSAP384:
		t.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP384})
	}
	return t
}

// checkPassphrase refuses what a TPM cannot take for a passphrase.
func checkPassphrase(passphrase []byte) error {
	const most = 32 // the size of SHA-256, by which the key has its name
	switch {
	case len(passphrase) > most:
		return fmt.Errorf("passphrase is too long for a TPM: at most %d bytes", most)
	case bytes.IndexByte(passphrase, 0) >= 0:
		return errors.New("passphrase holds a zero byte, which a TPM does not tell from its end")
	}
	return nil
}

// A Key is a key that is loaded into its TPM. Several goroutines may use it at once; the
// TPM serves them one after the other.
type Key struct {
	*File
	device *device
	handle tpm2.AuthHandle
	lost   atomic.Bool
	close  func() error
}

var errClosed = errors.New("TPM key is closed")

// Open loads the key into its TPM. A wrong passphrase is [ErrPassphrase]; the TPM counts
// it, and Open does not try again. The key is good until ctx ends or Close is called.
func Open(ctx context.Context, tcti string, f *File, passphrase []byte) (*Key, error) {
	if err := checkPassphrase(passphrase); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPassphrase, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	d, err := open(ctx, tcti)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	k := &Key{File: f, device: d}
	k.close = sync.OnceValue(func() error {
		cancel(errClosed)
		return d.close()
	})
	k.handle, err = run(d, func() (tpm2.AuthHandle, error) { return d.load(f, passphrase) })
	if err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

func (d *device) load(f *File, passphrase []byte) (key tpm2.AuthHandle, err error) {
	p, err := d.findParent(f.parent, f.rsaParent)
	if err != nil {
		return key, err
	}
	const elsewhere = "key does not belong to this TPM: it was made in another one or below another parent, the TPM was " +
		"cleared since, or the file is damaged"
	loaded, err := tpm2.Load{
		ParentHandle: p.AuthHandle,
		InPrivate:    tpm2.TPM2BPrivate{Buffer: f.private},
		InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](f.public),
	}.Execute(d.conn)
	if err != nil {
		const parentPassword = "key's parent has a password, which is not supported"
		return key, explain("to load the key", err, append([]explanation{
			{tpm2.TPMRCIntegrity, elsewhere, "a key of a TPM cannot be moved: make one in this TPM, modsign keygen --tpm"},
			{tpm2.TPMRCSize, elsewhere, ""}, {tpm2.TPMRCInsufficient, elsewhere, ""},
			{tpm2.TPMRCAuthFail, parentPassword, ""}, {tpm2.TPMRCBadAuth, parentPassword, ""},
			{tpm2.TPMRCType, "key's parent in this TPM stores no keys", ""},
		}, unknownKey...)...)
	}
	key = tpm2.AuthHandle{Handle: loaded.ObjectHandle, Name: loaded.Name, Auth: tpm2.PasswordAuth(nil)}
	if len(passphrase) > 0 {
		key.Auth, err = d.startSession(p, passphrase)
	}
	d.drop(p)
	d.loaded = append(d.loaded, loaded.ObjectHandle)
	if err == nil && len(passphrase) > 0 {
		d.loaded = append(d.loaded, key.Auth.Handle())
		err = d.checkPassphrase(key)
	}
	return key, err
}

// startSession returns a session in which each command proves the passphrase.
func (d *device) startSession(p *parent, passphrase []byte) (tpm2.Session, error) {
	session, _, err := tpm2.HMACSession(d.conn, sha256, nonceSize, tpm2.Auth(passphrase), tpm2.Salted(p.Handle, p.public))
	if err != nil {
		return nil, explain("a session", err)
	}
	return session, nil
}

// checkPassphrase has the TPM check the passphrase, and makes no signature for it: the use
// of the key's secret in a policy that is thrown away.
func (d *device) checkPassphrase(key tpm2.AuthHandle) error {
	trial, end, err := tpm2.PolicySession(d.conn, sha256, nonceSize, tpm2.Trial())
	if err != nil {
		return explain("a session", err)
	}
	_, err = tpm2.PolicySecret{
		AuthHandle: key, PolicySession: trial.Handle(), NonceTPM: trial.NonceTPM(),
	}.Execute(d.conn)
	_ = end() // as flush
	if errors.Is(err, tpm2.TPMRCAuthFail) || errors.Is(err, tpm2.TPMRCBadAuth) {
		return &keyfile.HintError{Err: fmt.Errorf("%w (%w)", ErrPassphrase, err), Hint: d.tries()}
	}
	return explain("to check the passphrase", err)
}

// tries tells how many wrong passphrases the TPM has counted, and where it stops.
func (d *device) tries() string {
	response, err := tpm2.GetCapability{
		Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTLockoutCounter), PropertyCount: 2,
	}.Execute(d.conn)
	if err == nil {
		list, err := response.CapabilityData.Data.TPMProperties()
		if err == nil && len(list.TPMProperty) == 2 && list.TPMProperty[1].Property == tpm2.TPMPTMaxAuthFail {
			return fmt.Sprintf("the TPM locks its keys with a passphrase after %d wrong ones; it has counted %d",
				list.TPMProperty[1].Value, list.TPMProperty[0].Value)
		}
	}
	return "the TPM locks its keys with a passphrase after a few wrong ones: tpm2_getcap properties-variable"
}

// Sign returns the signature of a digest: RSA PKCS #1 v1.5, or ECDSA as a SEQUENCE of r and
// s. The random reader is ignored. When the context of Open ends, Sign returns.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	h := opts.HashFunc()
	if len(digest) != h.Size() {
		return nil, errors.New("digest is not of the hash's size")
	}
	return run(k.device, func() (signature []byte, err error) {
		if curve, ok := k.key.(*ecdsa.PublicKey); ok {
			signature, err = k.signECDSA(digest, curve.Params().BitSize)
		} else {
			signature, err = k.signRSA(digest, h)
		}
		if err != nil {
			k.lost.Store(true)
		}
		return signature, err
	})
}

// Lost reports whether the TPM has failed to sign. What it has refused once, as for a hash
// that it does not know, it refuses again.
func (k *Key) Lost() bool { return k.lost.Load() }

// Close removes the key from the TPM's memory and ends the connection.
func (k *Key) Close() error { return k.close() }

// hashes are the names that TPMs have for hashes.
var hashes = map[crypto.Hash]tpm2.TPMAlgID{
	crypto.SHA1: tpm2.TPMAlgSHA1, crypto.SHA256: tpm2.TPMAlgSHA256, crypto.SHA384: tpm2.TPMAlgSHA384,
	crypto.SHA512: tpm2.TPMAlgSHA512, crypto.SHA3_256: tpm2.TPMAlgSHA3256, crypto.SHA3_384: tpm2.TPMAlgSHA3384,
	crypto.SHA3_512: tpm2.TPMAlgSHA3512,
}

func (k *Key) signRSA(digest []byte, h crypto.Hash) ([]byte, error) {
	const hint = "sha256 is what every TPM knows"
	id, ok := hashes[h]
	switch {
	case !ok:
		return nil, &keyfile.HintError{Err: fmt.Errorf("no TPM knows the hash %v", h), Hint: hint}
	case k.scheme != tpm2.TPMAlgNull && k.hash != id:
		return nil, fmt.Errorf("TPM key was made for another hash than %v", h)
	}
	response, err := k.sign(digest, tpm2.TPMAlgRSASSA, id, fmt.Sprintf("TPM does not know the hash %v for RSA", h), hint)
	if err != nil {
		return nil, err
	}
	signature, err := response.RSASSA()
	if err != nil {
		return nil, fmt.Errorf("TPM's signature: %w", err)
	}
	return signature.Sig.Buffer, nil
}

// signECDSA signs a digest of any hash. A signature of ECDSA does not depend on the name of
// the hash, but on the number that the leftmost bits of the digest are, as many as the curve
// has. So each curve takes one hash that its TPM surely knows, and the number in its size.
func (k *Key) signECDSA(digest []byte, bits int) ([]byte, error) {
	id, size := k.hash, 0
	if k.scheme == tpm2.TPMAlgNull {
		switch {
		case bits <= 256:
			id = tpm2.TPMAlgSHA256
		case bits <= 384:
			id = tpm2.TPMAlgSHA384
		default:
			id = tpm2.TPMAlgSHA512
		}
	}
	for h, known := range hashes {
		if known == id {
			size = h.Size()
		}
	}
	number := digest[:min(len(digest), (bits+7)/8)]
	if len(number) > size {
		return nil, errors.New("TPM key was made for a hash that is shorter than this one")
	}
	number = append(make([]byte, size-len(number)), number...)
	response, err := k.sign(number, tpm2.TPMAlgECDSA, id, "TPM does not know the hash of the key's own size", "")
	if err != nil {
		return nil, err
	}
	signature, err := response.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("TPM's signature: %w", err)
	}
	unsigned := func(n tpm2.TPM2BECCParameter) *big.Int { return new(big.Int).SetBytes(n.Buffer) }
	return asn1.Marshal(struct{ R, S *big.Int }{unsigned(signature.SignatureR), unsigned(signature.SignatureS)})
}

func (k *Key) sign(digest []byte, scheme, hash tpm2.TPMAlgID, unknown, hint string) (*tpm2.TPMUSignature, error) {
	details := tpm2.NewTPMUSigScheme(scheme, &tpm2.TPMSSchemeHash{HashAlg: hash})
	response, err := tpm2.Sign{
		KeyHandle:  k.handle,
		Digest:     tpm2.TPM2BDigest{Buffer: digest},
		InScheme:   tpm2.TPMTSigScheme{Scheme: scheme, Details: details},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(k.device.conn)
	if err != nil {
		return nil, explain("to sign", err, explanation{tpm2.TPMRCHash, unknown, hint},
			explanation{tpm2.TPMRCScheme, unknown, hint}, explanation{tpm2.TPMRCSize, unknown, hint},
			explanation{tpm2.TPMRCValue, unknown, hint})
	}
	if response.Signature.SigAlg != scheme {
		return nil, errors.New("TPM has signed by another scheme than it was told")
	}
	return &response.Signature.Signature, nil
}
