package cli

import (
	"context"
	"path/filepath"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
)

func newImageRegister(a *app) *cobra.Command {
	req := &bangerv1.RegisterImageRequest{}
	cmd := &cobra.Command{
		Use:   "register --name <name> --rootfs <file>",
		Short: "Make an image of a file that stays where it is",
		Long: `Make an image of a file with an ext4 file system, which stays where it is and is not copied. The file must not change:
that it is still there, with the size and time that it had, is checked whenever it is used. banger image promote copies it.

An image that needs a kernel of its own names it with --kernel-ref: its VMs boot with that unless they are given --kernel. Import
the kernel first.`,
		Example: `  banger image register --name mine --rootfs ./rootfs.ext4
  banger kernel import --name custom ./bzImage
  banger image register --name mine --rootfs ./rootfs.ext4 --kernel-ref custom`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runImageRegister(cmd.Context(), a, req)
		},
		ValidArgsFunction: noCompletion,
	}
	cmd.Flags().StringVar(&req.Name, "name", "", "what to call it")
	cmd.Flags().StringVar(&req.Rootfs, "rootfs", "", "file with an ext4 file system")
	cmd.Flags().StringVar(&req.Kernel, "kernel-ref", "", "kernel that it boots with (default: the configured one)")
	complete(cmd, "name", noCompletion)
	complete(cmd, "kernel-ref", completer{a}.kernels)
	return cmd
}

func runImageRegister(ctx context.Context, a *app, req *bangerv1.RegisterImageRequest) error {
	if req.GetName() == "" || req.GetRootfs() == "" {
		return usagef("an image is registered with --name and --rootfs").withHint("banger image register --name NAME --rootfs FILE")
	}
	var err error
	if req.Rootfs, err = filepath.Abs(req.GetRootfs()); err != nil {
		return err
	}
	d := a.newDisplay()
	defer d.keep()
	client, err := a.connectTimed(ctx, d)
	if err != nil {
		return err
	}
	last, err := followOrCancel(ctx, client, d, "", func(ctx context.Context) (*connect.ServerStreamForClient[bangerv1.Event], error) {
		return client.Images.RegisterImage(ctx, connect.NewRequest(req))
	})
	d.keep()
	if err != nil {
		return err
	}
	return a.printLine(last.GetImage().GetName() + " " + last.GetImage().GetDigest())
}
