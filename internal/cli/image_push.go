package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
)

func newImagePush(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "push <image> <reference>",
		Short: "Write an image to a registry",
		Long: `Write an image to a registry, as registry/repository:tag, with the credentials that docker login or podman login have left.
Without TLS only registries on this machine are spoken to.`,
		Example: "  banger image push devtools registry.example.com/team/devtools:1",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usagef("%s takes an image and a reference, not %d arguments", cmd.CommandPath(), len(args)).withHint("%s", cmd.UseLine())
			}
			return nil
		},
		ValidArgsFunction: completer{a}.oneImage,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runImagePush(cmd.Context(), a, &bangerv1.PushImageRequest{Name: args[0], Reference: args[1]})
		},
	}
}

func runImagePush(ctx context.Context, a *app, req *bangerv1.PushImageRequest) error {
	d := a.newDisplay()
	defer d.keep()
	client, err := a.connectTimed(ctx, d)
	if err != nil {
		return err
	}
	last, err := followOrCancel(ctx, client, d, "", func(ctx context.Context) (*connect.ServerStreamForClient[bangerv1.Event], error) {
		return client.Images.PushImage(ctx, connect.NewRequest(req))
	})
	d.keep()
	if err != nil {
		return err
	}
	return a.printLine(last.GetImage().GetName() + " " + last.GetImage().GetManifest())
}
