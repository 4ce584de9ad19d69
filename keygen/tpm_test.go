package keygen

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/keyfile"
	"github.com/modsign/modsign/internal/testmod"
)

// closing is a signer that tells when it is closed.
type closing struct {
	crypto.Signer
	closed *bool
}

func (c closing) Close() error { *c.closed = true; return nil }

var _ io.Closer = closing{}

// The key of a TPM goes to who can open it, with all that is known of it. What Load does not
// return it closes.
func TestLoadTPM(t *testing.T) {
	t.Parallel()
	key, other := testmod.NewKey(t, "ecdsa:p256"), testmod.NewKey(t, "ecdsa:p384")
	block := pem.EncodeToMemory(&pem.Block{Type: keyfile.TPMKey, Bytes: []byte("contents")})
	path := keyFile(t, append(block, key.CertPEM...))

	if _, err := Load(path, "", LoadOptions{}); !errors.Is(err, ErrNoTPM) {
		t.Errorf("nobody opens it: %v", err)
	}
	closed := false
	open := func(signer crypto.Signer, failure error) LoadOptions {
		return LoadOptions{
			Passphrase: passphrase(secret),
			OpenTPM: func(p string, der []byte, cert *x509.Certificate, ask Passphrase) (crypto.Signer, error) {
				if p != path || string(der) != "contents" || !cert.Equal(key.Certificate) {
					t.Errorf("OpenTPM gets %s, %q and the certificate of %s", p, der, cert.Subject)
				}
				if got, err := ask(); string(got) != secret || err != nil {
					t.Errorf("passphrase %q, %v", got, err)
				}
				return closing{signer, &closed}, failure
			},
		}
	}
	pair, err := Load(path, "", open(key.Private, nil))
	if err != nil || closed {
		t.Fatal(err, closed)
	}
	if err := pair.Close(); err != nil || !closed {
		t.Error("Close does not reach the key")
	}
	closed = false
	if _, err := Load(path, "", open(other.Private, nil)); !errors.Is(err, ErrMismatch) || !closed {
		t.Errorf("another key: %v, closed: %v", err, closed)
	}
	for failure, reason := range map[error]Reason{
		errors.New("gone"): ErrTPM, &keyfile.HintError{Err: errors.New("gone")}: ErrTPM,
		ErrWrongPassphrase: ErrWrongPassphrase, ErrMismatch: ErrMismatch,
	} {
		_, err := Load(path, "", open(nil, failure))
		if e, ok := errors.AsType[*LoadError](err); !ok || e.Reason != reason || !strings.HasPrefix(err.Error(), path+": ") {
			t.Errorf("%v: %v, want the reason %q", failure, err, reason)
		}
	}
}
