//go:build fakevmm

package daemon

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/machines"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
	"banger/internal/progress"
	"banger/internal/store"
)

// crashVariable names, in the environment of a test build, a directory. The file "calls" in it gets a line for each call
// that the VM service makes. If there is a file "at" with the text NAME:N:MODE, then the call that writes the N-th line
// NAME fails (fail), kills the daemon before or after it (before, after), or waits until the file "held", which it makes,
// is gone (hold).
const crashVariable = "BANGER_CRASH_DIR"

// breakable lets a test break what the VM service uses at any call.
func breakable(st machines.Store, so machines.Sources, h machines.Host) (machines.Store, machines.Sources, machines.Host) {
	dir := os.Getenv(crashVariable)
	if dir == "" {
		return st, so, h
	}
	p := &points{dir: dir}
	return breakableStore{st, p}, breakableSources{so, p}, breakableHost{h, p}
}

// points are the calls at which the daemon can be broken. The mutex orders the lines of "calls".
type points struct {
	dir string
	mu  sync.Mutex
}

// pass makes a call, unless it is to fail.
func (p *points) pass(name string, call func() error) error {
	switch mode := p.reach(name); mode {
	case "fail":
		return fault.New(fault.Internal, "%s failed on purpose", name)
	case "before":
		die()
	case "after":
		_ = call()
		die()
	case "hold":
		p.hold()
	}
	return call()
}

// reach notes a call and returns what is to become of it.
func (p *points) reach(name string) (mode string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	calls, err := os.OpenFile(filepath.Join(p.dir, "calls"), os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return ""
	}
	defer calls.Close() //nolint:errcheck // a test's file
	if _, err := fmt.Fprintln(calls, name); err != nil {
		return ""
	}
	at, err := os.ReadFile(filepath.Join(p.dir, "at"))
	if err != nil {
		return ""
	}
	words := strings.Split(strings.TrimSpace(string(at)), ":")
	if len(words) != 3 || words[0] != name {
		return ""
	}
	count := 0
	if _, err := calls.Seek(0, 0); err != nil {
		return ""
	}
	for lines := bufio.NewScanner(calls); lines.Scan(); {
		if lines.Text() == name {
			count++
		}
	}
	if strconv.Itoa(count) != words[1] {
		return ""
	}
	if os.Remove(filepath.Join(p.dir, "at")) != nil { // once; its absence tells the test that it was reached
		return "" // the test has given up on it
	}
	return words[2]
}

// hold waits until the test has done what it wants to do at this point.
func (p *points) hold() {
	path := filepath.Join(p.dir, "held")
	if os.WriteFile(path, nil, 0o600) != nil {
		return
	}
	for {
		if _, err := os.Stat(path); err != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// die ends the daemon as kill -9 does.
func die() {
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

type breakableStore struct {
	machines.Store

	p *points
}

func (s breakableStore) Insert(ctx context.Context, vm *microvm.VM) error {
	return s.p.pass("Insert", func() error { return s.Store.Insert(ctx, vm) })
}

func (s breakableStore) Get(ctx context.Context, id microvm.ID) (vm microvm.VM, err error) {
	err = s.p.pass("Get", func() (err error) { vm, err = s.Store.Get(ctx, id); return err })
	return vm, err
}

func (s breakableStore) List(ctx context.Context) (vms []microvm.VM, err error) {
	err = s.p.pass("List", func() (err error) { vms, err = s.Store.List(ctx); return err })
	return vms, err
}

func (s breakableStore) SetState(ctx context.Context, id microvm.ID, c store.Change) error {
	return s.p.pass("SetState "+string(c.To), func() error { return s.Store.SetState(ctx, id, c) })
}

func (s breakableStore) SetImage(ctx context.Context, id microvm.ID, digest string, spec microvm.Spec) error {
	return s.p.pass("SetImage", func() error { return s.Store.SetImage(ctx, id, digest, spec) })
}

func (s breakableStore) Remove(ctx context.Context, id microvm.ID) error {
	return s.p.pass("Remove", func() error { return s.Store.Remove(ctx, id) })
}

type breakableSources struct {
	machines.Sources

	p *points
}

func (s breakableSources) Image(ctx context.Context, name string, report progress.Sink) (im machines.Image, err error) {
	err = s.p.pass("Image", func() (err error) { im, err = s.Sources.Image(ctx, name, report); return err })
	return im, err
}

func (s breakableSources) ImageByDigest(ctx context.Context, digest string) (im machines.Image, err error) {
	err = s.p.pass("ImageByDigest", func() (err error) { im, err = s.Sources.ImageByDigest(ctx, digest); return err })
	return im, err
}

func (s breakableSources) Kernel(ctx context.Context, name string, report progress.Sink) (k machines.Kernel, err error) {
	err = s.p.pass("Kernel", func() (err error) { k, err = s.Sources.Kernel(ctx, name, report); return err })
	return k, err
}

type breakableHost struct {
	machines.Host

	p *points
}

func (h breakableHost) BlankDisk(ctx context.Context, path string, size int64) error {
	return h.p.pass("BlankDisk", func() error { return h.Host.BlankDisk(ctx, path, size) })
}

func (h breakableHost) Hypervisor(ctx context.Context, wanted string) (hv machines.Hypervisor, err error) {
	err = h.p.pass("Hypervisor", func() (err error) { hv, err = h.Host.Hypervisor(ctx, wanted); return err })
	return hv, err
}

func (h breakableHost) StartMonitor(d monitorlink.Dirs, l monitorlink.Launch) error {
	return h.p.pass("StartMonitor", func() error { return h.Host.StartMonitor(d, l) })
}
