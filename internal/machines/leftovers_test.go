//go:build fakevmm

package machines_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/machines"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
)

// TestForcedDeleteInterruptsACreation deletes a VM that is long in the making.
func TestForcedDeleteInterruptsACreation(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	begun := make(chan struct{}, 2)
	b.host.disk = func(ctx context.Context) error {
		begun <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	created := make(chan error, 1)
	go func() {
		_, err := b.svc.Create(t.Context(), machines.CreateRequest{Name: "a"}, nil)
		created <- err
	}()
	<-begun
	if err := b.svc.Delete(t.Context(), "a", false); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "create") {
		t.Errorf("delete without force: %v", err)
	}
	began := time.Now()
	if err := b.svc.Delete(t.Context(), "a", true); err != nil {
		t.Errorf("delete --force: %v", err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
	if err := <-created; !fault.Is(err, fault.Canceled) || !strings.Contains(err.Error(), "forced delete") {
		t.Errorf("create: %v", err)
	}
	b.mustBeEmpty()
	if err := b.svc.Delete(t.Context(), "a", true); !fault.Is(err, fault.NotFound) {
		t.Errorf("delete --force of one that is not there: %v", err)
	}
}

// TestNoOldLastWord makes sure that, from the moment that a start is recorded, there is no word of an earlier monitor that
// could be taken for the new one's by a daemon that comes after a crash.
func TestNoOldLastWord(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	vm := b.create("a")
	b.start("a")
	if _, err := b.svc.Stop(t.Context(), "a", 10*time.Second, nil); err != nil {
		t.Fatal(err)
	}
	if e := b.dirs(vm.ID).ReadExit(); e.Cause == monitorlink.MonitorLost {
		t.Fatal("the first monitor left no word: nothing is tested")
	}
	looked := false
	b.host.monitor = func() {
		looked = true
		if state := b.get("a").State; state != microvm.Starting {
			t.Errorf("it is %s", state)
		}
		if e := b.dirs(vm.ID).ReadExit(); e.Cause != monitorlink.MonitorLost {
			t.Errorf("the last word is %+v", e)
		}
	}
	b.start("a")
	if !looked {
		t.Error("no monitor was started")
	}
}

// kinds words findings briefly.
func kinds(found []machines.Finding) (words []string) {
	for _, f := range found {
		word := string(f.Kind)
		if f.VM != "" {
			word += " of " + f.VM
		}
		if f.Remedy != "" {
			word += ", for people"
		}
		if f.Mended {
			word += ", mended"
		}
		words = append(words, word)
	}
	slices.Sort(words)
	return words
}

// TestMend makes every kind of leftover, looks, mends, and looks again, while other VMs run.
func TestMend(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for _, name := range []string{"good", "paused"} {
		b.create(name)
		b.start(name)
	}
	if _, err := b.svc.Pause(t.Context(), "paused"); err != nil {
		t.Fatal(err)
	}
	if found, err := b.svc.Inspect(t.Context()); err != nil || len(found) > 0 {
		t.Fatalf("in a home that is in order: %+v, %v", found, err)
	}
	before := b.get("good")

	lost, cut, haunted, bare, resting := b.create("lost"), b.create("cut"), b.create("haunted"), b.create("bare"), b.create("resting")
	b.setRow(lost.ID, microvm.Running, false)
	b.setRow(cut.ID, microvm.Creating, false)
	b.silent(haunted.ID, false)
	orphan := microvm.ID("0123456789ab")
	b.silent(orphan, false)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Remove(b.path("vms", string(bare.ID), "work.img")))
	must(os.Mkdir(b.path("run", string(resting.ID)), 0o700))
	must(os.Mkdir(b.path("vms", "ffffffffffff"), 0o700))
	must(os.WriteFile(b.path("vms", "notes.txt"), nil, 0o600))
	defer func() { must(os.Remove(b.path("vms", "notes.txt"))) }()
	// A process whose directory is gone.
	ghost := microvm.ID("eeeeeeeeeeee")
	b.silent(ghost, false)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) { // it ends if it cannot say who it is
		if _, err := os.Stat(b.path("vms", string(ghost), "monitor.json")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the process does not come up")
		}
	}
	must(os.RemoveAll(b.path("vms", string(ghost))))
	must(os.RemoveAll(b.path("run", string(ghost))))

	want := []string{
		"directory", "directory", "directory", "directory of resting", "disk of bare, for people",
		"process", "process", "process of haunted", "state of cut", "state of lost", "unknown, for people",
	}
	found, err := b.svc.Inspect(t.Context())
	if got := kinds(found); err != nil || !slices.Equal(got, want) {
		t.Fatalf("found %q, %v\nwant  %q", got, err, want)
	}
	again, err := b.svc.Inspect(t.Context())
	if got := kinds(again); err != nil || !slices.Equal(got, want) {
		t.Fatalf("to look has changed something: %q, %v", got, err)
	}
	mended, err := b.svc.Mend(t.Context())
	for i, w := range want {
		if !strings.HasSuffix(w, "people") {
			want[i] += ", mended"
		}
	}
	slices.Sort(want)
	if got := kinds(mended); err != nil || !slices.Equal(got, want) {
		t.Fatalf("mended %q, %v\nwant  %q", got, err, want)
	}
	left, err := b.svc.Inspect(t.Context())
	if got := kinds(left); err != nil || !slices.Equal(got, []string{"disk of bare, for people", "unknown, for people"}) {
		t.Errorf("left %q, %v", got, err)
	}
	for _, f := range found {
		if f.Kind == machines.KindProcess && f.Pid != 0 {
			waitGone(t, f.Pid)
		}
	}
	for name, state := range map[string]microvm.State{
		"good": microvm.Running, "paused": microvm.Paused, "lost": microvm.Stopped, "haunted": microvm.Stopped, "bare": microvm.Stopped,
	} {
		if got := b.get(name); got.State != state {
			t.Errorf("%s is %s (%s), want %s", name, got.State, got.Cause, state)
		}
	}
	if _, err := b.svc.Get(t.Context(), "cut"); !fault.Is(err, fault.NotFound) {
		t.Errorf("the VM whose creation was cut off: %v", err)
	}
	if after := b.get("good"); after.BootID != before.BootID || after.Status.VMMPid != before.Status.VMMPid {
		t.Error("a VM that runs was touched")
	}
	b.mustAnswer("good")
	b.start("haunted")
	b.mustAnswer("haunted")
}

// TestMendLeavesAloneWhatIsUnderWay mends while a VM is being made and another is being started.
func TestMendLeavesAloneWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("starting")
	mend := func() {
		if found, err := b.svc.Mend(t.Context()); err != nil || len(found) > 0 {
			t.Errorf("found %+v, %v", found, err)
		}
	}
	b.host.monitor = mend
	b.start("starting")
	b.mustAnswer("starting")
	b.host.disk = func(context.Context) error { mend(); return nil }
	b.create("creating")
}

// TestVMMWithoutMonitor gives recovery a VMM that has outlived its monitor, of which no record tells.
func TestVMMWithoutMonitor(t *testing.T) {
	t.Parallel()
	for _, mended := range []bool{false, true} {
		b := newBed(t)
		vm := b.create("a")
		b.silent(vm.ID, false)
		d := b.dirs(vm.ID)
		if err := os.WriteFile(d.State+"/monitor.json", []byte(`{"Pid":4194304,"Start":1}`), 0o600); err != nil {
			t.Fatal(err)
		}
		all, err := monitorlink.Processes(b.path("vms"))
		if err != nil || len(all[string(vm.ID)]) != 1 {
			t.Fatalf("%+v, %v", all, err)
		}
		pid := all[string(vm.ID)][0].Pid
		// What it records of itself comes too late, or is never written: it is stopped before or after that.
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d.State+"/monitor.json", []byte(`{"Pid":4194304,"Start":1}`), 0o600); err != nil {
			t.Fatal(err)
		}
		if mended {
			b.setRow(vm.ID, microvm.Running, false)
			if found, err := b.svc.Mend(t.Context()); err != nil || len(found) != 1 || !found[0].Mended {
				t.Errorf("mend: %+v, %v", found, err)
			}
		} else {
			b.stop()
			b.setRow(vm.ID, microvm.Running, false)
			b.restart()
		}
		if info := b.get("a"); info.State != microvm.Stopped {
			t.Errorf("it is %s", info.State)
		}
		b.mustNotRun(vm.ID, pid)
		b.start("a")
		b.mustAnswer("a")
	}
}

// TestDamagedRecords recovers VMs that run and whose files are not what they should be.
func TestDamagedRecords(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"launch.json", "monitor.json", "exit.json"} {
		for name, content := range map[string]string{"truncated": `{"Pid":12`, "empty": "", "absurd": `[1]`, "missing": "-"} {
			for _, dead := range []bool{false, true} {
				t.Run(file+" "+name, func(t *testing.T) {
					t.Parallel()
					damaged(newBed(t), file, content, dead)
				})
			}
		}
	}
}

func damaged(b *bed, file, content string, dead bool) {
	b.Helper()
	vm := b.create("a")
	before := b.start("a")
	b.stop()
	if dead {
		if err := b.dirs(vm.ID).KillMonitor(20 * time.Second); err != nil {
			b.Fatal(err)
		}
	}
	path := b.dirs(vm.ID).State + "/" + file
	var err error
	if content == "-" {
		err = os.Remove(path)
	} else {
		err = os.WriteFile(path, []byte(content), 0o600)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		b.Fatal(err)
	}
	b.restart()
	info := b.get("a")
	switch {
	case dead && (info.State != microvm.Stopped || !strings.Contains(info.Cause, "without a word")):
		b.Errorf("it is %s (%s)", info.State, info.Cause)
	case !dead && (info.State != microvm.Running || info.BootID != before.BootID):
		b.Errorf("it is %s (%s)", info.State, info.Cause)
	case dead:
		b.start("a")
	}
	b.mustAnswer("a")
}

// TestHostRebooted: nothing runs, no runtime directory is there, and the pids that were recorded are other processes'.
func TestHostRebooted(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	names := []string{"running", "paused", "starting", "stopping"}
	states := []microvm.State{microvm.Running, microvm.Paused, microvm.Starting, microvm.Stopping}
	var vms []microvm.VM
	for _, name := range names {
		vms = append(vms, b.create(name))
		b.start(name)
	}
	b.stop()
	for i, vm := range vms {
		d := b.dirs(vm.ID)
		if err := d.KillMonitor(20 * time.Second); err != nil {
			t.Fatal(err)
		}
		if err := d.Identify(); err != nil { // the pid is this test's by now; its start is another
			t.Fatal(err)
		}
		b.setRow(vm.ID, states[i], false)
	}
	if err := errors.Join(os.RemoveAll(b.path("run")), os.Mkdir(b.path("run"), 0o700)); err != nil {
		t.Fatal(err)
	}
	b.restart()
	for _, name := range names {
		if info := b.get(name); info.State != microvm.Stopped || !strings.Contains(info.Cause, "the host went down") {
			t.Errorf("%s is %s (%s)", name, info.State, info.Cause)
		}
		b.start(name)
		b.mustAnswer(name)
	}
}
