package cli

import (
	"context"
	"io"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/rpcclient"
)

const snapshotHelp = `A snapshot is a moment of a VM to return to: its memory, its disks and its processes. It takes up room beside the VM, and
goes with it.

  banger vm snapshot create devbox before-upgrade
  banger vm snapshot restore devbox before-upgrade

What next: restore --as NAME makes a new VM of one; list shows what there is.`

// snapshotView is a snapshot in JSON and YAML.
type snapshotView struct {
	Name      string     `json:"name"`
	VM        string     `json:"vm"`
	CreatedAt *time.Time `json:"created_at"`
	Size      int64      `json:"size"`
	Memory    int64      `json:"memory"`
	VCPUs     int32      `json:"vcpus"`
	Backend   string     `json:"backend"`
	Version   string     `json:"version"`
	Problem   string     `json:"problem"`
}

func viewSnapshot(s *bangerv1.Snapshot) snapshotView {
	return snapshotView{
		Name: s.GetName(), VM: s.GetVm(), CreatedAt: stamp(s.GetCreatedAt()), Size: s.GetSize(), Memory: s.GetMemory(), VCPUs: s.GetVcpus(),
		Backend: s.GetBackend(), Version: s.GetVersion(), Problem: s.GetProblem(),
	}
}

func newSnapshot(a *app) *cobra.Command {
	group := newGroup("snapshot", "Points of a VM to return to", snapshotHelp,
		"  banger vm snapshot create devbox before-upgrade\n  banger vm snapshot list devbox\n  banger vm snapshot restore devbox before-upgrade --as second")
	group.AddCommand(newSnapshotCreate(a), newSnapshotList(a), newSnapshotShow(a), newSnapshotRestore(a), newSnapshotDelete(a))
	return group
}

func newSnapshotCreate(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "create <vm> [name]",
		Short: "Save a running VM as a point to return to",
		Long: `Save a VM that runs or is paused. It stands still for some milliseconds and goes on. Without a name the snapshot is named
by the time. Its name is printed.`,
		Example:           "  banger vm snapshot create devbox before-upgrade",
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: completer{a}.oneVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &bangerv1.CreateSnapshotRequest{Vm: args[0]}
			if len(args) == 2 {
				req.Name = args[1]
			}
			last, err := callAndWait(cmd.Context(), a, "snapshot "+args[0],
				func(ctx context.Context, c *rpcclient.Client) (*connect.ServerStreamForClient[bangerv1.Event], error) {
					return c.Snapshots.CreateSnapshot(ctx, connect.NewRequest(req))
				})
			if err != nil {
				return err
			}
			return a.printLine(last.GetSnapshot().GetName())
		},
	}
}

// callAndWait makes a long call and returns its last event.
func callAndWait(
	ctx context.Context, a *app, what string, open func(context.Context, *rpcclient.Client) (*connect.ServerStreamForClient[bangerv1.Event], error),
) (*bangerv1.Event, error) {
	client, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	d := a.newDisplay()
	defer d.keep()
	return a.followOrLeave(ctx, client, d, "", what,
		func(ctx context.Context) (*connect.ServerStreamForClient[bangerv1.Event], error) {
			return open(ctx, client)
		})
}

func newSnapshotList(a *app) *cobra.Command {
	o := &outputFlags{}
	cmd := &cobra.Command{
		Use:               "list <vm>",
		Short:             "List the snapshots of a VM",
		Long:              "List the snapshots of a VM, oldest first. One that can't be restored says why.",
		Example:           "  banger vm snapshot list devbox\n  banger vm snapshot list devbox --output json",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completer{a}.oneVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			return listSnapshots(cmd.Context(), a, o, args[0], "")
		},
	}
	o.register(cmd)
	o.registerIDs(cmd, "names")
	return cmd
}

func newSnapshotShow(a *app) *cobra.Command {
	o := &outputFlags{}
	cmd := &cobra.Command{
		Use:               "show <vm> <snapshot>",
		Short:             "Show a snapshot",
		Long:              "Show what is known of a snapshot. JSON and YAML are always a list.",
		Example:           "  banger vm snapshot show devbox before-upgrade",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completer{a}.oneVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			return listSnapshots(cmd.Context(), a, o, args[0], args[1])
		},
	}
	o.register(cmd)
	return cmd
}

// listSnapshots lists the snapshots of a VM, or one of them.
func listSnapshots(ctx context.Context, a *app, o *outputFlags, vm, name string) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	res, err := client.Snapshots.ListSnapshots(ctx, connect.NewRequest(&bangerv1.ListSnapshotsRequest{Vm: vm}))
	if err != nil {
		return err
	}
	views := []snapshotView{}
	for _, s := range res.Msg.GetSnapshots() {
		if name == "" || s.GetName() == name {
			views = append(views, viewSnapshot(s))
		}
	}
	if name != "" && len(views) == 0 {
		return usagef("VM %s has no snapshot %q", vm, name).withHint("banger vm snapshot list %s", vm)
	}
	if o.ids {
		for _, v := range views {
			if err := a.printLine(v.Name); err != nil {
				return err
			}
		}
		return nil
	}
	return o.write(a, views, func(w io.Writer) error {
		t := &table{head: []string{"NAME", "AGE", "SIZE", "VCPU", "MEMORY", "BACKEND", "PROBLEM"}}
		for _, v := range views {
			made := ""
			if v.CreatedAt != nil {
				made = age(time.Now(), *v.CreatedAt)
			}
			t.add(v.Name, made, size(v.Size), itoa(v.VCPUs), size(v.Memory), v.Backend+" "+v.Version, v.Problem)
		}
		return t.write(w)
	})
}

func newSnapshotRestore(a *app) *cobra.Command {
	req := &bangerv1.RestoreSnapshotRequest{}
	cmd := &cobra.Command{
		Use:   "restore <vm> <snapshot>",
		Short: "Return to a snapshot",
		Long: `Let a VM go on from one of its snapshots: what it is now, disks included, is lost. One that runs is ended first, with --force.
With --as a new VM is made that goes on from there, and the VM stays as it is. The name of the VM is printed.`,
		Example:           "  banger vm snapshot restore devbox before-upgrade --force\n  banger vm snapshot restore devbox before-upgrade --as second",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completer{a}.oneVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Vm, req.Name = args[0], args[1]
			last, err := callAndWait(cmd.Context(), a, "restore "+args[0],
				func(ctx context.Context, c *rpcclient.Client) (*connect.ServerStreamForClient[bangerv1.Event], error) {
					return c.Snapshots.RestoreSnapshot(ctx, connect.NewRequest(req))
				})
			if err != nil {
				return err
			}
			return a.printLine(last.GetVm().GetName())
		},
	}
	cmd.Flags().StringVar(&req.As, "as", "", "`name` of a new VM to make of it")
	cmd.Flags().BoolVarP(&req.Force, "force", "f", false, "also if the VM runs")
	cmd.MarkFlagsMutuallyExclusive("as", "force")
	complete(cmd, "as", noCompletion)
	return cmd
}

func newSnapshotDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "delete <vm> <snapshot>...",
		Short:             "Delete snapshots",
		Long:              "Delete snapshots of a VM. VMs that were made of them go on.",
		Example:           "  banger vm snapshot delete devbox before-upgrade",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: completer{a}.oneVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			for _, name := range args[1:] {
				req := &bangerv1.DeleteSnapshotRequest{Vm: args[0], Name: name}
				if _, err := client.Snapshots.DeleteSnapshot(cmd.Context(), connect.NewRequest(req)); err != nil {
					return err
				}
				if err := a.printLine(name); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
