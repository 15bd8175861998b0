package machines

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/internal/fault"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
	"banger/internal/progress"
)

// Snapshot is a named point of one VM. It lies in the VM's directory and goes with it.
type Snapshot struct {
	Name    string
	VM      string // name of the VM
	Created time.Time
	Size    int64 // bytes that it takes up
	Memory  int64 // bytes of the guest
	VCPUs   int
	Backend string
	Version string // of the VMM
	Problem string // why it can't be restored; empty: it can
}

const snapshotsDir = "snapshots"

func snapshotDir(s *core, id microvm.ID, name string) string {
	return filepath.Join(s.dirsOf(id).State, snapshotsDir, name)
}

// snapshotUse returns how many bytes the snapshots of a VM take up, those under way included.
func (s *core) snapshotUse(id microvm.ID) (sum int64) {
	entries, _ := os.ReadDir(filepath.Dir(snapshotDir(s, id, "x"))) // most VMs have none
	for _, e := range entries {
		sum += point{dir: snapshotDir(s, id, e.Name())}.allocated()
	}
	return sum
}

// CreateSnapshot saves a VM that runs or is paused, which goes on. Without a name the snapshot is named by the time.
func (s Points) CreateSnapshot(ctx context.Context, ref, name string, report progress.Sink) (Snapshot, error) {
	if name == "" {
		name = time.Now().UTC().Format("20060102-150405")
	}
	if err := microvm.ValidateName(name); err != nil {
		return Snapshot{}, err
	}
	vm, err := s.resolve(ctx, ref)
	if err != nil {
		return Snapshot{}, err
	}
	dir := snapshotDir(&s.core, vm.ID, name)
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return Snapshot{}, fault.New(fault.Exists, "VM %s has a snapshot %s", vm.Name, name).
			WithHint("choose another name, or delete it: banger vm snapshot delete %s %s", vm.Name, name)
	}
	part := snapshotDir(&s.core, vm.ID, unfinished+name)
	if err := os.RemoveAll(part); err != nil { // of one that was cut off
		return Snapshot{}, fmt.Errorf("save VM %s: %w", vm.Name, err)
	}
	p, _, err := saveFor(ctx, s, string(vm.ID), "snapshot", part, report)
	if err == nil {
		err = p.publish(dir)
	}
	if err != nil {
		return Snapshot{}, errors.Join(err, os.RemoveAll(part))
	}
	p.dir = dir
	return p.asSnapshot(vm.Name), nil
}

func (p point) asSnapshot(vm string) Snapshot {
	return Snapshot{
		Name: filepath.Base(p.dir), VM: vm, Created: p.Created, Size: p.allocated(), Memory: p.Machine.Memory, VCPUs: p.Machine.VCPUs,
		Backend: p.Traits.Backend, Version: p.Traits.Version,
	}
}

// Snapshots lists the snapshots of a VM, oldest first.
func (s Points) Snapshots(ctx context.Context, ref string) ([]Snapshot, error) {
	vm, err := s.resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Dir(snapshotDir(&s.core, vm.ID, "x")))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list snapshots of VM %s: %w", vm.Name, err)
	}
	var all []Snapshot
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), unfinished) {
			continue
		}
		p, err := openPoint(snapshotDir(&s.core, vm.ID, e.Name()))
		one := p.asSnapshot(vm.Name)
		if err == nil {
			err = p.check()
		}
		if err != nil {
			one.Problem = err.Error()
		}
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b Snapshot) int { return a.Created.Compare(b.Created) })
	return all, nil
}

// snapshot opens a snapshot of a VM.
func (s Points) snapshot(vm microvm.VM, name string) (point, error) {
	err := microvm.ValidateName(name)
	var p point
	if err == nil {
		p, err = openPoint(snapshotDir(&s.core, vm.ID, name))
	}
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Invalid) {
		return p, fault.New(fault.NotFound, "VM %s has no snapshot %q", vm.Name, name).
			WithHint("list them: banger vm snapshot list %s", vm.Name)
	}
	if err != nil {
		return p, fmt.Errorf("snapshot %s of VM %s: %w", name, vm.Name, err)
	}
	return p, nil
}

// DeleteSnapshot removes a snapshot. VMs that were restored from it go on.
func (s Points) DeleteSnapshot(ctx context.Context, ref, name string) error {
	h, err := s.claim(ctx, ref, "delete snapshot")
	if err != nil {
		return err
	}
	defer h.release()
	p, err := s.snapshot(h.vm, name)
	if fault.Is(err, fault.NotFound) {
		return err
	}
	// Disks that were replaced by half would be all that is left of the VM.
	o, oerr := readOriginFile(filepath.Join(h.dirs().State, revertFile))
	if oerr != nil {
		return fmt.Errorf("delete snapshot %s of VM %s: %w", name, h.vm.Name, oerr)
	}
	if o != nil && o.Point == p.dir {
		return fault.New(fault.Precondition, "delete snapshot %s of VM %s: the VM was being restored from it, and that was cut off", name, h.vm.Name).
			WithHint("let it finish: banger start %s", h.vm.Name)
	}
	hidden := snapshotDir(&s.core, h.vm.ID, unfinished+"gone-"+name)
	if err := errors.Join(os.RemoveAll(hidden), os.Rename(p.dir, hidden), os.RemoveAll(hidden)); err != nil {
		return fmt.Errorf("delete snapshot %s of VM %s: %w", name, h.vm.Name, err)
	}
	return nil
}

// RestoreRequest asks for a VM to go on from one of its snapshots.
type RestoreRequest struct {
	Snapshot string
	As       string // name of a new VM; empty: the VM itself, which loses what it is now
	Force    bool   // in place, also if it runs
}

// Restore lets a VM go on from one of its snapshots, or makes a new VM that does.
func (s Points) Restore(ctx context.Context, ref string, req RestoreRequest, report progress.Sink) (Info, error) {
	h, err := s.claim(ctx, ref, "restore")
	if err != nil {
		return Info{}, err
	}
	defer h.release()
	p, err := s.snapshot(h.vm, req.Snapshot)
	if err == nil {
		if err = p.check(); err == nil {
			err = fitsNow(ctx, h, p)
		}
	}
	if err != nil {
		return Info{}, fmt.Errorf("restore VM %s: %w", h.vm.Name, err)
	}
	if req.As != "" {
		if err := microvm.ValidateName(req.As); err != nil {
			return Info{}, err
		}
		return s.continueAs(ctx, p, continued{name: req.As, spec: h.vm.Spec, digest: h.vm.ImageDigest})
	}
	if h.vm.State.Live() && !req.Force {
		return Info{}, fault.New(fault.Precondition, "restore VM %s: it is %s, and would lose what it is doing", h.vm.Name, h.vm.State).
			WithHint("add --force, or make a new VM of it: --as NAME")
	}
	if err := h.revert(ctx, p, report); err != nil {
		return Info{}, err
	}
	return h.info(ctx)
}

// fitsNow refuses a point that could not be restored as things are.
func fitsNow(ctx context.Context, h *hold, p point) error {
	launch, err := h.plan(ctx, nil)
	if err != nil {
		return err
	}
	return p.fits(ctx, h, launch)
}

// revertFile is in the directory of a VM whose disks are being replaced by those of a snapshot: whatever becomes of
// that, the next start does it again.
const revertFile = "revert.json"

// revert ends the VM if it runs and lets it go on from a point.
func (h *hold) revert(ctx context.Context, p point, report progress.Sink) error {
	if a := h.attachment(); a != nil {
		if err := errors.Join(h.end(ctx, a), h.conclude(ctx, a, "killed, to restore a snapshot")); err != nil {
			return fmt.Errorf("restore VM %s: %w", h.vm.Name, err)
		}
	}
	vm, err := h.store.Get(ctx, h.vm.ID)
	if err != nil {
		return err
	}
	h.vm = vm
	if err := monitorlink.WriteJSON(filepath.Join(h.dirs().State, revertFile), origin{Point: p.dir}); err != nil {
		return fmt.Errorf("restore VM %s: %w", h.vm.Name, err)
	}
	if err := finishRevert(ctx, h); err != nil {
		return err
	}
	if err := h.start(ctx, report); err != nil {
		name := filepath.Base(p.dir)
		return fault.New(fault.KindOf(err), "restore snapshot %s: %w", name, err).WithHint(
			"the snapshot is as it was. Try again: banger vm snapshot restore %s %s --force; or boot with the disks of the snapshot: banger start %s",
			h.vm.Name, name, h.vm.Name)
	}
	return nil
}

// finishRevert replaces the disks of a VM that is to go on from a snapshot, if it is.
func finishRevert(ctx context.Context, h *hold) error {
	dir := h.dirs().State
	mark := filepath.Join(dir, revertFile)
	o, err := readOriginFile(mark)
	if err != nil || o == nil {
		return err
	}
	p, err := openPoint(o.Point)
	if err != nil {
		return fmt.Errorf("restore VM %s: %w", h.vm.Name, err)
	}
	next := filepath.Join(dir, unfinished+"disks")
	if err := errors.Join(os.RemoveAll(next), os.Mkdir(next, 0o700)); err != nil {
		return fmt.Errorf("restore VM %s: %w", h.vm.Name, err)
	}
	err = p.copyDisks(ctx, next)
	for _, name := range []string{systemDisk, workDisk} {
		if err == nil {
			err = os.Rename(filepath.Join(next, name), filepath.Join(dir, name))
		}
	}
	if err == nil {
		err = p.restoreWorkspace(ctx, h)
	}
	if err == nil {
		err = errors.Join(forgetOrigin(h), writeOrigin(h, *o))
	}
	if err == nil {
		err = os.Remove(mark)
	}
	if err = errors.Join(err, os.RemoveAll(next)); err != nil {
		return fmt.Errorf("restore VM %s: %w", h.vm.Name, err)
	}
	return nil
}
