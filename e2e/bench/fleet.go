package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/rpcclient"
)

// Sizes of a fleet.
const (
	fleetVMs     = 200
	fleetRunning = 20 // of them
)

// fleet is a home with many VMs, which a test build with the fake backend runs: daemon, monitors, agents and store are real.
type fleet struct {
	bin  string // directory with the test build
	home string
	run  string // sockets
}

// newFleet makes a home with n VMs, some of them running. Its daemon does not run.
func newFleet(ctx context.Context, bin string, n, running int) (_ *fleet, err error) {
	f := &fleet{bin: bin}
	defer func() { //nolint:contextcheck // must end whatever became of the context
		if err != nil {
			f.close()
		}
	}()
	if f.home, err = os.MkdirTemp("", "bf"); err != nil {
		return nil, err
	}
	if f.run, err = os.MkdirTemp("", "bf"); err != nil {
		return nil, err
	}
	if err := f.sow(); err != nil {
		return nil, err
	}
	c, err := f.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * runtime.NumCPU())
	for i := range n {
		g.Go(func() error {
			stream, err := c.VMs.Create(gctx, connect.NewRequest(&bangerv1.CreateRequest{
				Name: fmt.Sprintf("vm-%d", i), Start: i < running,
				Spec: &bangerv1.Spec{Image: "dummy", Kernel: "dummy", Init: "agent", Net: "none", Backend: "fake", DiskSize: 64 << 20},
			}))
			if err != nil {
				return err
			}
			for stream.Receive() { // to the end
			}
			return errors.Join(stream.Err(), stream.Close())
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return f, f.stop(ctx)
}

// buildFake builds banger with the fake backend into a directory of its own.
func buildFake(ctx context.Context) (string, error) {
	dir, err := os.MkdirTemp("", "bf")
	if err != nil {
		return "", err
	}
	for _, b := range []struct {
		pkg  string
		args []string
	}{
		{"./cmd/banger", []string{"-tags", "fakevmm"}}, {"./cmd/banger-guest", nil},
	} {
		args := slices.Concat([]string{"build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", dir + "/"}, b.args, []string{b.pkg})
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			_ = os.RemoveAll(dir)
			return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return dir, nil
}

// sow puts an image and a kernel into the stores that only a fake VM can boot.
func (f *fleet) sow() error {
	sum := strings.Repeat("c", 64)
	var builtin strings.Builder
	for _, m := range []string{
		"virtio_mmio", "virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "overlay", "ext4", "vsock",
		"vmw_vsock_virtio_transport",
	} {
		builtin.WriteString("kernel/" + m + ".ko\n")
	}
	for path, content := range map[string]any{
		"images/blobs/sha256/" + sum + ".ext4": "an image",
		"images/blobs/sha256/" + sum + ".json": map[string]any{"size": len("an image")},
		"images/names/dummy.json":              map[string]any{"digest": "sha256:" + sum},
		"kernels/dummy/manifest.json": map[string]any{
			"format": 1, "name": "dummy", "release": "1", "digest": "sha256:" + sum, "files": map[string]string{"vmlinuz": "sha256:" + sum, "modules.ext4": "sha256:" + sum},
		},
		"kernels/dummy/vmlinuz":                "a kernel",
		"kernels/dummy/modules.ext4":           "modules",
		"kernels/dummy/boot/1/modules.dep":     "",
		"kernels/dummy/boot/1/modules.builtin": builtin.String(),
	} {
		text, ok := content.(string)
		if !ok {
			raw, err := json.Marshal(content)
			if err != nil {
				return err
			}
			text = string(raw)
		}
		path = filepath.Join(f.home, "banger", path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (f *fleet) env() []string {
	return []string{
		"HOME=" + f.home, "XDG_STATE_HOME=" + f.home, "XDG_CACHE_HOME=" + filepath.Join(f.home, "cache"),
		"XDG_CONFIG_HOME=" + filepath.Join(f.home, "config"), "XDG_RUNTIME_DIR=" + f.run, "PATH=" + os.Getenv("PATH"),
		"BANGER_FAKE_GUEST=" + filepath.Join(f.bin, "banger-guest"), "BANGER_CONFIG=",
	}
}

// connect returns when the daemon, which it starts if it does not run, has answered: this is what every command does.
func (f *fleet) connect(ctx context.Context) (*rpcclient.Client, error) {
	return rpcclient.Connect(ctx, rpcclient.Options{
		Socket: filepath.Join(f.run, "banger", "banger.sock"), Log: filepath.Join(f.home, "banger", "daemon.log"),
		Start: slices.Concat([]string{"env"}, f.env(), []string{filepath.Join(f.bin, "banger"), "daemon", "run"}),
	})
}

func (f *fleet) banger(ctx context.Context, args ...string) (time.Duration, error) {
	d, _, err := f.timed(ctx, args...)
	return d, err
}

// timed is banger that also returns what the command wrote.
func (f *fleet) timed(ctx context.Context, args ...string) (time.Duration, string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(f.bin, "banger"), args...) // the program under test
	cmd.Env = f.env()
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, "", fmt.Errorf("banger %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return time.Since(began), string(out), nil
}

func (f *fleet) stop(ctx context.Context) error {
	_, err := f.banger(ctx, "daemon", "stop")
	return err
}

// close ends all VMs and the daemon, and removes the home.
func (f *fleet) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if f.run != "" {
		if _, err := f.banger(ctx, "vm", "prune", "-f"); err == nil {
			_, _ = f.banger(ctx, slices.Concat([]string{"vm", "delete", "--force"}, f.names(fleetRunning))...)
		}
		_ = f.stop(ctx)
	}
	_ = os.RemoveAll(f.run)
	_ = os.RemoveAll(f.home)
}

func (*fleet) names(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("vm-%d", i)
	}
	return names
}

// manyVMs measures what many VMs cost: the daemon's start, and reads side by side.
func manyVMs(ctx context.Context, _ *bed, rounds int) ([]figure, error) {
	bin, err := buildFake(ctx)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(bin) //nolint:errcheck // temporary
	empty, err := newFleet(ctx, bin, 0, 0)
	if err != nil {
		return nil, err
	}
	defer empty.close() //nolint:contextcheck // must end whatever became of the context
	full, err := newFleet(ctx, bin, fleetVMs, fleetRunning)
	if err != nil {
		return nil, err
	}
	defer full.close() //nolint:contextcheck // likewise
	start, err := daemonStart(ctx, full, empty, rounds)
	if err != nil {
		return nil, err
	}
	shows, err := shows(ctx, full)
	if err != nil {
		return nil, err
	}
	overhead, err := overhead(ctx, empty, rounds)
	return slices.Concat(start, shows, overhead), err
}

// overhead measures what banger itself adds to a VM's creation, start and first command: the VMM is a process of the host, which
// runs as soon as it is started. The floor are the same three processes (command, monitor, agent) when they do nothing.
func overhead(ctx context.Context, f *fleet, rounds int) ([]figure, error) {
	const vm = "overhead"
	run := []string{"run", "--quiet", "--name", vm, "--image", "dummy", "--kernel", "dummy", "--init", "agent", "--net", "none", "--backend", "fake", "--disk-size", "64M"}
	var whole, floor []time.Duration
	stages := stageTimes{}
	for i := range 5*rounds + 1 {
		bare, err := f.threeProcesses(ctx)
		if err != nil {
			return nil, err
		}
		d, text, err := f.timed(ctx, slices.Concat(run, []string{"--timings", "--", "true"})...)
		if err != nil {
			return nil, err
		}
		if _, err := f.banger(ctx, "vm", "delete", "--force", vm); err != nil {
			return nil, err
		}
		if i > 0 { // the first one starts the daemon
			whole, floor = append(whole, d), append(floor, bare)
			stages.add(text)
		}
	}
	budget := median(floor) + 25*time.Millisecond
	return append([]figure{{
		"create, start and attach, fake VMM", spread(whole), "three processes: " + spread(floor), "floor + 25 ms = " + ms(budget), median(whole) <= budget,
	}}, stages.figures("fake")...), nil
}

// threeProcesses starts what a run starts, one after the other.
func (f *fleet) threeProcesses(ctx context.Context) (sum time.Duration, err error) {
	for range 2 {
		d, err := f.banger(ctx, "version")
		if err != nil {
			return 0, err
		}
		sum += d
	}
	began := time.Now()
	err = exec.CommandContext(ctx, filepath.Join(f.bin, "banger-guest")).Run() // says how it is used
	if _, said := errors.AsType[*exec.ExitError](err); !said {
		return 0, fmt.Errorf("banger-guest: %w", err)
	}
	return sum + time.Since(began), nil
}

// daemonStart compares the time from exec to the first answer of a daemon that has VMs to adopt with that of one without.
func daemonStart(ctx context.Context, full, empty *fleet, rounds int) ([]figure, error) {
	times := map[*fleet][]time.Duration{}
	for range 2 * rounds {
		for _, f := range []*fleet{empty, full} {
			began := time.Now()
			c, err := f.connect(ctx)
			if err != nil {
				return nil, err
			}
			times[f] = append(times[f], time.Since(began))
			if f == full && (c.Status.GetVms() != fleetVMs || c.Status.GetRunning() != fleetRunning) {
				err = fmt.Errorf("the daemon has %d VMs, %d of them running", c.Status.GetVms(), c.Status.GetRunning())
			}
			c.Close()
			if err := errors.Join(err, f.stop(ctx)); err != nil {
				return nil, err
			}
		}
	}
	const budget = 300 * time.Millisecond
	return []figure{{
		fmt.Sprintf("daemon start, %d VMs, %d running", fleetVMs, fleetRunning), spread(times[full]), "no VM: " + spread(times[empty]),
		"<= " + ms(budget), median(times[full]) <= budget,
	}}, nil
}

// shows measures reads side by side: calls of one program, and commands.
func shows(ctx context.Context, f *fleet) ([]figure, error) {
	c, err := f.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	names := f.names(fleetVMs)
	get := func(ctx context.Context, name string) (time.Duration, error) {
		began := time.Now()
		_, err := c.VMs.Get(ctx, connect.NewRequest(&bangerv1.GetRequest{Vm: name}))
		return time.Since(began), err
	}
	var alone []time.Duration
	for _, name := range names {
		d, err := get(ctx, name)
		if err != nil {
			return nil, err
		}
		alone = append(alone, d)
	}
	var calls []time.Duration
	for range 5 {
		d, err := sideBySide(ctx, names, len(names), get)
		if err != nil {
			return nil, err
		}
		calls = append(calls, d...)
	}
	command := func(ctx context.Context, name string) (time.Duration, error) {
		return f.banger(ctx, "vm", "show", name)
	}
	commands, err := sideBySide(ctx, names, runtime.NumCPU(), command)
	if err != nil {
		return nil, err
	}
	version := func(ctx context.Context, _ string) (time.Duration, error) { return f.banger(ctx, "version") }
	floor, err := sideBySide(ctx, names, runtime.NumCPU(), version)
	if err != nil {
		return nil, err
	}
	const budget = 50 * time.Millisecond
	return []figure{
		{
			fmt.Sprintf("%d concurrent show calls, p99", len(names)), ms(p99(calls)) + " of " + spread(calls), "one at a time: " + spread(alone),
			"<= " + ms(budget), p99(calls) <= budget,
		},
		{
			fmt.Sprintf("%d show commands, %d at once, p99", len(names), runtime.NumCPU()), ms(p99(commands)) + " of " + spread(commands),
			"banger version: " + ms(p99(floor)) + " of " + spread(floor), "floor + " + ms(budget), p99(commands) <= p99(floor)+budget,
		},
	}, nil
}

// sideBySide measures a thing for each of the names, some at a time.
func sideBySide(
	ctx context.Context, names []string, atOnce int, measure func(context.Context, string) (time.Duration, error),
) ([]time.Duration, error) {
	samples := make([]time.Duration, len(names))
	var ready sync.WaitGroup // all begin at once
	ready.Add(min(atOnce, len(names)))
	g, ctx := errgroup.WithContext(ctx)
	work := make(chan int, len(names))
	for i := range names {
		work <- i
	}
	close(work)
	for range min(atOnce, len(names)) {
		g.Go(func() error {
			ready.Done()
			ready.Wait()
			for i := range work {
				var err error
				if samples[i], err = measure(ctx, names[i]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return samples, g.Wait()
}

// p99 returns what one in a hundred exceeds.
func p99(samples []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(samples))
	return s[(len(s)*99+99)/100-1]
}
