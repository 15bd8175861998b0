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
	vm, release, err := s.claim(ctx, ref, "stop")
	if err != nil {
		return Info{}, err
	}
	defer release()
	if vm.State.Live() {
		end := report.Stage("shut down")
		err = s.stop(ctx, vm, timeout)
		end(err)
		if err != nil {
			return Info{}, err
		}
		if vm, err = s.store.Get(ctx, vm.ID); err != nil {
			return Info{}, err
		}
	}
	return s.info(vm), nil
}

// claim resolves a reference, takes the VM's lock and reads the VM again, because it may have changed meanwhile.
func (s *Service) claim(ctx context.Context, ref, op string) (microvm.VM, func(), error) {
	vm, err := s.resolve(ctx, ref)
	if err != nil {
		return vm, nil, err
	}
	release, err := s.acquire(ctx, vm, op, patience)
	if err != nil {
		return vm, nil, err
	}
	again, err := s.store.Get(ctx, vm.ID)
	if fault.Is(err, fault.NotFound) {
		err = fault.New(fault.NotFound, "there is no VM %q any more", vm.Name)
	}
	if err != nil {
		release()
		return vm, nil, err
	}
	return again, release, nil
}

// stop ends a live VM whose lock the caller holds. Once begun it goes on to the end, whatever the caller does.
func (s *Service) stop(ctx context.Context, vm microvm.VM, timeout time.Duration) error {
	ctx = context.WithoutCancel(ctx)
	a := s.attachment(vm.ID)
	if err := s.store.SetState(ctx, vm.ID, store.Change{To: microvm.Stopping}); err != nil {
		return err
	}
	cause := "stopped"
	if a != nil {
		if !s.shutdown(ctx, a, timeout) {
			cause = "stopped; the guest did not shut down in time and was killed"
		}
		if err := s.end(ctx, vm.ID, a); err != nil {
			return err
		}
	}
	return s.conclude(ctx, vm.ID, a, cause)
}

// shutdown asks the guest to power off and reports whether it did so in time.
func (s *Service) shutdown(ctx context.Context, a *attachment, timeout time.Duration) bool {
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
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	err := guestlink.NewClient(a.client).Shutdown(ask, guestproto.PowerOff)
	cancel()
	if err != nil {
		s.log.Warn("ask guest to shut down", "vm", a.id, "err", err)
		select {
		case <-a.done: // it was quicker than its answer
			return true
		default:
			return false
		}
	}
	select {
	case <-a.done:
		return true
	case <-deadline.C:
		return false
	}
}

// Delete removes a VM and every trace of it. A VM that runs is refused unless force is set. Once begun it goes on to the
// end, whatever the caller does; every part of it is tried.
func (s *Service) Delete(ctx context.Context, ref string, force bool) error {
	vm, release, err := s.claim(ctx, ref, "delete")
	if err != nil {
		return err
	}
	defer release()
	if vm.State.HasProcess() && !force {
		return fault.New(fault.Precondition, "delete VM %s: it is %s", vm.Name, vm.State).
			WithHint("stop it first: banger stop %s; or delete it as it is: banger vm delete --force %s", vm.Name, vm.Name)
	}
	return s.delete(context.WithoutCancel(ctx), vm)
}

// delete removes a VM whose lock the caller holds.
func (s *Service) delete(ctx context.Context, vm microvm.VM) error {
	var errs []error
	if vm.State.HasProcess() {
		a := s.attachment(vm.ID)
		if a != nil {
			errs = append(errs, s.end(ctx, vm.ID, a))
		}
		errs = append(errs, s.conclude(ctx, vm.ID, a, "killed"))
	}
	if vm.State != microvm.Deleting {
		if err := s.store.SetState(ctx, vm.ID, store.Change{To: microvm.Deleting}); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	dirs := s.dirs(vm.ID)
	if err := dirs.KillMonitor(killTimeout); err != nil {
		// Disks that a process may still write are kept; recovery tries again.
		return errors.Join(append(errs, err)...)
	}
	removed := errors.Join(removeRuntime(dirs), os.RemoveAll(dirs.State))
	errs = append(errs, removed)
	if removed == nil {
		errs = append(errs, s.store.Remove(ctx, vm.ID))
	}
	s.log.Info("VM deleted", "vm", vm.ID, "name", vm.Name)
	return errors.Join(errs...)
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
