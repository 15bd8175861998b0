package images

import (
	"context"
	"fmt"
)

// Leftovers returns what Recover would remove: paths of unfinished work whose process has died, and of images that
// neither a name nor a VM needs. It changes nothing.
func (s *shelf) Leftovers(ctx context.Context) ([]string, error) {
	found, err := s.depot.Abandoned(ctx)
	if err != nil {
		return nil, err
	}
	err = s.publishing(ctx, func(string) error {
		blobs, err := s.collect(ctx, true)
		for _, b := range blobs {
			found = append(found, b.paths...)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look for images that nobody needs: %w", err)
	}
	return found, nil
}
