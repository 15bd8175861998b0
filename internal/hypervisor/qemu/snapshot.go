package qemu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/diskcopy"
	"banger/internal/fault"
	"banger/internal/hypervisor"
)

var (
	_ hypervisor.Saver    = (*vmm)(nil)
	_ hypervisor.Restorer = (*Backend)(nil)
)

// A snapshot's state is what QEMU's migration would send, without the guest's memory: xen-save-devices-state writes just
// that, in a millisecond and some tens of kilobytes, and does not ask whether there is Xen. The memory is read from QEMU's
// process (memory.go). So the pause is as long as it takes to copy the pages in which the guest differs from what it was
// restored from, if it was.
const (
	stateName = "state" // of the descriptor that is handed to QEMU
	maxState  = 64 << 20
	stateSet  = 1000 // number of the set of descriptors that a state is written to; those of disks begin at 0
)

// poll is how long QEMU is left alone between two questions how far it is with reading a state: it says nothing by itself
// in a way that names the command.
const poll = time.Millisecond

// Save implements [hypervisor.Saver].
func (v *vmm) Save(ctx context.Context, s hypervisor.Snapshot, still func() error) (_ hypervisor.Saved, err error) {
	v.saving.Lock()
	defer v.saving.Unlock()
	status, err := v.Status(ctx)
	if err != nil {
		return hypervisor.Saved{}, fmt.Errorf("save the VM: %w", err)
	}
	if status == hypervisor.Stopped {
		return hypervisor.Saved{}, fault.New(fault.Precondition, "save the VM: its guest has shut down")
	}
	files, err := createAll(s.Memory, s.State)
	if err != nil {
		return hypervisor.Saved{}, fmt.Errorf("save the VM: %w", err)
	}
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			err = errors.Join(err, os.Remove(s.Memory), os.Remove(s.State))
		}
	}()
	ram, err := v.openRAM(ctx)
	if err != nil {
		return hypervisor.Saved{}, fmt.Errorf("save the VM: %w", err)
	}
	defer ram.close()
	if err := layBase(ctx, files[0], v.base, v.machine.Memory); err != nil {
		return hypervisor.Saved{}, fmt.Errorf("save the VM: %w", err)
	}
	took, err := v.whileStill(ctx, status, func() error {
		return together(
			func() error { return ram.copyTo(ctx, files[0], v.base == nil) },
			func() error { return v.saveDevices(ctx, files[1]) },
			still,
		)
	})
	if err != nil {
		return hypervisor.Saved{}, fmt.Errorf("save the VM: %w", exhausted(err))
	}
	return hypervisor.Saved{Paused: took}, nil
}

// exhausted classifies the error of a full disk.
func exhausted(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.New(fault.Exhausted, "%w", err)
	}
	return err
}

// createAll makes new files, all or none.
func createAll(paths ...string) ([]*os.File, error) {
	var files []*os.File
	for _, path := range paths {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			for _, made := range files {
				err = errors.Join(err, made.Close(), os.Remove(made.Name()))
			}
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// layBase gives a memory file its size in bytes and what the guest's memory was when it was restored.
func layBase(ctx context.Context, memory, base *os.File, size int64) error {
	if base == nil {
		return memory.Truncate(size)
	}
	return diskcopy.Copy(ctx, memory, base)
}

// goOnTimeout bounds how long QEMU may take to let the guest go on.
const goOnTimeout = 10 * time.Second

// whileStill does something while the vCPUs stand still, and tells how long they did.
func (v *vmm) whileStill(ctx context.Context, status hypervisor.Status, do func() error) (time.Duration, error) {
	if status == hypervisor.Paused {
		return 0, do()
	}
	began := time.Now()
	if err := v.Pause(ctx); err != nil {
		return 0, err
	}
	err := do()
	resume, cancel := context.WithTimeout(context.WithoutCancel(ctx), goOnTimeout)
	defer cancel()
	err = errors.Join(err, v.Resume(resume))
	return time.Since(began), err
}

// together does things side by side.
func together(things ...func() error) error {
	errs := make([]error, len(things))
	var wg sync.WaitGroup
	for i, do := range things {
		if do != nil {
			wg.Go(func() { errs[i] = do() })
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

// How a migration stream begins (migration/savevm.c): magic and version, then a section with the name of the machine.
const (
	streamMagic   = 0x5145564d
	streamVersion = 3
	streamConfig  = 7 // QEMU_VM_CONFIGURATION
	machineName   = "microvm"
)

// preamble is the beginning of a migration stream.
func preamble() []byte {
	b := binary.BigEndian.AppendUint32(nil, streamMagic)
	b = binary.BigEndian.AppendUint32(b, streamVersion)
	b = append(b, streamConfig)
	b = binary.BigEndian.AppendUint32(b, uint32(len(machineName)))
	return append(b, machineName...)
}

// saveDevices writes the state of the CPUs and devices to an empty file, as a migration stream without memory.
func (v *vmm) saveDevices(ctx context.Context, state *os.File) error {
	// QEMU writes magic, version and sections where the file stands: the sections get to where they belong after the
	// longer beginning that a stream has.
	const header = 8
	begin := preamble()
	if _, err := state.Seek(int64(len(begin)-header), io.SeekStart); err != nil {
		return err
	}
	// Descriptors of a set are opened with the access that they have.
	own, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", state.Fd()), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer own.Close() //nolint:errcheck // QEMU has its own copy, and nothing is buffered
	if _, err := own.Seek(int64(len(begin)-header), io.SeekStart); err != nil {
		return err
	}
	set := struct {
		ID int `json:"fdset-id"`
	}{stateSet}
	if err := v.executeWith(ctx, "prepare", "add-fd", set, nil, own); err != nil {
		return err
	}
	err = v.execute(ctx, "save the devices of", "xen-save-devices-state", struct {
		File string `json:"filename"`
		Live bool   `json:"live"`
	}{fmt.Sprintf("/dev/fdset/%d", stateSet), false}, nil)
	drop, cancel := context.WithTimeout(context.WithoutCancel(ctx), goOnTimeout)
	defer cancel()
	err = errors.Join(err, v.execute(drop, "prepare", "remove-fd", set, nil))
	if err != nil {
		return err
	}
	written := make([]byte, header)
	if _, err := state.ReadAt(written, int64(len(begin)-header)); err != nil || binary.BigEndian.Uint32(written) != streamMagic ||
		binary.BigEndian.Uint32(written[4:]) != streamVersion {
		return fault.New(fault.Unsupported, "QEMU has written a state that does not begin as expected: % x, %v", written, err)
	}
	_, err = state.WriteAt(begin, 0)
	return err
}

// migrated waits until QEMU has read a state.
func migrated(ctx context.Context, v *vmm, what string) error {
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
		case <-time.After(poll):
		case <-ctx.Done():
			return fmt.Errorf("%s the VM: %w", what, context.Cause(ctx))
		}
	}
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
	// QEMU opens it for writing and, as the mapping is private, never writes; but with a balloon it punches holes.
	memory, err := openPart("memory", s.Memory, os.O_RDWR, m.Memory, m.Memory)
	if err == nil && !m.FixedMemory {
		memory, err = ownCopy(ctx, memory, m.Dir)
	}
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

// ownCopy returns a copy of a file that has no name any more, and closes the original.
func ownCopy(ctx context.Context, original *os.File, dir string) (*os.File, error) {
	defer original.Close() //nolint:errcheck // only read
	path := filepath.Join(dir, "memory")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("copy the memory: %w", err)
	}
	if err := errors.Join(os.Remove(path), diskcopy.Copy(ctx, f, original)); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("copy the memory: %w", err)
	}
	return f, nil
}

// receive makes a QEMU that waits for its state read it.
func (v *vmm) receive(ctx context.Context, state *os.File) error {
	name := struct {
		Name string `json:"fdname"`
	}{stateName}
	if err := v.executeWith(ctx, "prepare", "getfd", name, nil, state); err != nil {
		return err
	}
	from := struct {
		URI string `json:"uri"`
	}{"fd:" + stateName}
	if err := v.execute(ctx, "restore", "migrate-incoming", from, nil); err != nil {
		return err
	}
	return migrated(ctx, v, "restore")
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

// duplicate returns another descriptor of a file; nil for nil.
func duplicate(f *os.File) (*os.File, error) {
	if f == nil {
		return nil, nil
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
