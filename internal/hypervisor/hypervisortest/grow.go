package hypervisortest

import (
	"context"
	"os"
	"strconv"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/hypervisor"
)

// growDisk: a disk grows under a guest that runs, keeps what is on it, and takes writes; what makes no sense is refused
// and changes nothing.
func (s Suite) growDisk(t *testing.T) {
	m := s.Machine(t)
	m.Disks = []hypervisor.Disk{
		{Serial: "base", Path: newDisk(t, "base\n"), ReadOnly: true},
		{Serial: "work", Path: newDisk(t, "work\n")},
	}
	base, work := m.Disks[0].Path, m.Disks[1].Path
	g := s.boot(t, m)
	grower, is := g.VMM.(hypervisor.DiskGrower)
	if can := s.Backend(t).Capabilities().GrowDisk; can != is {
		t.Fatalf("Capabilities().GrowDisk = %t, and the VMM is a DiskGrower: %t", can, is)
	}
	if !is {
		t.Skip("this backend grows no disks of running VMs")
	}
	const before, after = 1 << 20, 3 << 20
	for _, c := range []struct {
		serial string
		size   int64
		want   fault.Kind
	}{
		{"work", before / 2, fault.Invalid},
		{"work", 0, fault.Invalid},
		{"work", -after, fault.Invalid},
		{"work", after + 1, fault.Invalid},
		{"base", after, fault.Invalid},
		{"nonesuch", after, fault.NotFound},
	} {
		if err := grower.GrowDisk(t.Context(), c.serial, c.size); !fault.Is(err, c.want) {
			t.Errorf("GrowDisk(%s, %d) = %v, want a fault of kind %s", c.serial, c.size, err, c.want)
		}
	}
	g.wantSize("work", before)
	for range 2 { // the second time it has the size already
		if err := grower.GrowDisk(t.Context(), "work", after); err != nil {
			t.Fatalf("GrowDisk() = %v", err)
		}
		g.wantSize("work", after)
	}
	g.want("work", "read work")
	g.want("ok", "write work grown")
	for path, want := range map[string]int64{base: before, work: after} {
		if info, err := os.Stat(path); err != nil || info.Size() != want {
			t.Errorf("the file %s: %v, %v, want %d bytes", path, info, err, want)
		}
	}
	if err := g.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := grower.GrowDisk(t.Context(), "work", 2*after); err != nil {
		t.Errorf("GrowDisk of a paused VM = %v", err)
	}
	if err := g.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.wantSize("work", 2*after)
	g.want("grown", "read work")
	g.Kill()
	if err := grower.GrowDisk(context.WithoutCancel(t.Context()), "work", 4*after); !fault.Is(err, fault.Precondition) {
		t.Errorf("GrowDisk after the end = %v, want a fault of kind %s", err, fault.Precondition)
	}
}

// wantSize waits until the guest sees a disk of a size in bytes: it learns of the change a moment after the VMM has.
func (g *guest) wantSize(serial string, want int64) {
	g.t.Helper()
	for deadline := time.Now().Add(g.answer); ; time.Sleep(10 * time.Millisecond) {
		got := g.ask("size %s", serial)
		if got == strconv.FormatInt(want, 10) {
			return
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("the guest sees %s bytes of the disk %s, want %d", got, serial, want)
		}
	}
}
