package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"banger/internal/fault"
	"banger/internal/hypervisor"
)

var (
	_ hypervisor.StateSaver = (*vmm)(nil)
	_ hypervisor.Restorer   = (*Backend)(nil)
)

// A snapshot's state is QEMU's migration stream without the guest's memory, which lies in a file that is mapped: with
// x-ignore-shared a saving QEMU leaves out what is mapped shared, as Boot does it. It takes some tens of kilobytes.
const (
	ignoreShared = "x-ignore-shared"
	stateName    = "state" // of the descriptor that is handed to QEMU
	maxState     = 64 << 20
)

// saveGap is how long QEMU is left alone between two questions how far it is: it says nothing by itself in a way that
// names the command. A state is saved in 10 to 20 ms.
const saveGap = 2 * time.Millisecond

// SaveState implements [hypervisor.StateSaver].
func (v *vmm) SaveState(ctx context.Context, path string) (err error) {
	const what = "save the state of"
	if v.machine.MemoryFile == "" {
		return fault.New(fault.Precondition, "%s the VM: its memory is in no file", what)
	}
	status, err := v.Status(ctx)
	if err != nil {
		return fmt.Errorf("%s the VM: %w", what, err)
	}
	if status != hypervisor.Paused {
		return fault.New(fault.Precondition, "%s the VM: it is %s, not paused", what, status)
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("%s the VM: %w", what, err)
	}
	defer func() {
		if err = errors.Join(err, file.Close()); err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	if err := v.capability(ctx, ignoreShared); err != nil {
		return err
	}
	if err := v.give(ctx, stateName, file); err != nil {
		return err
	}
	if err := v.execute(ctx, what, "migrate", uri{"fd:" + stateName}, nil); err != nil {
		return err
	}
	return v.migrated(ctx, what)
}

type uri struct {
	URI string `json:"uri"`
}

// migrated waits until QEMU has written or read a state.
func (v *vmm) migrated(ctx context.Context, what string) error {
	for {
		var m struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := v.execute(ctx, what, "query-migrate", nil, &m); err != nil {
			return err
		}
		switch m.Status { // MigrationStatus of qapi/migration.json
		case "completed":
			return nil
		case "failed", "cancelled":
			return fault.New(fault.Corrupt, "%s the VM: QEMU says: %s %s", what, m.Status, m.Error)
		}
		select {
		case <-time.After(saveGap):
		case <-ctx.Done():
			return fmt.Errorf("%s the VM: %w", what, context.Cause(ctx))
		}
	}
}

// capability turns a capability of QEMU's migration on.
func (v *vmm) capability(ctx context.Context, name string) error {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	return v.execute(ctx, "prepare", "migrate-set-capabilities", struct {
		Capabilities []capability `json:"capabilities"`
	}{[]capability{{name, true}}}, nil)
}

// give hands an open file to QEMU, under a name.
func (v *vmm) give(ctx context.Context, name string, file *os.File) error {
	return v.executeWith(ctx, "prepare", "getfd", struct {
		Name string `json:"fdname"`
	}{name}, nil, file)
}

// Restore implements [hypervisor.Restorer].
func (b *Backend) Restore(ctx context.Context, m hypervisor.Machine, s hypervisor.Snapshot) (hypervisor.VMM, error) {
	v, err := b.restore(ctx, m, s)
	if err != nil {
		return nil, fmt.Errorf("restore %s: %w", m.ID, err)
	}
	return v, nil
}

func (b *Backend) restore(ctx context.Context, m hypervisor.Machine, s hypervisor.Snapshot) (*vmm, error) {
	fail := func(err error) (*vmm, error) {
		closeNIC(m)
		return nil, err
	}
	if m.MemoryFile != "" {
		return fail(fault.New(fault.Invalid, "bad machine %q: it is to be restored, and has a memory file of its own", m.ID))
	}
	// QEMU opens it for writing and, as the mapping is private, never writes.
	memory, err := openPart("memory", s.Memory, os.O_RDWR, m.Memory, m.Memory)
	if err != nil {
		return fail(err)
	}
	defer memory.Close() //nolint:errcheck // QEMU has its own copy by then
	state, err := openPart("state", s.State, os.O_RDONLY, 1, maxState)
	if err != nil {
		return fail(err)
	}
	defer state.Close() //nolint:errcheck // read only
	v, err := b.launch(ctx, m, process{arguments: restoreArguments, memory: memory})
	if err != nil {
		return nil, err
	}
	if err := v.receive(ctx, state); err != nil {
		told := v.abandon(err)
		if v.exit.Cause == hypervisor.Crashed { // one that can make no sense of a state ends
			told = fault.New(fault.Corrupt, "QEMU does not accept the state: %s", v.exit.Detail)
		}
		return nil, told
	}
	return v, nil
}

// receive makes a QEMU that waits for its state read it.
func (v *vmm) receive(ctx context.Context, state *os.File) error {
	if err := v.capability(ctx, ignoreShared); err != nil {
		return err
	}
	if err := v.give(ctx, stateName, state); err != nil {
		return err
	}
	if err := v.execute(ctx, "restore", "migrate-incoming", uri{"fd:" + stateName}, nil); err != nil {
		return err
	}
	return v.migrated(ctx, "restore")
}

// openPart opens a file of a snapshot, whose size must lie between two, in bytes.
func openPart(what, path string, flags int, least, most int64) (*os.File, error) {
	f, err := os.OpenFile(path, flags, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.New(fault.NotFound, "open %s of the snapshot: %w", what, err)
	case err != nil:
		return nil, fmt.Errorf("open %s of the snapshot: %w", what, err)
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() < least || info.Size() > most) {
		err = fault.New(fault.Corrupt, "open %s of the snapshot: %s is no file of the right size (%d bytes)", what, path, info.Size())
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// makeMemory opens the file for a guest's memory, and makes it if it is missing.
func makeMemory(path string, size int64) (*os.File, error) {
	if !filepath.IsAbs(path) {
		return nil, fault.New(fault.Invalid, "the path of the memory file %q is not absolute", path)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make the memory file: %w", err)
	}
	if err := f.Truncate(size); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("make the memory file: %w", err)
	}
	return f, nil
}
