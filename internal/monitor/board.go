package monitor

import (
	"sync"

	"banger/internal/monitorlink"
)

// board holds the status and wakes those who watch it.
type board struct {
	mu      sync.Mutex
	status  monitorlink.Status
	changed chan struct{} // closed and replaced at each change
	done    bool
	readers sync.WaitGroup
}

func newBoard(s monitorlink.Status) *board {
	return &board{status: s, changed: make(chan struct{})}
}

func (b *board) update(change func(*monitorlink.Status)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(&b.status)
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *board) get() monitorlink.Status {
	s, _, _ := b.next()
	return s
}

// next returns the status, a channel that is closed when there is a newer one, and whether this is the last.
func (b *board) next() (monitorlink.Status, <-chan struct{}, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.status
	s.Stages = append([]monitorlink.Stage(nil), s.Stages...)
	return s, b.changed, b.done
}

// finish says that the status will not change any more.
func (b *board) finish() {
	b.mu.Lock()
	b.done = true
	close(b.changed)
	b.changed = make(chan struct{})
	b.mu.Unlock()
	b.readers.Wait()
}
