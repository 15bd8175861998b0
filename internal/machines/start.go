package machines

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"banger/internal/fault"
	"banger/internal/guestproto"
	"banger/internal/hypervisor"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
	"banger/internal/progress"
	"banger/internal/store"
)

// attempts is how often a guest that does not come up is booted before the start fails. A boot can hang through no
// fault of the VM's; twice in a row it does not.
const attempts = 2

// Start starts a VM and returns when its agent has answered. Starting one that runs is no error.
func (s *Service) Start(ctx context.Context, ref string, report progress.Sink) (Info, error) {
	vm, err := s.resolve(ctx, ref)
	if err != nil {
		return Info{}, err
	}
	release, err := s.acquire(ctx, vm, "start", patience)
	if err != nil {
		return Info{}, err
	}
	defer release()
	if vm, err = s.store.Get(ctx, vm.ID); err != nil {
		return Info{}, err
	}
	switch {
	case vm.State == microvm.Running:
		return s.info(vm), nil
	case !vm.State.MayBecome(microvm.Starting):
		return Info{}, fault.New(fault.Precondition, "start VM %s: it is %s", vm.Name, vm.State).
			WithHint("see its state: banger vm show %s", vm.Name)
	}
	if err := s.start(ctx, vm, report); err != nil {
		return Info{}, err
	}
	if vm, err = s.store.Get(ctx, vm.ID); err != nil {
		return Info{}, err
	}
	return s.info(vm), nil
}

// start boots a VM whose lock the caller holds. On failure no process and no runtime file is left.
func (s *Service) start(ctx context.Context, vm microvm.VM, report progress.Sink) error {
	launch, err := s.plan(ctx, vm, report)
	if err != nil {
		return err
	}
	if err := s.store.SetState(ctx, vm.ID, store.Change{To: microvm.Starting}); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		err = s.boot(ctx, vm, launch, report)
		ended, isEnd := errors.AsType[*endedError](err)
		switch {
		case err == nil:
			return nil
		case isEnd && ended.exit.Cause == monitorlink.BootTimeout && attempt < attempts && ctx.Err() == nil:
			s.log.Warn("guest did not come up, trying again", "vm", vm.ID, "console", ended.exit.ConsoleTail)
			report.Send(progress.Update{Stage: "boot", Detail: "the guest did not answer in time; trying once more"})
			continue
		case isEnd:
			err = ended.fault(vm.Name)
		default:
			err = fmt.Errorf("start VM %s: %w", vm.Name, err)
		}
		change := store.Change{To: microvm.Failed, Cause: firstLine(err)}
		if ctx.Err() != nil {
			change = store.Change{To: microvm.Stopped, Cause: "its start was cancelled"}
		}
		return errors.Join(err, s.store.SetState(context.WithoutCancel(ctx), vm.ID, change))
	}
}

// boot makes one attempt.
func (s *Service) boot(ctx context.Context, vm microvm.VM, launch monitorlink.Launch, report progress.Sink) error {
	dirs := s.dirs(vm.ID)
	var back undo
	back.push("remove runtime files", func(context.Context) error { return removeRuntime(dirs) })
	end := report.Stage("start monitor")
	a, err := s.launch(ctx, vm, launch, &back)
	end(err)
	if err != nil {
		return back.run(ctx, err)
	}
	end = report.Stage("boot")
	st, err := a.waitReady(ctx)
	end(err)
	if err == nil {
		err = s.store.SetState(ctx, vm.ID, store.Change{To: microvm.Running, BootID: st.BootID})
	}
	if err != nil {
		return back.run(ctx, err)
	}
	return nil
}

// launch starts the monitor and attaches to it.
func (s *Service) launch(ctx context.Context, vm microvm.VM, l monitorlink.Launch, back *undo) (*attachment, error) {
	dirs := s.dirs(vm.ID)
	if err := os.MkdirAll(dirs.Runtime, 0o700); err != nil {
		return nil, fmt.Errorf("make runtime directory: %w", err)
	}
	back.push("end monitor", func(context.Context) error { return dirs.KillMonitor(killTimeout) })
	if err := s.host.StartMonitor(dirs, l); err != nil {
		return nil, err
	}
	connect, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	a, err := s.attach(connect, vm, l)
	if err != nil {
		if exit := dirs.ReadExit(); exit.Cause != monitorlink.MonitorLost {
			return nil, &endedError{exit}
		}
		return nil, errors.Join(err, monitorLog(dirs))
	}
	back.push("end VM", func(ctx context.Context) error { return s.end(ctx, vm.ID, a) })
	return a, nil
}

// connectTimeout bounds how long a new monitor may take to come up. On a loaded host a process needs seconds to start.
const connectTimeout = 30 * time.Second

// end kills a VM's VMM and waits until the monitor is gone. The caller holds the VM's lock.
func (s *Service) end(ctx context.Context, id microvm.ID, a *attachment) error {
	err := a.client.Kill(ctx)
	select {
	case <-a.done:
		err = nil
	case <-time.After(killTimeout):
		err = errors.Join(err, a.dirs.KillMonitor(killTimeout))
	}
	s.setAttachment(id, nil)
	return err
}

// plan collects everything that the VM's monitor has to know.
func (s *Service) plan(ctx context.Context, vm microvm.VM, report progress.Sink) (monitorlink.Launch, error) {
	hv, err := s.host.Hypervisor(ctx, vm.Spec.Backend)
	if err != nil {
		return monitorlink.Launch{}, err
	}
	image, err := s.sources.ImageByDigest(ctx, vm.ImageDigest)
	if err != nil {
		return monitorlink.Launch{}, err
	}
	kernel, err := s.sources.Kernel(ctx, vm.Spec.Kernel, report)
	if err != nil {
		return monitorlink.Launch{}, err
	}
	dirs := s.dirs(vm.ID)
	params := guestproto.BootParams{Hostname: vm.Name, Init: guestproto.Init(vm.Spec.Init)}
	var network *monitorlink.Network
	if vm.Spec.Net == microvm.NetUser {
		network = &monitorlink.Network{Guest: guestAddr(), Gateway: gatewayAddr(), MTU: guestMTU, Allow: s.config.EgressAllow}
		params.Addr, params.Gateway, params.MTU = network.Guest, network.Gateway, network.MTU
		params.DNS = []netip.Addr{network.Gateway}
	}
	disks := []hypervisor.Disk{
		{Serial: guestproto.DiskBase, Path: image.Path, ReadOnly: true},
		{Serial: guestproto.DiskSystem, Path: filepath.Join(dirs.State, systemDisk)},
		{Serial: guestproto.DiskWork, Path: filepath.Join(dirs.State, workDisk)},
	}
	if kernel.Modules != "" {
		disks = append(disks, hypervisor.Disk{Serial: guestproto.DiskModules, Path: kernel.Modules, ReadOnly: true})
	}
	return monitorlink.Launch{
		ID: vm.ID, Name: vm.Name,
		Backend: hv.Backend, Accelerator: hv.Accelerator, Reason: hv.Reason, Host: hv.Host,
		Machine: hypervisor.Machine{
			ID: string(vm.ID), Name: vm.Name,
			VCPUs: vm.Spec.VCPUs, Memory: vm.Spec.Memory,
			Kernel: kernel.Path, Initramfs: kernel.Initramfs, Cmdline: params.Encode(),
			Disks: disks, Dir: dirs.Runtime,
		},
		Network: network, BootTimeout: hv.BootTimeout,
	}, nil
}

// Addresses in a VM's network. They are the same in every VM: each has a LAN of its own, and a copy of a VM need not be
// renumbered.
func guestAddr() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 2, 15}), 24) }
func gatewayAddr() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 2, 2}) }

// guestMTU is in bytes.
const guestMTU = 1500

// monitorLog returns what a monitor that failed to come up has written, as an error.
func monitorLog(d monitorlink.Dirs) error {
	if text := d.ReadLog(); text != "" {
		return errors.New("the monitor said: " + text)
	}
	return nil
}

// removeRuntime removes what a VM keeps while it runs.
func removeRuntime(d monitorlink.Dirs) error { return os.RemoveAll(d.Runtime) }
