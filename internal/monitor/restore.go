package monitor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"banger/internal/fault"
	"banger/internal/guestlink"
	"banger/internal/guestproto"
	"banger/internal/hypervisor"
	"banger/internal/monitorlink"
)

// startVMM boots the machine, or continues it from a snapshot. Either way it runs on return.
func startVMM(ctx context.Context, b hypervisor.Backend, machine hypervisor.Machine, r *monitorlink.Restore) (hypervisor.VMM, error) {
	if r == nil {
		return b.Boot(ctx, machine)
	}
	restorer, ok := b.(hypervisor.Restorer)
	if !ok {
		if machine.NIC != nil {
			_ = machine.NIC.Conn.Close()
		}
		return nil, fault.New(fault.Unsupported, "the backend %s restores no VMs", b.Name())
	}
	vmm, err := restorer.Restore(ctx, machine, r.Snapshot)
	if err != nil {
		return nil, err
	}
	if err := vmm.Resume(ctx); err != nil {
		vmm.Kill()
		_, _ = vmm.Link().Close(), vmm.Console().Close()
		return nil, err
	}
	return vmm, nil
}

// rename makes a restored guest the one that it is from now on. Until it has been told nothing else may reach it. It
// returns its new boot id.
func rename(ctx context.Context, s *guestlink.Session, r *monitorlink.Restore) (string, error) {
	err := guestlink.NewClient(s).Configure(ctx, guestproto.Identity{
		Hostname: r.Hostname, MachineID: r.MachineID, BootID: r.BootID, TimeNS: time.Now().UnixNano(),
	})
	if err != nil {
		return "", fmt.Errorf("give the restored guest its identity: %w", err)
	}
	return r.BootID, nil // empty: as it was
}

// failed words the end of a VM that could not be started.
func failed(r *monitorlink.Restore, err error) monitorlink.Exit {
	exit := monitorlink.Exit{
		Cause: monitorlink.BootFailed, Kind: fault.KindOf(err).String(), Detail: err.Error(), Hint: fault.HintOf(err), At: time.Now(),
	}
	switch {
	case r == nil:
	case errors.Is(err, context.DeadlineExceeded):
		exit.Cause = monitorlink.BootTimeout
	default:
		exit.Cause = monitorlink.RestoreFailed
	}
	return exit
}
