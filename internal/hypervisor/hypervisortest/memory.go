package hypervisortest

import (
	"context"
	"strconv"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/hypervisor"
)

// sizeMemory: a guest gives up memory and gets it back, up to what it was booted with; what makes no sense is refused and
// changes nothing.
func (s Suite) sizeMemory(t *testing.T) {
	m := s.Machine(t)
	g := s.boot(t, m)
	sizer, is := g.VMM.(hypervisor.MemorySizer)
	if can := s.Backend(t).Capabilities().SizeMemory; can != is {
		t.Fatalf("Capabilities().SizeMemory = %t, and the VMM is a MemorySizer: %t", can, is)
	}
	if !is {
		t.Skip("this backend does not change the memory of running VMs")
	}
	const mib = 1 << 20
	whole := g.memory()
	if whole <= 0 || whole > m.Memory {
		t.Fatalf("the guest has %d bytes of the machine's %d", whole, m.Memory)
	}
	small := m.Memory/2 + 32*mib
	set := func(size int64) {
		t.Helper()
		if err := sizer.SetMemory(t.Context(), size); err != nil {
			t.Fatalf("SetMemory(%d) = %v", size, err)
		}
		g.wantMemory(sizer, size, whole-(m.Memory-size))
	}
	for _, size := range []int64{small, small, m.Memory - 32*mib, m.Memory} {
		set(size)
	}
	for _, size := range []int64{0, -mib, small + 1, m.Memory + mib} {
		if err := sizer.SetMemory(t.Context(), size); !fault.Is(err, fault.Invalid) {
			t.Errorf("SetMemory(%d) = %v, want a fault of kind %s", size, err, fault.Invalid)
		}
	}
	g.wantMemory(sizer, m.Memory, whole)
	// A paused guest is told, and follows when it goes on.
	if err := g.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := sizer.SetMemory(t.Context(), small); err != nil {
		t.Errorf("SetMemory of a paused VM = %v", err)
	}
	if err := g.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.wantMemory(sizer, small, whole-(m.Memory-small))
	g.want("alive", "echo alive")
	g.Kill()
	ended := context.WithoutCancel(t.Context())
	_, err := sizer.Memory(ended)
	for what, err := range map[string]error{"SetMemory": sizer.SetMemory(ended, small), "Memory": err} {
		if !fault.Is(err, fault.Precondition) {
			t.Errorf("%s after the end = %v, want a fault of kind %s", what, err, fault.Precondition)
		}
	}
}

// memory returns what the guest says to have, in bytes.
func (g *guest) memory() int64 {
	g.t.Helper()
	n, err := strconv.ParseInt(g.ask("memory"), 10, 64)
	if err != nil {
		g.t.Fatal(err)
	}
	return n
}

// wantMemory waits until the VMM and the guest say that the guest has a size, in bytes: it follows by itself.
func (g *guest) wantMemory(sizer hypervisor.MemorySizer, vmm, inside int64) {
	g.t.Helper()
	for deadline := time.Now().Add(g.answer); ; time.Sleep(20 * time.Millisecond) {
		size, err := sizer.Memory(g.t.Context())
		if err != nil {
			g.t.Fatalf("Memory() = %v", err)
		}
		seen := g.memory()
		if size == vmm && seen == inside {
			return
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("the VMM says that the guest has %d bytes, want %d; the guest says %d, want %d", size, vmm, seen, inside)
		}
	}
}
