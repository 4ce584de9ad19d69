// Package audit keeps a record of what a key signs: one line of JSON for each signature, in
// a file to which lines are only appended.
//
// [Open] opens the file, and [Log.Key] returns a key that signs as another one does, and
// returns a signature only after its line is on disk. So no module can get a signature that
// has no record. A line without a module is possible: a run may end between the two.
//
// docs/policy.md describes the lines.
package audit

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/cms"
)

// Record is a line of the file.
type Record struct {
	Type        string `json:"message_type"` // signature
	Time        string `json:"time"`         // RFC 3339, in UTC
	Path        string `json:"path,omitempty"`
	Size        int64  `json:"size,omitempty"`
	Hash        string `json:"hash"`
	Digest      string `json:"digest"`
	Signature   string `json:"signature_sha256"`
	Key         string `json:"public_key_sha256"`
	KeyID       string `json:"key_id,omitempty"`
	Certificate string `json:"certificate_sha256"`
	Issuer      string `json:"issuer"`
	Serial      string `json:"serial"`
	UID         int    `json:"uid"`
	User        string `json:"user,omitempty"`
	LoginUID    *int   `json:"login_uid,omitempty"`
	SudoUser    string `json:"sudo_user,omitempty"`
	Host        string `json:"host,omitempty"`
	PID         int    `json:"pid"`
}

// maxLine is more than a line has: a path of 4096 bytes, each escaped, and an issuer.
const maxLine = 64 << 10

// Options are the options of [Open].
type Options struct {
	// SudoUser is who has called sudo, as the environment says it. It may be empty.
	SudoUser string
}

// A Log is an open record. Several goroutines may use it at once, and several processes the
// same file.
type Log struct {
	file   *os.File
	caller Record // what all lines of this process have in common

	mu      sync.Mutex
	waiting *batch // takes more lines
	writing sync.Mutex
	failed  error // the first failure to write. writing guards it
}

// batch is lines that are flushed to disk at once.
type batch struct {
	lines [][]byte
	done  chan struct{}
	err   error
}

// An Error reports that a line could not be recorded, or flushed to disk.
type Error struct {
	Path string
	Err  error
}

func (e *Error) Error() string {
	err := e.Err
	if p, ok := errors.AsType[*os.PathError](err); ok { // its path is said
		err = p.Err
	}
	return fmt.Sprintf("signature not recorded: %s: %v", e.Path, err)
}

func (e *Error) Unwrap() error { return e.Err }

// Lost has package sign end the run: no other signature will be recorded either.
func (e *Error) Lost() bool { return true }

// Open opens a record, which it makes with mode 0600 if it does not exist. A path that leads
// to something else than a file or a character device is an error. Open writes nothing:
// whether the disk has room is seen at the first line.
func Open(path string, o Options) (*Log, error) {
	// To read as well is needed for the last byte, and opens a FIFO without waiting.
	file, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() && info.Mode()&os.ModeCharDevice == 0 {
		err = fmt.Errorf("%s: not a regular file", path)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	if info.Mode().IsRegular() && info.Size() == 0 {
		syncName(path)
	}
	return &Log{file: file, caller: caller(o)}, nil
}

// syncName flushes the directory of a new file to disk, as far as this user can.
func syncName(path string) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if dir, err := os.Open(filepath.Dir(path)); err == nil {
		_ = dir.Sync()
		dir.Close()
	}
}

// caller is who asks for signatures.
func caller(o Options) Record {
	r := Record{Type: "signature", UID: os.Getuid(), SudoUser: o.SudoUser, PID: os.Getpid()}
	r.Host, _ = os.Hostname()
	if u, err := user.LookupId(strconv.Itoa(r.UID)); err == nil {
		r.User = u.Username
	}
	// The kernel keeps it from the login on, through sudo and su.
	text, err := os.ReadFile("/proc/self/loginuid")
	if id, bad := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32); err == nil && bad == nil && id != 1<<32-1 {
		r.LoginUID = new(int(id))
	}
	return r
}

// Close closes the file. It does nothing for a nil Log.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	return l.file.Close()
}

// append appends a line, and returns when it is on disk. Lines of callers that wait at the
// same time are flushed together.
func (l *Log) append(line []byte) error {
	l.mu.Lock()
	b := l.waiting
	first := b == nil
	if first {
		b = &batch{done: make(chan struct{})}
		l.waiting = b
	}
	b.lines = append(b.lines, line)
	l.mu.Unlock()
	if !first {
		<-b.done
		return b.err
	}
	l.writing.Lock() // others join the batch as long as the one before it is written
	l.mu.Lock()
	l.waiting = nil
	l.mu.Unlock()
	if l.failed == nil {
		l.failed = l.write(b.lines)
	}
	b.err = l.failed
	l.writing.Unlock()
	close(b.done)
	return b.err
}

// write writes lines, each with one write(2), as other processes may append at the same
// time. There is no lock: whoever can open the file could hold it for ever.
func (l *Log) write(lines [][]byte) error {
	torn, err := l.isTorn()
	if err != nil {
		return err
	}
	if torn { // it stays, as a line of its own
		lines[0] = append([]byte("\n"), lines[0]...)
	}
	for _, line := range lines {
		if _, err := l.file.Write(line); err != nil {
			return err
		}
	}
	err = unix.Fdatasync(int(l.file.Fd()))
	for err == unix.EINTR {
		err = unix.Fdatasync(int(l.file.Fd()))
	}
	if err == unix.EINVAL { // a device has nothing to flush
		return nil
	}
	return err
}

// isTorn reports whether the file ends within a line, as after a run that was killed, or
// found the disk full. A line that another process is writing looks like that too, for a
// moment. If it lasts longer, the worst is an empty line.
func (l *Log) isTorn() (bool, error) {
	for range 5 {
		info, err := l.file.Stat()
		if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
			return false, err
		}
		var last [1]byte
		if _, err := l.file.ReadAt(last[:], info.Size()-1); err != nil || last[0] == '\n' {
			return false, err
		}
		time.Sleep(time.Millisecond)
	}
	return true, nil
}

// A Key signs as another one does, and records each signature.
type Key struct {
	crypto.Signer
	log  *Log
	cert Record // what all lines of the key have in common
}

// Key returns a key that records what a key with a certificate signs.
func (l *Log) Key(key crypto.Signer, cert *x509.Certificate) *Key {
	r := l.caller
	r.Key, r.KeyID = sum(cert.RawSubjectPublicKeyInfo), hex.EncodeToString(cert.SubjectKeyId)
	r.Certificate, r.Issuer, r.Serial = sum(cert.Raw), cert.Issuer.String(), cert.SerialNumber.Text(16)
	return &Key{Signer: key, log: l, cert: r}
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// Sign signs a digest, and returns the signature when it is recorded. Opts may tell about
// the module, as sign.Subject does.
func (k *Key) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signature, err := k.Signer.Sign(rand, digest, opts)
	if err != nil {
		return nil, err
	}
	r := k.cert
	r.Time = time.Now().UTC().Format("2006-01-02T15:04:05.000Z")
	if subject, ok := opts.(interface{ Module() (string, int64) }); ok {
		r.Path, r.Size = subject.Module()
	}
	r.Hash, r.Digest, r.Signature = cms.HashName(opts.HashFunc()), hex.EncodeToString(digest), sum(signature)
	line, err := json.Marshal(r)
	if err == nil && len(line) >= maxLine {
		err = fmt.Errorf("the line would have %d bytes", len(line)+1)
	}
	if err == nil {
		err = k.log.append(append(line, '\n'))
	}
	if err != nil {
		return nil, &Error{Path: k.log.file.Name(), Err: err}
	}
	return signature, nil
}

// inFlight is how many lines share a flush if as many signatures are made at once.
const inFlight = 8

// BatchSize returns how many signatures to ask for at once: those of the key's batches, and
// at least as many as keep the disk from being what the run waits for.
func (k *Key) BatchSize() int {
	if key, ok := k.Signer.(interface{ BatchSize() int }); ok {
		return max(inFlight, key.BatchSize())
	}
	return inFlight
}

// Close closes the key, if it has to be closed. The Log stays open.
func (k *Key) Close() error {
	if closer, ok := k.Signer.(io.Closer); ok {
		return closer.Close()
	}
	return nil
}
