package main

import (
	"io"
	"os"

	"golang.org/x/term"
)

// The files of digest, sign-digests and attach.

// written is a manifest, or signatures.
type written interface {
	Write(io.Writer) error
	WriteFile(string) error
}

// writeResult writes a whole result to a file, or to stdout without one.
func writeResult(u *ui, file string, result written) error {
	if file != "" {
		u.beginAt(file)
		return result.WriteFile(file)
	}
	u.begin()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.erase()
	err := result.Write(u.stdout)
	if lost := u.stdout.Flush(); lost != nil {
		return nil // the ui says so
	}
	return err
}

// openInput opens a file, or stdin without one, and returns its name for people.
func openInput(u *ui, file, what string) (io.ReadCloser, string, error) {
	if file != "" && file != "-" {
		f, err := os.Open(file)
		return f, file, err
	}
	if stdin, ok := u.stdin.(*os.File); ok && term.IsTerminal(int(stdin.Fd())) {
		return nil, "", usagef("no %s: name the file, or redirect stdin from it", what)
	}
	return io.NopCloser(u.stdin), "stdin", nil
}
