// Package agent keeps a one-time key in the memory of a process of its own, the key
// agent.
//
// Begin with [Dial], which reaches the agent of a directory: the [Client] has the
// certificate and signs with the key. [Start] starts the process of an agent, and
// [Serve] is what that process does.
//
// Only the certificate is ever in a file. The agent signs for its user and for root, over
// a Unix socket. It ends when [Client.Forget] says so, after the allowed number of
// installs, at the end of its lifetime, or when its directory is gone, and leaves a
// [Receipt] that the key signed as its last act. The package does not promise to wipe
// memory, which Go's crypto packages do not offer: the key is gone when the process is.
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

// Names in the directory of an agent.
const (
	certificateName = "certificate.pem"
	socketName      = "agent.sock" // a symbolic link to the socket, whose path has to be short
)

// Options describe an agent: its key, its place and its end.
type Options struct {
	Algorithm keygen.Algorithm
	Template  keygen.Template // of the certificate

	Dir  string // gets certificate.pem, agent.sock and, at the end, receipt-*.json
	Tree string // the directory whose removal ends the agent

	Installs int           // number of calls of Installed after which it ends; 0: no limit
	Lifetime time.Duration // includes the time in which the machine sleeps
	Profile  string        // Status returns it; it means nothing to the agent

	// RuntimeDir is the directory of the socket, $XDG_RUNTIME_DIR. If it is empty, too
	// long for a socket, or open to other users, the socket is in /tmp/modsign-UID; if
	// that is another user's or open to others, in /tmp/modsign-UID-* with a random name.
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
// A signature is PKCS #1 v1.5 or ECDSA in ASN.1. The agent hangs up after a line that is
// not a request, and on a client that is silent for a minute, or for less when others
// need its place.
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

// Status is the state of an agent.
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
	MemoryHidden    bool      `json:"memory_hidden"`     // from its user's other processes, since its first instruction
	Warning         string    `json:"warning,omitempty"` // swap may get to see the key
}

// server is the agent in its own process.
type server struct {
	Options
	cert     *x509.Certificate
	born     time.Time
	deadline time.Duration // of the clock that sinceBoot reads
	locked   bool
	warning  string // why the key may be written to swap

	runtimeDir string // of the socket
	randomDir  bool   // runtimeDir is this agent's own, and goes with it
	socket     string // its path
	listener   net.Listener
	conns      connSet
	watched    map[string]fs.FileInfo // by path: whose loss ends the agent

	// A user of the key holds use for reading. The end holds it for writing.
	use  sync.RWMutex
	key  crypto.Signer // nil at the end
	gone string        // why

	mu         sync.Mutex // of the counters
	signatures int
	digests    Digests
	installs   int

	// An answer holds answering for reading, so that the process does not end in the
	// middle of it.
	answering sync.RWMutex

	ending sync.Once
	ended  chan struct{}
	endErr error
}

// Serve makes a one-time key and its certificate, keeps the key in the memory of this
// process, and returns when the agent has ended. The process must have no other
// purpose and exit then: Serve makes it undumpable, which [Hide] does earlier, and leaves
// connections open without an answer. Serve calls ready once, when the agent answers; if
// ready fails, Serve ends the agent and returns that error.
//
// The agent ends at the first of: [Client.Forget], the last of the allowed installs, the
// end of its lifetime, the loss of Tree, Dir, agent.sock or the socket, the end of ctx.
// It looks at the clock and the directories every second. At its end it leaves its
// [Receipt] in Dir, unless that is gone, as
// receipt-<first 16 digits of the certificate's SHA-256>.json.
//
// The agent answers this user and root alone (SO_PEERCRED). Serve fails with [ErrServed]
// when another agent serves Dir.
func Serve(ctx context.Context, o Options, ready func() error) error {
	if o.Lifetime <= 0 || o.Installs < 0 {
		return fmt.Errorf(
			"key agent with a lifetime of %v and %d installs: the lifetime has to be positive, and the installs not "+
				"negative", o.Lifetime, o.Installs)
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

// publish makes the socket, the certificate, and the link to the socket.
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
	if s.runtimeDir, s.randomDir, err = runtimeDir(s.RuntimeDir); err != nil {
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
	unlock, err := lockDir(s.runtimeDir)
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
// another user's. The agent does not keep it open, so that its file system can be
// unmounted.
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

// otherAgent returns an error when an agent serves the directory.
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

// over returns why the agent has to end now, or "".
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

// there reports whether a path still leads to the same file. Where that cannot be known
// now, it may be known a second later.
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

// end drops the key, after its last signature, and leaves the receipt. Every call
// returns when that is done, the first one's reason being the one that counts.
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

// leave writes the receipt and removes agent.sock, unless Dir is gone.
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

// goneSince is the message about a key that is gone.
func goneSince(reason string, died time.Time) string {
	return fmt.Sprintf("the one-time key is gone: %s at %s", reason, died.Format(time.RFC3339))
}

// receipt makes the receipt, with the last signature of the key.
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
		refusal := fmt.Sprintf("refused: the key agent of uid %d takes orders of that user and of root alone", os.Geteuid())
		respond(conn, wireResponse{Error: refusal})
		conn.Close()
		return
	}
	if s.converse(conn) {
		conn.Close()
	}
}

// converse answers requests and reports whether to close the connection now, not with
// the process.
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

// errGone answers requests that come after the end.
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

// peerUID returns the user at the other end of a connection.
func peerUID(conn net.Conn) (int, error) {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("%T is not a connection of a Unix socket", conn)
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred,
			credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	return int(cred.Uid), nil
}
