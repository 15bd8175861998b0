// Package operations keeps the operations of the daemon: pieces of long work with an id, which can be listed, watched by
// any number of clients and cancelled by any of them, also after the client that asked for the work has gone away.
// It owns the goroutine that does the work, its cancellation and the memory of how it went; it does not know what the
// work is. Nothing of it outlives the daemon: what does, the services record themselves.
//
// Locks: one mutex per registry and one per operation, neither held over work or I/O, the registry's taken first.
// Goroutines: one per operation, owned by [Registry.Run]. Lifecycle: an operation ends once; then it never changes, is
// kept for [KeepFor] and at most [KeepEnded] are.
package operations

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"banger/internal/fault"
	"banger/internal/microvm"
)

// Bounds of the memory of operations that have ended.
const (
	KeepFor   = 10 * time.Minute
	KeepEnded = 200
)

// State is how far an operation is.
type State string

// The states. Only Running is followed by another.
const (
	Running   State = "running"
	Succeeded State = "succeeded"
	Failed    State = "failed"
	Canceled  State = "canceled"
)

// Request says what an operation is to be.
type Request struct {
	Kind string     // the verb: create, start, ...
	VM   microvm.ID // that it is about; empty if it is about none, or not known yet
	Name string     // of the VM, or of whatever else it is about
}

// Work does what an operation is for. Its context ends when the operation is cancelled, and not with the client's.
type Work func(ctx context.Context, op *Operation) error

// Registry holds the operations.
type Registry struct {
	log    *slog.Logger
	tasks  chan *Operation // for Run to own
	closed chan struct{}   // Run takes no more

	mu  sync.Mutex
	ops map[string]*Operation
}

// New returns a registry. It does nothing before Run.
func New(log *slog.Logger) *Registry {
	return &Registry{log: log, tasks: make(chan *Operation), closed: make(chan struct{}), ops: map[string]*Operation{}}
}

// Run does the work of the operations. When the context ends it begins no more, gives those under way the grace time to end,
// then cancels them and gives them as much again. What still goes on after that is left to itself.
func (r *Registry) Run(ctx context.Context, grace time.Duration) {
	var work sync.WaitGroup
	for open := true; open; {
		select {
		case op := <-r.tasks:
			work.Go(func() { r.perform(op) })
		case <-ctx.Done():
			open = false
		}
	}
	close(r.closed)
	ended := make(chan struct{})
	go func() {
		work.Wait()
		close(ended)
	}()
	for range 2 {
		select {
		case <-ended:
			return
		case <-time.After(grace):
			r.cancelAll(errEnding())
		}
	}
	r.log.Warn("operations do not end; what they leave is recovered by the next daemon")
}

func errEnding() error {
	return fault.New(fault.Unavailable, "the daemon is shutting down").WithHint("try again: it starts by itself")
}

// Start begins an operation. The values of the context stay with the work, its end does not reach it.
func (r *Registry) Start(ctx context.Context, req Request, work Work) (*Operation, error) {
	op := newOperation(ctx, req, work)
	r.mu.Lock()
	r.forget()
	r.ops[op.id] = op
	r.mu.Unlock()
	select {
	case r.tasks <- op:
		return op, nil
	case <-r.closed:
		op.finish(errEnding())
		return nil, errEnding()
	}
}

// perform does the work of one operation.
func (r *Registry) perform(op *Operation) {
	op.finish(op.work())
	s := op.Snapshot()
	log := r.log.With("op", s.ID, "kind", s.Kind, "vm", s.VM, "dur", s.Ended.Sub(s.Started), "state", s.State)
	if s.Err != nil {
		log = log.With("err", s.Err) // who asked for the work may have gone away
	}
	log.Info("operation ended")
}

// forget drops operations that ended long ago, or too many others ago. r.mu is held.
func (r *Registry) forget() {
	var ended []Snapshot
	for _, op := range r.ops {
		if s := op.Snapshot(); s.State != Running {
			ended = append(ended, s)
		}
	}
	slices.SortFunc(ended, func(a, b Snapshot) int { return b.Ended.Compare(a.Ended) })
	for i, s := range ended {
		if i >= KeepEnded || time.Since(s.Ended) > KeepFor {
			delete(r.ops, s.ID)
		}
	}
}

// List returns the operations that are known, oldest first.
func (r *Registry) List() []Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forget()
	list := make([]Snapshot, 0, len(r.ops))
	for _, op := range r.ops {
		list = append(list, op.Snapshot())
	}
	slices.SortFunc(list, func(a, b Snapshot) int {
		return cmp.Or(a.Started.Compare(b.Started), strings.Compare(a.ID, b.ID))
	})
	return list
}

// Find returns the operation that an id, or the beginning of one, means: fault.NotFound or fault.Invalid if it means none
// or several.
func (r *Registry) Find(ref string) (*Operation, error) {
	if ref == "" {
		return nil, fault.New(fault.Invalid, "no operation named").WithHint("list them: banger operation list")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forget()
	var found []*Operation
	for id, op := range r.ops {
		if strings.HasPrefix(id, ref) {
			found = append(found, op)
		}
	}
	switch len(found) {
	case 0:
		return nil, fault.New(fault.NotFound, "there is no operation %q (any more)", ref).
			WithHint("list them: banger operation list; what happened to VMs: banger events")
	case 1:
		return found[0], nil
	}
	return nil, fault.New(fault.Invalid, "%q is the beginning of the ids of several operations", ref).
		WithHint("give more of the id: banger operation list")
}

// cancelAll cancels whatever is under way.
func (r *Registry) cancelAll(cause error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, op := range r.ops {
		op.Cancel(cause)
	}
}
