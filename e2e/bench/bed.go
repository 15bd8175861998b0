package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/config"
	"banger/internal/guestlink"
	"banger/internal/hypervisor"
	"banger/internal/monitorlink"
)

// bed is a home of its own for banger, with images and kernels in it.
type bed struct {
	bin   string
	dir   string // state, cache, configuration
	run   string // sockets
	paths config.Paths
	bare  monitorlink.Launch // how a VM of the default kind is booted
}

func newBed(ctx context.Context, bin string) (_ *bed, err error) {
	if bin, err = filepath.Abs(bin); err != nil {
		return nil, err
	}
	b := &bed{bin: bin}
	user, err := config.Load(os.Getenv)
	if err != nil {
		return nil, err
	}
	// Beside the user's state, so that files can be linked instead of copied.
	if err := os.MkdirAll(user.Paths.State, 0o700); err != nil {
		return nil, err
	}
	if b.dir, err = os.MkdirTemp(user.Paths.State, "bench"); err != nil {
		return nil, err
	}
	if b.run, err = os.MkdirTemp("", "bb"); err != nil {
		return nil, err
	}
	env := map[string]string{}
	for _, kv := range b.env() {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	own, err := config.Load(func(k string) string { return env[k] })
	if err != nil {
		return nil, err
	}
	b.paths = own.Paths
	if err := os.MkdirAll(b.paths.State, 0o700); err != nil {
		return nil, err
	}
	for _, d := range [][2]string{
		{user.Paths.Images(), b.paths.Images()}, {user.Paths.Kernels(), b.paths.Kernels()}, {user.Paths.Cache, b.paths.Cache},
	} {
		if err := linkTree(d[0], d[1]); err != nil {
			return nil, fmt.Errorf("link %s: %w", d[0], err)
		}
	}
	if err := errors.Join(b.configure(ctx, withoutTemplates), b.learn(ctx)); err != nil {
		b.close(ctx)
		return nil, err
	}
	return b, nil
}

// learn boots a VM once, which also warms the page cache, and keeps what its monitor was told.
func (b *bed) learn(ctx context.Context) error {
	for _, args := range [][]string{
		{"vm", "create", "--name", "bench-learn", "--init", "agent"}, {"stop", "bench-learn"},
	} {
		if _, err := b.banger(ctx, args...); err != nil {
			return err
		}
	}
	dirs, err := os.ReadDir(b.paths.VMs())
	if err != nil || len(dirs) != 1 {
		return errors.Join(err, fmt.Errorf("%d VMs where one was made", len(dirs)))
	}
	b.bare, err = monitorlink.Dirs{State: filepath.Join(b.paths.VMs(), dirs[0].Name())}.ReadLaunch()
	if err != nil {
		return err
	}
	_, err = b.banger(ctx, "vm", "delete", "bench-learn")
	return err
}

// close deletes what the bench made, also when ctx has ended.
func (b *bed) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if out, err := b.output(ctx, "vm", "list", "-q"); err == nil {
		if ids := strings.Fields(string(out)); len(ids) > 0 {
			_, _ = b.banger(ctx, slices.Concat([]string{"vm", "delete", "--force"}, ids)...)
		}
	}
	_, _ = b.banger(ctx, "daemon", "stop")
	_ = os.RemoveAll(b.dir)
	_ = os.RemoveAll(b.run)
}

func (b *bed) env() []string {
	return []string{
		"HOME=" + b.dir, "XDG_STATE_HOME=" + b.dir, "XDG_CACHE_HOME=" + filepath.Join(b.dir, "cache"),
		"XDG_CONFIG_HOME=" + filepath.Join(b.dir, "config"), "XDG_RUNTIME_DIR=" + b.run, "PATH=" + os.Getenv("PATH"),
	}
}

func (b *bed) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(b.bin, "banger"), args...) // the program under test
	cmd.Env = b.env()
	return cmd
}

// banger runs a command and returns how long it took from its start to its end.
func (b *bed) banger(ctx context.Context, args ...string) (time.Duration, error) {
	d, _, err := b.timed(ctx, args...)
	return d, err
}

// timed is banger that also returns what the command wrote.
func (b *bed) timed(ctx context.Context, args ...string) (time.Duration, string, error) {
	var text bytes.Buffer
	cmd := b.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &text, &text
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return 0, "", fmt.Errorf("banger %s: %w\n%s", strings.Join(args, " "), err, text.String())
	}
	return time.Since(began), text.String(), nil
}

func (b *bed) output(ctx context.Context, args ...string) ([]byte, error) {
	out, err := b.command(ctx, args...).Output()
	if err != nil {
		return nil, fmt.Errorf("banger %s: %w", strings.Join(args, " "), err)
	}
	return out, nil
}

// deadWire gives a machine a network device on which nobody answers.
func deadWire(m *hypervisor.Machine) (io.Closer, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	m.NIC = &hypervisor.NIC{MAC: "52:54:00:62:6e:67", Conn: os.NewFile(uintptr(fds[0]), "nic")}
	host := os.NewFile(uintptr(fds[1]), "wire")
	defer host.Close() //nolint:errcheck // net.FileConn copies it
	conn, err := net.FileConn(host)
	if err != nil {
		return nil, err
	}
	go io.Copy(io.Discard, conn) //nolint:errcheck // ends with the wire
	return conn, nil
}

// ping measures a round trip to the agent of a running VM, by the way that the daemon goes.
func (b *bed) ping(ctx context.Context, vm string) (time.Duration, error) {
	id, err := b.id(ctx, vm)
	if err != nil {
		return 0, err
	}
	dirs := monitorlink.Dirs{Runtime: filepath.Join(b.paths.VMRuntimes(), id)}
	client := guestlink.NewClient(monitorlink.NewClient(dirs.Socket()))
	began := time.Now()
	err = client.Ping(ctx)
	return time.Since(began), err
}

// shown is what bench needs of `vm show --output json`.
type shown struct {
	ID         string `json:"id"`
	Name       string `json:"name"`
	MonitorPid int    `json:"monitor_pid"`
	VMMPid     int    `json:"vmm_pid"`
}

func (b *bed) id(ctx context.Context, vm string) (string, error) {
	s, err := b.show(ctx, vm)
	return s.ID, err
}

func (b *bed) show(ctx context.Context, vm string) (shown, error) {
	out, err := b.output(ctx, "vm", "list", "--output", "json")
	if err != nil {
		return shown{}, err
	}
	var all []shown
	if err := json.Unmarshal(out, &all); err != nil {
		return shown{}, err
	}
	for _, s := range all {
		if s.Name == vm {
			return s, nil
		}
	}
	return shown{}, fmt.Errorf("no VM %s", vm)
}

// resident returns the resident memory of daemon and monitor in bytes.
func (b *bed) resident(ctx context.Context, vm string) (daemon, monitor int64, err error) {
	pid, err := b.daemonPid(ctx)
	if err != nil {
		return 0, 0, err
	}
	s, err := b.show(ctx, vm)
	if err != nil {
		return 0, 0, err
	}
	daemon, err = memory(pid, "VmRSS")
	if err != nil {
		return 0, 0, err
	}
	monitor, err = memory(s.MonitorPid, "VmRSS")
	return daemon, monitor, err
}

func (b *bed) daemonPid(ctx context.Context) (int, error) {
	out, err := b.output(ctx, "daemon", "status", "--output", "json")
	if err != nil {
		return 0, err
	}
	var status struct {
		Pid int `json:"pid"`
	}
	err = json.Unmarshal(out, &status)
	return status.Pid, err
}

// memory reads a field of /proc/pid/status, proc(5), that counts bytes: VmRSS is what is resident, VmHWM the most that was.
func memory(pid int, field string) (int64, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == field+":" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no %s", pid, field)
}

// linkTree makes a copy of a tree whose files are hard links; what is not there is no error.
func linkTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			return os.MkdirAll(target, 0o700)
		case !d.Type().IsRegular():
			return nil
		}
		if err := os.Link(path, target); err != nil && !errors.Is(err, unix.EXDEV) {
			return err
		}
		return nil
	})
}
