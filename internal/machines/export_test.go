package machines

// InUse returns for how many VMs the service keeps something in memory.
func (s *Service) InUse() int {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	return len(s.table.entries)
}
