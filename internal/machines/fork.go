package machines

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"banger/internal/fault"
	"banger/internal/microvm"
	"banger/internal/progress"
)

// Points is the part of the service that saves VMs and lets others go on from there.
type Points struct{ *Service }

// PointsOf returns the part of a service that saves VMs.
func PointsOf(s *Service) Points { return Points{s} }

// ForkRequest asks for copies of a running VM.
type ForkRequest struct {
	Names  []string          // of the copies; empty: Count of them, named after the VM
	Count  int               // without Names: 1 to MaxForks
	Labels map[string]string // beside those of the VM
}

// MaxForks is how many copies are made at once at most.
const MaxForks = 100

// Fork makes copies of a VM that runs or is paused, which goes on: memory, disks and processes are the copies' as of one
// moment, but each is a machine of its own by name, ids, keys and random numbers. The copies run. Those that could not be
// made leave nothing behind, and the error tells of them; the others are returned all the same.
func (s Points) Fork(ctx context.Context, ref string, req ForkRequest, report progress.Sink) ([]Info, error) {
	if err := req.check(); err != nil {
		return nil, err
	}
	dir := filepath.Join(s.config.Forks, string(microvm.NewID()))
	defer os.RemoveAll(dir) //nolint:errcheck // the copies have their disks, and hold the memory open; else swept at the next start
	p, source, err := saveFor(ctx, s, ref, "fork", dir, report)
	if err != nil {
		return nil, err
	}
	names, err := req.names(ctx, &s.core, source)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var errs []error
	infos := make([]Info, len(names))
	var g errgroup.Group
	g.SetLimit(2 * runtime.NumCPU()) // a restore is half waiting
	for i, name := range names {
		g.Go(func() error {
			info, err := s.continueAs(ctx, p, continued{name: name, spec: source.Spec, labels: req.Labels, digest: source.ImageDigest})
			mu.Lock()
			defer mu.Unlock()
			if infos[i] = info; err != nil {
				errs = append(errs, fmt.Errorf("fork VM %s as %s: %w", source.Name, name, err))
			}
			report.Send(progress.Update{Stage: stageRestore, Current: int64(i + 1), Total: int64(len(names)), Unit: "VMs"})
			return nil
		})
	}
	_ = g.Wait() // always nil
	return slices.DeleteFunc(infos, func(i Info) bool { return i.ID == "" }), errors.Join(errs...)
}

func (r ForkRequest) check() error {
	if len(r.Names) == 0 && (r.Count < 1 || r.Count > MaxForks) || len(r.Names) > MaxForks {
		return fault.New(fault.Invalid, "fork a VM %d times", max(r.Count, len(r.Names))).WithHint("ask for 1 to %d copies", MaxForks)
	}
	for i, name := range r.Names {
		if err := microvm.ValidateName(name); err != nil {
			return err
		}
		if slices.Contains(r.Names[:i], name) {
			return fault.New(fault.Invalid, "the name %s is given twice", name)
		}
	}
	return nil
}

// names returns the names of the copies: those asked for, or the next free ones after the VM's.
func (r ForkRequest) names(ctx context.Context, s *core, source microvm.VM) ([]string, error) {
	if len(r.Names) > 0 {
		return r.Names, nil
	}
	vms, err := s.store.List(ctx)
	if err != nil {
		return nil, err
	}
	taken := map[string]bool{}
	for _, vm := range vms {
		taken[vm.Name] = true
	}
	var names []string
	for n := 1; len(names) < r.Count; n++ {
		suffix := "-" + strconv.Itoa(n)
		name := source.Name[:min(len(source.Name), microvm.MaxNameLength-len(suffix))] + suffix
		if !taken[name] {
			names = append(names, name)
		}
	}
	return names, nil
}

// saveFor makes a point of a VM in a directory and returns the VM. The VM is held for as long as that takes.
func saveFor(ctx context.Context, s Points, ref, op, dir string, report progress.Sink) (point, microvm.VM, error) {
	h, err := s.claim(ctx, ref, op)
	if err != nil {
		return point{}, microvm.VM{}, err
	}
	defer h.release()
	ctx, cancel := h.interruptible(ctx)
	defer cancel()
	a := h.attachment()
	if !h.vm.State.Live() || a == nil {
		return point{}, h.vm, fault.New(fault.Precondition, "%s VM %s: it is %s", op, h.vm.Name, h.vm.State).
			WithHint("start it: banger start %s", h.vm.Name)
	}
	allocated, _ := h.diskUse(h.vm.ID)
	if err := admit(h.config.VMs, minFreeStart+allocated+a.launch.Machine.Memory, "a snapshot of VM "+h.vm.Name); err != nil {
		return point{}, h.vm, fmt.Errorf("%s VM %s: %w", op, h.vm.Name, err)
	}
	end := report.Stage("save")
	p, saved, err := savePoint(ctx, h, a, dir)
	end(err)
	if err != nil {
		return point{}, h.vm, fmt.Errorf("%s VM %s: %w", op, h.vm.Name, errors.Join(err, os.RemoveAll(dir)))
	}
	report.Send(progress.Update{Stage: "save", Detail: "paused for " + saved.Paused.Round(time.Millisecond).String()})
	h.log.InfoContext(ctx, "VM saved", "vm", h.vm.ID, "paused", saved.Paused, "live", saved.Live)
	return p, h.vm, nil
}

// continued is a VM that is made from a point.
type continued struct {
	name   string
	spec   microvm.Spec
	labels map[string]string
	digest string
}

// continueAs makes a VM that goes on from a point, and starts it. On failure nothing of it is left.
func (s Points) continueAs(ctx context.Context, p point, c continued) (Info, error) {
	spec := c.spec
	spec.VCPUs, spec.Memory = p.Machine.VCPUs, p.Machine.Memory
	spec.Publish = nil // the ports are taken
	spec.Labels = maps.Clone(spec.Labels)
	if len(c.labels) > 0 && spec.Labels == nil {
		spec.Labels = map[string]string{}
	}
	maps.Copy(spec.Labels, c.labels)
	if err := admit(s.config.VMs, minFreeStart, "a copy"); err != nil {
		return Info{}, err
	}
	vm, err := makeVM(ctx, &s.core, microvm.VM{Name: c.name, Spec: spec},
		func(ctx context.Context, h *hold, back *undo) error {
			if err := s.store.SetImage(ctx, h.vm.ID, c.digest, spec); err != nil {
				return err
			}
			return h.makeDisks(ctx, back, &p, false)
		})
	if err != nil {
		return Info{}, err
	}
	info, err := s.Start(ctx, string(vm.ID), nil)
	if err != nil {
		erase, cancel := context.WithTimeout(context.WithoutCancel(ctx), eraseTimeout)
		defer cancel()
		return Info{}, errors.Join(err, s.Delete(erase, string(vm.ID), true))
	}
	return info, nil
}

// sweepForks removes what was left of forks that were cut off. Only while none is made.
func (c Config) sweepForks() error {
	if c.Forks == "" {
		return nil
	}
	left, _ := filepath.Glob(filepath.Join(c.Forks, "*"))
	var errs []error
	for _, dir := range left {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}
