package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/modsign/modsign/internal/vaulttest"
)

// vaultToken is the token of vault-server, and must be in no output.
const vaultToken = "hvs.token-of-the-stories"

// vaultServer is the program "vault-server DIR ARG...", which serves the API of Vault's
// transit engine at an address that it writes to DIR/addr when it is ready. Each argument that
// is the type of a key is one version of the key transit/modules; DIR/modules-N.key and
// DIR/modules-N.pem are its private key, which a later server takes again, and its
// certificate. Of the other arguments, crash=N ends the program in the middle of its answer
// to the Nth request to sign, busy=N has it refuse the first N, and signs-only is about the
// token.
func vaultServer() {
	if err := serveVault(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "vault-server:", err)
		os.Exit(1)
	}
}

func serveVault(dir string, args []string) error {
	s := vaulttest.New(vaultToken)
	var crash, busy, signed atomic.Int64
	crash.Store(-1)
	version := 0
	for _, arg := range args {
		name, value, _ := strings.Cut(arg, "=")
		n, _ := strconv.ParseInt(value, 10, 64)
		switch name {
		case "crash":
			crash.Store(n)
		case "busy":
			busy.Store(n)
		case "signs-only":
			s.SignsOnly = true
		default:
			version++
			private, err := storyKey(filepath.Join(dir, fmt.Sprintf("modules-%d", version)), arg)
			if err != nil {
				return err
			}
			s.AddVersion("modules", arg, private)
		}
	}
	s.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		appendLine(filepath.Join(dir, "requests"), r.Method+" "+r.URL.Path)
		switch {
		case !strings.Contains(r.URL.Path, "/sign/"):
		case signed.Add(1) == crash.Load():
			io.WriteString(w, `{"data":{"batch_results":[{"signature":"vault:v1:`)
			w.(http.Flusher).Flush()
			os.Exit(0)
		case signed.Load() <= busy.Load():
			w.Header().Set("Retry-After", "0")
			vaulttest.Refuse(w, http.StatusTooManyRequests, "request path \"transit/sign/modules\": rate limit quota exceeded")
			return true
		}
		return false
	}
	server := httptest.NewUnstartedServer(s)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), ca, 0o644); err != nil {
		return err
	}
	if err := writeAddress(dir, server.URL); err != nil {
		return err
	}
	select {}
}

// writeAddress writes DIR/addr whole, for the command await.
func writeAddress(dir, address string) error {
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "addr.new"), []byte(address), 0o644),
		os.Rename(filepath.Join(dir, "addr.new"), filepath.Join(dir, "addr")),
	)
}

func appendLine(file, line string) {
	if f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644); err == nil {
		fmt.Fprintln(f, line)
		f.Close()
	}
}

// storyKey returns the private key of a file, or makes it and its certificate.
func storyKey(path, kind string) (crypto.Signer, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(path + ".key")
	if err == nil {
		block, _ := pem.Decode(data)
		private, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		return private.(crypto.Signer), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var private crypto.Signer
	switch kind {
	case "rsa-2048":
		private, err = rsa.GenerateKey(rand.Reader, 2048)
	case "ecdsa-p384":
		private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	default:
		err = fmt.Errorf("unexpected argument %q", kind)
	}
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(0x5a17), Subject: pkix.Name{CommonName: "modsign test key of a service"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), SubjectKeyId: []byte(filepath.Base(path)),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	return private, errors.Join(
		os.WriteFile(path+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600),
		os.WriteFile(path+".pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o644),
	)
}
