// Command bench measures banger on this machine, each figure beside the floor that it is judged by, in one run, and fails
// if a budget is exceeded. It uses the installed binaries as a user would, with a state directory of its own whose
// images and kernels are taken from the user's, or made.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

func main() {
	bin := flag.String("bin", "bin", "directory with banger and banger-guest")
	rounds := flag.Int("rounds", 7, "how often each figure is measured")
	mib := flag.Int("mib", 1024, "size of the root filesystem that is imported, in MiB; twice that of the one that is pulled")
	only := flag.String("only", "", "names of what is measured, with commas between them: "+strings.Join(slices.Sorted(maps.Keys(measures(0))), ", ")+"; empty: all")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ok, err := run(ctx, *bin, *only, *rounds, *mib)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	if err != nil || !ok {
		stop()
		os.Exit(1) // stop has been called
	}
}

// figure is one line of the result.
type figure struct {
	name   string
	value  string
	floor  string
	budget string
	ok     bool
}

// measure takes figures on a bed, so many times each.
type measure func(ctx context.Context, b *bed, rounds int) ([]figure, error)

// skipped is the error of a measure that can't be taken on this machine: why.
type skipped string

func (s skipped) Error() string { return string(s) }

// measures are all, by name. mib is the size of the large image.
func measures(mib int) map[string]measure {
	sized := func(m func(ctx context.Context, b *bed, rounds, mib int) ([]figure, error)) measure {
		return func(ctx context.Context, b *bed, rounds int) ([]figure, error) { return m(ctx, b, rounds, mib) }
	}
	return map[string]measure{
		"run": coldRun, "template": with(withTemplates, templateRun), "pool": with(withPool, poolRun),
		"fork": with(withTemplates, forks), "density": with(withTemplates, density), "exec": execTrue, "ssh": sshTrue, "ps": psFifty, "sizes": sizes, "stop": stopIdle, "fleet": manyVMs,
		"import": sized(importImage), "pull": sized(pullImage),
	}
}

func run(ctx context.Context, bin, only string, rounds, mib int) (bool, error) {
	const smallest = 16 // so that each layer has files
	if mib < smallest || rounds < 1 {
		return false, fmt.Errorf("-mib must be %d or more, and -rounds 1", smallest)
	}
	names := []string{"run", "template", "pool", "fork", "density", "stop", "exec", "ssh", "ps", "sizes", "fleet", "import", "pull"}
	if only != "" {
		names = strings.Split(only, ",")
	}
	for _, name := range names {
		if measures(mib)[name] == nil {
			return false, fmt.Errorf("there is no measure %q", name)
		}
	}
	b, err := newBed(ctx, bin)
	if err != nil {
		return false, err
	}
	defer b.close(ctx)
	var figures []figure
	var skips []string
	for _, name := range names {
		f, err := measures(mib)[name](ctx, b, rounds)
		var why skipped
		switch {
		case errors.As(err, &why):
			skips = append(skips, name+" was skipped: "+string(why))
		case err != nil:
			return false, err
		}
		figures = append(figures, f...)
	}
	ok, err := show(figures)
	for _, s := range skips {
		_, _ = fmt.Fprintln(os.Stdout, s)
	}
	return ok, err
}

// show writes the table and tells whether all figures are within their budgets.
func show(figures []figure) (bool, error) {
	ok := true
	w := tabwriter.NewWriter(os.Stdout, 2, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(w, "WHAT\tMEASURED\tFLOOR\tBUDGET\tRESULT")
	for _, f := range figures {
		result := "ok"
		if !f.ok {
			result, ok = "OVER BUDGET", false
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", f.name, f.value, f.floor, f.budget, result)
	}
	return ok, w.Flush()
}

// median returns the middle of the samples.
func median(samples []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(samples))
	return s[len(s)/2]
}

// spread words a median and the extremes.
func spread(samples []time.Duration) string {
	return fmt.Sprintf("%s (%s-%s)", ms(median(samples)), ms(slices.Min(samples)), ms(slices.Max(samples)))
}

func ms(d time.Duration) string { return fmt.Sprintf("%.0f ms", float64(d)/float64(time.Millisecond)) }

// coldRun compares `run --rm -- true`, without any template, with the bare VMM up to the agent's answer, turn by turn.
func coldRun(ctx context.Context, b *bed, rounds int) ([]figure, error) {
	var whole, floor, found []time.Duration
	for range rounds {
		v, d, err := b.bareBoot(ctx)
		if err != nil {
			return nil, err
		}
		v.close()
		floor = append(floor, d)
		d, text, err := b.timed(ctx, "run", "--rm", "--no-template", "--quiet", "--timings", "--init", "agent", "--", "true")
		if err != nil {
			return nil, err
		}
		whole = append(whole, d)
		if d, err = findImage(text); err != nil {
			return nil, err
		}
		found = append(found, d)
	}
	budget := median(floor)*130/100 + 150*time.Millisecond
	return []figure{{
		"cold run --rm --init agent -- true", spread(whole), "bare VMM to ready: " + spread(floor),
		"1.30 x floor + 150 ms = " + ms(budget), median(whole) <= budget,
	}, foundImage(found)}, nil
}

// execTrue compares `exec -- true` with the agent's own round trip.
func execTrue(ctx context.Context, b *bed, rounds int) ([]figure, error) {
	const vm = "bench-exec"
	if _, err := b.banger(ctx, "vm", "create", "--quiet", "--name", vm, "--init", "agent"); err != nil {
		return nil, err
	}
	defer b.banger(context.WithoutCancel(ctx), "vm", "delete", "--force", vm) //nolint:errcheck // close tells
	var exec, ping []time.Duration
	for i := range 3*rounds + 2 {
		p, err := b.ping(ctx, vm)
		if err != nil {
			return nil, err
		}
		e, err := b.banger(ctx, "exec", vm, "--", "true")
		if err != nil {
			return nil, err
		}
		if i >= 2 { // the first ones warm the guest's code
			exec, ping = append(exec, e), append(ping, p)
		}
	}
	budget := median(ping) + 65*time.Millisecond
	return []figure{{
		"exec -- true", spread(exec), "agent round trip: " + spread(ping),
		"floor + 40 ms + 25 ms = " + ms(budget), median(exec) <= budget,
	}}, nil
}

// psFifty measures `ps` with fifty VMs stored.
func psFifty(ctx context.Context, b *bed, rounds int) ([]figure, error) {
	for i := range 50 {
		if _, err := b.banger(ctx, "vm", "create", "--quiet", "--no-start", "--name", fmt.Sprintf("bench-%d", i)); err != nil {
			return nil, err
		}
	}
	var samples, floor []time.Duration
	for range 3 * rounds {
		d, err := b.banger(ctx, "ps")
		if err != nil {
			return nil, err
		}
		samples = append(samples, d)
		if d, err = b.banger(ctx, "version"); err != nil {
			return nil, err
		}
		floor = append(floor, d)
	}
	const budget = 60 * time.Millisecond
	return []figure{{
		"ps with 50 VMs", spread(samples), "banger version: " + spread(floor), "<= " + ms(budget), median(samples) <= budget,
	}}, nil
}

// sizes measures memory at rest and the agent's file.
func sizes(ctx context.Context, b *bed, _ int) ([]figure, error) {
	const vm = "bench-rss"
	if _, err := b.banger(ctx, "vm", "create", "--quiet", "--name", vm, "--init", "agent"); err != nil {
		return nil, err
	}
	defer b.banger(context.WithoutCancel(ctx), "vm", "delete", "--force", vm) //nolint:errcheck // close tells
	time.Sleep(3 * time.Second)                                               // at rest
	daemon, monitor, err := b.resident(ctx, vm)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(filepath.Join(b.bin, "banger-guest"))
	if err != nil {
		return nil, err
	}
	return []figure{
		bytesFigure("idle daemon, resident", daemon, 45e6),
		bytesFigure("idle monitor, resident", monitor, 30e6),
		bytesFigure("banger-guest, file", st.Size(), 6e6),
	}, nil
}

func bytesFigure(name string, n, budget int64) figure {
	return figure{name, fmt.Sprintf("%.1f MB", float64(n)/1e6), "", fmt.Sprintf("<= %.0f MB", float64(budget)/1e6), n <= budget}
}
