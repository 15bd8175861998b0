package cli

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
)

func newStart(a *app) *cobra.Command {
	var timings bool
	cmd := &cobra.Command{
		Use:               "start <vm>...",
		Short:             "Boot VMs that are stopped",
		Long:              "Boot VMs that are stopped, and wait until commands can run in them.",
		Example:           "  banger start devbox\n  banger start devbox testbox",
		Args:              someOf("VM"),
		RunE:              func(cmd *cobra.Command, args []string) error { return runStart(cmd.Context(), a, args, timings) },
		ValidArgsFunction: completer{a}.vms,
	}
	cmd.Flags().BoolVar(&timings, "timings", false, "at the end, print how long each stage took")
	return cmd
}

func runStart(ctx context.Context, a *app, refs []string, timings bool) error {
	d := a.newDisplay()
	defer d.keep()
	began := time.Now()
	if timings {
		defer func() { d.timings(a.sys.Stderr, time.Since(began)) }()
	}
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
