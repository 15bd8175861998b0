package machines

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/microvm"
	"banger/internal/progress"
	"banger/internal/store"
)

// CreateRequest asks for a new VM. Zero values of the spec take the configured defaults.
type CreateRequest struct {
	Name      string // empty: one is made up
	Spec      microvm.Spec
	Ephemeral bool // goes away with the command it was made for
	Template  bool // its first start may restore a template instead of booting
}

// Create makes a VM, stopped. On failure nothing of it is left.
func (s *Service) Create(ctx context.Context, req CreateRequest, report progress.Sink) (microvm.VM, error) {
	if err := s.config.checkWeights(req.Spec.Weights); err != nil {
		return microvm.VM{}, err
	}
	if req.Template { // it is to be started
		s.config.Cgroups.Hasten()
	}
	spec := req.Spec
	if spec.Kernel == "" {
		spec.Kernel = s.sources.KernelOf(cmp.Or(spec.Image, s.config.Defaults.Image))
	}
	spec = complete(spec, s.config.Defaults)
	if err := spec.Validate(); err != nil {
		return microvm.VM{}, err
	}
	if req.Name != "" {
		if err := microvm.ValidateName(req.Name); err != nil {
			return microvm.VM{}, err
		}
	}
	// A wrong choice of hypervisor is told before an image is built for it.
	if _, err := s.host.Hypervisor(ctx, spec.Backend); err != nil {
		return microvm.VM{}, err
	}
	if err := admit(s.config.VMs, minFree, "a new VM"); err != nil {
		return microvm.VM{}, err
	}
	vm := microvm.VM{Name: req.Name, Spec: spec, Ephemeral: req.Ephemeral}
	if req.Template {
		if claimed, err := claimSpare(ctx, &s.core, vm, report); err != nil || claimed.ID != "" {
			return claimed, err
		}
	}
	return makeVM(ctx, &s.core, vm, func(ctx context.Context, h *hold, back *undo) error {
		return h.provision(ctx, back, req.Template, report)
	})
}

// makeVM records a new VM and makes what belongs to it. On failure nothing of it is left.
func makeVM(
	ctx context.Context, s *core, vm microvm.VM, provision func(context.Context, *hold, *undo) error,
) (microvm.VM, error) {
	vm.ID, vm.State = microvm.NewID(), microvm.Creating
	// The lock comes before the row: whoever finds a VM that is being created, and its lock free, finds the rest of a crash.
	g, err := s.table.acquire(ctx, vm, claimant{op: "create"})
	if err != nil {
		return microvm.VM{}, err
	}
	defer g.release()
	if err := s.reserve(ctx, &vm); err != nil {
		return microvm.VM{}, err
	}
	h := &hold{core: s, grant: g, vm: vm}
	ctx, cancel := h.interruptible(ctx)
	defer cancel()
	var back undo
	back.push("forget VM", func(ctx context.Context) error { return s.store.Remove(ctx, h.vm.ID) })
	err = provision(ctx, h, &back)
	if err == nil {
		err = s.store.SetState(ctx, h.vm.ID, store.Change{To: microvm.Stopped})
	}
	if err == nil {
		vm, err = s.store.Get(ctx, h.vm.ID)
	}
	if err != nil {
		if why := context.Cause(ctx); why != nil && !errors.Is(err, why) {
			err = fmt.Errorf("%w: %w", why, err)
		}
		return microvm.VM{}, back.run(ctx, err)
	}
	s.log.InfoContext(ctx, "VM created", "vm", vm.ID, "name", vm.Name)
	return vm, nil
}

// complete fills in the defaults.
func complete(spec, d microvm.Spec) microvm.Spec {
	set(&spec.Image, d.Image)
	set(&spec.Kernel, d.Kernel)
	set(&spec.VCPUs, d.VCPUs)
	set(&spec.Memory, d.Memory)
	set(&spec.DiskSize, d.DiskSize)
	set(&spec.Init, d.Init)
	set(&spec.Net, d.Net)
	set(&spec.Backend, d.Backend)
	set(&spec.Weights.CPU, d.Weights.CPU)
	set(&spec.Weights.IO, d.Weights.IO)
	spec.Env, spec.Labels = maps.Clone(spec.Env), maps.Clone(spec.Labels)
	return spec
}

func set[T comparable](v *T, otherwise T) {
	var zero T
	if *v == zero {
		*v = otherwise
	}
}

// The least free space, in bytes: disks are sparse, but a guest that boots writes some tens of MiB, and hangs if it cannot.
const (
	minFree      = 256 << 20 // to create a VM
	minFreeStart = 64 << 20  // to start one
)

// admit refuses a VM for which there is no room.
func admit(dir string, least int64, what string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("look at free space in %s: %w", dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < least { // block counts fit
		return fault.New(fault.Exhausted, "only %d MiB are free in %s; %s needs at least %d MiB",
			free>>20, dir, what, least>>20).WithHint("free some disk space, or delete VMs: banger vm delete <vm>")
	}
	return nil
}

// reserve records the VM and so takes its name. A made-up name that is taken is made up again.
func (s *core) reserve(ctx context.Context, vm *microvm.VM) error {
	if vm.Name != "" {
		return s.store.Insert(ctx, vm)
	}
	var err error
	for range 20 {
		vm.Name = inventName()
		if err = s.store.Insert(ctx, vm); !fault.Is(err, fault.Exists) {
			return err
		}
	}
	return err
}

// provision makes image and kernel present and the VM's disks: empty ones, or those of a template.
func (h *hold) provision(ctx context.Context, back *undo, template bool, report progress.Sink) error {
	var image Image
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		image, err = h.sources.Image(gctx, h.vm.Spec.Image, report)
		return err
	})
	g.Go(func() error {
		kernel, err := h.sources.Kernel(gctx, h.vm.Spec.Kernel, report)
		if err != nil {
			return err
		}
		hv, err := h.host.Hypervisor(gctx, h.vm.Spec.Backend)
		if err == nil {
			_, err = kernel.pathFor(hv.Backend)
		}
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if err := suits(h.vm.Spec, image); err != nil {
		return err
	}
	if err := h.store.SetImage(ctx, h.vm.ID, image.Digest, withImage(h.vm.Spec, image)); err != nil {
		return err
	}
	h.vm.ImageDigest = image.Digest
	var from *point
	if template {
		from = h.templates.find(ctx, h, report)
	}
	end := report.Stage("make disks")
	err := h.makeDisks(ctx, back, from, true)
	end(err)
	return err
}

// makeDisks makes the VM's directory with its disks: empty ones, or those of a point.
func (h *hold) makeDisks(ctx context.Context, back *undo, from *point, template bool) error {
	dirs := h.dirs()
	if err := os.Mkdir(dirs.State, 0o700); err != nil {
		return fmt.Errorf("make directory of VM %s: %w", h.vm.Name, err)
	}
	back.push("remove disks", func(context.Context) error { return os.RemoveAll(dirs.State) })
	if from != nil {
		if err := from.copyDisks(ctx, dirs.State); err != nil {
			return err
		}
		if !template {
			if err := from.restoreWorkspace(ctx, h); err != nil {
				return err
			}
		}
		return writeOrigin(h, origin{Point: from.dir, Template: template})
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, path := range h.diskPaths(h.vm.ID) {
		g.Go(func() error { return h.host.BlankDisk(ctx, path, h.vm.Spec.DiskSize) })
	}
	return g.Wait()
}
