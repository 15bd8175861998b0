//go:build fakevmm

package machines_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"banger/internal/fault"
	"banger/internal/microvm"
)

func dial(t *testing.T, socket string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestAdoption(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a")
	before := b.start("a")
	b.restart()
	after := b.get("a")
	if after.State != microvm.Running || after.BootID != before.BootID || after.Status.MonitorPid != before.Status.MonitorPid ||
		after.Status.VMMPid != before.Status.VMMPid || !after.ChangedAt.Equal(before.ChangedAt) || after.Reason != before.Reason {
		t.Errorf("before: %+v\nafter: %+v", before, after)
	}
	b.mustAnswer("a")
	if info, err := b.svc.Stop(t.Context(), "a", 0, nil); err != nil || info.State != microvm.Stopped {
		t.Errorf("stop after the adoption: %s, %v", info.State, err)
	}
}

// found is what recovery finds of a VM's process.
type found int

const (
	absent found = iota
	silent
	alive
	presences
)

// fate is what must have become of a VM after recovery.
type fate string

const (
	running fate = "running" // the same guest, and it answers
	stopped fate = "stopped" // with a cause, and nothing runs
	kept    fate = "kept"    // the state as it was, and nothing runs
	gone    fate = "gone"    // without a trace
)

// fates is written down a second time on purpose: the service's table is held to it.
func fates() map[microvm.State][presences]fate {
	return map[microvm.State][presences]fate{
		microvm.Creating:  {gone, gone, gone},
		microvm.Stopped:   {kept, kept, kept},
		microvm.Starting:  {stopped, stopped, running},
		microvm.Running:   {stopped, stopped, running},
		microvm.Paused:    {stopped, stopped, running},
		microvm.Suspended: {kept, kept, kept},
		microvm.Stopping:  {stopped, stopped, stopped},
		microvm.Deleting:  {gone, gone, gone},
		microvm.Failed:    {kept, kept, kept},
	}
}

func TestRecovery(t *testing.T) {
	t.Parallel()
	for _, state := range microvm.States() {
		row, ok := fates()[state]
		if !ok {
			t.Errorf("nothing is said of %s", state)
		}
		for f, want := range row {
			t.Run(string(state)+"/"+[]string{"absent", "silent", "alive"}[f], func(t *testing.T) {
				t.Parallel()
				testRecovery(newBed(t), state, found(f), want, false)
			})
		}
	}
}

// TestRecoveryOfEphemeralVMs is about VMs whose client went with the daemon. One that failed is kept for whoever asks why.
func TestRecoveryOfEphemeralVMs(t *testing.T) {
	t.Parallel()
	for _, state := range microvm.States() {
		for f, want := range [presences]fate{gone, gone, gone} {
			if state == microvm.Failed {
				want = kept
			}
			t.Run(string(state)+"/"+[]string{"absent", "silent", "alive"}[f], func(t *testing.T) {
				t.Parallel()
				testRecovery(newBed(t), state, found(f), want, true)
			})
		}
	}
}

// testRecovery makes the situation, recovers, and looks.
func testRecovery(b *bed, state microvm.State, f found, want fate, ephemeral bool) {
	b.Helper()
	vm := b.create("a")
	var bootID string
	var pids []int
	if f == alive {
		info := b.start("a")
		bootID, pids = info.BootID, []int{info.Status.MonitorPid, info.Status.VMMPid}
	}
	b.stop()
	if f == silent {
		b.silent(vm.ID, state == microvm.Running && !ephemeral) // a connection that hangs costs time: once will do
	}
	b.setRow(vm.ID, state, ephemeral)
	b.restart()

	info, err := b.svc.Get(b.Context(), string(vm.ID))
	if want == gone {
		if !fault.Is(err, fault.NotFound) {
			b.Errorf("it is there as %s, %v", info.State, err)
		}
		for _, dir := range []string{b.dirs(vm.ID).State, b.dirs(vm.ID).Runtime} {
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				b.Errorf("%s is still there (%v)", dir, err)
			}
		}
		b.mustNotRun(vm.ID, pids...)
		return
	}
	if err != nil {
		b.Fatal(err)
	}
	if want == running {
		if info.State != microvm.Running || info.BootID != bootID {
			b.Errorf("it is %s with the boot id %q, want running with %q", info.State, info.BootID, bootID)
		}
		b.mustAnswer("a")
		return
	}
	wanted := microvm.Stopped
	if want == kept {
		wanted = state
	} else if info.Cause == "" {
		b.Error("no cause is given")
	}
	if info.State != wanted {
		b.Errorf("it is %s, want %s", info.State, wanted)
	}
	b.mustNotRun(vm.ID, pids...)
	if _, err := os.Stat(filepath.Join(info.Directory, "system.img")); err != nil {
		b.Errorf("its disk: %v", err)
	}
}

// TestInterruptedStart finds a monitor whose guest has not answered yet: nobody waits for it any more.
func TestInterruptedStart(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.host.guest = b.guestScript(mute)
	vm := b.create("a")
	b.stop()
	b.launch(vm)
	b.setRow(vm.ID, microvm.Starting, false)
	b.restart()
	if info := b.get("a"); info.State != microvm.Stopped || info.Cause != "its start was interrupted" {
		t.Errorf("it is %s (%s)", info.State, info.Cause)
	}
	b.mustNotRun(vm.ID)
}

// TestRuntimeDirectoryVanishes is what a logout does: the monitor lives and cannot be reached, and its disks must not be
// given to a second one.
func TestRuntimeDirectoryVanishes(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	vm := b.create("a")
	st := b.start("a").Status
	b.stop()
	if err := os.RemoveAll(b.path("run")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(b.path("run"), 0o700); err != nil {
		t.Fatal(err)
	}
	b.restart()
	if info := b.get("a"); info.State != microvm.Stopped {
		t.Errorf("it is %s", info.State)
	}
	b.mustNotRun(vm.ID, st.MonitorPid, st.VMMPid)
	b.start("a")
	b.mustAnswer("a")
}

func TestSweep(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	vm := b.create("a")
	info := b.start("a")
	b.stop()
	orphan := microvm.ID("0123456789ab")
	b.silent(orphan, false)
	for _, dir := range []string{"vms/ffffffffffff/sub", "run/eeeeeeeeeeee", "vms/not-an-id", "run/0123456789AB", "vms/0123456789abc"} {
		if err := os.MkdirAll(b.path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	outside := b.path("outside")
	if err := os.Mkdir(outside, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, b.path("vms", "dddddddddddd")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.path("vms", "cccccccccccc"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.restart()
	for path, want := range map[string]bool{
		"vms/ffffffffffff": false, "run/eeeeeeeeeeee": false, "vms/0123456789ab": false, "run/0123456789ab": false,
		"vms/not-an-id": true, "run/0123456789AB": true, "vms/0123456789abc": true, "vms/dddddddddddd": true, "vms/cccccccccccc": true, "outside": true,
		"vms/" + string(vm.ID) + "/work.img": true, "run/" + string(vm.ID): true,
	} {
		if _, err := os.Lstat(b.path(path)); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %t", path, err, want)
		}
	}
	b.mustAnswer("a")
	if again := b.get("a"); again.BootID != info.BootID {
		t.Error("a VM that is known was touched")
	}
	for _, path := range []string{"vms/not-an-id", "run/0123456789AB", "vms/0123456789abc", "vms/dddddddddddd", "vms/cccccccccccc"} {
		if err := os.Remove(b.path(path)); err != nil {
			t.Error(err)
		}
	}
}

// TestOneBadVMDoesNotKeepTheOthers gives recovery a VM that it cannot mend.
func TestOneBadVMDoesNotKeepTheOthers(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	bad, good := b.create("bad"), b.create("good")
	b.stop()
	b.setRow(bad.ID, microvm.Running, false)
	b.setRow(good.ID, microvm.Running, false)
	lock := filepath.Join(b.dirs(bad.ID).State, "monitor.lock")
	if err := os.Symlink("/dev/null", lock); err != nil { // refused: not followed
		t.Fatal(err)
	}
	b.serve()
	if err := b.svc.Recover(t.Context()); err == nil || !errorNames(err, "bad") {
		t.Errorf("recover: %v, want an error that names the VM", err)
	}
	if info := b.get("good"); info.State != microvm.Stopped {
		t.Errorf("the other VM is %s", info.State)
	}
	if err := os.Remove(lock); err != nil {
		t.Fatal(err)
	}
	b.restart()
}
