// Package terminal is where a command's words, results and progress go, where a passphrase
// comes from, and how an interrupt ends a run. [New] takes the three streams of a process.
//
// Results, and nothing else, go to stdout; all words go to stderr, with "modsign: " before
// them. A line that shows progress is written to a terminal alone, and erased.
package terminal

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// A Terminal writes for one command. Its methods may be called at the same time; JSON and
// Quiet must be set before.
type Terminal struct {
	Stdin  io.Reader
	Stdout *bufio.Writer // for results that are no lines
	Stderr io.Writer
	JSON   bool // results are JSON objects, and there is no line of progress
	Quiet  bool // no notes, no hints, no progress

	mu      sync.Mutex
	isTTY   bool   // stderr is a terminal
	columns int    // its width
	status  string // the line that shows progress, while it stands there
	drawn   time.Time
}

// New returns a Terminal for these streams. A dumb terminal shows no progress.
func New(stdin io.Reader, stdout, stderr io.Writer, dumb bool) *Terminal {
	t := &Terminal{Stdin: stdin, Stdout: bufio.NewWriterSize(stdout, 64<<10), Stderr: stderr}
	if f, ok := stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) && !dumb {
		t.isTTY, t.columns = true, 80
		if columns, _, err := term.GetSize(int(f.Fd())); err == nil && columns > 0 {
			t.columns = columns
		}
	}
	return t
}

// Say writes a line of words.
func (t *Terminal) Say(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.erase()
	fmt.Fprintf(t.Stderr, "modsign: %s\n", Printable(fmt.Sprintf(format, args...)))
}

// Note says what is good to know, unless it is to be quiet.
func (t *Terminal) Note(format string, args ...any) {
	if !t.Quiet {
		t.Say(format, args...)
	}
}

// Hint notes what to do.
func (t *Terminal) Hint(format string, args ...any) { t.Note("hint: "+format, args...) }

// Result writes a line to stdout.
func (t *Terminal) Result(format string, args ...any) {
	t.line(Printable(fmt.Sprintf(format, args...)))
}

// Object writes a line of JSON to stdout.
func (t *Terminal) Object(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic("internal error: " + err.Error()) // all that is written so is our own
	}
	t.line(string(b))
}

func (t *Terminal) line(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.erase()
	fmt.Fprintln(t.Stdout, text)
	if t.isTTY {
		t.Stdout.Flush()
	}
}

// Stream lets a function write results that are no lines to stdout. Close tells whether
// they are lost.
func (t *Terminal) Stream(write func(io.Writer) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.erase()
	err := write(t.Stdout)
	if t.Stdout.Flush() != nil {
		return nil
	}
	return err
}

// Progress shows a line about how far things are, on a terminal and now and then. The
// last call erases it.
func (t *Terminal) Progress(last bool, line func() string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.isTTY || t.Quiet || t.JSON || !last && time.Since(t.drawn) < 100*time.Millisecond {
		return
	}
	t.erase()
	t.drawn = time.Now()
	if last {
		return
	}
	t.status = line()
	if runes := []rune(t.status); len(runes) >= t.columns {
		t.status = string(runes[:t.columns-1])
	}
	io.WriteString(t.Stderr, t.status)
}

// erase takes the progress line away. The caller holds the lock.
func (t *Terminal) erase() {
	if t.status != "" {
		io.WriteString(t.Stderr, "\r\x1b[K")
		t.status = ""
	}
}

// Close erases the progress line and flushes stdout. It says so if the results are lost,
// and returns the error.
func (t *Terminal) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.erase()
	err := t.Stdout.Flush()
	if err != nil {
		fmt.Fprintf(t.Stderr, "modsign: cannot write the result: %v\n", err)
	}
	return err
}

// Asks reports whether stdin is a terminal, at which somebody can answer.
func (t *Terminal) Asks() bool {
	stdin, ok := t.Stdin.(*os.File)
	return ok && term.IsTerminal(int(stdin.Fd()))
}

// Passphrase asks for a passphrase at the terminal of stdin, which does not show it. At
// the end of the context it stops. The terminal is as before then.
func (t *Terminal) Passphrase(ctx context.Context, prompt string) ([]byte, error) {
	stdin := t.Stdin.(*os.File)
	fd := int(stdin.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	silent := *before
	silent.Lflag &^= unix.ECHO
	silent.Lflag |= unix.ICANON | unix.ISIG
	silent.Iflag |= unix.ICRNL
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &silent); err != nil {
		return nil, err
	}
	defer unix.IoctlSetTermios(fd, unix.TCSETS, before)

	out := t.Stderr
	if !t.isTTY { // words go to a log, and somebody waits here for the question
		if tty, err := os.OpenFile("/dev/tty", os.O_WRONLY, 0); err == nil {
			defer tty.Close()
			out = tty
		}
	}
	fmt.Fprintf(out, "%s ", Printable(prompt))
	defer fmt.Fprintln(out)
	type answer struct {
		passphrase []byte
		err        error
	}
	answers := make(chan answer, 1)
	go func() { // it may read on for ever, and leaves the terminal alone
		passphrase, err := readLine(stdin)
		answers <- answer{passphrase, err}
	}()
	select {
	case a := <-answers:
		return a.passphrase, a.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// readLine reads a line, without its end, and nothing beyond it.
func readLine(r io.Reader) ([]byte, error) {
	var line []byte
	for b := []byte{0}; ; {
		n, err := r.Read(b)
		switch {
		case n == 1 && b[0] == '\n':
			return line, nil
		case n == 1 && len(line) == 64<<10:
			return nil, errors.New("a line without an end")
		case n == 1:
			line = append(line, b[0])
		case err == io.EOF && len(line) > 0:
			return line, nil
		case err == io.EOF:
			return nil, errors.New("there was no answer")
		case err != nil:
			return nil, err
		}
	}
}
