package hypervisor

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"banger/internal/fault"
)

// MaxCmdline is the longest kernel command line in bytes, the backend's own part included (COMMAND_LINE_SIZE of
// arch/x86 less the final NUL).
const MaxCmdline = 2047

// maxSerial is the longest serial of a virtio block device in bytes (VIRTIO_BLK_ID_BYTES of the virtio specification).
const maxSerial = 20

// Validate checks what every backend needs of a machine, without looking at the files it names. Its errors are
// fault.Invalid.
func (m Machine) Validate() error {
	bad := func(format string, args ...any) error {
		return fault.New(fault.Invalid, "bad machine %q: "+format, append([]any{m.ID}, args...)...)
	}
	switch {
	case m.VCPUs < 1:
		return bad("%d vCPUs", m.VCPUs)
	case m.Memory <= 0 || m.Memory%(1<<20) != 0:
		return bad("a memory of %d bytes is not a whole number of MiB", m.Memory)
	case m.Kernel == "" || m.Initramfs == "":
		return bad("it needs a kernel and an initramfs")
	case strings.ContainsAny(m.Cmdline, "\x00\n") || len(m.Cmdline) > MaxCmdline:
		return bad("its kernel command line is longer than %d bytes, or holds a NUL or a newline", MaxCmdline)
	case !filepath.IsAbs(m.Dir):
		return bad("its directory %q is not an absolute path", m.Dir)
	}
	seen := map[string]bool{}
	for _, d := range m.Disks {
		switch {
		case !validSerial(d.Serial):
			return bad("disk serial %q is not 1 to %d characters of a-z, 0-9 and -", d.Serial, maxSerial)
		case seen[d.Serial]:
			return bad("two disks have the serial %q", d.Serial)
		}
		seen[d.Serial] = true
	}
	if m.NIC == nil {
		return nil
	}
	if mac, err := net.ParseMAC(m.NIC.MAC); err != nil || len(mac) != 6 || m.NIC.Conn == nil {
		return bad("its network device needs a MAC address (got %q) and a connected socket", m.NIC.MAC)
	}
	return nil
}

func validSerial(s string) bool {
	return s != "" && len(s) <= maxSerial && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// OpenFiles opens the machine's disks in their order, after checking that its kernel, initramfs and directory are there.
// The caller closes the files. Its errors name the file; a file that is not there is fault.NotFound.
func (m Machine) OpenFiles() (disks []*os.File, err error) {
	defer func() {
		if err == nil {
			return
		}
		for _, f := range disks {
			_ = f.Close()
		}
		disks = nil
	}()
	if err := check("kernel", m.Kernel, fs.FileMode.IsRegular); err != nil {
		return nil, err
	}
	if err := check("initramfs", m.Initramfs, fs.FileMode.IsRegular); err != nil {
		return nil, err
	}
	if err := check("directory of the VMM", m.Dir, fs.FileMode.IsDir); err != nil {
		return nil, err
	}
	for _, d := range m.Disks {
		// Looked at before it is opened: opening a FIFO would wait for its other end.
		if err := check("disk "+d.Serial, d.Path, isDisk); err != nil {
			return disks, err
		}
		flags := os.O_RDWR
		if d.ReadOnly {
			flags = os.O_RDONLY
		}
		f, err := os.OpenFile(d.Path, flags, 0)
		if err != nil {
			return disks, fileFault("disk "+d.Serial, err)
		}
		disks = append(disks, f)
	}
	return disks, nil
}

// CheckGrow checks a request to make a disk of this machine larger, against the file's present size in bytes, and
// returns the disk's index. Its errors are those of [DiskGrower].
func (m Machine) CheckGrow(serial string, size int64) (index int, err error) {
	const sector = 512 // bytes; virtio counts a disk's size in these
	index = slices.IndexFunc(m.Disks, func(d Disk) bool { return d.Serial == serial })
	switch {
	case index < 0:
		return index, fault.New(fault.NotFound, "grow disk %q: machine %q has no such disk", serial, m.ID)
	case m.Disks[index].ReadOnly:
		return index, fault.New(fault.Invalid, "grow disk %q: it is read-only", serial)
	case size <= 0 || size%sector != 0:
		return index, fault.New(fault.Invalid, "grow disk %q: a size of %d bytes is not a whole number of sectors", serial, size)
	}
	info, err := os.Stat(m.Disks[index].Path)
	if err != nil {
		return index, fileFault("disk "+serial, err)
	}
	if size < info.Size() {
		return index, fault.New(fault.Invalid, "grow disk %q: it has %d bytes, more than %d", serial, info.Size(), size)
	}
	return index, nil
}

// CheckMemory checks a request to give the guest of this machine another size of memory, in bytes. Its errors are those
// of [MemorySizer].
func (m Machine) CheckMemory(size int64) error {
	if size <= 0 || size > m.Memory || size%(1<<20) != 0 {
		return fault.New(fault.Invalid, "give machine %q a memory of %d bytes: it is not a whole number of MiB up to the %d MiB that it has",
			m.ID, size, m.Memory>>20)
	}
	return nil
}

// isDisk accepts regular files and block devices.
func isDisk(mode fs.FileMode) bool {
	return mode.IsRegular() || mode&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice
}

func check(what, path string, fits func(fs.FileMode) bool) error {
	info, err := os.Stat(path)
	if err != nil {
		return fileFault(what, err)
	}
	if !fits(info.Mode()) {
		return fault.New(fault.Invalid, "open %s: %s has the wrong type (%s)", what, path, info.Mode().Type())
	}
	return nil
}

func fileFault(what string, err error) error {
	kind := fault.Internal
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = fault.NotFound
	case errors.Is(err, fs.ErrPermission):
		kind = fault.Denied
	}
	return fault.New(kind, "open %s: %w", what, err)
}
