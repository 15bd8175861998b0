//go:build fakevmm

package machines_test

import (
	"strings"
	"testing"
	"time"

	"banger/internal/machines"
	"banger/internal/microvm"
)

// wantSet changes one value, and compares its effect and what the detail says.
func (b *bed) wantSet(req machines.SetRequest, key string, want machines.Effect, says string) {
	b.Helper()
	got := b.set("a", req)[key]
	if got.Effect != want || !strings.Contains(got.Detail, says) {
		b.Errorf("%s: %+v, want %s and %q", key, got, want, says)
	}
}

func TestSetMemoryOfRunningVM(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a")
	const mib = 1 << 20
	memory := func(n int64) machines.SetRequest { return machines.SetRequest{Memory: new(n * mib)} }
	b.wantSet(memory(512), "memory", machines.NextStart, "")
	first := b.start("a")
	running := func(want int64) {
		t.Helper()
		if got := b.get("a"); got.Spec.Memory != want*mib || got.BootID != first.BootID {
			t.Errorf("recorded %s, boot %s, want %d MiB and the first boot", microvm.FormatSize(got.Spec.Memory), got.BootID, want)
		}
	}
	b.wantSet(memory(512), "memory", machines.Unchanged, "")
	b.wantSet(memory(256), "memory", machines.Now, "")
	b.wantSet(memory(256), "memory", machines.Unchanged, "")
	running(256)
	b.wantSet(memory(1024), "memory", machines.NextStart, "started with, 512MiB") // and it has those 512 again
	b.wantSet(memory(512), "memory", machines.Now, "already")
	b.wantSet(memory(256), "memory", machines.Now, "")

	// The next daemon knows what the VM has now, and not only what it was started with.
	b.restart()
	b.wantSet(memory(256), "memory", machines.Unchanged, "")
	b.wantSet(memory(384), "memory", machines.Now, "")
	running(384)

	if _, err := b.svc.Pause(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	b.wantSet(memory(256), "memory", machines.NextStart, "paused")
	if _, err := b.svc.Resume(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	b.wantSet(memory(256), "memory", machines.Now, "")
	if _, err := b.svc.Kill(t.Context(), "a", 0); err != nil {
		t.Fatal(err)
	}
	b.start("a")
	b.wantSet(memory(512), "memory", machines.NextStart, "started with, 256MiB")
}

func TestSetTimeLimitsOfRunningVM(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	vm := b.create("a")
	ttl := func(d time.Duration) machines.SetRequest { return machines.SetRequest{TTL: &d} }
	idle := func(d time.Duration) machines.SetRequest { return machines.SetRequest{IdleTimeout: &d} }
	b.wantSet(ttl(2*time.Hour), "ttl", machines.NextStart, "")
	b.wantSet(ttl(2*time.Hour), "ttl", machines.Unchanged, "")
	b.start("a")
	b.wantSet(ttl(2*time.Hour), "ttl", machines.Unchanged, "")
	b.wantSet(ttl(time.Hour), "ttl", machines.Now, "")
	b.wantSet(idle(time.Hour), "idle_timeout", machines.Now, "")
	// A time that is over already would end the VM this moment, which nobody means: it is recorded.
	b.wantSet(ttl(time.Nanosecond), "ttl", machines.NextStart, "over already")
	b.wantSet(ttl(0), "ttl", machines.Now, "")
	b.restart()
	b.wantSet(idle(time.Hour), "idle_timeout", machines.Unchanged, "")
	b.wantSet(ttl(0), "ttl", machines.Unchanged, "")
	b.mustAnswer("a")

	// The monitor keeps the new limit: it ends the VM.
	b.wantSet(idle(time.Second), "idle_timeout", machines.Now, "")
	if got := b.waitState("a", microvm.Stopped); !strings.Contains(got.Cause, "idle") {
		t.Errorf("it ended because %q", got.Cause)
	}
	b.mustNotRun(vm.ID)
}
