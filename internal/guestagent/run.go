package guestagent

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/filetar"
	"banger/internal/guestproto"
)

// Signals by which systemd, as process 1, is asked to start a target (systemd(1), SIGNALS).
const (
	systemdPowerOff = 38 // SIGRTMIN+4: poweroff.target
	systemdReboot   = 39 // SIGRTMIN+5: reboot.target
)

func systemdSignal(how guestproto.Shutdown) syscall.Signal {
	if how == guestproto.Reboot {
		return systemdReboot
	}
	return systemdPowerOff
}

// run is the life of process 1 after the boot. It returns only if the guest can't go on.
func (m *machine) run(p guestproto.BootParams) error {
	switch init := findInit(); {
	case p.Init == guestproto.InitAgent, p.Init != guestproto.InitSystemd && !isSystemd(init):
		return m.beInit()
	case init == "":
		return fmt.Errorf("start the image's init: the image has no /sbin/init; boot it with %sinit=agent", "banger.")
	default:
		return m.becomeInit(init)
	}
}

// findInit returns the image's init, or nothing.
func findInit() string {
	for _, path := range []string{"/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd"} {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}

// isSystemd reports whether an init is systemd. Only that is taken unasked: the init of a container image (busybox, say)
// is seldom meant to be run, and nobody could ask it to power off.
func isSystemd(init string) bool {
	path, err := filepath.EvalSymlinks(init)
	return err == nil && filepath.Base(path) == "systemd"
}

// becomeInit starts the agent beside, then turns into the image's init.
func (m *machine) becomeInit(path string) error {
	if err := quietSystemd("/"); err != nil {
		return err
	}
	// The initramfs is gone, but not the file that this process runs from.
	const self = "/proc/self/exe"
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	fd := null.Fd()
	_, err = syscall.ForkExec(self, []string{besideName}, &syscall.ProcAttr{
		Dir: "/", Env: []string{"PATH=" + defaultPath}, Files: []uintptr{fd, fd, fd}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	m.stage("agent started; now " + path)
	return fmt.Errorf("start %s: %w", path, syscall.Exec(path, []string{path}, []string{"PATH=" + defaultPath, "TERM=linux"}))
}

// quietSystemd masks, in /run and so for this boot only, the units that would wait for what a banger guest does not have:
// the network is configured already, and without udev no device unit ever becomes active. It also keeps systemd from
// emptying /tmp: commands run before systemd has booted. The image's own /etc goes first.
func quietSystemd(root string) error {
	units := []string{
		"systemd-networkd-wait-online.service", "NetworkManager-wait-online.service", "ifupdown-wait-online.service",
		"tmp.mount", // it would hide what is in /tmp by then
	}
	if !isFile(filepath.Join(root, "lib/systemd/systemd-udevd")) && !isFile(filepath.Join(root, "usr/lib/systemd/systemd-udevd")) {
		units = append(units, "serial-getty@ttyS0.service", "serial-getty@hvc0.service")
	}
	// The same name in /run overrides the image's rules, which empty /tmp at boot, tmpfiles.d(5).
	rules := filepath.Join(root, "run/tmpfiles.d")
	if err := os.MkdirAll(rules, 0o755); err != nil { // as systemd makes it
		return fmt.Errorf("keep /tmp: %w", err)
	}
	const keep = "d /tmp 1777 root root 10d\nd /var/tmp 1777 root root 30d\n"
	if err := os.WriteFile(filepath.Join(rules, "tmp.conf"), []byte(keep), 0o644); err != nil { // public
		return fmt.Errorf("keep /tmp: %w", err)
	}
	dir := filepath.Join(root, "run/systemd/system")
	if err := os.MkdirAll(dir, 0o755); err != nil { // as systemd makes it
		return fmt.Errorf("mask units: %w", err)
	}
	for _, unit := range units {
		if err := os.Symlink("/dev/null", filepath.Join(dir, unit)); err != nil && !os.IsExist(err) {
			return fmt.Errorf("mask units: %w", err)
		}
	}
	return nil
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// beInit is process 1 with the agent in it: it serves, reaps, and goes down when asked to.
func (m *machine) beInit() error {
	m.down = make(chan guestproto.ShutdownSpec, 1)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGPWR)
	m.kids = newInitChildren()
	m.random = openRandom()
	// What systemd gives services: a soft limit that select(2) can live with, and room above it.
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1024, Max: 512 << 10})
	// As in containers, for whose images this is: a program needs not be root to serve on a low port, nor to ping.
	_ = os.WriteFile("/proc/sys/net/ipv4/ip_unprivileged_port_start", []byte("0"), 0)
	_ = os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0)
	agent := New(string(guestproto.InitAgent), m, m.kids)
	port, err := openPort(guestproto.PortName, deviceWait)
	if err != nil {
		return err
	}
	m.stage("ready")
	served := make(chan error, 1)
	go func() { served <- agent.Serve(context.Background(), port) }()
	go late()
	// Not needed for a command to run, so after the host has been told.
	_ = mount{source: "cgroup2", target: "/sys/fs/cgroup", fstype: "cgroup2", flags: unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, optional: true}.do()
	_ = os.MkdirAll("/run/lock", 0o1777) // as everywhere
	select {
	case spec := <-m.down:
		m.goDown(spec)
	case sig := <-signals: // SIGINT is Ctrl-Alt-Del
		how := guestproto.PowerOff
		if sig == unix.SIGINT {
			how = guestproto.Reboot
		}
		m.goDown(guestproto.ShutdownSpec{How: how})
	case err := <-served:
		return fmt.Errorf("serve the link: %w", err)
	}
	return nil
}

// defaultGrace is the time between SIGTERM and SIGKILL on the way down.
const defaultGrace = 5 * time.Second

// goDown ends all processes and powers off or reboots.
func (m *machine) goDown(spec guestproto.ShutdownSpec) {
	grace := defaultGrace
	if spec.GraceMS > 0 {
		grace = min(time.Duration(spec.GraceMS)*time.Millisecond, time.Hour)
	}
	_ = unix.Kill(-1, unix.SIGTERM)
	_ = unix.Kill(-1, unix.SIGCONT)
	_ = unix.Kill(-1, unix.SIGHUP) // interactive shells ignore SIGTERM
	if !m.alone(grace) {
		_ = unix.Kill(-1, unix.SIGKILL)
		m.alone(time.Second)
	}
	m.halt(spec.How)
}

// alone waits until process 1 has no children left. Every process ends up as its child.
func (m *machine) alone(wait time.Duration) bool {
	for deadline := time.Now().Add(wait); ; {
		m.kids.reap()
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == unix.ECHILD {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// halt leaves the disks clean, as far as it goes, and ends the machine. It does not return.
func (m *machine) halt(how guestproto.Shutdown) {
	// What the main process wrote last may still be on its way through the console's driver: tcdrain(3).
	_ = control(m.console, func(fd int) error { return unix.IoctlSetInt(fd, unix.TCSBRK, 1) })
	unix.Sync()
	for _, dir := range realDirs() {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	}
	_ = unix.Unmount(workHome, unix.MNT_DETACH)
	_ = unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	if m.disk != nil {
		_ = unix.Mount("", fmt.Sprintf("/proc/self/fd/%d", m.disk.Fd()), "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	unix.Sync()
	if how == guestproto.PowerOff {
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	// A machine that can't power off (no ACPI) ends by a reset, which VMMs are told to take as the end.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}

// copyTree copies what is in a directory to another.
func copyTree(from, to string) error {
	root, err := os.OpenRoot(to)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // nothing is buffered
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	go func() {
		archive := tar.NewWriter(w)
		for _, entry := range entries {
			if err := filetar.Pack(context.Background(), archive, filepath.Join(from, entry.Name()), filetar.PackOptions{}); err != nil {
				_ = w.CloseWithError(err)
				return
			}
		}
		_ = w.CloseWithError(archive.Close())
	}()
	err = filetar.Unpack(root, r, filetar.Options{Owner: owner(true, 0, 0)})
	_ = r.CloseWithError(err)
	return err
}
