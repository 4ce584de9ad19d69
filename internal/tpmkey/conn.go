package tpmkey

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/modsign/modsign/internal/keyfile"
)

// DefaultTCTI is where the TPM is if nothing else is said: the kernel's resource manager,
// which keeps the users of a TPM apart.
const DefaultTCTI = "device:/dev/tpmrm0"

const (
	maxResponse = 4096            // as in the kernel's driver
	patience    = 2 * time.Minute // for one command: making an RSA key may take a minute
)

// A conn is a connection with a TPM: one command, one response. It is not safe for
// concurrent use.
type conn struct {
	io.ReadWriteCloser
	name string
	lost error // why there is no speaking any more
}

// dial connects to the TPM that a TCTI names, in the form of tpm2-tss: device:PATH,
// swtpm:path=SOCKET or swtpm:host=HOST,port=PORT.
func dial(ctx context.Context, tcti string) (*conn, error) {
	kind, config, _ := strings.Cut(tcti, ":")
	switch kind {
	case "device":
		if config == "" {
			_, config, _ = strings.Cut(DefaultTCTI, ":")
		}
		return openDevice(config)
	case "swtpm":
		network, address, err := swtpmAddress(config)
		if err != nil {
			return nil, err
		}
		c, err := dialSocket(ctx, network, address)
		if err != nil {
			return nil, &keyfile.HintError{
				Err:  fmt.Errorf("no TPM: %w", err),
				Hint: "start it: swtpm socket --tpm2 --server ... --flags not-need-init,startup-clear",
			}
		}
		return &conn{ReadWriteCloser: c, name: address}, nil
	}
	return nil, fmt.Errorf(
		"way to the TPM %.40q is not supported: want device:PATH, swtpm:path=SOCKET or swtpm:host=HOST,port=PORT", tcti)
}

// dialSocket waits for its turn: swtpm serves one client at a time, and few may queue at its
// Unix socket.
func dialSocket(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: 10 * time.Second}
	for end := time.Now().Add(patience); ; {
		c, err := d.DialContext(ctx, network, address)
		if !errors.Is(err, syscall.EAGAIN) || time.Now().After(end) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// swtpmAddress parses what follows "swtpm:".
func swtpmAddress(config string) (network, address string, err error) {
	if path, ok := strings.CutPrefix(config, "path="); ok {
		return "unix", path, nil
	}
	host, port := "localhost", "2321"
	for item := range strings.SplitSeq(config, ",") {
		name, value, _ := strings.Cut(item, "=")
		switch {
		case name == "host" && value != "":
			host = value
		case name == "port" && value != "":
			port = value
		case item != "":
			return "", "", fmt.Errorf("%.40q in the TPM's address: want path=SOCKET or host=HOST,port=PORT", item)
		}
	}
	return "tcp", net.JoinHostPort(host, port), nil
}

// openDevice opens a TPM's character device. Reads and writes block: a read that does not
// wait finds no response in the kernel's driver, and takes that for the end of the file.
func openDevice(path string) (*conn, error) {
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err == nil {
		return &conn{ReadWriteCloser: os.NewFile(uintptr(fd), path), name: path}, nil
	}
	hint := ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		hint = "a TPM elsewhere is named by TPM2TOOLS_TCTI, as for tpm2-tools: swtpm:path=SOCKET, for example"
	case errors.Is(err, fs.ErrPermission):
		hint = "its group may use it: usermod -aG tss USER, and log in again"
	case errors.Is(err, syscall.EBUSY):
		hint = "another process uses the TPM: take the resource manager, device:/dev/tpmrm0"
	}
	return nil, &keyfile.HintError{Err: fmt.Errorf("no TPM: %s: %w", path, err), Hint: hint}
}

// Send sends a command and returns the response. The TPM may ask for the command once
// more before it has done anything about it.
func (c *conn) Send(command []byte) ([]byte, error) {
	for wait := 10 * time.Millisecond; ; wait *= 2 {
		response, err := c.exchange(command)
		if err != nil {
			return nil, err
		}
		switch tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])) {
		case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate:
			if wait < 5*time.Second {
				time.Sleep(wait)
				continue
			}
		}
		return response, nil
	}
}

func (c *conn) exchange(command []byte) (_ []byte, err error) {
	if c.lost != nil {
		return nil, c.lost
	}
	defer func() {
		if err != nil { // what comes later may be the response to this command
			if op, ok := errors.AsType[*net.OpError](err); ok {
				err = op.Err
			}
			err = fmt.Errorf("connection with the TPM at %s is lost: %w", c.name, err)
			c.lost = err
		}
	}()
	if socket, ok := c.ReadWriteCloser.(net.Conn); ok {
		if err := socket.SetDeadline(time.Now().Add(patience)); err != nil {
			return nil, err
		}
	}
	if _, err := c.Write(command); err != nil {
		return nil, err
	}
	const header = 10 // tag, size, code
	response := make([]byte, maxResponse)
	n, size := 0, header
	for n < size {
		read, err := c.Read(response[n:])
		if n += read; n < size && err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("it has ended")
			}
			return nil, err
		}
		if n >= header {
			size = int(min(binary.BigEndian.Uint32(response[2:]), 1<<20))
		}
		if size < header || size > maxResponse {
			return nil, errors.New("its response has no valid size")
		}
	}
	if n > size {
		return nil, errors.New("its response is longer than it says")
	}
	return response[:n], nil
}
