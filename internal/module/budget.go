package module

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// memoryBudget is what all modules of a run may hold in memory, in bytes: decompressed
// content, and the windows of decoders and compressors. The collector lets about as
// much again lie about. What wants more than all of it alone has it alone.
const memoryBudget = 96 << 20

// A charge is what a module has taken from the budget of its run.
type charge struct {
	budget *semaphore.Weighted // nil where there is none
	n      int64
}

// charge takes n bytes from the budget, for which it waits.
func (l Limits) charge(ctx context.Context, n int64) (*charge, error) {
	if l.Budget == nil || n == 0 {
		return new(charge), nil
	}
	n = min(n, memoryBudget)
	if err := l.Budget.Acquire(ctx, n); err != nil {
		return nil, err
	}
	return &charge{l.Budget, n}, nil
}

// reduce gives back what is more than n.
func (c *charge) reduce(n int64) {
	if n >= c.n {
		return
	}
	c.budget.Release(c.n - n)
	c.n = n
}

// reserve charges what the caller's compressor holds for a module that is not
// compressed itself.
func (m *File) reserve(ctx context.Context, limits Limits) error {
	if limits.Encoder == 0 {
		return nil
	}
	held, err := limits.charge(ctx, limits.Encoder)
	if err != nil {
		return err
	}
	release := m.release
	m.release = func() {
		release()
		held.reduce(0)
	}
	return nil
}
