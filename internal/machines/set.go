package machines

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"banger/internal/fault"
	"banger/internal/guestlink"
	"banger/internal/guestproto"
	"banger/internal/microvm"
)

// SetRequest says what to change of a VM. What is nil stays as it is.
type SetRequest struct {
	VCPUs        *int
	Memory       *int64 // bytes
	DiskSize     *int64 // bytes, of each of the two writable disks; only to grow
	Labels       map[string]string
	RemoveLabels []string
	TTL          *time.Duration // 0: none
	IdleTimeout  *time.Duration // 0: none
}

// Effect says when a change takes effect.
type Effect string

// The effects.
const (
	Now       Effect = "now"
	NextStart Effect = "next-start"
	Unchanged Effect = "unchanged"
)

// SetResult says what became of one value.
type SetResult struct {
	Key    string
	Value  string
	Effect Effect
	Detail string // for people: why not now, or what to know; may be empty
}

// growTimeout bounds the growing of the disks of a running VM. It takes some 10 ms; a guest that hangs takes longer.
const growTimeout = 20 * time.Second

// Set changes a VM and says for each value whether it took effect now or will at the next start. All values are checked
// before anything is changed. What is recorded and cannot be done now, for whatever reason, is no error: the next start
// does it.
func (s *Service) Set(ctx context.Context, ref string, req SetRequest) (Info, []SetResult, error) {
	h, err := s.claim(ctx, ref, "set")
	if err != nil {
		return Info{}, nil, err
	}
	defer h.release()
	results, err := h.set(ctx, req)
	if err != nil {
		return Info{}, nil, err
	}
	info, err := h.info(ctx)
	return info, results, err
}

func (h *hold) set(ctx context.Context, req SetRequest) ([]SetResult, error) {
	if err := req.validate(); err != nil {
		return nil, err
	}
	if h.vm.State == microvm.Creating || h.vm.State == microvm.Deleting {
		return nil, fault.New(fault.Precondition, "change VM %s: it is %s", h.vm.Name, h.vm.State)
	}
	old, spec := h.vm.Spec, req.on(h.vm.Spec)
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	if err := h.checkDiskSize(h.vm, old.DiskSize, spec.DiskSize); err != nil {
		return nil, err
	}
	if what := differences(old, spec); what != "" {
		if err := h.store.UpdateSpec(ctx, h.vm.ID, spec, what); err != nil {
			return nil, err
		}
		h.vm.Spec = spec
		h.log.Info("VM changed", "vm", h.vm.ID, "what", what)
	}
	results := startResults(req, old, spec, h.attachment())
	if req.DiskSize != nil {
		results = append(results, h.setDisks(ctx, old.DiskSize))
	}
	return append(results, labelResults(req, old.Labels)...), nil
}

// startResults are the results for what a VM takes at its start only. a is nil if it does not run.
func startResults(req SetRequest, old, spec microvm.Spec, a *attachment) []SetResult {
	running := old
	if a != nil {
		running.VCPUs, running.Memory = a.launch.Machine.VCPUs, a.launch.Machine.Memory
		running.TTL, running.IdleTimeout = a.launch.TTL, a.launch.IdleTimeout
	}
	var results []SetResult
	add := func(given bool, key, value string, wasSo, runsSo bool) {
		if given {
			results = append(results, atStart(key, value, wasSo, a != nil, runsSo))
		}
	}
	add(req.VCPUs != nil, "vcpus", strconv.Itoa(spec.VCPUs), old.VCPUs == spec.VCPUs, running.VCPUs == spec.VCPUs)
	add(req.Memory != nil, "memory", microvm.FormatSize(spec.Memory), old.Memory == spec.Memory, running.Memory == spec.Memory)
	add(req.TTL != nil, "ttl", limit(spec.TTL), old.TTL == spec.TTL, running.TTL == spec.TTL)
	add(req.IdleTimeout != nil, "idle_timeout", limit(spec.IdleTimeout), old.IdleTimeout == spec.IdleTimeout,
		running.IdleTimeout == spec.IdleTimeout)
	return results
}

// atStart is the result for one such value: whether it was so before, and whether a VM runs, and runs with it.
func atStart(key, value string, wasSo, runs, runsSo bool) SetResult {
	r := SetResult{Key: key, Value: value, Effect: NextStart}
	switch {
	case runs && !runsSo:
		r.Detail = "a running VM keeps what it was started with"
	case wasSo:
		r.Effect = Unchanged
	case runs:
		r.Effect, r.Detail = Now, "the VM runs with that already"
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

// validate checks what microvm.Spec does not.
func (r SetRequest) validate() error {
	if r.VCPUs == nil && r.Memory == nil && r.DiskSize == nil && r.TTL == nil && r.IdleTimeout == nil &&
		len(r.Labels) == 0 && len(r.RemoveLabels) == 0 {
		return fault.New(fault.Invalid, "nothing to change").WithHint("name a value: banger vm set --help")
	}
	for key, value := range r.Labels {
		if err := checkLabel(key, value); err != nil {
			return err
		}
		if slices.Contains(r.RemoveLabels, key) {
			return fault.New(fault.Invalid, "label %q is both set and removed", key)
		}
	}
	for _, key := range r.RemoveLabels {
		if err := checkLabel(key, ""); err != nil {
			return err
		}
	}
	return nil
}

// Limits of labels, in bytes.
const (
	maxLabelKey   = 128
	maxLabelValue = 4096
)

func checkLabel(key, value string) error {
	odd := func(r rune) bool { return r == '=' || unicode.IsSpace(r) || !unicode.IsPrint(r) }
	switch {
	case key == "" || len(key) > maxLabelKey || strings.ContainsFunc(key, odd):
		return fault.New(fault.Invalid, "bad label %.80q", key).
			WithHint("use 1 to %d bytes, without spaces and =", maxLabelKey)
	case len(value) > maxLabelValue || !utf8.ValidString(value) || strings.ContainsRune(value, 0):
		return fault.New(fault.Invalid, "bad value of label %q", key).WithHint("use text of at most %d bytes", maxLabelValue)
	}
	return nil
}

// on returns the spec with the request's changes in it.
func (r SetRequest) on(spec microvm.Spec) microvm.Spec {
	if r.VCPUs != nil {
		spec.VCPUs = *r.VCPUs
	}
	if r.Memory != nil {
		spec.Memory = *r.Memory
	}
	if r.DiskSize != nil {
		spec.DiskSize = *r.DiskSize
	}
	if r.TTL != nil {
		spec.TTL = *r.TTL
	}
	if r.IdleTimeout != nil {
		spec.IdleTimeout = *r.IdleTimeout
	}
	labels := maps.Clone(spec.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, r.Labels)
	for _, key := range r.RemoveLabels {
		delete(labels, key)
	}
	spec.Labels = labels
	return spec
}

// differences says in words what a change of the spec changes; empty: nothing.
func differences(old, spec microvm.Spec) string {
	var words []string
	if old.VCPUs != spec.VCPUs {
		words = append(words, fmt.Sprintf("vcpus %d -> %d", old.VCPUs, spec.VCPUs))
	}
	if old.Memory != spec.Memory {
		words = append(words, "memory "+microvm.FormatSize(old.Memory)+" -> "+microvm.FormatSize(spec.Memory))
	}
	if old.DiskSize != spec.DiskSize {
		words = append(words, "disk size "+microvm.FormatSize(old.DiskSize)+" -> "+microvm.FormatSize(spec.DiskSize))
	}
	if old.TTL != spec.TTL {
		words = append(words, "time to live "+limit(old.TTL)+" -> "+limit(spec.TTL))
	}
	if old.IdleTimeout != spec.IdleTimeout {
		words = append(words, "idle timeout "+limit(old.IdleTimeout)+" -> "+limit(spec.IdleTimeout))
	}
	if !maps.Equal(old.Labels, spec.Labels) {
		words = append(words, "labels")
	}
	return strings.Join(words, ", ")
}

func labelResults(req SetRequest, old map[string]string) []SetResult {
	var results []SetResult
	for _, key := range slices.Sorted(maps.Keys(req.Labels)) {
		r := SetResult{Key: "label." + key, Value: req.Labels[key], Effect: Now}
		if was, ok := old[key]; ok && was == r.Value {
			r.Effect = Unchanged
		}
		results = append(results, r)
	}
	removed := slices.Sorted(slices.Values(req.RemoveLabels))
	for _, key := range slices.Compact(removed) {
		r := SetResult{Key: "label." + key, Effect: Now, Detail: "removed"}
		if _, ok := old[key]; !ok {
			r.Effect, r.Detail = Unchanged, "there is no such label"
		}
		results = append(results, r)
	}
	return results
}

// setDisks gives the disks the recorded size. Done twice it does nothing the second time.
func (h *hold) setDisks(ctx context.Context, old int64) SetResult {
	size := h.vm.Spec.DiskSize
	r := SetResult{Key: "disk_size", Value: microvm.FormatSize(size), Effect: Now}
	if size == old {
		r.Effect = Unchanged
	}
	var err error
	a := h.attachment()
	switch {
	case a == nil:
		err = h.fitDisks()
	case h.vm.State != microvm.Running:
		err = fmt.Errorf("the VM is %s", h.vm.State)
	default:
		err = h.growOnline(ctx, a)
	}
	if err != nil {
		h.log.Warn("grow disks", "vm", h.vm.ID, "err", err)
		r.Effect, r.Detail = NextStart, firstLine(err)
		return r
	}
	if old != size {
		if r.Detail, err = h.promised(ctx); err != nil {
			h.log.Warn("look at the disks of all VMs", "vm", h.vm.ID, "err", err)
		}
	}
	return r
}

// growOnline makes the disks of the running VM larger, then the file systems on them.
func (h *hold) growOnline(ctx context.Context, a *attachment) error {
	ctx, cancel := context.WithTimeout(ctx, growTimeout)
	defer cancel()
	guest := guestlink.NewClient(a.client)
	var errs []error
	for _, serial := range []string{guestproto.DiskSystem, guestproto.DiskWork} {
		err := a.client.GrowDisk(ctx, serial, h.vm.Spec.DiskSize)
		if err == nil {
			err = guest.Grow(ctx, serial, h.vm.Spec.DiskSize)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("disk %s: %w", serial, err))
		}
	}
	return errors.Join(errs...)
}
