package pkcs11

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"github.com/modsign/modsign/internal/keyfile"
)

// A peer is a way to a module: a program to start for each connection, or a socket.
type peer interface {
	// dial connects. The connection breaks when ctx ends. The caller finishes a connection
	// that comes with an error, too.
	dial(ctx context.Context) (*conn, error)
	// String names the peer in messages.
	String() string
}

// A conn is a connection to a module. One goroutine uses it at a time.
type conn struct {
	ctx    context.Context
	peer   peer
	r      *bufio.Reader
	w      io.Writer
	close  func()       // breaks the connection; may be called by any goroutine, several times
	ended  func() error // waits for the end of the other side after close, and says how it ended
	stop   func() bool
	number uint32
	newM   bool  // mechanisms are encoded as from p11-kit 0.25.6 on
	broken error // why there will be no more answers
}

// begin agrees on the version of the protocol and initializes the module.
func (c *conn) begin() error {
	c.stop = context.AfterFunc(c.ctx, c.close)
	// Version 2 is always offered: from 0.25.6 on, p11-kit encodes mechanisms in the new
	// way whatever was agreed on, and its version tells that it is one of those.
	const offered = 2
	_, err := c.w.Write([]byte{offered})
	if err != nil {
		return c.fail(err)
	}
	version, err := c.r.ReadByte()
	if err != nil {
		return c.fail(err)
	}
	if version > offered {
		return c.fail(fmt.Errorf("%w: version %d of the protocol", errMalformed, version))
	}
	c.newM = version == offered
	var args encoder
	args.bytes([]byte("PRIVATE-GNOME-KEYRING-PKCS11-PROTOCOL-V-1"))
	args.byte(0)
	args.bytes([]byte{0})
	_, err = c.call(fnInitialize, args)
	return err
}

// call calls a function that has no results, or whose results the caller decodes.
func (c *conn) call(f function, arguments []byte) (*decoder, error) {
	if err := c.send(appendCall(nil, c.number, f, arguments)); err != nil {
		return nil, err
	}
	return c.receive(f)
}

// send sends frames. The first has the number c.number.
func (c *conn) send(frames []byte) error {
	if c.broken != nil {
		return c.broken
	}
	if _, err := c.w.Write(frames); err != nil {
		return c.fail(err)
	}
	return nil
}

// receive reads the answer to the call of the number c.number.
func (c *conn) receive(f function) (*decoder, error) {
	if c.broken != nil {
		return nil, c.broken
	}
	body, err := readFrame(c.r, c.number)
	if err != nil {
		return nil, c.fail(err)
	}
	c.number++
	d, err := parseAnswer(body, f)
	if _, answered := errors.AsType[*Error](err); err != nil && !answered {
		return nil, c.fail(err)
	}
	if err == nil && f.result == "" {
		err = c.check(d)
	}
	return d, err
}

// check is the end of reading results: an answer that is not as it has to be ends the
// connection.
func (c *conn) check(d *decoder) error {
	if err := d.end(); err != nil {
		return c.fail(err)
	}
	return nil
}

// fail breaks the connection, and says why. After an interrupt, it does not wait for the
// other side.
func (c *conn) fail(err error) error {
	if c.broken != nil {
		return c.broken
	}
	c.close()
	switch {
	case c.ctx.Err() != nil:
		c.broken = context.Cause(c.ctx)
	case errors.Is(err, errMalformed):
		c.broken = fmt.Errorf("%v: %w", c.peer, err)
	default:
		c.broken = fmt.Errorf("%v: %w", c.peer, c.ended())
	}
	return c.broken
}

// finish ends the connection in good order, as far as the other side does in a short time,
// and waits for the end of the other side. It may be called on nil.
func (c *conn) finish(login uint64) {
	if c == nil {
		return
	}
	if c.broken == nil {
		timer := time.AfterFunc(patience, c.close)
		if login != 0 {
			var args encoder
			args.ulong(login)
			c.call(fnLogout, args)
		}
		c.call(fnFinalize, nil)
		timer.Stop()
	}
	c.stop()
	c.close()
	c.ended()
}

// patience is how long the other side may take to end.
const patience = 3 * time.Second

// A child is the program p11-kit, which serves a module on its standard input and output.
type child struct {
	program string // its path
	module  string // a path or name of a module, or a pkcs11: URI for all that are configured
	env     []string
}

func (p child) String() string {
	if strings.HasPrefix(p.module, allModules) {
		return "p11-kit remote"
	}
	return "p11-kit remote " + printable(p.module)
}

// allModules is the URI that stands for all modules that p11-kit is configured to load.
const allModules = "pkcs11:"

func (p child) dial(ctx context.Context) (*conn, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	cmd := exec.Command(p.program, "remote", p.module)
	cmd.Env = append([]string{}, p.env...) // nil would be the environment of this process
	// An interrupt from the terminal is for this process alone, which ends the child.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	var stderr tail
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%v: %w", p, err)
	}
	c := &conn{ctx: ctx, peer: p, r: bufio.NewReader(stdout), w: stdin}
	c.close = func() {
		stdin.Close() // which ends p11-kit
		stdout.Close()
	}
	wait := sync.OnceValue(cmd.Wait)
	c.ended = func() error {
		// The module may be in the middle of a write to the token: SoftHSM loses a token
		// when it is killed there.
		kill := time.AfterFunc(patience, func() { cmd.Process.Kill() })
		defer kill.Stop()
		_ = wait() // the state says more
		text := fmt.Sprintf("ended (%v)", cmd.ProcessState)
		if line := stderr.lastLine(); line != "" {
			return errors.New(text + ": " + line)
		}
		err := errors.New(text)
		// It says only in its debug output why it cannot load a module.
		if cmd.ProcessState.ExitCode() == 1 && !strings.Contains(p.module, "'") {
			return &keyfile.HintError{Err: err, Hint: "P11_KIT_DEBUG=lib p11-kit remote '" + p.module + "' </dev/null"}
		}
		return err
	}
	return c, c.begin()
}

// A tail keeps the end of what a program writes.
type tail struct {
	mu   sync.Mutex
	data []byte
}

const maxTail = 2048

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data = append(t.data, p[max(0, len(p)-maxTail):]...)
	t.data = t.data[max(0, len(t.data)-maxTail):]
	return len(p), nil
}

// lastLine returns the last line that is not empty, as text of a bounded length.
func (t *tail) lastLine() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	data := bytes.TrimSpace(t.data)
	return printable(string(data[bytes.LastIndexByte(data, '\n')+1:]))
}

// printable cuts a foreign text short and removes what is not printable.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if runes := []rune(text); len(runes) > 200 {
		text = string(runes[:200]) + "..."
	}
	return text
}

// A socket is that of p11-kit server.
type socket struct{ path string }

func (p socket) String() string { return "p11-kit server at " + printable(p.path) }

func (p socket) dial(ctx context.Context) (*conn, error) {
	nc, err := new(net.Dialer).DialContext(ctx, "unix", p.path)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if op, ok := errors.AsType[*net.OpError](err); ok {
			err = op.Err
		}
		if e, ok := errors.AsType[*os.SyscallError](err); ok {
			err = e.Err
		}
		return nil, &keyfile.HintError{
			Err:  fmt.Errorf("%v: %w", p, err),
			Hint: "P11_KIT_SERVER_ADDRESS names this socket: start p11-kit server, or unset the variable",
		}
	}
	c := &conn{ctx: ctx, peer: p, r: bufio.NewReader(nc), w: nc}
	c.close = func() { nc.Close() }
	c.ended = func() error { return errors.New("closed the connection") }
	return c, c.begin()
}
