package batch

import "sync"

// A Queue passes on each result when all results before it have arrived. Results are
// numbered from 0. A Queue is safe for concurrent use.
type Queue[T any] struct {
	mu      sync.Mutex
	next    int
	waiting map[int]T
	emit    func(T)
}

// NewQueue returns a Queue that passes its results to emit, one at a time.
func NewQueue[T any](emit func(T)) *Queue[T] {
	return &Queue[T]{waiting: make(map[int]T), emit: emit}
}

// Put adds the result number i. Each number may be put once.
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

// Close passes on the results that wait for missing ones.
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
