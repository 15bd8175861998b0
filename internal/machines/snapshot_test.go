//go:build fakevmm

package machines_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/fault"
	"banger/internal/machines"
	"banger/internal/microvm"
)

// A restore in place that fails says how to go on, and costs neither the snapshot nor the VM.
func TestRestoreInPlaceFails(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a")
	b.start("a")
	points := machines.PointsOf(b.svc)
	if _, err := points.CreateSnapshot(t.Context(), "a", "one", nil); err != nil {
		t.Fatal(err)
	}
	if is := b.get("a"); is.SnapshotsAllocated <= 0 {
		t.Errorf("its snapshot takes up %d bytes", is.SnapshotsAllocated)
	}
	dir := filepath.Join(b.get("a").Directory, "snapshots", "one")
	state := filepath.Join(dir, "state")
	good, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	// write makes the state one that is taken for what was saved.
	write := func(text []byte) {
		t.Helper()
		if err := os.WriteFile(state, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := machines.Remember(dir, "state"); err != nil {
			t.Fatal(err)
		}
	}
	restore := func() (machines.Info, error) {
		return points.Restore(t.Context(), "a", machines.RestoreRequest{Snapshot: "one", Force: true}, nil)
	}
	write([]byte(strings.Repeat("x", 40)))
	if _, err := restore(); err == nil || !strings.Contains(fault.HintOf(err), "banger vm snapshot restore a one --force") {
		t.Errorf("%v; hint %q", err, fault.HintOf(err))
	}
	if is := b.get("a"); is.State != microvm.Failed || is.Cause == "" {
		t.Errorf("the VM is %s (%s)", is.State, is.Cause)
	}
	if all, err := points.Snapshots(t.Context(), "a"); err != nil || len(all) != 1 || all[0].Problem != "" {
		t.Errorf("%+v, %v", all, err)
	}
	_, how := b.startTold("a")
	b.wantStage(how, "boot", "")
	if len(how.warnings) != 1 || !strings.Contains(how.warnings[0], "boots with the disks of the moment") {
		t.Errorf("told %q", how.warnings)
	}
	write(good)
	if info, err := restore(); err != nil || info.State != microvm.Running {
		t.Errorf("once more: %+v, %v", info, err)
	}
	b.exec("a", "true")
}

// A snapshot whose disks a VM has by half can't be deleted until the VM has them all.
func TestDeleteSnapshotThatIsBeingRestored(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a")
	b.start("a")
	points := machines.PointsOf(b.svc)
	if _, err := points.CreateSnapshot(t.Context(), "a", "one", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := b.svc.Kill(t.Context(), "a", 0); err != nil {
		t.Fatal(err)
	}
	dir := b.get("a").Directory
	mark := `{"Point": "` + filepath.Join(dir, "snapshots", "one") + `"}`
	if err := os.WriteFile(filepath.Join(dir, "revert.json"), []byte(mark), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := points.DeleteSnapshot(t.Context(), "a", "one"); !fault.Is(err, fault.Precondition) || fault.HintOf(err) == "" {
		t.Errorf("%v", err)
	}
	b.start("a")
	if err := points.DeleteSnapshot(t.Context(), "a", "one"); err != nil {
		t.Error(err)
	}
}

// A VM without a balloon takes another size of memory at its next start, and says so.
func TestSetMemoryOfRestored(t *testing.T) {
	t.Parallel()
	b := newTemplateBed(t)
	was := int64(2 * microvm.MinMemory)
	b.build(microvm.Spec{Memory: was})
	_, how := b.from("a", microvm.Spec{Memory: was})
	b.wantStage(how, "restore", "boot")
	for _, s := range []struct {
		size   int64
		effect machines.Effect
		detail string
	}{
		{microvm.MinMemory, machines.NextStart, "restored from a template"},
		{3 * microvm.MinMemory, machines.NextStart, "restored from a template"},
		{was, machines.Now, "runs with that already"},
		{was, machines.Unchanged, ""},
	} {
		_, results, err := b.svc.Set(t.Context(), "a", machines.SetRequest{Memory: &s.size})
		if err != nil || len(results) != 1 || results[0].Effect != s.effect || !strings.Contains(results[0].Detail, s.detail) {
			t.Errorf("%d: %+v, %v; want %s", s.size, results, err, s.effect)
		}
	}
}
