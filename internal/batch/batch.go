// Package batch works on many items at once: no more than a limit at the same time,
// none begun after the context has ended, and the results in the order of the items.
//
// [Map] is for results, [Each] for work that returns nothing but an error. A [Queue]
// restores the order of results where one piece of work has several.
package batch

import (
	"context"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Jobs returns how many items are worked on at once where a caller asks for n. For 0
// that is twice the number of processors, since some items wait for the disk.
func Jobs(n int) int {
	if n > 0 {
		return n
	}
	return 2 * runtime.GOMAXPROCS(0)
}

// Each calls work for 0 to n-1, jobs at a time (see [Jobs]), and returns when all calls
// have. It begins no further call once one has failed or ctx has ended. The error is
// the context's cause, or else that of the failed call with the lowest number.
func Each(ctx context.Context, n, jobs int, work func(i int) error) error {
	// Not the context of the group, which would end the calls that run when one fails.
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

// failure keeps the error of the lowest number.
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

// Map calls work for 0 to n-1, jobs at a time (see [Jobs]), and hands the results to
// emit in that order, one at a time and as soon as they can be. It begins no further
// call once ctx has ended, and drops what the calls return that run then: such a result
// tells of the interruption. The error is the context's cause.
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
