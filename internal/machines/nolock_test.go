//go:build fakevmm

package machines_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/machines"
	"banger/internal/microvm"
	"banger/internal/progress"
)

// hungSources never have the image, until they are told to go on.
type hungSources struct {
	machines.Sources

	reached chan struct{} // gets a value for each that waits
	name    string        // of the image that hangs
}

func (s hungSources) Image(ctx context.Context, name string, report progress.Sink) (machines.Image, error) {
	if name != s.name {
		return s.Sources.Image(ctx, name, report)
	}
	s.reached <- struct{}{}
	<-ctx.Done()
	return machines.Image{}, context.Cause(ctx)
}

// othersGoOn checks that what hangs holds up nobody but its own VM: reads go on, a second operation on that VM is refused and
// told who has it, and another VM can do all that VMs do. Whatever waited for the thing that hangs would wait for ever.
func othersGoOn(t *testing.T, svc *machines.Service, subject, holder string) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 30*time.Second, fault.New(fault.Internal, "it waits for what hangs"))
	defer cancel()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 20 {
				if _, err := svc.List(ctx); err != nil {
					t.Errorf("list: %v", err)
				}
				if info, err := svc.Get(ctx, subject); err != nil || info.Name != subject {
					t.Errorf("get: %v", err)
				}
			}
		})
	}
	all.Go(func() {
		_, err := svc.Stop(ctx, subject, time.Second, nil)
		if !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "busy: "+holder) {
			t.Errorf("a second operation: %v", err)
		}
	})
	all.Go(func() {
		const other = "other"
		_, err := svc.Create(ctx, machines.CreateRequest{Name: other}, nil)
		if err == nil {
			_, err = svc.Start(ctx, other, nil)
		}
		if err == nil {
			_, err = svc.Stop(ctx, other, 10*time.Second, nil)
		}
		if err == nil {
			err = svc.Delete(ctx, other, false)
		}
		if err != nil {
			t.Errorf("another VM: %v", err)
		}
	})
	all.Wait()
}

func TestHungImageStoreHoldsUpNobody(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	hung := hungSources{Sources: b.sources, reached: make(chan struct{}, 1), name: "hung"}
	svc := machines.New(machines.Config{
		VMs: b.path("vms"), Runtime: b.path("run"),
		Defaults: microvm.Spec{
			Image: "image", Kernel: "kernel", VCPUs: 1, Memory: microvm.MinMemory, DiskSize: microvm.MinDiskSize,
			Init: microvm.InitAgent, Net: microvm.NetNone, Backend: "fake",
		},
	}, testStore{b.calls, b.db}, hung, b.host, slog.New(slog.DiscardHandler))
	running, end := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() { svc.Run(running) })
	ctx, cancel := context.WithCancelCause(t.Context())
	var err error
	work.Go(func() {
		_, err = svc.Create(ctx, machines.CreateRequest{Name: "subject", Spec: microvm.Spec{Image: "hung"}}, nil)
	})
	<-hung.reached
	othersGoOn(t, svc, "subject", "create")
	cancel(fault.New(fault.Canceled, "enough"))
	end()
	work.Wait()
	if !fault.Is(err, fault.Canceled) {
		t.Errorf("the create that hung: %v", err)
	}
}

func TestHungDiskHoldsUpNobody(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	reached, first := make(chan struct{}), sync.Once{}
	b.host.disk = func(ctx context.Context) (err error) {
		hangs := false
		first.Do(func() { hangs = true; close(reached) })
		if hangs {
			<-ctx.Done()
			err = context.Cause(ctx)
		}
		return err
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := b.svc.Create(ctx, machines.CreateRequest{Name: "subject"}, nil)
		ended <- err
	}()
	<-reached
	othersGoOn(t, b.svc, "subject", "create")
	cancel(fault.New(fault.Canceled, "enough"))
	if err := <-ended; !fault.Is(err, fault.Canceled) {
		t.Errorf("the create that hung: %v", err)
	}
}

func TestHungGuestHoldsUpNobody(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("subject")
	good := b.host.guest
	b.host.guest = b.guestScript("exec sleep 1000\n") // never comes up
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	booting := make(chan struct{})
	var once sync.Once
	go func() {
		_, err := b.svc.Start(ctx, "subject", func(u progress.Update) {
			if u.Stage == "boot" {
				once.Do(func() { close(booting) })
			}
		})
		ended <- err
	}()
	select {
	case <-booting:
	case err := <-ended:
		t.Fatalf("the start of a guest that hangs: %v", err)
	}
	b.waitState("subject", microvm.Starting)
	b.host.guest = good
	othersGoOn(t, b.svc, "subject", "start")
	cancel(fault.New(fault.Canceled, "enough"))
	if err := <-ended; !fault.Is(err, fault.Canceled) {
		t.Errorf("the start that hung: %v", err)
	}
}

// TestHungMonitorHoldsUpNobody stops a monitor, for which a pause then waits.
func TestHungMonitorHoldsUpNobody(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("subject")
	info := b.start("subject")
	if err := syscall.Kill(info.Status.MonitorPid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for stopped := false; !stopped; time.Sleep(time.Millisecond) { // the signal takes effect a moment later
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", info.Status.MonitorPid))
		if err != nil {
			t.Fatal(err)
		}
		stopped = strings.Contains(string(stat), ") T ")
	}
	ended := make(chan error, 1)
	go func() {
		_, err := b.svc.Pause(t.Context(), "subject") // waits for the monitor's answer
		ended <- err
	}()
	for { // until the pause has the VM
		_, _, err := b.svc.Set(t.Context(), "subject", machines.SetRequest{Labels: map[string]string{"a": "b"}})
		if fault.Is(err, fault.Busy) {
			if !strings.Contains(err.Error(), "busy: pause") {
				t.Errorf("a second operation: %v", err)
			}
			break
		}
		select {
		case err := <-ended:
			t.Fatalf("the pause ended: %v", err)
		default:
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for range 50 {
		if _, err := b.svc.List(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := b.svc.Get(ctx, "subject"); err != nil {
			t.Fatal(err)
		}
	}
	b.create("other")
	b.start("other")
	b.mustAnswer("other")
	if _, err := b.svc.Kill(ctx, "subject", 0); err != nil { // interrupts the pause
		t.Errorf("kill: %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("a monitor that was stopped has paused its VM")
	}
}
