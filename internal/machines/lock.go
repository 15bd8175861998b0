package machines

import (
	"context"
	"sync"
	"time"

	"banger/internal/fault"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
)

// entry is what the service keeps in memory of one VM.
type entry struct {
	lock  chan struct{} // capacity 1: full while an operation holds the VM
	users int           // operations that hold or await the lock, guarded by table.mu

	// Guarded by table.mu.
	holder     string
	since      time.Time
	attachment *attachment
}

// patience is how long an operation waits for another one that is about to end before it says "busy".
const patience = 500 * time.Millisecond

// table holds the entries of all VMs that are in use: locked, waited for, or running.
type table struct {
	mu      sync.Mutex
	entries map[microvm.ID]*entry
}

// acquire takes the lock of a VM for a named operation and returns the function that gives it back. With a wait of 0 it
// waits as long as the context lets it.
func (t *table) acquire(ctx context.Context, vm microvm.VM, op string, wait time.Duration) (release func(), err error) {
	t.mu.Lock()
	e := t.entries[vm.ID]
	if e == nil {
		e = &entry{lock: make(chan struct{}, 1)}
		t.entries[vm.ID] = e
	}
	e.users++
	t.mu.Unlock()

	var late <-chan time.Time
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case e.lock <- struct{}{}:
	case <-late:
		t.mu.Lock()
		holder, since := e.holder, e.since
		t.leave(vm.ID, e)
		t.mu.Unlock()
		return nil, fault.New(fault.Busy, "VM %s is busy: %s, %.0f s", vm.Name, holder, time.Since(since).Seconds()).
			WithHint("wait for it to end and try again")
	case <-ctx.Done():
		t.mu.Lock()
		t.leave(vm.ID, e)
		t.mu.Unlock()
		return nil, context.Cause(ctx)
	}
	t.mu.Lock()
	e.holder, e.since = op, time.Now()
	t.mu.Unlock()
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		e.holder = ""
		<-e.lock
		t.leave(vm.ID, e)
	}, nil
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

// setAttachment records the VM's monitor. The caller holds the VM's lock, so the entry is there.
func (t *table) setAttachment(id microvm.ID, a *attachment) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.entries[id].attachment = a
}

// hold is a VM whose lock an operation holds. What changes a VM is a method of hold, so that nothing changes one
// without its lock.
type hold struct {
	*Service

	vm      microvm.VM // as it was when the lock was taken
	release func()
}

// claim resolves a reference and takes the VM's lock for a named operation. The caller releases the hold.
func (s *Service) claim(ctx context.Context, ref, op string) (*hold, error) {
	vm, err := s.resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	h, err := s.claimVM(ctx, vm, op, patience)
	if err != nil {
		return nil, err
	}
	if err := h.catchUp(ctx); err != nil {
		h.release()
		return nil, err
	}
	return h, nil
}

// catchUp records the end of the VM if it has been seen and not been recorded yet, so that no operation takes a VM that
// has just ended for a running one.
func (h *hold) catchUp(ctx context.Context) error {
	a := h.attachment()
	if a == nil {
		return nil
	}
	select {
	case <-a.done:
	default:
		return nil
	}
	if err := h.conclude(ctx, a, describe(a.exit)); err != nil {
		return err
	}
	vm, err := h.store.Get(ctx, h.vm.ID)
	if err == nil {
		h.vm = vm
	}
	return err
}

// claimVM takes the lock of a VM and reads the VM again, because it may have changed meanwhile.
func (s *Service) claimVM(ctx context.Context, vm microvm.VM, op string, wait time.Duration) (*hold, error) {
	release, err := s.table.acquire(ctx, vm, op, wait)
	if err != nil {
		return nil, err
	}
	again, err := s.store.Get(ctx, vm.ID)
	if err != nil {
		release()
		if fault.Is(err, fault.NotFound) {
			err = fault.New(fault.NotFound, "there is no VM %q any more", vm.Name).WithHint("list them: banger ps")
		}
		return nil, err
	}
	return &hold{Service: s, vm: again, release: release}, nil
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
