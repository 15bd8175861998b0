package monitor

import (
	"context"

	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/monitorlink"
)

// grow makes a disk of the running VM larger, if its VMM can.
func grow(ctx context.Context, vmm hypervisor.VMM, spec *monitorlink.GrowSpec) error {
	grower, ok := vmm.(hypervisor.DiskGrower)
	switch {
	case !ok:
		return fault.New(fault.Unsupported, "this backend cannot grow the disk of a running VM").
			WithHint("restart the VM")
	case spec == nil:
		return fault.New(fault.Invalid, "a request to grow a disk without saying which")
	}
	return grower.GrowDisk(ctx, spec.Serial, spec.Size)
}
