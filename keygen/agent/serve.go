// Package agent keeps a one-time key in the memory of a process of its own, the key
// agent: begin with [Serve] in that process, and with [Dial] in those that sign.
//
// Only the certificate is ever in a file. The agent signs for its user and for root,
// over a socket, until it is told to forget the key, or its time is over, or its
// folder is gone. Then it leaves a [Receipt], signed by the key as its last act.
// Nothing is promised about the wiping of memory, which Go's crypto packages do not
// offer: the key is gone when the process is.
package agent

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/undump"
	"github.com/modsign/modsign/keygen"
)

// Names in the folder of an agent.
const (
	certificateName = "certificate.pem"
	socketName      = "agent.sock" // a symbolic link to the socket, whose path has to be short
)

// Options says what an agent makes, how long it lives, and where.
type Options struct {
	Algorithm keygen.Algorithm
	Template  keygen.Template // of the certificate

	Dir  string // gets certificate.pem, agent.sock and, at the end, receipt-*.json
	Tree string // the folder whose disappearance ends the agent

	Installs int           // ends after so many calls of Installed; 0: any number
	Lifetime time.Duration // ends after so long, the time in which the machine sleeps included
	Profile  string        // what Status returns; it means nothing to the agent

	// RuntimeDir is the directory of the socket, $XDG_RUNTIME_DIR. Where it is
	// empty, too long for a socket, or not this user's alone, /tmp/modsign-UID is,
	// or /tmp/modsign-UID-* with a random name where that one is not this user's alone.
	RuntimeDir string
}

// The protocol, on a stream socket: the client writes a request, the agent its
// response, each one JSON object on a line; then the next.
//
//	{"op":"certificate"}                               {"certificate":"<base64 of the DER>"}
//	{"op":"sign","hash":"sha512","digest":"<base64>"}  {"signature":"<base64>"}
//	{"op":"status"}                                    {"status":{...}}
//	{"op":"installed"}                                 {}
//	{"op":"forget"}                                    {}, and the connection ends when the process has
//	whatever fails                                     {"error":"..."}, with "gone":true when the key is
//
// A signature is PKCS #1 v1.5 or ECDSA in ASN.1. After a line that is no request
// the agent hangs up, and so it does on a client that says nothing for a minute, or
// sooner when others need its place.
type wireRequest struct {
	Op     string `json:"op"`
	Hash   string `json:"hash,omitempty"`
	Digest []byte `json:"digest,omitempty"`
}

type wireResponse struct {
	Error       string  `json:"error,omitempty"`
	Gone        bool    `json:"gone,omitempty"`
	Certificate []byte  `json:"certificate,omitempty"`
	Signature   []byte  `json:"signature,omitempty"`
	Status      *Status `json:"status,omitempty"`
}

const (
	maxRequest     = 4096
	maxResponse    = 256 << 10 // a certificate of 64 KiB in base64
	maxConnections = 256
	idleTimeout    = time.Minute
)

// Status is what an agent says about itself.
type Status struct {
	PID             int       `json:"pid"`
	Algorithm       string    `json:"algorithm"`
	Certificate     string    `json:"certificate_sha256"`
	Profile         string    `json:"profile"` // Options.Profile
	Born            time.Time `json:"born"`
	Ends            time.Time `json:"ends"` // by its lifetime
	Installs        int       `json:"installs"`
	InstallsAllowed int       `json:"installs_allowed"` // 0: any number
	Signatures      int       `json:"signatures"`
	MemoryLocked    bool      `json:"memory_locked"`
	MemoryHidden    bool      `json:"memory_hidden"`     // its user's other processes were kept out from its first instruction
	Warning         string    `json:"warning,omitempty"` // swap may get to see the key
}

// server is an agent from the inside.
type server struct {
	Options
	cert     *x509.Certificate
	born     time.Time
	deadline time.Duration // of the clock that sinceBoot reads
	locked   bool
	warning  string

	runtimeDir string // of the socket
	randomDir  bool   // runtimeDir is this agent's own, and goes with it
	socket     string // its path
	listener   net.Listener
	conns      connSet
	watched    map[string]fs.FileInfo // by path: whose loss ends the agent

	// Who uses the key holds use for reading; for the end it is held for writing.
	use  sync.RWMutex
	key  crypto.Signer // nil at the end
	gone string        // why

	mu         sync.Mutex // of the counters
	signatures int
	digests    Digests
	installs   int

	// Who answers a request holds answering for reading; the process does not end
	// in the middle of an answer.
	answering sync.RWMutex

	ending sync.Once
	ended  chan struct{}
	endErr error
}

// Serve makes a one-time key and its certificate and keeps the key in the
// memory of this process, which is to be a process of its own: it is made
// undumpable, which [Hide] does earlier, and on return connections are left open and no longer answered, to
// end with it. ready is called once the agent answers; after its error Serve
// ends the agent and returns that error.
//
// The agent ends at the first of: [Client.Forget], the last of the allowed
// installs, the end of its lifetime, the loss of Tree, Dir, agent.sock or the
// socket, the context. Then it leaves its [Receipt] in Dir, as
// receipt-<first 16 digits of the certificate's SHA-256>.json, unless Dir is
// gone. Every second it looks at the clock and the folders.
//
// Only this user and root are answered (SO_PEERCRED). It is an error when another
// agent serves Dir.
func Serve(ctx context.Context, o Options, ready func() error) error {
	if o.Lifetime <= 0 || o.Installs < 0 {
		return fmt.Errorf("key agent with a lifetime of %v and %d installs: the lifetime has to be positive, and the installs not negative", o.Lifetime, o.Installs)
	}
	s := &server{Options: o, digests: make(Digests), ended: make(chan struct{})}
	var err error
	for _, dir := range []*string{&s.Dir, &s.Tree} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return err
		}
	}
	if err := otherAgent(s.Dir); err != nil {
		return err
	}
	if s.locked, s.warning, err = hideMemory(); err != nil {
		return err
	}
	if err := s.makeKey(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := s.publish(); err != nil {
		return err
	}
	go s.accept()
	if err := ready(); err != nil {
		return errors.Join(err, s.end("ended as nobody waited for it"))
	}
	s.wait(ctx)
	// Requests that came in before the end get their answer.
	time.Sleep(200 * time.Millisecond)
	s.answering.Lock()
	return s.endErr
}

func (s *server) makeKey() error {
	pair, err := keygen.Generate(s.Algorithm, s.Template)
	if err != nil {
		return err
	}
	s.key, s.cert = pair.Signer, pair.Certificate
	s.born = time.Now().UTC().Truncate(time.Second)
	s.deadline = sinceBoot() + s.Lifetime
	return nil
}

func (s *server) certificatePEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert.Raw})
}

// publish makes the agent known: the socket, the certificate, and the link that
// leads to the socket.
func (s *server) publish() (err error) {
	s.watched = make(map[string]fs.FileInfo)
	for _, dir := range []string{s.Tree, s.Dir} {
		if s.watched[dir], err = os.Stat(dir); err != nil {
			return err
		}
	}
	dir, err := s.openDir()
	if err != nil {
		return err
	}
	defer dir.Close()
	if s.runtimeDir, s.randomDir, err = runtimeFolder(s.RuntimeDir); err != nil {
		return err
	}
	s.socket = filepath.Join(s.runtimeDir, "modsign-"+rand.Text()[:12]+".sock")
	defer func() {
		if err != nil {
			s.unlisten()
		}
	}()
	if s.listener, err = net.Listen("unix", s.socket); err != nil {
		return err
	}
	if err := os.Chmod(s.socket, 0o600); err != nil {
		return err
	}
	if s.watched[s.socket], err = os.Lstat(s.socket); err != nil {
		return err
	}

	// Of two of this user that begin at once, one finds the other here. The lock is
	// in a directory that nobody else can open, and so nobody else can hold it.
	unlock, err := lockFolder(s.runtimeDir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := otherAgent(s.Dir); err != nil {
		return err
	}
	if err := atomicfile.WriteIn(dir, certificateName, s.certificatePEM(), 0o666, true); err != nil {
		return fmt.Errorf("writing the certificate: %w", err)
	}
	// One that was killed could not take its socket away.
	if dead, err := dir.Readlink(socketName); err == nil {
		removeDead(dead, s.runtimeDir)
	}
	return atomicfile.Symlink(dir, socketName, s.socket)
}

// openDir opens Dir, whose name the kernel's build makes up in a tree that may be
// somebody else's. It is not kept open, as its file system could not be unmounted.
func (s *server) openDir() (*dirfd.Dir, error) {
	dir, err := dirfd.OpenOwn(s.Dir)
	if err != nil {
		return nil, err
	}
	if info, err := dir.Info("."); err != nil || !os.SameFile(info, s.watched[s.Dir]) {
		dir.Close()
		return nil, fmt.Errorf("%s: was replaced by another directory", s.Dir)
	}
	return dir, nil
}

// unlisten removes the socket.
func (s *server) unlisten() {
	if s.listener != nil {
		s.listener.Close()
	}
	if s.randomDir {
		os.Remove(s.runtimeDir)
	}
}

// ErrServed reports that the directory has an agent that answers.
var ErrServed = errors.New("a key agent already serves this directory")

// otherAgent is an error when an agent serves the folder.
func otherAgent(dir string) error {
	other, err := Dial(dir)
	if err != nil {
		return nil // none that answers us
	}
	defer other.Close()
	return fmt.Errorf("%s: %w", dir, ErrServed)
}

// wait returns when the agent has ended.
func (s *server) wait(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-s.ended:
			return
		case <-ctx.Done():
			s.end("ended by " + context.Cause(ctx).Error())
		case <-tick.C:
			if reason := s.over(); reason != "" {
				s.end(reason)
			}
		}
	}
}

// over returns why the agent has to end, if it has.
func (s *server) over() string {
	if sinceBoot() >= s.deadline {
		return fmt.Sprintf("lifetime of %v over", s.Lifetime)
	}
	for _, path := range []string{s.Tree, s.Dir, s.socket} {
		if !s.there(path) {
			return path + " removed"
		}
	}
	link := filepath.Join(s.Dir, socketName)
	if target, err := os.Readlink(link); isMissing(err) || err == nil && target != s.socket {
		return link + " removed"
	}
	return ""
}

// there reports whether a path is what it was. A disk that cannot say so now may
// say it a second later.
func (s *server) there(path string) bool {
	info, err := os.Stat(path)
	if err != nil {
		return !isMissing(err)
	}
	return os.SameFile(info, s.watched[path])
}

func isMissing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ESTALE)
}

// end drops the key, after its last signature, and leaves the receipt. It returns
// when that is done, whoever was the first to want it.
func (s *server) end(reason string) error {
	s.ending.Do(func() {
		defer close(s.ended)
		s.use.Lock()
		receipt, err := s.receipt(reason)
		s.key, s.gone = nil, goneSince(reason, receipt.Died)
		s.use.Unlock()

		if err == nil {
			err = s.leave(receipt)
		}
		if err != nil {
			s.endErr = fmt.Errorf("%s, but without a receipt: %w", s.gone, err)
		}
		s.unlisten()
	})
	return s.endErr
}

// leave writes the receipt and takes agent.sock away, unless Dir is gone.
func (s *server) leave(receipt *Receipt) error {
	if !s.there(s.Dir) {
		return nil
	}
	dir, err := s.openDir()
	if err != nil {
		return err
	}
	defer dir.Close()
	err = receipt.write(dir, receiptName(s.cert))
	if target, err := dir.Readlink(socketName); err == nil && target == s.socket {
		dir.Remove(socketName)
	}
	return err
}

// goneSince is how it is said everywhere.
func goneSince(reason string, died time.Time) string {
	return fmt.Sprintf("the one-time key is gone: %s at %s", reason, died.Format(time.RFC3339))
}

// receipt is signed by the key, and nothing after it.
func (s *server) receipt(reason string) (*Receipt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &Receipt{
		Version:           receiptVersion,
		Certificate:       string(s.certificatePEM()),
		CertificateSHA256: fingerprint(s.cert),
		Algorithm:         keygen.KeyName(s.cert.PublicKey),
		Born:              s.born,
		Died:              time.Now().UTC().Truncate(time.Second),
		Reason:            strings.ToValidUTF8(reason, "\uFFFD"), // it may hold a path
		Signatures:        s.signatures,
		DigestsSHA256:     s.digests.SHA256(),
		Installs:          s.installs,
		MemoryLocked:      s.locked,
		MemoryHidden:      undump.FromStart(),
	}
	return r, r.sign(s.key)
}

func (s *server) accept() {
	for {
		conn, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no descriptors left, say
			s.conns.makeRoom()
			time.Sleep(10 * time.Millisecond)
			continue
		}
		s.conns.add(conn)
		go s.serve(conn)
	}
}

// serve answers the requests of a connection.
func (s *server) serve(conn net.Conn) {
	defer s.conns.remove(conn)
	if uid, err := peerUID(conn); err != nil || uid != 0 && uid != os.Geteuid() {
		respond(conn, wireResponse{Error: fmt.Sprintf("refused: the key agent of uid %d takes orders of that user and of root alone", os.Geteuid())})
		conn.Close()
		return
	}
	if s.converse(conn) {
		conn.Close()
	}
}

// converse reports whether the connection is to be closed now, and not with the
// process.
func (s *server) converse(conn net.Conn) bool {
	lines := bufio.NewReaderSize(conn, maxRequest)
	for {
		conn.SetReadDeadline(time.Now().Add(idleTimeout))
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			respond(conn, wireResponse{Error: fmt.Sprintf("request has more than %d bytes", maxRequest)})
		}
		if err != nil {
			return true
		}
		var request wireRequest
		if err := decodeStrict(line, &request); err != nil {
			respond(conn, wireResponse{Error: "not a request: " + err.Error()})
			return true
		}
		s.answering.RLock()
		s.conns.busy(conn, true)
		response := s.answer(request)
		s.conns.busy(conn, false)
		if request.Op == "forget" {
			s.conns.remove(conn) // it is the process's end that closes it
		}
		err = respond(conn, response)
		s.answering.RUnlock()
		if err != nil {
			return true
		}
		if request.Op == "forget" {
			return false
		}
	}
}

func respond(conn net.Conn, response wireResponse) error {
	conn.SetWriteDeadline(time.Now().Add(idleTimeout))
	return writeLine(conn, response)
}

func writeLine(w io.Writer, v any) error {
	line, err := json.Marshal(v)
	if err == nil {
		_, err = w.Write(append(line, '\n'))
	}
	return err
}

// decodeStrict decodes one JSON value, all of whose members are known.
func decodeStrict(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("there is more after the object")
	}
	return nil
}

// errGone is of requests that come after the end.
var errGone = errors.New("the one-time key is gone")

func (s *server) answer(request wireRequest) (response wireResponse) {
	var err error
	switch request.Op {
	case "certificate":
		response.Certificate = s.cert.Raw
	case "sign":
		response.Signature, err = s.sign(request.Hash, request.Digest)
	case "status":
		response.Status, err = s.status()
	case "installed":
		err = s.installed()
	case "forget":
		err = s.end("forgotten")
	default:
		err = fmt.Errorf("no such request: %.20q", request.Op)
	}
	switch {
	case err == errGone:
		return wireResponse{Error: s.gone, Gone: true} // nobody writes it any more
	case err != nil:
		return wireResponse{Error: err.Error()}
	}
	return response
}

func (s *server) sign(name string, digest []byte) ([]byte, error) {
	h, err := cms.HashByName(name)
	if err != nil || cms.HashName(h) != name {
		return nil, fmt.Errorf("unknown hash %.20q", name)
	}
	if len(digest) != h.Size() {
		return nil, fmt.Errorf("digest of %d bytes: %s has %d", len(digest), name, h.Size())
	}
	s.use.RLock()
	defer s.use.RUnlock()
	if s.key == nil {
		return nil, errGone
	}
	signature, err := s.key.Sign(rand.Reader, digest, h)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signatures++
	s.digests.Add(h, digest)
	return signature, nil
}

func (s *server) status() (*Status, error) {
	s.use.RLock()
	defer s.use.RUnlock()
	if s.key == nil {
		return nil, errGone
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return &Status{
		PID:             os.Getpid(),
		Algorithm:       keygen.KeyName(s.cert.PublicKey),
		Certificate:     fingerprint(s.cert),
		Profile:         s.Profile,
		Born:            s.born,
		Ends:            s.born.Add(s.Lifetime),
		Installs:        s.installs,
		InstallsAllowed: s.Installs,
		Signatures:      s.signatures,
		MemoryLocked:    s.locked,
		MemoryHidden:    undump.FromStart(),
		Warning:         s.warning,
	}, nil
}

func (s *server) installed() error {
	n, err := s.countInstall()
	if err != nil || s.Installs == 0 || n < s.Installs {
		return err
	}
	reason := "the one allowed install done"
	if n > 1 {
		reason = fmt.Sprintf("%d installs done", n)
	}
	return s.end(reason)
}

func (s *server) countInstall() (int, error) {
	s.use.RLock()
	defer s.use.RUnlock()
	if s.key == nil {
		return 0, errGone
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.installs++
	return s.installs, nil
}

// peerUID returns who is at the other end of a connection.
func peerUID(conn net.Conn) (int, error) {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("%T is no connection of a Unix socket", conn)
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	return int(cred.Uid), nil
}
