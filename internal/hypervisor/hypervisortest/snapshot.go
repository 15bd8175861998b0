package hypervisortest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
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

// save boots a machine with a disk, lets its guest know something, and saves it twice: the VM goes on in between, and the
// second is what counts.
func save(t *testing.T, s Suite) saved {
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
	m.MemoryFile = filepath.Join(t.TempDir(), "memory")
	g := s.boot(t, m)
	saver, is := g.VMM.(hypervisor.StateSaver)
	if !is {
		t.Fatal("the VMM is no Saver")
	}
	state := filepath.Join(t.TempDir(), "state")
	if err := saver.SaveState(t.Context(), state); !fault.Is(err, fault.Precondition) {
		t.Errorf("SaveState of a running VM = %v, want a fault of kind %s", err, fault.Precondition)
	}
	for i := range 2 {
		out := saved{suite: s, machine: m, Snapshot: hypervisor.Snapshot{Memory: m.MemoryFile, State: state}, count: g.count()}
		if err := g.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := saver.SaveState(t.Context(), state); err != nil {
			t.Fatalf("SaveState() = %v", err)
		}
		took := time.Since(began)
		if i == 1 {
			info, err := os.Stat(state)
			if err != nil || info.Size() == 0 || info.Mode().Perm() != 0o600 {
				t.Errorf("the state: %v, %v, want a file with something in it for its owner alone", info, err)
			}
			t.Logf("saved in %s, %d bytes", took, info.Size())
			if err := saver.SaveState(t.Context(), state); err == nil {
				t.Error("a second SaveState to the same file has not failed")
			}
			g.end()
			out.machine.MemoryFile = ""
			return out
		}
		if err := g.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		g.want("work", "read work")
		if err := os.Remove(state); err != nil {
			t.Fatal(err)
		}
	}
	panic("unreachable")
}

// restore starts a copy of a VM that was saved, with a disk of its own.
func (from saved) restore(t *testing.T) *guest {
	t.Helper()
	m := from.machine
	m.Dir = t.TempDir()
	m.Disks = []hypervisor.Disk{{Serial: "work", Path: newDisk(t, "work\n")}}
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
	from := save(t, s)
	before := sum(t, from.Snapshot)
	one, two := from.restore(t), from.restore(t)
	one.want("ok", "write work first")
	two.want("ok", "write work second")
	one.want("first", "read work")
	two.want("second", "read work")
	one.end()
	two.want("second", "read work")
	if _, is := two.VMM.(hypervisor.StateSaver); !is {
		t.Error("a restored VMM is no Saver")
	} else if err := two.Pause(t.Context()); err != nil {
		t.Error(err)
	} else if err := two.VMM.(hypervisor.StateSaver).SaveState(t.Context(), filepath.Join(t.TempDir(), "x")); !fault.Is(err, fault.Precondition) { //nolint:forcetypeassert // it is
		t.Errorf("SaveState of a VM whose memory is in no file of its own = %v, want a fault of kind %s", err, fault.Precondition)
	}
	two.end()
	from.restore(t).want("work", "read work")
	if after := sum(t, from.Snapshot); !bytes.Equal(before, after) {
		t.Error("the snapshot has changed")
	}
}

// restoreOddities: what cannot be restored is refused, and leaves nothing behind.
func (s Suite) restoreOddities(t *testing.T) {
	from := save(t, s)
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
		"memory of its own": {from.Snapshot, func(m *hypervisor.Machine) {
			m.MemoryFile = filepath.Join(t.TempDir(), "memory")
		}, fault.Invalid},
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
