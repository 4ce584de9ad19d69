package batch

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
)

func TestJobs(t *testing.T) {
	if got := Jobs(3); got != 3 {
		t.Errorf("3 asked for, got %d", got)
	}
	if got := Jobs(0); got != 2*runtime.GOMAXPROCS(0) {
		t.Errorf("by default %d", got)
	}
}

// TestLimit blocks every call until the limit is reached, and checks that no more calls
// run.
func TestLimit(t *testing.T) {
	const n, jobs = 50, 5
	var running, most atomic.Int32
	full := make(chan struct{})
	err := Each(t.Context(), n, jobs, func(i int) error {
		now := running.Add(1)
		defer running.Add(-1)
		for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
		}
		if now == jobs {
			select {
			case <-full:
			default:
				close(full)
			}
		}
		<-full
		return nil
	})
	if err != nil || most.Load() != jobs {
		t.Errorf("%d at once, want %d; error %v", most.Load(), jobs, err)
	}
}

func TestEachFails(t *testing.T) {
	low, high := errors.New("low"), errors.New("high")
	highFailed := make(chan struct{})
	calls := 0
	err := Each(t.Context(), 100, 2, func(i int) error {
		switch i {
		case 0:
			<-highFailed
			return low
		case 1:
			close(highFailed)
			return high
		}
		calls++ // one at a time: 0 waits or has failed
		return nil
	})
	if err != low {
		t.Errorf("got %v, want the error of the lowest number", err)
	}
	if calls > 1 { // one more may have been started in between
		t.Errorf("%d calls after one had failed", calls)
	}
}

func TestMap(t *testing.T) {
	var got []int
	err := Map(t.Context(), 1000, 0, func(i int) int { return i * i }, func(r int) { got = append(got, r) })
	if err != nil || len(got) != 1000 || !slices.IsSorted(got) {
		t.Errorf("%d results, error %v", len(got), err)
	}
}

// TestMapCancelled checks that Map drops results that arrive after the context has
// ended, and emits all earlier ones.
func TestMapCancelled(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("interrupted")
	var got []int
	err := Map(ctx, 1000, 1, func(i int) int {
		if i == 3 {
			cancel(cause)
		}
		return i
	}, func(r int) { got = append(got, r) })
	if err != cause || !slices.Equal(got, []int{0, 1, 2}) {
		t.Errorf("results %v, error %v", got, err)
	}
}

// TestSizeFor checks that batches of this size fill what somebody else takes at once.
func TestSizeFor(t *testing.T) {
	t.Parallel()
	for processors := 1; processors <= 64; processors++ {
		for _, n := range []int{64, 100, 1024, 2048} {
			size := SizeFor(processors, n)
			if got := Filling(processors, size); size > 1 && (got < n || (size-1)*(processors+2) >= n) {
				t.Errorf("%d processors, %d: size %d fills %d", processors, n, size, got)
			}
		}
	}
}
