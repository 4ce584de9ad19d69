package batch

import (
	"math/rand"
	"slices"
	"sync"
	"testing"
)

func TestQueue(t *testing.T) {
	const n = 1000
	var got []int
	q := NewQueue(func(i int) { got = append(got, i) })
	var wg sync.WaitGroup
	for _, i := range rand.Perm(n) {
		wg.Go(func() { q.Put(i, i) })
	}
	wg.Wait()
	if len(got) != n || !slices.IsSorted(got) {
		t.Errorf("got %d results: %v", len(got), got)
	}
}

func TestQueueClose(t *testing.T) {
	var got []int
	q := NewQueue(func(i int) { got = append(got, i) })
	for _, i := range []int{7, 0, 3, 1} {
		q.Put(i, i)
	}
	if want := []int{0, 1}; !slices.Equal(got, want) {
		t.Errorf("before Close: %v, want %v", got, want)
	}
	q.Close()
	if want := []int{0, 1, 3, 7}; !slices.Equal(got, want) {
		t.Errorf("after Close: %v, want %v", got, want)
	}
}
