package audit

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/mldsamu"
	"github.com/modsign/modsign/internal/testmod"
)

// subject is what sign.Subject is.
type subject struct {
	path string
	size int64
}

func (s subject) HashFunc() crypto.Hash   { return crypto.SHA256 }
func (s subject) Module() (string, int64) { return s.path, s.size }

func open(t testing.TB, path string) *Log {
	t.Helper()
	l, err := Open(path, Options{SudoUser: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// records reads a record, of which every line has to be whole, or empty.
func records(t testing.TB, path string) []Record {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []Record
	for in := bufio.NewScanner(bytes.NewReader(data)); in.Scan(); {
		if in.Text() == "" {
			continue
		}
		var r Record
		if err := json.Unmarshal(in.Bytes(), &r); err != nil {
			t.Fatalf("%q: %v", in.Text(), err)
		}
		all = append(all, r)
	}
	return all
}

// A signature of mu has its name.
func TestRecordMLDSA(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "mldsa:44")
	path := filepath.Join(t.TempDir(), "record")
	signature, err := open(t, path).Key(key.Private, key.Certificate).Sign(nil, make([]byte, mldsamu.Size), mldsamu.Mu44)
	if err != nil {
		t.Fatal(err)
	}
	all := records(t, path)
	if len(all) != 1 || all[0].Hash != "mldsa44-mu" || all[0].Digest != strings.Repeat("00", mldsamu.Size) ||
		all[0].Signature != sum(signature) || all[0].Key != sum(key.Certificate.RawSubjectPublicKeyInfo) {
		t.Errorf("%+v", all)
	}
}

func TestRecord(t *testing.T) {
	key := testmod.NewKey(t, "ecdsa:p256")
	path := filepath.Join(t.TempDir(), "record")
	k := open(t, path).Key(key.Private, key.Certificate)
	digest := sha256.Sum256([]byte("module"))
	before := time.Now().Add(-time.Second)
	signature, err := k.Sign(nil, digest[:], subject{"a \"b\"\n\xff.ko", 7})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Sign(nil, digest[:], crypto.SHA256); err != nil { // of no module
		t.Fatal(err)
	}
	all := records(t, path)
	if len(all) != 2 {
		t.Fatalf("%d lines", len(all))
	}
	r := all[0]
	at, err := time.Parse(time.RFC3339, r.Time)
	if err != nil || at.Before(before) || at.After(time.Now()) || !strings.HasSuffix(r.Time, "Z") {
		t.Errorf("time %s, %v", r.Time, err)
	}
	host, _ := os.Hostname()
	want := Record{
		Type: "signature", Time: r.Time, Path: "a \"b\"\n\ufffd.ko", Size: 7, Hash: "sha256",
		Digest: hex.EncodeToString(digest[:]), Signature: sum(signature),
		Key: sum(key.Certificate.RawSubjectPublicKeyInfo), KeyID: hex.EncodeToString(key.Certificate.SubjectKeyId),
		Certificate: sum(key.Certificate.Raw), Issuer: key.Certificate.Issuer.String(),
		Serial: fmt.Sprintf("%x", key.Certificate.SerialNumber),
		UID:    os.Getuid(), User: r.User, LoginUID: r.LoginUID, SudoUser: "alice", Host: host, PID: os.Getpid(),
	}
	if r != want {
		t.Errorf("got  %+v\nwant %+v", r, want)
	}
	if all[1].Path != "" || all[1].Digest != r.Digest {
		t.Errorf("without a module: %+v", all[1])
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// TestTornLine checks that a line that was cut off stays, as a line of its own, also if
// another process tears one meanwhile.
func TestTornLine(t *testing.T) {
	key := testmod.NewKey(t, "ecdsa:p256")
	path := filepath.Join(t.TempDir(), "record")
	if err := os.WriteFile(path, []byte("{\"whole\":1}\n{\"to"), 0o640); err != nil {
		t.Fatal(err)
	}
	k := open(t, path).Key(key.Private, key.Certificate)
	mustSign := func() {
		t.Helper()
		if _, err := k.Sign(nil, make([]byte, 32), subject{"a.ko", 1}); err != nil {
			t.Fatal(err)
		}
	}
	mustSign()
	mustSign()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("{\"torn"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	mustSign()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(data), "\n")
	if len(lines) != 7 || lines[0] != `{"whole":1}` || lines[1] != `{"to` || lines[4] != `{"torn` || lines[6] != "" {
		t.Fatalf("%q", lines)
	}
	for _, i := range []int{2, 3, 5} {
		if !json.Valid([]byte(lines[i])) {
			t.Errorf("line %d: %q", i, lines[i])
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		dir: "is a directory", fifo: "not a regular file", filepath.Join(dir, "none/record"): "no such file or directory",
	} {
		if l, err := Open(path, Options{}); err == nil || !strings.Contains(err.Error(), want) {
			l.Close()
			t.Errorf("%s: %v", path, err)
		}
	}
	if os.Getuid() != 0 {
		closed := filepath.Join(dir, "closed")
		if err := os.WriteFile(closed, nil, 0o400); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(closed, Options{}); !errors.Is(err, os.ErrPermission) {
			t.Errorf("a file for reading alone: %v", err)
		}
	}
}

// TestFull checks that no signature is returned whose line the disk has no room for, nor
// any after it.
func TestFull(t *testing.T) {
	key := testmod.NewKey(t, "ecdsa:p256")
	full := open(t, "/dev/full")
	k := full.Key(key.Private, key.Certificate)
	for range 2 {
		signature, err := k.Sign(nil, make([]byte, 32), subject{"a.ko", 1})
		lost, ok := errors.AsType[*Error](err)
		if signature != nil || !ok || !errors.Is(err, syscall.ENOSPC) || !lost.Lost() ||
			err.Error() != "signature not recorded: /dev/full: no space left on device" {
			t.Errorf("%x, %v", signature, err)
		}
	}
	full.file = open(t, filepath.Join(t.TempDir(), "record")).file // there is room again
	if signature, err := k.Sign(nil, make([]byte, 32), subject{"a.ko", 1}); err == nil {
		t.Errorf("after a failure: %x", signature)
	}
	k = open(t, "/dev/null").Key(key.Private, key.Certificate)
	if _, err := k.Sign(nil, make([]byte, 32), subject{"a.ko", 1}); err != nil {
		t.Errorf("a device without a disk: %v", err)
	}
	long := open(t, filepath.Join(t.TempDir(), "record")).Key(key.Private, key.Certificate)
	if _, err := long.Sign(nil, make([]byte, 32), subject{strings.Repeat("\x01", 20000), 1}); err == nil {
		t.Error("a line of 120000 bytes was recorded")
	}
}

// TestMany appends from several processes, and several goroutines of each.
func TestMany(t *testing.T) {
	const processes, goroutines, each = 3, 8, 20
	key := testmod.NewKey(t, "ecdsa:p256")
	record := func(path, who string) error {
		l, err := Open(path, Options{SudoUser: who})
		if err != nil {
			return err
		}
		defer l.Close()
		k := l.Key(key.Private, key.Certificate)
		var group sync.WaitGroup
		errs := make(chan error, goroutines*each)
		for g := range goroutines {
			group.Go(func() {
				for i := range each {
					_, err := k.Sign(nil, make([]byte, 32), subject{fmt.Sprintf("%d/%d%s", g, i, strings.Repeat("x", 500)), 1})
					errs <- err
				}
			})
		}
		group.Wait()
		close(errs)
		for e := range errs {
			err = errors.Join(err, e)
		}
		return err
	}
	if path := os.Getenv("MODSIGN_TEST_RECORD"); path != "" {
		if err := record(path, os.Getenv("MODSIGN_TEST_WHO")); err != nil {
			t.Fatal(err)
		}
		return
	}
	path := filepath.Join(t.TempDir(), "record")
	var children []*exec.Cmd
	for i := range processes - 1 {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestMany$")
		cmd.Env = append(os.Environ(), "MODSIGN_TEST_RECORD="+path, fmt.Sprintf("MODSIGN_TEST_WHO=child%d", i))
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		children = append(children, cmd)
	}
	if err := record(path, "parent"); err != nil {
		t.Error(err)
	}
	for _, cmd := range children {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	seen := make(map[string]int)
	for _, r := range records(t, path) {
		seen[r.SudoUser+":"+r.Path]++
	}
	if len(seen) != processes*goroutines*each {
		t.Errorf("%d different lines, want %d", len(seen), processes*goroutines*each)
	}
}

// slow is a key that makes batches, and has to be closed.
type slow struct {
	crypto.Signer
	size   int
	closed bool
}

func (s *slow) BatchSize() int { return s.size }
func (s *slow) Close() error   { s.closed = true; return io.ErrClosedPipe }

func TestWrapped(t *testing.T) {
	key := testmod.NewKey(t, "ecdsa:p256")
	l := open(t, filepath.Join(t.TempDir(), "record"))
	inner := &slow{Signer: key.Private, size: 64}
	k := l.Key(inner, key.Certificate)
	if k.BatchSize() != 64 || k.Close() != io.ErrClosedPipe || !inner.closed {
		t.Errorf("batches of %d, closed: %v", k.BatchSize(), inner.closed)
	}
	k = l.Key(key.Private, key.Certificate)
	if k.BatchSize() != inFlight || k.Close() != nil {
		t.Errorf("batches of %d", k.BatchSize())
	}
	if !key.Certificate.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(k.Public()) {
		t.Error("the public key is another one")
	}
	var none *Log
	if err := none.Close(); err != nil {
		t.Error(err)
	}
}
