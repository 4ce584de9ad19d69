package sign

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/modsign/modsign/internal/atomicfile"
	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/module"
)

// Errors of this package, for errors.Is.
var (
	// ErrIncomplete reports that some modules failed and the others were processed. The
	// error that wraps it counts them, and wraps the Result.Err of the first ones.
	ErrIncomplete = errors.New("some modules failed")
	// ErrNoModules reports a Source without any module.
	ErrNoModules = errors.New("no kernel module found (*.ko, *.ko.gz, *.ko.xz, *.ko.zst)")
	// ErrSigned reports a module that is already signed, where [Refuse] is set.
	ErrSigned = errors.New("module is already signed")
	// ErrChanged reports a module that changed while it was being read.
	ErrChanged = module.ErrChanged
	// ErrNotModule reports a file that is not a whole kernel module in ELF.
	ErrNotModule = module.ErrNotModule
	// ErrTooLarge reports a compressed module that is larger than MaxSize when
	// decompressed.
	ErrTooLarge = compress.ErrTooLarge
)

// Errors of this package, for errors.As.
type (
	// A LockedError reports that another process, its Holder, works on the same files
	// and has locked Path.
	LockedError = atomicfile.LockedError
	// A MisnamedError reports a file whose name and content have different compression
	// formats. Is is the format of the content, and Right the base name that fits it.
	MisnamedError = module.MisnamedError
	// An OwnerError reports a module whose owner cannot be kept: see
	// WriteOptions.NewOwner.
	OwnerError = atomicfile.OwnerError
)

// A KeyLostError reports that the key signs nothing more, as when its token was pulled out
// or its agent has ended. It ended the run: the modules that are left are as they were.
//
// A key tells by a method Lost() bool of its error, or of an error that this wraps.
type KeyLostError struct {
	Err error
}

func (e *KeyLostError) Error() string { return e.Err.Error() }
func (e *KeyLostError) Unwrap() error { return e.Err }

// A RefusedError reports that signatures and modules do not match, or that a policy refuses
// modules: then its Errs wrap a *policy.RefusedError. Each of them names a signature, a module
// or a rule for all modules. Nothing was written.
type RefusedError struct {
	Errs []error
}

// Error names the first reasons.
func (e *RefusedError) Error() string {
	const most = 10
	texts := make([]string, min(len(e.Errs), most))
	for i := range texts {
		texts[i] = e.Errs[i].Error()
	}
	if left := len(e.Errs) - most; left > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", left))
	}
	return strings.Join(texts, "; ")
}

// Unwrap returns the reasons.
func (e *RefusedError) Unwrap() []error { return e.Errs }

// errNotOpen is the error of every method of a Tree that is not open.
var errNotOpen = fmt.Errorf("the tree of modules is not open: %w", fs.ErrClosed)

// check returns an error unless the Tree is between Open and Close.
func (t *Tree) check() error {
	if t == nil || !t.opened.Load() {
		return errNotOpen
	}
	return nil
}

// first returns the first error that is not nil.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
