//go:build fakevmm

package machines_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"banger/internal/hypervisor"
	"banger/internal/machines"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
)

func errorNames(err error, name string) bool { return strings.Contains(err.Error(), name) }

// launch starts a VM's monitor as a daemon does that dies right after it.
func (b *bed) launch(vm microvm.VM) {
	b.Helper()
	d := b.dirs(vm.ID)
	if err := os.Mkdir(d.Runtime, 0o700); err != nil {
		b.Fatal(err)
	}
	hv, err := b.host.Hypervisor(b.Context(), "fake")
	if err != nil {
		b.Fatal(err)
	}
	err = b.host.StartMonitor(d, monitorlink.Launch{
		ID: vm.ID, Name: vm.Name, Backend: "fake", Host: hv.Host, BootTimeout: hv.BootTimeout,
		Machine: hypervisor.Machine{
			ID: string(vm.ID), VCPUs: 1, Memory: microvm.MinMemory, Kernel: b.path("kernel"), Initramfs: b.path("initramfs"), Dir: d.Runtime,
		},
	})
	if err != nil {
		b.Fatal(err)
	}
}

// TestEachCallFails makes every call that creating and starting a VM needs fail in turn.
func TestEachCallFails(t *testing.T) {
	t.Parallel()
	const most = 40
	for n := int32(1); ; n++ {
		if n > most {
			t.Fatalf("after %d calls there is no end", most)
		}
		if failNth(newBed(t), n) {
			if n < 15 {
				t.Errorf("creating and starting a VM took only %d calls: something is not counted", n-1)
			}
			return
		}
	}
}

// failNth creates and starts a VM while the n-th call fails, and reports whether there was no n-th call.
func failNth(b *bed, n int32) (done bool) {
	b.Helper()
	b.calls.arm(n)
	vm, err := b.svc.Create(b.Context(), machines.CreateRequest{Name: "a"}, nil)
	if err != nil {
		b.mustName(err)
		b.mustBeEmpty()
		return false
	}
	_, err = b.svc.Start(b.Context(), "a", nil)
	failed := b.calls.failed.Load()
	b.calls.disarm()
	info := b.get("a")
	switch {
	case failed == nil:
		if err != nil || info.State != microvm.Running {
			b.Errorf("without a failure it is %s, %v", info.State, err)
		}
		b.mustAnswer("a")
		return true
	case err == nil:
		b.Errorf("%s failed and the start did not", *failed)
	default:
		b.mustName(err)
	}
	// The last call only reads again what has begun to run.
	if info.State == microvm.Running && *failed == "Get" {
		b.mustAnswer("a")
		return false
	}
	if info.State != microvm.Stopped && info.State != microvm.Failed {
		b.Errorf("after the failure of %s it is %s", *failed, info.State)
	}
	if info.State == microvm.Failed && info.Cause == "" {
		b.Errorf("after the failure of %s no cause is given", *failed)
	}
	b.mustNotRun(vm.ID)
	b.start("a")
	b.mustAnswer("a")
	return false
}

func (b *bed) mustName(err error) {
	b.Helper()
	if failed := b.calls.failed.Load(); failed == nil || !errors.Is(err, errInjected) || !errorNames(err, *failed) {
		b.Errorf("the error does not name what failed: %v", err)
	}
}

// TestDeleteThatFails makes every call of a deletion fail in turn: whatever is left can be deleted later, or by recovery.
func TestDeleteThatFails(t *testing.T) {
	t.Parallel()
	const most = 20
	for n := int32(1); n <= most; n++ {
		b := newBed(t)
		vm := b.create("a")
		st := b.start("a").Status
		b.calls.arm(n)
		err := b.svc.Delete(t.Context(), "a", true)
		failed := b.calls.failed.Load()
		b.calls.disarm()
		if failed == nil {
			if err != nil {
				t.Error(err)
			}
			b.mustBeEmpty()
			return
		}
		switch {
		case err != nil:
			b.mustName(err)
		case *failed != "Get": // that one may have been of who follows the VM, and has no bearing any more
			t.Errorf("%s failed and the deletion did not", *failed)
		}
		b.restart()
		if info, err := b.svc.Get(t.Context(), string(vm.ID)); err == nil && info.State == microvm.Deleting {
			t.Errorf("after the failure of %s recovery did not finish the deletion", *failed)
		} else if err == nil && info.State == microvm.Stopped {
			b.mustNotRun(vm.ID, st.MonitorPid, st.VMMPid)
		}
	}
	t.Errorf("after %d calls there is no end", most)
}
