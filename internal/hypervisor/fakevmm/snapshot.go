package fakevmm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"banger/internal/fault"
	"banger/internal/hypervisor"
)

var (
	_ hypervisor.Saver    = (*vmm)(nil)
	_ hypervisor.Restorer = (*Backend)(nil)
)

// The state of a snapshot is JSON; its memory is a hole. A process can't be saved: a restored guest is a new one, which is
// told what it needs to go on ([EnvRan]).
const (
	stateFormat = "fakevmm 1"
	maxState    = 64 << 10 // bytes
)

// state is what is known of a guest that was saved.
type state struct {
	Format string
	Shape  shape
	Ran    time.Duration // how long the guest has run, pauses aside
	Memory int64         // bytes that the guest has at present
}

// shape is what of a machine must be the same when it is restored.
type shape struct {
	VCPUs  int
	Memory int64
	Disks  []string // serials; a read-only one ends with "!"
	NIC    bool
}

func shapeOf(m hypervisor.Machine) shape {
	s := shape{VCPUs: m.VCPUs, Memory: m.Memory, NIC: m.NIC != nil}
	for _, d := range m.Disks {
		name := d.Serial
		if d.ReadOnly {
			name += "!"
		}
		s.Disks = append(s.Disks, name)
	}
	return s
}

func (s shape) equal(o shape) bool {
	return s.VCPUs == o.VCPUs && s.Memory == o.Memory && s.NIC == o.NIC && slices.Equal(s.Disks, o.Disks)
}

// Save implements [hypervisor.Saver].
func (v *vmm) Save(ctx context.Context, s hypervisor.Snapshot, still func() error) (saved hypervisor.Saved, err error) {
	if err := v.alive(ctx, "save"); err != nil {
		return hypervisor.Saved{}, err
	}
	v.turn.Lock()
	defer v.turn.Unlock()
	began := time.Now()
	wasPaused := v.isPaused()
	if !wasPaused {
		v.setPaused(true)
		defer v.setPaused(false)
	}
	v.awaitStop()
	var made []string
	defer func() {
		if err == nil {
			err = v.alive(ctx, "save")
		}
		if err == nil {
			return
		}
		for _, path := range made {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	if still != nil {
		if err := still(); err != nil {
			return saved, err
		}
	}
	content, err := v.state()
	if err != nil {
		return saved, err
	}
	for path, fill := range map[string]func(*os.File) error{
		s.Memory: func(f *os.File) error { return f.Truncate(v.machine.Memory) },
		s.State:  func(f *os.File) error { _, err := f.Write(content); return err },
	} {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return saved, fmt.Errorf("save the VM: %w", err)
		}
		made = append(made, path)
		if err := errors.Join(fill(f), f.Close()); err != nil {
			return saved, fmt.Errorf("save the VM: %w", err)
		}
	}
	if !wasPaused {
		saved.Paused = time.Since(began)
	}
	return saved, nil
}

// state encodes the state of a paused guest.
func (v *vmm) state() ([]byte, error) {
	content, err := json.Marshal(state{
		Format: stateFormat, Shape: shapeOf(v.machine), Ran: v.ran(), Memory: v.balloon.get(),
	})
	if err != nil {
		return nil, fmt.Errorf("save the VM: %w", err)
	}
	return content, nil
}

// stopWait bounds how long a guest may take to stop: as long as a system call that it is in.
const stopWait = 2 * time.Second

// awaitStop waits until all threads of a guest that was told to stop stand still.
func (v *vmm) awaitStop() {
	for deadline := time.Now().Add(stopWait); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		stats, _ := filepath.Glob("/proc/" + strconv.Itoa(v.Pid()) + "/task/*/stat")
		if !slices.ContainsFunc(stats, runs) {
			return
		}
	}
}

// runs reports whether the thread with a stat file (proc(5)) is neither stopped nor dead.
func runs(stat string) bool {
	content, err := os.ReadFile(stat)
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(content), ") ") // the name of the test's program holds none
	return after != "" && !strings.ContainsAny(after[:1], "TtZX")
}

// Restore implements [hypervisor.Restorer].
func (b *Backend) Restore(ctx context.Context, m hypervisor.Machine, s hypervisor.Snapshot) (hypervisor.VMM, error) {
	v, err := b.launch(ctx, m, &s)
	if err != nil {
		return nil, fmt.Errorf("restore %s: %w", m.ID, err)
	}
	return v, nil
}

// read reads a snapshot that must be of this machine.
func read(m hypervisor.Machine, s hypervisor.Snapshot) (state, error) {
	var st state
	memory, err := os.Stat(s.Memory)
	if err != nil {
		return st, missing(err)
	}
	f, err := os.Open(s.State)
	if err != nil {
		return st, missing(err)
	}
	defer f.Close() //nolint:errcheck // only read
	content, err := io.ReadAll(io.LimitReader(f, maxState))
	if err != nil {
		return st, fmt.Errorf("read the snapshot: %w", err)
	}
	switch err := json.Unmarshal(content, &st); {
	case err != nil:
		return st, fault.New(fault.Corrupt, "read the snapshot's state: %w", err)
	case st.Format != stateFormat:
		return st, fault.New(fault.Corrupt, "read the snapshot's state: it is of another version: %q", st.Format)
	case !st.Shape.equal(shapeOf(m)):
		return st, fault.New(fault.Corrupt, "read the snapshot's state: it is of another machine")
	case memory.Size() != m.Memory:
		return st, fault.New(fault.Corrupt, "read the snapshot's memory: it has %d bytes, not %d", memory.Size(), m.Memory)
	}
	return st, nil
}

func missing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "open the snapshot: %w", err)
	}
	return fmt.Errorf("open the snapshot: %w", err)
}
