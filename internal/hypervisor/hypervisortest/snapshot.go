package hypervisortest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/hypervisor"
)

// saved is a VM that was saved, and is gone.
type saved struct {
	suite   Suite
	machine hypervisor.Machine // without what only a boot needs
	hypervisor.Snapshot
	count int // of the guest, before it was paused
}

// save boots a machine with a disk, lets its guest know something, and saves it: running, and then paused, which is what
// counts. The VM goes on in between.
func save(t *testing.T, s Suite, fixed bool) saved {
	t.Helper()
	b := s.Backend(t)
	_, restores := b.(hypervisor.Restorer)
	if can := b.Capabilities().Snapshot; can != restores {
		t.Fatalf("Capabilities().Snapshot = %t, and the backend is a Restorer: %t", can, restores)
	}
	if !restores {
		t.Skip("this backend saves no VMs")
	}
	m := s.Machine(t)
	m.Disks = []hypervisor.Disk{{Serial: "work", Path: newDisk(t, "work\n")}}
	m.FixedMemory = fixed
	g := s.boot(t, m)
	refusesToSave(t, g)
	_ = saveTo(t, g, t.TempDir())
	g.want("work", "read work")
	out := saved{suite: s, machine: m, count: g.count()}
	if err := g.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	out.Snapshot = saveTo(t, g, t.TempDir())
	if st, err := g.Status(t.Context()); err != nil || st != hypervisor.Paused {
		t.Errorf("Status() of a paused VM that was saved = %s, %v, want %s", st, err, hypervisor.Paused)
	}
	if err := g.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.want("work", "read work")
	g.end()
	return out
}

// saveTo saves a VM and makes sure of what was promised.
func saveTo(t *testing.T, g *guest, dir string) hypervisor.Snapshot {
	t.Helper()
	s := hypervisor.Snapshot{Memory: filepath.Join(dir, "memory"), State: filepath.Join(dir, "state")}
	was, err := g.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	still := false
	began := time.Now()
	how, err := saverOf(t, g).Save(t.Context(), s, func() error {
		st, err := g.Status(t.Context())
		if still = true; err != nil || st != hypervisor.Paused {
			t.Errorf("Status() while a VM is saved = %s, %v, want %s", st, err, hypervisor.Paused)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("Save() = %v", err)
	}
	took := time.Since(began)
	if now, err := g.Status(t.Context()); err != nil || now != was || !still || (how.Paused > 0) != (was == hypervisor.Running) {
		t.Errorf("after Save() = %+v the VM is %s, %v, and was %s; still was called: %t", how, now, err, was, still)
	}
	var allocated int64
	for _, path := range []string{s.Memory, s.State} {
		info, err := os.Stat(path)
		if err != nil || info.Size() == 0 || info.Mode().Perm() != 0o600 {
			t.Fatalf("%s: %v, %v, want a file with something in it for its owner alone", path, info, err)
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			allocated += st.Blocks * 512
		}
	}
	t.Logf("saved a VM that was %s in %s, paused %s, %d MiB", was, took, how.Paused, allocated>>20)
	return s
}

func saverOf(t *testing.T, g *guest) hypervisor.Saver {
	t.Helper()
	saver, is := g.VMM.(hypervisor.Saver)
	if !is {
		t.Fatal("the VMM is no Saver")
	}
	return saver
}

// refusesToSave: what can't be saved leaves no file behind, and the VM goes on.
func refusesToSave(t *testing.T, g *guest) {
	t.Helper()
	dir := t.TempDir()
	there := filepath.Join(dir, "there")
	if err := os.WriteFile(there, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused := errors.New("refused")
	good := hypervisor.Snapshot{Memory: filepath.Join(dir, "memory"), State: filepath.Join(dir, "state")}
	for name, c := range map[string]struct {
		hypervisor.Snapshot
		still error
	}{
		"memory that is there": {hypervisor.Snapshot{Memory: there, State: good.State}, nil},
		"state that is there":  {hypervisor.Snapshot{Memory: good.Memory, State: there}, nil},
		"no directory":         {hypervisor.Snapshot{Memory: good.Memory, State: filepath.Join(dir, "no", "state")}, nil},
		"still fails":          {good, refused},
	} {
		_, err := saverOf(t, g).Save(t.Context(), c.Snapshot, func() error { return c.still })
		if err == nil || c.still != nil && !errors.Is(err, c.still) {
			t.Errorf("%s: Save() = %v", name, err)
		}
		if st, err := g.Status(t.Context()); err != nil || st != hypervisor.Running {
			t.Errorf("%s: Status() = %s, %v, want %s", name, st, err, hypervisor.Running)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Errorf("%s: left behind: %v, %v", name, left, err)
		}
	}
}

// restore starts a copy of a VM that was saved, with a disk of its own.
func (from saved) restore(t *testing.T) *guest {
	t.Helper()
	return from.restoreWith(t, newDisk(t, "work\n"))
}

// restoreWith does so with a given disk.
func (from saved) restoreWith(t *testing.T, disk string) *guest {
	t.Helper()
	m := from.machine
	m.Dir = t.TempDir()
	m.Disks = []hypervisor.Disk{{Serial: "work", Path: disk}}
	began := time.Now()
	vmm, err := from.suite.Backend(t).(hypervisor.Restorer).Restore(t.Context(), m, from.Snapshot) //nolint:forcetypeassert // save saw it
	if err != nil {
		t.Fatalf("Restore() = %v", err)
	}
	g := from.suite.adopt(t, vmm)
	if st, err := g.Status(t.Context()); err != nil || st != hypervisor.Paused {
		t.Fatalf("Status() of a restored VM = %s, %v, want %s", st, err, hypervisor.Paused)
	}
	restored := time.Since(began)
	if err := g.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := g.count(); now < from.count {
		t.Errorf("the guest counts %d after it was restored, less than %d before it was saved", now, from.count)
	}
	t.Logf("restored in %s, answers after %s", restored, time.Since(began))
	return g
}

// snapshot: a VM that was saved goes on as many times as one likes, two at once among them, each with a memory and a disk
// of its own, and the snapshot stays as it is.
func (s Suite) snapshot(t *testing.T) {
	for name, fixed := range map[string]bool{"fixed memory": true, "memory of its own": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from := save(t, s, fixed)
			before := sum(t, from.Snapshot)
			one, two := from.restore(t), from.restore(t)
			one.want("ok", "write work first")
			two.want("ok", "write work second")
			one.want("first", "read work")
			two.want("second", "read work")
			again := from.saveAgain(t, one)
			one.want("first", "read work")
			one.end()
			two.want("second", "read work")
			two.end()
			from.restore(t).want("work", "read work")
			if after := sum(t, from.Snapshot); !bytes.Equal(before, after) {
				t.Error("the snapshot has changed")
			}
			// A copy of a copy does not need what that was made from.
			if err := errors.Join(os.Remove(from.Memory), os.Remove(from.State)); err != nil {
				t.Fatal(err)
			}
			again.restoreWith(t, again.machine.Disks[0].Path).want("first", "read work")
		})
	}
}

// saveAgain saves a VM that was restored, with its disk. What it was restored from may be gone.
func (from saved) saveAgain(t *testing.T, g *guest) saved {
	t.Helper()
	hidden := from.Memory + ".hidden"
	if err := os.Rename(from.Memory, hidden); err != nil {
		t.Fatal(err)
	}
	again := from
	again.count = g.count()
	again.Snapshot = saveTo(t, g, t.TempDir())
	again.machine.Disks = []hypervisor.Disk{{Serial: "work", Path: newDisk(t, "first\n")}}
	if err := os.Rename(hidden, from.Memory); err != nil {
		t.Fatal(err)
	}
	return again
}

// restoreOddities: what cannot be restored is refused, and leaves nothing behind.
func (s Suite) restoreOddities(t *testing.T) {
	from := save(t, s, true)
	b := s.Backend(t).(hypervisor.Restorer) //nolint:forcetypeassert // save saw it
	good, err := os.ReadFile(from.State)
	if err != nil {
		t.Fatal(err)
	}
	write := func(content []byte) string {
		path := filepath.Join(t.TempDir(), "state")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	short := filepath.Join(t.TempDir(), "memory")
	if err := os.WriteFile(short, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(t.TempDir(), "nothing")
	for name, c := range map[string]struct {
		hypervisor.Snapshot
		change func(*hypervisor.Machine)
		want   fault.Kind
	}{
		"no state":        {hypervisor.Snapshot{Memory: from.Memory, State: missing}, nil, fault.NotFound},
		"no memory":       {hypervisor.Snapshot{Memory: missing, State: from.State}, nil, fault.NotFound},
		"empty state":     {hypervisor.Snapshot{Memory: from.Memory, State: write(nil)}, nil, fault.Corrupt},
		"truncated state": {hypervisor.Snapshot{Memory: from.Memory, State: write(good[:len(good)/2])}, nil, fault.Corrupt},
		"foreign state":   {hypervisor.Snapshot{Memory: from.Memory, State: write(bytes.Repeat([]byte("x"), 4096))}, nil, fault.Corrupt},
		"short memory":    {hypervisor.Snapshot{Memory: short, State: from.State}, nil, fault.Corrupt},
		"another machine": {from.Snapshot, func(m *hypervisor.Machine) { m.Disks = nil }, fault.Corrupt},
	} {
		m := from.machine
		m.Dir = t.TempDir()
		if c.change != nil {
			c.change(&m)
		}
		vmm, err := b.Restore(t.Context(), m, c.Snapshot)
		if err == nil {
			s.adopt(t, vmm)
		}
		if !fault.Is(err, c.want) {
			t.Errorf("%s: Restore() = %v, want a fault of kind %s", name, err, c.want)
		}
		t.Logf("%s: %v", name, err)
		wantEmpty(t, m.Dir)
	}
}

// sum returns a digest of a snapshot's files.
func sum(t *testing.T, s hypervisor.Snapshot) []byte {
	t.Helper()
	h := sha256.New()
	for _, path := range []string{s.Memory, s.State} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(h, f)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return h.Sum(nil)
}
