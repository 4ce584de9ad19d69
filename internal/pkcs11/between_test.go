package pkcs11

import (
	"bufio"
	"crypto"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/modsign/modsign/internal/testmod"
)

// A between stands between the client and a real p11-kit, and changes some of its answers
// to those that SoftHSM never gives.
type between struct {
	change atomic.Pointer[func(function uint32, body []byte) []byte]
	calls  sync.Map // function: *atomic.Int32
}

func (b *between) count(f function) int {
	n, _ := b.calls.LoadOrStore(f.number, new(atomic.Int32))
	return int(n.(*atomic.Int32).Load())
}

// newBetween serves a SoftHSM's token at a socket of its own, to which the config of the
// bench then leads.
func newBetween(t *testing.T, b *bench) *between {
	t.Helper()
	real := strings.TrimPrefix(b.Serve(t, b.config.Program, "modules"), "unix:path=")
	path := filepath.Join(t.TempDir(), "between")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	x := new(between)
	x.set(func(_ uint32, body []byte) []byte { return body })
	var group sync.WaitGroup
	t.Cleanup(func() { l.Close(); group.Wait() })
	group.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("unix", real)
			if err != nil {
				client.Close()
				continue
			}
			group.Go(func() { io.Copy(server, client); server.Close() })
			group.Go(func() { x.answers(server, client); client.Close() })
		}
	})
	b.config.ServerAddress = "unix:path=" + path
	return x
}

func (x *between) set(change func(function uint32, body []byte) []byte) { x.change.Store(&change) }

func (x *between) answers(server io.Reader, client io.Writer) {
	r := bufio.NewReader(server)
	version, err := r.ReadByte()
	if err != nil {
		return
	}
	client.Write([]byte{version})
	for {
		header := make([]byte, 12)
		if _, err := io.ReadFull(r, header); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(header[8:]))
		if _, err := io.ReadFull(r, body); err != nil {
			return
		}
		function := binary.BigEndian.Uint32(body)
		n, _ := x.calls.LoadOrStore(function, new(atomic.Int32))
		n.(*atomic.Int32).Add(1)
		body = (*x.change.Load())(function, body)
		binary.BigEndian.PutUint32(header[8:], uint32(len(body)))
		client.Write(append(header, body...))
	}
}

// flagged changes the flags of tokens, and how many sessions they allow.
func flagged(set uint64, sessions uint64) func(uint32, []byte) []byte {
	return func(f uint32, body []byte) []byte {
		if f == fnGetTokenInfo.number {
			flags := body[4+4+len(fnGetTokenInfo.result)+4*4+32+32+16+16:]
			binary.BigEndian.PutUint64(flags, binary.BigEndian.Uint64(flags)|set)
			binary.BigEndian.PutUint64(flags[8:], sessions)
		}
		return body
	}
}

// answering changes the answers to one function.
func answering(f function, body []byte) func(uint32, []byte) []byte {
	return func(number uint32, real []byte) []byte {
		if number == f.number {
			return body
		}
		return real
	}
}

// failing is the body of an answer with an error.
func failing(rv RV) []byte {
	body := encoder{0, 0, 0, 0, 0, 0, 0, 1, 'u'}
	body.ulong(uint64(rv))
	return body
}

// TestFlags opens tokens that are locked, or about to be, or have few sessions.
func TestFlags(t *testing.T) {
	t.Parallel()
	b := newBench(t, "modules")
	key := testmod.NewKey(t, "ecdsa:p256")
	b.Import(t, "modules", "k", "01", key)
	x := newBetween(t, b)
	const uri = "pkcs11:token=modules;object=k"
	refuse := b.config.PIN
	b.config.PIN = func() ([]byte, error) {
		t.Error("asked for the PIN in vain")
		return nil, ErrNoPIN
	}
	x.set(flagged(tokenPINLocked|tokenPINFinalTry, 0))
	_, err := b.tryOpen(t.Context(), uri)
	wantError(t, err, "its PIN is locked (CKF_USER_PIN_LOCKED)", "pkcs11-tool --login-type so --init-pin")
	x.set(flagged(tokenPINFinalTry, 0))
	_, err = b.tryOpen(t.Context(), uri)
	wantError(t, err, "one more wrong PIN locks it (CKF_USER_PIN_FINAL_TRY)", "p11tool --login --list-privkeys 'pkcs11:")
	if n := x.count(fnLogin); n != 0 {
		t.Errorf("%d logins", n)
	}
	x.set(flagged(tokenProtectedPath, 0))
	_, err = b.tryOpen(t.Context(), uri) // SoftHSM has no keyboard
	wantError(t, err, "C_Login: CKR_", "")
	b.config.PIN = refuse
	x.set(flagged(0, 1))
	k := b.open(t, uri)
	if k.BatchSize() != 1 {
		t.Errorf("%d connections to a token with one session", k.BatchSize())
	}
	signAll(t, k, key.Private)
}

// TestErrors has the answers of tokens that are gone, and of no token at all.
func TestErrors(t *testing.T) {
	t.Parallel()
	b := newBench(t, "modules")
	b.Import(t, "modules", "k", "01", testmod.NewKey(t, "ecdsa:p256"))
	x := newBetween(t, b)
	const uri = "pkcs11:token=modules;object=k"
	same := func(_ uint32, body []byte) []byte { return body }
	for _, test := range []struct {
		name string
		f    function
		body []byte
		want string
		lost bool
	}{
		{"removed", fnSign, failing(0x32), "C_Sign: CKR_DEVICE_REMOVED", true},
		{"session", fnSignInit, failing(0xb3), "C_SignInit: CKR_SESSION_HANDLE_INVALID", true},
		{"mechanism", fnSignInit, failing(0x70), "C_SignInit: CKR_MECHANISM_INVALID", false},
		{"vendor", fnSign, failing(0x80000001), "C_Sign: CKR_VENDOR_DEFINED + 0x1", false},
		{"no bytes", fnSign, unhex(t, "0000002b 00000002 6179 01 00000000"), "an ECDSA signature of 0 bytes", false},
		{"long", fnSign, unhex(t, "0000002b 00000002 6179 00 00010000"), "C_Sign: CKR_BUFFER_TOO_SMALL", false},
		{"malformed", fnSign, unhex(t, "0000002b 00000002 6179 01 000000ff"), "malformed answer", true},
		{"empty", fnSign, nil, "malformed answer", true},
	} {
		x.set(same)
		k := b.open(t, uri)
		k.opening.Wait()
		x.set(answering(test.f, test.body))
		_, err := k.Sign(nil, make([]byte, 32), crypto.SHA256)
		wantError(t, err, test.want, "")
		if k.Lost() != test.lost {
			t.Errorf("%s: lost %v", test.name, k.Lost())
		}
		x.set(same)
		if _, err := k.Sign(nil, make([]byte, 32), crypto.SHA256); test.lost != (err != nil) {
			t.Errorf("%s: error %v afterwards", test.name, err)
		}
		k.Close()
	}
	for _, test := range []struct {
		f    function
		body []byte
		want string
	}{
		{fnGetSlotList, unhex(t, "00000004 00000002 6175 00 00000400"), "more than 256 slots"},
		{fnGetSlotList, unhex(t, "00000004 00000002 6175 01 ffffffff"), "malformed answer"},
		{fnFindObjects, unhex(t, "0000001b 00000002 6175 01 00000041"), "malformed answer"},
		{fnOpenSession, failing(0xb1), "C_OpenSession: CKR_SESSION_COUNT"},
		{fnInitialize, failing(5), "C_Initialize: CKR_GENERAL_ERROR"},
		{fnGetTokenInfo, failing(0xe1), "no such token"},
	} {
		x.set(answering(test.f, test.body))
		_, err := b.tryOpen(t.Context(), uri)
		wantError(t, err, test.want, "")
	}
}

// TestContextLogin has a token that refuses the PIN for one signature: there is no other
// try, not even for another module.
func TestContextLogin(t *testing.T) {
	t.Parallel()
	b := newBench(t, "modules")
	key := testmod.NewKey(t, "rsa:2048")
	file, _ := key.Files(t)
	b.Tool(t, "modules", "--write-object", file, "--type", "privkey", "--id", "01", "--label", "k",
		"--always-auth", "--usage-sign")
	b.config.Certificate = key.Certificate
	x := newBetween(t, b)
	k := b.open(t, "pkcs11:token=modules;object=k")
	before := x.count(fnLogin)
	x.set(answering(fnLogin, failing(rvPINIncorrect)))
	for _, err := range signUntilError(t, k, func() {}) {
		wantError(t, err, "wrong PIN: C_Login: CKR_PIN_INCORRECT", "correct the PIN")
	}
	if n := x.count(fnLogin) - before; n != 1 {
		t.Errorf("%d logins", n)
	}
}
