package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/machines"
	"banger/internal/rpcapi"
)

// mendHint is what a person can do about what the daemon can mend by itself.
const mendHint = "banger doctor --fix"

// leftovers looks for what crashes have left, and sees to it if fix is set.
func (s *self) leftovers(ctx context.Context, fix bool) ([]*bangerv1.Leftover, rpcapi.Check) {
	look := s.machines.Inspect
	if fix {
		look = s.machines.Mend
	}
	findings, errVMs := look(ctx)
	var all []*bangerv1.Leftover
	for _, f := range findings {
		all = append(all, leftoverOf(f))
	}
	images, errImages := s.files(ctx, "image", s.images, fix)
	kernels, errKernels := s.files(ctx, "kernel", s.kernels, fix)
	all = append(append(all, images...), kernels...)
	return all, checkLeftovers(all, errors.Join(errVMs, errImages, errKernels))
}

// depot is a service that keeps files which can be left over.
type depot interface {
	Leftovers(ctx context.Context) ([]string, error)
	Recover(ctx context.Context) error
}

// files looks for files that nobody needs, and removes them if fix is set.
func (s *self) files(ctx context.Context, kind string, d depot, fix bool) ([]*bangerv1.Leftover, error) {
	paths, err := d.Leftovers(ctx)
	if err != nil {
		return nil, err
	}
	var failed error
	still := map[string]bool{}
	if fix && len(paths) > 0 {
		failed = d.Recover(ctx)
		after, err := d.Leftovers(ctx)
		if err != nil {
			return nil, err
		}
		for _, path := range after {
			still[path] = true
		}
	}
	var all []*bangerv1.Leftover
	for _, path := range paths {
		l := &bangerv1.Leftover{Kind: kind, Path: path, Detail: "nobody needs it", Mended: fix && !still[path]}
		switch {
		case l.Mended:
		case fix && failed != nil:
			l.Error, l.Fix = failed.Error(), fault.HintOf(failed)
		default:
			l.Fix = mendHint
		}
		all = append(all, l)
	}
	return all, nil
}

func leftoverOf(f machines.Finding) *bangerv1.Leftover {
	l := &bangerv1.Leftover{
		Kind: string(f.Kind), Vm: f.VM, Path: f.Path, Pid: int64(f.Pid), Detail: f.Detail, Mended: f.Mended, Fix: f.Remedy,
	}
	switch {
	case f.Err != nil:
		l.Error, l.Fix = f.Err.Error(), fault.HintOf(f.Err)
	case !f.Mended && f.Remedy == "":
		l.Fix = mendHint
	}
	return l
}

// checkLeftovers sums up: what makes a VM unusable, or may write its disks, is a failure; what only takes up room is not.
func checkLeftovers(all []*bangerv1.Leftover, err error) rpcapi.Check {
	c := rpcapi.Check{Name: "leftovers", Result: rpcapi.Pass, Detail: "nothing is left over"}
	mended, mendable := 0, false
	var open []string
	for _, l := range all {
		if l.GetMended() {
			mended++
			continue
		}
		mendable = mendable || l.GetFix() == mendHint
		open = append(open, l.GetKind())
		result := rpcapi.Warn
		switch machines.Kind(l.GetKind()) {
		case machines.KindProcess, machines.KindState, machines.KindDisk:
			result = rpcapi.Fail
		case machines.KindDirectory, machines.KindUnknown:
		}
		if result == rpcapi.Fail || c.Result == rpcapi.Pass {
			c.Result = result
		}
	}
	switch {
	case err != nil:
		c.Result, c.Detail, c.Fix = rpcapi.Fail, err.Error(), fault.HintOf(err)
		return c
	case len(open) > 0:
		c.Detail = fmt.Sprintf("%d found: %s", len(open), strings.Join(unique(open), ", "))
		c.Fix = "see the list"
		if mendable {
			c.Fix = mendHint
		}
	case mended > 0:
		c.Detail = "nothing any more"
	}
	if mended > 0 {
		c.Detail += fmt.Sprintf("; %d seen to", mended)
	}
	return c
}

func unique(words []string) (out []string) {
	seen := map[string]bool{}
	for _, w := range words {
		if !seen[w] {
			seen[w] = true
			out = append(out, w)
		}
	}
	return out
}
