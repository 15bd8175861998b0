package machines

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"banger/internal/guestlink"
	"banger/internal/guestproto"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
)

// alteration is a recorded change of a held VM that is being made true, as far as that can be done now. Done twice it
// does nothing the second time.
type alteration struct {
	*hold

	req SetRequest
	old microvm.Spec // before the change
}

// apply does what can be done now, and says for each value what became of it.
func (c *alteration) apply(ctx context.Context) []SetResult {
	var results []SetResult
	old, spec := c.old, c.vm.Spec
	if c.req.VCPUs != nil {
		results = append(results, c.vcpus())
	}
	if c.req.Memory != nil {
		results = append(results, c.memory(ctx))
	}
	if c.req.TTL != nil {
		results = append(results, c.live(ctx, "ttl", limit(spec.TTL), old.TTL == spec.TTL,
			monitorlink.SettingsChange{TTL: &spec.TTL}, func(s monitorlink.Settings) bool { return s.TTL == spec.TTL }))
	}
	if c.req.IdleTimeout != nil {
		results = append(results, c.live(ctx, "idle_timeout", limit(spec.IdleTimeout), old.IdleTimeout == spec.IdleTimeout,
			monitorlink.SettingsChange{IdleTimeout: &spec.IdleTimeout},
			func(s monitorlink.Settings) bool { return s.IdleTimeout == spec.IdleTimeout }))
	}
	if was, is := old.Weights.OrDefault(), spec.Weights.OrDefault(); true {
		if c.req.Weights.CPU != 0 {
			results = append(results, c.live(ctx, "cpu_weight", strconv.Itoa(is.CPU), was.CPU == is.CPU,
				monitorlink.SettingsChange{CPUWeight: &is.CPU}, func(s monitorlink.Settings) bool { return s.CPUWeight == is.CPU }))
		}
		if c.req.Weights.IO != 0 {
			results = append(results, c.live(ctx, "io_weight", strconv.Itoa(is.IO), was.IO == is.IO,
				monitorlink.SettingsChange{IOWeight: &is.IO}, func(s monitorlink.Settings) bool { return s.IOWeight == is.IO }))
		}
	}
	if c.req.DiskSize != nil {
		results = append(results, c.disks(ctx))
	}
	return append(results, labelResults(c.req, old.Labels)...)
}

// Bounds of changing a running VM. It takes some milliseconds; a guest that is slow or hangs takes longer.
const (
	growTimeout = 20 * time.Second
	liveTimeout = time.Minute
)

// alreadySo is said of a value that the VM has, though something else was recorded.
const alreadySo = "the VM runs with that already"

// vcpus is the one thing that a VM takes at its start only.
func (c *alteration) vcpus() SetResult {
	n := c.vm.Spec.VCPUs
	r := SetResult{Key: "vcpus", Value: strconv.Itoa(n), Effect: NextStart}
	a, wasSo := c.attachment(), c.old.VCPUs == n
	switch {
	case a != nil && a.launch.Machine.VCPUs != n:
		r.Detail = "a running VM keeps the CPUs that it was started with"
	case wasSo:
		r.Effect = Unchanged
	case a != nil:
		r.Effect, r.Detail = Now, alreadySo
	}
	return r
}

// memory lets the guest give up memory, or gives it back, up to what the VM was started with.
func (c *alteration) memory(ctx context.Context) SetResult {
	size, most := c.vm.Spec.Memory, c.vm.Spec.Memory
	a := c.attachment()
	if a != nil && a.launch.Machine.FixedMemory {
		return c.fixedMemory(a.launch.Machine.Memory)
	}
	if a != nil && a.launch.Machine.Memory > 0 {
		most = a.launch.Machine.Memory
	}
	now := min(size, most)
	r := c.live(ctx, "memory", microvm.FormatSize(size), c.old.Memory == size,
		monitorlink.SettingsChange{Memory: &now}, func(s monitorlink.Settings) bool { return s.Memory == now })
	if now < size {
		r.Effect, r.Detail = NextStart, "a running VM has at most what it was started with, "+microvm.FormatSize(most)
	}
	return r
}

// fixedMemory says what becomes of another size while the VM runs without a balloon.
func (c *alteration) fixedMemory(running int64) SetResult {
	size := c.vm.Spec.Memory
	r := SetResult{Key: "memory", Value: microvm.FormatSize(size), Effect: NextStart}
	switch {
	case size != running:
		r.Detail = "a VM that was restored from a template keeps its memory, " + microvm.FormatSize(running) + ", while it runs"
	case c.old.Memory == size:
		r.Effect = Unchanged
	default:
		r.Effect, r.Detail = Now, alreadySo
	}
	return r
}

// live makes a value true in the running VM. wasSo says whether it was recorded before, runsSo whether the monitor's
// settings have it.
func (c *alteration) live(
	ctx context.Context, key, value string, wasSo bool, change monitorlink.SettingsChange, runsSo func(monitorlink.Settings) bool,
) SetResult {
	r := SetResult{Key: key, Value: value, Effect: NextStart}
	a := c.attachment()
	if a == nil {
		if wasSo {
			r.Effect = Unchanged
		}
		return r
	}
	ctx, cancel := context.WithTimeout(ctx, liveTimeout)
	defer cancel()
	before, err := a.client.Set(ctx, change)
	switch {
	case err != nil:
		c.log.Warn("change running VM", "vm", c.vm.ID, "what", key, "err", err)
		r.Detail = firstLine(err)
	case !runsSo(before):
		r.Effect = Now
	case wasSo:
		r.Effect = Unchanged
	default:
		r.Effect, r.Detail = Now, alreadySo
	}
	return r
}

// limit writes a limit of time.
func limit(d time.Duration) string {
	if d == 0 {
		return "none"
	}
	return d.String()
}

// disks gives the disks the recorded size.
func (c *alteration) disks(ctx context.Context) SetResult {
	size := c.vm.Spec.DiskSize
	r := SetResult{Key: "disk_size", Value: microvm.FormatSize(size), Effect: Now}
	if size == c.old.DiskSize {
		r.Effect = Unchanged
	}
	var err error
	a := c.attachment()
	switch {
	case a == nil:
		err = c.fitDisks()
	case c.vm.State != microvm.Running:
		err = fmt.Errorf("the VM is %s", c.vm.State)
	default:
		err = c.growDisks(ctx, a)
	}
	if err != nil {
		c.log.Warn("grow disks", "vm", c.vm.ID, "err", err)
		r.Effect, r.Detail = NextStart, firstLine(err)
		return r
	}
	if c.old.DiskSize != size {
		if r.Detail, err = c.promised(ctx); err != nil {
			c.log.Warn("look at the disks of all VMs", "vm", c.vm.ID, "err", err)
		}
	}
	return r
}

// growDisks makes the disks of the running VM larger, then the file systems on them.
func (c *alteration) growDisks(ctx context.Context, a *attachment) error {
	ctx, cancel := context.WithTimeout(ctx, growTimeout)
	defer cancel()
	guest := guestlink.NewClient(a.client)
	var errs []error
	for _, serial := range []string{guestproto.DiskSystem, guestproto.DiskWork} {
		err := a.client.GrowDisk(ctx, serial, c.vm.Spec.DiskSize)
		if err == nil {
			err = guest.Grow(ctx, serial, c.vm.Spec.DiskSize)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("disk %s: %w", serial, err))
		}
	}
	return errors.Join(errs...)
}
