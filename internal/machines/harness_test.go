//go:build fakevmm

package machines_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"banger/internal/cgroup"
	"banger/internal/config"
	"banger/internal/guestproto"
	"banger/internal/machines"
	"banger/internal/microvm"
	"banger/internal/monitor"
	"banger/internal/monitorlink"
	"banger/internal/progress"
	"banger/internal/store"
)

// These tests run the whole of a VM but the VM: real monitors (this test binary, started again), real guest agents (as
// processes of the host), a real database. Nothing may be left of all that; TestMain looks.

// silentVariable makes a monitor that says nothing.
const silentVariable = "MACHINES_TEST_SILENT"

var (
	root     string // of all files of this run, with a short path: sockets lie in it
	guestExe string
	bedCount atomic.Int32
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "monitor" {
		if err := beMonitor(os.Args[2]); err != nil {
			_, _ = fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(runTests(m))
}

func beMonitor(dir string) error {
	if os.Getenv(silentVariable) == "" {
		return monitor.Main(context.Background(), dir)
	}
	if err := (monitorlink.Dirs{State: dir}).Identify(); err != nil {
		return err
	}
	time.Sleep(time.Hour)
	return nil
}

func runTests(m *testing.M) int {
	var err error
	if root, err = os.MkdirTemp("", "bm"); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(root) //nolint:errcheck // looked at before
	// Data races in monitors, whose log nobody reads, are found here.
	races := filepath.Join(root, "race")
	_ = os.Setenv("GORACE", "log_path="+races)
	guestExe = filepath.Join(root, "guest")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", guestExe, "banger/cmd/banger-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		_, _ = fmt.Fprintf(os.Stderr, "build the guest agent: %v\n%s", err, out)
		return 1
	}
	code := m.Run()
	for _, problem := range slices.Concat(leftFiles(), leftProcesses(), leftGoroutines()) {
		_, _ = fmt.Fprintln(os.Stderr, "left behind:", problem)
		code = 1
	}
	return code
}

func leftFiles() (problems []string) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return []string{err.Error()}
	}
	for _, e := range entries {
		if e.Name() != filepath.Base(guestExe) {
			text, _ := os.ReadFile(filepath.Join(root, e.Name()))
			problems = append(problems, e.Name()+"\n"+string(text))
		}
	}
	return problems
}

// leftProcesses looks for processes that have to do with this run by their command lines.
func leftProcesses() (problems []string) {
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		problems = nil
		lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, path := range lines {
			if text, err := os.ReadFile(path); err == nil && bytes.Contains(text, []byte(root)) {
				problems = append(problems, path+": "+string(bytes.ReplaceAll(text, []byte{0}, []byte{' '})))
			}
		}
		if len(problems) == 0 || time.Now().After(deadline) {
			return problems
		}
	}
}

func leftGoroutines() []string {
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		if !bytes.Contains(buf, []byte("banger/internal/machines.(*")) {
			return nil
		}
		if time.Now().After(deadline) {
			return []string{string(buf)}
		}
	}
}

// bed is a service with everything around it.
type bed struct {
	*testing.T

	dir     string
	db      *store.Store
	host    *testHost
	sources *testSources
	calls   *calls // counts calls of host, sources and store, and makes one of them fail

	policy config.Overcommit
	memory int64 // of the host, in bytes; 0: not known

	cgroups cgroup.Place // none, unless a test wants them

	templateConfig machines.TemplateConfig // likewise

	svc  *machines.Service
	stop func() // ends the service as a crash of the daemon would
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{T: t, dir: filepath.Join(root, strconv.Itoa(int(bedCount.Add(1)))), calls: &calls{}}
	for _, dir := range []string{b.dir, b.path("vms"), b.path("run")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"image", "kernel", "initramfs"} {
		if err := os.WriteFile(b.path(name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if b.db, err = store.Open(t.Context(), b.path("db")); err != nil {
		t.Fatal(err)
	}
	b.host = &testHost{calls: b.calls, guest: guestExe, timeout: 30 * time.Second}
	b.sources = &testSources{calls: b.calls, dir: b.dir}
	b.serve()
	t.Cleanup(b.clean)
	return b
}

func (b *bed) path(elem ...string) string { return filepath.Join(append([]string{b.dir}, elem...)...) }

// serve makes a new service over what is there.
func (b *bed) serve() {
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(b.Output(), nil))
	}
	b.svc = machines.New(machines.Config{
		VMs: b.path("vms"), Runtime: b.path("run"), HostMemory: b.memory, Overcommit: b.policy,
		Templates: b.templateConfig, Forks: b.path("forks"), Workspaces: b.db,
		Cgroups: b.cgroups, NoCgroups: map[cgroup.Controller]string{cgroup.CPU: "this is a test"},
		Defaults: microvm.Spec{
			Image: "image", Kernel: "kernel", VCPUs: 1, Memory: microvm.MinMemory, DiskSize: microvm.MinDiskSize,
			Init: microvm.InitAgent, Net: microvm.NetNone, Backend: "fake",
		},
	}, testStore{b.calls, b.db}, b.sources, b.host, log)
	svc := b.svc
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		svc.Run(ctx)
	}()
	b.stop = func() {
		cancel()
		<-done
	}
}

// restart drops the service as a crash would, and makes a new one that recovers.
func (b *bed) restart() {
	b.Helper()
	b.stop()
	b.serve()
	if err := b.svc.Recover(b.Context()); err != nil {
		b.Fatalf("recover: %v", err)
	}
}

// clean deletes all VMs and checks that nothing is left of them.
func (b *bed) clean() {
	b.calls.disarm()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	vms, err := b.svc.List(ctx)
	if err != nil {
		b.Error(err)
	}
	for _, vm := range vms {
		if err := b.svc.Delete(ctx, string(vm.ID), true); err != nil {
			b.Errorf("delete %s: %v", vm.Name, err)
		}
	}
	b.stop()
	b.mustBeEmpty()
	if err := b.db.Close(); err != nil {
		b.Error(err)
	}
	if err := os.RemoveAll(b.dir); err != nil {
		b.Error(err)
	}
}

// mustBeEmpty checks that no VM has left anything.
func (b *bed) mustBeEmpty() {
	b.Helper()
	for _, dir := range []string{b.path("vms"), b.path("run")} {
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) > 0 {
			b.Errorf("in %s there is %v, %v", dir, entries, err)
		}
	}
	// The last operation gives its lock back when it has told its result.
	for deadline := time.Now().Add(10 * time.Second); b.svc.InUse() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			b.Errorf("the service still keeps %d VMs in memory", b.svc.InUse())
			return
		}
	}
	if vms, err := b.db.List(context.Background()); err != nil || len(vms) > 0 {
		b.Errorf("in the database there is %+v, %v", vms, err)
	}
}

func (b *bed) create(name string) microvm.VM {
	b.Helper()
	vm, err := b.svc.Create(b.Context(), machines.CreateRequest{Name: name}, nil)
	if err != nil {
		b.Fatalf("create %s: %v", name, err)
	}
	return vm
}

func (b *bed) start(ref string) machines.Info {
	b.Helper()
	info, err := b.svc.Start(b.Context(), ref, nil)
	if err != nil {
		b.Fatalf("start %s: %v", ref, err)
	}
	return info
}

func (b *bed) get(ref string) machines.Info {
	b.Helper()
	info, err := b.svc.Get(b.Context(), ref)
	if err != nil {
		b.Fatalf("get %s: %v", ref, err)
	}
	return info
}

func (b *bed) waitState(ref string, want microvm.State) machines.Info {
	b.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		info := b.get(ref)
		if info.State == want {
			return info
		}
		if time.Now().After(deadline) {
			b.Fatalf("VM %s is %s (%s), want %s", ref, info.State, info.Cause, want)
		}
	}
}

// exec runs a command in the guest and returns its output.
func (b *bed) exec(ref string, args ...string) string {
	b.Helper()
	_, guest, err := b.svc.Guest(b.Context(), ref)
	if err != nil {
		b.Fatalf("reach guest of %s: %v", ref, err)
	}
	p, err := guest.Start(b.Context(), guestproto.ExecSpec{Args: args})
	if err != nil {
		b.Fatalf("exec %v: %v", args, err)
	}
	defer p.Close() //nolint:errcheck // it has ended
	var out strings.Builder
	for {
		ev, err := p.Recv()
		if err != nil {
			b.Fatalf("exec %v: %v", args, err)
		}
		out.Write(ev.Data)
		if ev.Kind == guestproto.EventExit {
			if ev.Exit.Code != 0 {
				b.Errorf("exec %v: exit status %d", args, ev.Exit.Code)
			}
			return out.String()
		}
	}
}

func (b *bed) mustAnswer(ref string) {
	b.Helper()
	if got := b.exec(ref, "echo", "hello"); got != "hello\n" {
		b.Errorf("echo said %q", got)
	}
}

func (b *bed) dirs(id microvm.ID) monitorlink.Dirs {
	return monitorlink.Dirs{State: b.path("vms", string(id)), Runtime: b.path("run", string(id))}
}

// mustNotRun checks that nothing of the VM runs and that no file of its running is left.
func (b *bed) mustNotRun(id microvm.ID, pids ...int) {
	b.Helper()
	if alive, err := b.dirs(id).Alive(); alive || err != nil {
		b.Errorf("the lock of VM %s is held: %t, %v", id, alive, err)
	}
	if _, err := os.Stat(b.path("run", string(id))); !errors.Is(err, os.ErrNotExist) {
		b.Errorf("the runtime directory of VM %s is still there (%v)", id, err)
	}
	for _, pid := range pids {
		waitGone(b.T, pid)
	}
}

func waitGone(t *testing.T, pid int) {
	t.Helper()
	if pid <= 1 {
		t.Errorf("a VM ran with the process id %d", pid)
		return
	}
	for deadline := time.Now().Add(20 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(2 * time.Millisecond) {
		// An orphan whose parent nobody waits for is a zombie at worst.
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err != nil || bytes.Contains(b, []byte(") Z ")) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("process %d is still there", pid)
			return
		}
	}
}

// setRow writes columns of a VM's row that no legal change of state would.
func (b *bed) setRow(id microvm.ID, state microvm.State, ephemeral bool) {
	b.Helper()
	db, err := sql.Open("sqlite", b.path("db"))
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // the statement tells
	_, err = db.Exec(`PRAGMA busy_timeout = 10000; UPDATE vms SET state = ?, ephemeral = ? WHERE id = ?`, state, ephemeral, id)
	if err != nil {
		b.Fatal(err)
	}
}

// silent starts a process that holds the VM's lock and answers nobody: who connects hangs, or is refused at once.
func (b *bed) silent(id microvm.ID, hang bool) {
	b.Helper()
	d := b.dirs(id)
	for _, dir := range []string{d.State, d.Runtime} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			b.Fatal(err)
		}
	}
	l := monitorlink.Launch{ID: id}
	l.Machine.Dir = d.Runtime
	if err := monitorlink.Start("env", []string{silentVariable + "=1", os.Args[0], "monitor"}, d, l); err != nil {
		b.Fatal(err)
	}
	if !hang {
		if err := os.Remove(d.Socket()); err != nil {
			b.Fatal(err)
		}
	}
}

// guestScript makes a guest that is a shell script.
func (b *bed) guestScript(script string) string {
	b.Helper()
	path := b.path("guest" + strconv.Itoa(len(script)))
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o700); err != nil { // it is to be run
		b.Fatal(err)
	}
	return path
}

// calls counts calls and makes one of them fail.
type calls struct {
	n, failAt atomic.Int32
	failed    atomic.Pointer[string]
}

var errInjected = errors.New("injected")

func (c *calls) disarm() { c.failAt.Store(0) }

// arm makes the n-th call from now on fail.
func (c *calls) arm(n int32) {
	c.n.Store(0)
	c.failed.Store(nil)
	c.failAt.Store(n)
}

func (c *calls) next(name string) error {
	if at := c.failAt.Load(); at > 0 && c.n.Add(1) == at {
		c.failed.Store(&name)
		return fmt.Errorf("%s: %w", name, errInjected)
	}
	return nil
}

type testHost struct {
	calls   *calls
	guest   string // program that a fake VM runs
	timeout time.Duration
	version string
	disk    func(context.Context) error // called for each disk, if set
	monitor func()                      // called before a monitor is started, if set
}

func (h *testHost) BlankDisk(ctx context.Context, path string, size int64) error {
	if err := h.calls.next("BlankDisk"); err != nil {
		return err
	}
	if h.disk != nil {
		if err := h.disk(ctx); err != nil {
			return err
		}
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	return os.Truncate(path, size)
}

func (h *testHost) Hypervisor(_ context.Context, wanted string) (machines.Hypervisor, error) {
	if err := h.calls.next("Hypervisor"); err != nil {
		return machines.Hypervisor{}, err
	}
	raw, err := json.Marshal(h.guest)
	return machines.Hypervisor{
		Backend: wanted, Accelerator: "none", Version: h.version, Reason: "it is a test", Host: raw, BootTimeout: h.timeout,
	}, err
}

func (h *testHost) StartMonitor(d monitorlink.Dirs, l monitorlink.Launch) error {
	if err := h.calls.next("StartMonitor"); err != nil {
		return err
	}
	if h.monitor != nil {
		h.monitor()
	}
	return monitorlink.Start(os.Args[0], []string{"monitor"}, d, l)
}

type testSources struct {
	calls *calls
	dir   string
}

func (s *testSources) Image(_ context.Context, name string, report progress.Sink) (machines.Image, error) {
	report.Stage("image")(nil)
	return machines.Image{Digest: "sha256:1", Path: filepath.Join(s.dir, name)}, s.calls.next("Image")
}

func (s *testSources) ImageByDigest(context.Context, string) (machines.Image, error) {
	return machines.Image{Digest: "sha256:1", Path: filepath.Join(s.dir, "image")}, s.calls.next("ImageByDigest")
}

func (s *testSources) Kernel(_ context.Context, name string, _ progress.Sink) (machines.Kernel, error) {
	return machines.Kernel{Path: filepath.Join(s.dir, name), Initramfs: filepath.Join(s.dir, "initramfs")}, s.calls.next("Kernel")
}

// KernelOf knows one image that has a kernel of its own.
func (s *testSources) KernelOf(image string) string {
	if image == "with-kernel" {
		return "own"
	}
	return ""
}

type testStore struct {
	calls *calls
	db    *store.Store
}

func (s testStore) Insert(ctx context.Context, vm *microvm.VM) error {
	if err := s.calls.next("Insert"); err != nil {
		return err
	}
	return s.db.Insert(ctx, vm)
}

func (s testStore) Get(ctx context.Context, id microvm.ID) (microvm.VM, error) {
	if err := s.calls.next("Get"); err != nil {
		return microvm.VM{}, err
	}
	return s.db.Get(ctx, id)
}

func (s testStore) List(ctx context.Context) ([]microvm.VM, error) {
	if err := s.calls.next("List"); err != nil {
		return nil, err
	}
	return s.db.List(ctx)
}

func (s testStore) SetState(ctx context.Context, id microvm.ID, c store.Change) error {
	if err := s.calls.next("SetState " + string(c.To)); err != nil {
		return err
	}
	return s.db.SetState(ctx, id, c)
}

func (s testStore) UpdateSpec(ctx context.Context, id microvm.ID, spec microvm.Spec, detail string) error {
	if err := s.calls.next("UpdateSpec"); err != nil {
		return err
	}
	return s.db.UpdateSpec(ctx, id, spec, detail)
}

func (s testStore) SetImage(ctx context.Context, id microvm.ID, digest string, spec microvm.Spec) error {
	if err := s.calls.next("SetImage"); err != nil {
		return err
	}
	return s.db.SetImage(ctx, id, digest, spec)
}

func (s testStore) Remove(ctx context.Context, id microvm.ID) error {
	if err := s.calls.next("Remove"); err != nil {
		return err
	}
	return s.db.Remove(ctx, id)
}
