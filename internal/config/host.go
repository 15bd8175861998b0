package config

import (
	"runtime"

	"golang.org/x/sys/unix"

	"banger/internal/microvm"
)

// host is what defaults depend on.
type host struct {
	cpus        int
	memory      int64 // bytes; 0 if not known
	uid         int
	userRuntime string // the folder of the users' runtime directories, /run/user
	temp        string // a folder that everyone may write, /tmp
}

// Bounds of the defaults that follow the host's size.
const (
	maxDefaultVCPUs  = 4
	minDefaultMemory = 512 << 20 // bytes
	maxDefaultMemory = 8 << 30   // bytes
	memoryStep       = 64 << 20  // bytes; so that the default does not differ from boot to boot by what firmware took
)

func numCPU() int { return runtime.NumCPU() } // those that this process may use

// totalMemory returns the memory of the host in bytes, sysinfo(2), or 0.
func totalMemory() int64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	return int64(info.Totalram) * int64(info.Unit) // the kernel's own figure
}

// defaults returns what VMs of this host get: small enough that several fit.
func (h host) defaults() VMDefaults {
	memory := h.memory / 8
	memory -= memory % memoryStep
	return VMDefaults{
		VCPUs:     Value[int]{max(1, min(maxDefaultVCPUs, h.cpus/4)), Host},
		Memory:    Value[int64]{max(minDefaultMemory, min(maxDefaultMemory, memory)), Host},
		DiskSize:  Value[int64]{DefaultDiskSize, BuiltIn},
		Image:     Value[string]{DefaultImage, BuiltIn},
		Kernel:    Value[string]{DefaultKernel, BuiltIn},
		Init:      Value[microvm.Init]{microvm.InitAuto, BuiltIn},
		Net:       Value[microvm.Net]{microvm.NetUser, BuiltIn},
		Backend:   Value[string]{"auto", BuiltIn},
		CPUWeight: Value[int]{microvm.DefaultWeight, BuiltIn},
		IOWeight:  Value[int]{microvm.DefaultWeight, BuiltIn},
	}
}
