package main

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/keygen/audit"
)

// auditFlag is --audit: the file that gets a line for each signature, or nothing.
type auditFlag string

func (a *auditFlag) addFlag(flags *pflag.FlagSet) {
	flags.Var(once{(*string)(a)}, "audit", "append a line of JSON to `FILE` for each signature")
}

// open opens the record. It is nil without one.
func (a auditFlag) open() (*audit.Log, error) {
	if a == "" {
		return nil, nil
	}
	// Beyond the limit for the size of a file, an error ends the run, and not this signal the
	// program.
	signal.Ignore(syscall.SIGXFSZ)
	return audit.Open(string(a), audit.Options{SudoUser: os.Getenv("SUDO_USER")})
}

// recordIn has a key record its signatures, if there is a record.
func recordIn(log *audit.Log, pair *keygen.Pair) {
	if log != nil {
		pair.Signer = log.Key(pair.Signer, pair.Certificate)
	}
}
