// Command tiers runs the project's tests by tier and sums them up.
//
//	go -C tools run ./tiers tools unit vm
//
// The unit tier is every test that has no build constraint, and those that use the fake backend (fakevmm); the tier tools
// is the tests of this module. The tier vm is the tests in files that need the build tag of that name, and nothing else of
// their packages; it includes those that are run as another user and so are skipped without root. Failing tests are shown with all their output, skipped ones
// with their reason. The last line says how many tests passed, failed and were skipped in all tiers; subtests count, tests
// that only hold them do not. The exit status is 1 if anything failed.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// tier is a set of tests that need the same things.
type tier struct {
	name string
	dir  string   // of the module, from the top of the repository
	tag  string   // build tag; empty: tests without one
	args []string // for go test
}

func tiers() []tier {
	return []tier{
		{name: "tools", dir: "tools"},
		// The fake backend stands in for a VMM; everything else in those tests is real.
		{name: "unit", args: []string{"-race", "-tags", "fakevmm"}},
		// Two packages at a time: one alone waits for guests a third of the time, and more would only be in each other's way.
		{name: "vm", tag: "vm", args: []string{"-timeout", "30m", "-p", "2"}},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	total, err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "tiers:", err)
	}
	fmt.Println(total)
	if err != nil || total.failed > 0 {
		os.Exit(1)
	}
}

// run returns what was counted even if it fails.
func run(ctx context.Context, names []string) (total counts, err error) {
	if err := os.Chdir(".."); err != nil { // every path is from the top of the repository
		return total, err
	}
	for _, name := range names {
		t, err := find(name)
		if err != nil {
			return total, err
		}
		began := time.Now()
		got, err := runTier(ctx, t)
		total = total.plus(got)
		if err != nil {
			return total, fmt.Errorf("%s tests: %w", name, err)
		}
		fmt.Printf("== %s: %s (%.1f s)\n", name, got, time.Since(began).Seconds())
	}
	return total, nil
}

func find(name string) (tier, error) {
	for _, t := range tiers() {
		if t.name == name {
			return t, nil
		}
	}
	return tier{}, fmt.Errorf("no tier %q: there are tools, unit and vm", name)
}

func runTier(ctx context.Context, t tier) (counts, error) {
	fmt.Printf("== %s\n", t.name)
	args := append([]string{"test", "-json"}, t.args...)
	if t.tag == "" {
		args = append(args, "./...")
	} else {
		packages, tests, err := tagged(os.DirFS("."), t.tag)
		if err != nil || len(packages) == 0 {
			return counts{}, err
		}
		args = append(args, "-count=1", "-tags", t.tag, "-run", "^("+strings.Join(tests, "|")+")$")
		args = append(args, packages...)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = t.dir
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // so that tests can clean up
	cmd.WaitDelay = time.Minute
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return counts{}, err
	}
	if err := cmd.Start(); err != nil {
		return counts{}, err
	}
	got := newSummary(os.Stdout).read(out)
	if err := cmd.Wait(); err != nil && got.failed == 0 {
		return got, err // nothing to blame was in the output
	}
	return got, ctx.Err()
}
