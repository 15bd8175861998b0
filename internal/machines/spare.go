package machines

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"banger/internal/fault"
	"banger/internal/guestlink"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
	"banger/internal/progress"
	"banger/internal/store"
)

// stageClaim is the stage of a start that takes the place of all others when there was a spare.
const stageClaim = "claim"

// makeSpare makes one spare like a VM, from the template with a key, and does not put it into the pool. On failure nothing of it is
// left.
func makeSpare(ctx context.Context, s *core, like microvm.VM, key string) (spare, error) {
	began := time.Now()
	p, err := openPoint(s.templates.dir(key))
	if err != nil {
		return spare{}, err
	}
	if err := admit(s.config.VMs, minFree, "a VM that is kept ready"); err != nil {
		return spare{}, err
	}
	spec := plainSpec(like.Spec)
	vm, err := makeVM(ctx, s, microvm.VM{Name: microvm.SparePrefix + string(microvm.NewID()), Spec: spec, Ephemeral: true},
		func(ctx context.Context, h *hold, back *undo) error {
			if err := s.store.SetImage(ctx, h.vm.ID, like.ImageDigest, spec); err != nil {
				return err
			}
			h.vm.ImageDigest = like.ImageDigest
			return h.makeDisks(ctx, back, &p, true)
		})
	if err != nil {
		return spare{}, err
	}
	h, err := s.claimVM(ctx, vm, claimant{op: "make ready"})
	if err != nil {
		return spare{}, err
	}
	defer h.release()
	home, err := park(ctx, h)
	if err != nil {
		erase, cancel := context.WithTimeout(context.WithoutCancel(ctx), eraseTimeout)
		defer cancel()
		return spare{}, errors.Join(err, h.delete(erase))
	}
	sp := spare{id: vm.ID, key: key, template: p.Created, home: home, since: began}
	if a := h.attachment(); a != nil {
		st, _ := a.get()
		sp.memory = proportional(st.MonitorPid, st.VMMPid)
	}
	return sp, nil
}

// plainSpec leaves out of a specification what is one VM's own.
func plainSpec(spec microvm.Spec) microvm.Spec {
	spec.Init, spec.Main = microvm.Init(initOf(spec)), nil // a main process decides on the init
	spec.Env, spec.Labels, spec.Lifetime, spec.Publish = nil, nil, microvm.Lifetime{}, nil
	return spec
}

// park restores a spare, warms and pauses it, and returns the sum of what it has in its home directory.
func park(ctx context.Context, h *hold) (home string, err error) {
	launch, err := h.plan(ctx, nil)
	if err != nil {
		return "", err
	}
	from, err := continues(ctx, h, launch, nil)
	if err == nil && from == nil {
		err = fault.New(fault.NotFound, "its template can't be used")
	}
	if err == nil {
		err = from.take(h, &launch)
	}
	if err != nil {
		return "", err
	}
	launch.Restore.Parked = true
	launch.Machine.Name = "pool" // the process keeps its name when somebody claims it
	collected := gather(ctx, h)
	var back undo
	a, err := h.launch(ctx, launch, &back)
	if err != nil {
		return "", err // whoever made it deletes it
	}
	if _, err = a.waitReady(ctx); err != nil {
		return "", err
	}
	guest := guestlink.NewClient(a.client)
	if collected != nil {
		files := collected()
		if err := files.send(ctx, guest); err != nil {
			return "", err
		}
		home = files.sum()
		if err := os.WriteFile(filepath.Join(h.dirs().State, homeMark), nil, 0o600); err != nil {
			return "", fmt.Errorf("note that its home is filled: %w", err)
		}
	}
	warm(ctx, guest, h.vm)
	if err := a.client.Pause(ctx); err != nil {
		return "", err
	}
	if err := a.waitPaused(ctx, true); err != nil {
		return "", err
	}
	if !parked(h) {
		return "", &endedError{a.exit}
	}
	return home, forgetOrigin(h)
}

// parked reports whether the held VM has a monitor that waits to be claimed.
func parked(h *hold) bool {
	a := h.attachment()
	if a == nil || ended(a) {
		return false
	}
	st, _ := a.get()
	return st.Parked && st.Phase == monitorlink.Ready
}

// claimSpare makes a spare the VM that is wanted, if there is one like it. It returns no VM, and no error, if there is none; what
// is wrong with the request is told by whoever makes the VM then.
func claimSpare(ctx context.Context, s *core, wanted microvm.VM, report progress.Sink) (microvm.VM, error) {
	none := microvm.VM{}
	if s.pool.empty() {
		return none, nil
	}
	wanted.ID = microvm.NewID()
	h := &hold{core: s, vm: wanted}
	collected := gather(ctx, h)
	image, err := s.sources.Image(ctx, wanted.Spec.Image, report)
	if err != nil || suits(wanted.Spec, image) != nil {
		return none, nil //nolint:nilerr // as documented
	}
	wanted.Spec, wanted.ImageDigest = withImage(wanted.Spec, image), image.Digest
	h.vm = wanted
	p := s.templates.find(ctx, h, report)
	if p == nil {
		return none, nil
	}
	key := filepath.Base(p.dir)
	home := ""
	if collected != nil {
		files := collected()
		if files.err != nil || len(files.warnings) > 0 {
			return none, nil // they are told at a start
		}
		home = files.sum()
	}
	s.pool.touch(key)
	for {
		sp, found := s.pool.take(key, p.Created)
		if !found {
			return none, nil
		}
		vm, err := assume(ctx, s, sp, home, wanted)
		if err == nil {
			_ = s.spawn(func(ctx context.Context) { expireClaim(ctx, s, sp.id, claimPatience) }) // the daemon ends: recovery does it
			return vm, nil
		}
		if fault.Is(err, fault.Exists) && s.pool.put(sp) { // the name is taken, and the spare as good as before
			return none, err
		}
		s.pool.discard(context.WithoutCancel(ctx), s, sp.id)
		if !fault.Is(err, fault.Unavailable) {
			return none, err
		}
		s.log.WarnContext(ctx, "spare is not used", "vm", sp.id, "err", err)
	}
}

// claimPatience is how long a VM that was a spare may wait for its start.
const claimPatience = time.Minute

// expireClaim ends what waits for the start of a VM that was a spare, if nobody starts it: whoever created it went away in between.
// Then it is a stopped VM like any other.
func expireClaim(ctx context.Context, s *core, id microvm.ID, after time.Duration) {
	select {
	case <-time.After(after):
	case <-ctx.Done():
		return
	}
	h, err := s.claimVM(ctx, microvm.VM{ID: id}, claimant{op: "end what it waits with"})
	if err != nil {
		return // it is gone
	}
	defer h.release()
	if !parked(h) {
		return
	}
	a := h.attachment()
	if err := errors.Join(h.end(ctx, a), h.conclude(ctx, a, "nobody started it")); err != nil {
		s.log.ErrorContext(ctx, "end a VM that nobody started", "vm", id, "err", err)
	}
}

// assume records that a spare is the VM that is wanted. After an error it is to be ended; fault.Unavailable: another one may do.
func assume(ctx context.Context, s *core, sp spare, home string, wanted microvm.VM) (microvm.VM, error) {
	h, err := s.claimVM(ctx, microvm.VM{ID: sp.id}, claimant{op: "create"})
	if err != nil {
		return microvm.VM{}, fault.New(fault.Unavailable, "take it: %w", err)
	}
	defer h.release()
	wanted.ID, wanted.State, wanted.CreatedAt = sp.id, microvm.Stopped, time.Time{}
	switch {
	case !parked(h):
		err = fault.New(fault.Unavailable, "it has ended")
	case sp.home != home:
		err = fault.New(fault.Unavailable, "other files are wanted in its home directory than it has")
	default:
		err = s.reserve(ctx, &wanted)
	}
	if err == nil {
		// Images in use are kept, and it is in use from now on.
		if _, err = s.sources.ImageByDigest(ctx, wanted.ImageDigest); err == nil {
			s.log.InfoContext(ctx, "VM created from a spare", "vm", wanted.ID, "name", wanted.Name)
			return wanted, nil
		}
	}
	return microvm.VM{}, err
}

// wake starts a VM that was a spare, if it still waits for that. False without an error: it does not, and is to be booted.
func wake(ctx context.Context, h *hold, report progress.Sink) (bool, error) {
	a := h.attachment()
	if a == nil {
		return false, nil
	}
	var err error = fault.New(fault.Unavailable, "it has ended")
	entered := false
	if parked(h) {
		if err = h.checkPorts(ctx); err == nil {
			err = h.enter(ctx, report)
			entered = err == nil
		}
		if err == nil {
			end := report.Stage(stageClaim)
			err = a.claim(ctx, h.vm)
			end(err)
		}
		if err == nil {
			return true, finishWake(ctx, h, a, report)
		}
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	undone := errors.Join(h.end(stop, a), h.conclude(stop, a, "what was kept ready could not be used"))
	if entered {
		undone = errors.Join(undone, h.store.SetState(stop, h.vm.ID, store.Change{To: microvm.Stopped, Cause: "what was kept ready could not be used"}))
	}
	if undone != nil || ctx.Err() != nil || !entered && !fault.Is(err, fault.Unavailable) {
		return false, fmt.Errorf("start VM %s: %w", h.vm.Name, errors.Join(err, undone))
	}
	report.Send(progress.Update{Stage: stageClaim, Warning: fmt.Sprintf("the VM that was kept ready is not used, and it boots: %v", err)})
	return false, renewDisks(stop, h)
}

// claim tells the monitor whose VM it has, and waits until that is known here.
func (a *attachment) claim(ctx context.Context, vm microvm.VM) error {
	limits := limitsOf(vm.Spec)
	spec := monitorlink.ClaimSpec{
		Hostname: hostnameOf(vm), Publish: vm.Spec.Publish, Lifetime: vm.Spec.Lifetime,
		Weights: microvm.Weights{CPU: limits.CPUWeight, IO: limits.IOWeight},
	}
	if err := a.client.Claim(ctx, spec); err != nil {
		return err
	}
	if err := a.waitPaused(ctx, false); err != nil {
		return err
	}
	if ended(a) {
		return &endedError{a.exit}
	}
	return nil
}

// finishWake does what comes after a VM has come up.
func finishWake(ctx context.Context, h *hold, a *attachment, report progress.Sink) error {
	st, _ := a.get()
	err := startMain(ctx, h, a, report)
	if err == nil {
		err = h.store.SetState(ctx, h.vm.ID, store.Change{To: microvm.Running, BootID: st.BootID})
	}
	if err == nil {
		return nil
	}
	var back undo
	back.push("remove runtime files", func(context.Context) error { return removeRuntime(h.dirs()) })
	back.push("end VM", func(ctx context.Context) error { return h.end(ctx, a) })
	return startEnded(ctx, h, back.run(ctx, err))
}

// renewDisks gives a VM the disks of one that has never run.
func renewDisks(ctx context.Context, h *hold) error {
	for _, path := range append(h.diskPaths(h.vm.ID), filepath.Join(h.dirs().State, homeMark)) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("make new disks: %w", err)
		}
	}
	for _, path := range h.diskPaths(h.vm.ID) {
		if err := h.host.BlankDisk(ctx, path, h.vm.Spec.DiskSize); err != nil {
			return err
		}
	}
	return nil
}
