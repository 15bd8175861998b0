package cli

import (
	"context"
	"errors"
	"io"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/rpcclient"
)

const templateHelp = `A template is a VM that has just come up, saved with its memory. "run" restores one instead of booting, which takes a fraction
of the time. Templates make themselves: after the first VM of a kind (image, kernel, size, init) has booted, one is made in
the background.

  banger template list

What next: template build makes one before it is needed; run --no-template boots all the same.`

// templateView is a template in JSON and YAML.
type templateView struct {
	ID         string     `json:"id"`
	Image      string     `json:"image"`
	Kernel     string     `json:"kernel"`
	VCPUs      int32      `json:"vcpus"`
	Memory     int64      `json:"memory"`
	Init       string     `json:"init"`
	Backend    string     `json:"backend"`
	Version    string     `json:"version"`
	Size       int64      `json:"size"`
	CreatedAt  *time.Time `json:"created_at"`
	LastUsedAt *time.Time `json:"last_used_at"`
	Problem    string     `json:"problem"`
}

func viewTemplate(t *bangerv1.Template) templateView {
	return templateView{
		ID: t.GetId(), Image: t.GetImage(), Kernel: t.GetKernel(), VCPUs: t.GetVcpus(), Memory: t.GetMemory(), Init: t.GetInit(),
		Backend: t.GetBackend(), Version: t.GetVersion(), Size: t.GetSize(), CreatedAt: stamp(t.GetCreatedAt()),
		LastUsedAt: stamp(t.GetLastUsedAt()), Problem: t.GetProblem(),
	}
}

func newTemplateGroup(a *app) *cobra.Command {
	group := newGroup("template", "VMs that others are restored from", templateHelp, "  banger template list\n  banger template build --memory 512M")
	group.AddCommand(newTemplateList(a), newTemplateBuild(a), newTemplateDelete(a))
	return group
}

func newTemplateList(a *app) *cobra.Command {
	o := &outputFlags{}
	cmd := &cobra.Command{
		Use:               "list",
		Short:             "List the templates",
		Long:              "List the templates, the one that was used last first. One that is not used says why; the next VM of its kind makes a new one.",
		Example:           "  banger template list\n  banger template list --output json",
		Args:              noArgs,
		ValidArgsFunction: noCompletion,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runTemplateList(cmd.Context(), a, o) },
	}
	o.register(cmd)
	o.registerIDs(cmd, "ids")
	return cmd
}

func runTemplateList(ctx context.Context, a *app, o *outputFlags) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	res, err := client.Templates.ListTemplates(ctx, connect.NewRequest(&bangerv1.ListTemplatesRequest{}))
	if err != nil {
		return err
	}
	views := []templateView{}
	for _, t := range res.Msg.GetTemplates() {
		views = append(views, viewTemplate(t))
	}
	if o.ids {
		for _, v := range views {
			if err := a.printLine(v.ID); err != nil {
				return err
			}
		}
		return nil
	}
	return o.write(a, views, func(w io.Writer) error {
		t := &table{head: []string{"ID", "IMAGE", "KERNEL", "VCPU", "MEMORY", "INIT", "SIZE", "USED", "PROBLEM"}}
		for _, v := range views {
			used := ""
			if v.LastUsedAt != nil {
				used = age(time.Now(), *v.LastUsedAt) + " ago"
			}
			t.add(v.ID, v.Image, v.Kernel, itoa(v.VCPUs), size(v.Memory), v.Init, size(v.Size), used, v.Problem)
		}
		return t.write(w)
	})
}

func newTemplateBuild(a *app) *cobra.Command {
	spec := &specFlags{}
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Make the template for VMs of a kind now",
		Long: `Make the template for VMs with these flags, as run and create take them, and print its id; the one that is there, if it is.
Name, environment, labels and the like are left aside.`,
		Example:           "  banger template build\n  banger template build --image debian-bookworm --memory 512M --init agent",
		Args:              noArgs,
		ValidArgsFunction: noCompletion,
		RunE: func(cmd *cobra.Command, _ []string) error {
			create, err := spec.request(a, cmd)
			if err != nil {
				return err
			}
			last, err := callAndWait(cmd.Context(), a, "build template",
				func(ctx context.Context, c *rpcclient.Client) (*connect.ServerStreamForClient[bangerv1.Event], error) {
					return c.Templates.BuildTemplate(ctx, connect.NewRequest(&bangerv1.BuildTemplateRequest{Spec: create.GetSpec()}))
				})
			if err != nil {
				return err
			}
			return a.printLine(last.GetTemplate().GetId())
		},
	}
	spec.register(a, cmd)
	return cmd
}

func newTemplateDelete(a *app) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:               "delete <id>...",
		Short:             "Delete templates",
		Long:              "Delete templates. VMs that were restored from them go on.",
		Example:           "  banger template delete 3f2a\n  banger template delete --all",
		ValidArgsFunction: noCompletion,
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usagef("give ids of templates, or --all").withHint("banger template list")
			}
			return runTemplateDelete(cmd.Context(), a, args, all)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all templates")
	return cmd
}

func runTemplateDelete(ctx context.Context, a *app, ids []string, all bool) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	if all {
		res, err := client.Templates.ListTemplates(ctx, connect.NewRequest(&bangerv1.ListTemplatesRequest{}))
		if err != nil {
			return err
		}
		for _, t := range res.Msg.GetTemplates() {
			ids = append(ids, t.GetId())
		}
	}
	var failed []error
	for _, id := range ids {
		res, err := client.Templates.DeleteTemplate(ctx, connect.NewRequest(&bangerv1.DeleteTemplateRequest{Id: id}))
		if err != nil {
			failed = append(failed, err)
			continue
		}
		if err := a.printLine(res.Msg.GetId()); err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}
