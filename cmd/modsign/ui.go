package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"golang.org/x/term"
)

// The contract of all output:
//
// Results, and nothing else, go to stdout: what inspect describes, the modules
// that verify refuses, JSON. All words go to stderr, with "modsign: " before
// them, in lower case and without a full stop; "modsign: hint: " says what to
// do. A line that shows progress is written to a terminal alone, and erased.
//
// With --json stdout is one JSON object a line, whose message_type is module,
// summary or error: docs/json.md. An error is then said on both.

// ui is where all output goes.
type ui struct {
	signals *listener
	stdin   io.Reader
	stdout  *bufio.Writer
	stderr  io.Writer
	json    bool
	quiet   bool

	begun  atomic.Bool // see begin
	parsed atomic.Bool // the flags are: json and quiet can be read by other goroutines
	ended  sync.Mutex  // held from exit on: one end is said

	mu       sync.Mutex
	terminal bool   // stderr is one
	width    int    // of the terminal
	status   string // the line that shows progress, while it stands there
	drawn    time.Time
}

func newUI(stdin io.Reader, stdout, stderr io.Writer) *ui {
	u := &ui{stdin: stdin, stdout: bufio.NewWriterSize(stdout, 64<<10), stderr: stderr}
	if f, ok := stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		u.terminal, u.width = true, 80
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			u.width = width
		}
	}
	return u
}

// say writes a line of words.
func (u *ui) say(format string, args ...any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.erase()
	fmt.Fprintf(u.stderr, "modsign: %s\n", printable(fmt.Sprintf(format, args...)))
}

// note says what is good to know, unless it is to be quiet.
func (u *ui) note(format string, args ...any) {
	if !u.quiet {
		u.say(format, args...)
	}
}

func (u *ui) hint(format string, args ...any) { u.note("hint: "+format, args...) }

// result writes a line to stdout.
func (u *ui) result(format string, args ...any) {
	u.line(printable(fmt.Sprintf(format, args...)))
}

func (u *ui) line(text string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.erase()
	fmt.Fprintln(u.stdout, text)
	if u.terminal {
		u.stdout.Flush()
	}
}

// object writes a line of JSON to stdout.
func (u *ui) object(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic("internal error: " + err.Error()) // all that is written so is our own
	}
	u.line(string(b))
}

// progress shows how far things are, on a terminal and now and then.
func (u *ui) progress(last bool, line func() string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.terminal || u.quiet || u.json || !last && time.Since(u.drawn) < 100*time.Millisecond {
		return
	}
	u.erase()
	u.drawn = time.Now()
	if last {
		return
	}
	u.status = line()
	if runes := []rune(u.status); len(runes) >= u.width {
		u.status = string(runes[:u.width-1])
	}
	io.WriteString(u.stderr, u.status)
}

// erase takes the progress line away. The caller holds the lock.
func (u *ui) erase() {
	if u.status != "" {
		io.WriteString(u.stderr, "\r\x1b[K")
		u.status = ""
	}
}

// exit says what a command ended with and returns the exit code.
func (u *ui) exit(err error) int {
	u.ended.Lock()
	code, hint, text := exitError, "", ""
	if err != nil {
		text = err.Error()
	}
	if p, ok := err.(*fs.PathError); ok { // which system call it was says nothing here
		text = describe(p.Path, p)
	}
	if f, ok := errors.AsType[*failure](err); ok {
		code, hint = f.code, f.hint
	}
	if hint == "" {
		hint = keyHint(err)
	}
	status, silent := errors.AsType[exitStatus](err)
	switch {
	case err == nil:
		code = exitDone
	case silent:
		code = int(status)
	case errors.Is(err, errInterrupted):
		code = exitInterrupted
	}
	if err != nil && !silent {
		if u.json {
			u.object(jsonError{Type: "error", Error: withoutKeys(text), Hint: withoutKeys(hint), Code: code})
		}
		u.say("%s", text)
		if hint != "" {
			u.say("hint: %s", hint)
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.erase()
	// A result that nobody got was no result, whatever it was. But a command line
	// that is wrong and an interrupt are what they are with and without one.
	if lost := u.stdout.Flush(); lost != nil {
		fmt.Fprintf(u.stderr, "modsign: cannot write the result: %v\n", lost)
		if code != exitUsage && code != exitInterrupted {
			return exitError
		}
	}
	return code
}

// printable makes one line of a text, in which names of files and of signers may
// hold anything: they shall not pass for another line, nor speak to the terminal.
func printable(text string) string {
	text = withoutKeys(text)
	if !strings.ContainsFunc(text, unicode.IsControl) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if unicode.IsControl(r) {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// pinInURI is where a PKCS #11 URI holds a PIN (RFC 7512).
var pinInURI = regexp.MustCompile(`(pin-value=)[^&;\s"]*`)

// withoutKeys cuts a private key out of a text, with all that follows, and a PIN: a shell that
// was given no quotes, or an argument in the wrong place, makes one a file's name or
// a flag, which an error then quotes.
func withoutKeys(text string) string {
	text = pinInURI.ReplaceAllString(text, "${1}(not shown)")
	const begin, end = "-----BEGIN", "PRIVATE KEY"
	if i := strings.Index(text, begin); i >= 0 && strings.Contains(text[i:], end) {
		return text[:i] + "(a private key, not shown)"
	}
	return text
}

// describe is an error about the file at path, without its path in it once more.
func describe(path string, err error) string {
	if p, ok := errors.AsType[*fs.PathError](err); ok && p.Path == path && err == error(p) {
		return fmt.Sprintf("%s: %v", path, p.Err)
	}
	if text := err.Error(); strings.HasPrefix(text, path+": ") {
		return text
	}
	return fmt.Sprintf("%s: %v", path, err)
}

// plural is a count of things: 1 module, 2 modules.
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// megabytes is a size for people.
func megabytes(n int64) string {
	switch {
	case n < 1e6:
		return fmt.Sprintf("%.0f KB", float64(n)/1e3)
	case n < 1e9:
		return fmt.Sprintf("%.0f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.2f GB", float64(n)/1e9)
}

// seconds is a duration for people.
func seconds(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%d min %02d s", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%d h %02d min", int(d.Hours()), int(d.Minutes())%60)
}
