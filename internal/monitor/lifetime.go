package monitor

import (
	"context"
	"time"

	"banger/internal/guestlink"
	"banger/internal/guestproto"
	"banger/internal/hypervisor"
	"banger/internal/monitorlink"
)

// What counts as activity of a guest that nobody is attached to. A guest at rest stays below both: its kernel's timers
// cost a few percent of a CPU under software emulation, and its network is silent but for an occasional ARP.
const (
	activeCPU   = 15.0    // percent of one host CPU, over a sample
	activeBytes = 1 << 10 // bytes in both directions, over a sample
)

// Times of the end of a VM whose time is up.
const (
	lifetimeCheck = time.Second
	lifetimeAsk   = 2 * time.Second  // for the agent to accept the shutdown
	lifetimeGrace = 10 * time.Second // for the guest to shut down, before it is killed
)

// expire ends the VM when its time is up, or when nothing has happened in it for too long. The monitor does this by
// itself, so that it holds while no daemon is there. It sends the cause before it acts.
func (m *Monitor) expire(ctx context.Context, vmm hypervisor.VMM, cause chan<- monitorlink.Cause) {
	active, idle := *m.began.Load(), time.Duration(0)
	drowsy := active
	var before monitorlink.Sample
	tick := time.NewTicker(lifetimeCheck)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-vmm.Done():
			return
		case <-ctx.Done():
			return
		}
		now := before
		if newest, _ := m.samples.newest(); len(newest) > 0 {
			now = newest[0]
		}
		settings := m.board.get().Settings
		if settings.IdleTimeout != idle { // a new limit gives new time
			active, idle = time.Now(), settings.IdleTimeout
		}
		if m.attached.Load() > 0 || m.isActive(before, now) {
			active = time.Now()
			drowsy = active
		}
		if settings.AutoSuspend > 0 && time.Since(drowsy) >= settings.AutoSuspend {
			drowsy = time.Now() // told again after as long
			m.board.update(func(s *monitorlink.Status) { s.Idle++ })
		}
		before = now
		switch {
		case settings.TTL > 0 && time.Since(*m.began.Load()) >= settings.TTL:
			cause <- monitorlink.TTLExpired
		case idle > 0 && time.Since(active) >= idle:
			cause <- monitorlink.IdleExpired
		default:
			continue
		}
		m.shutDown(ctx, vmm)
		return
	}
}

// isActive reports whether something happened between two samples. A paused guest and one that boots are not idle.
func (m *Monitor) isActive(before, now monitorlink.Sample) bool {
	st := m.board.get()
	if st.Phase != monitorlink.Ready || st.Paused {
		return true
	}
	moved := now.NetReceived + now.NetSent - before.NetReceived - before.NetSent
	return now.CPUPercent > activeCPU || moved > activeBytes
}

// shutDown asks the guest to shut down and kills it if it does not.
func (m *Monitor) shutDown(ctx context.Context, vmm hypervisor.VMM) {
	ask, cancel := context.WithTimeout(ctx, lifetimeAsk)
	err := guestlink.NewClient(m.link).Shutdown(ask, guestproto.PowerOff, lifetimeGrace)
	cancel()
	if err == nil {
		select {
		case <-vmm.Done():
			return
		case <-time.After(lifetimeGrace):
		case <-ctx.Done():
		}
	}
	vmm.Kill()
}
