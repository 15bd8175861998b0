package machines

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"banger/internal/fault"
	"banger/internal/microvm"
)

// SetRequest says what to change of a VM. What is nil stays as it is.
type SetRequest struct {
	VCPUs        *int
	Memory       *int64 // bytes
	DiskSize     *int64 // bytes, of each of the two writable disks; only to grow
	Labels       map[string]string
	RemoveLabels []string
	TTL          *time.Duration  // 0: none
	IdleTimeout  *time.Duration  // 0: none
	Weights      microvm.Weights // what is 0 stays as it is
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
	if err := h.config.checkWeights(req.Weights); err != nil {
		return nil, err
	}
	old, spec := h.vm.Spec, req.on(h.vm.Spec)
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	if err := h.config.checkDiskSize(h.vm, old.DiskSize, spec.DiskSize); err != nil {
		return nil, err
	}
	if what := differences(old, spec); what != "" {
		if err := h.store.UpdateSpec(ctx, h.vm.ID, spec, what); err != nil {
			return nil, err
		}
		h.vm.Spec = spec
		h.log.Info("VM changed", "vm", h.vm.ID, "what", what)
	}
	ctx, cancel := h.interruptible(ctx) // a guest can be slow to follow
	defer cancel()
	return (&alteration{hold: h, req: req, old: old}).apply(ctx), nil
}

// validate checks what microvm.Spec does not.
func (r SetRequest) validate() error {
	if r.VCPUs == nil && r.Memory == nil && r.DiskSize == nil && r.TTL == nil && r.IdleTimeout == nil && r.Weights == (microvm.Weights{}) &&
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
	if r.Weights.CPU != 0 {
		spec.Weights.CPU = r.Weights.CPU
	}
	if r.Weights.IO != 0 {
		spec.Weights.IO = r.Weights.IO
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
	if was, is := old.Weights.OrDefault(), spec.Weights.OrDefault(); was != is {
		words = append(words, fmt.Sprintf("weights of CPU %d -> %d, of disks %d -> %d", was.CPU, is.CPU, was.IO, is.IO))
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
