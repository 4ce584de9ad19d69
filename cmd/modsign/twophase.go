package main

import (
	"io"
	"os"
)

// The files of digest, sign-digests and attach.

// written is a manifest, or signatures.
type written interface {
	Write(io.Writer) error
	WriteFile(string) error
}

// writeResult writes a whole result to a file, or to stdout without one or for -.
func writeResult(u *ui, file string, result written) error {
	if file != "" && file != "-" {
		u.BeginAt(file)
		return result.WriteFile(file)
	}
	return u.Stream(result.Write)
}

// openInput opens a file, or stdin without one, and returns its name for people.
func openInput(u *ui, file, what string) (io.ReadCloser, string, error) {
	if file != "" && file != "-" {
		f, err := os.Open(file)
		return f, file, err
	}
	if u.Asks() {
		return nil, "", usagef("no %s: name the file, or redirect stdin from it", what)
	}
	return io.NopCloser(u.Stdin), "stdin", nil
}
