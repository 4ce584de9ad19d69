package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"strings"

	"github.com/modsign/modsign/internal/rsabatch"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/sign"
)

// signingKey is one of the keys to sign with.
type signingKey struct {
	options *keyOptions
	hash    crypto.Hash
	named   bool // on the command line
	pair    *keygen.Pair
}

// keys are those that the flags name, not loaded yet.
func (o *signOptions) keys(kernel *kernel) ([]*signingKey, error) {
	hash, err := o.hash.ofKernel(kernel)
	if err != nil {
		return nil, err
	}
	keys := []*signingKey{{options: &o.keyOptions, hash: hash, named: o.hash != ""}}
	for i, name := range o.more.keys {
		key := &signingKey{hash: hash, named: o.hash != "", options: &keyOptions{
			key: name, passphraseFile: o.passphraseFile, allowInsecure: o.allowInsecure, rsa: o.rsa,
		}}
		if len(o.more.certs) > 0 {
			key.options.cert = o.more.certs[i]
		}
		if len(o.more.hashes) > 0 {
			if key.hash, err = hashFlag(o.more.hashes[i]).or(0); err != nil {
				return nil, err
			}
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// accept checks the certificates: a kernel has to trust one of them.
func (o *signOptions) accept(u *ui, kernel *kernel, keys []*signingKey) (said []string, err error) {
	var certs []*x509.Certificate
	for _, key := range keys {
		warnings, err := kernel.accept(u, key.options.certFile(), key.pair.Certificate, true)
		if err != nil {
			return nil, err
		}
		said, certs = append(said, warnings...), append(certs, key.pair.Certificate)
	}
	if kernel == nil || o.forceUntrusted {
		return said, nil
	}
	return said, kernel.trusts(certs...)
}

// signer signs with all keys. how describes them.
func (o *signOptions) signer(keys []*signingKey) (signer *sign.Signer, how string, err error) {
	signers, hows := make([]*sign.Signer, len(keys)), make([]string, len(keys))
	for i, key := range keys {
		options := sign.SignerOptions{Hash: key.hash, UseKeyID: o.keyID, Attributes: o.attributes}
		if strings.HasPrefix(keygen.KeyName(key.pair.Certificate.PublicKey), "mldsa:") && !key.named {
			options.Hash = crypto.SHA512 // what a kernel's configuration says does not count with ML-DSA
		}
		if signers[i], err = newSigner(key.pair, key.options.certFile(), options); err != nil {
			return nil, "", err
		}
		hows[i] = signedWith(key.pair.Certificate, signers[i].Hash())
	}
	if len(signers) == 1 {
		return signers[0], hows[0], nil
	}
	signer, err = sign.JoinSigners(signers...)
	return signer, strings.Join(hows, ", and"), err
}

// pair loads a key, or makes the one-time key.
func (o *signOptions) pair(ctx context.Context, u *ui, key *keyOptions) (*keygen.Pair, error) {
	if !o.oneTime {
		return key.load(ctx, u)
	}
	template, algorithm, err := readProfile("", "key-type", o.keyType, "")
	if err != nil {
		return nil, err
	}
	keepSecrets()
	pair, err := keygen.Generate(algorithm, template)
	if err != nil {
		return nil, err
	}
	pair.Signer = rsabatch.Signer(pair.Signer, warning(u))
	return pair, nil
}
