package main

import (
	"os"

	"github.com/modsign/modsign/keygen"
)

// isProgram says that this process is modsign, and no test that calls its functions.
var isProgram bool

// hideFromStart starts the process again, closed to the other processes of its user
// from its first instruction. It costs a few milliseconds, and so is for commands that
// make a key which is nowhere else, and is called before they do anything. What the
// system does not have, the key agent says of itself.
func hideFromStart() {
	if isProgram {
		_ = keygen.Hide(os.Args, os.Environ())
	}
}
