package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/internal/terminal"
)

// ui is what a command has of the world: where its output goes, and its interrupts. With
// --json stdout is one JSON object a line, whose message_type is module, summary or error:
// docs/json.md. An error is then said on both.
type ui struct {
	*terminal.Terminal
	terminal.Interrupts

	parsed atomic.Bool // the flags are: other goroutines may read JSON and Quiet
	ended  sync.Mutex  // held from exit on: one end is said
}

func newUI(stdin io.Reader, stdout, stderr io.Writer) *ui {
	return &ui{Terminal: terminal.New(stdin, stdout, stderr, os.Getenv("TERM") == "dumb")}
}

// listen returns a context that ends at the first signal.
func (u *ui) listen() (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(context.Background())
	u.Cancel = func() { cancel(errInterrupted) }
	u.Exit = func() {
		time.AfterFunc(time.Second, func() { os.Exit(exitInterrupted) }) // if nobody reads what it says
		if u.parsed.Load() {
			os.Exit(u.exit(errInterrupted))
		}
		os.Exit(exitInterrupted) // how to say it, the command line does not tell yet
	}
	u.Listen()
	return ctx, cancel
}

// beginsAtOnce reports whether a command starts other programs, or holds a key that
// it has to account for: their ends are their own affair.
func beginsAtOnce(cmd *cobra.Command) bool {
	_, words, _ := strings.Cut(cmd.CommandPath(), " ")
	return strings.HasPrefix(words, "kbuild ") ||
		slices.Contains([]string{"agent serve", "agent start", "agent forget"}, words)
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
		if u.JSON {
			u.Object(jsonError{
				Type: "error", Error: terminal.HideSecrets(text), Hint: terminal.HideSecrets(hint), Code: code,
			})
		}
		u.Say("%s", text)
		if hint != "" {
			u.Say("hint: %s", hint)
		}
	}
	// A result that nobody got was no result, whatever it was. But a command line
	// that is wrong and an interrupt are what they are with and without one.
	if lost := u.Close(); lost != nil && code != exitUsage && code != exitInterrupted {
		return exitError
	}
	return code
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
