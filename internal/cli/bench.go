package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/hostexec"
	"banger/internal/version"
)

// benchFlags are the flags of bench.
type benchFlags struct {
	output outputFlags
	runs   int
	only   []string
	image  string
	init   choiceFlag
}

// benchView is the result of bench in JSON and YAML.
type benchView struct {
	Version     string        `json:"version"`
	Backend     string        `json:"backend"`
	Accelerator string        `json:"accelerator"`
	Reason      string        `json:"reason"`
	Image       string        `json:"image"`
	CPUs        int32         `json:"vcpus"`
	Memory      int64         `json:"memory"`
	Figures     []benchFigure `json:"figures"`
}

// benchFigure is one thing that was measured. Samples are in the order in which they were taken.
type benchFigure struct {
	Name    string    `json:"name"`
	What    string    `json:"what"`
	Unit    string    `json:"unit"` // seconds or bytes
	P50     float64   `json:"p50"`
	P90     float64   `json:"p90"`
	P99     float64   `json:"p99"`
	Min     float64   `json:"min"`
	Max     float64   `json:"max"`
	Samples []float64 `json:"samples"`
}

// benchCase is one thing to measure. take returns one sample, in the unit.
type benchCase struct {
	name, what, unit string
	divide           int // of the runs that were asked for, one in so many is taken, but three at least
	take             func(ctx context.Context, b *benchBed) (float64, error)
}

func benchCases() []benchCase {
	return []benchCase{
		{"run", "run --rm -- true, from a cold boot", "seconds", 4, func(ctx context.Context, b *benchBed) (float64, error) {
			return b.timed(ctx, b.run("--rm", "--no-template", "--", "true")...)
		}},
		{"template", "run --rm -- true, restored from a template", "seconds", 1, func(ctx context.Context, b *benchBed) (float64, error) {
			if !b.built {
				if _, err := b.timed(ctx, append([]string{"template", "build"}, b.spec...)...); err != nil {
					return 0, err
				}
				b.built = true
			}
			return b.timed(ctx, b.run("--rm", "--", "true")...)
		}},
		{"fork", "fork of a running VM, and exec -- true in the copy", "seconds", 4, func(ctx context.Context, b *benchBed) (float64, error) {
			const copied = "bench-fork"
			took, err := b.timed(ctx, "fork", b.vm, "--name", copied)
			if err != nil {
				return 0, err
			}
			first, err := b.timed(ctx, "exec", copied, "--", "true")
			_, gone := b.timed(ctx, "vm", "delete", "--force", copied)
			return took + first, errors.Join(err, gone)
		}},
		{"exec", "exec -- true in a running VM", "seconds", 1, func(ctx context.Context, b *benchBed) (float64, error) {
			return b.timed(ctx, "exec", b.vm, "--", "true")
		}},
		{"list", "ps", "seconds", 1, func(ctx context.Context, b *benchBed) (float64, error) { return b.timed(ctx, "ps") }},
		{"stop", "stop of an idle VM", "seconds", 4, func(ctx context.Context, b *benchBed) (float64, error) {
			took, err := b.timed(ctx, "stop", b.vm)
			if err == nil {
				_, err = b.timed(ctx, "start", b.vm)
			}
			return took, err
		}},
		{"memory", "host memory of a running VM, its VMM and monitor (PSS)", "bytes", 4, func(ctx context.Context, b *benchBed) (float64, error) { return b.memory(ctx) }},
	}
}

func newBenchmark(a *app) *cobra.Command {
	f := &benchFlags{runs: 20, init: choiceFlag{value: "agent", choices: []string{"auto", "agent", "systemd"}}}
	var names []string
	for _, c := range benchCases() {
		names = append(names, c.name)
	}
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure banger on this machine",
		Long: `Measure on this machine what banger's documentation gives figures of. Each command is run as you would run it, from the start
of its process to its end, on VMs that are deleted afterwards. JSON has every sample.

What can be measured: ` + strings.Join(names, ", ") + `.`,
		Example: "  banger bench\n  banger bench --only run,exec --runs 50\n  banger bench --output json >bench.json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runBench(cmd.Context(), a, f)
		},
		ValidArgsFunction: noCompletion,
	}
	f.output.register(cmd)
	cmd.Flags().IntVar(&f.runs, "runs", f.runs, "how often to measure what is quick; what takes seconds is measured less often")
	cmd.Flags().StringSliceVar(&f.only, "only", nil, "measure only these (default: all)")
	cmd.Flags().StringVar(&f.image, "image", "", "image of the VMs (default: the configured one)")
	cmd.Flags().Var(&f.init, "init", "init of the VMs: "+f.init.list())
	complete(cmd, "only", fixed(names...))
	complete(cmd, "image", completer{a}.images)
	complete(cmd, "init", fixed(f.init.choices...))
	return cmd
}

// chosen returns the cases that were asked for, in the order of all of them.
func (f *benchFlags) chosen() ([]benchCase, error) {
	const most = 10000
	if f.runs < 1 || f.runs > most {
		return nil, usagef("bad --runs %d", f.runs).withHint("use 1 to %d", most)
	}
	all := benchCases()
	if len(f.only) == 0 {
		return all, nil
	}
	for _, name := range f.only {
		if !slices.ContainsFunc(all, func(c benchCase) bool { return c.name == name }) {
			return nil, usagef("bad --only %q", name).withHint("banger bench --help lists what can be measured")
		}
	}
	return slices.DeleteFunc(all, func(c benchCase) bool { return !slices.Contains(f.only, c.name) }), nil
}

func runBench(ctx context.Context, a *app, f *benchFlags) (err error) {
	cases, err := f.chosen()
	if err != nil {
		return err
	}
	b, err := newBenchBed(ctx, a, f)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close(ctx)) }()
	d := a.newDisplay()
	defer d.keep()
	view := b.view
	for _, c := range cases {
		figure, err := b.measure(ctx, d, c, f.runs)
		if err != nil {
			return fmt.Errorf("measure %s: %w", c.name, err)
		}
		view.Figures = append(view.Figures, figure)
	}
	d.keep()
	return f.output.write(a, view, func(w io.Writer) error { return writeBench(w, view) })
}

func writeBench(w io.Writer, v benchView) error {
	_, err := fmt.Fprintf(w, "banger %s, %s with %s; image %s, %d vCPUs, %s\n", v.Version, v.Backend, v.Accelerator, v.Image, v.CPUs, size(v.Memory))
	if err != nil {
		return err
	}
	t := &table{head: []string{"NAME", "P50", "P90", "P99", "RUNS", "WHAT"}}
	for _, f := range v.Figures {
		word := func(n float64) string { return duration(time.Duration(n * float64(time.Second))) }
		if f.Unit == "bytes" {
			word = func(n float64) string { return size(int64(n)) }
		}
		t.add(f.Name, word(f.P50), word(f.P90), word(f.P99), itoa(len(f.Samples)), f.What)
	}
	return t.write(w)
}

// benchBed is where the measuring is done: the program itself, and a VM that runs.
type benchBed struct {
	app  *app
	exe  string
	vm   string
	spec []string
	view benchView

	built bool // the template is there
}

func newBenchBed(ctx context.Context, a *app, f *benchFlags) (*benchBed, error) {
	b := &benchBed{app: a, exe: a.sys.Executable, spec: []string{"--init", f.init.value}}
	if f.image != "" {
		b.spec = append(b.spec, "--image", f.image)
	}
	// Its image and kernel may have to be made first, which is to be seen.
	id, err := hostexec.Output(ctx, hostexec.Cmd{
		Path: b.exe, Args: append([]string{"vm", "create"}, b.spec...), Stderr: a.sys.Stderr,
	})
	if err != nil {
		return nil, fmt.Errorf("make a VM to measure with: %w", err)
	}
	if b.vm = strings.TrimSpace(string(id)); b.vm == "" {
		return nil, fault.New(fault.Internal, "make a VM to measure with: create names none")
	}
	client, err := a.connect(ctx)
	if err != nil {
		return nil, errors.Join(err, b.close(ctx))
	}
	res, err := client.VMs.Get(ctx, connect.NewRequest(&bangerv1.GetRequest{Vm: b.vm}))
	if err != nil {
		return nil, errors.Join(err, b.close(ctx))
	}
	vm := res.Msg.GetVm()
	b.view = benchView{
		Version: version.Get().String(), Backend: vm.GetBackend(), Accelerator: vm.GetAccelerator(), Reason: vm.GetBackendReason(),
		Image: vm.GetSpec().GetImage(), CPUs: vm.GetSpec().GetVcpus(), Memory: vm.GetSpec().GetMemory(), Figures: []benchFigure{},
	}
	return b, nil
}

// benchCloseTimeout bounds the deletion of the bed's VM.
const benchCloseTimeout = time.Minute

func (b *benchBed) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), benchCloseTimeout)
	defer cancel()
	_, err := b.timed(ctx, "vm", "delete", "--force", b.vm)
	return err
}

// run returns the arguments of a run of a VM like the bed's.
func (b *benchBed) run(args ...string) []string {
	return append(append([]string{"run"}, b.spec...), args...)
}

// timed runs the program as its user would and returns how long that took, in seconds.
func (b *benchBed) timed(ctx context.Context, args ...string) (float64, error) {
	began := time.Now()
	err := hostexec.Run(ctx, hostexec.Cmd{Path: b.exe, Args: append([]string{"--quiet"}, args...)})
	return time.Since(began).Seconds(), err
}

// memory returns the bytes of host memory that the VM's processes take up, each page that several processes share counted
// in part.
func (b *benchBed) memory(ctx context.Context) (float64, error) {
	client, err := b.app.connect(ctx)
	if err != nil {
		return 0, err
	}
	res, err := client.VMs.Get(ctx, connect.NewRequest(&bangerv1.GetRequest{Vm: b.vm}))
	if err != nil {
		return 0, err
	}
	var sum float64
	for _, pid := range []int64{res.Msg.GetVm().GetMonitorPid(), res.Msg.GetVm().GetVmmPid()} {
		text, err := os.ReadFile("/proc/" + itoa(pid) + "/smaps_rollup")
		if err != nil {
			return 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
		}
		pss, err := pssOf(string(text))
		if err != nil {
			return 0, err
		}
		sum += pss
	}
	return sum, nil
}

// pssOf returns the proportional set size in bytes of a /proc/pid/smaps_rollup, proc(5).
func pssOf(text string) (float64, error) {
	for line := range strings.Lines(text) {
		var kib float64
		if _, err := fmt.Sscanf(line, "Pss: %g kB", &kib); err == nil {
			return kib * 1024, nil
		}
	}
	return 0, fault.New(fault.Unsupported, "the kernel does not tell the proportional size of a process")
}

// measure takes the samples of one case.
func (b *benchBed) measure(ctx context.Context, d *display, c benchCase, runs int) (benchFigure, error) {
	f := benchFigure{Name: c.name, What: c.what, Unit: c.unit}
	n := max(runs/c.divide, min(runs, 3))
	began := time.Now()
	for i := range n {
		d.update("", &bangerv1.Progress{Stage: "measure " + c.name, Current: int64(i), Total: int64(n)})
		sample, err := c.take(ctx, b)
		if err != nil {
			return f, err
		}
		f.Samples = append(f.Samples, sample)
	}
	d.update("", &bangerv1.Progress{Stage: "measure " + c.name, Ended: true, Elapsed: durationpb.New(time.Since(began))})
	sorted := slices.Sorted(slices.Values(f.Samples))
	f.Min, f.Max = sorted[0], sorted[n-1]
	f.P50, f.P90, f.P99 = percentile(sorted, 50), percentile(sorted, 90), percentile(sorted, 99)
	return f, nil
}

// percentile returns the least of the sorted samples that p percent of them do not exceed.
func percentile(sorted []float64, p int) float64 {
	return sorted[max((len(sorted)*p+99)/100-1, 0)]
}
