package cli

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
)

func newWait(a *app) *cobra.Command {
	condition, timeout := "ready", 5*time.Minute
	cmd := &cobra.Command{
		Use:   "wait <vm>...",
		Short: "Wait until VMs meet a condition",
		Long: `Wait until VMs are running, ready (commands can be run), stopped or deleted, or something in them listens on a TCP
port. After --timeout it gives up with exit status 125.`,
		Example:           "  banger vm wait devbox\n  banger vm wait devbox --for port:3000 --timeout 30s",
		Args:              someOf("VM"),
		ValidArgsFunction: completer{a}.vms,
		RunE: func(cmd *cobra.Command, args []string) error {
			if timeout <= 0 {
				return usagef("bad --timeout %s", timeout).withHint("use a time such as 30s")
			}
			return runWait(cmd.Context(), a, args, condition, timeout)
		},
	}
	cmd.Flags().StringVar(&condition, "for", condition, "running, ready, stopped, deleted or port:N")
	cmd.Flags().DurationVar(&timeout, "timeout", timeout, "how long to wait")
	complete(cmd, "for", fixed("running", "ready", "stopped", "deleted", "port:"))
	return cmd
}

func runWait(ctx context.Context, a *app, refs []string, condition string, timeout time.Duration) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	all, err := targets(ctx, client, refs)
	if err != nil {
		return err
	}
	limit, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	d := a.newDisplay()
	defer d.keep()
	return forEach(ctx, a, d, "wait for", all, func(vm *bangerv1.VM) (string, error) {
		_, err := client.VMs.Wait(limit, connect.NewRequest(&bangerv1.WaitRequest{Vm: vm.GetId(), Condition: condition}))
		if fault.Is(err, fault.Timeout) {
			err = fault.New(fault.Timeout, "it is not %s after %s", condition, timeout).
				WithHint("see its state: banger vm show %s", vm.GetName())
		}
		return vm.GetName(), err
	}, a.printLine)
}
