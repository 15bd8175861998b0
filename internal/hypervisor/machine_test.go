package hypervisor_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"banger/internal/fault"
	"banger/internal/hypervisor"
)

func machine(t *testing.T) hypervisor.Machine {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	return hypervisor.Machine{
		ID: "0123456789ab", VCPUs: 1, Memory: 256 << 20, Kernel: file, Initramfs: file, Dir: dir,
		Disks: []hypervisor.Disk{{Serial: "work", Path: file}},
		NIC:   &hypervisor.NIC{MAC: "02:00:00:00:00:01", Conn: os.Stdin},
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	good := machine(t)
	if err := good.Validate(); err != nil {
		t.Fatalf("a good machine: %v", err)
	}
	for name, spoil := range map[string]func(*hypervisor.Machine){
		"no vCPU":         func(m *hypervisor.Machine) { m.VCPUs = 0 },
		"negative memory": func(m *hypervisor.Machine) { m.Memory = -1 << 20 },
		"odd memory":      func(m *hypervisor.Machine) { m.Memory++ },
		"no kernel":       func(m *hypervisor.Machine) { m.Kernel = "" },
		"no initramfs":    func(m *hypervisor.Machine) { m.Initramfs = "" },
		"long cmdline":    func(m *hypervisor.Machine) { m.Cmdline = strings.Repeat("x", hypervisor.MaxCmdline+1) },
		"newline":         func(m *hypervisor.Machine) { m.Cmdline = "a\nb" },
		"relative dir":    func(m *hypervisor.Machine) { m.Dir = "dir" },
		"empty serial":    func(m *hypervisor.Machine) { m.Disks[0].Serial = "" },
		"long serial":     func(m *hypervisor.Machine) { m.Disks[0].Serial = strings.Repeat("a", 21) },
		"upper serial":    func(m *hypervisor.Machine) { m.Disks[0].Serial = "Work" },
		"serial twice":    func(m *hypervisor.Machine) { m.Disks = append(m.Disks, m.Disks[0]) },
		"no MAC":          func(m *hypervisor.Machine) { m.NIC.MAC = "" },
		"long MAC":        func(m *hypervisor.Machine) { m.NIC.MAC = "02:00:00:00:00:00:00:01" },
		"no socket":       func(m *hypervisor.Machine) { m.NIC.Conn = nil },
	} {
		m := machine(t)
		spoil(&m)
		if err := m.Validate(); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: Validate() = %v, want a fault of kind %s", name, err, fault.Invalid)
		}
	}
}

func TestOpenFiles(t *testing.T) {
	t.Parallel()
	m := machine(t)
	m.Disks = append(m.Disks, hypervisor.Disk{Serial: "base", Path: m.Kernel, ReadOnly: true})
	disks, err := m.OpenFiles()
	if err != nil || len(disks) != 2 {
		t.Fatalf("OpenFiles() = %v, %v", disks, err)
	}
	for i, want := range []bool{true, false} {
		if _, err := disks[i].Write([]byte("y")); (err == nil) != want {
			t.Errorf("disk %d: may be written: %v, want %v", i, err == nil, want)
		}
		if err := disks[i].Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestOpenFilesFails(t *testing.T) {
	t.Parallel()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		spoil func(*hypervisor.Machine)
		want  fault.Kind
		says  string
	}{
		"no kernel":          {func(m *hypervisor.Machine) { m.Kernel += "x" }, fault.NotFound, "kernel"},
		"no initramfs":       {func(m *hypervisor.Machine) { m.Initramfs += "x" }, fault.NotFound, "initramfs"},
		"no directory":       {func(m *hypervisor.Machine) { m.Dir += "x" }, fault.NotFound, "directory"},
		"directory is none":  {func(m *hypervisor.Machine) { m.Dir = m.Kernel }, fault.Invalid, "directory"},
		"no disk":            {func(m *hypervisor.Machine) { m.Disks[0].Path += "x" }, fault.NotFound, "disk work"},
		"disk is a FIFO":     {func(m *hypervisor.Machine) { m.Disks[0].Path = fifo }, fault.Invalid, "disk work"},
		"disk is a terminal": {func(m *hypervisor.Machine) { m.Disks[0].Path = "/dev/null" }, fault.Invalid, "disk work"},
	} {
		m := machine(t)
		c.spoil(&m)
		if disks, err := m.OpenFiles(); !fault.Is(err, c.want) || !strings.Contains(err.Error(), c.says) || disks != nil {
			t.Errorf("%s: OpenFiles() = %v, %v, want kind %s and %q", name, disks, err, c.want, c.says)
		}
	}
}
