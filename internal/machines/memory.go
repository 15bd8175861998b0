package machines

import (
	"context"

	"banger/internal/config"
	"banger/internal/fault"
	"banger/internal/microvm"
	"banger/internal/progress"
	"banger/internal/store"
)

// enter records that the VM is being started, if the memory of the host allows it.
func (h *hold) enter(ctx context.Context, report progress.Sink) error {
	// Two that start at the same time must not both find the last free memory.
	h.admission.Lock()
	defer h.admission.Unlock()
	if err := h.admitMemory(ctx, h.vm, report); err != nil {
		return err
	}
	return h.store.SetState(ctx, h.vm.ID, store.Change{To: microvm.Starting})
}

// admitMemory compares the memory of all running VMs and this one with the host's. Guests seldom touch all that they
// have, so that more may be promised than there is; how far is the user's to say.
func (s *core) admitMemory(ctx context.Context, vm microvm.VM, report progress.Sink) error {
	policy, total := s.config.Overcommit, s.config.HostMemory
	if total <= 0 || policy == config.OvercommitAllow || policy == "" {
		return nil
	}
	vms, err := s.store.List(ctx)
	if err != nil {
		return err
	}
	sum, running := vm.Spec.Memory, 0
	for _, other := range vms {
		if other.ID != vm.ID && other.State.HasProcess() {
			sum += s.memoryOf(other)
			running++
		}
	}
	if sum <= total {
		return nil
	}
	said := fault.New(fault.Exhausted, "start VM %s: with its %s, the %d running VMs and it would have %s of memory; the host has %s",
		vm.Name, roughly(vm.Spec.Memory), running, roughly(sum), roughly(total)).
		WithHint("stop another VM, give this one less (banger vm set %s --memory SIZE), or set memory_overcommit = \"warn\" in [daemon] of the config file",
			vm.Name)
	if policy == config.OvercommitRefuse {
		return said
	}
	s.log.Warn("more memory promised than there is", "vm", vm.ID, "running", running, "sum", sum, "host", total)
	report.Send(progress.Update{Stage: "start monitor", Warning: "the running VMs and this one have " + roughly(sum) +
		" of memory together; the host has " + roughly(total)})
	return nil
}

// memoryOf returns the memory that a VM was started with, in bytes: what is asked of it may be different by now.
func (s *core) memoryOf(vm microvm.VM) int64 {
	if a := s.table.attachment(vm.ID); a != nil && a.launch.Machine.Memory > 0 {
		return a.launch.Machine.Memory
	}
	return vm.Spec.Memory
}
