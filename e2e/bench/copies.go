package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"banger/internal/monitorlink"
)

// Sizes of what is copied.
const (
	copies     = 20
	copyMemory = "512M"
	dirtied    = "32M"
	idleFor    = 10 * time.Second // before memory is looked at
)

// forks measures copies of a running VM: how long it stands still, and how long until all copies have run a command.
func forks(ctx context.Context, b *bed, rounds int) ([]figure, error) {
	const vm = "bench-source"
	if _, err := b.banger(ctx, "template", "build", "--init", "agent", "--memory", copyMemory); err != nil {
		return nil, err
	}
	if _, err := b.banger(ctx, "vm", "create", "--quiet", "--name", vm, "--init", "agent", "--memory", copyMemory); err != nil {
		return nil, err
	}
	defer b.banger(context.WithoutCancel(ctx), "vm", "delete", "--force", vm) //nolint:errcheck // close tells
	if _, err := b.banger(ctx, "exec", vm, "--", "sh", "-c", "yes | head -c "+dirtied+" >/dev/shm/dirty"); err != nil {
		return nil, err
	}
	launch, err := b.restored(ctx, "--memory", copyMemory)
	if err != nil {
		return nil, err
	}
	var pauses, first, all, floor []time.Duration
	for i := range rounds {
		name := fmt.Sprintf("bench-copy-%d", i)
		if _, err := b.banger(ctx, "fork", vm, "--quiet", "--name", name); err != nil {
			return nil, err
		}
		d, err := b.lastPause()
		if err != nil {
			return nil, err
		}
		pauses = append(pauses, d)
		if _, err := b.banger(ctx, "vm", "delete", "--force", name); err != nil {
			return nil, err
		}
	}
	for range max(rounds/3, 1) {
		d, err := b.bareMany(ctx, launch)
		if err != nil {
			return nil, err
		}
		floor = append(floor, d)
		one, each, err := b.forkMany(ctx, vm)
		if err != nil {
			return nil, err
		}
		first, all = append(first, one), append(all, each)
	}
	const pause, many = 60 * time.Millisecond, 4 * time.Second
	budget := 2 * median(floor)
	return []figure{
		{"pause of a fork, " + copyMemory + ", " + dirtied + " dirtied", spread(pauses), "", "<= " + ms(pause), median(pauses) <= pause},
		{fmt.Sprintf("%d forks to the first exec", copies), spread(first), "", "<= " + ms(many), median(first) <= many},
		{
			fmt.Sprintf("%d forks, each to its first exec", copies), spread(all), "as many bare restores, each to its first true: " + spread(floor),
			"2 x floor = " + ms(budget), median(all) <= budget,
		},
	}, nil
}

// lastPause returns how long the VM that was saved last stood still, as the daemon has logged it.
func (b *bed) lastPause() (time.Duration, error) {
	_, line := b.logged(`msg="VM saved"`)
	m := regexp.MustCompile(`paused=(\S+)`).FindStringSubmatch(line)
	if m == nil {
		return 0, errors.New("the daemon has logged no pause")
	}
	return time.ParseDuration(m[1])
}

// bareMany restores as many VMs with the VMM alone, some at a time.
func (b *bed) bareMany(ctx context.Context, l monitorlink.Launch) (time.Duration, error) {
	began := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * runtime.NumCPU())
	for range copies {
		g.Go(func() error {
			_, err := b.bareRestore(ctx, l)
			return err
		})
	}
	err := g.Wait()
	return time.Since(began), err
}

// forkMany makes copies and runs a command in each. It tells when the first of them was done, and when all were.
func (b *bed) forkMany(ctx context.Context, vm string) (first, all time.Duration, err error) {
	began := time.Now()
	if _, err := b.banger(ctx, "fork", vm, strconv.Itoa(copies), "--quiet"); err != nil {
		return 0, 0, err
	}
	if _, err := b.banger(ctx, "exec", vm+"-1", "--", "true"); err != nil {
		return 0, 0, err
	}
	first = time.Since(began)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * runtime.NumCPU())
	names := make([]string, copies)
	for i := range copies {
		names[i] = fmt.Sprintf("%s-%d", vm, i+1)
		g.Go(func() error {
			_, err := b.banger(gctx, "exec", names[i], "--", "true")
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return 0, 0, err
	}
	all = time.Since(began)
	_, err = b.banger(ctx, slices.Concat([]string{"vm", "delete", "--force"}, names)...)
	return first, all, err
}

// density measures what idle VMs that were restored from one template take up, by process and by what it consists of.
func density(ctx context.Context, b *bed, _ int) ([]figure, error) {
	if _, err := b.banger(ctx, "template", "build", "--init", "agent", "--memory", copyMemory); err != nil {
		return nil, err
	}
	var names []string
	defer func() {
		_, _ = b.banger(context.WithoutCancel(ctx), slices.Concat([]string{"vm", "delete", "--force"}, names)...) // close tells
	}()
	for i := range copies {
		name := fmt.Sprintf("bench-idle-%d", i)
		if _, err := b.banger(ctx, "vm", "create", "--quiet", "--name", name, "--init", "agent", "--memory", copyMemory); err != nil {
			return nil, err
		}
		names = append(names, name)
		if _, err := b.banger(ctx, "exec", name, "--", "true"); err != nil {
			return nil, err
		}
	}
	time.Sleep(idleFor)
	var monitors, vmms rollup
	for _, name := range names {
		s, err := b.show(ctx, name)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(monitors.add(s.MonitorPid), vmms.add(s.VMMPid)); err != nil {
			return nil, err
		}
	}
	const budget = 60e6
	sum := monitors.pss + vmms.pss
	return []figure{
		bytesFigure(fmt.Sprintf("each of %d idle VMs of a %s template, PSS", copies, copyMemory), sum/copies, budget),
		{"  of it VMMs", vmms.String(), "", "", true},
		{"  of it monitors", monitors.String(), "", "", true},
	}, nil
}

// rollup is the sum of some /proc/pid/smaps_rollup, in bytes, proc(5).
type rollup struct{ n, pss, anon, file, dirty int64 }

func (r *rollup) add(pid int) error {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		return err
	}
	r.n++
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		kib, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "Pss:":
			r.pss += kib << 10
		case "Pss_Anon:":
			r.anon += kib << 10
		case "Pss_File:":
			r.file += kib << 10
		case "Private_Dirty:":
			r.dirty += kib << 10
		}
	}
	return nil
}

func (r *rollup) String() string {
	mb := func(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/float64(max(r.n, 1))/1e6) }
	return fmt.Sprintf("%s each: %s anonymous, %s of files (%s private and dirty in all)", mb(r.pss), mb(r.anon), mb(r.file), mb(r.dirty))
}
