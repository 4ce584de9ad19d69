package keystore

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/modsign/modsign/internal/batch"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/internal/vaulttest"
	"github.com/modsign/modsign/keygen"
)

const vaultToken = "hvs.token-of-the-tests"

// newVault starts a server that has the private keys of testmod, and returns it with the
// environment in which it is found.
func newVault(t *testing.T, versions ...string) (*vaulttest.Server, func(string) (string, bool)) {
	t.Helper()
	s := vaulttest.New(vaultToken)
	for _, algorithm := range versions {
		s.AddVersion("modules", strings.Replace(algorithm, ":", "-", 1), testmod.NewKey(t, algorithm).Private)
	}
	server := httptest.NewUnstartedServer(s)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	block := &pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}
	ca := testmod.WriteFile(t, "ca.pem", pem.EncodeToMemory(block))
	variables := map[string]string{"VAULT_ADDR": server.URL, "VAULT_CACERT": ca, "VAULT_TOKEN": vaultToken}
	return s, func(name string) (string, bool) {
		value, ok := variables[name]
		return value, ok
	}
}

func TestVault(t *testing.T) {
	t.Parallel()
	digests := testmod.Rounds(2000, 400)
	for _, algorithm := range []string{"rsa:2048", "ecdsa:p384"} {
		server, env := newVault(t, algorithm)
		cert := testmod.NewKey(t, algorithm).Certificate
		key, err := Open(t.Context(), "vault:transit/modules", Options{Certificate: cert, LookupEnv: env})
		if err != nil {
			t.Fatal(err)
		}
		if err := batch.Each(t.Context(), digests, batch.Filling(runtime.GOMAXPROCS(0), key.BatchSize()), func(i int) error {
			digest := sha256.Sum256([]byte{byte(i), byte(i >> 8)})
			_, err := key.Sign(nil, digest[:], crypto.SHA256)
			return err
		}); err != nil {
			t.Error(err)
		}
		if n := len(server.Requests()); n > digests/20 {
			t.Errorf("%d requests for %d digests", n, digests)
		}
		if err := key.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestVaultRefusals has what the adapter and the frame find.
func TestVaultRefusals(t *testing.T) {
	t.Parallel()
	server, env := newVault(t, "rsa:2048")
	cert := testmod.NewKey(t, "rsa:2048").Certificate
	for name, c := range map[string]struct {
		uri, want string
		o         Options
	}{
		"no certificate": {"vault:transit/modules", keygen.ErrNoCertificate.Error(), Options{LookupEnv: env}},
		"form":           {"vault:modules", "want vault:MOUNT/KEY", Options{Certificate: cert, LookupEnv: env}},
		"other certificate": {"vault:transit/modules", "public key of the key (rsa-2048) is not the certificate's",
			Options{Certificate: testmod.NewKey(t, "ecdsa:p256").Certificate, LookupEnv: env}},
	} {
		key, err := Open(t.Context(), c.uri, c.o)
		if err == nil {
			key.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	// A token that may sign alone does not learn that the key is another one; the signature
	// tells.
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	server.SignsOnly = true
	server.AddVersion("modules", "rsa-2048", other)
	key, err := Open(t.Context(), "vault:transit/modules", Options{Certificate: cert, LookupEnv: env})
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	digest := sha256.Sum256(nil)
	if _, err := key.Sign(nil, digest[:], crypto.SHA256); err == nil {
		t.Error("a wrong signature passed")
	}
}

// TestVaultWrongSignature lets the server answer with a signature of another digest.
func TestVaultWrongSignature(t *testing.T) {
	t.Parallel()
	server, env := newVault(t, "rsa:2048")
	pair := testmod.NewKey(t, "rsa:2048")
	key, err := Open(t.Context(), "vault:transit/modules", Options{Certificate: pair.Certificate, LookupEnv: env})
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	other, digest := sha256.Sum256([]byte("other")), sha256.Sum256(nil)
	signature, err := pair.Private.Sign(rand.Reader, other[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	server.Intercept = func(w http.ResponseWriter, _ *http.Request) bool {
		fmt.Fprintf(w, `{"data":{"batch_results":[{"signature":"vault:v1:%s"}]}}`,
			base64.StdEncoding.EncodeToString(signature))
		return true
	}
	if _, err := key.Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, ErrWrong) {
		t.Errorf("%v, want ErrWrong", err)
	}
}

// TestVaultLost lets the token expire in the middle.
func TestVaultLost(t *testing.T) {
	t.Parallel()
	server, env := newVault(t, "ecdsa:p256")
	cert := testmod.NewKey(t, "ecdsa:p256").Certificate
	key, err := Open(t.Context(), "vault:transit/modules", Options{Certificate: cert, LookupEnv: env})
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	var expired atomic.Bool
	server.Intercept = func(w http.ResponseWriter, _ *http.Request) bool {
		if expired.Load() {
			vaulttest.Refuse(w, http.StatusForbidden, "permission denied", "invalid token")
		}
		return expired.Load()
	}
	digest := sha256.Sum256(nil)
	if _, err := key.Sign(nil, digest[:], crypto.SHA256); err != nil {
		t.Fatal(err)
	}
	expired.Store(true)
	_, err = key.Sign(nil, digest[:], crypto.SHA256)
	e, ok := errors.AsType[*Error](err)
	if !ok || !e.Lost() || !strings.Contains(err.Error(), "permission denied; invalid token") {
		t.Errorf("%v", err)
	}
}
