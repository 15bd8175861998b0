package machines

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"banger/internal/journal"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
	"banger/internal/store"
)

// presence is what recovery finds of a VM's process.
type presence int

const (
	absent presence = iota // no process holds the VM's lock
	silent                 // a process holds it and does not answer
	alive                  // a monitor answers
)

// action is what recovery does with a VM.
type action int

const (
	keep     action = iota // it is as recorded
	adopt                  // take the living monitor over
	settle                 // end what there is and record it as stopped
	finish                 // go on with the stop that was under way
	discard                // remove every trace
	endStray               // end a process that should not be, keep the record
)

// recovery is the table of what is done, for each recorded state and each presence.
var recovery = map[microvm.State][3]action{ //nolint:gochecknoglobals // a constant table
	//                  absent   silent    alive
	microvm.Creating:  {discard, discard, discard},
	microvm.Stopped:   {keep, endStray, endStray},
	microvm.Starting:  {settle, settle, adopt},
	microvm.Running:   {settle, settle, adopt},
	microvm.Paused:    {settle, settle, adopt},
	microvm.Suspended: {keep, endStray, endStray},
	microvm.Stopping:  {settle, settle, finish},
	microvm.Deleting:  {discard, discard, discard},
	microvm.Failed:    {keep, endStray, endStray},
}

// Bounds of recovery.
const (
	recoverTimeout = 5 * time.Second // for one monitor to answer: one that does not is killed, and hosts can be busy
	recoverAtOnce  = 16              // VMs looked at side by side
	stopTimeout    = 10 * time.Second
)

// Recover brings records and reality together after the daemon was away: it adopts living monitors, records the end of
// dead ones, ends half-done work and removes what belongs to no VM. Run must be running. One VM that cannot be mended
// does not keep the others from it.
func (s *Service) Recover(ctx context.Context) error {
	strays, _, unseen := s.strays(ctx)
	vms, err := s.store.List(ctx)
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(recoverAtOnce)
	for _, vm := range vms {
		g.Go(func() error {
			h, err := s.claimVM(ctx, vm, claimant{op: "recover"})
			if err == nil {
				// The client that an ephemeral VM was made for went with the daemon.
				err = reconcile(ctx, h, vm.Ephemeral && vm.State != microvm.Failed)
				h.release()
			}
			if err != nil {
				return fmt.Errorf("recover VM %s: %w", vm.Name, err)
			}
			return nil
		})
	}
	errs := []error{g.Wait(), unseen, s.templates.sweep(), s.config.sweepForks()}
	for _, f := range strays {
		if f.Remedy == "" {
			errs = append(errs, s.remove(f))
		}
	}
	return errors.Join(errs...)
}

// reconcile looks for the process of a VM that has no attachment and does what the table says, or discards the VM
// whatever it says.
func reconcile(ctx context.Context, h *hold, discarded bool) error {
	held, err := h.dirs().Alive()
	if err != nil {
		return err
	}
	found := absent
	var a *attachment
	if held {
		found = silent
		// A launch record that cannot be read takes away nothing that a running VM needs.
		launch, _ := h.dirs().ReadLaunch()
		connect, cancel := context.WithTimeout(ctx, recoverTimeout)
		a, err = h.attach(connect, launch)
		cancel()
		if err == nil {
			found = alive
		}
	}
	act := recovery[h.vm.State][found]
	if discarded {
		act = discard
	}
	if act != keep {
		h.log.InfoContext(ctx, "recover VM", "vm", h.vm.ID, "state", h.vm.State, "found", int(found), "action", int(act))
	}
	return h.recoverBy(ctx, act, a)
}

func (h *hold) recoverBy(ctx context.Context, act action, a *attachment) error {
	switch act {
	case keep:
		return removeRuntime(h.dirs()) // of a process whose end was under way when the last daemon was killed
	case adopt:
		return h.adopt(ctx, a)
	case finish:
		h.shutdown(ctx, a, stopTimeout)
		return errors.Join(h.end(ctx, a), h.conclude(ctx, a, "stopped"))
	case discard:
		return h.delete(ctx)
	case settle, endStray:
		var errs []error
		if a != nil {
			errs = append(errs, h.end(ctx, a))
		}
		if act == settle {
			errs = append(errs, h.conclude(ctx, a, lastWord(h.dirs())))
		} else {
			errs = append(errs, h.dirs().KillMonitor(killTimeout), removeRuntime(h.dirs()))
		}
		return errors.Join(errs...)
	}
	return nil
}

// lastWord describes how a VM ended while no daemon looked.
func lastWord(d monitorlink.Dirs) string { return describe(d.ReadExit()) }

// adopt takes over a living monitor. A VM whose start was under way is given up: nobody waits for it any more, and
// whether it would have come up is not known.
func (h *hold) adopt(ctx context.Context, a *attachment) error {
	st, _ := a.get()
	if st.Phase != monitorlink.Ready || st.Parked {
		return errors.Join(h.end(ctx, a), h.conclude(ctx, a, "its start was interrupted"))
	}
	state := h.vm.State
	if state == microvm.Starting {
		state = microvm.Running
		fillHome(ctx, h, a, gather(ctx, h), nil)
		if err := startMain(ctx, h, a, nil); err != nil {
			return errors.Join(err, h.end(ctx, a), h.conclude(ctx, a, "its start was interrupted"))
		}
		if err := forgetOrigin(h); err != nil { // if it had one, it has been restored
			return err
		}
		if err := h.store.SetState(ctx, h.vm.ID, store.Change{To: state, BootID: st.BootID}); err != nil {
			return err
		}
	}
	if o, _, err := readOrigin(h); err == nil && o != nil && o.Same && state == microvm.Running { // it was about to be suspended
		if err := unsuspend(ctx, h, a); err != nil {
			return err
		}
		st, _ = a.get()
	}
	is := microvm.Running
	if st.Paused {
		is = microvm.Paused
	}
	if state != is {
		if err := h.store.SetState(ctx, h.vm.ID, store.Change{To: is}); err != nil {
			return err
		}
	}
	return h.store.SetState(ctx, h.vm.ID, store.Change{Event: journal.Adopted, Cause: "it ran on while the daemon was away"})
}
