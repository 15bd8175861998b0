//go:build fakevmm

package machines_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/machines"
	"banger/internal/store"
)

// putWorkspace gives a VM a workspace as package workspaces does; empty: none.
func (b *bed) putWorkspace(vm, head string) {
	b.Helper()
	info := b.get(vm)
	dir := filepath.Join(info.Directory, "workspace", "git")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "HEAD"), []byte(head), 0o600); err != nil {
		b.Fatal(err)
	}
	w := store.Workspace{VM: info.ID, GuestDir: "/root/r", HostPath: "/src/r", Head: head, PreparedAt: time.Unix(1, 0).UTC()}
	if err := b.db.SetWorkspace(b.Context(), w); err != nil {
		b.Fatal(err)
	}
}

func (b *bed) wantWorkspace(vm, head string) {
	b.Helper()
	info := b.get(vm)
	w, err := b.db.Workspace(b.Context(), info.ID)
	text, _ := os.ReadFile(filepath.Join(info.Directory, "workspace", "git", "HEAD"))
	if head == "" {
		if !fault.Is(err, fault.NotFound) || len(text) > 0 {
			b.Errorf("VM %s has a workspace: %+v, %v, %q", vm, w, err, text)
		}
		return
	}
	if err != nil || w.Head != head || w.GuestDir != "/root/r" || w.VM != info.ID || string(text) != head {
		b.Errorf("the workspace of VM %s is %+v, %v, with %q; want %s", vm, w, err, text, head)
	}
}

// A copy of a VM has the workspace that the VM had at that moment, and a VM that returns to it, too.
func TestWorkspaceGoesWithThePoint(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a")
	b.start("a")
	points := machines.PointsOf(b.svc)
	snapshot := func(name string) {
		t.Helper()
		if _, err := points.CreateSnapshot(t.Context(), "a", name, nil); err != nil {
			t.Fatal(err)
		}
	}
	snapshot("none")
	b.putWorkspace("a", "first")
	snapshot("first")
	if _, err := points.Fork(t.Context(), "a", machines.ForkRequest{Names: []string{"fork"}}, nil); err != nil {
		t.Fatal(err)
	}
	b.putWorkspace("a", "second")
	b.wantWorkspace("fork", "first")
	if _, err := points.Restore(t.Context(), "a", machines.RestoreRequest{Snapshot: "first", As: "new"}, nil); err != nil {
		t.Fatal(err)
	}
	b.wantWorkspace("new", "first")
	b.wantWorkspace("a", "second")
	for _, s := range []struct{ name, head string }{{"first", "first"}, {"none", ""}, {"first", "first"}} {
		if _, err := points.Restore(t.Context(), "a", machines.RestoreRequest{Snapshot: s.name, Force: true}, nil); err != nil {
			t.Fatal(err)
		}
		b.wantWorkspace("a", s.head)
	}
}
