package hashlist

import (
	"errors"
	"fmt"

	"github.com/modsign/modsign/internal/failures"
	"github.com/modsign/modsign/internal/module"
)

// Errors of [Reference.Verify] and [Build]. They come wrapped in an error that counts the
// modules and wraps the errors of the first ones.
var (
	// ErrRefused reports modules with any verdict but Trusted and Signed, as
	// Summary.Refused counts them.
	ErrRefused = errors.New("some modules are not trusted")
	// ErrIncomplete reports modules that could not be read, or hashed: for Verify, their
	// verdict is Failed.
	ErrIncomplete = errors.New("some modules could not be read")
)

// ErrNoModules reports a directory without modules.
var ErrNoModules = errors.New("no kernel module found (*.ko, *.ko.gz, *.ko.xz, *.ko.zst)")

// ErrSeveralKernels reports a package with the modules of several kernels, without a release that
// chooses one.
var ErrSeveralKernels = errors.New("modules of several kernels")

// Errors that the error of a single module may wrap.
var (
	// ErrChanged reports a module that changed while it was being read.
	ErrChanged = module.ErrChanged
	// ErrNotModule reports a file that is not a whole kernel module in ELF.
	ErrNotModule = module.ErrNotModule
)

// A MisnamedError reports a file whose name and content have different compression
// formats. Is is the format of the content, and Right the base name that fits it.
type MisnamedError = module.MisnamedError

var (
	errNoReference = errors.New("no reference is given: NewReference or NewKernelReference makes one")
	errNoHashes    = errors.New("no hashes are given")
	errNoOrder     = errors.New("no byte order is given")
	errNoList      = errors.New("no hash list is given")
)

// outcome collects the modules that are not trusted.
type outcome struct {
	refused failures.List
	failed  int
}

func (o *outcome) add(r Result) {
	path, err := r.Path, r.Err
	if path == "" { // Missing
		path = r.Name
	}
	if r.Archive != "" {
		path += " in " + r.Archive
	}
	switch {
	case r.Verdict == Trusted || r.Verdict == Signed:
		return
	case r.Verdict == Failed:
		o.failed++
	default:
		err = errors.New(r.String())
	}
	o.refused.Add(path, err)
}

// err returns nil if all modules are trusted.
func (o *outcome) err(modules int) error {
	err := o.refused.Err(ErrRefused, fmt.Sprintf("%d of %d modules are not trusted", o.refused.Len(), modules))
	if o.failed > 0 {
		return fmt.Errorf("%w (%w)", err, ErrIncomplete)
	}
	return err
}
