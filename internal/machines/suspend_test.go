//go:build fakevmm

package machines_test

import (
	"os"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/machines"
	"banger/internal/microvm"
)

// drowsy makes and starts a VM that is suspended when nothing happens in it for a second, and waits for that.
func (b *bed) drowsy(name string) (before machines.Info) {
	b.Helper()
	vm, err := b.svc.Create(b.Context(), machines.CreateRequest{
		Name: name, Spec: microvm.Spec{Lifetime: microvm.Lifetime{AutoSuspend: time.Second}},
	}, nil)
	if err != nil {
		b.Fatal(err)
	}
	before = b.start(name)
	b.waitState(name, microvm.Suspended)
	b.mustNotRun(vm.ID, before.Status.MonitorPid, before.Status.VMMPid)
	return before
}

func TestIdleVMsAreSuspended(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	before := b.drowsy("box")
	b.mustAnswer("box") // which wakes it
	after := b.get("box")
	if after.State != microvm.Running || after.BootID != before.BootID || after.BootID == "" {
		t.Errorf("it is %s with the boot id %q, which was %q", after.State, after.BootID, before.BootID)
	}
	if entries, err := os.ReadDir(b.path("vms", string(before.ID), "suspended")); err == nil {
		t.Errorf("what it was saved in is still there: %v", entries)
	}

	// Suspended once more, it outlives the daemon as it is.
	b.waitState("box", microvm.Suspended)
	b.restart()
	if info := b.get("box"); info.State != microvm.Suspended {
		t.Errorf("it is %s", info.State)
	}
	b.mustAnswer("box")
	if again := b.get("box"); again.BootID != before.BootID {
		t.Errorf("the boot id is %q, and was %q", again.BootID, before.BootID)
	}
}

// TestSuspendedVMs walks what can be asked of one but to reach its guest.
func TestSuspendedVMs(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		do   func(*bed) error
		want microvm.State // empty: it is gone
	}{
		"stop": {func(b *bed) error {
			_, err := b.svc.Stop(b.Context(), "box", time.Second, nil)
			return err
		}, microvm.Stopped},
		"kill": {func(b *bed) error {
			_, err := b.svc.Kill(b.Context(), "box", 0)
			return err
		}, microvm.Stopped},
		"start": {func(b *bed) error {
			_, err := b.svc.Start(b.Context(), "box", nil)
			return err
		}, microvm.Running},
		"delete": {func(b *bed) error { return b.svc.Delete(b.Context(), "box", false) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			b.drowsy("box")
			if err := c.do(b); err != nil {
				t.Fatal(err)
			}
			info, err := b.svc.Get(t.Context(), "box")
			if c.want == "" {
				if !fault.Is(err, fault.NotFound) {
					t.Errorf("it is still there: %+v, %v", info.VM, err)
				}
				return
			}
			if info.State != c.want || err != nil {
				t.Errorf("it is %s, %v", info.State, err)
			}
			if c.want == microvm.Stopped {
				_, how := b.startTold("box")
				b.wantStage(how, "boot", "restore")
			}
			b.mustAnswer("box")
		})
	}
}

// TestSuspensionFailsAnywhere makes each call of a suspension fail: the VM goes on, or it has stopped and goes on when it is
// started.
func TestSuspensionFailsAnywhere(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	if _, err := b.svc.Create(t.Context(), machines.CreateRequest{Name: "box"}, nil); err != nil {
		t.Fatal(err)
	}
	before := b.start("box")
	for n := int32(1); ; n++ {
		b.calls.arm(n)
		b.svc.Suspend(t.Context(), before.ID)
		failed := b.calls.failed.Load()
		b.calls.disarm()
		if info := b.start("box"); info.BootID != before.BootID {
			t.Errorf("call %d (%v) failed, and the boot id is %q instead of %q", n, failed, info.BootID, before.BootID)
		}
		b.mustAnswer("box")
		if failed == nil {
			break
		}
	}
}

// TestSuspensionIsCutOff has the daemon end when the VM stands still and is saved already.
func TestSuspensionIsCutOff(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("box")
	before := b.start("box")
	if _, err := b.svc.Pause(t.Context(), "box"); err != nil {
		t.Fatal(err)
	}
	origin := b.path("vms", string(before.ID), "origin.json")
	if err := os.WriteFile(origin, []byte(`{"Point": "nowhere", "Same": true}`), 0o600); err != nil {
		t.Fatal(err)
	}
	b.setRow(before.ID, microvm.Running, false)
	b.restart()
	b.mustAnswer("box")
	if _, err := os.Stat(origin); err == nil {
		t.Error("its next start would go on from what is past")
	}
}
