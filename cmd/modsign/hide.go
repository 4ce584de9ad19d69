package main

import (
	"os"

	"github.com/modsign/modsign/keygen/agent"
)

// isProgram says that this process is modsign, and no test that calls its functions.
var isProgram bool

// hideFromStart starts the process again, closed to the other processes of its user
// from its first instruction. It costs a few milliseconds, and so is for commands that
// make a key which is nowhere else, and is called before they do anything. What the
// system does not have, the key agent says of itself.
func hideFromStart(u *ui) {
	// A signal between here and the new program must not go with the old one.
	if !isProgram || u.signals.stop() {
		return
	}
	_ = agent.Hide(os.Args, os.Environ())
	u.signals.start()
}
