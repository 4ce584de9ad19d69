package main

import (
	"os"

	"github.com/modsign/modsign/keygen/agent"
)

// isProgram is true in modsign itself, and false in tests that call its functions.
var isProgram bool

// hideFromStart starts the process again, closed to the other processes of its user
// from its first instruction on. It takes a few milliseconds, and so only commands that
// make a one-time key call it, before they do anything else. Where the system does not
// support it, the status of the key agent says so.
func hideFromStart(u *ui) {
	// A signal between here and the new program must not go with the old one.
	if !isProgram || u.Stop() {
		return
	}
	_ = agent.Hide(os.Args, os.Environ())
	u.Listen()
}
