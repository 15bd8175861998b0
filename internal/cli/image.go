package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
)

// imageView is an image in JSON and YAML.
type imageView struct {
	Name      string     `json:"name"`
	Digest    string     `json:"digest"` // empty: in the catalogue, not present yet
	Present   bool       `json:"present"`
	Size      int64      `json:"size"`
	CreatedAt *time.Time `json:"created_at"`
	Source    string     `json:"source"`
}

func newImageList(a *app) *cobra.Command {
	o := &outputFlags{}
	cmd := &cobra.Command{
		Use:               "list",
		Short:             "List the images",
		Long:              "List the images that are here and those of the catalogue.",
		Example:           "  banger image list\n  banger image list --output json",
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runImageList(cmd.Context(), a, o) },
		ValidArgsFunction: noCompletion,
	}
	o.register(cmd)
	o.registerIDs(cmd, "names")
	return cmd
}

func runImageList(ctx context.Context, a *app, o *outputFlags) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	res, err := client.Images.ListImages(ctx, connect.NewRequest(&bangerv1.ListImagesRequest{}))
	if err != nil {
		return err
	}
	views := make([]imageView, len(res.Msg.GetImages()))
	t := &table{head: []string{"NAME", "DIGEST", "SIZE", "AGE", "SOURCE"}}
	for i, im := range res.Msg.GetImages() {
		views[i] = imageView{
			Name: im.GetName(), Digest: im.GetDigest(), Present: im.GetDigest() != "", Size: im.GetSize(),
			CreatedAt: stamp(im.GetCreatedAt()), Source: im.GetSource(),
		}
		if o.ids {
			if err := a.printLine(im.GetName()); err != nil {
				return err
			}
			continue
		}
		t.add(im.GetName(), shortDigest(im.GetDigest()), size(im.GetSize()), age(time.Now(), when(im.GetCreatedAt())), im.GetSource())
	}
	if o.ids {
		return nil
	}
	return o.write(a, views, func(w io.Writer) error { return t.write(w) })
}

// shortDigest is what of a digest fits into a table; "-" stands for an image that is not here yet.
func shortDigest(digest string) string {
	if digest == "" {
		return "-"
	}
	_, hex, ok := strings.Cut(digest, ":")
	if !ok {
		hex = digest
	}
	return hex[:min(len(hex), 12)]
}

func newImagePull(a *app) *cobra.Command {
	var timings bool
	cmd := &cobra.Command{
		Use:               "pull <image>...",
		Short:             "Fetch or build images of the catalogue",
		Long:              "Fetch or build images of the catalogue, so that the first VM made from them starts at once.",
		Example:           "  banger image pull debian-bookworm",
		Args:              someOf("image"),
		RunE:              func(cmd *cobra.Command, args []string) error { return runImagePull(cmd.Context(), a, args, timings) },
		ValidArgsFunction: completer{a}.images,
	}
	cmd.Flags().BoolVar(&timings, "timings", false, "at the end, print how long each stage took")
	return cmd
}

func runImagePull(ctx context.Context, a *app, names []string, timings bool) error {
	d := a.newDisplay()
	defer d.keep()
	began := time.Now()
	if timings {
		defer func() { d.timings(a.sys.Stderr, time.Since(began)) }()
	}
	client, err := a.connectTimed(ctx, d)
	if err != nil {
		return err
	}
	var done []string
	for _, name := range names {
		last, callErr := followOrCancel(ctx, client, d, "",
			func(ctx context.Context) (*connect.ServerStreamForClient[bangerv1.Event], error) {
				return client.Images.PullImage(ctx, connect.NewRequest(&bangerv1.PullImageRequest{Name: name}))
			})
		if callErr != nil {
			err = fmt.Errorf("pull %q: %w", name, callErr)
			break
		}
		done = append(done, last.GetImage().GetName()+" "+last.GetImage().GetDigest())
	}
	d.keep() // before anything is printed over it
	for _, line := range done {
		if printErr := a.printLine(line); printErr != nil {
			return printErr
		}
	}
	return err
}
