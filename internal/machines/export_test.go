package machines

import (
	"context"
	"path/filepath"

	"banger/internal/microvm"
	"banger/internal/monitorlink"
)

// Remember makes what a file of a point is now what it was when it was saved.
func Remember(dir, name string) error {
	p, err := openPoint(dir)
	if err != nil {
		return err
	}
	if p.Files[name], err = look(filepath.Join(dir, name)); err != nil {
		return err
	}
	return monitorlink.WriteJSON(filepath.Join(dir, pointManifest), p)
}

// InUse returns for how many VMs the service keeps something in memory.
func (s *Service) InUse() int {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	return len(s.table.entries)
}

// Spares returns the ids of the spares that can be claimed.
func (s *Service) Spares() (ids []microvm.ID) {
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	for _, sp := range s.pool.spares {
		ids = append(ids, sp.id)
	}
	return ids
}

// SparePids returns the processes of the oldest spare.
func (s *Service) SparePids() (monitor, vmm int) {
	st, _ := s.table.attachment(s.Spares()[0]).get()
	return st.MonitorPid, st.VMMPid
}

// SweepSpares ends the spares that should not be any more.
func (s *Service) SweepSpares(ctx context.Context) { s.pool.sweep(ctx, &s.core) }

// ExpireClaim ends what waits for the start of a VM that was a spare.
func (s *Service) ExpireClaim(ctx context.Context, id microvm.ID) { expireClaim(ctx, &s.core, id, 0) }

// Suspend suspends a VM as if its monitor had told that it is idle.
func (s *Service) Suspend(ctx context.Context, id microvm.ID) { suspend(ctx, &s.core, id) }
