package store_test

import (
	"path/filepath"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/microvm"
	"banger/internal/store"
)

func TestWorkspaceGoesWithItsVM(t *testing.T) {
	t.Parallel()
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "banger.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // test
	w := store.Workspace{
		VM: "0123456789ab", GuestDir: "/root/a", HostPath: "/src/\xff\n", Head: "c0", HostHead: "c1", Branch: "main", Tree: "d0", Files: "e0",
		PreparedAt: time.Unix(0, 1700000000000000001).UTC(),
	}
	if err := s.SetWorkspace(t.Context(), w); !fault.Is(err, fault.NotFound) {
		t.Errorf("a workspace of no VM: %v", err)
	}
	if err := s.Insert(t.Context(), &microvm.VM{ID: w.VM, Name: "a", State: microvm.Creating}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Workspace(t.Context(), w.VM); !fault.Is(err, fault.NotFound) {
		t.Errorf("before it is set: %v", err)
	}
	for _, want := range []store.Workspace{w, {VM: w.VM, GuestDir: "/root/b", HostPath: "/b", Copied: true, PreparedAt: w.PreparedAt}} {
		if err := s.SetWorkspace(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Workspace(t.Context(), w.VM); err != nil || got != want {
			t.Errorf("%+v, %v; want %+v", got, err, want)
		}
	}
	if err := s.Remove(t.Context(), w.VM); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Workspace(t.Context(), w.VM); !fault.Is(err, fault.NotFound) {
		t.Errorf("after the VM has gone: %v", err)
	}
}
