// Command bench measures banger on this machine, each figure beside the floor that it is judged by, in one run, and fails
// if a budget is exceeded. It uses the installed binaries as a user would, with a state directory of its own whose
// images and kernels are taken from the user's, or made.
package main

import (
	"context"
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
	only := flag.String("only", "", "names of what is measured, with commas between them: "+strings.Join(slices.Sorted(maps.Keys(measures())), ", ")+"; empty: all")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ok, err := run(ctx, *bin, *rounds, *only)
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

// measures are all, by name.
func measures() map[string]measure {
	return map[string]measure{
		"run": coldRun, "exec": execTrue, "ps": psFifty, "sizes": sizes, "stop": stopIdle, "fleet": manyVMs,
	}
}

func run(ctx context.Context, bin string, rounds int, only string) (bool, error) {
	names := []string{"run", "stop", "exec", "ps", "sizes", "fleet"}
	if only != "" {
		names = strings.Split(only, ",")
	}
	for _, name := range names {
		if measures()[name] == nil {
			return false, fmt.Errorf("there is no measure %q", name)
		}
	}
	b, err := newBed(ctx, bin)
	if err != nil {
		return false, err
	}
	defer b.close(ctx)
	var figures []figure
	for _, name := range names {
		f, err := measures()[name](ctx, b, rounds)
		if err != nil {
			return false, err
		}
		figures = append(figures, f...)
	}
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
	var whole, floor []time.Duration
	for range rounds {
		v, d, err := b.bareBoot(ctx)
		if err != nil {
			return nil, err
		}
		v.close()
		floor = append(floor, d)
		if d, err = b.banger(ctx, "run", "--rm", "--quiet", "--init", "agent", "--", "true"); err != nil {
			return nil, err
		}
		whole = append(whole, d)
	}
	budget := median(floor)*130/100 + 150*time.Millisecond
	return []figure{{
		"cold run --rm --init agent -- true", spread(whole), "bare VMM to ready: " + spread(floor),
		"1.30 x floor + 150 ms = " + ms(budget), median(whole) <= budget,
	}}, nil
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
	size := func(name string, n, budget int64) figure {
		return figure{name, fmt.Sprintf("%.1f MB", float64(n)/1e6), "", fmt.Sprintf("<= %.0f MB", float64(budget)/1e6), n <= budget}
	}
	return []figure{
		size("idle daemon, resident", daemon, 45e6),
		size("idle monitor, resident", monitor, 30e6),
		size("banger-guest, file", st.Size(), 6e6),
	}, nil
}
