package machines

import (
	"context"
	"sync"

	"banger/internal/microvm"
	"banger/internal/store"
)

// changes wakes those who wait for some VM to change.
type changes struct {
	mu sync.Mutex
	ch chan struct{}
}

func newChanges() *changes { return &changes{ch: make(chan struct{})} }

// next returns a channel that is closed at the next change.
func (c *changes) next() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ch
}

func (c *changes) tell() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.ch)
	c.ch = make(chan struct{})
}

// tellingStore tells of each change after it has been recorded.
type tellingStore struct {
	Store

	changes *changes
}

func (s tellingStore) SetState(ctx context.Context, id microvm.ID, c store.Change) error {
	defer s.changes.tell()
	return s.Store.SetState(ctx, id, c)
}

func (s tellingStore) Remove(ctx context.Context, id microvm.ID) error {
	defer s.changes.tell()
	return s.Store.Remove(ctx, id)
}
