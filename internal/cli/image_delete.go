package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
)

func newImageDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "delete <image>...",
		Short: "Delete images",
		Long: `Delete images. One that VMs use is refused, and the VMs are named; one that has several names loses only the one that is
given. The file of a registered image stays where it is.`,
		Example:           "  banger image delete alpine:3.20",
		Args:              someOf("image"),
		RunE:              func(cmd *cobra.Command, args []string) error { return runImageDelete(cmd.Context(), a, args) },
		ValidArgsFunction: completer{a}.presentImages,
	}
}

func runImageDelete(ctx context.Context, a *app, names []string) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	failed := false
	for _, name := range names {
		if _, err := client.Images.DeleteImage(ctx, connect.NewRequest(&bangerv1.DeleteImageRequest{Image: name})); err != nil {
			if ctx.Err() != nil {
				return err
			}
			failed = true
			a.sayError(err)
			continue
		}
		if err := a.printLine(name); err != nil {
			return err
		}
	}
	if failed {
		return exitStatus(exitFailed)
	}
	return nil
}
