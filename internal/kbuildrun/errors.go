package kbuildrun

import "fmt"

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

// Status is the exit code. The errors of a [Front] that need no words have it too.
func (e *ExitError) Status() int { return e.Code }
