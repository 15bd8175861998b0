package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/microvm"
)

func newShow(a *app) *cobra.Command {
	o := &outputFlags{}
	cmd := &cobra.Command{
		Use:               "show <vm>...",
		Short:             "Show everything about VMs",
		Long:              "Show everything that is known about VMs. JSON and YAML are always a list.",
		Example:           "  banger vm show devbox\n  banger vm show --output json devbox",
		Args:              someOf("VM"),
		RunE:              func(cmd *cobra.Command, args []string) error { return runShow(cmd.Context(), a, args, o) },
		ValidArgsFunction: completer{a}.vms,
	}
	o.register(cmd)
	return cmd
}

func runShow(ctx context.Context, a *app, refs []string, o *outputFlags) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	all, err := targets(ctx, client, refs)
	if err != nil {
		return err
	}
	var vms []*bangerv1.VM
	failed := forEach(ctx, a, a.newDisplay(), "show", all, func(vm *bangerv1.VM) (*bangerv1.VM, error) {
		res, err := client.VMs.Get(ctx, connect.NewRequest(&bangerv1.GetRequest{Vm: vm.GetId()}))
		if err != nil {
			return nil, err
		}
		return res.Msg.GetVm(), nil
	}, func(vm *bangerv1.VM) error {
		vms = append(vms, vm)
		return nil
	})
	views := make([]vmView, len(vms))
	for i, vm := range vms {
		views[i] = viewVM(vm)
	}
	if err := o.write(a, views, func(w io.Writer) error {
		for i, vm := range vms {
			if i > 0 {
				_, _ = io.WriteString(w, "\n")
			}
			if err := writeVM(w, a.paint(w), vm, time.Now()); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	return failed
}

// sheet is a description in sections of named values; empty values and sections are left out.
type sheet struct {
	b     strings.Builder
	paint painter
}

func (s *sheet) section(title string, pairs ...string) {
	var lines []string
	for i := 0; i+1 < len(pairs); i += 2 {
		if value := oneLine(pairs[i+1]); value != "" {
			lines = append(lines, fmt.Sprintf("  %-15s %s\n", oneLine(pairs[i]), value))
		}
	}
	if len(lines) > 0 {
		s.b.WriteString(s.paint.bold(oneLine(title)) + "\n" + strings.Join(lines, ""))
	}
}

func writeVM(w io.Writer, paint painter, vm *bangerv1.VM, now time.Time) error {
	spec := vm.GetSpec()
	s := &sheet{paint: paint}
	state := vm.GetState()
	if at := age(now, when(vm.GetChangedAt())); at != "" {
		state += " for " + at
	}
	created := ""
	if at := when(vm.GetCreatedAt()); !at.IsZero() {
		created = at.Format(time.RFC3339) + ", " + age(now, at) + " ago"
	}
	ephemeral := ""
	if vm.GetEphemeral() {
		ephemeral = "when its command ends"
	}
	disks := size(spec.GetDiskSize())
	if disks != "" {
		disks += " each"
	}
	use := ""
	if vm.GetDiskApparent() > 0 {
		use = "take up " + size(vm.GetDiskAllocated()) + " of at most " + size(vm.GetDiskApparent())
		if n := vm.GetSnapshotsAllocated(); n > 0 {
			use += ", snapshots " + size(n)
		}
	}
	s.section(vm.GetName(), "id", vm.GetId(), "state", state, "cause", vm.GetCause(), "created", created, "deleted", ephemeral,
		"directory", vm.GetDirectory())
	s.section("Machine", "vcpus", itoa(spec.GetVcpus()), "memory", size(spec.GetMemory()), "disks", disks, "on this host", use,
		"image", spec.GetImage(), "image digest", vm.GetImageDigest(), "kernel", spec.GetKernel(), "init", spec.GetInit(),
		"network", spec.GetNet(), "published", publishedText(vm), "backend", spec.GetBackend(), "cpu weight", weight(spec.GetCpuWeight()), "io weight", weight(spec.GetIoWeight()),
		"time to live", lasting(spec.GetTtl()), "idle timeout", lasting(spec.GetIdleTimeout()), "auto suspend", lasting(spec.GetAutoSuspend()))
	s.section("Program", "main process", strings.Join(vm.GetMain().GetArgs(), " "), "user", vm.GetMain().GetUser(),
		"directory", vm.GetMain().GetDir(), "image's ports", strings.Join(vm.GetExposedPorts(), ", "))
	s.section("Environment", sortedPairs(spec.GetEnv())...)
	s.section("Labels", sortedPairs(spec.GetLabels())...)
	s.section("Running", "backend", vm.GetBackend(), "because", vm.GetBackendReason(), "accelerator", vm.GetAccelerator(),
		"kernel release", vm.GetKernelRelease(), "boot id", vm.GetBootId(), "monitor pid", pid(vm.GetMonitorPid()),
		"vmm pid", pid(vm.GetVmmPid()))
	var stages []string
	for _, st := range vm.GetStartStages() {
		stages = append(stages, st.GetName(), duration(st.GetElapsed().AsDuration()))
	}
	s.section("Last start", stages...)
	_, err := io.WriteString(w, s.b.String())
	return err
}

// weight is empty for the default.
func weight(n int32) string {
	if n == 0 || n == microvm.DefaultWeight {
		return ""
	}
	return itoa(n)
}

// lasting is empty for none.
func lasting(d *durationpb.Duration) string {
	if d.AsDuration() == 0 {
		return ""
	}
	return d.AsDuration().String()
}

func sortedPairs(m map[string]string) []string {
	var pairs []string
	for _, key := range slices.Sorted(maps.Keys(m)) {
		pairs = append(pairs, key, m[key])
	}
	return pairs
}

func pid(n int64) string {
	if n <= 0 {
		return ""
	}
	return itoa(n)
}
