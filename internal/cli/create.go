package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
)

type createOptions struct {
	spec    specFlags
	noStart bool
	timings timingsFlag
}

func newCreate(a *app) *cobra.Command {
	o := &createOptions{}
	cmd := &cobra.Command{
		Use:   "create [flags]",
		Short: "Create a VM and start it, without attaching to it",
		Long: `Create a VM, start it and print its name.

If its image has a program (an entrypoint, or a command that is more than a shell), that is the VM's main process: its
output goes to the console (banger logs), and its end stops the VM.`,
		Example: "  banger vm create --name devbox\n  banger vm create --name later --no-start",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			create, err := o.spec.request(a, cmd)
			if err != nil {
				return err
			}
			create.Start, create.Main = !o.noStart, &bangerv1.Process{}
			return runCreate(cmd.Context(), a, create, &o.timings)
		},
		ValidArgsFunction: noCompletion,
	}
	o.spec.register(a, cmd)
	cmd.Flags().BoolVar(&o.noStart, "no-start", false, "only create it")
	o.timings.register(cmd)
	return cmd
}

func runCreate(ctx context.Context, a *app, create *bangerv1.CreateRequest, timings *timingsFlag) error {
	d := a.newDisplay()
	defer d.keep()
	defer timings.begin(a, d)()
	client, err := a.connectTimed(ctx, d)
	if err != nil {
		return err
	}
	last, err := followOrCancel(ctx, client, d, "",
		func(ctx context.Context) (*connect.ServerStreamForClient[bangerv1.Event], error) {
			return client.VMs.Create(ctx, connect.NewRequest(create))
		})
	d.keep()
	if err != nil {
		return err
	}
	vm := last.GetVm()
	d.recordStart(vm)
	a.note("%s", summary(vm))
	return a.printLine(vm.GetName())
}
