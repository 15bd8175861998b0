package machines

import (
	"path/filepath"

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
