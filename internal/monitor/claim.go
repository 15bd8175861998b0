package monitor

import (
	"context"
	"crypto/rand"
	"time"

	"banger/internal/cgroup"
	"banger/internal/fault"
	"banger/internal/guestlink"
	"banger/internal/guestproto"
	"banger/internal/hypervisor"
	"banger/internal/monitorlink"
)

// claimTimeout bounds how long the guest of a spare may take to accept what it is from now on.
const claimTimeout = 10 * time.Second

// claimEntropy is how many fresh bytes the guest of a spare gets: as many as its kernel's generator has.
const claimEntropy = 32

// claim makes a spare a VM of somebody's. It resumes the guest and gives it its name, fresh random numbers and the time; only then
// it counts as one that can be reached. After an error the daemon ends it.
func (m *Monitor) claim(ctx context.Context, vmm hypervisor.VMM, spec *monitorlink.ClaimSpec) error {
	began := time.Now()
	if spec == nil {
		return fault.New(fault.Invalid, "a request to claim a spare without saying for what")
	}
	if st := m.board.get(); !st.Parked || st.Phase != monitorlink.Ready || !m.taken.CompareAndSwap(false, true) {
		return fault.New(fault.Precondition, "the VM is no spare that could be claimed")
	}
	ports, err := openPorts(spec.Publish, m.link, m.board, m.log)
	if err != nil {
		return err
	}
	m.claimed <- ports // has room for the only one
	if err := vmm.Resume(ctx); err != nil {
		return err
	}
	id := guestproto.Identity{Hostname: spec.Hostname, TimeNS: time.Now().UnixNano(), Entropy: make([]byte, claimEntropy)}
	_, _ = rand.Read(id.Entropy) // never fails (crypto/rand)
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	if err := guestlink.NewClient(m.link).Configure(ctx, id); err != nil {
		return err
	}
	m.adoptWeights(spec)
	m.began.Store(&began)
	m.board.update(func(s *monitorlink.Status) {
		s.Parked, s.Paused = false, false
		s.Settings.TTL, s.Settings.IdleTimeout, s.Settings.AutoSuspend = spec.TTL, spec.IdleTimeout, spec.AutoSuspend
		s.Stages = []monitorlink.Stage{{Name: "claim", Elapsed: time.Since(began)}}
	})
	m.log.Info("spare claimed", "vm", m.launch.ID, "dur", time.Since(began))
	return nil
}

// adoptWeights gives the VM the weights that are asked for. That the kernel does not let it is told and no more, as in
// enterGroup.
func (m *Monitor) adoptWeights(spec *monitorlink.ClaimSpec) {
	now := m.board.get().Settings
	for _, w := range []struct {
		controller    cgroup.Controller
		wanted, there int
	}{{cgroup.CPU, spec.Weights.CPU, now.CPUWeight}, {cgroup.IO, spec.Weights.IO, now.IOWeight}} {
		if w.wanted == 0 || w.wanted == w.there || !m.launch.Group.Has(w.controller) {
			continue
		}
		if err := m.setWeight(w.controller, w.wanted); err != nil {
			m.log.Warn("limits are not enforced", "vm", m.launch.ID, "err", err)
		}
	}
}
