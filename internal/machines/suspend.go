package machines

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"banger/internal/fault"
	"banger/internal/guestlink"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
	"banger/internal/store"
)

// A VM with a limit for it is suspended when nothing happens in it: it is saved as a point in its own directory and its
// processes end. Its disks become the point's, so that its next start goes on from there, as the same machine: with its boot id and
// keys. Whoever wants to reach its guest starts it (Guest). The VM stands still from before it is saved, so that nothing can
// change afterwards; if the daemon is killed meanwhile, it goes on, or has stopped and goes on at its next start.

// suspendedDir is the directory of that point in the VM's.
const suspendedDir = "suspended"

// suspendTimeout bounds the saving of a VM that is suspended.
const suspendTimeout = 2 * time.Minute

// suspend suspends a VM because its monitor has told that it is idle. An operation that has the VM in hand goes before.
func suspend(ctx context.Context, s *core, id microvm.ID) {
	h, err := s.claimVM(ctx, microvm.VM{ID: id}, claimant{op: opSuspend, wait: glance})
	if err != nil {
		return // somebody does something with it: it is not idle
	}
	defer h.release()
	a := h.attachment()
	if a == nil || h.vm.State != microvm.Running || ended(a) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, suspendTimeout)
	defer cancel()
	ctx, stop := h.interruptible(ctx)
	defer stop()
	if err := suspendHeld(ctx, h, a); err != nil {
		s.log.WarnContext(ctx, "VM is not suspended", "vm", id, "err", err)
		if err := unsuspend(context.WithoutCancel(ctx), h, a); err != nil {
			s.log.ErrorContext(ctx, "let a VM go on that was not suspended", "vm", id, "err", err)
		}
	}
}

const opSuspend = "suspend"

// suspendHeld suspends the held VM. After an error it is still there, standing still.
func suspendHeld(ctx context.Context, h *hold, a *attachment) error {
	dir := filepath.Join(h.dirs().State, suspendedDir)
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove an old point: %w", err)
	}
	if err := admit(h.config.VMs, minFree+a.launch.Machine.Memory, "the memory of VM "+h.vm.Name); err != nil {
		return err
	}
	flush, cancel := context.WithTimeout(ctx, askTimeout)
	_ = guestlink.NewClient(a.client).Sync(flush) // for a point that can't be used some day
	cancel()
	if err := a.client.Pause(ctx); err != nil {
		return err
	}
	if err := a.waitPaused(ctx, true); err != nil { // from now on nobody is let in
		return err
	}
	_, saved, err := savePoint(ctx, h, a, dir)
	if err == nil && saved.Attached > 0 {
		err = fault.New(fault.Busy, "somebody has come meanwhile")
	}
	if err != nil {
		return err
	}
	if err := writeOrigin(h, origin{Point: dir, Same: true}); err != nil {
		return err
	}
	done := context.WithoutCancel(ctx)
	if err := errors.Join(h.end(done, a), h.dirs().KillMonitor(killTimeout), removeRuntime(h.dirs())); err != nil {
		return err
	}
	for _, path := range h.diskPaths(h.vm.ID) {
		copied := filepath.Join(dir, filepath.Base(path))
		if err := errors.Join(os.Rename(copied, path), os.Link(path, copied)); err != nil {
			h.log.ErrorContext(ctx, "take over the disks of a suspended VM", "vm", h.vm.ID, "err", err) // its next start boots
		}
	}
	h.log.InfoContext(ctx, "VM suspended", "vm", h.vm.ID)
	return h.store.SetState(done, h.vm.ID, store.Change{To: microvm.Suspended, Cause: "nothing happened in it"})
}

// unsuspend lets a VM go on that was not suspended. One whose processes have ended is recorded as stopped; if it was saved by then,
// it goes on from there when it is started.
func unsuspend(ctx context.Context, h *hold, a *attachment) error {
	if ended(a) {
		return h.conclude(ctx, a, "it was about to be suspended")
	}
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	return errors.Join(forgetOrigin(h), a.client.Resume(ctx), a.waitPaused(ctx, false))
}

// forgetSuspended makes a suspended VM a stopped one: what it had in memory only is gone.
func forgetSuspended(ctx context.Context, h *hold, cause string) error {
	if h.vm.State != microvm.Suspended {
		return nil
	}
	err := errors.Join(forgetOrigin(h), os.RemoveAll(filepath.Join(h.dirs().State, suspendedDir)))
	if err == nil {
		err = h.store.SetState(ctx, h.vm.ID, store.Change{To: microvm.Stopped, Cause: cause})
	}
	if err == nil {
		h.vm.State = microvm.Stopped
	}
	return err
}

// wakeTimeout is how long a VM that is being suspended may take until it can be woken.
const wakeTimeout = 30 * time.Second

// reach is running, for somebody for whom a suspended VM starts. One that is being suspended is waited for.
func reach(ctx context.Context, s *core, ref string) (microvm.VM, *attachment, error) {
	vm, a, err := s.running(ctx, ref)
	if err == nil || vm.Spec.AutoSuspend <= 0 || fault.Is(err, fault.NotFound) {
		return vm, a, err
	}
	h, claimed := s.claimVM(ctx, vm, claimant{op: "wake", wait: wakeTimeout})
	if claimed != nil {
		return vm, nil, claimed
	}
	defer h.release()
	if h.vm.State == microvm.Suspended {
		if err := h.start(ctx, nil); err != nil {
			return vm, nil, err
		}
	}
	return s.running(ctx, string(vm.ID))
}

// noticeIdle suspends a VM when its monitor says, once more, that nothing happens in it.
func noticeIdle(s *core, a *attachment, before, now monitorlink.Status) {
	if now.Idle > before.Idle && now.Settings.AutoSuspend > 0 {
		_ = s.spawn(func(ctx context.Context) { suspend(ctx, s, a.id) }) // the daemon ends: the next one does
	}
}
