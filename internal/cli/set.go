package cli

import (
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/microvm"
)

// setOptions are the flags that change a VM.
type setOptions struct {
	vcpus    int
	memory   sizeFlag
	diskSize sizeFlag
	ttl      time.Duration
	idle     time.Duration
	labels   []string
	weights  weightFlags
	output   outputFlags
}

func newSet(a *app) *cobra.Command {
	o := &setOptions{}
	cmd := &cobra.Command{
		Use:   "set <vm>... [flags]",
		Short: "Change VMs: CPUs, memory, disks, time limits, labels",
		Long: `Change VMs. For each value it says whether it took effect now or will at the next start.

Disks only grow. They do so while the VM runs, with the file systems on them. A running VM also gives up
memory, and gets it back up to what it was started with; more memory and the number of CPUs wait for its
next start. Time limits hold at once, and count from the VM's start.`,
		Example: "  banger vm set devbox --disk-size 20G\n  banger vm set devbox --memory 2G --vcpu 2\n" +
			"  banger vm set devbox --label team=web --label old-",
		Args: someOf("VM"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := o.request(cmd)
			if err != nil {
				return err
			}
			return runSet(cmd.Context(), a, args, req, &o.output)
		},
		ValidArgsFunction: completer{a}.vms,
	}
	f := cmd.Flags()
	f.IntVar(&o.vcpus, "vcpu", 0, "`number` of virtual CPUs")
	f.Var(&o.memory, "memory", "memory: 512M, 4GiB")
	f.Var(&o.diskSize, "disk-size", "size that each of the two writable disks can grow to: 8G")
	f.DurationVar(&o.ttl, "ttl", 0, "shut the VM down this long after each start: 8h; 0: never")
	f.DurationVar(&o.idle, "idle-timeout", 0, "shut the VM down when nothing has happened in it for so long: 30m; 0: never")
	o.weights.register(cmd)
	f.StringArrayVar(&o.labels, "label", nil, "`KEY=VALUE` to set a label, KEY- to remove it; may be repeated")
	o.output.register(cmd)
	return cmd
}

// request checks the flags and makes a request of them, for no VM yet.
func (o *setOptions) request(cmd *cobra.Command) (*bangerv1.SetRequest, error) {
	given := cmd.Flags().Changed
	if !slices.ContainsFunc([]string{"vcpu", "memory", "disk-size", "ttl", "idle-timeout", "cpu-weight", "io-weight", "label"}, given) {
		return nil, usagef("nothing to change").withHint("%s --help", cmd.CommandPath())
	}
	if err := o.weights.check(cmd); err != nil {
		return nil, err
	}
	req := &bangerv1.SetRequest{CpuWeight: o.weights.cpu, IoWeight: o.weights.io}
	if given("vcpu") {
		if o.vcpus < 1 || o.vcpus > microvm.MaxVCPUs {
			return nil, usagef("bad number of vCPUs %d", o.vcpus).withHint("use 1 to %d", microvm.MaxVCPUs)
		}
		n := int32(o.vcpus) // checked above
		req.Vcpus = &n
	}
	if given("memory") {
		n := int64(o.memory)
		if n < microvm.MinMemory || n > microvm.MaxMemory {
			return nil, usagef("bad memory size %s", o.memory.String()).
				withHint("use %s to %s", microvm.FormatSize(microvm.MinMemory), microvm.FormatSize(microvm.MaxMemory))
		}
		req.Memory = &n
	}
	if given("disk-size") {
		n := int64(o.diskSize)
		if n < microvm.MinDiskSize || n > microvm.MaxDiskSize {
			return nil, usagef("bad disk size %s", o.diskSize.String()).
				withHint("use %s to %s", microvm.FormatSize(microvm.MinDiskSize), microvm.FormatSize(microvm.MaxDiskSize))
		}
		req.DiskSize = &n
	}
	if o.ttl < 0 || o.idle < 0 {
		return nil, usagef("a negative time to live or idle timeout").withHint("use a time such as 30m")
	}
	if given("ttl") {
		req.Ttl = durationpb.New(o.ttl)
	}
	if given("idle-timeout") {
		req.IdleTimeout = durationpb.New(o.idle)
	}
	return req, o.addLabels(req)
}

// addLabels reads KEY=VALUE and KEY-.
func (o *setOptions) addLabels(req *bangerv1.SetRequest) error {
	var set []string
	for _, text := range o.labels {
		if key, remove := strings.CutSuffix(text, "-"); remove && key != "" && !strings.Contains(text, "=") {
			req.RemoveLabels = append(req.RemoveLabels, key)
			continue
		}
		set = append(set, text)
	}
	labels, err := pairs("label", set)
	req.Labels = labels
	return err
}

// setView is what became of one value of one VM.
type setView struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Key    string `json:"key"`
	Value  string `json:"value"`
	Effect string `json:"effect"` // now, next-start, unchanged
	Detail string `json:"detail"`
}

func runSet(ctx context.Context, a *app, refs []string, req *bangerv1.SetRequest, o *outputFlags) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	all, err := targets(ctx, client, refs)
	if err != nil {
		return err
	}
	views := []setView{}
	failed := forEach(ctx, a, a.newDisplay(), "set", all, func(vm *bangerv1.VM) (*bangerv1.SetResponse, error) {
		res, err := client.VMs.Set(ctx, connect.NewRequest(&bangerv1.SetRequest{
			Vm: vm.GetId(), Vcpus: req.Vcpus, Memory: req.Memory, DiskSize: req.DiskSize,
			Labels: req.GetLabels(), RemoveLabels: req.GetRemoveLabels(), Ttl: req.GetTtl(), IdleTimeout: req.GetIdleTimeout(),
			CpuWeight: req.GetCpuWeight(), IoWeight: req.GetIoWeight(),
		}))
		if err != nil {
			return nil, err
		}
		return res.Msg, nil
	}, func(res *bangerv1.SetResponse) error {
		for _, r := range res.GetResults() {
			views = append(views, setView{
				ID: res.GetVm().GetId(), Name: res.GetVm().GetName(),
				Key: r.GetKey(), Value: r.GetValue(), Effect: r.GetEffect(), Detail: r.GetDetail(),
			})
		}
		return nil
	})
	if len(views) > 0 || o.format.value != "table" {
		if err := o.write(a, views, func(w io.Writer) error { return writeSetTable(w, views) }); err != nil {
			return err
		}
	}
	return failed
}

func writeSetTable(w io.Writer, views []setView) error {
	t := &table{head: []string{"NAME", "SETTING", "VALUE", "EFFECT", "DETAIL"}}
	for _, v := range views {
		t.add(v.Name, v.Key, v.Value, v.Effect, v.Detail)
	}
	return t.write(w)
}
