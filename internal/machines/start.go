package machines

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
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
	h, err := s.claim(ctx, ref, "start")
	if err != nil {
		return Info{}, err
	}
	defer h.release()
	if h.vm.State != microvm.Running {
		if err := h.start(ctx, report); err != nil {
			return Info{}, err
		}
	}
	return h.info(ctx)
}

// start boots the VM. On failure no process and no runtime file is left.
func (h *hold) start(ctx context.Context, report progress.Sink) error {
	ctx, cancel := h.interruptible(ctx)
	defer cancel()
	if !h.vm.State.MayBecome(microvm.Starting) {
		return fault.New(fault.Precondition, "start VM %s: it is %s", h.vm.Name, h.vm.State).
			WithHint("see its state: banger vm show %s", h.vm.Name)
	}
	if err := finishRevert(ctx, h); err != nil {
		return err
	}
	launch, err := h.plan(ctx, report)
	if err != nil {
		return err
	}
	if woken, err := wake(ctx, h, report); woken || err != nil {
		return err
	}
	from, err := continues(ctx, h, launch, report)
	if err != nil {
		return err
	}
	if from == nil {
		if err := h.fitDisks(); err != nil {
			return err
		}
	}
	if err := h.checkPorts(ctx); err != nil {
		return fmt.Errorf("start VM %s: %w", h.vm.Name, err)
	}
	if err := admit(h.config.VMs, minFreeStart, "a VM that starts"); err != nil {
		return fmt.Errorf("start VM %s: %w", h.vm.Name, err)
	}
	// Before the start is recorded: from then on, what is in the record is taken for the word of the monitor to come.
	if err := h.dirs().ForgetExit(); err != nil {
		return err
	}
	if err := h.enter(ctx, report); err != nil {
		return err
	}
	if from != nil {
		err := from.restore(ctx, h, launch, report)
		if _, isEnd := errors.AsType[*endedError](err); !isEnd || !from.Template || ctx.Err() != nil {
			return startEnded(ctx, h, err)
		}
		if err := from.giveUp(ctx, h, err, report); err != nil {
			return startEnded(ctx, h, err)
		}
	}
	for attempt := 1; ; attempt++ {
		err = h.boot(ctx, launch, report)
		ended, isEnd := errors.AsType[*endedError](err)
		switch {
		case isEnd && ended.hung() && attempt < attempts && ctx.Err() == nil:
			h.log.WarnContext(ctx, "guest did not come up, trying again", "vm", h.vm.ID, "cause", ended.exit.Cause,
				"detail", ended.exit.Detail, "console", ended.exit.ConsoleTail)
			report.Send(progress.Update{Stage: "boot", Detail: "the guest did not come up; trying once more"})
			continue
		default:
			return startEnded(ctx, h, err)
		}
	}
}

// restore lets the VM go on from the point.
func (c *continuation) restore(ctx context.Context, h *hold, launch monitorlink.Launch, report progress.Sink) error {
	if err := c.take(h, &launch); err != nil {
		return err
	}
	return h.boot(ctx, launch, report)
}

// startEnded records how a start ended, if it failed, and words it.
func startEnded(ctx context.Context, h *hold, err error) error {
	if err == nil {
		return nil
	}
	if ended, isEnd := errors.AsType[*endedError](err); isEnd {
		err = ended.fault(h.vm.Name)
	} else {
		if why := context.Cause(ctx); why != nil && !errors.Is(err, why) {
			err = fmt.Errorf("%w: %w", why, err)
		}
		err = fmt.Errorf("start VM %s: %w", h.vm.Name, err)
	}
	change := store.Change{To: microvm.Failed, Cause: firstLine(err)}
	if ctx.Err() != nil {
		change = store.Change{To: microvm.Stopped, Cause: "its start was cancelled"}
	}
	return errors.Join(err, h.store.SetState(context.WithoutCancel(ctx), h.vm.ID, change))
}

// boot makes one attempt.
func (h *hold) boot(ctx context.Context, launch monitorlink.Launch, report progress.Sink) error {
	dirs := h.dirs()
	var back undo
	back.push("remove runtime files", func(context.Context) error { return removeRuntime(dirs) })
	home := gather(ctx, h)
	end := report.Stage("start monitor")
	a, err := h.launch(ctx, launch, &back)
	end(err)
	if err != nil {
		return back.run(ctx, err)
	}
	stage := "boot"
	if launch.Restore != nil {
		stage = stageRestore
	}
	end = report.Stage(stage)
	st, err := a.waitReady(ctx)
	end(err)
	if err == nil {
		fillHome(ctx, h, a, home, report)
		err = startMain(ctx, h, a, report)
	}
	if err == nil {
		err = forgetOrigin(h) // before it is recorded to run: its disks are its own from then on
	}
	if err == nil {
		err = h.store.SetState(ctx, h.vm.ID, store.Change{To: microvm.Running, BootID: st.BootID})
	}
	if err != nil {
		return back.run(ctx, err)
	}
	return nil
}

// launch starts the monitor and attaches to it.
func (h *hold) launch(ctx context.Context, l monitorlink.Launch, back *undo) (*attachment, error) {
	dirs := h.dirs()
	if err := os.MkdirAll(dirs.Runtime, 0o700); err != nil {
		return nil, fmt.Errorf("make runtime directory: %w", err)
	}
	back.push("end monitor", func(context.Context) error { return dirs.KillMonitor(killTimeout) })
	if err := h.host.StartMonitor(dirs, l); err != nil {
		return nil, err
	}
	connect, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	a, err := h.attach(connect, l)
	if err != nil {
		if exit := dirs.ReadExit(); exit.Cause != monitorlink.MonitorLost {
			return nil, &endedError{exit}
		}
		return nil, errors.Join(err, monitorLog(dirs))
	}
	back.push("end VM", func(ctx context.Context) error { return h.end(ctx, a) })
	return a, nil
}

// connectTimeout bounds how long a new monitor may take to come up. On a loaded host a process needs seconds to start.
const connectTimeout = 30 * time.Second

// end kills the VMM and waits until the monitor is gone. A monitor that does not do its part is killed itself, and its
// VMM with it.
func (h *hold) end(ctx context.Context, a *attachment) error {
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	err := a.client.Kill(ask)
	cancel()
	wait := killTimeout
	if err != nil {
		wait = lastWordTimeout // for one that is about to end by itself
	}
	select {
	case <-a.done:
		err = nil
	case <-h.closed: // nobody follows it any more
		err = a.dirs.KillMonitor(killTimeout)
	case <-time.After(wait):
		err = a.dirs.KillMonitor(killTimeout)
		if err == nil {
			// The follower is about to make sure of the monitor's end as well, and would kill one that came meanwhile.
			select {
			case <-a.done:
			case <-h.closed:
			}
		}
	}
	h.table.setAttachment(h.vm.ID, nil)
	return err
}

// lastWordTimeout is how long a monitor that takes no more requests may need to leave its exit record.
const lastWordTimeout = time.Second

// plan collects everything that the VM's monitor has to know.
func (h *hold) plan(ctx context.Context, report progress.Sink) (monitorlink.Launch, error) {
	vm := h.vm
	hv, err := h.host.Hypervisor(ctx, vm.Spec.Backend)
	if err != nil {
		return monitorlink.Launch{}, err
	}
	image, err := h.sources.ImageByDigest(ctx, vm.ImageDigest)
	if err != nil {
		return monitorlink.Launch{}, err
	}
	kernel, err := h.sources.Kernel(ctx, vm.Spec.Kernel, report)
	if err != nil {
		return monitorlink.Launch{}, err
	}
	kernelPath, err := kernel.pathFor(hv.Backend)
	if err != nil {
		return monitorlink.Launch{}, err
	}
	dirs := h.dirs()
	params := guestproto.BootParams{Hostname: hostnameOf(vm), MachineID: machineIDOf(vm), Init: initOf(vm.Spec)}
	var network *monitorlink.Network
	if vm.Spec.Net == microvm.NetUser {
		network = &monitorlink.Network{Guest: guestAddr(), Gateway: gatewayAddr(), MTU: guestMTU, Allow: h.config.EgressAllow}
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
	nice := 0
	if isTemplate(vm) {
		nice = templateNice
	}
	return monitorlink.Launch{
		ID: vm.ID, Name: vm.Name, Nice: nice,
		Backend: hv.Backend, Accelerator: hv.Accelerator, Reason: hv.Reason, Host: hv.Host,
		Machine: hypervisor.Machine{
			ID: string(vm.ID), Name: vm.Name,
			VCPUs: vm.Spec.VCPUs, Memory: vm.Spec.Memory,
			Kernel: kernelPath, Initramfs: kernel.Initramfs, Cmdline: params.Encode(),
			Disks: disks, Dir: dirs.Runtime, FixedMemory: isTemplate(vm),
		},
		Group: h.config.Cgroups.Group(string(vm.ID)), Limits: limitsOf(vm.Spec),
		Network: network, Publish: vm.Spec.Publish, Lifetime: vm.Spec.Lifetime, BootTimeout: hv.BootTimeout,
	}, nil
}

// hostnameOf returns the host name of a VM.
func hostnameOf(vm microvm.VM) string {
	if isNobodys(vm) {
		return "banger"
	}
	return vm.Name
}

// machineIDOf returns the machine id of a VM, machine-id(5): the same at each of its starts, and no other VM's.
func machineIDOf(vm microvm.VM) string {
	sum := sha256.Sum256([]byte("machine-id " + vm.ID))
	return hex.EncodeToString(sum[:16])
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
