package guestagent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/guestproto"
)

// ext4Resize is EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64), of the kernel's fs/ext4/ext4.h: it grows a mounted file system
// to a number of blocks.
const ext4Resize = 0x40086610

// sector is the unit of /sys/block/*/size in bytes, whatever the device's own is.
const sector = 512

// growWait is how long the kernel may take to see that a disk has grown: the VMM tells it by an interrupt.
const growWait = 10 * time.Second

// Grow makes the file system of a disk fill the disk, once the kernel sees the size that it should have.
func (*machine) Grow(ctx context.Context, spec guestproto.GrowSpec) error {
	if spec.Serial != guestproto.DiskSystem && spec.Serial != guestproto.DiskWork {
		return fault.New(fault.Invalid, "the disk %q does not grow", clip(spec.Serial, 80))
	}
	disks, err := findDisks("/sys/block", spec.Serial, 0)
	if err != nil {
		return fault.New(fault.NotFound, "%w", err)
	}
	name := filepath.Base(disks[spec.Serial])
	deadline := time.Now().Add(growWait)
	for {
		size, err := diskSize(name)
		if err != nil {
			return err
		}
		if size >= spec.Size {
			return growFS(name, size)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(deadline) {
			return fault.New(fault.Timeout, "the disk %s has %d bytes after %s, not %d", spec.Serial, size, growWait, spec.Size)
		}
		time.Sleep(5 * time.Millisecond) // nothing to wait on: the change is told to udev only
	}
}

// growAll makes the file systems fill disks that have grown while the guest was down. It costs a system call per disk if
// there is nothing to do.
func growAll() {
	for _, serial := range []string{guestproto.DiskSystem, guestproto.DiskWork} {
		err := (&machine{}).Grow(context.Background(), guestproto.GrowSpec{Serial: serial})
		if err != nil && !fault.Is(err, fault.NotFound) { // a guest without the disk is fine
			m := machine{console: openConsole()}
			m.complain(fmt.Errorf("grow the file system of the disk %s: %w", serial, err))
			_ = m.console.Close()
		}
	}
}

// diskSize returns the size of a block device in bytes.
func diskSize(name string) (int64, error) {
	text, err := os.ReadFile(filepath.Join("/sys/block", name, "size"))
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return sectors * sector, err
}

// growFS grows the mounted ext4 on a block device to a size in bytes.
func growFS(name string, size int64) error {
	dev, err := os.ReadFile(filepath.Join("/sys/block", name, "dev"))
	if err != nil {
		return err
	}
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer mounts.Close() //nolint:errcheck // read only
	for _, path := range mountsOf(mounts, strings.TrimSpace(string(dev))) {
		// A mount may hide it; then the path leads to another file system, and the next one is tried.
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		done, err := resizeExt4(f, strings.TrimSpace(string(dev)), size)
		_ = f.Close()
		if done || err != nil {
			return err
		}
	}
	return fault.New(fault.Precondition, "the file system of %s is mounted nowhere", name)
}

// resizeExt4 grows the file system that an open directory is on, if it is that of the device.
func resizeExt4(f *os.File, dev string, size int64) (done bool, err error) {
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Fstat(int(f.Fd()), &st), unix.Fstatfs(int(f.Fd()), &fs)); err != nil {
		return false, err
	}
	if fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)) != dev || fs.Type != unix.EXT4_SUPER_MAGIC || fs.Bsize <= 0 {
		return false, nil
	}
	blocks := uint64(size / fs.Bsize)
	// With the number of blocks that it has already, the kernel does nothing.
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), ext4Resize, uintptr(unsafe.Pointer(&blocks))) // x/sys has no wrapper
	if errno != 0 {
		return true, fmt.Errorf("grow to %d blocks: %w", blocks, errno)
	}
	return true, nil
}

// mountsOf returns where a device (major:minor) is mounted, from mountinfo (proc_pid_mountinfo(5)): field 3 is the device,
// field 5 the mount point.
func mountsOf(mountinfo io.Reader, dev string) []string {
	var paths []string
	for lines := bufio.NewScanner(mountinfo); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && fields[2] == dev {
			paths = append(paths, unescapeMount(fields[4]))
		}
	}
	return paths
}

// unescapeMount undoes the octal escapes of space, tab, newline and backslash in mountinfo.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
