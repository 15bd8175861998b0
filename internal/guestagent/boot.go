package guestagent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/guestproto"
)

// Where things are mounted before the root is switched.
const (
	newRoot  = "/newroot"
	baseDir  = "/base"
	upperDir = "/system"
)

// mount is one call of mount(2).
type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
	optional               bool // a kernel without it is fine
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil { // a mount point
		return fmt.Errorf("mount %s: %w", m.target, err)
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil && !m.optional {
		return fmt.Errorf("mount %s: %w", m.target, err)
	}
	return nil
}

func mountAll(mounts []mount) error {
	for _, m := range mounts {
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}

// kernelMounts are the kernel's own file systems. They move to the new root with the switch.
func kernelMounts() []mount {
	const common = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV
	return []mount{
		{source: "proc", target: "/proc", fstype: "proc", flags: common},
		{source: "sysfs", target: "/sys", fstype: "sysfs", flags: common},
		{source: "dev", target: "/dev", fstype: "devtmpfs", flags: unix.MS_NOSUID, data: "mode=0755"},
		// gid 5 is tty in every distribution (systemd and udev assume it, too).
		{source: "devpts", target: "/dev/pts", fstype: "devpts", flags: unix.MS_NOSUID | unix.MS_NOEXEC, data: "mode=0620,gid=5,ptmxmode=0666"},
		{source: "tmpfs", target: "/dev/shm", fstype: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, data: "mode=1777"},
		{source: "tmpfs", target: "/run", fstype: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, data: "mode=0755"},
	}
}

// linkDescriptors makes the names by which programs reach their own descriptors. The kernel makes none, udev would.
func linkDescriptors(dev string) {
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		_ = os.Symlink(target, filepath.Join(dev, name)) // there already is fine, and nothing else can go wrong in memory
	}
}

// boot does all that has to be done before the guest is ready. On return the root is the image's.
func (m *machine) boot() (guestproto.BootParams, error) {
	m.started = time.Now()
	unix.Umask(0o022)
	if err := mountAll(kernelMounts()); err != nil {
		return guestproto.BootParams{}, err
	}
	linkDescriptors("/dev")
	m.console = openConsole()
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return guestproto.BootParams{}, fmt.Errorf("read the kernel command line: %w", err)
	}
	params, err := guestproto.ParseBoot(string(cmdline))
	if err != nil {
		return params, err
	}
	m.debug = params.Debug
	m.stage("kernel file systems")
	m.loadModules()
	m.stage("modules")
	found, err := findDisks("/sys/block", guestproto.DiskBase, deviceWait)
	if err != nil {
		return params, err
	}
	if err := m.mountRoot(found); err != nil {
		return params, err
	}
	if err := switchRoot(newRoot); err != nil {
		return params, err
	}
	m.stage("root")
	if err := m.furnish(params, found); err != nil {
		return params, err
	}
	m.stage("identity, network and disks")
	return params, nil
}

// loadModules loads the modules of the initramfs's list, in its order. One that fails is told, and the boot goes on: what
// it was needed for says so better.
func (m *machine) loadModules() {
	list, err := os.ReadFile(guestproto.ModulesList)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			m.complain(fmt.Errorf("read the list of modules: %w", err))
		}
		return
	}
	for line := range strings.Lines(string(list)) {
		path := strings.TrimSpace(line)
		if path == "" {
			continue
		}
		if err := loadModule(path); err != nil {
			m.complain(fmt.Errorf("load %s: %w", path, err))
		}
	}
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	flags := 0
	if strings.HasSuffix(path, ".xz") || strings.HasSuffix(path, ".zst") || strings.HasSuffix(path, ".gz") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	err = unix.FinitModule(int(f.Fd()), "", flags)
	if err == unix.EEXIST { //nolint:errorlint // x/sys returns it bare
		return nil
	}
	return err
}

// findDisks returns the devices of the disks by their serials, once the needed one is there. Devices that were plugged in
// before the start appear together, when their driver is loaded.
func findDisks(sysBlock, needed string, wait time.Duration) (map[string]string, error) {
	deadline := time.Now().Add(wait)
	for {
		found := map[string]string{}
		files, _ := filepath.Glob(filepath.Join(sysBlock, "*", "serial"))
		for _, file := range files {
			serial, err := os.ReadFile(file)
			if err == nil {
				found[strings.TrimSpace(string(serial))] = "/dev/" + filepath.Base(filepath.Dir(file))
			}
		}
		if found[needed] != "" {
			return found, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("find the disk %q: there are %d disks and none has that serial", needed, len(found))
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// mountRoot puts the root together: the image, read-only, below the system disk, or below memory if there is none.
func (m *machine) mountRoot(disks map[string]string) error {
	base := mount{source: disks[guestproto.DiskBase], target: baseDir, fstype: "ext4", flags: unix.MS_RDONLY}
	upper := mount{source: disks[guestproto.DiskSystem], target: upperDir, fstype: "ext4", flags: unix.MS_NOATIME}
	if upper.source == "" {
		upper = mount{source: "tmpfs", target: upperDir, fstype: "tmpfs"}
	}
	if err := mountAll([]mount{base, upper}); err != nil {
		return err
	}
	for _, dir := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(upperDir, dir), 0o755); err != nil { // it becomes /
			return fmt.Errorf("prepare the system disk: %w", err)
		}
	}
	if disks[guestproto.DiskSystem] != "" {
		// The new root hides it, but a descriptor reaches it: for bind mounts, and to end it cleanly.
		disk, err := os.Open(upperDir)
		if err != nil {
			return fmt.Errorf("open the system disk: %w", err)
		}
		m.disk = disk
	}
	return mount{
		source: "overlay", target: newRoot, fstype: "overlay", flags: unix.MS_NOATIME,
		// redirect_dir lets directories of the image be renamed as on any other file system.
		data: "lowerdir=" + baseDir + ",upperdir=" + upperDir + "/upper,workdir=" + upperDir + "/work,redirect_dir=on",
	}.do()
}

// switchRoot makes dir the root and frees what the initramfs holds, as switch_root(8) does.
func switchRoot(dir string) error {
	for _, sub := range []string{"/dev", "/proc", "/sys", "/run"} {
		// A link would be followed from outside of the new root.
		if info, err := os.Lstat(dir + sub); err == nil && !info.IsDir() {
			if err := os.Remove(dir + sub); err != nil {
				return fmt.Errorf("switch to the root: %w", err)
			}
		}
		if err := (mount{source: sub, target: dir + sub, flags: unix.MS_MOVE}).do(); err != nil {
			return err
		}
	}
	for _, path := range []string{filepath.Dir(guestproto.ModulesList), "/init"} {
		_ = os.RemoveAll(path) // memory only
	}
	if err := os.Chdir(dir); err != nil {
		return fmt.Errorf("switch to the root: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("switch to the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("switch to the root: %w", err)
	}
	return os.Chdir("/")
}

// furnish gives the root its identity, its network and its other disks. An image in which a file of its identity can't be
// written, or the modules can't be shown, is strange but may do what it is for: that is told and the boot goes on.
func (m *machine) furnish(p guestproto.BootParams, disks map[string]string) error {
	if err := ensureDir("/tmp", 0o777|fs.ModeSticky); err != nil {
		m.complain(err)
	}
	if err := identify("/", p.Hostname, p.MachineID); err != nil {
		m.complain(err)
	}
	if err := configureNetwork(p); err != nil {
		return err
	}
	if len(p.DNS) > 0 {
		if err := replaceFile("/etc/resolv.conf", resolvConf(p.DNS), 0o644); err != nil {
			m.complain(err)
		}
	}
	if device := disks[guestproto.DiskModules]; device != "" {
		// In the image's root, so that a symbolic /lib is followed as the image means it.
		target := "/lib/modules/" + kernelRelease()
		err := ensureDir("/lib", 0o755)
		if err == nil {
			err = mount{source: device, target: target, fstype: "ext4", flags: unix.MS_RDONLY}.do()
		}
		if err != nil {
			m.complain(err)
		}
	}
	if device := disks[guestproto.DiskWork]; device != "" {
		if err := mountWork(device); err != nil {
			return err
		}
	}
	return m.bindReal()
}

// bindReal puts directories of the system disk over those that must not lie on an overlay: container engines make
// overlays of their own in them.
func (m *machine) bindReal() error {
	if m.disk == nil {
		return nil
	}
	dirs := realDirs()
	if !isDir("/var/lib") {
		// An image without it has no package manager that could bring an engine. One mount there must be: a file system
		// grows by an open file on it.
		dirs = map[string]string{"none": "/run/banger/system"}
	}
	for name, target := range dirs {
		source := fmt.Sprintf("/proc/self/fd/%d/%s", m.disk.Fd(), name)
		if err := os.MkdirAll(source, 0o710); err != nil { // as docker makes it
			return fmt.Errorf("prepare %s: %w", target, err)
		}
		if err := (mount{source: source, target: target, flags: unix.MS_BIND}).do(); err != nil {
			return err
		}
	}
	return nil
}

// realDirs are the directories that lie on the system disk itself, with their names there.
func realDirs() map[string]string {
	return map[string]string{
		"docker": "/var/lib/docker", "containerd": "/var/lib/containerd", "containers": "/var/lib/containers",
	}
}

// ensureDir makes a directory of the root if it is missing; a link to nowhere gets the directory that it points to.
func ensureDir(path string, mode fs.FileMode) error {
	if isDir(path) {
		return nil
	}
	made := path
	if target, err := os.Readlink(path); err == nil {
		if made = target; !filepath.IsAbs(target) {
			made = filepath.Join(filepath.Dir(path), target)
		}
	}
	if err := os.MkdirAll(made, 0o755); err != nil { // as everywhere at the top of a root
		return fmt.Errorf("make %s: %w", path, err)
	}
	if err := os.Chmod(made, mode); err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	return nil
}

// seeded marks a work disk that has the image's /root. It is an extended attribute of the disk's root directory, so that
// nothing is to be seen in anybody's home.
const seeded = "trusted.banger.seeded"

// workHome is where the work disk is mounted.
const workHome = "/root"

// mountWork mounts the work disk at /root. On its first boot it gets what the image has there; a crash in the midst of
// that makes the next boot do it again.
func mountWork(device string) error {
	const home, tmp = workHome, "/run/banger/work"
	if err := (mount{source: device, target: tmp, fstype: "ext4", flags: unix.MS_NOATIME | unix.MS_NOSUID}).do(); err != nil {
		return err
	}
	if _, err := unix.Getxattr(tmp, seeded, nil); err != nil {
		if err := seed(home, tmp); err != nil {
			return fmt.Errorf("copy the image's %s to the work disk: %w", home, err)
		}
	}
	if err := (mount{source: tmp, target: home, flags: unix.MS_MOVE}).do(); err != nil {
		return err
	}
	return os.Remove(tmp)
}

// seed copies a directory's content to an empty disk, then marks that as done.
func seed(from, to string) error {
	_ = os.Remove(filepath.Join(to, "lost+found")) // e2fsck makes a new one if it ever needs it
	info, err := os.Stat(from)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.Chmod(to, 0o700); err != nil {
			return err
		}
		return unix.Setxattr(to, seeded, []byte("1"), 0)
	}
	if err != nil {
		return err
	}
	if err := copyTree(from, to); err != nil {
		return err
	}
	if err := os.Chmod(to, info.Mode().Perm()); err != nil {
		return err
	}
	// The mark must not get to the disk before what it speaks of.
	dir, err := os.Open(to)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // only synced
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return err
	}
	return unix.Setxattr(to, seeded, []byte("1"), 0)
}
