package main

import (
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// What a signal does: it ends the context of the command. A run that writes then
// stops where every file is whole. One that only reads may hang where no context
// reaches, in opening a pipe to which nobody writes or a file on a server that is
// gone, and is ended a moment later. A second signal ends either at once.

// interruptGrace is for what an interrupted command that has written nothing still
// has to say, and for the terminal that asks for a passphrase.
const interruptGrace = 500 * time.Millisecond

// A listener calls interrupt for the first signal. The second one ends the program at
// once, as if nobody listened.
type listener struct {
	interrupt   func()
	signals     chan os.Signal
	quit, ended chan struct{}
	caught      bool // to be read when ended is closed
}

func (l *listener) start() {
	l.signals, l.quit, l.ended = make(chan os.Signal, 1), make(chan struct{}), make(chan struct{})
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT} {
		if !signal.Ignored(s) { // as nohup and a shell's & leave them
			signal.Notify(l.signals, s)
		}
	}
	go func(quit chan struct{}) {
		defer close(l.ended)
		select {
		case <-l.signals:
			signal.Stop(l.signals)
			l.caught = true
			l.interrupt()
		case <-quit:
		}
	}(l.quit)
}

// stop ends listening, and reports whether a signal has come: none is lost. The next
// one ends the program.
func (l *listener) stop() bool {
	if l.quit == nil {
		return l.caught
	}
	signal.Stop(l.signals) // which waits for a signal that is on its way
	close(l.quit)
	l.quit = nil
	<-l.ended
	if !l.caught && len(l.signals) > 0 {
		l.caught = true
		l.interrupt()
	}
	return l.caught
}

// begin says that from now on the command writes, or has others write.
func (u *ui) begin() { u.begun.Store(true) }

// beginAt says that from now on the command writes to a path. What is no regular file
// there, such as a pipe that nobody reads, may block until a signal comes: nothing has
// been written then, and the first one ends the command.
func (u *ui) beginAt(path string) {
	if !isIrregular(path) {
		u.begin()
	}
}

// isIrregular reports whether a path leads to what is there and is no regular file.
func isIrregular(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.Mode().IsRegular()
}

// interrupted ends the program, once the context has been ended, if the command
// does not do so itself.
func (u *ui) interrupted() {
	time.Sleep(interruptGrace)
	switch {
	case u.begun.Load():
	case u.parsed.Load():
		os.Exit(u.exit(errInterrupted))
	default: // how to say it, the command line does not tell yet
		os.Exit(exitInterrupted)
	}
}

// beginsAtOnce reports whether a command starts other programs, or holds a key that
// it has to account for: their ends are their own affair.
func beginsAtOnce(cmd *cobra.Command) bool {
	_, words, _ := strings.Cut(cmd.CommandPath(), " ")
	return strings.HasPrefix(words, "kbuild ") || words == "agent serve" || words == "agent forget"
}
