package keystore

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/modsign/modsign/internal/keyfile"
	"github.com/modsign/modsign/internal/tpmkey"
	"github.com/modsign/modsign/keygen"
)

// TPM returns what opens the keys of a TPM for keygen.Load, as OpenTPM of its options. The
// keys are good until ctx ends or they are closed. The TPM is /dev/tpmrm0, or the one that
// the variable TPM2TOOLS_TCTI names, as for tpm2-tools: "device:PATH", "swtpm:path=SOCKET"
// or "swtpm:host=HOST,port=PORT". With a nil lookupEnv there is no variable.
//
// A wrong passphrase is keygen.ErrWrongPassphrase.
func TPM(ctx context.Context, lookupEnv func(string) (string, bool)) func(
	path string, der []byte, cert *x509.Certificate, ask keygen.Passphrase) (crypto.Signer, error) {
	return func(path string, der []byte, cert *x509.Certificate, ask keygen.Passphrase) (crypto.Signer, error) {
		file, err := tpmkey.Parse(der)
		if err != nil {
			return nil, err
		}
		k := &Key{uri: path, cert: cert, public: file.Public()}
		if err := k.check(); err != nil { // before the passphrase
			return nil, err
		}
		var passphrase []byte
		if file.NeedsPassphrase() {
			if ask == nil {
				return nil, keygen.ErrNoPassphrase
			}
			if passphrase, err = ask(); err != nil {
				return nil, err
			}
		}
		return openTPM(ctx, k, tcti(lookupEnv), file, passphrase)
	}
}

// NewTPM makes a key in the TPM that [TPM] finds, and opens it. An empty passphrase is none.
// The result has no certificate yet: keygen.Certify makes one. Keys of other algorithms
// than RSA2048, ECDSAP256 and ECDSAP384 are refused.
func NewTPM(ctx context.Context, lookupEnv func(string) (string, bool), a keygen.Algorithm, passphrase []byte) (
	crypto.Signer, error,
) {
	algorithm, ok := map[keygen.Algorithm]tpmkey.Algorithm{
		keygen.RSA2048: tpmkey.RSA2048, keygen.ECDSAP256: tpmkey.ECDSAP256, keygen.ECDSAP384: tpmkey.ECDSAP384,
	}[a]
	if !ok {
		return nil, &keyfile.HintError{
			Err:  fmt.Errorf("%v is not for TPMs: few make such keys", a),
			Hint: fmt.Sprintf("take %v, which every TPM makes", keygen.ECDSAP384),
		}
	}
	file, err := tpmkey.Create(ctx, tcti(lookupEnv), algorithm, passphrase)
	if err != nil {
		return nil, err
	}
	return openTPM(ctx, &Key{uri: "new key in the TPM", public: file.Public()}, tcti(lookupEnv), file, passphrase)
}

// openTPM makes a key of a file and its passphrase.
func openTPM(ctx context.Context, k *Key, tcti string, file *tpmkey.File, passphrase []byte) (crypto.Signer, error) {
	opened, err := tpmkey.Open(ctx, tcti, file, passphrase)
	if errors.Is(err, tpmkey.ErrPassphrase) {
		return nil, &wrongPassphrase{err}
	}
	if err != nil {
		return nil, err
	}
	k.store = opened
	return tpmKey{k, file}, nil
}

// wrongPassphrase gives an error its reason.
type wrongPassphrase struct{ error }

func (e *wrongPassphrase) Unwrap() []error { return []error{keygen.ErrWrongPassphrase, e.error} }

// tcti is the address of the TPM.
func tcti(lookupEnv func(string) (string, bool)) string {
	if lookupEnv != nil {
		if tcti, ok := lookupEnv("TPM2TOOLS_TCTI"); ok && tcti != "" {
			return tcti
		}
	}
	return tpmkey.DefaultTCTI
}

// tpmKey is a key with a file.
type tpmKey struct {
	*Key
	file *tpmkey.File
}

// PrivateKeyBlock is for keygen.Pair.WritePEM.
func (k tpmKey) PrivateKeyBlock() *pem.Block {
	return &pem.Block{Type: keyfile.TPMKey, Bytes: k.file.Marshal()}
}
