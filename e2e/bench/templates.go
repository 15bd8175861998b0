package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/internal/backends"
	"banger/internal/diskcopy"
	"banger/internal/guestlink"
	"banger/internal/guestproto"
	"banger/internal/hypervisor"
	"banger/internal/monitorlink"
)

// restored is how a VM with such flags is restored from a template, which is made if it is not there.
func (b *bed) restored(ctx context.Context, spec ...string) (monitorlink.Launch, error) {
	const vm = "bench-restored"
	if _, err := b.banger(ctx, slices.Concat([]string{"template", "build", "--init", "agent"}, spec)...); err != nil {
		return monitorlink.Launch{}, err
	}
	if _, err := b.banger(ctx, slices.Concat([]string{"vm", "create", "--quiet", "--name", vm, "--init", "agent"}, spec)...); err != nil {
		return monitorlink.Launch{}, err
	}
	defer b.banger(context.WithoutCancel(ctx), "vm", "delete", "--force", vm) //nolint:errcheck // close tells
	id, err := b.id(ctx, vm)
	if err != nil {
		return monitorlink.Launch{}, err
	}
	l, err := monitorlink.Dirs{State: filepath.Join(b.paths.VMs(), id)}.ReadLaunch()
	if err == nil && l.Restore == nil {
		err = errors.New("a VM was booted although there is a template")
	}
	return l, err
}

// bareRestore restores a template with the VMM that banger's monitor would start, and measures until the agent has run its first
// command: what no program around the VMM can do without.
func (b *bed) bareRestore(ctx context.Context, l monitorlink.Launch) (took time.Duration, err error) {
	v := &bareVM{}
	defer v.close()
	if v.dir, err = os.MkdirTemp(b.dir, "bare"); err != nil {
		return 0, err
	}
	m := l.Machine
	m.Dir = v.dir
	m.Disks = slices.Clone(m.Disks)
	for i, d := range m.Disks {
		if !d.ReadOnly {
			m.Disks[i].Path = filepath.Join(v.dir, filepath.Base(d.Path))
			if err := diskcopy.Clone(ctx, m.Disks[i].Path, filepath.Join(filepath.Dir(l.Restore.Snapshot.Memory), filepath.Base(d.Path))); err != nil {
				return 0, err
			}
		}
	}
	if v.wire, err = deadWire(&m); err != nil {
		return 0, err
	}
	backend, err := backends.Make(l.Backend, l.Host)
	if err != nil {
		return 0, err
	}
	restorer, ok := backend.(hypervisor.Restorer)
	if !ok {
		return 0, skipped("the backend restores no VMs")
	}
	began := time.Now()
	if v.vmm, err = restorer.Restore(ctx, m, l.Restore.Snapshot); err != nil {
		return 0, err
	}
	go io.Copy(io.Discard, v.vmm.Console()) //nolint:errcheck // ends with the VMM
	if err := v.vmm.Resume(ctx); err != nil {
		return 0, err
	}
	if v.session, _, err = guestlink.Open(ctx, v.vmm.Link()); err != nil {
		return 0, err
	}
	if err := bareTrue(ctx, v.session); err != nil {
		return 0, err
	}
	return time.Since(began), nil
}

// bareTrue runs true in a guest.
func bareTrue(ctx context.Context, s *guestlink.Session) error {
	p, err := guestlink.NewClient(s).Start(ctx, guestproto.ExecSpec{Args: []string{"true"}})
	if err != nil {
		return err
	}
	defer p.Close() //nolint:errcheck // it has ended
	for {
		ev, err := p.Recv()
		if err != nil {
			return err
		}
		if ev.Kind == guestproto.EventExit {
			return nil
		}
	}
}

// templateRun compares `run --rm -- true` from a template with the bare VMM that restores it and runs the same, turn by turn.
func templateRun(ctx context.Context, b *bed, rounds int) ([]figure, error) {
	launch, err := b.restored(ctx)
	if err != nil {
		return nil, err
	}
	var whole, floor []time.Duration
	stages := stageTimes{}
	for range 3 * rounds {
		d, err := b.bareRestore(ctx, launch)
		if err != nil {
			return nil, err
		}
		floor = append(floor, d)
		d, text, err := b.timed(ctx, "run", "--rm", "--quiet", "--timings", "--init", "agent", "--", "true")
		if err != nil {
			return nil, err
		}
		whole = append(whole, d)
		stages.add(text)
	}
	p50, p99 := median(floor)*3/2, median(floor)*5/2
	against := "bare restore to the first true: " + spread(floor)
	return append([]figure{
		{"run --rm -- true from a template, p50", spread(whole), against, "1.5 x floor = " + ms(p50), median(whole) <= p50},
		{"the same, slowest", ms(slices.Max(whole)), against, "2.5 x floor = " + ms(p99), slices.Max(whole) <= p99},
	}, stages.figures("template")...), nil
}

// stageTimes are the samples of --timings, by stage.
type stageTimes struct {
	names   []string // in the order of their first appearance
	samples map[string][]time.Duration
}

// add takes what a command with --timings has written.
func (s *stageTimes) add(text string) {
	if s.samples == nil {
		s.samples = map[string][]time.Duration{}
	}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		d, err := time.ParseDuration(fields[len(fields)-1])
		if err != nil {
			continue
		}
		name := strings.Join(fields[:len(fields)-1], " ")
		if s.samples[name] == nil {
			s.names = append(s.names, name)
		}
		s.samples[name] = append(s.samples[name], d)
	}
}

// figures tells the stages, without budgets of their own.
func (s *stageTimes) figures(of string) (out []figure) {
	for _, name := range s.names {
		out = append(out, figure{fmt.Sprintf("  %s: %s", of, name), spread(s.samples[name]), "", "", true})
	}
	return out
}
