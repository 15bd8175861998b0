package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// moduleList names the kernel modules to load, in order: the ListPath of package initramfs.
const moduleList = "/banger/modules.list"

// machine is the platform of process 1 in a virtual machine.
type machine struct{}

// setUp does what an init has to do and returns the link and the console.
func (machine) setUp() (link, console *os.File, err error) {
	for _, m := range []struct{ kind, dir string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return nil, nil, err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return nil, nil, fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	list, err := os.ReadFile(moduleList)
	if err != nil {
		return nil, nil, err
	}
	for path := range strings.FieldsSeq(string(list)) {
		if err := loadModule(path); err != nil {
			return nil, nil, err
		}
	}
	if console, err = os.OpenFile("/dev/console", os.O_RDWR, 0); err != nil {
		return nil, nil, err
	}
	link, err = openPort("banger.link")
	return link, console, err
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", path, err)
	}
	return nil
}

// openPort opens the virtio-serial port of a name. Its device node has a name of the kernel's own making.
func openPort(name string) (*os.File, error) {
	for range 1000 {
		found, err := findBy("/sys/class/virtio-ports/*/name", name)
		if err == nil {
			return os.OpenFile(filepath.Join("/dev", found), os.O_RDWR, 0)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil, fmt.Errorf("no virtio port is named %q", name)
}

// findBy returns the device whose attribute, at the pattern's end, has the value.
func findBy(pattern, value string) (device string, err error) {
	paths, err := filepath.Glob(pattern)
	if err != nil {
		return "", err
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err == nil && strings.TrimSpace(string(text)) == value {
			return filepath.Base(filepath.Dir(path)), nil
		}
	}
	return "", fmt.Errorf("nothing at %s is %q", pattern, value)
}

func (machine) cmdline() (string, error) {
	f, err := os.Open("/proc/cmdline")
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // only read
	text, err := io.ReadAll(f)
	return string(text), err
}

func (machine) disk(serial string) (string, error) {
	device, err := findBy("/sys/block/*/serial", serial)
	if err != nil {
		return "", err
	}
	return filepath.Join("/dev", device), nil
}

// size reads the size that the kernel has of a disk, which it counts in sectors of 512 bytes.
func (machine) size(serial string) (string, error) {
	device, err := findBy("/sys/block/*/serial", serial)
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join("/sys/block", device, "size"))
	if err != nil {
		return "", err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return strconv.FormatInt(sectors*512, 10), err
}

// memory reads the total of sysinfo(2), from which the balloon driver takes what it has given up.
func (machine) memory() (string, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return "", err
	}
	return strconv.FormatUint(info.Totalram*uint64(info.Unit), 10), nil
}

// send brings up the first network device but the loopback and sends a frame over it.
func (machine) send(frame func(net.HardwareAddr) []byte) error {
	all, err := net.Interfaces()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(d net.Interface) bool { return len(d.HardwareAddr) == 6 })
	if i < 0 {
		return errors.New("there is no network device")
	}
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s) //nolint:errcheck // nothing is buffered
	up, err := unix.NewIfreq(all[i].Name)
	if err != nil {
		return err
	}
	up.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, up); err != nil {
		return fmt.Errorf("bring up %s: %w", all[i].Name, err)
	}
	return unix.Sendto(s, frame(all[i].HardwareAddr), 0, &unix.SockaddrLinklayer{Ifindex: all[i].Index, Halen: 6})
}

func (machine) end(how string) error {
	switch how {
	case "shutdown":
		return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case "reboot":
		return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	default:
		// The kernel panics when process 1 ends.
		os.Exit(1)
		return nil
	}
}
