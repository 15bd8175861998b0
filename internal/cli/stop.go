package cli

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/rpcclient"
)

func newStop(a *app) *cobra.Command {
	timeout := 10 * time.Second
	cmd := &cobra.Command{
		Use:   "stop <vm>...",
		Short: "Shut VMs down; their disks are kept",
		Long: `Shut VMs down. The guest writes its file systems out and shuts down; if it needs longer than --timeout, it is
killed. That is no error.`,
		Example: "  banger stop devbox\n  banger stop --timeout 30s devbox testbox",
		Args:    someOf("VM"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if timeout < 0 {
				return usagef("bad --timeout %s", timeout).withHint("use 0s or more")
			}
			return runStop(cmd.Context(), a, args, timeout)
		},
		ValidArgsFunction: completer{a}.vms,
	}
	cmd.Flags().DurationVar(&timeout, "timeout", timeout, "how long the guest may take before it is killed")
	return cmd
}

func runStop(ctx context.Context, a *app, refs []string, timeout time.Duration) error {
	return a.onEach(ctx, "stop", refs,
		func(ctx context.Context, c *rpcclient.Client, vm string) (*connect.ServerStreamForClient[bangerv1.Event], error) {
			return c.VMs.Stop(ctx, connect.NewRequest(&bangerv1.StopRequest{Vm: vm, Timeout: durationpb.New(timeout)}))
		})
}
