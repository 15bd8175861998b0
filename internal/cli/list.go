package cli

import (
	"context"
	"io"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/microvm"
)

func newList(a *app, name string) *cobra.Command {
	o := &outputFlags{}
	cmd := &cobra.Command{
		Use:               name,
		Short:             "List the VMs",
		Long:              "List all VMs, running or not.",
		Example:           "  banger ps\n  banger ps -q\n  banger ps --output json",
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runList(cmd.Context(), a, o) },
		ValidArgsFunction: noCompletion,
	}
	o.register(cmd)
	o.registerIDs(cmd, "ids")
	return cmd
}

func runList(ctx context.Context, a *app, o *outputFlags) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	res, err := client.VMs.List(ctx, connect.NewRequest(&bangerv1.ListRequest{}))
	if err != nil {
		return err
	}
	vms := res.Msg.GetVms()
	if o.ids {
		for _, vm := range vms {
			if err := a.printLine(vm.GetId()); err != nil {
				return err
			}
		}
		return nil
	}
	views := make([]vmView, len(vms))
	for i, vm := range vms {
		views[i] = viewVM(vm)
	}
	return o.write(a, views, func(w io.Writer) error { return writeVMTable(w, a.paint(w), vms, time.Now()) })
}

func writeVMTable(w io.Writer, paint painter, vms []*bangerv1.VM, now time.Time) error {
	const stateColumn = 2
	t := &table{
		head: []string{"NAME", "ID", "STATE", "IMAGE", "VCPU", "MEMORY", "AGE", "CAUSE"},
		style: func(column int, cell string) string {
			if column == stateColumn {
				return paintState(paint, cell)
			}
			return cell
		},
	}
	for _, vm := range vms {
		t.add(vm.GetName(), vm.GetId(), vm.GetState(), vm.GetSpec().GetImage(), itoa(vm.GetSpec().GetVcpus()),
			size(vm.GetSpec().GetMemory()), age(now, when(vm.GetCreatedAt())), vm.GetCause())
	}
	return t.write(w)
}

func paintState(paint painter, state string) string {
	switch microvm.State(state) {
	case microvm.Running:
		return paint.green(state)
	case microvm.Failed:
		return paint.red(state)
	case microvm.Paused, microvm.Suspended, microvm.Creating, microvm.Starting, microvm.Stopping, microvm.Deleting:
		return paint.yellow(state)
	case microvm.Stopped:
	}
	return state
}
