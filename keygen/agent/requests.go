package agent

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/failures"
	"github.com/modsign/modsign/internal/undump"
	"github.com/modsign/modsign/keygen"
)

// The protocol, on a stream socket: the client writes a request, the agent its
// response, each one JSON object on a line; then the next.
//
//	{"op":"certificate"}                               {"certificate":"<base64 of the DER>","batch":8,
//	                                                    "kept":true,"paths":true}
//	{"op":"sign","hash":"sha512","digest":"<base64>"}  {"signature":"<base64>"}
//	{"op":"status"}                                    {"status":{...}}
//	{"op":"installed"}                                 {}
//	{"op":"forget"}                                    {}, and the connection ends when the process has
//	whatever fails                                     {"error":"..."}, with "gone":true when the key is
//
// A signature is PKCS #1 v1.5, ECDSA in ASN.1, or ML-DSA of mu, whose hash is called
// mldsa44-mu, mldsa65-mu or mldsa87-mu and has 64 bytes. The batch is how many signatures the
// agent makes in the time of one, if that is more than one. Of a key that is not a one-time
// key the agent says that it is kept elsewhere. An agent that holds such a key, or judges
// modules, says that it wants their paths: then a request to sign has the members "path"
// and "size", which agents that do not say so may refuse. The agent hangs up after a line
// that is not a request, and on a client that is silent for a minute, or for less when
// others need its place. A request that it began to process gets an answer. If an agent
// that lives on hangs up without one, it did nothing, and the client sends the request
// again on a new connection.
type wireRequest struct {
	Op     string `json:"op"`
	Hash   string `json:"hash,omitempty"`
	Digest []byte `json:"digest,omitempty"`
	Path   string `json:"path,omitempty"` // of the module, as the client tells it
	Size   int64  `json:"size,omitempty"` // of its payload
}

type wireResponse struct {
	Error       string  `json:"error,omitempty"`
	Gone        bool    `json:"gone,omitempty"`
	Certificate []byte  `json:"certificate,omitempty"`
	Batch       int     `json:"batch,omitempty"`
	Kept        bool    `json:"kept,omitempty"` // also with Gone
	Paths       bool    `json:"paths,omitempty"`
	Signature   []byte  `json:"signature,omitempty"`
	Status      *Status `json:"status,omitempty"`
}

const (
	maxRequest     = 32 << 10  // a path of 4095 bytes in JSON's escapes
	maxResponse    = 256 << 10 // a certificate of 64 KiB in base64
	maxConnections = 256
	idleTimeout    = time.Minute
)

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
		if !s.conns.take(conn) {
			s.answering.RUnlock()
			return true
		}
		response := s.answer(request)
		if request.Op == "forget" {
			s.conns.remove(conn) // it is the process's end that closes it
		}
		err = respond(conn, response)
		s.conns.answered(conn)
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
var errGone = errors.New("the key is gone")

func (s *server) answer(request wireRequest) (response wireResponse) {
	var err error
	switch request.Op {
	case "certificate":
		response = wireResponse{Certificate: s.cert.Raw, Batch: s.batch, Kept: s.kept()}
		response.Paths = s.kept() || s.Allow != nil
	case "sign":
		response.Signature, err = s.sign(request)
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
		return wireResponse{Error: s.gone, Gone: true, Kept: s.kept()} // nobody writes it any more
	case err != nil:
		return wireResponse{Error: err.Error()}
	}
	return response
}

func (s *server) sign(r wireRequest) ([]byte, error) {
	h, err := cms.DigestByName(r.Hash)
	if err != nil {
		return nil, fmt.Errorf("unknown hash %.20q", r.Hash)
	}
	if len(r.Digest) != cms.DigestSize(h) {
		return nil, fmt.Errorf("digest of %d bytes: %s has %d", len(r.Digest), r.Hash, cms.DigestSize(h))
	}
	// Package crypto does not know mu, and an RSA key would panic.
	if mu := cms.MuOf(s.cert.PublicKey); h != mu && (mu != 0 || cms.IsMu(h)) {
		return nil, fmt.Errorf("%s is not for a key %s", r.Hash, keygen.KeyName(s.cert.PublicKey))
	}
	signature, err := s.signAllowed(subject{h, r.Path, r.Size}, r.Digest)
	if failures.IsLost(err) {
		s.end(fmt.Sprintf("the key is lost: %v", err)) // an error of it is Serve's
		return nil, errGone
	}
	return signature, err
}

// subject tells a held key which module a signature is for, as sign.Subject does.
type subject struct {
	hash crypto.Hash
	path string
	size int64
}

func (s subject) HashFunc() crypto.Hash             { return s.hash }
func (s subject) Module() (path string, size int64) { return s.path, s.size }

// signAllowed signs and counts what Allow does not refuse.
func (s *server) signAllowed(module subject, digest []byte) ([]byte, error) {
	s.use.RLock()
	defer s.use.RUnlock()
	if s.key == nil {
		return nil, errGone
	}
	if s.Allow != nil {
		if err := s.Allow(module.path, module.hash, digest); err != nil {
			return nil, err
		}
	}
	signature, err := s.key.Sign(rand.Reader, digest, module)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signatures++
	s.digests.Add(module.hash, digest)
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
		Kept:            s.kept(),
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
