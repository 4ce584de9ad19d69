package tpmkey

import (
	"crypto"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/modsign/modsign/internal/testmod"
)

// relay stands between a client and a TPM. It changes the responses: change gets the number
// of a response, from 0, and the response, and says what the client gets and whether the TPM
// is asked at all.
func relay(t *testing.T, tpm *testmod.SWTPM, change func(n int, response []byte) (toClient []byte)) (tcti string) {
	t.Helper()
	l, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	t.Cleanup(func() { l.Close(); group.Wait() })
	serve := func(client net.Conn) {
		defer client.Close()
		_, path, _ := strings.Cut(tpm.TCTI, "=")
		device, err := net.Dial("unix", path)
		if err != nil {
			return
		}
		defer device.Close()
		buffer := make([]byte, 4096)
		for n := 0; ; n++ {
			size, err := client.Read(buffer)
			if err != nil {
				return
			}
			if early := change(n, nil); early != nil {
				client.Write(early)
				continue
			}
			device.Write(buffer[:size])
			if size, err = device.Read(buffer); err != nil {
				return
			}
			client.Write(change(n, buffer[:size]))
		}
	}
	group.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() { serve(client) })
		}
	})
	return fmt.Sprintf("swtpm:host=localhost,port=%d", l.Addr().(*net.TCPAddr).Port)
}

// A TPM that is busy is asked again, with the same command.
func TestRetry(t *testing.T) {
	t.Parallel()
	tpm := testmod.StartSWTPM(t)
	busy := []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 9, 0x22} // TPM_RC_RETRY
	tcti := relay(t, tpm, func(n int, response []byte) []byte {
		if response == nil && n%2 == 0 {
			return busy
		}
		return response
	})
	f := mustCreate(t, tcti, ECDSAP256, "secret")
	k := mustOpen(t, tcti, f, "secret")
	digest := digestOf(crypto.SHA256, "")
	signature, err := k.Sign(nil, digest, crypto.SHA256)
	if err != nil || !verifies(k.Public(), crypto.SHA256, digest, signature) {
		t.Error(err)
	}
}

// What is no response ends the connection: it may be that of another command.
func TestNoResponse(t *testing.T) {
	t.Parallel()
	tpm := testmod.StartSWTPM(t)
	f := mustCreate(t, tpm.TCTI, ECDSAP256, "")
	for name, response := range map[string]string{
		"no size": "80010000000400000000", "huge": "8001ffffffff00000000", "long": "80010000000a0000000000",
	} {
		data, err := hex.DecodeString(response)
		if err != nil {
			t.Fatal(err)
		}
		tcti := relay(t, tpm, func(n int, r []byte) []byte {
			if r != nil && n == 2 { // CreatePrimary, Load, FlushContext, Sign
				return data
			}
			return r
		})
		k, err := Open(t.Context(), tcti, f, nil)
		if err == nil {
			_, err = k.Sign(nil, digestOf(crypto.SHA256, ""), crypto.SHA256)
			k.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "is lost") {
			t.Errorf("%s: %v", name, err)
		}
		tpm.Kill() // with the key that nobody could remove
		tpm.Start(t)
	}
}

// script is a TPM that answers whatever it is asked with what is written down.
type script struct{ responses [][]byte }

func (s *script) Write(b []byte) (int, error) { return len(b), nil }
func (s *script) Close() error                { return nil }

func (s *script) Read(b []byte) (int, error) {
	if len(s.responses) == 0 {
		return 0, io.EOF
	}
	n := copy(b, s.responses[0])
	s.responses = s.responses[1:]
	return n, nil
}

// recording writes down what a TPM answers.
type recording struct {
	io.ReadWriteCloser
	script *script
}

func (r recording) Read(b []byte) (int, error) {
	n, err := r.ReadWriteCloser.Read(b)
	if n > 0 {
		r.script.responses = append(r.script.responses, append([]byte(nil), b[:n]...))
	}
	return n, err
}

// use loads a key and signs with it, as Open and Sign do.
func use(d *device, f *File, passphrase string) error {
	handle, err := d.load(f, []byte(passphrase))
	if err != nil {
		return err
	}
	k := &Key{File: f, device: d, handle: handle}
	_, err1 := k.signECDSA(make([]byte, 32), 256)
	_, err2 := k.signRSA(make([]byte, 32), crypto.SHA256)
	return errors.Join(err1, err2)
}

// Whatever a TPM answers, it is an error at most.
func FuzzResponses(f *testing.F) {
	tpm := testmod.StartSWTPM(f)
	var file *File
	var scripts []*script
	for _, passphrase := range []string{"", "secret"} {
		for _, step := range []func(*device) error{
			func(d *device) (err error) { file, err = d.create(ECDSAP256, []byte(passphrase)); return err },
			func(d *device) error { _ = use(d, file, passphrase); return nil },
		} {
			d, err := open(f.Context(), tpm.TCTI)
			if err != nil {
				f.Fatal(err)
			}
			s := &script{}
			d.conn.ReadWriteCloser = recording{d.conn.ReadWriteCloser, s}
			if err := step(d); err != nil {
				f.Fatal(err)
			}
			scripts = append(scripts, s)
			d.close()
		}
	}
	for i := range scripts {
		f.Add(uint8(i), uint8(0), uint64(0), uint64(0))
	}
	f.Fuzz(func(t *testing.T, which, at uint8, first, second uint64) {
		s := scripts[int(which)%len(scripts)]
		c := &script{responses: append([][]byte(nil), s.responses...)}
		i := int(at) % len(c.responses)
		c.responses[i] = testmod.Edit(c.responses[i], first, second)
		defer testmod.ShowInputs(t, c.responses...)
		d := &device{ctx: t.Context(), conn: &conn{ReadWriteCloser: c}, turn: make(chan struct{}, 1)}
		if which%2 == 0 {
			_, _ = d.create(ECDSAP256, []byte("secret"))
		} else {
			_ = use(d, file, "secret")
		}
	})
}

// The codes that are explained are codes of TPMs, in the words of the library.
func TestExplain(t *testing.T) {
	t.Parallel()
	for _, e := range explanations {
		err := explain("to sign", e.code)
		if !strings.HasPrefix(err.Error(), e.what+" (TPM_RC_") || hintOf(err) != e.hint {
			t.Errorf("%v: %v", e.code, err)
		}
	}
	if err := explain("to sign", tpm2.TPMRCPP); !strings.HasPrefix(err.Error(), "TPM refuses to sign: TPM_RC_PP") {
		t.Error(err)
	}
}
