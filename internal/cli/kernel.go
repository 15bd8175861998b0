package cli

import (
	"context"
	"io"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
)

// kernelView is a kernel in JSON and YAML.
type kernelView struct {
	Name      string     `json:"name"`
	Release   string     `json:"release"` // empty: in the catalogue, not present yet
	Present   bool       `json:"present"`
	CreatedAt *time.Time `json:"created_at"`
	Source    string     `json:"source"`

	Digest      string `json:"digest"`
	Description string `json:"description"` // of the catalogue's entry
	Modules     bool   `json:"modules"`
	BzImage     bool   `json:"bzimage"`
	Vmlinux     bool   `json:"vmlinux"`
	PVH         bool   `json:"pvh"` // the vmlinux can be entered directly
}

func newKernelView(k *bangerv1.Kernel) kernelView {
	return kernelView{
		Name: k.GetName(), Release: k.GetRelease(), Present: k.GetRelease() != "", CreatedAt: stamp(k.GetCreatedAt()),
		Source: k.GetSource(), Digest: k.GetDigest(), Description: k.GetDescription(), Modules: k.GetModules(),
		BzImage: k.GetBzimage(), Vmlinux: k.GetVmlinux(), PVH: k.GetPvh(),
	}
}

func newKernelList(a *app) *cobra.Command {
	o := &outputFlags{}
	var available bool
	cmd := &cobra.Command{
		Use:               "list",
		Short:             "List the kernels",
		Long:              "List the kernels that are here; with --available also those of the catalogue that are not.",
		Example:           "  banger kernel list\n  banger kernel list --available\n  banger kernel list --output json",
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runKernelList(cmd.Context(), a, o, available) },
		ValidArgsFunction: noCompletion,
	}
	cmd.Flags().BoolVar(&available, "available", false, "also what the catalogue has and is not here yet")
	o.register(cmd)
	o.registerIDs(cmd, "names")
	return cmd
}

func runKernelList(ctx context.Context, a *app, o *outputFlags, available bool) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	res, err := client.Kernels.ListKernels(ctx, connect.NewRequest(&bangerv1.ListKernelsRequest{Available: available}))
	if err != nil {
		return err
	}
	views := make([]kernelView, len(res.Msg.GetKernels()))
	t := &table{head: []string{"NAME", "RELEASE", "AGE", "SOURCE"}}
	for i, k := range res.Msg.GetKernels() {
		views[i] = newKernelView(k)
		if o.ids {
			if err := a.printLine(k.GetName()); err != nil {
				return err
			}
			continue
		}
		release := k.GetRelease()
		if release == "" {
			release = "-"
		}
		t.add(k.GetName(), release, age(time.Now(), when(k.GetCreatedAt())), k.GetSource())
	}
	if o.ids {
		return nil
	}
	return o.write(a, views, func(w io.Writer) error { return t.write(w) })
}
