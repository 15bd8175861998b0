package machines

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
	"banger/internal/store"
)

// attachment is the daemon's side of one living monitor.
type attachment struct {
	id     microvm.ID
	dirs   monitorlink.Dirs
	launch monitorlink.Launch
	client *monitorlink.Client
	done   chan struct{} // closed when the monitor has ended; exit is then set
	exit   monitorlink.Exit

	mu      sync.Mutex
	status  monitorlink.Status
	changed chan struct{} // closed and replaced at each change
}

func (a *attachment) get() (monitorlink.Status, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.status, a.changed
}

func (a *attachment) set(st monitorlink.Status) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status = st
	close(a.changed)
	a.changed = make(chan struct{})
}

// attach connects to the monitor of the VM and begins to follow it. The context bounds the connecting only.
func (h *hold) attach(ctx context.Context, launch monitorlink.Launch) (*attachment, error) {
	dirs := h.dirs()
	a := &attachment{
		id: h.vm.ID, dirs: dirs, launch: launch, client: monitorlink.NewClient(dirs.Socket()),
		done: make(chan struct{}), changed: make(chan struct{}),
	}
	w, err := a.client.Watch(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = w.Close() })
	first, err := w.Next()
	if !stop() || err != nil {
		_ = w.Close()
		return nil, errors.Join(context.Cause(ctx), err)
	}
	a.status = first
	if err := h.spawn(func(ctx context.Context) { h.follow(ctx, a, w) }); err != nil {
		_ = w.Close()
		return nil, err
	}
	h.table.setAttachment(h.vm.ID, a)
	return a, nil
}

// follow keeps the attachment's status until the monitor ends, then records the end unless an operation does.
func (s *core) follow(ctx context.Context, a *attachment, w *monitorlink.Watch) {
	stop := context.AfterFunc(ctx, func() { _ = w.Close() })
	defer stop()
	defer w.Close() //nolint:errcheck // nothing to flush
	for {
		st, err := w.Next()
		if err == nil {
			before, _ := a.get()
			a.set(st)
			noticeIdle(s, a, before, st)
			if st.Exit == nil {
				continue
			}
			a.exit = *st.Exit
			break
		}
		if ctx.Err() != nil {
			return // the daemon ends; the VM does not
		}
		// The stream ended without a last word: the monitor was killed, and its VMM dies with it.
		if !errors.Is(err, io.EOF) {
			s.log.WarnContext(ctx, "follow monitor", "vm", a.id, "err", err)
		}
		if err := a.dirs.KillMonitor(killTimeout); err != nil {
			s.log.ErrorContext(ctx, "end monitor", "vm", a.id, "err", err)
		}
		a.exit = a.dirs.ReadExit()
		break
	}
	close(a.done)
	h, err := s.claimVM(ctx, microvm.VM{ID: a.id}, claimant{op: "record its end"})
	if err != nil {
		if ctx.Err() == nil && !fault.Is(err, fault.NotFound) { // neither does the daemon end nor is the VM gone
			s.log.ErrorContext(ctx, "record end of VM", "vm", a.id, "err", err)
		}
		return
	}
	defer h.release()
	switch {
	case h.attachment() != a:
	case h.vm.IsSpare():
		s.pool.takeAll(func(sp spare) bool { return sp.id == a.id })
		if err := h.delete(ctx); err != nil {
			s.log.ErrorContext(ctx, "end spare", "vm", a.id, "err", err)
		}
	default:
		if err := h.conclude(ctx, a, describe(a.exit)); err != nil {
			s.log.ErrorContext(ctx, "record end of VM", "vm", a.id, "err", err)
		}
	}
}

// killTimeout bounds the waiting for a killed process to be gone.
const killTimeout = 10 * time.Second

// conclude records that the VM does not run any more and removes what its processes left behind. The attachment, if there
// was one, is done.
func (h *hold) conclude(ctx context.Context, a *attachment, cause string) error {
	var errs []error
	if err := h.dirs().KillMonitor(killTimeout); err != nil {
		errs = append(errs, err)
	}
	if err := removeRuntime(h.dirs()); err != nil {
		errs = append(errs, err)
	}
	if h.vm.State.HasProcess() { // else it was a spare that nobody had started yet
		if err := h.store.SetState(ctx, h.vm.ID, store.Change{To: microvm.Stopped, Cause: cause}); err != nil {
			errs = append(errs, err)
		}
	}
	if a != nil {
		h.table.setAttachment(h.vm.ID, nil)
		h.log.InfoContext(ctx, "VM stopped", "vm", h.vm.ID, "cause", cause)
	}
	return errors.Join(errs...)
}

// describe words the end of a monitor for people.
func describe(e monitorlink.Exit) string {
	switch e.Cause {
	case "guest-shutdown":
		return "the guest shut down"
	case "guest-reset":
		return "the guest rebooted or its kernel panicked"
	case "killed":
		return "killed"
	case monitorlink.TTLExpired:
		return "its time to live was over"
	case monitorlink.IdleExpired:
		return "it was idle for too long"
	default:
		if e.Detail == "" {
			return string(e.Cause)
		}
		return string(e.Cause) + ": " + e.Detail
	}
}

// waitReady waits until the guest's agent has answered, or the monitor has ended.
func (a *attachment) waitReady(ctx context.Context) (monitorlink.Status, error) {
	for {
		st, changed := a.get()
		if st.Phase == monitorlink.Ready {
			return st, nil
		}
		select {
		case <-changed:
		case <-a.done:
			return st, &endedError{a.exit}
		case <-ctx.Done():
			return st, context.Cause(ctx)
		}
	}
}

// waitPaused waits until it is known here that the guest is paused, or is not; or that the monitor has ended.
func (a *attachment) waitPaused(ctx context.Context, paused bool) error {
	for {
		st, changed := a.get()
		if st.Paused == paused {
			return nil
		}
		select {
		case <-changed:
		case <-a.done:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// endedError says that a VM ended while it was being started.
type endedError struct{ exit monitorlink.Exit }

func (e *endedError) Error() string {
	text := e.exit.Detail
	if text == "" {
		text = describe(e.exit)
	}
	if e.exit.ConsoleTail != "" {
		text += "\nlast lines of the console:\n" + e.exit.ConsoleTail
	}
	return text
}

// hung reports whether the boot failed in a way that another boot may not: the guest never answered, or the VMM gave it
// up, as QEMU's backend does with a kernel that found no timer on a stalled host.
func (e *endedError) hung() bool {
	return e.exit.Cause == monitorlink.BootTimeout || e.exit.Cause == monitorlink.Cause(hypervisor.Crashed)
}

// fault classifies the end of a VM that was being started.
func (e *endedError) fault(name string) *fault.Error {
	kind := fault.Internal
	if e.exit.Cause == monitorlink.BootTimeout {
		kind = fault.Timeout
	}
	f := fault.New(kind, "start VM %s: %w", name, e)
	if e.exit.Hint != "" {
		return f.WithHint("%s", e.exit.Hint)
	}
	return f.WithHint("look at its console: banger logs %s", name)
}
