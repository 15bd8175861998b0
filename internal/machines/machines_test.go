//go:build fakevmm

package machines_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/machines"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
	"banger/internal/progress"
)

func TestLife(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	var mu sync.Mutex
	stages := map[string]int{}
	sink := progress.Sink(func(u progress.Update) {
		mu.Lock()
		defer mu.Unlock()
		if u.Ended {
			stages[u.Stage]++
		}
	})
	vm, err := b.svc.Create(t.Context(), machines.CreateRequest{Name: "a", Spec: microvm.Spec{Net: microvm.NetUser, VCPUs: 2}}, sink)
	if err != nil {
		t.Fatal(err)
	}
	if vm.State != microvm.Stopped || vm.ImageDigest != "sha256:1" || vm.Spec.VCPUs != 2 || vm.Spec.Image != "image" || vm.CreatedAt.IsZero() {
		t.Errorf("created: %+v", vm)
	}
	for _, disk := range []string{"system.img", "work.img"} {
		if info, err := os.Stat(filepath.Join(b.dirs(vm.ID).State, disk)); err != nil || info.Size() != microvm.MinDiskSize {
			t.Errorf("%s: %v, %v", disk, info, err)
		}
	}

	info, err := b.svc.Start(t.Context(), "a", sink)
	if err != nil {
		t.Fatal(err)
	}
	if info.State != microvm.Running || info.BootID == "" || info.Backend != "fake" || info.Accel != "none" || info.Reason != "it is a test" ||
		info.Status.Phase != monitorlink.Ready || !info.Status.Reachable || len(info.Status.Stages) != 2 || info.Directory != b.dirs(vm.ID).State {
		t.Errorf("started: %+v", info)
	}
	for _, stage := range []string{"image", "make disks", "start monitor", "boot"} {
		if stages[stage] != 1 {
			t.Errorf("stage %q ended %d times", stage, stages[stage])
		}
	}
	b.mustAnswer("a")
	if files, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(info.Status.VMMPid), "fd", "*")); err != nil || !linksTo(files, "monitor.lock") {
		t.Errorf("the VMM does not hold the VM's lock: %v", err)
	}

	again := b.start("a")
	if again.Status.MonitorPid != info.Status.MonitorPid || again.BootID != info.BootID {
		t.Error("a second start started something")
	}
	stopped, err := b.svc.Stop(t.Context(), "a", 20*time.Second, sink)
	if err != nil || stopped.State != microvm.Stopped || stopped.Cause != "stopped" || stopped.BootID != "" || stopped.Status.MonitorPid != 0 {
		t.Errorf("stopped: %+v, %v", stopped, err)
	}
	b.mustNotRun(vm.ID, info.Status.MonitorPid, info.Status.VMMPid)
	if again, err := b.svc.Stop(t.Context(), "a", 0, nil); err != nil || again.State != microvm.Stopped || !again.ChangedAt.Equal(stopped.ChangedAt) {
		t.Errorf("stopped twice: %+v, %v", again, err)
	}
	if _, _, err := b.svc.Guest(t.Context(), "a"); !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "stopped") {
		t.Errorf("guest of a stopped VM: %v", err)
	}

	if next := b.start("a"); next.Status.MonitorPid == info.Status.MonitorPid {
		t.Error("the second life has the first one's monitor")
	}
	b.mustAnswer("a")
	if err := b.svc.Delete(t.Context(), "a", false); !fault.Is(err, fault.Precondition) || !strings.Contains(fault.HintOf(err), "--force") {
		t.Errorf("delete of a running VM: %v", err)
	}
	b.mustAnswer("a")
	last := b.get("a")
	if err := b.svc.Delete(t.Context(), "a", true); err != nil {
		t.Error(err)
	}
	waitGone(t, last.Status.MonitorPid)
	waitGone(t, last.Status.VMMPid)
	b.mustBeEmpty()
	if err := b.svc.Delete(t.Context(), "a", true); !fault.Is(err, fault.NotFound) {
		t.Errorf("deleted twice: %v", err)
	}
	if vm := b.create("a"); vm.ID == info.ID {
		t.Error("a new VM has an old id")
	}
}

func linksTo(files []string, name string) bool {
	for _, f := range files {
		if target, err := os.Readlink(f); err == nil && filepath.Base(target) == name {
			return true
		}
	}
	return false
}

func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("taken")
	for name, c := range map[string]struct {
		req  machines.CreateRequest
		kind fault.Kind
	}{
		"bad name":   {machines.CreateRequest{Name: "Not A Name"}, fault.Invalid},
		"bad spec":   {machines.CreateRequest{Spec: microvm.Spec{VCPUs: -1}}, fault.Invalid},
		"name taken": {machines.CreateRequest{Name: "taken"}, fault.Exists},
	} {
		if _, err := b.svc.Create(t.Context(), c.req, nil); !fault.Is(err, c.kind) {
			t.Errorf("%s: %v, want %v", name, err, c.kind)
		}
	}
	if vms, err := b.svc.List(t.Context()); err != nil || len(vms) != 1 {
		t.Errorf("%d VMs, %v", len(vms), err)
	}
}

func TestOneOfManyGetsTheName(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	var won, lost atomic.Int32
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			switch _, err := b.svc.Create(t.Context(), machines.CreateRequest{Name: "a"}, nil); {
			case err == nil:
				won.Add(1)
			case fault.Is(err, fault.Exists):
				lost.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 || lost.Load() != 9 {
		t.Errorf("%d won, %d lost", won.Load(), lost.Load())
	}
	if dirs, _ := os.ReadDir(b.path("vms")); len(dirs) != 1 {
		t.Errorf("%d directories", len(dirs))
	}
}

func TestMadeUpNames(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for range 5 {
		if vm := b.create(""); microvm.ValidateName(vm.Name) != nil {
			t.Errorf("the name %q was made up", vm.Name)
		}
	}
}

func TestVMsSideBySide(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	var wg sync.WaitGroup
	for _, name := range []string{"a", "b", "c"} {
		wg.Go(func() {
			if _, err := b.svc.Create(t.Context(), machines.CreateRequest{Name: name}, nil); err != nil {
				t.Error(err)
			} else if _, err := b.svc.Start(t.Context(), name, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, name := range []string{"a", "b", "c"} {
		if t.Failed() {
			return
		}
		b.mustAnswer(name)
	}
}

// mute is a guest that lives and never answers.
const mute = "echo the kernel hangs here; exec sleep 1000\n"

// startMute begins to start a VM whose guest never answers, and returns when that is under way.
func startMute(b *bed) (vm microvm.VM, cancel func(), result <-chan error) {
	b.Helper()
	b.host.guest = b.guestScript(mute)
	vm = b.create("a")
	ctx, cancel := context.WithCancel(b.Context())
	out := make(chan error, 1)
	go func() {
		_, err := b.svc.Start(ctx, "a", nil)
		out <- err
	}()
	for deadline := time.Now().Add(30 * time.Second); b.get("a").Status.VMMPid == 0; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatal("the VMM was not started")
		}
	}
	return vm, cancel, out
}

func TestBusyAndCancelledStart(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	vm, cancel, result := startMute(b)
	defer cancel()
	pids := b.get("a").Status
	busy := regexp.MustCompile(`VM a is busy: start, \d+ s`)
	var wg sync.WaitGroup
	for name, op := range map[string]func() error{
		"start":  func() error { _, err := b.svc.Start(t.Context(), "a", nil); return err },
		"stop":   func() error { _, err := b.svc.Stop(t.Context(), "a", 0, nil); return err },
		"delete": func() error { return b.svc.Delete(t.Context(), "a", false) },
	} {
		wg.Go(func() {
			if err := op(); !fault.Is(err, fault.Busy) || !busy.MatchString(err.Error()) {
				t.Errorf("%s: %v, want busy", name, err)
			}
		})
	}
	wg.Wait()
	// Who only looks is not kept waiting.
	if info := b.get("a"); info.State != microvm.Starting {
		t.Errorf("it is %s", info.State)
	}
	// Others are not concerned.
	b.create("other")

	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled start: %v", err)
	}
	if info := b.get("a"); info.State != microvm.Stopped || info.Cause != "its start was cancelled" {
		t.Errorf("after a cancelled start it is %s (%s)", info.State, info.Cause)
	}
	b.mustNotRun(vm.ID, pids.MonitorPid, pids.VMMPid)
}

func TestGuestThatNeverAnswers(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	vm := b.create("a")
	b.host.guest = b.guestScript("echo attempt >>" + b.path("attempts") + "\n" + mute)
	b.host.timeout = 300 * time.Millisecond
	var again atomic.Bool
	_, err := b.svc.Start(t.Context(), "a", func(u progress.Update) {
		if strings.Contains(u.Detail, "once more") {
			again.Store(true)
		}
	})
	if !fault.Is(err, fault.Timeout) || !strings.Contains(err.Error(), "the kernel hangs here") || !strings.Contains(err.Error(), "300ms") {
		t.Errorf("start: %v, want a timeout with the console's last lines", err)
	}
	if !strings.Contains(fault.HintOf(err), "banger logs a") {
		t.Errorf("hint: %q", fault.HintOf(err))
	}
	if n, _ := os.ReadFile(b.path("attempts")); strings.Count(string(n), "attempt") != 2 || !again.Load() {
		t.Errorf("attempts: %q, told: %t", n, again.Load())
	}
	info := b.get("a")
	if info.State != microvm.Failed || info.Cause == "" || strings.Contains(info.Cause, "\n") {
		t.Errorf("it is %s (%q)", info.State, info.Cause)
	}
	b.mustNotRun(vm.ID)
	if _, _, err := b.svc.Guest(t.Context(), "a"); !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), info.Cause) {
		t.Errorf("guest of a failed VM: %v", err)
	}
	// What was wrong is mended, and it may be started.
	b.host.guest, b.host.timeout = guestExe, 30*time.Second
	b.start("a")
	b.mustAnswer("a")
}

func TestGuestThatDiesAtBoot(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		script string
		says   []string
	}{
		"panic":    {"echo Kernel panic - not syncing; exit 75\n", []string{"Kernel panic"}},
		"crash":    {"echo bad machine; exit 3\n", []string{"exit status 3", "bad machine"}},
		"shutdown": {"echo nothing to do; exit 0\n", []string{"nothing to do"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			vm := b.create("a")
			b.host.guest = b.guestScript(c.script)
			_, err := b.svc.Start(t.Context(), "a", nil)
			if err == nil {
				t.Fatal("it started")
			}
			for _, want := range c.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q: %v", want, err)
				}
			}
			if info := b.get("a"); info.State != microvm.Failed {
				t.Errorf("it is %s", info.State)
			}
			b.mustNotRun(vm.ID)
		})
	}
}

func TestMonitorThatCannotBoot(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	vm := b.create("a")
	if err := os.Remove(b.path("kernel")); err != nil {
		t.Fatal(err)
	}
	_, err := b.svc.Start(t.Context(), "a", nil)
	if err == nil || !strings.Contains(err.Error(), b.path("kernel")) || fault.HintOf(err) == "" {
		t.Errorf("start: %v (hint %q)", err, fault.HintOf(err))
	}
	if info := b.get("a"); info.State != microvm.Failed || !strings.Contains(info.Cause, "kernel") {
		t.Errorf("it is %s (%s)", info.State, info.Cause)
	}
	b.mustNotRun(vm.ID)
	if err := b.svc.Delete(t.Context(), "a", false); err != nil {
		t.Error(err)
	}
}

// TestEndsThatNobodyAskedFor kills parts of a running VM.
func TestEndsThatNobodyAskedFor(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		pid   func(monitorlink.Status) int
		sig   syscall.Signal
		cause string
	}{
		"monitor":  {func(s monitorlink.Status) int { return s.MonitorPid }, syscall.SIGKILL, "monitor-lost"},
		"VMM":      {func(s monitorlink.Status) int { return s.VMMPid }, syscall.SIGKILL, "crashed"},
		"shutdown": {func(s monitorlink.Status) int { return s.VMMPid }, syscall.SIGTERM, "the guest shut down"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			vm := b.create("a")
			st := b.start("a").Status
			if err := syscall.Kill(c.pid(st), c.sig); err != nil {
				t.Fatal(err)
			}
			info := b.waitState("a", microvm.Stopped)
			if !strings.Contains(info.Cause, c.cause) || info.BootID != "" {
				t.Errorf("cause %q, boot id %q; want %q", info.Cause, info.BootID, c.cause)
			}
			b.mustNotRun(vm.ID, st.MonitorPid, st.VMMPid)
			b.start("a")
			b.mustAnswer("a")
		})
	}
}

// TestEndThatWasNotRecorded makes the record of a VM's end fail: the next operation must not take it for running.
func TestEndThatWasNotRecorded(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a")
	st := b.start("a").Status
	b.calls.arm(1) // the store's, when the end is to be recorded
	if err := syscall.Kill(st.MonitorPid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); b.calls.failed.Load() == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody tried to record the end")
		}
	}
	b.calls.disarm()
	if info := b.start("a"); info.Status.MonitorPid == st.MonitorPid {
		t.Error("a VM that has ended was taken for running")
	}
	b.mustAnswer("a")
}

func TestPausedVM(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	vm := b.create("a")
	b.start("a")
	if err := monitorlink.NewClient(b.dirs(vm.ID).Socket()).Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.restart()
	if info := b.get("a"); info.State != microvm.Paused || !info.Status.Paused {
		t.Errorf("adopted as %s", info.State)
	}
	if _, _, err := b.svc.Guest(t.Context(), "a"); !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "paused") {
		t.Errorf("guest of a paused VM: %v", err)
	}
	if _, err := b.svc.Start(t.Context(), "a", nil); !fault.Is(err, fault.Precondition) {
		t.Errorf("start of a paused VM: %v", err)
	}
	info, err := b.svc.Stop(t.Context(), "a", 20*time.Second, nil)
	if err != nil || info.Cause != "stopped" {
		t.Errorf("a paused VM was not shut down properly: %s, %v", info.Cause, err)
	}
}

func TestStopOfAGuestThatDoesNotGoDown(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	vm := b.create("a")
	// The agent is a child; its end is not the machine's.
	b.host.guest = b.guestScript(guestExe + ` "$@"` + "\nexec sleep 1000\n")
	st := b.start("a").Status
	info, err := b.svc.Stop(t.Context(), "a", 100*time.Millisecond, nil)
	if err != nil || info.State != microvm.Stopped || !strings.Contains(info.Cause, "killed") {
		t.Errorf("stop: %s (%s), %v", info.State, info.Cause, err)
	}
	b.mustNotRun(vm.ID, st.MonitorPid, st.VMMPid)
}

// TestMonitorThatHangs stops a monitor with a signal: whoever acts on its VM must not hang with it.
func TestMonitorThatHangs(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a")
	st := b.start("a").Status
	if err := syscall.Kill(st.MonitorPid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := b.svc.Delete(t.Context(), "a", true); err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d > 15*time.Second {
		t.Errorf("it took %s", d)
	}
	waitGone(t, st.MonitorPid)
	waitGone(t, st.VMMPid)
	b.mustBeEmpty()
}

// TestSilentClientOfTheMonitor connects and says nothing: the VM's end must not wait for it.
func TestSilentClientOfTheMonitor(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	vm := b.create("a")
	b.start("a")
	conn := dial(t, b.dirs(vm.ID).Socket())
	defer conn.Close() //nolint:errcheck // nothing to flush
	began := time.Now()
	if _, err := b.svc.Stop(t.Context(), "a", 20*time.Second, nil); err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d > 4*time.Second { // less than what such a client has while the VM runs
		t.Errorf("the stop took %s", d)
	}
}

func TestServiceThatEnds(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	vm := b.create("a")
	b.stop()
	if _, err := b.svc.Start(t.Context(), "a", nil); !fault.Is(err, fault.Unavailable) {
		t.Errorf("start: %v, want Unavailable", err)
	}
	b.mustNotRun(vm.ID)
	b.serve()
}
