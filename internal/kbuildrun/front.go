package kbuildrun

import (
	"context"
	"crypto"
	"io"

	"github.com/modsign/modsign/hashlist"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/sign"
)

// A System is what a driver uses of the process that it runs in.
type System struct {
	Environ   []string                    // for make
	LookupEnv func(string) (string, bool) // the same, as package os looks it up

	// The streams of the programs that the driver starts.
	Stdin          io.Reader
	Stdout, Stderr io.Writer

	// PIN returns the passphrase of the build.
	PIN keygen.Passphrase
	// LoadKey loads the key in a file, or opens the key with a URI until ctx ends, with
	// that passphrase. The file of a certificate may be empty.
	LoadKey func(ctx context.Context, key, cert string) (*keygen.Pair, error)
}

// A Pass does something to all modules of a tree.
type Pass func(sign.Options) (sign.Summary, error)

// A Front says what a driver does.
type Front interface {
	// Say writes a line. Note does so unless make is silent.
	Say(format string, args ...any)
	Note(format string, args ...any)

	// Sign calls a pass that signs modules with a key, and reports on it. Prove does the
	// same for one that appends proofs.
	Sign(ctx context.Context, key *keygen.Pair, hash crypto.Hash, o sign.Options, pass Pass) error
	Prove(ctx context.Context, o sign.Options, pass Pass) error

	// Hash is hashlist.Build with a report.
	Hash(ctx context.Context, source hashlist.Source, o hashlist.BuildOptions) (*hashlist.Built, error)
	// Embedded tells which hashes vmlinux got, Unsigned why an external module is installed
	// without a signature, and Rejected which module the kernel will not load.
	Embedded(e *Embedding)
	Unsigned(extmod string, why error)
	Rejected(r hashlist.Result)
}
