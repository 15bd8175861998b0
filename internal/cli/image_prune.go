package cli

import (
	"context"
	"io"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
)

// prunedView is what a prune freed, in JSON and YAML.
type prunedView struct {
	Items []prunedItemView `json:"items"`
	Bytes int64            `json:"bytes"`
}

type prunedItemView struct {
	What  string `json:"what"`
	Bytes int64  `json:"bytes"`
}

func newImagePrune(a *app) *cobra.Command {
	o := &outputFlags{}
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Free what no image and no VM needs",
		Long: `Free what nobody needs: layers that were fetched, images without a name that no VM uses, what interrupted pulls and
imports left behind, old build logs. Images with a name stay, and so does what is being fetched at the time.`,
		Example:           "  banger image prune --dry-run\n  banger image prune",
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runImagePrune(cmd.Context(), a, dryRun, o) },
		ValidArgsFunction: noCompletion,
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be freed")
	o.register(cmd)
	return cmd
}

func runImagePrune(ctx context.Context, a *app, dryRun bool, o *outputFlags) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	res, err := client.Images.PruneImages(ctx, connect.NewRequest(&bangerv1.PruneImagesRequest{DryRun: dryRun}))
	if err != nil {
		return err
	}
	v := prunedView{Items: []prunedItemView{}, Bytes: res.Msg.GetBytes()}
	t := &table{head: []string{"WHAT", "FREED"}}
	for _, it := range res.Msg.GetItems() {
		v.Items = append(v.Items, prunedItemView{it.GetWhat(), it.GetBytes()})
		t.add(it.GetWhat(), size(it.GetBytes()))
	}
	t.add("total", size(v.Bytes))
	return o.write(a, v, func(w io.Writer) error { return t.write(w) })
}
