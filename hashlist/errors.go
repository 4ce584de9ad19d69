package hashlist

import (
	"errors"
	"fmt"

	"github.com/modsign/modsign/internal/failures"
	"github.com/modsign/modsign/internal/module"
)

// What [Reference.Verify] ends with where not every module is Trusted. The error that
// wraps them counts the modules, and wraps the Result.Err of the first ones.
var (
	// ErrRefused reports modules with any verdict but Trusted, as Summary.Refused
	// counts them.
	ErrRefused = errors.New("some modules are not those that the kernel trusts")
	// ErrIncomplete reports that some of these are Failed: they could not be read.
	ErrIncomplete = errors.New("some modules could not be read")
)

// ErrNoModules reports a directory without modules.
var ErrNoModules = errors.New("no kernel module found (*.ko, *.ko.gz, *.ko.xz, *.ko.zst)")

// Errors that the error of a single module may wrap.
var (
	// ErrChanged reports a module that changed while it was being read.
	ErrChanged = module.ErrChanged
	// ErrNotModule reports a file that is not a whole kernel module in ELF.
	ErrNotModule = module.ErrNotModule
)

// A MisnamedError reports a file whose name promises another compression than its
// content has: by its first bytes it Is of another format, and the Right base name is
// this one.
type MisnamedError = module.MisnamedError

var (
	errNoReference = errors.New("nothing to compare with: NewReference or NewKernelReference makes a Reference")
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
	switch {
	case r.Verdict == Trusted:
		return
	case r.Verdict == Failed:
		o.failed++
	default:
		err = errors.New(r.String())
	}
	o.refused.Add(path, err)
}

// err is nil where all of the modules are trusted.
func (o *outcome) err(modules int) error {
	err := o.refused.Err(ErrRefused, fmt.Sprintf("%d of %d modules are not those that the kernel trusts", o.refused.Len(), modules))
	if o.failed > 0 {
		return fmt.Errorf("%w (%w)", err, ErrIncomplete)
	}
	return err
}
