package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/rpcclient"
)

// statsOptions are the flags of stats.
type statsOptions struct {
	output  *outputFlags
	watch   bool
	history bool
}

func newStats(a *app) *cobra.Command {
	o := &statsOptions{output: &outputFlags{}}
	cmd := &cobra.Command{
		Use:   "stats [vm]...",
		Short: "Show what VMs use: CPU, memory, disks, network",
		Long: `Show what VMs use now: those named, else all that run. With --watch a line follows for each VM and second until
the VMs have ended or Ctrl-C is pressed; with --history the last hour comes first.

CPU is that of one host CPU, used by the whole VM in the last second. MEMORY is in use in the guest, without its caches,
and HOST what the VM takes of the host's memory. READ and WRITTEN are the guest's since its boot, DISK is what its disks
take on the host. What only the guest knows is "-" while it does not answer.`,
		Example: "  banger vm stats\n  banger vm stats devbox --watch\n  banger vm stats --output json",
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.watch || o.history {
				return runStatsStream(cmd.Context(), a, args, o)
			}
			return runStats(cmd.Context(), a, args, o)
		},
		ValidArgsFunction: completer{a}.vms,
	}
	cmd.Flags().BoolVarP(&o.watch, "watch", "w", false, "go on, with a sample a second, until Ctrl-C")
	cmd.Flags().BoolVar(&o.history, "history", false, "begin with the last hour; JSON is then one object per line")
	o.output.register(cmd)
	return cmd
}

// runStats shows the newest sample of each VM.
func runStats(ctx context.Context, a *app, refs []string, o *statsOptions) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	var samples []*bangerv1.StatsResponse
	var failed error
	if len(refs) == 0 {
		if samples, err = newestSamples(ctx, client); err != nil {
			return err
		}
		slices.SortFunc(samples, func(x, y *bangerv1.StatsResponse) int { return strings.Compare(x.GetName(), y.GetName()) })
	} else {
		all, err := targets(ctx, client, refs)
		if err != nil {
			return err
		}
		failed = forEach(ctx, a, a.newDisplay(), "stats of", all, func(vm *bangerv1.VM) ([]*bangerv1.StatsResponse, error) {
			return newestSamples(ctx, client, vm.GetId())
		}, func(of []*bangerv1.StatsResponse) error {
			samples = append(samples, of...)
			return nil
		})
	}
	views := make([]sampleView, len(samples))
	for i, s := range samples {
		views[i] = viewSample(s)
	}
	err = o.output.write(a, views, func(w io.Writer) error {
		t := &table{head: statsHead()}
		for _, s := range samples {
			t.add(statsRow(s)...)
		}
		return t.write(w)
	})
	if err != nil {
		return err
	}
	return failed
}

// newestSamples asks for one sample of each VM; of all that run if none is named.
func newestSamples(ctx context.Context, client *rpcclient.Client, ids ...string) ([]*bangerv1.StatsResponse, error) {
	stream, err := client.VMs.Stats(ctx, connect.NewRequest(&bangerv1.StatsRequest{Vms: ids}))
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }()
	var samples []*bangerv1.StatsResponse
	for stream.Receive() {
		samples = append(samples, stream.Msg())
	}
	return samples, stream.Err()
}

// runStatsStream writes samples as they come: rows of a table, or a JSON object per line.
func runStatsStream(ctx context.Context, a *app, refs []string, o *statsOptions) error {
	if o.output.format.value == "yaml" {
		return usagef("a stream of samples can't be written as YAML").withHint("use --output json")
	}
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	all, err := targets(ctx, client, refs)
	if err != nil {
		return err
	}
	req := &bangerv1.StatsRequest{Follow: o.watch, History: o.history}
	for _, t := range all {
		if t.err != nil {
			return t.err
		}
		req.Vms = append(req.Vms, t.vm.GetId())
	}
	stream, err := client.VMs.Stats(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	rows := &statsRows{w: a.sys.Stdout}
	for stream.Receive() {
		if o.output.format.value == "json" {
			err = writeJSONLine(a.sys.Stdout, viewSample(stream.Msg()))
		} else {
			err = rows.write(stream.Msg())
		}
		if err != nil {
			return err
		}
	}
	return stream.Err()
}

// statsRows is a table that never ends: its columns have fixed widths, and it has a head now and then.
type statsRows struct {
	w    io.Writer
	rows int
}

const (
	headEvery = 20 // rows
	nameWidth = 16
	cellWidth = 9
)

func (r *statsRows) write(s *bangerv1.StatsResponse) error {
	var b strings.Builder
	line := func(at string, cells []string) {
		fmt.Fprintf(&b, "%-8s  %-*s", at, nameWidth, oneLine(cells[0]))
		for _, cell := range cells[1:] {
			fmt.Fprintf(&b, "  %*s", cellWidth, cell)
		}
		b.WriteByte('\n')
	}
	if r.rows%headEvery == 0 {
		line("TIME", statsHead())
	}
	r.rows++
	line(s.GetSample().GetAt().AsTime().Local().Format(time.TimeOnly), statsRow(s))
	_, err := io.WriteString(r.w, b.String())
	return err
}

func statsHead() []string {
	return []string{"NAME", "CPU", "MEMORY", "OF", "HOST", "READ", "WRITTEN", "DISK", "RECEIVED", "SENT", "DENIED", "PROCESSES"}
}

func statsRow(s *bangerv1.StatsResponse) []string {
	u := s.GetSample()
	guest := func(text string) string {
		if !hasGuest(u) {
			return "-"
		}
		return text
	}
	return []string{
		s.GetName(), fmt.Sprintf("%.1f%%", u.GetCpuPercent()), guest(amount(u.GetGuestMemory())), guest(amount(u.GetGuestMemoryTotal())),
		amount(u.GetVmmResident()), guest(amount(u.GetDiskRead())), guest(amount(u.GetDiskWritten())), amount(u.GetDiskAllocated()),
		amount(u.GetNetReceived()), amount(u.GetNetSent()), itoa(u.GetNetDenied()), guest(itoa(u.GetProcesses())),
	}
}

// hasGuest reports whether the guest has told its part of a sample.
func hasGuest(u *bangerv1.Sample) bool { return u.GetGuestCpu() != nil }

// amount is size for columns of changing numbers: none is 0, and there is at most one decimal.
func amount(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%dB", max(n, 0))
	}
	f, units := float64(n)/unit, []string{"KiB", "MiB", "GiB", "TiB", "PiB"}
	for f >= 999.95 && len(units) > 1 {
		f, units = f/unit, units[1:]
	}
	return fmt.Sprintf("%.1f%s", f, units[0])
}

// sampleView is a sample, for programs. What is null is not known: the guest has not told it.
type sampleView struct {
	ID            string           `json:"id"`
	Name          string           `json:"name"`
	At            *time.Time       `json:"at"`
	CPUPercent    float64          `json:"cpu_percent"`
	VMMCPU        float64          `json:"vmm_cpu_seconds"`
	VMMResident   int64            `json:"vmm_resident"`
	DiskAllocated int64            `json:"disk_allocated"`
	NetReceived   int64            `json:"net_received"`
	NetSent       int64            `json:"net_sent"`
	NetDenied     int64            `json:"net_denied"`
	Guest         *guestSampleView `json:"guest"`
}

// guestSampleView is the guest's part of a sample.
type guestSampleView struct {
	CPU         float64 `json:"cpu_seconds"`
	Memory      int64   `json:"memory"`
	MemoryTotal int64   `json:"memory_total"`
	DiskRead    int64   `json:"disk_read"`
	DiskWritten int64   `json:"disk_written"`
	Processes   int32   `json:"processes"`
}

func viewSample(s *bangerv1.StatsResponse) sampleView {
	u := s.GetSample()
	v := sampleView{
		ID: s.GetVmId(), Name: s.GetName(), At: stamp(u.GetAt()), CPUPercent: u.GetCpuPercent(),
		VMMCPU: u.GetVmmCpu().AsDuration().Seconds(), VMMResident: u.GetVmmResident(), DiskAllocated: u.GetDiskAllocated(),
		NetReceived: u.GetNetReceived(), NetSent: u.GetNetSent(), NetDenied: u.GetNetDenied(),
	}
	if hasGuest(u) {
		v.Guest = &guestSampleView{
			CPU: u.GetGuestCpu().AsDuration().Seconds(), Memory: u.GetGuestMemory(), MemoryTotal: u.GetGuestMemoryTotal(),
			DiskRead: u.GetDiskRead(), DiskWritten: u.GetDiskWritten(), Processes: u.GetProcesses(),
		}
	}
	return v
}
