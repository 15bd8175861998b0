package guestagent

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"banger/internal/guestproto"
)

// procfs is where the kernel tells about itself: /proc and /sys/block, or copies of them for tests.
type procfs struct {
	proc, block string
}

func realProcfs() procfs { return procfs{proc: "/proc", block: "/sys/block"} }

// maxProcFile bounds how much is read of a file of procfs, in bytes.
const maxProcFile = 1 << 20

func (fs procfs) read(name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(fs.proc, name))
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	return io.ReadAll(io.LimitReader(f, maxProcFile))
}

// stats reads the use of the guest.
func (fs procfs) stats() (guestproto.Stats, error) {
	var s guestproto.Stats
	stat, err := fs.read("stat")
	if err == nil {
		s.CPUNS, err = parseCPU(stat)
	}
	if err != nil {
		return s, fmt.Errorf("read the use of the CPUs: %w", err)
	}
	meminfo, err := fs.read("meminfo")
	if err == nil {
		s.MemoryTotal, s.MemoryUsed, err = parseMemory(meminfo)
	}
	if err != nil {
		return s, fmt.Errorf("read the use of memory: %w", err)
	}
	if load, err := fs.read("loadavg"); err == nil {
		first, _, _ := strings.Cut(string(load), " ")
		s.Load1, _ = strconv.ParseFloat(first, 64)
	}
	s.Processes = len(fs.pids())
	if diskstats, err := fs.read("diskstats"); err == nil {
		s.Disks = parseDisks(diskstats, fs.serial)
	}
	return s, nil
}

// tick is the unit of times in /proc/stat in ns: USER_HZ is 100 on all architectures, proc_stat(5).
const tick = 10_000_000

// parseCPU returns how long the CPUs were not idle, in ns. The fields of the first line are user, nice, system, idle,
// iowait, irq, softirq, steal; what follows is counted in user and nice already (proc_stat(5)).
func parseCPU(stat []byte) (int64, error) {
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	fields := strings.Fields(string(line))
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("unknown first line %q", clip(string(line), 80))
	}
	var busy int64
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil || n < 0 || n > 1<<40 {
			return 0, fmt.Errorf("bad number %q", clip(fields[i], 80))
		}
		busy += n
	}
	return busy * tick, nil
}

// parseMemory returns how much memory there is and how much of it could not be had for something else, in bytes. The
// kernel's own estimate of what could be had is MemAvailable (proc_meminfo(5)).
func parseMemory(meminfo []byte) (total, used int64, err error) {
	available := int64(-1)
	for line := range strings.Lines(string(meminfo)) {
		name, rest, _ := strings.Cut(line, ":")
		if name != "MemTotal" && name != "MemAvailable" {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		if err != nil || kib < 0 || kib > 1<<50 {
			return 0, 0, fmt.Errorf("bad line %q", clip(line, 80))
		}
		if name == "MemTotal" {
			total = kib << 10
		} else {
			available = kib << 10
		}
	}
	if total == 0 || available < 0 {
		return 0, 0, fmt.Errorf("no MemTotal or no MemAvailable")
	}
	return total, max(0, total-available), nil
}

// sectorSize is the unit of /proc/diskstats in bytes, whatever the disk's own is
// (Documentation/admin-guide/iostats.rst).
const sectorSize = 512

// parseDisks returns the use of the disks that have a serial: fields 6 and 10 of a line are sectors read and written.
func parseDisks(diskstats []byte, serial func(disk string) string) []guestproto.DiskStats {
	var disks []guestproto.DiskStats
	lines := bufio.NewScanner(bytes.NewReader(diskstats))
	for lines.Scan() && len(disks) < guestproto.MaxDisks {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 {
			continue
		}
		read, err1 := strconv.ParseInt(fields[5], 10, 50)
		written, err2 := strconv.ParseInt(fields[9], 10, 50)
		if err1 != nil || err2 != nil || read < 0 || written < 0 {
			continue
		}
		if name := serial(fields[2]); name != "" {
			disks = append(disks, guestproto.DiskStats{Serial: name, Read: read * sectorSize, Written: written * sectorSize})
		}
	}
	return disks
}

// serial returns the serial of a virtio disk; other disks have none.
func (fs procfs) serial(disk string) string {
	if !strings.HasPrefix(disk, "vd") {
		return "" // saves a look at each of a dozen loop devices
	}
	text, err := os.ReadFile(filepath.Join(fs.block, filepath.Base(disk), "serial"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// pids lists the processes.
func (fs procfs) pids() []string {
	dir, err := os.Open(fs.proc)
	if err != nil {
		return nil
	}
	defer dir.Close() //nolint:errcheck // read only
	names, _ := dir.Readdirnames(-1)
	return slices.DeleteFunc(names, func(name string) bool { return name[0] < '1' || name[0] > '9' })
}
