// Package failures combines the failures of a run over many modules into one error.
package failures

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// most is the number of failures that an error contains: a tree may have thousands.
const most = 10

// A List collects failures. The zero value is an empty list. It is not safe for
// concurrent use.
type List struct {
	n     int
	first []error
}

// Add records that the module at path failed with err.
func (l *List) Add(path string, err error) {
	l.n++
	if l.n > most {
		return
	}
	if err == nil {
		err = errors.New("failed")
	}
	l.first = append(l.first, Name(path, err))
}

// Name returns an error whose text begins with the path of a module, unless it names the
// path already.
func Name(path string, err error) error {
	if p, ok := err.(*fs.PathError); ok && p.Path == path || strings.HasPrefix(err.Error(), path+": ") {
		return err
	}
	return fmt.Errorf("%s: %w", path, err)
}

// Len returns the number of failures added.
func (l *List) Len() int { return l.n }

// Err returns nil for an empty list. Otherwise the text of the error begins with what,
// and errors.Is finds the sentinel and each of the first failures in it.
func (l *List) Err(sentinel error, what string) error {
	if l.n == 0 {
		return nil
	}
	return &failed{sentinel, what, l.n, l.first}
}

type failed struct {
	sentinel error
	what     string
	n        int
	first    []error
}

func (e *failed) Error() string {
	texts := make([]string, len(e.first), len(e.first)+1)
	for i, err := range e.first {
		texts[i] = err.Error()
	}
	if left := e.n - len(e.first); left > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", left))
	}
	return e.what + ": " + strings.Join(texts, "; ")
}

func (e *failed) Unwrap() []error { return append([]error{e.sentinel}, e.first...) }

// IsLost reports whether an error of a key says that the key signs nothing more: it, or an
// error that it wraps, has a method Lost() bool that returns true.
func IsLost(err error) bool {
	lost, ok := errors.AsType[interface {
		error
		Lost() bool
	}](err)
	return ok && lost.Lost()
}
