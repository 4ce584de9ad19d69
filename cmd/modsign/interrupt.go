package main

import (
	"os"
	"strings"
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
	if !u.begun.Load() {
		os.Exit(u.exit(errInterrupted))
	}
}

// beginsAtOnce reports whether a command starts other programs, or holds a key that
// it has to account for: their ends are their own affair.
func beginsAtOnce(cmd *cobra.Command) bool {
	_, words, _ := strings.Cut(cmd.CommandPath(), " ")
	return strings.HasPrefix(words, "kbuild ") || words == "agent serve" || words == "agent forget"
}
