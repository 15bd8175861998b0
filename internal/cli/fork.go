package cli

import (
	"context"
	"errors"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/microvm"
)

// maxForks is how many copies the daemon makes at once.
const maxForks = 100

func newFork(a *app) *cobra.Command {
	var labels, names []string
	cmd := &cobra.Command{
		Use:   "fork <vm> [count]",
		Short: "Make copies of a running VM, memory included",
		Long: `Make copies of a VM that runs or is paused: its memory, its disks and its processes as of one moment. It stands still for some
milliseconds and goes on. Each copy is a machine of its own: name, machine id, boot id, SSH host keys and random numbers
differ. Connections of the VM are dead in its copies, and commands that somebody is attached to end there.

The names of the copies are printed. Without --name they are the VM's with -1, -2, ... Ports that the VM publishes are not
published by its copies.`,
		Example:           "  banger fork devbox\n  banger fork devbox 10 --label experiment=a\n  banger fork devbox --name before-upgrade",
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: completer{a}.oneVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &bangerv1.ForkRequest{Vm: args[0], Names: names, Count: 1}
			if len(args) == 2 {
				n, err := parseCount(args[1])
				if err != nil {
					return err
				}
				if len(names) > 0 && n != len(names) {
					return usagef("%d copies and %d names", n, len(names)).withHint("leave the number out")
				}
				req.Count = int32(n) // bounded above
			}
			for _, name := range names {
				if err := microvm.ValidateName(name); err != nil {
					return asUsage(err)
				}
			}
			var err error
			if req.Labels, err = pairs("label", labels); err != nil {
				return err
			}
			return runFork(cmd.Context(), a, req)
		},
	}
	cmd.Flags().StringArrayVar(&names, "name", nil, "`name` of a copy; may be repeated")
	cmd.Flags().StringArrayVar(&labels, "label", nil, "`KEY=VALUE` to know the copies by, beside the VM's labels; may be repeated")
	complete(cmd, "name", noCompletion)
	complete(cmd, "label", noCompletion)
	return cmd
}

func parseCount(text string) (int, error) {
	n := 0
	for _, c := range text {
		if c < '0' || c > '9' || n > maxForks {
			return 0, usagef("bad number of copies %q", text).withHint("use 1 to %d", maxForks)
		}
		n = 10*n + int(c-'0')
	}
	if n < 1 || n > maxForks {
		return 0, usagef("bad number of copies %q", text).withHint("use 1 to %d", maxForks)
	}
	return n, nil
}

func runFork(ctx context.Context, a *app, req *bangerv1.ForkRequest) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	d := a.newDisplay()
	defer d.keep()
	last, err := a.followOrLeave(ctx, client, d, "", "fork "+req.GetVm(),
		func(ctx context.Context) (*connect.ServerStreamForClient[bangerv1.Event], error) {
			return client.Snapshots.Fork(ctx, connect.NewRequest(req))
		})
	d.keep()
	if err != nil {
		return err
	}
	for _, vm := range last.GetForks().GetVms() {
		if err := a.printLine(vm.GetName()); err != nil {
			return err
		}
	}
	var failed []error
	for _, text := range last.GetForks().GetErrors() {
		failed = append(failed, fault.New(fault.Internal, "%s", text))
	}
	return errors.Join(failed...)
}
