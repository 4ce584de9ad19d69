package module

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// memoryBudget bounds what all modules of a run hold in memory, in bytes: decompressed
// content, and the windows of decoders and compressors. The garbage collector lets
// about as much again accumulate. A module that needs more than the whole budget runs
// alone.
const memoryBudget = 96 << 20

// A charge is the share of a module in the budget of its run.
type charge struct {
	budget *semaphore.Weighted // nil if there is no budget
	n      int64
}

// charge takes n bytes from the budget, and waits until they are free.
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

// reduce returns all but n bytes to the budget.
func (c *charge) reduce(n int64) {
	if n >= c.n {
		return
	}
	c.budget.Release(c.n - n)
	c.n = n
}

// reserve charges the memory of the caller's compressor for a module that is not
// compressed.
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
