package monitor

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/monitorlink"
)

// savingVMM is a VMM that makes snapshots as a test wants it. It removes its own files on failure, as the contract says.
type savingVMM struct {
	hypervisor.VMM

	done  chan struct{}
	after func(ctx context.Context) error // between still and the end
}

func (v *savingVMM) Done() <-chan struct{} { return v.done }

func (v *savingVMM) Save(ctx context.Context, s hypervisor.Snapshot, still func() error) (hypervisor.Saved, error) {
	err := still()
	if err == nil && v.after != nil {
		err = v.after(ctx)
	}
	if err == nil {
		err = errors.Join(os.WriteFile(s.Memory, nil, 0o600), os.WriteFile(s.State, nil, 0o600))
	}
	return hypervisor.Saved{Paused: time.Millisecond, Live: true}, err
}

// newSaver returns a saver of a VM with two disks that can be written, and a request to save it to an empty directory.
func newSaver(t *testing.T) (*saver, *monitorlink.SaveSpec, string) {
	t.Helper()
	from, to := t.TempDir(), t.TempDir()
	sv := &saver{id: "0123456789ab", log: slog.New(slog.DiscardHandler), board: newBoard(monitorlink.Status{Phase: monitorlink.Ready})}
	spec := &monitorlink.SaveSpec{
		Snapshot: hypervisor.Snapshot{Memory: filepath.Join(to, "memory"), State: filepath.Join(to, "state")},
		Disks:    map[string]string{},
	}
	for _, serial := range []string{"base", "system", "work"} {
		path := filepath.Join(from, serial)
		if err := os.WriteFile(path, []byte("disk "+serial), 0o600); err != nil {
			t.Fatal(err)
		}
		sv.disks = append(sv.disks, hypervisor.Disk{Serial: serial, Path: path, ReadOnly: serial == "base"})
		if serial != "base" {
			spec.Disks[serial] = filepath.Join(to, serial)
		}
	}
	return sv, spec, to
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestSaveCopiesTheDisks(t *testing.T) {
	t.Parallel()
	sv, spec, to := newSaver(t)
	saved, err := sv.save(t.Context(), &savingVMM{done: make(chan struct{})}, spec)
	if err != nil || saved.Paused != time.Millisecond || !saved.Live {
		t.Errorf("save = %+v, %v", saved, err)
	}
	if got := names(t, to); len(got) != 4 {
		t.Errorf("the snapshot is %v, want memory, state and two disks", got)
	}
	if got, err := os.ReadFile(spec.Disks["work"]); string(got) != "disk work" {
		t.Errorf("the copy of a disk holds %q, %v", got, err)
	}
}

// What fails leaves nothing, and lets the next one go ahead.
func TestFailedSaveLeavesNothing(t *testing.T) {
	t.Parallel()
	crash := errors.New("no more")
	for name, c := range map[string]struct {
		change func(*saver, *monitorlink.SaveSpec, *savingVMM)
		want   fault.Kind
	}{
		"no VMM that can": {func(_ *saver, _ *monitorlink.SaveSpec, v *savingVMM) { v.VMM = nil; v.done = nil }, fault.Unsupported},
		"it still boots": {func(sv *saver, _ *monitorlink.SaveSpec, _ *savingVMM) {
			sv.board.update(func(st *monitorlink.Status) { st.Phase = monitorlink.Booting })
		}, fault.Precondition},
		"another save": {func(sv *saver, _ *monitorlink.SaveSpec, _ *savingVMM) { sv.busy.Store(true) }, fault.Busy},
		"an unknown disk": {func(_ *saver, s *monitorlink.SaveSpec, _ *savingVMM) {
			s.Disks["other"] = s.Disks["work"] + "2"
		}, fault.Invalid},
		"a read-only disk": {func(_ *saver, s *monitorlink.SaveSpec, _ *savingVMM) { s.Disks["base"] = s.Disks["work"] + "2" }, fault.Invalid},
		"a disk that is gone": {func(sv *saver, _ *monitorlink.SaveSpec, _ *savingVMM) {
			_ = os.Remove(sv.disks[2].Path)
		}, fault.NotFound},
		"the VMM fails later": {func(_ *saver, _ *monitorlink.SaveSpec, v *savingVMM) {
			v.after = func(context.Context) error { return fault.New(fault.Exhausted, "full: %w", crash) }
		}, fault.Exhausted},
		"the VM ends": {func(_ *saver, _ *monitorlink.SaveSpec, v *savingVMM) {
			v.after = func(ctx context.Context) error {
				close(v.done)
				<-ctx.Done()
				return ctx.Err()
			}
		}, fault.Precondition},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sv, spec, to := newSaver(t)
			vmm := &savingVMM{done: make(chan struct{})}
			c.change(sv, spec, vmm)
			var it hypervisor.VMM = vmm
			if vmm.done == nil {
				it = &balloonVMM{}
			}
			if _, err := sv.save(t.Context(), it, spec); !fault.Is(err, c.want) {
				t.Errorf("save = %v, want a fault of kind %s", err, c.want)
			}
			if got := names(t, to); len(got) != 0 {
				t.Errorf("%v is left", got)
			}
			if name != "another save" && sv.busy.Load() {
				t.Error("the next save is refused")
			}
		})
	}
	sv, _, _ := newSaver(t)
	sv.busy.Store(true)
	if err := sv.unless(func() error { return nil }); !fault.Is(err, fault.Busy) {
		t.Errorf("something else while the VM is saved: %v", err)
	}
	if _, err := sv.save(t.Context(), &savingVMM{done: make(chan struct{})}, nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("save of nothing = %v", err)
	}
}

func TestSaveKeepsWhatWasThere(t *testing.T) {
	t.Parallel()
	sv, spec, to := newSaver(t)
	if err := os.WriteFile(spec.Disks["work"], []byte("older"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sv.save(t.Context(), &savingVMM{done: make(chan struct{})}, spec); !fault.Is(err, fault.Exists) {
		t.Errorf("save over a file = %v", err)
	}
	if got, _ := os.ReadFile(spec.Disks["work"]); string(got) != "older" || len(names(t, to)) != 1 {
		t.Errorf("the file holds %q now, beside it is %v", got, names(t, to))
	}
}

// A client that goes away in the midst of a save wants no snapshot: it is given up, also if it is whole by then.
func TestSaveEndsWithItsClient(t *testing.T) {
	t.Parallel()
	for name, after := range map[string]func(context.Context) error{
		"under way": func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		},
		"just whole": func(ctx context.Context) error {
			<-ctx.Done()
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sv, spec, to := newSaver(t)
			client, conn := net.Pipe()
			began, ended := make(chan struct{}), make(chan struct{})
			vmm := &savingVMM{done: make(chan struct{}), after: func(ctx context.Context) error {
				close(began)
				return after(ctx)
			}}
			go func() {
				defer close(ended)
				sv.serve(t.Context(), conn, vmm, spec, &atomic.Int32{})
			}()
			<-began
			_ = client.Close()
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				t.Fatal("the save goes on without its client")
			}
			_ = conn.Close()
			if got := names(t, to); len(got) != 0 {
				t.Errorf("%v is left", got)
			}
		})
	}
}
