package machines

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/guestlink"
	"banger/internal/guestproto"
	"banger/internal/microvm"
	"banger/internal/progress"
	"banger/internal/store"
)

// Restart stops a VM as Stop does and starts it again. One that does not run is just started.
func (s *Service) Restart(ctx context.Context, ref string, timeout time.Duration, report progress.Sink) (Info, error) {
	h, err := s.claim(ctx, ref, "restart")
	if err != nil {
		return Info{}, err
	}
	defer h.release()
	if err := forgetSuspended(ctx, h, "restarted while it was suspended"); err != nil {
		return Info{}, err
	}
	if h.vm.State.Live() {
		end := report.Stage("shut down")
		err = h.stop(ctx, timeout)
		end(err)
		if err != nil {
			return Info{}, err
		}
		if h.vm, err = h.store.Get(ctx, h.vm.ID); err != nil {
			return Info{}, err
		}
	}
	if err := h.start(ctx, report); err != nil {
		return Info{}, err
	}
	return h.info(ctx)
}

// Kill ends a VM at once: its state becomes stopped. What is under way with it is interrupted. Killing one that does not
// run is no error. A signal other than SIGKILL goes to the VMM process, which does with it what it does.
func (s *Service) Kill(ctx context.Context, ref string, signal unix.Signal) (Info, error) {
	if signal != 0 && signal != unix.SIGKILL {
		return s.signal(ctx, ref, signal)
	}
	h, err := s.seize(ctx, ref, "kill")
	if err != nil {
		return Info{}, err
	}
	defer h.release()
	if err := forgetSuspended(context.WithoutCancel(ctx), h, "killed"); err != nil {
		return Info{}, err
	}
	if h.vm.State.HasProcess() {
		ctx := context.WithoutCancel(ctx)
		a := h.attachment()
		var ended error
		if a != nil {
			ended = h.end(ctx, a)
		}
		if err := errors.Join(ended, h.conclude(ctx, a, "killed")); err != nil {
			return Info{}, err
		}
	}
	return h.info(ctx)
}

// signal sends a signal to the VMM of a VM.
func (s *core) signal(ctx context.Context, ref string, signal unix.Signal) (Info, error) {
	if err := guestproto.CheckSignal(int(signal)); err != nil {
		return Info{}, fault.New(fault.Invalid, "%w", err)
	}
	vm, err := s.resolve(ctx, ref)
	if err != nil {
		return Info{}, err
	}
	a := s.table.attachment(vm.ID)
	if a == nil {
		return Info{}, fault.New(fault.Precondition, "VM %s is not running: it is %s", vm.Name, vm.State)
	}
	if err := a.client.Signal(ctx, int(signal)); err != nil {
		return Info{}, err
	}
	return s.infoOf(vm), nil
}

// Pause freezes a running VM; its memory is kept. Pausing a paused one is no error.
func (s *Service) Pause(ctx context.Context, ref string) (Info, error) {
	return s.freeze(ctx, ref, "pause", microvm.Paused)
}

// Resume lets a paused VM go on, with its clock set right. Resuming one that runs is no error.
func (s *Service) Resume(ctx context.Context, ref string) (Info, error) {
	return s.freeze(ctx, ref, "resume", microvm.Running)
}

// freezeTimeout is how long a monitor may take to pause or resume its VM.
const freezeTimeout = 10 * time.Second

// freeze pauses or resumes. Once begun it goes on to the end, whatever the caller does, so that what is recorded is what
// the VM does. Should that differ nevertheless, the VM is made to do again what is asked for.
func (s *core) freeze(ctx context.Context, ref, op string, to microvm.State) (Info, error) {
	h, err := s.claim(ctx, ref, op)
	if err != nil {
		return Info{}, err
	}
	defer h.release()
	a := h.attachment()
	if !h.vm.State.Live() || a == nil {
		return Info{}, fault.New(fault.Precondition, "%s VM %s: it is %s", op, h.vm.Name, h.vm.State).
			WithHint("see its state: banger vm show %s", h.vm.Name)
	}
	ctx, cancel := h.interruptible(context.WithoutCancel(ctx))
	defer cancel()
	// When it is done it is seen to be done: an exec that comes right after a resume finds the VM running.
	ask := func(do func(context.Context) error, paused bool) error {
		ctx, cancel := context.WithTimeoutCause(ctx, freezeTimeout,
			fault.New(fault.Timeout, "%s VM %s: its monitor does not answer", op, h.vm.Name).WithHint("end it: banger vm kill %s", h.vm.Name))
		defer cancel()
		if err := do(ctx); err != nil {
			return err
		}
		return a.waitPaused(ctx, paused)
	}
	act, undo, paused := a.client.Pause, a.client.Resume, true
	if to == microvm.Running {
		act, undo, paused = undo, act, false
	}
	if err := ask(act, paused); err != nil {
		return Info{}, err
	}
	if h.vm.State == to {
		return h.info(ctx)
	}
	if err := h.store.SetState(ctx, h.vm.ID, store.Change{To: to}); err != nil {
		return Info{}, errors.Join(err, ask(undo, !paused))
	}
	if to == microvm.Running {
		set, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		now := guestproto.Identity{TimeNS: time.Now().UnixNano()}
		if err := guestlink.NewClient(a.client).Configure(set, now); err != nil {
			h.log.WarnContext(ctx, "set clock of resumed guest", "vm", h.vm.ID, "err", err)
		}
	}
	return h.info(ctx)
}

// portPoll is how long Wait lets a guest alone that did not answer.
const portPoll = 200 * time.Millisecond

// Wait returns when the VM meets a condition: running, ready (the agent answers), stopped, deleted, or port:N (something
// in the guest listens on the TCP port). The context is the only deadline. A VM that is deleted meets no other condition.
func (s *Service) Wait(ctx context.Context, ref, condition string) (Info, error) {
	met, err := s.condition(condition)
	if err != nil {
		return Info{}, err
	}
	vm, err := s.resolve(ctx, ref)
	if err != nil {
		return Info{}, err
	}
	for {
		changed := s.changes.next()
		info, err := s.Get(ctx, string(vm.ID))
		gone := fault.Is(err, fault.NotFound)
		switch {
		case gone && condition == "deleted":
			return Info{VM: vm}, nil
		case gone:
			return Info{}, fault.New(fault.NotFound, "VM %s was deleted while it was waited for", vm.Name)
		case err != nil:
			return Info{}, err
		}
		again, ok := met(ctx, info)
		if ok {
			return info, nil
		}
		select {
		case <-changed:
		case <-again:
		case <-ctx.Done():
			return Info{}, fault.New(fault.KindOf(ctx.Err()), "wait for VM %s to be %s: it is %s: %w",
				vm.Name, condition, info.State, ctx.Err()).WithHint("look at its console: banger logs %s", vm.Name)
		}
	}
}

// condition returns a test, which may also say when it wants to be asked again although nothing has changed.
func (s *core) condition(text string) (func(context.Context, Info) (again <-chan time.Time, met bool), error) {
	state := func(want microvm.State) func(context.Context, Info) (<-chan time.Time, bool) {
		return func(_ context.Context, info Info) (<-chan time.Time, bool) { return nil, info.State == want }
	}
	switch text {
	case "running":
		return state(microvm.Running), nil
	case "stopped":
		return state(microvm.Stopped), nil
	case "deleted":
		return func(context.Context, Info) (<-chan time.Time, bool) { return nil, false }, nil
	case "ready":
		return s.ask(func(ctx context.Context, c *guestlink.Client) error { return c.Ping(ctx) }), nil
	}
	port, isPort := strings.CutPrefix(text, "port:")
	if n, err := strconv.ParseUint(port, 10, 16); isPort && err == nil && n > 0 {
		return listens(s, uint16(n)), nil
	}
	return nil, fault.New(fault.Invalid, "bad condition %q", text).WithHint("use running, ready, stopped, deleted or port:N")
}

// ask makes a condition of a question to the guest.
func (s *core) ask(question func(context.Context, *guestlink.Client) error) func(context.Context, Info) (<-chan time.Time, bool) {
	return func(ctx context.Context, info Info) (<-chan time.Time, bool) {
		a := s.table.attachment(info.ID)
		if info.State != microvm.Running || a == nil {
			return nil, false
		}
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		if question(ctx, guestlink.NewClient(a.client)) == nil {
			return nil, true
		}
		return time.After(portPoll), false
	}
}

// HealthCheck is one thing that was looked at.
type HealthCheck struct {
	Name   string
	Err    error // nil: it is well
	Detail string
}

// Health asks the VM's monitor and agent how they do.
func (s *Service) Health(ctx context.Context, ref string) ([]HealthCheck, error) {
	vm, err := s.resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	a := s.table.attachment(vm.ID)
	checks := []HealthCheck{{Name: "state", Detail: string(vm.State)}}
	if vm.State != microvm.Running || a == nil {
		checks[0].Err = fault.New(fault.Precondition, "it is %s", vm.State).WithHint("start it: banger start %s", vm.Name)
		return checks, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	st, _ := a.get()
	monitor := HealthCheck{Name: "monitor", Detail: "pid " + strconv.Itoa(st.MonitorPid)}
	if w, err := a.client.Watch(ctx); err != nil {
		monitor.Err = err
	} else {
		_ = w.Close()
	}
	began := time.Now()
	agent := HealthCheck{Name: "agent", Err: guestlink.NewClient(a.client).Ping(ctx)}
	if agent.Err == nil {
		agent.Detail = "answers in " + time.Since(began).Round(100*time.Microsecond).String()
	}
	return append(checks, monitor, agent), nil
}
