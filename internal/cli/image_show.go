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

func newImageShow(a *app) *cobra.Command {
	o := &outputFlags{}
	cmd := &cobra.Command{
		Use:               "show <image>...",
		Short:             "Show all about images",
		Long:              "Show all that is known of images: where they are from, what they take, who uses them, how they want to be run.",
		Example:           "  banger image show debian-bookworm\n  banger image show alpine:3.20 --output json",
		Args:              someOf("image"),
		RunE:              func(cmd *cobra.Command, args []string) error { return runImageShow(cmd.Context(), a, args, o) },
		ValidArgsFunction: completer{a}.images,
	}
	o.register(cmd)
	return cmd
}

func runImageShow(ctx context.Context, a *app, names []string, o *outputFlags) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	views := []imageView{}
	failed := false
	for _, name := range names {
		res, err := client.Images.GetImage(ctx, connect.NewRequest(&bangerv1.GetImageRequest{Image: name}))
		if err != nil {
			failed = true
			a.sayError(err)
			continue
		}
		views = append(views, viewImage(res.Msg.GetImage()))
	}
	err = o.write(a, views, func(w io.Writer) error {
		for i, v := range views {
			if i > 0 {
				if _, err := io.WriteString(w, "\n"); err != nil {
					return err
				}
			}
			if err := writeImage(w, v, time.Now()); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && failed {
		err = exitStatus(exitFailed)
	}
	return err
}

// writeImage writes an image for people; what is not known is left out.
func writeImage(w io.Writer, v imageView, now time.Time) error {
	var b strings.Builder
	add := func(key, value string) {
		if value != "" {
			_, _ = fmt.Fprintf(&b, "%-12s %s\n", key, printable(value))
		}
	}
	add("name", v.Name)
	add("digest", v.Digest)
	add("damaged", v.Damaged)
	add("size", size(v.Size))
	add("on disk", size(v.UniqueSize+v.SharedSize))
	if v.SharedSize > 0 {
		add("", "shared with other images")
	}
	if v.CreatedAt != nil {
		add("made", age(now, *v.CreatedAt)+" ago")
	}
	add("source", v.Source)
	add("manifest", v.Manifest)
	add("platform", v.Platform)
	add("path", v.Path)
	add("kernel", v.Kernel)
	add("used by", strings.Join(v.Users, ", "))
	if v.HasSystemd {
		add("init", "systemd")
	}
	c := v.Config
	add("entrypoint", quoted(c.Entrypoint))
	add("cmd", quoted(c.Cmd))
	add("workdir", c.WorkDir)
	add("user", c.User)
	add("stop signal", c.StopSignal)
	add("ports", strings.Join(c.ExposedPorts, ", "))
	add("volumes", strings.Join(c.Volumes, ", "))
	for i, word := range c.Env {
		add(firstOnly(i, "env"), word)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// firstOnly is a heading that stands beside the first of several lines.
func firstOnly(i int, heading string) string {
	if i > 0 {
		return ""
	}
	return heading
}

// quoted writes a command so that its words can be told apart.
func quoted(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		if out[i] = w; w == "" || strings.ContainsAny(w, " \t\"'") {
			out[i] = fmt.Sprintf("%q", w)
		}
	}
	return strings.Join(out, " ")
}
