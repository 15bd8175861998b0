//go:build vm

package qemu_test

import (
	"bufio"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/hypervisor"
	"banger/internal/hypervisor/hypervisortest"
	"banger/internal/hypervisor/qemu"
	"banger/internal/initramfs"
)

// Where the tests find a kernel: a bzImage or vmlinux, and its lib/modules/<release> with depmod's files.
const (
	envKernel  = "BANGER_TEST_KERNEL"
	envModules = "BANGER_TEST_MODULES"
)

func suite(t *testing.T) hypervisortest.Suite {
	t.Helper()
	kernel, modules := os.Getenv(envKernel), os.Getenv(envModules)
	if kernel == "" || modules == "" {
		t.Skipf("no kernel to boot: set %s and %s", envKernel, envModules)
	}
	host, err := qemu.Detect(t.Context(), qemu.Config{})
	if err != nil {
		t.Skip(err)
	}
	t.Logf("host: %+v", host)
	archive := buildInitramfs(t, modules)
	return hypervisortest.Suite{
		Backend: func(*testing.T) hypervisor.Backend { return qemu.New(host) },
		Machine: func(t *testing.T) hypervisor.Machine {
			return hypervisor.Machine{
				ID: "0123456789ab", Name: "te,st", VCPUs: 1, Memory: 256 << 20, Kernel: kernel, Initramfs: archive, Dir: t.TempDir(),
			}
		},
		Answer: time.Minute,
		Boots:  20,
	}
}

func buildInitramfs(t *testing.T, modules string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "initramfs.cpio")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // closed below where it matters
	err = initramfs.Build(t.Context(), f, initramfs.Spec{
		AgentPath: hypervisortest.BuildGuest(t), ModulesDir: modules,
		Modules: []string{"virtio_mmio", "virtio_console", "virtio_blk", "virtio_net", "virtio_balloon"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConformance(t *testing.T) {
	hypervisortest.Run(t, suite(t))
}

// On a host that stalls again and again a guest comes up, or is given up at once; it never hangs. About one in three is
// given up.
func TestStallingHost(t *testing.T) {
	s := suite(t)
	outcomes := map[string]int{}
	for range 6 {
		m := s.Machine(t)
		vmm, err := s.Backend(t).Boot(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		go func() { // the console must be read
			_, _ = io.Copy(io.Discard, struct{ io.Reader }{vmm.Console()})
		}()
		go stall(vmm)
		answer := make(chan string, 1)
		go func() {
			_, _ = vmm.Link().Write([]byte("echo up\n"))
			line, _ := bufio.NewReader(vmm.Link()).ReadString('\n')
			if line != "" {
				answer <- line
			}
		}()
		select {
		case line := <-answer:
			outcomes["answers"]++
			if line != "up\n" {
				t.Errorf("the guest answers %q", line)
			}
		case <-vmm.Done():
			outcomes["is given up"]++
			if e := vmm.Exit(); e.Cause != hypervisor.Crashed || !strings.Contains(e.Detail, "no timer") {
				t.Errorf("Exit() = %+v, want cause %s and that there is no timer", e, hypervisor.Crashed)
			}
		case <-time.After(s.Answer):
			t.Error("the guest hangs")
		}
		vmm.Kill()
		_, _ = vmm.Link().Close(), vmm.Console().Close()
	}
	t.Log(outcomes)
}

// stall lets QEMU run for 25 ms of every 155, for up to 10 s.
func stall(vmm hypervisor.VMM) {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		for _, step := range []struct {
			sig  syscall.Signal
			last time.Duration
		}{{syscall.SIGSTOP, 130 * time.Millisecond}, {syscall.SIGCONT, 25 * time.Millisecond}} {
			select {
			case <-vmm.Done():
				return
			default:
				_ = syscall.Kill(vmm.Pid(), step.sig)
				time.Sleep(step.last)
			}
		}
	}
}
