package kernels

import (
	"context"
	"errors"
	"slices"
)

// Leftovers returns paths of unfinished work whose process has died, which Recover removes. It changes nothing.
func (s *Store) Leftovers(ctx context.Context) ([]string, error) {
	kernels, err := s.kernels.Abandoned(ctx)
	archives, err2 := s.archives.Abandoned(ctx)
	return slices.Concat(kernels, archives), errors.Join(err, err2)
}
