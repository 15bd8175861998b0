package cli

import (
	"bufio"
	"context"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/rpcclient"
)

func newPrune(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Delete every VM that is not running",
		Long: `Delete every VM that is not running, with its disks. It asks first, unless -f is given; without a terminal to ask on,
-f is needed. A running VM is never touched.`,
		Example:           "  banger vm prune\n  banger vm prune -f",
		Args:              noArgs,
		ValidArgsFunction: noCompletion,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runPrune(cmd.Context(), a, force) },
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	return cmd
}

func runPrune(ctx context.Context, a *app, force bool) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	list, err := client.VMs.List(ctx, connect.NewRequest(&bangerv1.ListRequest{}))
	if err != nil {
		return err
	}
	var ids, names []string
	for _, vm := range list.Msg.GetVms() {
		if s := vm.GetState(); s == "stopped" || s == "failed" {
			ids, names = append(ids, vm.GetId()), append(names, vm.GetName())
		}
	}
	if len(ids) == 0 {
		a.note("there is no VM that is not running")
		return nil
	}
	if !force {
		if !isTerminal(a.sys.Stdin) || !isTerminal(a.sys.Stderr) {
			return usagef("%d VMs would be deleted, and there is no terminal to ask on", len(ids)).withHint("banger vm prune -f")
		}
		_, _ = fmt.Fprintf(a.sys.Stderr, "Delete %s with all that is in them? [y/N] ", printable(strings.Join(names, ", ")))
		answer, _ := bufio.NewReader(a.sys.Stdin).ReadString('\n')
		if s := strings.ToLower(strings.TrimSpace(answer)); s != "y" && s != "yes" {
			return exitStatus(exitFailed)
		}
	}
	// Not forced: one that has been started meanwhile is refused.
	return a.onEach(ctx, "delete", ids,
		func(ctx context.Context, c *rpcclient.Client, vm string) (*connect.ServerStreamForClient[bangerv1.Event], error) {
			return c.VMs.Delete(ctx, connect.NewRequest(&bangerv1.DeleteRequest{Vm: vm}))
		})
}
