//go:build fakevmm

package machines_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"banger/internal/microvm"
)

// TestUnrecordedEnd is about a VM that has ended, which could not be recorded. The next operation must not take it for
// one that somebody else has in hand.
func TestUnrecordedEnd(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a")
	for n := int32(1); ; n++ {
		b.start("a")
		b.calls.arm(n)
		_, err := b.svc.Stop(t.Context(), "a", 20*time.Second, nil)
		b.calls.disarm()
		failed := b.calls.failed.Load()
		if failed == nil {
			t.Fatal("the stop does not record its end")
		}
		if *failed == "SetState stopped" {
			if err == nil {
				t.Error("the stop says nothing of it")
			}
			break
		}
	}
	if info := b.get("a"); info.State == microvm.Stopped {
		t.Fatal("the end was recorded nevertheless")
	}
	if info, err := b.svc.Stop(t.Context(), "a", 0, nil); err != nil || info.State != microvm.Stopped {
		t.Errorf("stop again: %s, %v", info.State, err)
	}
	b.start("a")
	b.mustAnswer("a")
}

// TestRuntimeOfStoppedVM is about a daemon that was killed after it had ended a stray process, and before it had removed
// what that left behind.
func TestRuntimeOfStoppedVM(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	vm := b.create("a")
	b.stop()
	if err := os.Mkdir(b.dirs(vm.ID).Runtime, 0o700); err != nil {
		t.Fatal(err)
	}
	b.restart()
	if _, err := os.Stat(b.dirs(vm.ID).Runtime); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its runtime directory is still there (%v)", err)
	}
	if info := b.get("a"); info.State != microvm.Stopped {
		t.Errorf("it is %s", info.State)
	}
}
