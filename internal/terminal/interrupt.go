package terminal

import (
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

// grace is for what an interrupted command that has written nothing still has to say, and
// for the terminal that asks for a passphrase.
const grace = 500 * time.Millisecond

// Interrupts are the signals that end a command. The first one ends the command's context.
// A run that writes then stops where every file is whole. One that only reads may hang
// where no context reaches, in opening a pipe to which nobody writes or a file on a server
// that is gone, and is ended a moment later. A second signal ends either at once, as if
// nobody listened.
type Interrupts struct {
	Cancel func() // ends the context
	Exit   func() // ends the program

	begun       atomic.Bool
	signals     chan os.Signal
	quit, ended chan struct{}
	caught      bool // to be read when ended is closed
}

// Listen begins to listen. It calls Cancel at the first signal.
func (i *Interrupts) Listen() {
	i.signals, i.quit, i.ended = make(chan os.Signal, 1), make(chan struct{}), make(chan struct{})
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT} {
		if !signal.Ignored(s) { // as nohup and a shell's & leave them
			signal.Notify(i.signals, s)
		}
	}
	go func(quit chan struct{}) {
		defer close(i.ended)
		select {
		case <-i.signals:
			signal.Stop(i.signals)
			i.interrupt()
		case <-quit:
		}
	}(i.quit)
}

// Stop ends listening, and reports whether a signal has come: none is lost. The next one
// ends the program.
func (i *Interrupts) Stop() bool {
	if i.quit == nil {
		return i.caught
	}
	signal.Stop(i.signals) // which waits for a signal that is on its way
	close(i.quit)
	i.quit = nil
	<-i.ended
	if !i.caught && len(i.signals) > 0 {
		i.interrupt()
	}
	return i.caught
}

func (i *Interrupts) interrupt() {
	i.caught = true
	i.Cancel()
	go func() {
		time.Sleep(grace)
		if !i.begun.Load() {
			i.Exit()
		}
	}()
}

// Begin says that from now on the command writes, or has others write: it ends by itself.
func (i *Interrupts) Begin() { i.begun.Store(true) }

// BeginAt says that from now on the command writes to a path. What is no regular file
// there, such as a pipe that nobody reads, may block until a signal comes: nothing has been
// written then, and the first one ends the command.
func (i *Interrupts) BeginAt(path string) {
	if !IsIrregular(path) {
		i.Begin()
	}
}

// IsIrregular reports whether a path leads to what is there and is no regular file.
func IsIrregular(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.Mode().IsRegular()
}
