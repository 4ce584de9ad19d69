package verify

import (
	"errors"
	"fmt"

	"github.com/modsign/modsign/internal/archive"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/failures"
	"github.com/modsign/modsign/internal/module"
)

// Errors of [Tree]. The first two come wrapped in an error that counts the modules and
// wraps the Result.Err of the first ones.
var (
	// ErrRefused reports modules that the kernel would refuse to load: their verdict is
	// neither Trusted nor Unreadable.
	ErrRefused = errors.New("the kernel would refuse some modules")
	// ErrIncomplete reports modules without a verdict: they are Unreadable.
	ErrIncomplete = errors.New("some modules could not be read")
	// ErrNoModules reports that there is no module to verify or to describe.
	ErrNoModules = errors.New("no kernel module found")
	// ErrNoKernel reports a package without a kernel image to judge its modules by.
	ErrNoKernel = archive.ErrNoKernel
)

// Errors that a Result.Err, or the error of [Inspect], may wrap.
var (
	// ErrChanged reports a module that changed while it was being read.
	ErrChanged = module.ErrChanged
	// ErrNotModule reports a file that is not a whole kernel module in ELF.
	ErrNotModule = module.ErrNotModule
	// ErrTooLarge reports a module that decompresses to more than Options.MaxSize.
	ErrTooLarge = compress.ErrTooLarge
)

// A MisnamedError reports a file whose name and content have different compression
// formats. Is is the format of the content, and Right the base name that fits it.
type MisnamedError = module.MisnamedError

var errNoKeyring = errors.New("no keyring is given")

// check rejects values that mean nothing.
func (o *Options) check() error {
	switch {
	case o.Jobs < 0:
		return fmt.Errorf("negative Options.Jobs: %d", o.Jobs)
	case o.MaxSize < 0:
		return fmt.Errorf("negative Options.MaxSize: %d", o.MaxSize)
	}
	return nil
}

// outcome collects the modules that are not trusted.
type outcome struct {
	refused, unreadable failures.List
}

func (o *outcome) add(r Result) {
	switch r.Verdict {
	case Trusted:
	case Unreadable:
		o.unreadable.Add(r.Name(), r.Err)
	case NotSigned: // its error has the same words
		o.refused.Add(r.Name(), r.Err)
	default:
		o.refused.Add(r.Name(), fmt.Errorf("%s: %w", r.Verdict, r.Err))
	}
}

// err returns nil if all modules are trusted.
func (o *outcome) err(modules int) error {
	refused := o.refused.Err(ErrRefused, fmt.Sprintf("the kernel would refuse %d of %d modules", o.refused.Len(), modules))
	unreadable := o.unreadable.Err(ErrIncomplete,
		fmt.Sprintf("%d of %d modules could not be read", o.unreadable.Len(), modules))
	switch {
	case refused == nil:
		return unreadable
	case unreadable == nil:
		return refused
	}
	return fmt.Errorf("%w; %w", refused, unreadable)
}
