package agent

import (
	"bufio"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/modsign/modsign/internal/batch"
	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/keyfile"
	"github.com/modsign/modsign/keygen"
)

// UnavailableError reports that no key agent of a directory answers, and why.
type UnavailableError struct {
	Dir    string
	Reason string
	Began  bool // there was an agent, or there is one that does not answer this user
	Kept   bool // it held a key from elsewhere, which another agent can hold
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("no key agent in %s: %s", e.Dir, e.Reason)
}

// Lost tells package sign that the key signs nothing more.
func (e *UnavailableError) Lost() bool { return true }

// Client is a connection to a key agent. It is safe for concurrent use.
type Client struct {
	dir    string
	socket string
	cert   *x509.Certificate
	batch  int         // how many signatures the agent makes in the time of one, or 0
	kept   bool        // the key is not a one-time key
	paths  bool        // the agent wants to know the paths of modules
	unfit  error       // why its key must not sign
	proven atomic.Bool // a signature has shown that it has the certificate's key
	doubts atomic.Bool // it belongs to another user than this one and root: each signature has to show it

	calls chan struct{}    // holds one for each request under way
	idle  chan *clientConn // has room for the connections of all of them
}

// maxCalls is how many requests a client has under way at once. They fill eight batches,
// which are more than a machine that also reads and writes the modules makes at the same
// time, and four clients have room in one agent.
const maxCalls = maxConnections / 4

type clientConn struct {
	net.Conn
	lines *bufio.Reader
	used  time.Time
}

const (
	// A busy agent may need time to sign and to end.
	responseTimeout = 2 * time.Minute
	// It answers at once what it knows.
	promptTimeout = 10 * time.Second
	// A connection that was idle so long may be closed by the agent soon.
	poolTimeout = idleTimeout / 2
	// A busy agent has room again soon.
	retryPause = 10 * time.Millisecond
)

// Dial connects to the agent of a directory. The agent must run as the owner of the
// directory, as root, or as this user (SO_PEERCRED). The error is an
// [*UnavailableError] when no agent answers.
func Dial(dir string) (*Client, error) {
	socket, err := socketOf(dir)
	if err != nil {
		return nil, err
	}
	a := &Client{dir: dir, socket: socket, calls: make(chan struct{}, 1), idle: make(chan *clientConn, maxCalls)}
	response, err := a.call(wireRequest{Op: "certificate"})
	if err == nil {
		a.cert, err = cms.ParseX509(response.Certificate)
	}
	if err != nil {
		a.Close()
		return nil, err
	}
	a.batch, a.kept, a.paths = response.Batch, response.Kept, response.Paths
	a.calls = make(chan struct{}, width(runtime.GOMAXPROCS(0), a.batch, dirfd.MaxOpen()))
	published, err := publishedCertificate(dir)
	if err != nil {
		a.unfit = err
	} else if !published.Equal(a.cert) {
		a.unfit = fmt.Errorf("%w: %s is not that of the key agent beside it", keygen.ErrMismatch,
			filepath.Join(dir, certificateName))
	}
	return a, nil
}

// socketOf returns the socket of the agent of a directory. The directory and what is in
// it have names of modsign's own, in a tree that others may write.
func socketOf(dir string) (socket string, err error) {
	d, err := dirfd.OpenOwn(dir)
	if err == nil {
		defer d.Close()
		socket, err = d.Readlink(socketName)
	}
	if err != nil && (isMissing(err) || errors.Is(err, syscall.EINVAL)) {
		return "", noAgent(dir)
	}
	return socket, err
}

// publishedCertificate reads certificate.pem.
func publishedCertificate(dir string) (*x509.Certificate, error) {
	d, err := dirfd.OpenOwn(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	data, err := d.ReadFile(certificateName, keyfile.MaxSize)
	if err != nil {
		return nil, err
	}
	certs, err := keygen.ParseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Path(certificateName), err)
	}
	return certs[0], nil
}

// noAgent finds out why no agent answers.
func noAgent(dir string) error {
	none := func(began bool, format string, args ...any) error {
		return &UnavailableError{Dir: dir, Began: began, Reason: fmt.Sprintf(format, args...)}
	}
	d, err := dirfd.OpenOwn(dir)
	if err != nil {
		return none(false, "none was started")
	}
	defer d.Close()
	var name string
	cert, err := publishedCertificate(dir)
	if err == nil {
		name = receiptName(cert)
	} else if name, err = newestReceipt(d); err != nil || name == "" {
		return none(false, "none was started")
	}
	receipt, err := checkedReceipt(d, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := d.Lstat(socketName); err != nil {
			return none(false, "none was started, or it was killed and its agent.sock removed")
		}
		return none(true,
			"it died without a receipt: it was killed or it crashed, or the machine was restarted (or it is on another "+
				"machine, or outside of this container)")
	case err != nil:
		return none(true, "it left a receipt that is not to be trusted: %v", err)
	}
	return &UnavailableError{Dir: dir, Began: true, Kept: receipt.Kept, Reason: goneSince(receipt)}
}

// newestReceipt returns the name of the receipt that was written last, or "".
func newestReceipt(d *dirfd.Dir) (newest string, err error) {
	names, err := d.Names()
	if err != nil {
		return "", err
	}
	var written time.Time
	for _, name := range names {
		if ok, _ := filepath.Match("receipt-*.json", name); !ok {
			continue
		}
		if info, err := d.Info(name); err == nil && info.ModTime().After(written) {
			newest, written = name, info.ModTime()
		}
	}
	return newest, nil
}

// NewestReceipt returns the path of the receipt that was written last in the directory
// of an agent. Without any the error is fs.ErrNotExist.
func NewestReceipt(dir string) (string, error) {
	d, err := dirfd.OpenOwn(dir)
	if err != nil {
		return "", err
	}
	defer d.Close()
	name, err := newestReceipt(d)
	if err == nil && name == "" {
		err = fmt.Errorf("%s: no receipt of a key agent: %w", dir, fs.ErrNotExist)
	}
	return d.Path(name), err
}

// width returns how many requests to have under way: a few for each processor, and as
// many as an agent that signs in batches makes of them. Most descriptors are left to who
// brings the digests.
func width(procs, size, descriptors int) int {
	return max(1, min(batch.Filling(procs, size), maxCalls, descriptors/4))
}

// connect waits for an agent that has no room for a connection yet.
func (a *Client) connect(timeout time.Duration) (net.Conn, error) {
	for end := time.Now().Add(timeout); ; time.Sleep(retryPause) {
		conn, err := net.DialTimeout("unix", a.socket, timeout)
		if !errors.Is(err, syscall.EAGAIN) {
			return conn, err
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("key agent in %s does not answer: it takes no connection", a.dir)
		}
	}
}

func (a *Client) dial(timeout time.Duration) (*clientConn, error) {
	conn, err := a.connect(timeout)
	if err != nil {
		info, statErr := os.Lstat(filepath.Join(a.dir, socketName))
		if errors.Is(err, fs.ErrPermission) && statErr == nil {
			return nil, &UnavailableError{Dir: a.dir, Began: true,
				Reason: fmt.Sprintf("it belongs to uid %d, and takes orders of that user and of root alone",
					info.Sys().(*syscall.Stat_t).Uid)}
		}
		if errors.Is(err, syscall.ECONNREFUSED) || isMissing(err) {
			return nil, noAgent(a.dir)
		}
		return nil, err
	}
	owner, err := os.Stat(a.dir)
	if err == nil {
		var uid int
		uid, err = peerUID(conn)
		stranger := uid != 0 && uid != os.Geteuid()
		if stranger {
			a.doubts.Store(true)
		}
		if err == nil && stranger && uid != int(owner.Sys().(*syscall.Stat_t).Uid) {
			err = &UnavailableError{Dir: a.dir, Began: true,
				Reason: fmt.Sprintf("the process that answers belongs to uid %d, which is neither the directory's owner nor root",
					uid)}
		}
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &clientConn{Conn: conn, lines: bufio.NewReaderSize(conn, 4096)}, nil
}

// call sends a request and returns the response to it.
func (a *Client) call(request wireRequest) (response wireResponse, err error) {
	a.calls <- struct{}{}
	defer func() { <-a.calls }()
	var conn *clientConn
	select {
	case conn = <-a.idle:
	default:
	}
	defer func() {
		if conn != nil {
			a.idle <- conn
		}
	}()
	drop := func() { conn.Close(); conn = nil }
	if conn != nil && time.Since(conn.used) > poolTimeout {
		drop()
	}
	if conn != nil {
		if response, err = conn.roundTrip(request); isHangup(err) {
			drop()
		}
	}
	// An agent that hangs up has not done the request: others needed the place. One that
	// exited cannot be dialed.
	for end := time.Now().Add(timeoutOf(request)); conn == nil; {
		if conn, err = a.dial(timeoutOf(request)); err != nil {
			return wireResponse{}, err
		}
		if response, err = conn.roundTrip(request); isHangup(err) && time.Now().Before(end) {
			drop()
			time.Sleep(retryPause)
		}
	}
	switch {
	case isHangup(err):
		drop()
		return wireResponse{}, fmt.Errorf("key agent in %s does not answer: it has had no room for a request for %v", a.dir,
			timeoutOf(request))
	case errors.Is(err, io.ErrUnexpectedEOF):
		drop()
		return wireResponse{}, noAgent(a.dir) // the agent exited during the answer
	case errors.Is(err, os.ErrDeadlineExceeded):
		drop()
		return wireResponse{}, fmt.Errorf("key agent in %s does not answer: nothing came within %v", a.dir,
			timeoutOf(request))
	case err != nil:
		drop()
		return wireResponse{}, fmt.Errorf("key agent in %s: %w", a.dir, err)
	case response.Gone || a.cert == nil && response.Error != "":
		return wireResponse{}, &UnavailableError{Dir: a.dir, Began: true, Kept: response.Kept, Reason: response.Error}
	case response.Error != "":
		return wireResponse{}, fmt.Errorf("key agent in %s: %s", a.dir, response.Error)
	}
	if request.Op == "forget" {
		// The kernel takes a process's memory first, and its descriptors after.
		if _, err := conn.lines.ReadByte(); !isHangup(err) {
			drop()
			return wireResponse{}, fmt.Errorf("key agent in %s does not end: %w", a.dir, err)
		}
		drop()
	}
	return response, nil
}

func timeoutOf(request wireRequest) time.Duration {
	if request.Op == "certificate" || request.Op == "status" {
		return promptTimeout
	}
	return responseTimeout
}

// isHangup reports whether an error is that of a connection whose other end is
// closed.
func isHangup(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func (c *clientConn) roundTrip(request wireRequest) (response wireResponse, err error) {
	c.SetDeadline(time.Now().Add(timeoutOf(request)))
	// An agent that refuses has hung up by now, and yet said why.
	writeErr := writeLine(c, request)
	var line []byte
	for {
		part, err := c.lines.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			c.used = time.Now()
			err := json.Unmarshal(line, &response)
			return response, err
		}
		if isHangup(err) && len(line) > 0 {
			return response, io.ErrUnexpectedEOF
		}
		if !errors.Is(err, bufio.ErrBufferFull) || len(line) > maxResponse {
			return response, errors.Join(writeErr, err)
		}
	}
}

// Certificate returns the certificate of the agent's key.
func (a *Client) Certificate() *x509.Certificate { return a.cert }

// Kept reports whether the agent's key is not a one-time key, but is kept elsewhere.
func (a *Client) Kept() bool { return a.kept }

// Published returns an error unless certificate.pem in the agent's directory is the
// certificate of its key.
func (a *Client) Published() error { return a.unfit }

// Pair returns the certificate with a Signer that asks the agent. The Signer makes the
// signatures that modules have: RSA PKCS #1 v1.5, ECDSA, and ML-DSA of mu. It checks the first one with
// the certificate, which shows that the agent has the key, and every one if the agent runs
// as another user than this one and root. It signs nothing when [Client.Published] returns an
// error. Its error is an [*UnavailableError] when the agent
// has ended.
func (a *Client) Pair() *keygen.Pair { return &keygen.Pair{Signer: remoteKey{a}, Certificate: a.cert} }

type remoteKey struct{ agent *Client }

// BatchSize returns how many signatures the agent makes in the time of one.
func (s remoteKey) BatchSize() int { return max(1, s.agent.batch) }

func (s remoteKey) Public() crypto.PublicKey { return s.agent.cert.PublicKey }

func (s remoteKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if s.agent.unfit != nil {
		return nil, s.agent.unfit
	}
	if _, ok := opts.(*rsa.PSSOptions); ok {
		return nil, errors.New("key agent makes no RSA-PSS signatures")
	}
	h := opts.HashFunc()
	request := wireRequest{Op: "sign", Hash: cms.HashName(h), Digest: digest}
	if module, ok := opts.(interface{ Module() (string, int64) }); ok && s.agent.paths {
		request.Path, request.Size = module.Module()
	}
	response, err := s.agent.call(request)
	if err != nil {
		return nil, err
	}
	if !s.agent.proven.Load() || s.agent.doubts.Load() {
		if !cms.Verifies(s.agent.cert.PublicKey, h, digest, response.Signature) {
			return nil, fmt.Errorf("key agent in %s made a signature that is not its certificate's", s.agent.dir)
		}
		s.agent.proven.Store(true)
	}
	return response.Signature, nil
}

// Status returns the state of the agent.
func (a *Client) Status() (Status, error) {
	response, err := a.call(wireRequest{Op: "status"})
	if err == nil && response.Status == nil {
		err = fmt.Errorf("key agent in %s has no status", a.dir)
	}
	if err != nil {
		return Status{}, err
	}
	return *response.Status, nil
}

// Installed tells the agent that an install is done. The agent ends after the last one
// that is allowed.
func (a *Client) Installed() error {
	_, err := a.call(wireRequest{Op: "installed"})
	return err
}

// Forget ends the agent. It returns when the receipt is written and the process, with
// the key, is gone.
func (a *Client) Forget() error {
	_, err := a.call(wireRequest{Op: "forget"})
	return err
}

// Close closes the connections. The agent does not end.
func (a *Client) Close() error {
	var err error
	for {
		select {
		case conn := <-a.idle:
			err = errors.Join(err, conn.Close())
		default: // the others are in use
			return err
		}
	}
}

// KeyOf returns the key for a file that holds a certificate, if an agent with that
// certificate serves the directory of the file. It is an option of [keygen.Load]
// ([keygen.LoadOptions]). It returns nil where the directory never had an agent, and an
// error with an [*UnavailableError] where the agent is gone.
func KeyOf(path string, cert *x509.Certificate) (crypto.Signer, error) {
	agent, err := Dial(filepath.Dir(path))
	if none, ok := errors.AsType[*UnavailableError](err); ok && !none.Began {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("its private key was a key agent's: %w", err)
	}
	if !agent.cert.Equal(cert) {
		agent.Close()
		return nil, fmt.Errorf("%w: the key agent in the same directory has the key of another certificate",
			keygen.ErrMismatch)
	}
	agent.unfit = nil
	return remoteKey{agent}, nil
}

// Held returns the key of a certificate if the agent in dir holds that key from elsewhere.
// It returns nil where no such agent answers: the caller opens the key itself. The
// directory may be another user's: only an agent of its owner, of root or of this user
// counts, and the Signer checks a signature with the certificate as that of
// [Client.Pair] does.
func Held(dir string, cert *x509.Certificate) *keygen.Pair {
	agent, err := Dial(dir)
	if err != nil {
		return nil
	}
	if !agent.kept || !agent.cert.Equal(cert) {
		agent.Close()
		return nil
	}
	agent.unfit = nil // certificate.pem does not matter here
	return agent.Pair()
}
