package machines

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/microvm"
)

// A VM's writable disks are sparse files: their apparent size is what the guest sees, and they take up on the host what
// has been written. All VMs together may be promised more than the host has. That is legal, as with any sparse file, and
// said when a disk grows; a single disk that its file system could never hold is refused.

// diskUse returns the sizes of a VM's writable disks together, in bytes: what they take up and what they may. A disk
// that is not there counts nothing.
func (s *core) diskUse(id microvm.ID) (allocated, apparent int64) {
	for _, path := range s.diskPaths(id) {
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil {
			const block = 512 // bytes; stat(2)
			allocated += st.Blocks * block
			apparent += st.Size
		}
	}
	return allocated, apparent
}

func (s *core) diskPaths(id microvm.ID) []string {
	dir := s.dirsOf(id).State
	return []string{filepath.Join(dir, systemDisk), filepath.Join(dir, workDisk)}
}

// fitDisks makes the files of a VM that does not run as large as its spec says. The guest lets the file systems follow.
func (h *hold) fitDisks() error {
	for _, path := range h.diskPaths(h.vm.ID) {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // what needs it says so better
		}
		if err == nil && info.Size() < h.vm.Spec.DiskSize {
			err = os.Truncate(path, h.vm.Spec.DiskSize)
		}
		if err != nil {
			return fmt.Errorf("grow disk of VM %s: %w", h.vm.Name, err)
		}
	}
	return nil
}

// checkDiskSize refuses to shrink disks, and to promise one what its file system could never hold.
func (c Config) checkDiskSize(vm microvm.VM, old, size int64) error {
	switch {
	case size == old:
		return nil
	case size < old:
		return fault.New(fault.Invalid, "shrink the disks of VM %s from %s to %s: disks only grow", vm.Name,
			microvm.FormatSize(old), microvm.FormatSize(size)).WithHint("make a new VM with a smaller --disk-size and copy what you need")
	}
	total, _, err := space(c.VMs)
	if err != nil {
		return err
	}
	if size > total {
		return fault.New(fault.Exhausted, "grow the disks of VM %s to %s: the file system of %s has only %s", vm.Name,
			microvm.FormatSize(size), c.VMs, roughly(total)).WithHint("use a size below that")
	}
	return nil
}

// promised warns if all VMs together may write more than there is room for.
func (c *alteration) promised(ctx context.Context) (warning string, err error) {
	vms, err := c.store.List(ctx)
	if err != nil {
		return "", err
	}
	var open int64 // what may still be written
	for _, vm := range vms {
		allocated, apparent := c.diskUse(vm.ID)
		open += max(0, apparent-allocated)
	}
	_, free, err := space(c.config.VMs)
	if err != nil || open <= free {
		return "", err
	}
	return fmt.Sprintf("the disks of all VMs may still grow by %s, and %s are free", roughly(open), roughly(free)), nil
}

// space returns the size of a directory's file system and what is free in it, in bytes.
func space(dir string) (total, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, fmt.Errorf("look at free space in %s: %w", dir, err)
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil // block counts fit
}

// roughly writes a size for people, rounded down.
func roughly(n int64) string {
	const gib, mib = 1 << 30, 1 << 20
	if n >= 10*gib {
		return microvm.FormatSize(n - n%gib)
	}
	return microvm.FormatSize(n - n%mib)
}
