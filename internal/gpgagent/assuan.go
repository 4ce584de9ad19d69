package gpgagent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

const (
	maxLine   = 1002     // bytes of a line in the Assuan protocol, with its end
	maxAnswer = 16 << 10 // bytes of data; a key of RSA-16384 has 2 KiB
	maxLines  = 1000     // of an answer
)

// conn is a connection to an agent. It is for one goroutine at a time.
type conn struct {
	rw    io.ReadWriter
	lines *bufio.Reader
	// expire ends reads and writes under way.
	expire func()
	close  func() error
}

func dial(ctx context.Context, socket string) (*conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	return newConn(c, func() { _ = c.SetDeadline(time.Unix(1, 0)) }, c.Close), nil
}

func newConn(rw io.ReadWriter, expire func(), close func() error) *conn {
	return &conn{rw: rw, lines: bufio.NewReaderSize(rw, maxLine), expire: expire, close: close}
}

// agentError is an error of the agent, in its words.
type agentError struct {
	code int // of libgpg-error, without the source
	text string
}

func (e *agentError) Error() string { return "gpg-agent: " + e.text }

var errProtocol = errors.New("gpg-agent does not keep to its protocol")

// call sends a command, unless it is empty, and returns the data of the answer. After an
// error that is no [*agentError], the connection is of no use.
func (c *conn) call(ctx context.Context, command string) (data []byte, err error) {
	stop := context.AfterFunc(ctx, c.expire)
	defer stop()
	data, err = c.exchange(command)
	if _, ok := err.(*agentError); err != nil && !ok && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return data, err
}

func (c *conn) exchange(command string) (data []byte, err error) {
	if command != "" {
		if err := c.send(command); err != nil {
			return nil, err
		}
	}
	for range maxLines {
		line, err := c.line()
		if err != nil {
			return nil, err
		}
		word, rest, _ := bytes.Cut(line, []byte(" "))
		switch string(word) {
		case "OK":
			return data, nil
		case "ERR":
			return nil, parseError(string(rest))
		case "D":
			if data, err = appendData(data, rest); err != nil {
				return nil, err
			}
		case "INQUIRE":
			// The agent tells of a pinentry, and wants to know nothing.
			answer := "CAN"
			if bytes.HasPrefix(rest, []byte("PINENTRY_LAUNCHED")) {
				answer = "END"
			}
			if err := c.send(answer); err != nil {
				return nil, err
			}
		case "S": // the state of affairs
		default:
			if len(word) == 0 || word[0] != '#' { // a comment
				return nil, errProtocol
			}
		}
	}
	return nil, errProtocol
}

func (c *conn) send(line string) error {
	if len(line) >= maxLine {
		return errors.New("command for gpg-agent is too long")
	}
	_, err := io.WriteString(c.rw, line+"\n")
	return gone(err)
}

func (c *conn) line() ([]byte, error) {
	line, err := c.lines.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, errProtocol
	}
	if err != nil {
		return nil, gone(err)
	}
	return bytes.TrimSuffix(line[:len(line)-1], []byte("\r")), nil
}

var errGone = errors.New("gpg-agent has closed the connection")

// gone tells an agent that has ended from other errors.
func gone(err error) error {
	if err == nil {
		return nil
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return err
	}
	return errGone
}

// parseError parses "CODE TEXT".
func parseError(rest string) error {
	number, text, _ := strings.Cut(rest, " ")
	code, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return errProtocol
	}
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' || 0x80 <= r && r < 0xa0 {
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, ""))
	if text == "" {
		text = fmt.Sprintf("error %d", code)
	}
	return &agentError{code: int(code & 0xffff), text: text}
}

// appendData decodes the data of a line.
func appendData(data, line []byte) ([]byte, error) {
	for len(line) > 0 {
		before, after, escaped := bytes.Cut(line, []byte("%"))
		data = append(data, before...)
		if line = after; escaped {
			var b [1]byte
			if len(line) < 2 {
				return nil, errProtocol
			}
			if _, err := hex.Decode(b[:], line[:2]); err != nil {
				return nil, errProtocol
			}
			data, line = append(data, b[0]), line[2:]
		}
		if len(data) > maxAnswer {
			return nil, errProtocol
		}
	}
	return data, nil
}
