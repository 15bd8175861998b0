//go:build fakevmm

package rpcapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/machines"
	"banger/internal/microvm"
	"banger/internal/monitor"
	"banger/internal/monitorlink"
	"banger/internal/operations"
	"banger/internal/progress"
	"banger/internal/rpcapi"
	"banger/internal/rpcclient"
	"banger/internal/store"
)

// These tests talk to the API over a real socket. Behind it everything is real but the VMs, whose guests are processes of
// the host and whose monitors are this test binary, started again.

var (
	root     string // of all files of this run, with a short path: sockets lie in it
	guestExe string
	bedCount atomic.Int32
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "monitor" {
		if err := monitor.Main(context.Background(), os.Args[2]); err != nil {
			_, _ = fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	var err error
	if root, err = os.MkdirTemp("", "br"); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(root) //nolint:errcheck // looked at before
	_ = os.Setenv("GORACE", "log_path="+filepath.Join(root, "race"))
	guestExe = filepath.Join(root, "guest")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", guestExe, "banger/cmd/banger-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		_, _ = fmt.Fprintf(os.Stderr, "build the guest agent: %v\n%s", err, out)
		return 1
	}
	code := m.Run()
	for _, problem := range append(leftFiles(), leftProcesses()...) {
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

func leftProcesses() (problems []string) {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if problems = leftBy(root); len(problems) == 0 || time.Now().After(deadline) {
			return problems
		}
	}
}

// leftBy returns the processes with a word in their command lines.
func leftBy(word string) (found []string) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		if text, err := os.ReadFile(path); err == nil && bytes.Contains(text, []byte(word)) {
			found = append(found, path+": "+string(bytes.ReplaceAll(text, []byte{0}, []byte{' '})))
		}
	}
	return found
}

// bed is a daemon's API with a client of it.
type bed struct {
	*testing.T

	dir  string
	db   *store.Store
	host *testHost
	api  *rpcclient.Client
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{T: t, dir: filepath.Join(root, strconv.Itoa(int(bedCount.Add(1))))}
	for _, dir := range []string{b.dir, b.path("vms"), b.path("run")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"image", "kernel", "initramfs"} {
		if err := os.WriteFile(b.path(name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if b.db, err = store.Open(t.Context(), b.path("db")); err != nil {
		t.Fatal(err)
	}
	b.host = &testHost{guest: guestExe}
	svc := machines.New(machines.Config{
		VMs: b.path("vms"), Runtime: b.path("run"),
		Defaults: microvm.Spec{
			Image: "image", Kernel: "kernel", VCPUs: 1, Memory: microvm.MinMemory, DiskSize: microvm.MinDiskSize,
			Init: microvm.InitAgent, Net: microvm.NetNone, Backend: "fake",
		},
	}, b.db, testSources{b.dir}, b.host, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	ops := operations.New(slog.New(slog.DiscardHandler))
	go func() {
		defer close(ended)
		var both sync.WaitGroup
		both.Go(func() { svc.Run(ctx) })
		both.Go(func() { ops.Run(ctx, 10*time.Second) })
		both.Wait()
	}()

	ln, err := net.Listen("unix", b.path("sock"))
	if err != nil {
		t.Fatal(err)
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: rpcapi.Handler(rpcapi.Services{Machines: svc, Operations: ops, Journal: b.db.Journal(), System: stub{}}), Protocols: &protocols, HTTP2: rpcapi.HTTP2()}
	go server.Serve(ln) //nolint:errcheck // ends with the test
	if b.api, err = rpcclient.Connect(t.Context(), rpcclient.Options{Socket: b.path("sock")}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.api.Close()
		b.clean(svc)
		_ = server.Close()
		cancel()
		<-ended
		if err := b.db.Close(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(b.dir); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bed) path(elem ...string) string { return filepath.Join(append([]string{b.dir}, elem...)...) }

// clean deletes all VMs and checks that nothing is left of them.
func (b *bed) clean(svc *machines.Service) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	vms, err := b.db.List(ctx)
	if err != nil {
		b.Error(err)
	}
	for _, vm := range vms {
		// One whose deletion is under way has lost its name before it is gone.
		if err := svc.Delete(ctx, string(vm.ID), true); err != nil && !fault.Is(err, fault.NotFound) {
			b.Errorf("delete %s: %v", vm.Name, err)
		}
	}
	for _, dir := range []string{b.path("vms"), b.path("run")} {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			b.Errorf("in %s there is %v, %v", dir, entries, err)
		}
	}
}

// guestScript makes the guests of this bed a shell script.
func (b *bed) guestScript(script string) {
	b.Helper()
	b.host.guest = b.path("guest.sh")
	if err := os.WriteFile(b.host.guest, []byte("#!/bin/sh\n"+script), 0o700); err != nil { // it is to be run
		b.Fatal(err)
	}
}

type testHost struct{ guest string }

func (*testHost) BlankDisk(_ context.Context, path string, size int64) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	return os.Truncate(path, size)
}

func (h *testHost) Hypervisor(_ context.Context, wanted string) (machines.Hypervisor, error) {
	raw, err := json.Marshal(h.guest)
	return machines.Hypervisor{
		Backend: wanted, Accelerator: "none", Reason: "it is a test", Host: raw, BootTimeout: 30 * time.Second,
	}, err
}

func (*testHost) StartMonitor(d monitorlink.Dirs, l monitorlink.Launch) error {
	return monitorlink.Start(os.Args[0], []string{"monitor"}, d, l)
}

type testSources struct{ dir string }

func (s testSources) Image(_ context.Context, _ string, report progress.Sink) (machines.Image, error) {
	report.Send(progress.Update{Stage: "image", Current: 1, Total: 2, Unit: "bytes"})
	return s.ImageByDigest(context.Background(), "")
}

func (s testSources) ImageByDigest(context.Context, string) (machines.Image, error) {
	return machines.Image{Digest: "sha256:1", Path: filepath.Join(s.dir, "image")}, nil
}

func (s testSources) KernelOf(string) string { return "" }

func (s testSources) Kernel(context.Context, string, progress.Sink) (machines.Kernel, error) {
	return machines.Kernel{Path: filepath.Join(s.dir, "kernel"), Initramfs: filepath.Join(s.dir, "initramfs")}, nil
}

type stub struct{}

func (stub) Status(context.Context) (rpcapi.Status, error) {
	return rpcapi.Status{Version: "test"}, nil
}
func (stub) Doctor(context.Context, bool) rpcapi.Report { return rpcapi.Report{} }
func (stub) Shutdown()                                  {}
