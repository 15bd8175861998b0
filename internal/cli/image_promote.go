package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
)

func newImagePromote(a *app) *cobra.Command {
	req := &bangerv1.PromoteImageRequest{}
	cmd := &cobra.Command{
		Use:   "promote <vm or registered image>",
		Short: "Make an image of a VM, or copy a registered one into the store",
		Long: `Make an image of a VM that does not run: the VM's image with all that was changed since, and the VM's /root, with whatever
secrets are in it, unless --no-home is given. The VM stays as it is. Host name, machine id and name servers are again those of
the VM's image; what container engines keep in /var/lib (docker, containerd, containers) is not part of a VM's root and is left
out.

A registered image is copied: it keeps its name, and the file that was registered is not needed any more, except by VMs that
run.`,
		Example:           "  banger vm stop devbox\n  banger image promote devbox --name devtools\n  banger run --image devtools",
		Args:              oneVM,
		ValidArgsFunction: completer{a}.oneVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Vm = args[0]
			return runImagePromote(cmd.Context(), a, req)
		},
	}
	cmd.Flags().StringVar(&req.Name, "name", "", "what to call it (default: the VM's name)")
	cmd.Flags().BoolVar(&req.NoHome, "no-home", false, "leave /root as the VM's image has it")
	complete(cmd, "name", noCompletion)
	return cmd
}

func runImagePromote(ctx context.Context, a *app, req *bangerv1.PromoteImageRequest) error {
	d := a.newDisplay()
	defer d.keep()
	client, err := a.connectTimed(ctx, d)
	if err != nil {
		return err
	}
	last, err := followOrCancel(ctx, client, d, "", func(ctx context.Context) (*connect.ServerStreamForClient[bangerv1.Event], error) {
		return client.Images.PromoteImage(ctx, connect.NewRequest(req))
	})
	d.keep()
	if err != nil {
		return err
	}
	return a.printLine(last.GetImage().GetName() + " " + last.GetImage().GetDigest())
}
