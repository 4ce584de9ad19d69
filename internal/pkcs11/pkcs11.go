// Package pkcs11 signs with a private key in a PKCS #11 token.
//
// PKCS #11 modules are shared libraries, which a static program cannot load. The package
// speaks the RPC of p11-kit instead: the program "p11-kit remote" loads the module, or a
// "p11-kit server" that runs somewhere else.
//
// A PIN is tried once. It is never in an argument, in the environment of a program that is
// started, or in an error.
package pkcs11

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/modsign/modsign/internal/keyfile"
)

// Config says how to get to tokens.
type Config struct {
	Program       string   // the path of the program p11-kit; empty if it is missing
	Environ       []string // for the program
	ServerAddress string   // of p11-kit server: unix:path=PATH, or several with a semicolon between them
	ModulePath    string   // the module to load where the URI names none

	// Certificate is that of the key, if it is known. It stands in for what is not in the
	// token.
	Certificate *x509.Certificate

	// PIN returns the PIN. It is called at most once. It may be nil.
	PIN func() ([]byte, error)

	// Note takes remarks for people.
	Note func(string)
}

// A Key is a private key in a token. Several goroutines may use it at once.
type Key struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	public crypto.PublicKey
	cert   *x509.Certificate
	always bool // the token wants the PIN for each signature
	pin    []byte

	sessions chan *signSession // those that nobody uses
	openMore func()            // opens the others
	opening  sync.WaitGroup
	count    int // of sessions; after opening
	closing  sync.Once
}

// A signSession is a session that is logged in, and the key in it.
type signSession struct {
	*session
	init []byte // the arguments of C_SignInit
}

var errClosed = errors.New("the key is closed")

// Open finds the key of a URI and logs in. The key is good until ctx ends or Close is
// called.
func Open(ctx context.Context, u *URI, c Config) (*Key, error) {
	peers, err := c.peers(u)
	if err != nil {
		return nil, err
	}
	k := new(Key)
	k.ctx, k.cancel = context.WithCancelCause(ctx)
	t, err := findToken(k.ctx, u, peers)
	if err == nil {
		err = k.open(u, c, t)
	}
	if err != nil {
		if t != nil {
			t.conn.finish(0)
		}
		clear(k.pin)
		k.cancel(errClosed)
		return nil, err
	}
	return k, nil
}

// open logs in to the token and finds the key.
func (k *Key) open(u *URI, c Config, t *token) error {
	s, err := t.open()
	if err != nil {
		return err
	}
	asksPIN := t.flags&tokenProtectedPath == 0
	if t.flags&tokenLoginRequired != 0 {
		if err := k.login(s, u, c); err != nil {
			return err
		}
	}
	key, err := s.findKey(u)
	if err != nil {
		return err
	}
	if k.always, err = s.flag(key.handle, attrAlwaysAuthenticate); err != nil {
		return err
	}
	if k.always && asksPIN && k.pin == nil { // a token that wants no login before
		if k.pin, err = c.pin(u); err != nil {
			return err
		}
	}
	if err := k.findPublic(s, key, c.Certificate); err != nil {
		return err
	}
	connections := 1
	if !t.hardware && !k.always && asksPIN { // else somebody would have to enter it again
		connections = min(runtime.GOMAXPROCS(0), maxConnections)
		if t.maxSessions != 0 && t.maxSessions < uint64(connections) {
			connections = int(t.maxSessions)
		}
	}
	k.sessions = make(chan *signSession, connections)
	k.add(s, key)
	k.openMore = sync.OnceFunc(func() {
		k.opening.Go(func() { k.openOthers(t, key, connections-1) })
	})
	return nil
}

// maxConnections is the limit for tokens that are programs or behind a network.
const maxConnections = 4

// add adds a session for Sign.
func (k *Key) add(s *session, key privateKey) {
	var args encoder
	args.ulong(s.handle)
	if key.kind == keyRSA {
		args.u32(mechanismRSA)
	} else {
		args.u32(mechanismECDSA)
	}
	if !s.conn.newM {
		args.u32(null) // the parameters, which there are none of
	}
	args.ulong(key.handle)
	k.sessions <- &signSession{s, args}
	k.count++
}

// openOthers opens more connections, with the PIN that the first has proven to be right.
// The key does without those that fail.
func (k *Key) openOthers(first *token, key privateKey, connections int) {
	for range connections {
		c, err := first.conn.peer.dial(k.ctx)
		if err == nil {
			err = k.addFrom(c, first, key)
		}
		if err != nil {
			c.finish(0)
			return
		}
	}
}

func (k *Key) addFrom(c *conn, first *token, key privateKey) error {
	tokens, err := c.tokens()
	if err != nil {
		return err
	}
	tokens = slices.DeleteFunc(tokens, func(t *token) bool {
		return t.String() != first.String() || t.flags != first.flags
	})
	if len(tokens) != 1 {
		return errors.New("the token is gone, or has changed")
	}
	s, err := tokens[0].open()
	if err == nil && first.flags&tokenLoginRequired != 0 {
		err = s.login(userNormal, k.pin)
	}
	if err != nil {
		return err
	}
	found, err := s.find(append(key.template(classPrivateKey), attribute{attrLabel, []byte(key.label)})...)
	if err != nil {
		return err
	}
	if len(found) != 1 {
		return errors.New("not one key")
	}
	key.handle = found[0]
	k.add(s, key)
	return nil
}

// login logs in, with one try.
func (k *Key) login(s *session, u *URI, c Config) error {
	switch {
	case s.flags&tokenPINLocked != 0:
		return &keyfile.HintError{
			Err:  errors.New("the token says that its PIN is locked (CKF_USER_PIN_LOCKED)"),
			Hint: "unlock it with the means of its maker, or with the SO PIN: pkcs11-tool --login-type so --init-pin",
		}
	case s.flags&tokenPINFinalTry != 0:
		return &keyfile.HintError{
			Err: errors.New("the token says that one more wrong PIN locks it (CKF_USER_PIN_FINAL_TRY): modsign does not try"),
			Hint: "log in once by hand, which gives the token its tries back: p11tool --login --list-privkeys '" +
				s.token.String() + "'",
		}
	}
	if s.flags&tokenProtectedPath != 0 {
		c.Note("the token asks for the PIN itself: enter it there")
	} else {
		var err error
		if k.pin, err = c.pin(u); err != nil {
			return err
		}
	}
	err := s.login(userNormal, k.pin)
	if err == nil {
		return nil
	}
	return s.explainLogin(err)
}

// explainLogin adds to the error of a login what it means for the next.
func (s *session) explainLogin(err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return err
	}
	hint := ""
	switch e.RV {
	case rvPINIncorrect, rvPINInvalid, rvPINLenRange:
		err = fmt.Errorf("wrong PIN: %w", err)
		hint = "correct the PIN: modsign tries it once a run"
	case rvPINLocked:
		hint = "unlock the token with the means of its maker, or with the SO PIN: pkcs11-tool --login-type so --init-pin"
	default:
		return err
	}
	if s.readInfo() == nil {
		switch {
		case s.flags&tokenPINLocked != 0:
			err = fmt.Errorf("%w, and the token is now locked (CKF_USER_PIN_LOCKED)", err)
		case s.flags&tokenPINFinalTry != 0:
			err = fmt.Errorf("%w, and one more wrong PIN locks the token (CKF_USER_PIN_FINAL_TRY)", err)
		case s.flags&tokenPINCountLow != 0:
			err = fmt.Errorf("%w, and the token has fewer tries left than it allows (CKF_USER_PIN_COUNT_LOW)", err)
		}
	}
	return &keyfile.HintError{Err: err, Hint: hint}
}

// pin returns the PIN of the URI, or else that of the caller.
func (c Config) pin(u *URI) ([]byte, error) {
	switch {
	case u.PINValue != "":
		c.Note("warning: the PIN stands in the URI, where everybody can read it in the list of processes: use pin-source=file:/PATH")
		return []byte(u.PINValue), nil
	case u.PINSource != "":
		pin, err := keyfile.Passphrase(u.PINSource)
		if err != nil {
			return nil, fmt.Errorf("pin-source: %w", err)
		}
		return pin, nil
	case c.PIN == nil:
		return nil, ErrNoPIN
	}
	pin, err := c.PIN()
	if err == nil && len(pin) == 0 {
		err = ErrNoPIN // to try it would be to try a wrong one
	}
	return pin, err
}

// ErrNoPIN reports a token that wants a PIN where there is none.
var ErrNoPIN = errors.New("the token wants a PIN, and there is none")

// findPublic finds the public half of the key, and its certificate.
func (k *Key) findPublic(s *session, key privateKey, given *x509.Certificate) error {
	var err error
	if k.public, err = s.public(key); err != nil {
		return err
	}
	if given != nil {
		if k.public == nil {
			k.public = given.PublicKey
		}
		return nil
	}
	certs, err := s.certificates(key)
	if err != nil {
		return err
	}
	if k.public == nil {
		if len(certs) == 0 {
			return &keyfile.HintError{
				Err:  errors.New("the token has neither the public half of the key nor a certificate"),
				Hint: "give the file of the certificate",
			}
		}
		k.public = certs[0].PublicKey
	}
	k.cert, err = certificateOf(k.public, certs)
	return err
}

// Public returns the public half of the key.
func (k *Key) Public() crypto.PublicKey { return k.public }

// Certificate returns the key's certificate that is in the token, or nil.
func (k *Key) Certificate() *x509.Certificate { return k.cert }

// BatchSize returns how many signatures the token makes at once.
func (k *Key) BatchSize() int { return cap(k.sessions) }

// Sign signs a digest, as RSA PKCS #1 v1.5 or as ECDSA in DER.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	data := digest
	public, isEC := k.public.(*ecdsa.PublicKey)
	if isEC {
		// The token may refuse what is longer than the order.
		data = digest[:min(len(digest), orderSize(public.Curve))]
	} else {
		var err error
		if data, err = digestInfo(opts.HashFunc(), digest); err != nil {
			return nil, err
		}
	}
	if k.ctx.Err() != nil {
		return nil, context.Cause(k.ctx)
	}
	if len(k.sessions) == 0 { // this call would have to wait
		k.openMore()
	}
	select {
	case <-k.ctx.Done():
		return nil, context.Cause(k.ctx)
	case s := <-k.sessions:
		signature, err := k.signWith(s, data)
		k.sessions <- s
		if err == nil && isEC {
			return ecdsaDER(public.Curve, signature)
		}
		return signature, err
	}
}

func (k *Key) signWith(s *signSession, data []byte) ([]byte, error) {
	signature, err := s.sign(data, k)
	if s.conn.broken != nil {
		k.cancel(s.conn.broken) // for all that wait
	} else if e, ok := errors.AsType[*Error](err); ok && slices.Contains(gone, e.RV) {
		k.cancel(err)
	}
	return signature, err
}

// Lost reports whether the key signs nothing more.
func (k *Key) Lost() bool { return k.ctx.Err() != nil }

// sign makes one signature.
func (s *signSession) sign(data []byte, k *Key) ([]byte, error) {
	const room = 4096 // RSA-16384 has 2048 bytes
	c := s.conn
	var args encoder
	args.ulong(s.handle)
	args.bytes(data)
	args.u32(room)
	var initErr error
	if k.always {
		if _, err := c.call(fnSignInit, s.init); err != nil {
			return nil, err
		}
		if err := s.login(userContextSpecific, k.pin); err != nil {
			// Another try may lock the token.
			err = s.explainLogin(err)
			k.cancel(err)
			return nil, err
		}
		if err := c.send(appendCall(nil, c.number, fnSign, args)); err != nil {
			return nil, err
		}
	} else {
		// Both calls are on their way at once, which saves the time between them.
		frames := appendCall(nil, c.number, fnSignInit, s.init)
		if err := c.send(appendCall(frames, c.number+1, fnSign, args)); err != nil {
			return nil, err
		}
		_, initErr = c.receive(fnSignInit)
	}
	d, err := c.receive(fnSign)
	if initErr != nil {
		return nil, initErr
	}
	if err != nil {
		return nil, err
	}
	signature, rv := d.bytes(room)
	if err := c.check(d); err != nil {
		return nil, err
	}
	if rv != rvOK {
		return nil, &Error{fnSign.name, rv}
	}
	return signature, nil
}

// Close logs out and ends the connections.
func (k *Key) Close() error {
	k.closing.Do(func() {
		timer := time.AfterFunc(patience, func() { k.cancel(errClosed) })
		k.opening.Wait()
		timer.Stop()
		var group sync.WaitGroup
		for range k.count {
			group.Go(func() {
				s := <-k.sessions
				s.conn.finish(s.handle)
			})
		}
		group.Wait()
		clear(k.pin)
		k.cancel(errClosed)
	})
	return nil
}

// peers returns where to look for the token, one after the other.
func (c Config) peers(u *URI) ([]peer, error) {
	var modules []string
	switch {
	case u.ModulePath != "":
		modules = []string{u.ModulePath}
	case u.ModuleName != "" && strings.Contains(u.ModuleName, ".so"):
		modules = []string{u.ModuleName}
	case u.ModuleName != "":
		modules = []string{u.ModuleName + ".so", "lib" + u.ModuleName + ".so"}
	case c.ServerAddress != "":
		return sockets(c.ServerAddress)
	case c.ModulePath != "":
		if !strings.HasPrefix(c.ModulePath, "/") && !isModuleName(c.ModulePath) {
			return nil, errors.New("PKCS11_MODULE_PATH is not the path of a module")
		}
		modules = []string{c.ModulePath}
	default:
		// p11-kit serves the tokens of all modules that it is configured to load.
		for name := range u.path {
			if strings.HasPrefix(name, "library-") || name == "slot-id" {
				return nil, &keyfile.HintError{
					Err:  fmt.Errorf("attribute %s tells the tokens of one module apart", name),
					Hint: "name the module: module-path=/PATH",
				}
			}
		}
		modules = []string{allModules}
	}
	if c.Program == "" {
		return nil, &keyfile.HintError{
			Err:  errors.New("the program p11-kit is missing, by which modsign loads PKCS #11 modules"),
			Hint: "apt-get install p11-kit",
		}
	}
	var peers []peer
	for _, module := range modules {
		peers = append(peers, child{c.Program, module, c.Environ})
	}
	return peers, nil
}

// sockets parses the address of p11-kit server.
func sockets(address string) ([]peer, error) {
	var peers []peer
	for part := range strings.SplitSeq(address, ";") {
		if part == "" {
			continue
		}
		path, ok := strings.CutPrefix(part, "unix:path=")
		path, err := decodePercent(path, unreserved+"/\\")
		if !ok || err != nil || !strings.HasPrefix(path, "/") || strings.Contains(path, "\x00") {
			return nil, &keyfile.HintError{
				Err:  errors.New("P11_KIT_SERVER_ADDRESS is not of the form unix:path=/PATH"),
				Hint: "take the address that p11-kit server prints",
			}
		}
		peers = append(peers, socket{path})
	}
	if len(peers) == 0 {
		return nil, errors.New("P11_KIT_SERVER_ADDRESS names no socket")
	}
	return peers, nil
}
