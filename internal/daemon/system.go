package daemon

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/config"
	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/hostexec"
	"banger/internal/images"
	"banger/internal/kernels"
	"banger/internal/machines"
	"banger/internal/microvm"
	"banger/internal/rpcapi"
	"banger/internal/version"
)

// self is what the daemon says of itself.
type self struct {
	options  Options
	machines *machines.Service
	images   *images.Store
	kernels  *kernels.Store
	host     *host
	started  time.Time
	stop     context.CancelFunc
}

// Status implements rpcapi.System.
func (s *self) Status(ctx context.Context) (rpcapi.Status, error) {
	vms, err := s.machines.List(ctx)
	if err != nil {
		return rpcapi.Status{}, err
	}
	paths := s.options.Config.Paths
	st := rpcapi.Status{
		Version: version.String(), Pid: os.Getpid(), StartedAt: s.started, ResidentMemory: residentMemory(),
		VMs: len(vms), Socket: paths.Socket(), StateDirectory: paths.State, ConfigFile: s.options.Config.File,
	}
	for _, vm := range vms {
		if vm.State == microvm.Running {
			st.Running++
		}
	}
	return st, nil
}

// Shutdown implements rpcapi.System. The answer to the client goes out while the server drains.
func (s *self) Shutdown() { s.stop() }

// Doctor implements rpcapi.System.
func (s *self) Doctor(ctx context.Context, fix bool) rpcapi.Report {
	c := s.options.Config
	report := rpcapi.Report{Sources: sourcesOf(c.VM)}
	d := c.VM.Spec()
	report.Defaults = &bangerv1.Spec{
		Image: d.Image, Kernel: d.Kernel, Vcpus: int32(d.VCPUs), Memory: d.Memory, DiskSize: d.DiskSize, // <= 32
		Init: string(d.Init), Net: string(d.Net), Backend: d.Backend,
	}
	add := func(checks ...rpcapi.Check) { report.Checks = append(report.Checks, checks...) }
	add(s.checkBackends(ctx, d.Backend)...)
	add(checkProgram("disks", "mkfs.ext4", "e2fsprogs", rpcapi.Fail, "makes the disks of VMs"))
	add(checkProgram("image build", "mmdebstrap", "mmdebstrap", s.buildSeverity(d.Image), "builds the default image"))
	add(checkProgram("kernel build", "apt-get", "apt", rpcapi.Warn, "downloads the default kernel"))
	add(checkFile("guest agent", s.options.Guest))
	add(checkSpace("disk space", c.Paths.State), checkMemory(d.Memory))
	add(checkLimits())
	add(checkConfig(c))
	var left rpcapi.Check
	report.Leftovers, left = s.leftovers(ctx, fix)
	add(left)
	return report
}

func sourcesOf(d config.VMDefaults) map[string]string {
	return map[string]string{
		"vcpu": string(d.VCPUs.From), "memory": string(d.Memory.From), "disk_size": string(d.DiskSize.From),
		"image": string(d.Image.From), "kernel": string(d.Kernel.From), "init": string(d.Init.From),
		"net": string(d.Net.From), "backend": string(d.Backend.From),
	}
}

// checkBackends says of each backend whether it works. Only the chosen one must.
func (s *self) checkBackends(ctx context.Context, wanted string) []rpcapi.Check {
	var checks []rpcapi.Check
	chosen, err := s.host.Hypervisor(ctx, wanted)
	if err != nil {
		checks = append(checks, rpcapi.Check{Name: "hypervisor", Result: rpcapi.Fail, Detail: err.Error(), Fix: fault.HintOf(err)})
	} else {
		checks = append(checks, rpcapi.Check{
			Name: "hypervisor", Result: rpcapi.Pass,
			Detail: fmt.Sprintf("%s with %s is used: %s", chosen.Backend, chosen.Accelerator, chosen.Reason),
		})
	}
	for _, c := range s.host.backends {
		b, err := s.host.detect(ctx, c)
		check := rpcapi.Check{Name: "backend " + c.Name, Result: rpcapi.Pass}
		switch {
		case err != nil:
			check.Result, check.Detail, check.Fix = rpcapi.Warn, err.Error(), fault.HintOf(err)
		case b.Accelerator != "kvm":
			check.Result = rpcapi.Warn
			check.Detail = fmt.Sprintf("%s %s, without hardware virtualization: VMs work, and run several times slower", b.Program, b.Version)
			check.Fix = "to be fast: a host whose CPU and kernel offer KVM, with /dev/kvm open to this user"
		default:
			check.Detail = b.Program + " " + b.Version
		}
		checks = append(checks, check)
	}
	return checks
}

// buildSeverity is how bad it is that images cannot be built: not at all bad once the default image is there.
func (s *self) buildSeverity(image string) string {
	if _, err := s.images.Get(image); err == nil {
		return rpcapi.Warn
	}
	return rpcapi.Fail
}

func checkProgram(name, program, debianPackage, severity, purpose string) rpcapi.Check {
	path, err := hostexec.Look(program, debianPackage)
	if err != nil {
		return rpcapi.Check{Name: name, Result: severity, Detail: err.Error() + "; it " + purpose, Fix: fault.HintOf(err)}
	}
	return rpcapi.Check{Name: name, Result: rpcapi.Pass, Detail: path}
}

func checkFile(name, path string) rpcapi.Check {
	if _, err := os.Stat(path); err != nil {
		return rpcapi.Check{Name: name, Result: rpcapi.Fail, Detail: err.Error(), Fix: "install banger again: make install"}
	}
	return rpcapi.Check{Name: name, Result: rpcapi.Pass, Detail: path}
}

// comfortable is how much free space a host should have, in bytes: for an image build and some VMs.
const comfortable = 4 << 30

func checkSpace(name, dir string) rpcapi.Check {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return rpcapi.Check{Name: name, Result: rpcapi.Fail, Detail: fmt.Sprintf("look at %s: %v", dir, err)}
	}
	free := int64(st.Bavail) * st.Bsize // block counts fit
	c := rpcapi.Check{Name: name, Result: rpcapi.Pass, Detail: fmt.Sprintf("%.1f GiB free in %s", float64(free)/(1<<30), dir)}
	if free < comfortable {
		c.Result, c.Fix = rpcapi.Warn, "free some disk space, or move XDG_STATE_HOME to a larger disk"
	}
	return c
}

func checkMemory(want int64) rpcapi.Check {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return rpcapi.Check{Name: "memory", Result: rpcapi.Warn, Detail: err.Error()}
	}
	total := int64(si.Totalram) * int64(si.Unit) // sizes fit
	c := rpcapi.Check{
		Name: "memory", Result: rpcapi.Pass,
		Detail: fmt.Sprintf("%s for a VM by default, of %.1f GiB", microvm.FormatSize(want), float64(total)/(1<<30)),
	}
	if want > total/2 {
		c.Result, c.Fix = rpcapi.Warn, "set a smaller memory in [vm_defaults] of the config file"
	}
	return c
}

func checkConfig(c config.Config) rpcapi.Check {
	check := rpcapi.Check{Name: "config", Result: rpcapi.Pass, Detail: c.File}
	if !c.FileRead {
		check.Detail += " (does not exist; every value has a default)"
	}
	return check
}
