package machines

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"

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
}

// Create makes a VM, stopped. On failure nothing of it is left.
func (s *Service) Create(ctx context.Context, req CreateRequest, report progress.Sink) (microvm.VM, error) {
	spec := s.complete(req.Spec)
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
	if err := s.admit(); err != nil {
		return microvm.VM{}, err
	}
	vm := microvm.VM{
		ID: microvm.NewID(), Name: req.Name, Spec: spec, State: microvm.Creating, Ephemeral: req.Ephemeral,
	}
	if err := s.reserve(ctx, &vm); err != nil {
		return microvm.VM{}, err
	}
	release, err := s.acquire(ctx, vm, "create", patience)
	if err != nil {
		return microvm.VM{}, errors.Join(err, s.store.Remove(context.WithoutCancel(ctx), vm.ID))
	}
	defer release()
	var back undo
	back.push("forget VM", func(ctx context.Context) error { return s.store.Remove(ctx, vm.ID) })
	if err := s.provision(ctx, &vm, &back, report); err != nil {
		return microvm.VM{}, back.run(ctx, err)
	}
	s.log.Info("VM created", "vm", vm.ID, "name", vm.Name)
	return s.store.Get(ctx, vm.ID)
}

// complete fills in the defaults.
func (s *Service) complete(spec microvm.Spec) microvm.Spec {
	d := s.config.Defaults
	set(&spec.Image, d.Image)
	set(&spec.Kernel, d.Kernel)
	set(&spec.VCPUs, d.VCPUs)
	set(&spec.Memory, d.Memory)
	set(&spec.DiskSize, d.DiskSize)
	set(&spec.Init, d.Init)
	set(&spec.Net, d.Net)
	set(&spec.Backend, d.Backend)
	spec.Env, spec.Labels = maps.Clone(spec.Env), maps.Clone(spec.Labels)
	return spec
}

func set[T comparable](v *T, otherwise T) {
	var zero T
	if *v == zero {
		*v = otherwise
	}
}

// minFree is the least free space a new VM may start from, in bytes: its disks are sparse, but a guest that boots
// writes some tens of MiB.
const minFree = 256 << 20

// admit refuses a VM for which there is no room.
func (s *Service) admit() error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.config.VMs, &st); err != nil {
		return fmt.Errorf("look at free space in %s: %w", s.config.VMs, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < minFree { //nolint:gosec // block counts fit
		return fault.New(fault.Exhausted, "only %d MiB are free in %s; a VM needs at least %d MiB",
			free>>20, s.config.VMs, minFree>>20).WithHint("free some disk space, or delete VMs: banger vm delete <vm>")
	}
	return nil
}

// reserve records the VM and so takes its name. A made-up name that is taken is made up again.
func (s *Service) reserve(ctx context.Context, vm *microvm.VM) error {
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

// provision makes image and kernel present and the VM's disks.
func (s *Service) provision(ctx context.Context, vm *microvm.VM, back *undo, report progress.Sink) error {
	var image Image
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		image, err = s.sources.Image(gctx, vm.Spec.Image, report)
		return err
	})
	g.Go(func() error {
		_, err := s.sources.Kernel(gctx, vm.Spec.Kernel, report)
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	vm.ImageDigest = image.Digest
	if err := s.store.SetImageDigest(ctx, vm.ID, image.Digest); err != nil {
		return err
	}
	end := report.Stage("make disks")
	err := s.makeDisks(ctx, vm, back)
	end(err)
	if err != nil {
		return err
	}
	return s.store.SetState(ctx, vm.ID, store.Change{To: microvm.Stopped})
}

func (s *Service) makeDisks(ctx context.Context, vm *microvm.VM, back *undo) error {
	dirs := s.dirs(vm.ID)
	back.push("remove disks", func(context.Context) error { return os.RemoveAll(dirs.State) })
	if err := os.Mkdir(dirs.State, 0o700); err != nil {
		return fmt.Errorf("make directory of VM %s: %w", vm.Name, err)
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, name := range []string{systemDisk, workDisk} {
		g.Go(func() error { return s.host.BlankDisk(ctx, filepath.Join(dirs.State, name), vm.Spec.DiskSize) })
	}
	return g.Wait()
}
