package main

import (
	"bufio"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/testmod"
)

// awsKMS speaks the part of the API of AWS KMS that signing needs, as it is documented
// (JSON 1.1), with one key. It does not check who signs the requests.
type awsKMS struct {
	key    crypto.Signer
	signs  atomic.Int64 // requests
	throws int64        // so many of the first requests exceed the rate
}

const (
	kmsKey    = "1234abcd-12ab-34cd-56ef-1234567890ab"
	kmsKeyARN = "arn:aws:kms:eu-north-1:111122223333:key/" + kmsKey
)

func (s *awsKMS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body struct {
		KeyId, MessageType, SigningAlgorithm string
		Message                              []byte
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	refuse := func(kind, message string) {
		w.WriteHeader(http.StatusBadRequest)
		json.NewEncoder(w).Encode(map[string]string{"__type": kind, "message": message})
	}
	authorization := r.Header.Get("Authorization")
	switch {
	case r.Method != http.MethodPost || r.URL.Path != "/" || r.Header.Get("Content-Type") != "application/x-amz-json-1.1":
		refuse("UnknownOperationException", "")
		return
	case !strings.HasPrefix(authorization, "AWS4-HMAC-SHA256 Credential=AKIATEST/") ||
		!strings.Contains(authorization, "/eu-north-1/kms/aws4_request"):
		refuse("UnrecognizedClientException", "The security token included in the request is invalid.")
		return
	case json.NewDecoder(r.Body).Decode(&body) != nil:
		refuse("SerializationException", "")
		return
	case body.KeyId != kmsKey && body.KeyId != kmsKeyARN:
		refuse("NotFoundException", "Invalid keyId '"+body.KeyId+"'")
		return
	}
	spec, algorithms := "RSA_2048", []string{
		"RSASSA_PKCS1_V1_5_SHA_256", "RSASSA_PKCS1_V1_5_SHA_384", "RSASSA_PKCS1_V1_5_SHA_512",
		"RSASSA_PSS_SHA_256", "RSASSA_PSS_SHA_384", "RSASSA_PSS_SHA_512",
	}
	if _, ok := s.key.(*ecdsa.PrivateKey); ok {
		spec, algorithms = "ECC_NIST_P384", []string{"ECDSA_SHA_384"}
	}
	switch r.Header.Get("X-Amz-Target") {
	case "TrentService.GetPublicKey":
		json.NewEncoder(w).Encode(map[string]any{
			"KeyId": kmsKeyARN, "KeySpec": spec, "KeyUsage": "SIGN_VERIFY", "SigningAlgorithms": algorithms,
		})
	case "TrentService.Sign":
		if s.signs.Add(1) <= s.throws {
			refuse("ThrottlingException", "Rate exceeded")
			return
		}
		hash := map[string]crypto.Hash{
			"RSASSA_PKCS1_V1_5_SHA_256": crypto.SHA256, "RSASSA_PKCS1_V1_5_SHA_384": crypto.SHA384,
			"RSASSA_PKCS1_V1_5_SHA_512": crypto.SHA512, "ECDSA_SHA_384": crypto.SHA384,
		}[body.SigningAlgorithm]
		_, isRSA := s.key.(*rsa.PrivateKey)
		switch {
		case hash == 0 || isRSA != strings.HasPrefix(body.SigningAlgorithm, "RSA"):
			refuse("InvalidKeyUsageException", "Algorithm "+body.SigningAlgorithm+" is incompatible with key spec "+spec+".")
			return
		case body.MessageType != "DIGEST" || len(body.Message) != hash.Size():
			refuse("ValidationException", "Digest is invalid length for algorithm "+body.SigningAlgorithm+".")
			return
		}
		signature, err := s.key.Sign(rand.Reader, body.Message, hash)
		if err != nil {
			refuse("KMSInternalException", err.Error())
			return
		}
		json.NewEncoder(w).Encode(map[string]any{
			"KeyId": kmsKeyARN, "Signature": signature, "SigningAlgorithm": body.SigningAlgorithm,
		})
	default:
		refuse("UnknownOperationException", "")
	}
}

// kmsSigner is a running scripts/signer/awskms.py.
type kmsSigner struct {
	cmd     *exec.Cmd
	in      *json.Encoder
	out     *bufio.Scanner
	stderr  strings.Builder
	closeIn func() error
}

func startKMSSigner(t *testing.T, s *awsKMS, key string) *kmsSigner {
	t.Helper()
	python := testmod.Program(t, "python3", "python3-boto3")
	if exec.Command(python, "-c", "import boto3").Run() != nil {
		testmod.Missing(t, "boto3", "apt-get install python3-boto3")
	}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	p := &kmsSigner{cmd: exec.Command(python, "../../scripts/signer/awskms.py")}
	p.cmd.Env = append(os.Environ(), "AWSKMS_KEY="+key, "AWS_ENDPOINT_URL_KMS="+server.URL, "AWS_REGION=eu-north-1",
		"AWS_DEFAULT_REGION=eu-north-1", "AWS_ACCESS_KEY_ID=AKIATEST", "AWS_SECRET_ACCESS_KEY=secret",
		"AWS_CONFIG_FILE=/nonexistent", "AWS_SHARED_CREDENTIALS_FILE=/nonexistent", "AWS_SESSION_TOKEN=")
	p.cmd.Stderr = &p.stderr
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.cmd.Process.Kill(); p.cmd.Wait() })
	p.in, p.out, p.closeIn = json.NewEncoder(stdin), bufio.NewScanner(stdout), stdin.Close
	p.send(t, map[string]any{"message_type": "hello", "protocol": "modsign-signer", "version": 1})
	return p
}

func (p *kmsSigner) send(t *testing.T, message any) {
	t.Helper()
	if err := p.in.Encode(message); err != nil {
		t.Fatalf("%v\n%s", err, p.stderr.String())
	}
}

func (p *kmsSigner) receive(t *testing.T, message any) {
	t.Helper()
	if !p.out.Scan() {
		p.cmd.Wait()
		t.Fatalf("no answer\n%s", p.stderr.String())
	}
	if err := json.Unmarshal(p.out.Bytes(), message); err != nil {
		t.Fatal(err)
	}
}

// TestAWSKMS signs with the example of a signer program for AWS KMS.
func TestAWSKMS(t *testing.T) {
	testmod.Slow(t, "Python takes long to import boto3")
	t.Parallel()
	for algorithm, hash := range map[string]crypto.Hash{"rsa:2048": crypto.SHA512, "ecdsa:p384": crypto.SHA384} {
		t.Run(algorithm, func(t *testing.T) {
			t.Parallel()
			server := &awsKMS{key: testmod.NewKey(t, algorithm).Private, throws: 2}
			p := startKMSSigner(t, server, kmsKey)
			var hello struct {
				Type     string `json:"message_type"`
				Version  int
				InFlight int `json:"max_in_flight"`
			}
			if p.receive(t, &hello); hello.Type != "hello" || hello.Version != 1 || hello.InFlight < 8 {
				t.Fatalf("hello %+v", hello)
			}
			const n = 60
			digests := make([][]byte, n)
			for i := range digests {
				sum := sha512.Sum512(fmt.Append(nil, i))
				digests[i] = sum[:hash.Size()]
				p.send(t, map[string]any{
					"message_type": "module", "id": i, "hash": cms.HashName(hash), "digest": hex.EncodeToString(digests[i]),
				})
			}
			p.send(t, map[string]any{
				"message_type": "digest", "id": n, "hash": "sha3-256", "digest": strings.Repeat("00", 32),
			})
			seen := make(map[int]bool)
			for range n + 1 {
				var answer struct {
					ID        int
					Signature []byte
					Error     string
				}
				p.receive(t, &answer)
				switch {
				case seen[answer.ID]:
					t.Errorf("%d is answered twice", answer.ID)
				case answer.ID == n:
					if !strings.Contains(answer.Error, " signs with ") {
						t.Errorf("SHA-3: %+v", answer)
					}
				case !cms.Verifies(server.key.Public(), hash, digests[answer.ID], answer.Signature):
					t.Errorf("%d: no valid signature: %s", answer.ID, answer.Error)
				}
				seen[answer.ID] = true
			}
			p.closeIn()
			if err := p.cmd.Wait(); err != nil {
				t.Errorf("%v\n%s", err, p.stderr.String())
			}
		})
	}
	t.Run("no key", func(t *testing.T) {
		t.Parallel()
		p := startKMSSigner(t, &awsKMS{key: testmod.NewKey(t, "rsa:2048").Private}, "other")
		if p.out.Scan() {
			t.Errorf("an answer: %s", p.out.Text())
		}
		err := p.cmd.Wait()
		if err == nil || !strings.Contains(p.stderr.String(), "awskms.py: ") ||
			!strings.Contains(p.stderr.String(), "Invalid keyId 'other'") {
			t.Errorf("%v\n%s", err, p.stderr.String())
		}
	})
}

// kmsServer is the program "kms-server DIR", which serves the API of AWS KMS with one RSA key,
// of the certificate DIR/cert.pem, at an address that it writes to DIR/addr when it is ready.
func kmsServer() {
	dir := os.Args[1]
	private, err := storyKey(filepath.Join(dir, "key"), "rsa-2048")
	if err == nil {
		server := httptest.NewServer(&awsKMS{key: private})
		err = writeAddress(dir, server.URL)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kms-server:", err)
		os.Exit(1)
	}
	select {}
}
