//go:build vm

package qemu_test

import (
	"os"
	"path/filepath"
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
		Modules: []string{"virtio_mmio", "virtio_console", "virtio_blk", "virtio_net"},
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
