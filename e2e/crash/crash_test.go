//go:build vm

// Package crash kills banger wherever it can be killed, and looks at what is left. Everything is real but the VM: the
// daemon, the monitors and the guest agents are processes, and the fake backend runs each agent on the host. So the
// commands that these tests run in VMs run on the host, too.
//
// BANGER_CRASH_SEED repeats a run of the crash fuzzer, BANGER_CRASH_SECONDS says how long it lasts; BANGER_SOAK=1 asks
// for all that takes long.
package crash

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/internal/rpcclient"
)

// bin is the directory with the binaries under test.
var bin string // made once by TestMain

// soak reports whether there is time.
func soak() bool { return os.Getenv("BANGER_SOAK") != "" }

func TestMain(m *testing.M) {
	code, err := testMain(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "crash:", err)
		code = 1
	}
	os.Exit(code)
}

func testMain(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "bcr")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // temporary
	bin = dir
	for _, b := range []struct {
		pkg  string
		cgo  string
		args []string
	}{
		{"banger/cmd/banger", "1", []string{"-race", "-tags", "fakevmm"}},
		{"banger/cmd/banger-guest", "0", []string{"-trimpath", "-ldflags=-s -w"}},
	} {
		cmd := exec.Command("go", append(append([]string{"build", "-buildvcs=false", "-o", dir + "/"}, b.args...), b.pkg)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+b.cgo)
		if out, err := cmd.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("go build %s: %w\n%s", b.pkg, err, out)
		}
	}
	return m.Run(), nil
}

// bed is a home of banger's with a daemon that can be killed.
type bed struct {
	*testing.T

	home, run string
	points    string   // where the daemon's crash points are armed
	env       []string // more of the daemon's environment

	mu     sync.Mutex
	daemon *exec.Cmd
	dead   chan struct{} // closed when the daemon has ended
	logs   int
}

// newBed makes a home with an image and a kernel that only a fake VM can boot. At the end nothing may be left in it.
func newBed(t *testing.T) *bed {
	t.Helper()
	run, err := os.MkdirTemp("", "bcr") //nolint:usetesting // short: socket paths are limited
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{T: t, home: t.TempDir(), run: run}
	b.points = filepath.Join(b.home, "points")
	for _, dir := range []string{"points", "tmp", "state/banger"} {
		b.must(os.MkdirAll(filepath.Join(b.home, dir), 0o700))
	}
	b.sow()
	t.Cleanup(b.takeDown)
	return b
}

func (b *bed) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bed) state(elem ...string) string {
	return filepath.Join(append([]string{b.home, "state", "banger"}, elem...)...)
}

func (b *bed) runtime(elem ...string) string {
	return filepath.Join(append([]string{b.run, "banger"}, elem...)...)
}

// write writes a file of the home, as text or as JSON.
func (b *bed) write(path string, content any) {
	b.Helper()
	text, ok := content.(string)
	if !ok {
		raw, err := json.Marshal(content)
		b.must(err)
		text = string(raw)
	}
	b.must(os.MkdirAll(filepath.Dir(path), 0o700))
	b.must(os.WriteFile(path, []byte(text), 0o600))
}

// sow puts a dummy image and a dummy kernel into the stores.
func (b *bed) sow() {
	b.Helper()
	sum := strings.Repeat("c", 64)
	b.write(b.state("images", "blobs", "sha256", sum+".ext4"), "an image")
	b.write(b.state("images", "blobs", "sha256", sum+".json"), map[string]any{"size": len("an image")})
	b.write(b.state("images", "names", "dummy.json"), map[string]any{"digest": "sha256:" + sum})
	kernel := b.state("kernels", "dummy")
	b.write(filepath.Join(kernel, "manifest.json"), map[string]any{
		"format": 1, "name": "dummy", "release": "1", "digest": "sha256:" + sum, "files": map[string]string{"vmlinuz": "sha256:" + sum, "modules.ext4": "sha256:" + sum},
	})
	b.write(filepath.Join(b.home, "config", "banger", "config.toml"), "[templates]\nenabled = false\n")
	b.write(filepath.Join(kernel, "vmlinuz"), "a kernel")
	b.write(filepath.Join(kernel, "modules.ext4"), "modules")
	b.write(filepath.Join(kernel, "boot", "1", "modules.dep"), "")
	var builtin strings.Builder
	for _, m := range []string{
		"virtio_mmio", "virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "overlay", "ext4", "vsock",
		"vmw_vsock_virtio_transport",
	} {
		builtin.WriteString("kernel/" + m + ".ko\n")
	}
	b.write(filepath.Join(kernel, "boot", "1", "modules.builtin"), builtin.String())
}

func (b *bed) environ() []string {
	return append(append(os.Environ(),
		"HOME="+filepath.Join(b.home, "home"),
		"TMPDIR="+filepath.Join(b.home, "tmp"),
		"XDG_STATE_HOME="+filepath.Join(b.home, "state"),
		"XDG_CACHE_HOME="+filepath.Join(b.home, "cache"),
		"XDG_CONFIG_HOME="+filepath.Join(b.home, "config"),
		"XDG_RUNTIME_DIR="+b.run,
		"BANGER_CONFIG=",
		"BANGER_FAKE_GUEST="+filepath.Join(bin, "banger-guest"),
		"BANGER_CRASH_DIR="+b.points,
		"GORACE=halt_on_error=0 log_path="+filepath.Join(b.home, "race"),
		"GOTRACEBACK=all",
	), b.env...)
}

// serve starts a daemon and returns when it is ready.
func (b *bed) serve() {
	b.Helper()
	if err := b.tryServe(); err != nil {
		b.Fatal(err)
	}
}

func (b *bed) tryServe() error {
	ready, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close() //nolint:errcheck // only read
	b.mu.Lock()
	b.logs++
	log, err := os.Create(filepath.Join(b.home, fmt.Sprintf("daemon%d.log", b.logs)))
	b.mu.Unlock()
	if err != nil {
		return err
	}
	defer log.Close() //nolint:errcheck // the daemon has its own
	cmd := exec.Command(filepath.Join(bin, "banger"), "daemon", "run")
	cmd.Env = append(b.environ(), "BANGER_READY_FD=3")
	cmd.Dir, cmd.Stderr, cmd.ExtraFiles = b.home, log, []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return err
	}
	dead := make(chan struct{})
	go func() {
		defer close(dead)
		_ = cmd.Wait()
	}()
	b.mu.Lock()
	b.daemon, b.dead = cmd, dead
	b.mu.Unlock()
	_ = ready.SetReadDeadline(time.Now().Add(time.Minute))
	line, err := bufio.NewReader(ready).ReadString('\n')
	if strings.TrimSpace(line) == "ready" {
		return nil
	}
	return fmt.Errorf("the daemon said %q (%w)\n%s", line, err, b.lastLog())
}

// pid is the daemon's.
func (b *bed) pid() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.daemon.Process.Pid
}

// gone returns a channel that is closed when the daemon has ended.
func (b *bed) gone() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dead
}

// kill sends the daemon a signal that ends it, and waits for its end.
func (b *bed) kill(sig syscall.Signal) {
	b.Helper()
	_ = syscall.Kill(b.pid(), sig)
	b.awaitEnd()
}

func (b *bed) awaitEnd() {
	b.Helper()
	select {
	case <-b.gone():
	case <-time.After(30 * time.Second):
		b.Fatalf("the daemon does not end\n%s", b.lastLog())
	}
}

// lastLog returns the end of what the newest daemon has said.
func (b *bed) lastLog() string {
	b.mu.Lock()
	n := b.logs
	b.mu.Unlock()
	text, _ := os.ReadFile(filepath.Join(b.home, fmt.Sprintf("daemon%d.log", n)))
	return string(text[max(0, len(text)-8<<10):])
}

func (b *bed) connect(ctx context.Context) (*rpcclient.Client, error) {
	return rpcclient.Connect(ctx, rpcclient.Options{Socket: b.runtime("banger.sock")})
}

// takeDown ends everything, and fails the test if a data race was found.
func (b *bed) takeDown() {
	if b.daemon != nil {
		_ = syscall.Kill(b.pid(), syscall.SIGKILL)
		<-b.gone()
	}
	for pid := range b.processes() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	races, _ := filepath.Glob(filepath.Join(b.home, "race.*"))
	for _, path := range races {
		text, _ := os.ReadFile(path)
		if bytes.Contains(text, []byte("DATA RACE")) {
			b.Errorf("a data race:\n%s", text)
		}
	}
	_ = os.RemoveAll(b.run)
}
