package machines

import (
	"context"
	"time"

	"banger/internal/fault"
	"banger/internal/microvm"
)

// entry is what the service keeps in memory of one VM.
type entry struct {
	lock  chan struct{} // capacity 1: full while an operation holds the VM
	users int           // operations that hold or await the lock, guarded by Service.mu

	// Guarded by Service.mu.
	holder     string
	since      time.Time
	attachment *attachment
}

// patience is how long an operation waits for another one that is about to end before it says "busy".
const patience = 500 * time.Millisecond

// acquire takes the lock of a VM for a named operation and returns the function that gives it back. With a wait of 0 it
// waits as long as the context lets it.
func (s *Service) acquire(ctx context.Context, vm microvm.VM, op string, wait time.Duration) (release func(), err error) {
	s.mu.Lock()
	e := s.entries[vm.ID]
	if e == nil {
		e = &entry{lock: make(chan struct{}, 1)}
		s.entries[vm.ID] = e
	}
	e.users++
	s.mu.Unlock()

	var late <-chan time.Time
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case e.lock <- struct{}{}:
	case <-late:
		s.mu.Lock()
		holder, since := e.holder, e.since
		s.leave(vm.ID, e)
		s.mu.Unlock()
		return nil, fault.New(fault.Busy, "VM %s is busy: %s, %.0f s", vm.Name, holder, time.Since(since).Seconds()).
			WithHint("wait for it to end and try again")
	case <-ctx.Done():
		s.mu.Lock()
		s.leave(vm.ID, e)
		s.mu.Unlock()
		return nil, context.Cause(ctx)
	}
	s.mu.Lock()
	e.holder, e.since = op, time.Now()
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		e.holder = ""
		<-e.lock
		s.leave(vm.ID, e)
	}, nil
}

// leave forgets an entry that nobody needs. Service.mu is held.
func (s *Service) leave(id microvm.ID, e *entry) {
	e.users--
	if e.users == 0 && e.attachment == nil {
		delete(s.entries, id)
	}
}

// attachment returns the VM's living monitor, if it has one.
func (s *Service) attachment(id microvm.ID) *attachment {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[id]; e != nil {
		return e.attachment
	}
	return nil
}

// setAttachment records the VM's monitor. The caller holds the VM's lock, so the entry is there.
func (s *Service) setAttachment(id microvm.ID, a *attachment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries[id].attachment = a
}
