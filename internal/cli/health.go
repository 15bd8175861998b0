package cli

import (
	"context"
	"io"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
)

// healthView is how a VM does.
type healthView struct {
	Name    string      `json:"name"`
	Healthy bool        `json:"healthy"`
	Checks  []checkView `json:"checks"`
}

func newHealth(a *app) *cobra.Command {
	var out outputFlags
	cmd := &cobra.Command{
		Use:   "health <vm>...",
		Short: "Ask the monitor and the agent of VMs how they do",
		Long: `Ask the monitor of each VM, and the agent in it, how they do. The exit status is 1 if one of them is not well.
`,
		Example:           "  banger vm health devbox\n  banger vm health devbox --output json",
		Args:              someOf("VM"),
		ValidArgsFunction: completer{a}.vms,
		RunE:              func(cmd *cobra.Command, args []string) error { return runHealth(cmd.Context(), a, args, out) },
	}
	out.register(cmd)
	return cmd
}

func runHealth(ctx context.Context, a *app, refs []string, out outputFlags) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	all, err := targets(ctx, client, refs)
	if err != nil {
		return err
	}
	d := a.newDisplay()
	defer d.keep()
	views := []healthView{}
	err = forEach(ctx, a, d, "look at", all, func(vm *bangerv1.VM) (healthView, error) {
		res, err := client.VMs.Health(ctx, connect.NewRequest(&bangerv1.HealthRequest{Vm: vm.GetId()}))
		if err != nil {
			return healthView{}, err
		}
		v := healthView{Name: vm.GetName(), Healthy: res.Msg.GetHealthy()}
		for _, c := range res.Msg.GetChecks() {
			v.Checks = append(v.Checks, checkView{c.GetName(), c.GetResult(), c.GetDetail(), c.GetFix()})
		}
		return v, nil
	}, func(v healthView) error {
		views = append(views, v)
		return nil
	})
	if err != nil {
		return err
	}
	if err := out.write(a, views, func(w io.Writer) error { return writeHealth(w, views) }); err != nil {
		return err
	}
	for _, v := range views {
		if !v.Healthy {
			return exitStatus(exitChecksFailed)
		}
	}
	return nil
}

func writeHealth(w io.Writer, views []healthView) error {
	t := &table{head: []string{"NAME", "CHECK", "RESULT", "DETAIL"}}
	for _, v := range views {
		for _, c := range v.Checks {
			t.add(v.Name, c.Name, c.Result, c.Detail)
		}
	}
	return t.write(w)
}
