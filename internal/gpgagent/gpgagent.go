// Package gpgagent signs digests with a key of a gpg-agent, which may be in an OpenPGP card.
//
// It speaks the Assuan protocol with the agent. The agent asks for a passphrase or PIN by its
// own pinentry: none passes through this process.
package gpgagent

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/modsign/modsign/internal/keyfile"
)

// Config says which key.
type Config struct {
	Socket  string   // of the agent
	Keygrip string   // 40 hexadecimal digits
	Options []string // for the agent, NAME=VALUE: where its pinentry asks
}

// A Key is a crypto.Signer for a key of an agent. Several goroutines may use it at once; the
// agent makes one signature at a time, as a card does.
type Key struct {
	grip   string
	public crypto.PublicKey
	conn   *conn
	ctx    context.Context
	cancel context.CancelCauseFunc

	turn   chan struct{} // holds one while the connection is in use
	failed error         // of the first signature that failed; guarded by turn
	lost   atomic.Bool
}

const listKeys = "gpg --list-secret-keys --with-keygrip"

// ParseURI parses "gpg:KEYGRIP".
func ParseURI(uri string) (keygrip string, err error) {
	_, keygrip, _ = strings.Cut(uri, ":")
	if grip, err := hex.DecodeString(keygrip); err != nil || len(grip) != 20 {
		return "", &keyfile.HintError{Err: errors.New("want gpg:KEYGRIP, with 40 hexadecimal digits"), Hint: listKeys}
	}
	return strings.ToUpper(keygrip), nil
}

// Open connects to the agent and reads the public key. The Key is good until ctx ends or
// Close is called.
func Open(ctx context.Context, c Config) (*Key, error) {
	connection, err := dial(ctx, c.Socket)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, noAgent(c.Socket, err)
	}
	k := &Key{grip: c.Keygrip, conn: connection, turn: make(chan struct{}, 1)}
	k.ctx, k.cancel = context.WithCancelCause(ctx)
	if err := k.start(c.Options); err != nil {
		k.Close()
		return nil, explain(err)
	}
	return k, nil
}

func noAgent(socket string, err error) error {
	if e, ok := errors.AsType[*net.OpError](err); ok {
		err = e.Err
	}
	if e, ok := errors.AsType[*os.SyscallError](err); ok {
		err = e.Err
	}
	return &keyfile.HintError{Err: fmt.Errorf("no gpg-agent at %s: %w", socket, err), Hint: "gpgconf --launch gpg-agent"}
}

func (k *Key) start(options []string) error {
	if _, err := k.conn.call(k.ctx, ""); err != nil { // it greets
		return err
	}
	for _, option := range options {
		_, err := k.conn.call(k.ctx, "OPTION "+option)
		if _, refused := err.(*agentError); err != nil && !refused { // an older agent knows fewer
			return err
		}
	}
	data, err := k.conn.call(k.ctx, "READKEY "+k.grip)
	if err != nil {
		return err
	}
	k.public, err = parsePublic(data)
	return err
}

// Public returns the public key.
func (k *Key) Public() crypto.PublicKey { return k.public }

// Lost reports whether a signature has failed. After an error of the agent nothing is signed:
// it would ask for the same PIN again, once for each module.
func (k *Key) Lost() bool { return k.lost.Load() }

// Close closes the connection, which ends a pinentry that is open.
func (k *Key) Close() error {
	k.cancel(errors.New("key is closed"))
	return k.conn.close()
}

// The numbers of hashes in Libgcrypt, by which the agent knows them.
var hashNumbers = map[crypto.Hash]int{
	crypto.SHA1: 2, crypto.SHA224: 11, crypto.SHA256: 8, crypto.SHA384: 9, crypto.SHA512: 10,
	crypto.SHA3_224: 312, crypto.SHA3_256: 313, crypto.SHA3_384: 314, crypto.SHA3_512: 315,
}

// check returns an error for a hash of which no signature of this key is valid.
func (k *Key) check(digest []byte, hash crypto.Hash) error {
	number, ok := hashNumbers[hash]
	if !ok || len(digest) != hash.Size() {
		return fmt.Errorf("gpg-agent does not sign digests of %v", hash)
	}
	switch key := k.public.(type) {
	case *rsa.PublicKey:
		if number >= hashNumbers[crypto.SHA3_224] { // Libgcrypt (seen in 1.10) leaves the identifier of the hash out
			return &keyfile.HintError{
				Err:  fmt.Errorf("gpg-agent makes no valid RSA signatures of %v digests", hash),
				Hint: "--hash sha512, or the shorter sha384 or sha256",
			}
		}
	case *ecdsa.PublicKey:
		if len(digest) < min(64, (key.Params().BitSize+7)/8) {
			return &keyfile.HintError{
				Err:  fmt.Errorf("gpg-agent signs with ECDSA on %s no digest as short as %v's", key.Params().Name, hash),
				Hint: "--hash sha512, or the shortest that is as long as the key",
			}
		}
	}
	return nil
}

// Sign returns a signature of the digest, which nobody has checked.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := k.check(digest, opts.HashFunc()); err != nil {
		k.lost.Store(true) // the next module has the same hash
		return nil, err
	}
	select {
	case k.turn <- struct{}{}:
		defer func() { <-k.turn }()
	case <-k.ctx.Done():
		return nil, context.Cause(k.ctx)
	}
	if k.failed != nil {
		return nil, k.failed
	}
	signature, err := k.sign(hashNumbers[opts.HashFunc()], digest)
	if err != nil {
		k.failed = explain(err)
		k.lost.Store(true)
		return nil, k.failed
	}
	return signature, nil
}

func (k *Key) sign(hash int, digest []byte) ([]byte, error) {
	var data []byte
	for _, command := range []string{
		"SIGKEY " + k.grip,
		"SETKEYDESC modsign+signs+kernel+modules%0Awith+the+key+" + k.grip + ".",
		fmt.Sprintf("SETHASH %d %X", hash, digest),
		"PKSIGN",
	} {
		var err error
		if data, err = k.conn.call(k.ctx, command); err != nil {
			return nil, err
		}
	}
	return parseSignature(data, k.public)
}

// Codes of libgpg-error.
const (
	codeNoSecretKey  = 17
	codeNoPinentry   = 85
	codeCard         = 108
	codeCardReset    = 109
	codeCardRemoved  = 110
	codeCardNone     = 112
	codeNotFound     = 27
	codeNoFile       = 0x8000 | 81
	codeNoTerminal   = 0x8000 | 102
	codeForbidden    = 251
	codeNoSmartcards = 119
)

// explain adds a hint to an error of the agent, where there is something to do.
func explain(err error) error {
	e, ok := err.(*agentError)
	if !ok {
		return err
	}
	hint := ""
	switch e.code {
	case codeNoFile, codeNoSecretKey, codeNotFound:
		err = fmt.Errorf("gpg-agent has no key of this keygrip: %s", e.text)
		hint = listKeys + " # the fingerprint is not the keygrip; of a card: first gpg --card-status"
	case codeNoPinentry, codeNoTerminal:
		hint = "export GPG_TTY=$(tty) # and a pinentry is needed, such as that of Debian's pinentry-curses"
	case codeCard, codeCardReset, codeCardRemoved, codeCardNone, codeNoSmartcards:
		hint = "gpg --card-status"
	}
	if hint == "" {
		return err
	}
	return &keyfile.HintError{Err: err, Hint: hint}
}

// Find returns the socket of the agent of a user's environment, and starts the agent, as gpg
// does. Without gpgconf it looks where the socket usually is.
func Find(ctx context.Context, environ []string) (socket string, err error) {
	gpgconf, err := exec.LookPath("gpgconf")
	if err != nil {
		return usualSocket(environ)
	}
	run := func(args ...string) ([]byte, error) {
		cmd := exec.CommandContext(ctx, gpgconf, args...)
		cmd.Env = environ
		cmd.WaitDelay = time.Second
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt is not for the agent
		if args[0] == "--launch" {
			return nil, cmd.Run() // the agent stays, and must hold no pipe
		}
		return cmd.Output()
	}
	if _, err = run("--launch", "gpg-agent"); err == nil {
		var out []byte
		if out, err = run("--list-dirs", "agent-socket"); err == nil {
			return strings.TrimSuffix(string(out), "\n"), nil
		}
	}
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	return "", &keyfile.HintError{
		Err:  fmt.Errorf("gpgconf does not start a gpg-agent: %w", err),
		Hint: "gpgconf --launch gpg-agent # says why; it is in Debian's package gpg-agent",
	}
}

// usualSocket returns the first socket that is there.
func usualSocket(environ []string) (string, error) {
	get := func(name string) string {
		for _, variable := range environ {
			if value, ok := strings.CutPrefix(variable, name+"="); ok {
				return value
			}
		}
		return ""
	}
	places := []string{
		filepath.Join(get("XDG_RUNTIME_DIR"), "gnupg"),
		filepath.Join("/run/user", fmt.Sprint(os.Getuid()), "gnupg"),
		filepath.Join(get("HOME"), ".gnupg"),
	}
	if home := get("GNUPGHOME"); home != "" {
		places = []string{home}
	}
	for _, dir := range places {
		socket := filepath.Join(dir, "S.gpg-agent")
		if info, err := os.Stat(socket); err == nil && info.Mode().Type() == os.ModeSocket {
			return socket, nil
		}
	}
	return "", &keyfile.HintError{
		Err:  errors.New("no gpg-agent runs, and there is no gpgconf to start it"),
		Hint: "install GnuPG's gpgconf and gpg-agent (Debian: apt-get install gpgconf gpg-agent)",
	}
}
