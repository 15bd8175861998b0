package machines

import (
	"context"
	"path/filepath"

	"banger/internal/fault"
	"banger/internal/microvm"
)

// Disks are the disks of a VM that does not run.
type Disks struct {
	VM     microvm.VM
	System string // path of the disk with the changes to the image
	Work   string // path of the disk that is mounted at /root
}

// WithDisks calls fn with the disks of a VM that has stopped, and keeps it from being started, changed or deleted until fn
// returns. A forced delete ends fn's context.
func (s *core) WithDisks(ctx context.Context, ref, operation string, fn func(context.Context, Disks) error) error {
	h, err := s.claim(ctx, ref, operation)
	if err != nil {
		return err
	}
	defer h.release()
	ctx, cancel := h.interruptible(ctx)
	defer cancel()
	if state := h.vm.State; state != microvm.Stopped && state != microvm.Failed {
		return fault.New(fault.Precondition, "%s VM %s: it is %s, and its disks change", operation, h.vm.Name, state).
			WithHint("stop it first: banger vm stop %s", h.vm.Name)
	}
	dir := h.dirs().State
	return fn(ctx, Disks{VM: h.vm, System: filepath.Join(dir, systemDisk), Work: filepath.Join(dir, workDisk)})
}
