package machines

import (
	"context"
	"fmt"
	"sync"
	"time"

	"banger/internal/fault"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
	"banger/internal/progress"
)

// entry is what the service keeps in memory of one VM.
type entry struct {
	lock  chan struct{} // capacity 1: full while an operation holds the VM
	users int           // operations that hold or await the lock, guarded by table.mu

	// Guarded by table.mu.
	holder     string
	operation  string // id of the holder's operation, if it belongs to one
	since      time.Time
	interrupt  func() // asks the holder to give up
	urgent     int    // operations that await the lock and go before all others
	attachment *attachment
}

// grant is a lock that has been taken.
type grant struct {
	release     func()
	interrupted <-chan struct{} // closed when someone wants the holder to give up
}

// patience is how long an operation waits for another one that is about to end before it says "busy".
const patience = 500 * time.Millisecond

// table holds the entries of all VMs that are in use: locked, waited for, or running.
type table struct {
	mu      sync.Mutex
	entries map[microvm.ID]*entry
}

// claimant is who wants the lock of a VM.
type claimant struct {
	op     string
	wait   time.Duration // 0: as long as the context lets it
	urgent bool          // whoever has the lock, or gets it before, is asked to give up
}

// acquire takes the lock of a VM.
func (t *table) acquire(ctx context.Context, vm microvm.VM, c claimant) (grant, error) {
	t.mu.Lock()
	e := t.entries[vm.ID]
	if e == nil {
		e = &entry{lock: make(chan struct{}, 1)}
		t.entries[vm.ID] = e
	}
	e.users++
	if c.urgent {
		e.urgent++
		if e.interrupt != nil {
			e.interrupt()
		}
	}
	t.mu.Unlock()
	defer func() {
		if c.urgent {
			t.mu.Lock()
			defer t.mu.Unlock()
			e.urgent--
		}
	}()

	var late <-chan time.Time
	if c.wait > 0 {
		timer := time.NewTimer(c.wait)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case e.lock <- struct{}{}:
	case <-late:
		t.mu.Lock()
		err := e.busy(vm.Name)
		t.leave(vm.ID, e)
		t.mu.Unlock()
		return grant{}, err
	case <-ctx.Done():
		t.mu.Lock()
		t.leave(vm.ID, e)
		t.mu.Unlock()
		return grant{}, context.Cause(ctx)
	}
	interrupted := make(chan struct{})
	t.mu.Lock()
	e.holder, e.operation, e.since = c.op, progress.OperationOf(ctx), time.Now()
	e.interrupt = sync.OnceFunc(func() { close(interrupted) })
	if !c.urgent && e.urgent > 0 { // it was quicker than one that goes before it
		e.interrupt()
	}
	t.mu.Unlock()
	return grant{interrupted: interrupted, release: func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		e.holder, e.operation, e.interrupt = "", "", nil
		<-e.lock
		t.leave(vm.ID, e)
	}}, nil
}

// busy says who holds the lock. table.mu is held.
func (e *entry) busy(name string) error {
	text := fmt.Sprintf("VM %s is busy: %s, %.0f s", name, e.holder, time.Since(e.since).Seconds())
	if e.operation == "" {
		return fault.New(fault.Busy, "%s", text).WithHint("wait for it to end and try again")
	}
	return fault.New(fault.Busy, "%s (operation %s)", text, e.operation).
		WithHint("wait for it: banger operation watch %s; or end it: banger operation cancel %s", e.operation, e.operation)
}

// leave forgets an entry that nobody needs. table.mu is held.
func (t *table) leave(id microvm.ID, e *entry) {
	e.users--
	if e.users == 0 && e.attachment == nil {
		delete(t.entries, id)
	}
}

// attachment returns the VM's living monitor, if it has one.
func (t *table) attachment(id microvm.ID) *attachment {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.entries[id]; e != nil {
		return e.attachment
	}
	return nil
}

// attachments returns the living monitors of all VMs.
func (t *table) attachments() (all []*attachment) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.entries {
		if e.attachment != nil {
			all = append(all, e.attachment)
		}
	}
	return all
}

// setAttachment records the VM's monitor. The caller holds the VM's lock, so the entry is there.
func (t *table) setAttachment(id microvm.ID, a *attachment) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.entries[id].attachment = a
}

// hold is a VM whose lock an operation holds. What changes a VM is a method of hold, so that nothing changes one
// without its lock.
type hold struct {
	*core

	grant

	vm microvm.VM // as it was when the lock was taken
}

// interruptible returns a context that also ends when someone wants the holder to give up.
func (h *hold) interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-h.interrupted:
			cancel(fault.New(fault.Canceled, "interrupted by a kill or a forced delete"))
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// claim resolves a reference and takes the VM's lock for a named operation. The caller releases the hold.
func (s *core) claim(ctx context.Context, ref, op string) (*hold, error) {
	vm, err := s.resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	return s.claimCaughtUp(ctx, vm, claimant{op: op, wait: patience})
}

// seize is claim for operations that go before all others: whoever holds the lock is asked to give up.
func (s *core) seize(ctx context.Context, ref, op string) (*hold, error) {
	vm, err := s.resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	return s.claimCaughtUp(ctx, vm, claimant{op: op, wait: undoTimeout, urgent: true})
}

// claimCaughtUp takes the VM's lock and records the VM's end, if that is due.
func (s *core) claimCaughtUp(ctx context.Context, vm microvm.VM, c claimant) (*hold, error) {
	h, err := s.claimVM(ctx, vm, c)
	if err != nil {
		return nil, err
	}
	if err := h.catchUp(ctx); err != nil {
		h.release()
		return nil, err
	}
	return h, nil
}

// catchUp records the end of the VM if that has not been done yet, so that no operation takes a VM that has ended for a
// running one: its end was seen this moment, or could not be recorded when it was.
func (h *hold) catchUp(ctx context.Context) error {
	a := h.attachment()
	var cause string
	switch {
	case a != nil:
		select {
		case <-a.done:
			cause = describe(a.exit)
		default:
			return nil
		}
	case h.vm.State.HasProcess(): // whoever had it in hand is gone: the lock is ours
		cause = lastWord(h.dirs())
	default:
		return nil
	}
	if err := h.conclude(ctx, a, cause); err != nil {
		return err
	}
	vm, err := h.store.Get(ctx, h.vm.ID)
	if err == nil {
		h.vm = vm
	}
	return err
}

// claimVM takes the lock of a VM and reads the VM again, because it may have changed meanwhile.
func (s *core) claimVM(ctx context.Context, vm microvm.VM, c claimant) (*hold, error) {
	g, err := s.table.acquire(ctx, vm, c)
	if err != nil {
		return nil, err
	}
	again, err := s.store.Get(ctx, vm.ID)
	if err != nil {
		g.release()
		if fault.Is(err, fault.NotFound) {
			err = fault.New(fault.NotFound, "there is no VM %q any more", vm.Name).WithHint("list them: banger ps")
		}
		return nil, err
	}
	return &hold{core: s, grant: g, vm: again}, nil
}

// dirs names the directories of the held VM.
func (h *hold) dirs() monitorlink.Dirs { return h.dirsOf(h.vm.ID) }

// attachment returns the held VM's monitor, or nil.
func (h *hold) attachment() *attachment { return h.table.attachment(h.vm.ID) }

// info reads the held VM again.
func (h *hold) info(ctx context.Context) (Info, error) {
	vm, err := h.store.Get(ctx, h.vm.ID)
	if err != nil {
		return Info{}, err
	}
	return h.infoOf(vm), nil
}
