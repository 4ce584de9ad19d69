package agent

import (
	"bufio"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/keygen"
)

// holdKey has an agent's process hold the key in the file AGENT_KEY, which is lost after
// AGENT_SIGNATURES signatures, and refuse the module AGENT_REFUSES.
func holdKey(o *Options) (err error) {
	if path := os.Getenv("AGENT_KEY"); path != "" {
		if o.Key, err = keygen.Load(path, os.Getenv("AGENT_CERT"), keygen.LoadOptions{}); err != nil {
			return err
		}
	}
	if n, err := strconv.Atoi(os.Getenv("AGENT_SIGNATURES")); err == nil {
		o.Key.Signer = &losable{Signer: o.Key.Signer, left: n}
	}
	if began := os.Getenv("AGENT_HANGS"); began != "" {
		key := hanging{o.Key.Signer, began, make(chan struct{})}
		o.Key.Signer, o.Ending = key, func() { close(key.ending) }
	}
	if refused, ok := os.LookupEnv("AGENT_REFUSES"); ok {
		o.Allow = func(path string, hash crypto.Hash, digest []byte) error {
			if path == refused || len(digest) != cms.DigestSize(hash) {
				return fmt.Errorf("refused by rule 7: not-path: %q", path)
			}
			return nil
		}
	}
	return nil
}

// losable is a key of which the rest is lost after some signatures. One client calls it at
// a time.
type losable struct {
	crypto.Signer
	left int
}

func (l *losable) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if l.left--; l.left < 0 {
		return nil, errLost{}
	}
	return l.Signer.Sign(random, digest, opts)
}

// hanging is a key that signs nothing. It makes a file when it is asked.
type hanging struct {
	crypto.Signer
	began  string
	ending chan struct{}
}

func (h hanging) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	if err := os.WriteFile(h.began, nil, 0o600); err != nil {
		return nil, err
	}
	<-h.ending
	return nil, errors.New("too late")
}

type errLost struct{}

func (errLost) Error() string { return "token pulled out" }
func (errLost) Lost() bool    { return true }

// startHeld starts an agent that holds a key. Env tells its process more.
func startHeld(t *testing.T, key *testmod.Key, change func(*Options), env ...string) *agentRun {
	t.Helper()
	cmd, o := agentCommand(t, change)
	keyFile, certFile := key.Files(t)
	cmd.Env = append(append(cmd.Env, "AGENT_KEY="+keyFile, "AGENT_CERT="+certFile), env...)
	return startCommand(t, cmd, o)
}

// named is the crypto.SignerOpts of a signature for a module with this path.
type named string

func (named) HashFunc() crypto.Hash     { return crypto.SHA256 }
func (m named) Module() (string, int64) { return string(m), 17 }

// checkKept checks that an error is about an agent that held a key, and which loses the
// key for package sign.
func checkKept(t *testing.T, err error, reason string) {
	t.Helper()
	reason = "the agent that held the key has ended: " + reason
	gone, ok := errors.AsType[*UnavailableError](err)
	if !ok || !gone.Kept || !gone.Lost() || !strings.Contains(gone.Reason, reason) {
		t.Errorf("error is %v, want one with %q", err, reason)
	}
}

// TestHeld is the life of an agent that holds a key from elsewhere.
func TestHeld(t *testing.T) {
	t.Parallel()
	for _, algorithm := range []string{"rsa:2048", "ecdsa:p256"} {
		t.Run(algorithm, func(t *testing.T) {
			t.Parallel()
			key := testmod.NewKey(t, algorithm)
			run := startHeld(t, key, nil)
			agent := run.dial(t)
			if !agent.Kept() || !agent.Certificate().Equal(key.Certificate) {
				t.Errorf("kept is %t, and the certificate is of %s", agent.Kept(), agent.Certificate().Subject)
			}
			held := Held(run.Dir, key.Certificate)
			if held == nil {
				t.Fatal("the agent does not have the key that it holds")
			}
			if Held(run.Dir, testmod.NewKey(t, "ecdsa:p384").Certificate) != nil {
				t.Error("the agent has the key of another certificate")
			}
			loaded, err := keygen.Load(filepath.Join(run.Dir, certificateName), "", keygen.LoadOptions{KeyOf: KeyOf})
			if err != nil {
				t.Fatal(err)
			}
			digests := make(Digests)
			for i, signer := range []crypto.Signer{held.Signer, agent.Pair().Signer, loaded.Signer} {
				digest := sum(fmt.Sprint(i))
				signature, err := signer.Sign(nil, digest, named("kernel/x.ko"))
				if err != nil || !cms.Verifies(key.Certificate.PublicKey, crypto.SHA256, digest, signature) {
					t.Errorf("signature %d is wrong: %v", i, err)
				}
				digests.Add(crypto.SHA256, digest)
			}
			if status, err := agent.Status(); err != nil || !status.Kept || status.Signatures != 3 {
				t.Errorf("status is %+v (%v)", status, err)
			}
			if err := agent.Forget(); err != nil {
				t.Fatal(err)
			}
			run.wait(t)
			receipt := run.receipt(t)
			if receipt.Version != 3 || !receipt.Kept || receipt.Signature != nil || receipt.Reason != "forgotten" ||
				receipt.Signatures != 3 || !receipt.SignedExactly(digests) {
				t.Errorf("receipt is %+v", receipt)
			}
			if err := receipt.Check(); err != ErrUnsigned {
				t.Errorf("check of a receipt without a signature: %v", err)
			}
			if Held(run.Dir, key.Certificate) != nil {
				t.Error("the agent that has ended has a key")
			}
			_, err = held.Signer.Sign(nil, sum("x"), crypto.SHA256)
			checkKept(t, err, "forgotten")
			_, err = keygen.Load(filepath.Join(run.Dir, certificateName), "", keygen.LoadOptions{KeyOf: KeyOf})
			checkKept(t, err, "forgotten")
		})
	}
}

// TestHeldOneTime checks that a one-time key is not taken for a key from elsewhere.
func TestHeldOneTime(t *testing.T) {
	t.Parallel()
	run := startAgent(t, nil)
	agent := run.dial(t)
	if agent.Kept() || Held(run.Dir, agent.Certificate()) != nil {
		t.Error("a one-time key is said to be kept elsewhere")
	}
}

// TestHeldLost has a key lost at the third signature.
func TestHeldLost(t *testing.T) {
	t.Parallel()
	run := startHeld(t, testmod.NewKey(t, "ecdsa:p256"), nil, "AGENT_SIGNATURES=2")
	signer := run.dial(t).Pair().Signer
	mustSign(t, signer, sum("1"), crypto.SHA256)
	mustSign(t, signer, sum("2"), crypto.SHA256)
	for range 2 {
		_, err := signer.Sign(nil, sum("3"), crypto.SHA256)
		checkKept(t, err, "the key is lost: token pulled out at ")
	}
	run.wait(t)
	if r := run.receipt(t); r.Reason != "the key is lost: token pulled out" || r.Signatures != 2 {
		t.Errorf("receipt is %+v", r)
	}
}

// TestHeldHangs ends an agent whose key does not answer.
func TestHeldHangs(t *testing.T) {
	t.Parallel()
	began := filepath.Join(t.TempDir(), "began")
	run := startHeld(t, testmod.NewKey(t, "ecdsa:p256"), nil, "AGENT_HANGS="+began)
	signer := run.dial(t).Pair().Signer
	signed := make(chan error)
	go func() {
		_, err := signer.Sign(nil, sum("1"), crypto.SHA256)
		signed <- err
	}()
	for _, err := os.Stat(began); err != nil; _, err = os.Stat(began) {
		time.Sleep(time.Millisecond)
	}
	if err := run.dial(t).Forget(); err != nil {
		t.Error(err)
	}
	if err := <-signed; err == nil || !strings.Contains(err.Error(), "too late") {
		t.Errorf("the signature that hung: %v", err)
	}
	run.wait(t)
	if r := run.receipt(t); r.Signatures != 0 || r.Reason != "forgotten" {
		t.Errorf("receipt is %+v", r)
	}
}

func TestHeldLifetime(t *testing.T) {
	t.Parallel()
	run := startHeld(t, testmod.NewKey(t, "ecdsa:p256"), func(o *Options) { o.Lifetime = 100 * time.Millisecond })
	run.wait(t)
	_, err := Dial(run.Dir)
	checkKept(t, err, "lifetime of 100ms over")
}

// TestAllow has an agent refuse a module. A client that tells no path, as one of an older
// program, is judged without one.
func TestAllow(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		refuses string
		opts    crypto.SignerOpts
	}{
		"a module":          {"kernel/net/x.ko", named("kernel/net/x.ko")},
		"a long path":       {strings.Repeat("\x01", 4095), named(strings.Repeat("\x01", 4095))},
		"an unnamed module": {"", crypto.SHA256},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run := startHeld(t, testmod.NewKey(t, "ecdsa:p256"), nil, "AGENT_REFUSES="+test.refuses)
			agent := run.dial(t)
			signer := agent.Pair().Signer
			_, err := signer.Sign(nil, sum("1"), test.opts)
			if err == nil || !strings.Contains(err.Error(), "refused by rule 7: not-path: ") {
				t.Errorf("error is %v", err)
			}
			if _, gone := errors.AsType[*UnavailableError](err); gone {
				t.Error("the refusal is said to end the key")
			}
			mustSign(t, signer, sum("2"), named("kernel/fs/x.ko"))
			if status, err := agent.Status(); err != nil || status.Signatures != 1 {
				t.Errorf("%d signatures (%v), want 1", status.Signatures, err)
			}
		})
	}
}

// TestOldAgent has a client sign with an agent that knows no paths, and refuses requests
// that have them.
func TestOldAgent(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p256")
	dir := t.TempDir()
	answer(t, dir, key, func(digest []byte) []byte {
		signature, _ := key.Private.Sign(rand.Reader, digest, crypto.SHA256)
		return signature
	})
	agent, err := Dial(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	mustSign(t, agent.Pair().Signer, sum("x"), named("kernel/x.ko"))
	if agent.Kept() {
		t.Error("the old agent holds a key")
	}
}

// answer serves a directory as an agent of the first version does, which signs by sign.
func answer(t *testing.T, dir string, key *testmod.Key, sign func(digest []byte) []byte) {
	t.Helper()
	sockets, err := os.MkdirTemp("", "modsign-agent-") // the test's own may be too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	socket := filepath.Join(sockets, "s")
	if err := errors.Join(os.WriteFile(filepath.Join(dir, certificateName), key.CertPEM, 0o644),
		os.Symlink(socket, filepath.Join(dir, socketName))); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	serve := func(conn net.Conn) {
		defer conn.Close()
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			var request struct {
				Op     string `json:"op"`
				Hash   string `json:"hash,omitempty"`
				Digest []byte `json:"digest,omitempty"`
			}
			if err := decodeStrict(lines.Bytes(), &request); err != nil {
				writeLine(conn, map[string]string{"error": "not a request: " + err.Error()})
				return
			}
			if request.Op == "certificate" {
				writeLine(conn, map[string][]byte{"certificate": key.Certificate.Raw})
				continue
			}
			writeLine(conn, map[string][]byte{"signature": sign(request.Digest)})
		}
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(conn)
		}
	}()
}

// TestDoubts has the agent of another user make one signature for all digests.
func TestDoubts(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "ecdsa:p256")
	signature, err := key.Private.Sign(rand.Reader, sum("x"), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	answer(t, dir, key, func([]byte) []byte { return signature })
	for _, doubts := range []bool{false, true} {
		agent, err := Dial(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer agent.Close()
		agent.doubts.Store(doubts)
		signer := agent.Pair().Signer
		if _, err := signer.Sign(nil, sum("y"), crypto.SHA256); err == nil {
			t.Error("the first signature is wrong, and taken")
		}
		mustSign(t, signer, sum("x"), crypto.SHA256)
		if _, err := signer.Sign(nil, sum("y"), crypto.SHA256); doubts && err == nil {
			t.Error("a wrong signature of another user's agent is taken")
		}
	}
}

// TestReceiptKept checks that nobody makes a receipt without a signature out of another one,
// and that such a receipt is read as it is written alone.
func TestReceiptKept(t *testing.T) {
	t.Parallel()
	kept := newReceipt(t, "ecdsa:p256")
	kept.Version, kept.Kept, kept.Signature = keptVersion, true, nil
	if err := readAndCheck(encoded(t, kept)); err != ErrUnsigned {
		t.Errorf("check is %v", err)
	}
	for name, change := range map[string]func(*Receipt){
		"a signature":           func(r *Receipt) { r.Signature = []byte("x") },
		"of version 2":          func(r *Receipt) { r.Version = receiptVersion },
		"of version 4":          func(r *Receipt) { r.Version = keptVersion + 1 },
		"not kept":              func(r *Receipt) { r.Kept = false },
		"another algorithm":     func(r *Receipt) { r.Algorithm = "rsa:2048" },
		"another certificate":   func(r *Receipt) { r.CertificateSHA256 = strings.Repeat("0", 64) },
		"a one-time key's, cut": func(r *Receipt) { r.Version, r.Kept = receiptVersion, false },
	} {
		changed := *kept
		change(&changed)
		if err := readAndCheck(encoded(t, &changed)); err == nil || err == ErrUnsigned {
			t.Errorf("%s: %v", name, err)
		}
	}
}
