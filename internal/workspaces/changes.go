package workspaces

import (
	"context"
	"errors"
	"io"

	"banger/internal/fault"
	"banger/internal/gitsync"
	"banger/internal/progress"
)

// Branch is what Export made in the host's repository.
type Branch = gitsync.Branch

// Applied is what Apply did to the host's working tree.
type Applied = gitsync.Applied

// Diff writes what has changed in a VM's workspace since it was put there as a patch, or with stat as a summary, and reports
// whether anything has. What is left out is reported as a warning. The guest may change files meanwhile: each is taken as it
// is when it is read.
func (s *Service) Diff(ctx context.Context, vm VM, stat bool, w io.Writer, report progress.Sink) (changed bool, err error) {
	err = s.withChanges(ctx, vm, report, func(ctx context.Context, c *gitsync.Changes) error {
		changed = c.Changed()
		return c.Diff(ctx, w, stat)
	})
	return changed, err
}

// Export makes a branch in the host's repository of what has changed in a VM's workspace, as [gitsync.Changes.Export] says.
func (s *Service) Export(ctx context.Context, vm VM, branch string, force bool, report progress.Sink) (b Branch, err error) {
	err = s.withChanges(ctx, vm, report, func(ctx context.Context, c *gitsync.Changes) error {
		end := report.Stage("write the branch")
		b, err = c.Export(ctx, branch, vm.Name, force)
		end(err)
		return err
	})
	return b, err
}

// Apply merges what has changed in a VM's workspace into the host's working tree, as [gitsync.Changes.Apply] says.
func (s *Service) Apply(ctx context.Context, vm VM, dry bool, report progress.Sink) (a Applied, err error) {
	err = s.withChanges(ctx, vm, report, func(ctx context.Context, c *gitsync.Changes) error {
		end := report.Stage("merge")
		a, err = c.Apply(ctx, vm.Name, dry)
		end(err)
		return err
	})
	return a, err
}

// withChanges reads the workspace of a VM into a quarantine for as long as do runs.
func (s *Service) withChanges(
	ctx context.Context, vm VM, report progress.Sink, do func(context.Context, *gitsync.Changes) error,
) (err error) {
	w, base, err := s.Base(ctx, vm)
	if err != nil {
		return err
	}
	scratch, removeScratch, err := s.makeScratch()
	if err != nil {
		return err
	}
	defer remove(removeScratch, &err)
	const stage = "read the workspace"
	end := report.Stage(stage)
	c, err := collect(ctx, vm, w.GuestDir, scratch, base, func(bytes int64) {
		report.Send(progress.Update{Stage: stage, Current: bytes, Unit: "bytes"})
	})
	end(err)
	if err != nil {
		return err
	}
	defer remove(c.Close, &err)
	for _, n := range c.Notices() {
		report.Send(progress.Update{Stage: stage, Warning: n})
	}
	return do(ctx, c)
}

// collect reads the guest's directory. It returns when nothing of it is under way any more.
func collect(
	ctx context.Context, vm VM, dir, scratch string, base gitsync.Base, count func(int64),
) (*gitsync.Changes, error) {
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		err := vm.Guest.Get(ctx, dir, &counter{w: w, tell: count})
		if fault.Is(err, fault.NotFound) {
			err = fault.New(fault.NotFound, "the directory %s is not in VM %s any more", dir, vm.Name).
				WithHint("put it there again: banger vm workspace prepare %s PATH", vm.Name)
		}
		_ = w.CloseWithError(err) // nil: the end
	}()
	defer func() { <-sent }()
	defer cancel() // what follows the archive's end mark is nobody's business
	defer func() { _ = r.CloseWithError(errors.New("the archive is not wanted any more")) }()
	return gitsync.Collect(ctx, scratch, base, r, gitsync.Limits{})
}

// counter tells how many bytes have passed, each 4 MiB.
type counter struct {
	w          io.Writer
	tell       func(int64)
	done, last int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	if c.done += int64(n); c.done-c.last >= 4<<20 {
		c.last = c.done
		c.tell(c.done)
	}
	return n, err
}
