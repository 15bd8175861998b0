package machines

import (
	"banger/internal/cgroup"
	"banger/internal/fault"
	"banger/internal/microvm"
)

// What a VM's processes, the monitor and the VMM, may use besides the guest's memory and CPUs. A healthy VM stays far
// below both: they bound one that a guest has taken over.
const (
	memoryAllowance = 768 << 20 // bytes: the VMM's own, translated code under software emulation, network, disk cache
	taskAllowance   = 1024      // processes and threads; the VMM makes up to 64 for its disks
)

// limitsOf returns what the cgroup of a VM is held to.
func limitsOf(spec microvm.Spec) cgroup.Limits {
	w := spec.Weights.OrDefault()
	return cgroup.Limits{CPUWeight: w.CPU, IOWeight: w.IO, Memory: spec.Memory + memoryAllowance, Pids: taskAllowance + spec.VCPUs}
}

// checkWeights refuses weights that somebody asks for and that this host would not enforce. Those of the configuration
// hold where they can: it is one file for many hosts.
func (c Config) checkWeights(w microvm.Weights) error {
	for _, asked := range []struct {
		weight     int
		controller cgroup.Controller
		flag       string
	}{{w.CPU, cgroup.CPU, "--cpu-weight"}, {w.IO, cgroup.IO, "--io-weight"}} {
		if _, ok := c.Cgroups[asked.controller]; asked.weight != 0 && !ok {
			return fault.New(fault.Unsupported, "this host would not enforce %s %d: %s", asked.flag, asked.weight,
				c.NoCgroups[asked.controller]).WithHint("leave it out; see: banger doctor")
		}
	}
	return nil
}
