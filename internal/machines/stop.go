package machines

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"banger/internal/fault"
	"banger/internal/guestlink"
	"banger/internal/guestproto"
	"banger/internal/microvm"
	"banger/internal/progress"
	"banger/internal/store"
)

// askTimeout bounds how long the agent may take to accept a shutdown. An unreachable guest costs no more than this.
const askTimeout = 2 * time.Second

// Stop shuts a VM down: the guest flushes its file systems and powers off; if that takes longer than the timeout, it is
// killed, which is no error. Stopping one that does not run is no error.
func (s *Service) Stop(ctx context.Context, ref string, timeout time.Duration, report progress.Sink) (Info, error) {
	h, err := s.claim(ctx, ref, "stop")
	if err != nil {
		return Info{}, err
	}
	defer h.release()
	if err := forgetSuspended(ctx, h, "stopped while it was suspended"); err != nil {
		return Info{}, err
	}
	if h.vm.State.Live() {
		end := report.Stage("shut down")
		err = h.stop(ctx, timeout)
		end(err)
		if err != nil {
			return Info{}, err
		}
	}
	return h.info(ctx)
}

// stop ends a live VM. Once begun it goes on to the end, whatever the caller does.
func (h *hold) stop(ctx context.Context, timeout time.Duration) error {
	ctx = context.WithoutCancel(ctx)
	a := h.attachment()
	if err := h.store.SetState(ctx, h.vm.ID, store.Change{To: microvm.Stopping}); err != nil {
		return err
	}
	cause := "stopped"
	if a != nil {
		if !h.shutdown(ctx, a, timeout) {
			cause = "stopped; the guest did not shut down in time and was killed"
		}
		if err := h.end(ctx, a); err != nil {
			return err
		}
	}
	return h.conclude(ctx, a, cause)
}

// shutdown asks the guest to power off and reports whether it did so in time.
func (h *hold) shutdown(ctx context.Context, a *attachment, timeout time.Duration) bool {
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	if st, _ := a.get(); st.Paused {
		resume, cancel := context.WithTimeout(ctx, askTimeout)
		err := a.client.Resume(resume)
		cancel()
		if err != nil {
			return false
		}
	}
	asked := time.Now()
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	err := guestlink.NewClient(a.client).Shutdown(ask, guestproto.PowerOff, timeout)
	cancel()
	if err != nil {
		h.log.WarnContext(ctx, "ask guest to shut down", "vm", a.id, "err", err)
		select {
		case <-a.done: // it was quicker than its answer
			return true
		case <-time.After(askTimeout - time.Since(asked)): // it takes the link along when it goes down at once
			return false
		}
	}
	select {
	case <-a.done:
		return true
	case <-deadline.C:
		return false
	case <-h.interrupted:
		return false
	}
}

// Delete removes a VM and every trace of it. A VM that runs is refused unless force is set. Once begun it goes on to the
// end, whatever the caller does; every part of it is tried. With force, an operation that is under way is interrupted.
func (s *Service) Delete(ctx context.Context, ref string, force bool) error {
	vm, err := s.resolve(ctx, ref)
	if err != nil {
		return err
	}
	c := claimant{op: "delete", wait: patience}
	if force {
		c.wait, c.urgent = undoTimeout, true
	}
	h, err := s.claimCaughtUp(ctx, vm, c)
	if force && fault.Is(err, fault.NotFound) {
		return nil // it was being created, and what was interrupted has removed it
	}
	if err != nil {
		return err
	}
	defer h.release()
	if name := h.vm.Name; h.vm.State.HasProcess() && !force {
		return fault.New(fault.Precondition, "delete VM %s: it is %s", name, h.vm.State).
			WithHint("stop it first: banger stop %s; or delete it as it is: banger vm delete --force %s", name, name)
	}
	return h.delete(context.WithoutCancel(ctx))
}

// delete removes the VM.
func (h *hold) delete(ctx context.Context) error {
	var errs []error
	a := h.attachment()
	if a != nil { // in any state: recovery may have found a process that should not be
		errs = append(errs, h.end(ctx, a))
	}
	if h.vm.State.HasProcess() {
		errs = append(errs, h.conclude(ctx, a, "killed"))
	}
	if h.vm.State != microvm.Deleting {
		if err := h.store.SetState(ctx, h.vm.ID, store.Change{To: microvm.Deleting}); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	dirs := h.dirs()
	if err := dirs.KillMonitor(killTimeout); err != nil {
		// Disks that a process may still write are kept; recovery tries again.
		return errors.Join(append(errs, err)...)
	}
	removed := errors.Join(removeRuntime(dirs), os.RemoveAll(dirs.State))
	errs = append(errs, removed)
	if removed == nil {
		errs = append(errs, h.store.Remove(ctx, h.vm.ID))
	}
	h.log.InfoContext(ctx, "VM deleted", "vm", h.vm.ID, "name", h.vm.Name)
	return errors.Join(errs...)
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
