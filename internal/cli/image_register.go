package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/rpcclient"
)

func newImageRegister(a *app) *cobra.Command {
	req := &bangerv1.RegisterImageRequest{}
	var kernel string
	cmd := &cobra.Command{
		Use:   "register --name <name> --rootfs <file>",
		Short: "Make an image of a file that stays where it is",
		Long: `Make an image of a file with an ext4 file system, which stays where it is and is not copied. The file must not change:
that it is still there, with the size and time that it had, is checked whenever it is used. banger image promote copies it.

An image that needs a kernel of its own names it with --kernel-ref: its VMs boot with that unless they are given --kernel. With
--kernel a kernel is imported under the image's name first, as banger kernel import does it. There is no initrd to name: banger
makes its own for every kernel.`,
		Example: `  banger image register --name mine --rootfs ./rootfs.ext4
  banger image register --name mine --rootfs ./rootfs.ext4 --kernel ./bzImage
  banger image register --name mine --rootfs ./rootfs.ext4 --kernel-ref debian-cloud`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runImageRegister(cmd.Context(), a, req, kernel)
		},
		ValidArgsFunction: noCompletion,
	}
	cmd.Flags().StringVar(&req.Name, "name", "", "what to call it")
	cmd.Flags().StringVar(&req.Rootfs, "rootfs", "", "file with an ext4 file system")
	cmd.Flags().StringVar(&req.Kernel, "kernel-ref", "", "kernel that it boots with (default: the configured one)")
	cmd.Flags().StringVar(&kernel, "kernel", "", "bzImage, vmlinux, package or directory of a kernel to import for it")
	cmd.MarkFlagsMutuallyExclusive("kernel", "kernel-ref")
	complete(cmd, "name", noCompletion)
	complete(cmd, "kernel-ref", completer{a}.kernels)
	return cmd
}

func runImageRegister(ctx context.Context, a *app, req *bangerv1.RegisterImageRequest, kernel string) error {
	if req.GetName() == "" || req.GetRootfs() == "" {
		return usagef("an image is registered with --name and --rootfs").withHint("banger image register --name NAME --rootfs FILE")
	}
	var err error
	if req.Rootfs, err = filepath.Abs(req.GetRootfs()); err != nil {
		return err
	}
	if kernel != "" {
		if _, err := os.Stat(req.GetRootfs()); err != nil { // before a kernel is made for it
			return fmt.Errorf("register image %s: %w", req.GetName(), err)
		}
		if kernel, err = filepath.Abs(kernel); err != nil {
			return err
		}
		err = a.makeKernels(ctx, []string{req.GetName()}, "import",
			func(ctx context.Context, c *rpcclient.Client, name string) (*connect.ServerStreamForClient[bangerv1.Event], error) {
				return c.Kernels.ImportKernel(ctx, connect.NewRequest(&bangerv1.ImportKernelRequest{Name: name, Paths: []string{kernel}}))
			})
		if err != nil {
			return err
		}
		req.Kernel = req.GetName()
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
