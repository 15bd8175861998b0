package store

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"banger/internal/fault"
	"banger/internal/microvm"
)

// TestListIsNeverStale: whoever has changed something, by whatever connection, sees it in the next listing.
func TestListIsNeverStale(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	var stores [2]*Store
	for i := range stores {
		s, err := Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close() //nolint:errcheck,revive // a test's end
		stores[i] = s
	}
	names := func(s *Store) map[string]microvm.State {
		vms, err := s.List(t.Context())
		if err != nil {
			t.Error(err)
		}
		all := map[string]microvm.State{}
		for i := range vms {
			all[vms[i].Name] = vms[i].State
			vms[i].Name = "changed by who has asked" // the slice is his
		}
		return all
	}
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			mine, other := stores[w%2], stores[(w+1)%2]
			for i := range 25 {
				vm := microvm.VM{ID: microvm.NewID(), Name: fmt.Sprintf("w%d-%d", w, i), State: microvm.Creating}
				if err := mine.Insert(t.Context(), &vm); err != nil {
					t.Error(err)
					return
				}
				if _, ok := names(other)[vm.Name]; !ok {
					t.Errorf("%s is not in the list", vm.Name)
				}
				if err := other.SetState(t.Context(), vm.ID, Change{To: microvm.Stopped}); err != nil {
					t.Error(err)
				}
				if got := names(mine)[vm.Name]; got != microvm.Stopped {
					t.Errorf("%s is %q", vm.Name, got)
				}
				if err := mine.Remove(t.Context(), vm.ID); err != nil {
					t.Error(err)
				}
				if _, ok := names(mine)[vm.Name]; ok {
					t.Errorf("%s is in the list still", vm.Name)
				}
			}
		})
	}
	writers.Wait()
}

// TestListAfterFailure: a reader that gave up leaves nothing broken behind.
func TestListAfterFailure(t *testing.T) {
	t.Parallel()
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.List(ctx); !fault.Is(err, fault.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
	if vms, err := s.List(t.Context()); err != nil || len(vms) != 0 {
		t.Errorf("%v, %v", vms, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
