package kbuildrun

import (
	"errors"
	"fmt"
)

// A HintError is an error with what to do about it.
type HintError struct {
	Err  error
	Hint string
}

func (e *HintError) Error() string { return e.Err.Error() }
func (e *HintError) Unwrap() error { return e.Err }

// An ExitError is the end of a make that has said why it failed.
type ExitError struct{ Code int }

func (e *ExitError) Error() string { return fmt.Sprintf("make: exit status %d", e.Code) }

// StatusOf returns the exit code of an error about which all has been said.
func StatusOf(err error) (code int, said bool) {
	e, said := errors.AsType[interface {
		error
		Status() int
	}](err)
	if !said {
		return 0, false
	}
	return e.Status(), true
}

// Status is the exit code. The errors of a [Front] that need no words have it too.
func (e *ExitError) Status() int { return e.Code }
