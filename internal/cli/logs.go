package cli

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
)

func newLogs(a *app) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:               "logs <vm>",
		Short:             "Print a VM's console log",
		Long:              "Print what the VM has written to its console: the kernel's messages and those of its services.",
		Example:           "  banger logs devbox\n  banger logs --follow devbox",
		Args:              oneVM,
		RunE:              func(cmd *cobra.Command, args []string) error { return runLogs(cmd.Context(), a, args[0], follow) },
		ValidArgsFunction: completer{a}.oneVM,
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on as more is written, until Ctrl-C")
	return cmd
}

func runLogs(ctx context.Context, a *app, vm string, follow bool) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	stream, err := client.VMs.Logs(ctx, connect.NewRequest(&bangerv1.LogsRequest{Vm: vm, Follow: follow}))
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		if _, err := a.sys.Stdout.Write(stream.Msg().GetData()); err != nil {
			return fmt.Errorf("print the log: %w", err)
		}
	}
	return stream.Err()
}
