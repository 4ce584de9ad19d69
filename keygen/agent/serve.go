// Package agent keeps a key in a process of its own, the key agent: a one-time key, which
// the agent makes in its memory, or a key from elsewhere, which it holds open.
//
// Begin with [Dial], which reaches the agent of a directory: the [Client] has the
// certificate and signs with the key. [Start] starts the process of an agent, and
// [Serve] is what that process does.
//
// Only the certificate is ever in a file. The agent signs for its user and for root, over
// a Unix socket. It ends when [Client.Forget] says so, after the allowed number of
// installs, at the end of its lifetime, or when its directory is gone, and leaves a
// [Receipt], which a one-time key signs as its last act. The package does not promise to wipe
// memory, which Go's crypto packages do not offer: the key is gone when the process is.
package agent

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/dirfd"
	"github.com/modsign/modsign/internal/rsabatch"
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
	Algorithm keygen.Algorithm // of the one-time key
	Template  keygen.Template  // of its certificate

	// Key is an open key for the agent to hold, instead of a one-time key. Serve closes it
	// at the end, and also if it fails. A Signer whose errors have a method Lost() bool that
	// returns true signs nothing more, and the agent ends.
	Key *keygen.Pair

	// Ending is called when the agent begins to end, before it waits for signatures that are
	// under way. It may have them fail after a while, as a token may never answer. It may be
	// nil.
	Ending func()

	// Allow judges each signature before it is made; its error goes to the client. The
	// client says the path of the module, which is empty if the client does not know it.
	// Several goroutines may call Allow. With nil, everything is allowed.
	Allow func(path string, hash crypto.Hash, digest []byte) error

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
	Kept            bool      `json:"kept,omitempty"`    // the key is not a one-time key: it is kept elsewhere
	Warning         string    `json:"warning,omitempty"` // swap may get to see the key, or it made a wrong signature
}

// server is the agent in its own process.
type server struct {
	Options
	cert     *x509.Certificate
	batch    int // how many signatures the key makes in the time of one, or 0
	born     time.Time
	deadline time.Duration // of the clock that sinceBoot reads
	locked   bool
	warning  string // why the key may be written to swap, say. mu guards it once the agent answers

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
// process, and returns when the agent has ended. With [Options].Key, it holds that key. The process must have no other
// purpose and exit then: Serve makes it undumpable, which [Hide] does earlier, and leaves
// connections open without an answer. Serve calls ready once, when the agent answers; if
// ready fails, Serve ends the agent and returns that error.
//
// The agent ends at the first of: [Client.Forget], the last of the allowed installs, the
// end of its lifetime, the loss of Tree, Dir, agent.sock or the socket, a held key that is
// lost, the end of ctx.
// It looks at the clock and the directories every second. At its end it leaves its
// [Receipt] in Dir, unless that is gone, as
// receipt-<first 16 digits of the certificate's SHA-256>.json.
//
// The agent answers this user and root alone (SO_PEERCRED). Serve fails with [ErrServed]
// when another agent serves Dir.
func Serve(ctx context.Context, o Options, ready func() error) error {
	if o.Key != nil {
		defer o.Key.Close() // nobody is there any more to hear of an error
	}
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
	if err := s.takeKey(); err != nil {
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

// takeKey makes the one-time key, or takes the key that the agent holds.
func (s *server) takeKey() error {
	if s.kept() {
		s.key, s.cert = s.Key.Signer, s.Key.Certificate
	} else {
		pair, err := keygen.Generate(s.Algorithm, s.Template)
		if err != nil {
			return err
		}
		// Requests that come in at the same time share a batch.
		s.key, s.cert = rsabatch.Signer(pair.Signer, s.warn), pair.Certificate
	}
	if key, ok := s.key.(interface{ BatchSize() int }); ok && key.BatchSize() > 1 {
		s.batch = key.BatchSize()
	}
	s.born = time.Now().UTC().Truncate(time.Second)
	s.deadline = sinceBoot() + s.Lifetime
	return nil
}

// kept reports whether the key is from elsewhere and outlives the agent.
func (s *server) kept() bool { return s.Key != nil }

// warn adds to the warning of the status.
func (s *server) warn(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.warning != "" {
		text = s.warning + "; " + text
	}
	s.warning = text
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
		if s.Ending != nil {
			s.Ending()
		}
		s.use.Lock()
		receipt, err := s.receipt(reason)
		s.key, s.gone = nil, goneSince(receipt)
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

// goneSince is the message about an agent that has ended.
func goneSince(r *Receipt) string {
	what := "the one-time key is gone"
	if r.Kept {
		what = "the agent that held the key has ended"
	}
	return fmt.Sprintf("%s: %s at %s", what, r.Reason, r.Died.Format(time.RFC3339))
}

// receipt makes the receipt, with the last signature of a one-time key. A key that lives on
// signs modules alone.
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
	if s.kept() {
		r.Version, r.Kept = keptVersion, true
		return r, nil
	}
	return r, r.sign(s.key)
}
