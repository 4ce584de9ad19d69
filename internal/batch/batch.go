// Package batch processes many items in parallel: at most a given number at the same
// time, none started after the context has ended, and with results in the order of the
// items.
//
// Use [Map] for work that returns a result, and [Each] for work that returns only an
// error. A [Queue] restores the order when one call produces several results.
package batch

import (
	"context"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Jobs returns how many items to process at once if the caller asks for n. For 0 it is
// twice the number of processors, since some items wait for the disk.
func Jobs(n int) int {
	if n > 0 {
		return n
	}
	return Filling(runtime.GOMAXPROCS(0), 1)
}

// Filling returns how many items to process at once on so many processors, if one step makes
// size results in the time of one: while each processor makes a batch, one batch gathers,
// and the items of another are read and written.
func Filling(processors, size int) int {
	n := 2 * processors
	if size > 1 {
		n += size * (processors + 2)
	}
	return n
}

// SizeFor returns the size with which Filling returns n or a few more, for results that are
// all made elsewhere, whatever the number of processors here.
func SizeFor(processors, n int) int { return (n + processors + 1) / (processors + 2) }

// Each calls work for 0 to n-1, at most jobs at a time (see [Jobs]), and returns when
// all calls have returned. It starts no more calls after one has failed or ctx has
// ended. The error is the context's cause, or else that of the failed call with the
// lowest number.
func Each(ctx context.Context, n, jobs int, work func(i int) error) error {
	// A context of the group would interrupt the other calls when one fails.
	var group errgroup.Group
	group.SetLimit(Jobs(jobs))
	var failed failure
	for i := range n {
		if ctx.Err() != nil || failed.get() != nil {
			break
		}
		group.Go(func() error {
			failed.set(i, work(i))
			return nil
		})
	}
	group.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return failed.get()
}

// failure keeps the error of the call with the lowest number.
type failure struct {
	mu  sync.Mutex
	i   int
	err error
}

func (f *failure) set(i int, err error) {
	if err == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil || i < f.i {
		f.i, f.err = i, err
	}
}

func (f *failure) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// Map calls work for 0 to n-1, at most jobs at a time (see [Jobs]), and passes each
// result to emit in that order, one at a time and as early as possible. It starts no
// more calls after ctx has ended, and drops the results of calls that still run then,
// since they report the interruption. The error is the context's cause.
func Map[T any](ctx context.Context, n, jobs int, work func(i int) T, emit func(T)) error {
	queue := NewQueue(emit)
	err := Each(ctx, n, jobs, func(i int) error {
		if result := work(i); ctx.Err() == nil {
			queue.Put(i, result)
		}
		return nil
	})
	queue.Close()
	return err
}
