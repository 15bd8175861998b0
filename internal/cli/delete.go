package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/rpcclient"
)

func newDelete(a *app, name string) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               name + " <vm>...",
		Short:             "Delete VMs with their disks and every trace of them",
		Long:              "Delete VMs with their disks and every trace of them. One that is running is refused without --force.",
		Example:           "  banger rm devbox\n  banger rm --force devbox testbox",
		Args:              someOf("VM"),
		RunE:              func(cmd *cobra.Command, args []string) error { return runDelete(cmd.Context(), a, args, force) },
		ValidArgsFunction: completer{a}.vms,
	}
	if name != "rm" {
		cmd.Example = "  banger vm delete devbox\n  banger vm delete --force devbox testbox"
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also if it is running")
	return cmd
}

func runDelete(ctx context.Context, a *app, refs []string, force bool) error {
	return a.onEach(ctx, "delete", refs,
		func(ctx context.Context, c *rpcclient.Client, vm string) (*connect.ServerStreamForClient[bangerv1.Event], error) {
			return c.VMs.Delete(ctx, connect.NewRequest(&bangerv1.DeleteRequest{Vm: vm, Force: force}))
		})
}
