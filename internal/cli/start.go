package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
)

func newStart(a *app) *cobra.Command {
	var timings timingsFlag
	cmd := &cobra.Command{
		Use:               "start <vm>...",
		Short:             "Boot VMs that are stopped",
		Long:              "Boot VMs that are stopped, and wait until commands can run in them.",
		Example:           "  banger start devbox\n  banger start devbox testbox",
		Args:              someOf("VM"),
		RunE:              func(cmd *cobra.Command, args []string) error { return runStart(cmd.Context(), a, args, &timings) },
		ValidArgsFunction: completer{a}.vms,
	}
	timings.register(cmd)
	return cmd
}

func runStart(ctx context.Context, a *app, refs []string, timings *timingsFlag) error {
	d := a.newDisplay()
	defer d.keep()
	defer timings.begin(a, d)()
	client, err := a.connectTimed(ctx, d)
	if err != nil {
		return err
	}
	all, err := targets(ctx, client, refs)
	if err != nil {
		return err
	}
	return forEach(ctx, a, d, "start", all, func(vm *bangerv1.VM) (string, error) {
		_, err := followOrCancel(ctx, client, d, owner(all, vm),
			func(ctx context.Context) (*connect.ServerStreamForClient[bangerv1.Event], error) {
				return client.VMs.Start(ctx, connect.NewRequest(&bangerv1.StartRequest{Vm: vm.GetId()}))
			})
		return vm.GetName(), err
	}, a.printLine)
}
