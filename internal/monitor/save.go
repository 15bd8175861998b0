package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"banger/internal/diskcopy"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
)

// saver makes snapshots of the VM, one at a time.
type saver struct {
	id    microvm.ID
	disks []hypervisor.Disk
	board *board
	log   *slog.Logger
	busy  atomic.Bool
}

// serve saves the VM for a client, for as long as the client stays: one that went away wants no snapshot.
func (sv *saver) serve(ctx context.Context, conn net.Conn, vmm hypervisor.VMM, spec *monitorlink.SaveSpec, attached *atomic.Int32) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with the connection, which the caller closes
		defer cancel()
		_, _ = io.Copy(io.Discard, conn) // the client says nothing more; its end is the end
	}()
	began := time.Now()
	saved, err := sv.save(ctx, vmm, spec)
	if err != nil {
		sv.log.Warn("save", "vm", sv.id, "err", err, "dur", time.Since(began))
		_ = conn.SetWriteDeadline(time.Now().Add(requestTimeout))
		_ = answer(conn, err)
		return
	}
	sv.log.Info("saved", "vm", sv.id, "paused", saved.Paused, "live", saved.Live, "dur", time.Since(began))
	saved.Attached = int(attached.Load())
	_ = conn.SetWriteDeadline(time.Now().Add(requestTimeout))
	if err = errors.Join(ctx.Err(), answer(conn, nil), monitorlink.WriteLine(conn, saved)); err != nil {
		files := []string{spec.Snapshot.Memory, spec.Snapshot.State}
		for _, path := range spec.Disks {
			files = append(files, path)
		}
		sv.log.Warn("save: nobody takes the snapshot", "vm", sv.id, "err", errors.Join(err, remove(files)))
	}
}

// save makes a snapshot of the VM and its disks as of one moment. On failure nothing is left of it.
func (sv *saver) save(ctx context.Context, vmm hypervisor.VMM, spec *monitorlink.SaveSpec) (monitorlink.Saved, error) {
	saver, ok := vmm.(hypervisor.Saver)
	if !ok {
		return monitorlink.Saved{}, fault.New(fault.Unsupported, "this backend cannot save a running VM")
	}
	disks, err := sv.copies(spec)
	if err != nil {
		return monitorlink.Saved{}, err
	}
	if sv.board.get().Phase != monitorlink.Ready {
		return monitorlink.Saved{}, fault.New(fault.Precondition, "save the VM: it is still booting").
			WithHint("wait until its state is running")
	}
	if !sv.busy.CompareAndSwap(false, true) {
		return monitorlink.Saved{}, busySaving()
	}
	defer sv.busy.Store(false)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // a copy is not held up by the VM's end
		select {
		case <-vmm.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	var made []string
	saved, err := saver.Save(ctx, spec.Snapshot, func() error {
		if err := copyDisks(ctx, disks); err != nil {
			return err
		}
		for _, d := range disks {
			made = append(made, d.to)
		}
		return nil
	})
	if err != nil {
		select {
		case <-vmm.Done():
			err = fault.New(fault.Precondition, "save the VM: it ended meanwhile: %w", err)
		default:
		}
		return monitorlink.Saved{}, errors.Join(err, remove(made))
	}
	return monitorlink.Saved{Paused: saved.Paused, Live: saved.Live}, nil
}

// unless does what would change a VM that is being saved. The daemon sees to it that nobody asks for both; a client that
// does all the same is refused.
func (sv *saver) unless(act func() error) error {
	if sv.busy.Load() {
		return busySaving()
	}
	return act()
}

func busySaving() error {
	return fault.New(fault.Busy, "the VM is being saved").WithHint("try again in a moment")
}

// diskCopy is a disk and where its copy goes.
type diskCopy struct{ serial, from, to string }

// copies looks up the disks of which copies are wanted.
func (sv *saver) copies(spec *monitorlink.SaveSpec) ([]diskCopy, error) {
	if spec == nil {
		return nil, fault.New(fault.Invalid, "a request to save the VM without saying where")
	}
	var out []diskCopy
	for _, d := range sv.disks {
		if to, wanted := spec.Disks[d.Serial]; wanted && !d.ReadOnly {
			out = append(out, diskCopy{d.Serial, d.Path, to})
		}
	}
	if len(out) != len(spec.Disks) {
		return nil, fault.New(fault.Invalid, "a request to save a disk that the VM does not have, or cannot write")
	}
	return out, nil
}

// copyDisks copies disks side by side: all of them, or none is left.
func copyDisks(ctx context.Context, disks []diskCopy) error {
	made := make([]bool, len(disks))
	group, ctx := errgroup.WithContext(ctx)
	for i, d := range disks {
		group.Go(func() error {
			if err := diskcopy.Clone(ctx, d.to, d.from); err != nil {
				return fmt.Errorf("save disk %s: %w", d.serial, err)
			}
			made[i] = true
			return nil
		})
	}
	err := group.Wait()
	if err == nil {
		return nil
	}
	var left []string
	for i, d := range disks {
		if made[i] {
			left = append(left, d.to)
		}
	}
	return errors.Join(err, remove(left))
}

func remove(paths []string) error {
	var errs []error
	for _, path := range paths {
		if err := os.Remove(path); err != nil {
			errs = append(errs, fmt.Errorf("give up a snapshot: %w", err))
		}
	}
	return errors.Join(errs...)
}
