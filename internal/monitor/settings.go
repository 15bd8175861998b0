package monitor

import (
	"context"
	"time"

	"banger/internal/cgroup"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
)

// set changes what can be changed of the running VM, and returns what it was before.
func (m *Monitor) set(ctx context.Context, vmm hypervisor.VMM, change *monitorlink.SettingsChange) (monitorlink.Settings, error) {
	before := m.board.get().Settings
	if change == nil {
		return before, fault.New(fault.Invalid, "a request to change settings without saying which")
	}
	if ttl := change.TTL; ttl != nil {
		if up := time.Since(*m.began.Load()); *ttl > 0 && *ttl <= up && *ttl != before.TTL {
			return before, fault.New(fault.Precondition, "the VM has been running for %s, so that its time would be over already",
				up.Round(time.Second))
		}
		m.board.update(func(s *monitorlink.Status) { s.Settings.TTL = *ttl })
	}
	if idle := change.IdleTimeout; idle != nil {
		m.board.update(func(s *monitorlink.Status) { s.Settings.IdleTimeout = *idle })
	}
	for _, w := range []struct {
		controller cgroup.Controller
		value      *int
	}{{cgroup.CPU, change.CPUWeight}, {cgroup.IO, change.IOWeight}} {
		if w.value != nil {
			if err := m.setWeight(w.controller, *w.value); err != nil {
				return before, err
			}
		}
	}
	if change.Memory != nil {
		return before, m.setMemory(ctx, vmm, *change.Memory)
	}
	return before, nil
}

// enterGroup puts this process, and with it the VMM to come, under the limits of the launch record. That the kernel does not
// let it is told and no more: the VM is as good without.
func (m *Monitor) enterGroup() {
	if err := m.launch.Group.Enter(m.launch.Limits); err != nil {
		m.log.Warn("limits are not enforced", "vm", m.launch.ID, "err", err)
	}
}

// setWeight changes the share of a controller that the VM's processes get.
func (m *Monitor) setWeight(c cgroup.Controller, value int) error {
	limits := cgroup.Limits{CPUWeight: value}
	if c == cgroup.IO {
		limits = cgroup.Limits{IOWeight: value}
	}
	if !m.launch.Group.Has(c) {
		return fault.New(fault.Unsupported, "the VM was started without a cgroup for %s", c).WithHint("see: banger doctor")
	}
	if err := m.launch.Group.Set(limits); err != nil {
		return fault.New(fault.Internal, "%w", err)
	}
	m.board.update(func(s *monitorlink.Status) {
		if c == cgroup.IO {
			s.Settings.IOWeight = value
		} else {
			s.Settings.CPUWeight = value
		}
	})
	return nil
}

// The guest is the one who gives up memory. It may be slow, for it has to find some, and it may not want to.
const (
	memoryPoll  = 50 * time.Millisecond
	memoryStall = 5 * time.Second  // without any progress
	memoryWait  = 40 * time.Second // in all
)

// setMemory gives the guest a size of memory in bytes, and waits for it to follow.
func (m *Monitor) setMemory(ctx context.Context, vmm hypervisor.VMM, size int64) error {
	sizer, ok := vmm.(hypervisor.MemorySizer)
	switch {
	case !ok:
		return fault.New(fault.Unsupported, "this backend cannot change the memory of a running VM").WithHint("restart the VM")
	case m.board.get().Paused:
		return fault.New(fault.Precondition, "the VM is paused")
	}
	if err := sizer.SetMemory(ctx, size); err != nil {
		return err
	}
	began := time.Now()
	moved, last := began, int64(-1)
	tick := time.NewTicker(memoryPoll)
	defer tick.Stop()
	for {
		now, err := sizer.Memory(ctx)
		if err != nil {
			return err
		}
		if now != last {
			moved, last = time.Now(), now
			m.board.update(func(s *monitorlink.Status) { s.Settings.Memory = now })
		}
		switch {
		case now == size:
			return nil
		case time.Since(moved) >= memoryStall || time.Since(began) >= memoryWait:
			return fault.New(fault.Timeout, "the guest has %s after %s; it may still follow",
				microvm.FormatSize(now>>20<<20), time.Since(began).Round(time.Second)).
				WithHint("its kernel needs the driver virtio_balloon, and memory that it can do without")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
