package keystore

import (
	"context"
	"crypto"
	"errors"
	"io"
	"runtime"
	"strings"

	"github.com/modsign/modsign/internal/batch"
	"github.com/modsign/modsign/internal/childenv"
	"github.com/modsign/modsign/internal/cms"
	"github.com/modsign/modsign/internal/keyfile"
	"github.com/modsign/modsign/internal/signerprogram"
	"github.com/modsign/modsign/keygen"
)

// openProgram starts the program of exec:PROGRAM, which signs.
func openProgram(ctx context.Context, uri string, o Options) (storedKey, error) {
	_, name, _ := strings.Cut(uri, ":")
	switch {
	case name == "":
		return nil, &keyfile.HintError{
			Err:  errors.New("the URI names no program"),
			Hint: "exec:PROGRAM, with the path of a program or its name in PATH",
		}
	case o.Certificate == nil:
		return nil, keygen.ErrNoCertificate
	}
	p, err := signerprogram.Start(ctx, name, signerprogram.Options{
		Certificate: o.Certificate.Raw,
		Env:         childenv.WithoutPIN(o.Environ), // that of another key, or of none
		Note:        o.Note,
	})
	if err != nil {
		return nil, err
	}
	return programKey{p, o.Certificate.PublicKey}, nil
}

// programKey is the key behind a program.
type programKey struct {
	*signerprogram.Program
	public crypto.PublicKey
}

func (k programKey) Public() crypto.PublicKey { return k.public }

func (k programKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	r := signerprogram.Request{Hash: cms.HashName(opts.HashFunc()), Digest: digest}
	if subject, ok := opts.(interface{ Module() (string, int64) }); ok {
		r.IsModule = true
		r.Path, r.Size = subject.Module()
	}
	return k.Program.Sign(&r)
}

// BatchSize is so large that the program has as many requests as it takes at once. For each
// processor a batch is under way elsewhere, but the program is one for all.
func (k programKey) BatchSize() int {
	return batch.SizeFor(runtime.GOMAXPROCS(0), k.InFlight())
}
