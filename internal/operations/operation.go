package operations

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"time"

	"banger/internal/fault"
	"banger/internal/microvm"
	"banger/internal/progress"
)

// maxStages bounds what is kept of one operation; a stage beyond it is not shown.
const maxStages = 200

// Operation is one piece of work, under way or ended.
type Operation struct {
	id      string
	kind    string
	started time.Time
	work    func() error
	cancel  context.CancelCauseFunc

	mu      sync.Mutex
	vm      microvm.ID
	name    string
	state   State
	ended   time.Time
	err     error
	stages  []Stage
	version int64         // grows with each change
	changed chan struct{} // closed and replaced at each change
}

// Stage is one step of an operation as it was last reported.
type Stage struct {
	progress.Update

	Started time.Time
	Version int64 // of the operation, when this stage last changed
}

// Snapshot is an operation at one moment.
type Snapshot struct {
	ID, Kind string
	VM       microvm.ID
	Name     string
	State    State
	Started  time.Time
	Ended    time.Time // zero while it runs
	Stages   []Stage   // oldest first
	Err      error     // why it failed or that it was cancelled
	Version  int64     // grows with each change
}

func newOperation(ctx context.Context, req Request, work Work) *Operation {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	op := &Operation{
		id: hex.EncodeToString(b[:]), kind: req.Kind, started: time.Now(),
		vm: req.VM, name: req.Name, state: Running, changed: make(chan struct{}),
	}
	ctx, op.cancel = context.WithCancelCause(progress.WithOperation(context.WithoutCancel(ctx), op.id))
	op.work = func() (err error) {
		defer func() {
			if defect := recover(); defect != nil { // it shall end one operation, not all that the daemon does
				err = fmt.Errorf("defect in operation %s: %v", req.Kind, defect)
			}
		}()
		err = work(ctx, op)
		// However deep in the work the cancellation was noticed and whatever was made of it, it is the reason.
		if cause := context.Cause(ctx); err != nil && cause != nil && fault.KindOf(err) != fault.KindOf(cause) {
			err = fault.New(fault.KindOf(cause), "%w: %w", cause, err).WithHint("%s", fault.HintOf(cause))
		}
		return err
	}
	return op
}

// ID returns the operation's id: 12 lower-case hexadecimal digits.
func (o *Operation) ID() string { return o.id }

// Cancel asks the operation to end, for a reason that becomes its error. It returns at once, and does nothing to one that
// has ended, or that has come so far that it goes on to its end.
func (o *Operation) Cancel(reason error) { o.cancel(reason) }

// Report is the operation's [progress.Sink].
func (o *Operation) Report(u progress.Update) {
	o.mu.Lock()
	defer o.mu.Unlock()
	at := -1
	for i := len(o.stages) - 1; i >= 0 && at < 0; i-- {
		if o.stages[i].Stage == u.Stage && !o.stages[i].Ended {
			at = i
		}
	}
	if at < 0 {
		if len(o.stages) == maxStages || o.state != Running {
			return
		}
		at = len(o.stages)
		o.stages = append(o.stages, Stage{Started: time.Now().Add(-u.Elapsed)})
	}
	o.touch()
	o.stages[at].Update, o.stages[at].Version = u, o.version
}

// About says which VM the operation is about, once that is known.
func (o *Operation) About(vm microvm.ID, name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.touch()
	o.vm, o.name = vm, name
}

// Snapshot returns the operation as it is now.
func (o *Operation) Snapshot() Snapshot {
	s, _ := o.snapshot()
	return s
}

func (o *Operation) snapshot() (Snapshot, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return Snapshot{
		ID: o.id, Kind: o.kind, VM: o.vm, Name: o.name, State: o.state, Started: o.started, Ended: o.ended,
		Stages: slices.Clone(o.stages), Err: o.err, Version: o.version,
	}, o.changed
}

// Watch calls fn with the operation as it is, then after each change until it has ended. Changes that come while fn is at
// work are told as one, so that a slow watcher misses steps on the way, never the end, and holds up nobody. It returns
// fn's error, or the context's cause.
func (o *Operation) Watch(ctx context.Context, fn func(Snapshot) error) error {
	for {
		s, changed := o.snapshot()
		if err := fn(s); err != nil || s.State != Running {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (o *Operation) finish(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.touch()
	o.ended, o.err = time.Now(), err
	switch {
	case err == nil:
		o.state = Succeeded
	case fault.Is(err, fault.Canceled):
		o.state = Canceled
	default:
		o.state = Failed
	}
	o.cancel(nil)
}

// touch counts and tells a change that is about to be made. o.mu is held.
func (o *Operation) touch() {
	o.version++
	close(o.changed)
	o.changed = make(chan struct{})
}
