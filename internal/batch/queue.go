package batch

import "sync"

// A Queue passes results on in the order of their numbers, which begin at 0, as
// soon as all before them have come. It may be used by several goroutines.
type Queue[T any] struct {
	mu      sync.Mutex
	next    int
	waiting map[int]T
	emit    func(T)
}

// NewQueue returns a Queue that hands its results to emit, one at a time.
func NewQueue[T any](emit func(T)) *Queue[T] {
	return &Queue[T]{waiting: make(map[int]T), emit: emit}
}

// Put takes the result number i, of which there must be no second.
func (q *Queue[T]) Put(i int, result T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting[i] = result
	for {
		result, ok := q.waiting[q.next]
		if !ok {
			return
		}
		delete(q.waiting, q.next)
		q.next++
		q.emit(result)
	}
}

// Close passes on what has come, although results before it are missing and will
// not come any more.
func (q *Queue[T]) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for ; len(q.waiting) > 0; q.next++ {
		if result, ok := q.waiting[q.next]; ok {
			delete(q.waiting, q.next)
			q.emit(result)
		}
	}
}
