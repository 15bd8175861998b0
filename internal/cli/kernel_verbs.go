package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/rpcclient"
)

func newKernelCatalog(a *app) *cobra.Command {
	o := &outputFlags{}
	cmd := &cobra.Command{
		Use:   "catalog",
		Short: "List what can be pulled",
		Long: `List the kernels that pull can get, and whether they are here. Entries of your own stand in the file that the
configuration names as kernels.catalog.`,
		Example:           "  banger kernel catalog\n  banger kernel catalog --output json",
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runKernelCatalog(cmd.Context(), a, o) },
		ValidArgsFunction: noCompletion,
	}
	o.register(cmd)
	return cmd
}

func runKernelCatalog(ctx context.Context, a *app, o *outputFlags) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	res, err := client.Kernels.ListKernels(ctx, connect.NewRequest(&bangerv1.ListKernelsRequest{Available: true}))
	if err != nil {
		return err
	}
	views := []kernelView{}
	t := &table{head: []string{"NAME", "HERE", "DESCRIPTION"}}
	for _, k := range res.Msg.GetKernels() {
		if k.GetDescription() == "" { // imported
			continue
		}
		views = append(views, newKernelView(k))
		here := "no"
		if k.GetRelease() != "" {
			here = "yes"
		}
		t.add(k.GetName(), here, k.GetDescription())
	}
	return o.write(a, views, func(w io.Writer) error { return t.write(w) })
}

// kernelDetails is what kernel show tells, in JSON and YAML.
type kernelDetails struct {
	kernelView `yaml:",inline"`

	Features map[string]string `json:"features"` // built-in, module, missing, unknown
	Backends []kernelFitness   `json:"backends"`
	Users    []string          `json:"users"`
}

type kernelFitness struct {
	Backend  string   `json:"backend"`
	Boots    bool     `json:"boots"`
	Problems []string `json:"problems"`
	Notes    []string `json:"notes"`
}

func newKernelShow(a *app) *cobra.Command {
	o := &outputFlags{}
	cmd := &cobra.Command{
		Use:   "show <kernel>...",
		Short: "Show everything about kernels",
		Long: `Show everything that is known about kernels: where they come from, what they have, what they lack on which backend, and
who uses them. JSON and YAML are always a list.`,
		Example:           "  banger kernel show debian-cloud\n  banger kernel show debian-cloud --output json",
		Args:              someOf("kernel"),
		RunE:              func(cmd *cobra.Command, args []string) error { return runKernelShow(cmd.Context(), a, args, o) },
		ValidArgsFunction: completer{a}.kernels,
	}
	o.register(cmd)
	return cmd
}

func runKernelShow(ctx context.Context, a *app, names []string, o *outputFlags) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	var all []kernelDetails
	for _, name := range names {
		res, err := client.Kernels.GetKernel(ctx, connect.NewRequest(&bangerv1.GetKernelRequest{Name: name}))
		if err != nil {
			return err
		}
		d := kernelDetails{
			kernelView: newKernelView(res.Msg.GetKernel()), Features: map[string]string{}, Users: append([]string{}, res.Msg.GetUsers()...),
		}
		for _, f := range res.Msg.GetFeatures() {
			d.Features[f.GetName()] = f.GetSupport()
		}
		for _, f := range res.Msg.GetBackends() {
			d.Backends = append(d.Backends, kernelFitness{
				Backend: f.GetBackend(), Boots: len(f.GetProblems()) == 0,
				Problems: append([]string{}, f.GetProblems()...), Notes: append([]string{}, f.GetNotes()...),
			})
		}
		all = append(all, d)
	}
	return o.write(a, all, func(w io.Writer) error {
		for i, d := range all {
			if i > 0 {
				if _, err := fmt.Fprintln(w); err != nil {
					return err
				}
			}
			if err := d.table().write(w); err != nil {
				return err
			}
		}
		return nil
	})
}

func (d kernelDetails) table() *table {
	yes := map[bool]string{true: "yes", false: "no"}
	t := &table{head: []string{"NAME", d.Name}}
	t.add("RELEASE", d.Release)
	t.add("DIGEST", d.Digest)
	t.add("SOURCE", d.Source)
	var files []string
	if d.BzImage {
		files = append(files, "bzImage")
	}
	if d.Vmlinux {
		files = append(files, "vmlinux")
	}
	t.add("FILES", strings.Join(files, ", "))
	t.add("MODULES", yes[d.Modules])
	t.add("PVH", yes[d.PVH])
	kinds := map[string][]string{}
	for name, support := range d.Features {
		kinds[support] = append(kinds[support], name)
	}
	for _, support := range []string{"built-in", "module", "missing", "unknown"} {
		if names := kinds[support]; len(names) > 0 {
			t.add(strings.ToUpper(support), strings.Join(slices.Sorted(slices.Values(names)), ", "))
		}
	}
	for _, b := range d.Backends {
		text := "boots"
		switch {
		case b.Boots && len(kinds["unknown"]) > 0:
			text = "may boot"
		case !b.Boots:
			text = "does not boot: " + strings.Join(b.Problems, "; ")
		}
		if len(b.Notes) > 0 {
			text += " (" + strings.Join(b.Notes, "; ") + ")"
		}
		t.add(strings.ToUpper(b.Backend), text)
	}
	if len(d.Users) > 0 {
		t.add("USERS", strings.Join(d.Users, ", "))
	}
	return t
}

func newKernelPull(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "pull <kernel>...",
		Short:             "Fetch kernels of the catalogue",
		Long:              "Fetch kernels of the catalogue, so that the first VM with them starts at once. One that is here stays as it is.",
		Example:           "  banger kernel pull debian-cloud-backports",
		Args:              someOf("kernel"),
		ValidArgsFunction: completer{a}.kernels,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.makeKernels(cmd.Context(), args, "pull",
				func(ctx context.Context, c *rpcclient.Client, name string) (*connect.ServerStreamForClient[bangerv1.Event], error) {
					return c.Kernels.PullKernel(ctx, connect.NewRequest(&bangerv1.PullKernelRequest{Name: name}))
				})
		},
	}
}

func newKernelImport(a *app) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "import <path>...",
		Short: "Make a kernel from a package, a directory or an image",
		Long: `Make a kernel from files of this machine: kernel packages (.deb or .rpm; several if the kernel is spread over them), a
directory with vmlinuz or vmlinux, config and modules, a bzImage, or a vmlinux. An initrd is not needed: banger makes its own.
Without --name the kernel is named by its release. kernel show says what it lacks for which backend.`,
		Example: `  banger kernel import ./linux-image-6.12.0-cloud-amd64.deb
  banger kernel import --name fedora kernel-core.rpm kernel-modules-core.rpm
  banger kernel import --name mine ./arch/x86/boot/bzImage`,
		Args: someOf("path"),
		RunE: func(cmd *cobra.Command, args []string) error {
			paths := make([]string, len(args))
			for i, arg := range args {
				path, err := filepath.Abs(arg)
				if err != nil {
					return fmt.Errorf("import %q: %w", arg, err)
				}
				paths[i] = path
			}
			return a.makeKernels(cmd.Context(), []string{name}, "import",
				func(ctx context.Context, c *rpcclient.Client, name string) (*connect.ServerStreamForClient[bangerv1.Event], error) {
					return c.Kernels.ImportKernel(ctx, connect.NewRequest(&bangerv1.ImportKernelRequest{Name: name, Paths: paths}))
				})
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "the kernel's name (default: its release)")
	complete(cmd, "name", noCompletion)
	return cmd
}

// makeKernels makes one kernel after the other and prints what came of it.
func (a *app) makeKernels(
	ctx context.Context, names []string, verb string,
	call func(context.Context, *rpcclient.Client, string) (*connect.ServerStreamForClient[bangerv1.Event], error),
) error {
	d := a.newDisplay()
	defer d.keep()
	client, err := a.connectTimed(ctx, d)
	if err != nil {
		return err
	}
	var done []string
	for _, name := range names {
		last, callErr := followOrCancel(ctx, client, d, "",
			func(ctx context.Context) (*connect.ServerStreamForClient[bangerv1.Event], error) {
				return call(ctx, client, name)
			})
		if callErr != nil {
			err = callErr
			if name != "" {
				err = fmt.Errorf("%s %q: %w", verb, name, callErr)
			}
			break
		}
		done = append(done, last.GetKernel().GetName()+" "+last.GetKernel().GetRelease())
	}
	d.keep() // before anything is printed over it
	for _, line := range done {
		if printErr := a.printLine(line); printErr != nil {
			return printErr
		}
	}
	return err
}

func newKernelDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "delete <kernel>...",
		Short:             "Delete kernels that no VM uses",
		Long:              "Delete kernels. One that a VM uses stays, and the VMs are named. One of the catalogue can be pulled again.",
		Example:           "  banger kernel delete 6.12.0-cloud-amd64",
		Args:              someOf("kernel"),
		ValidArgsFunction: completer{a}.kernels,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			client, err := a.connect(ctx)
			if err != nil {
				return err
			}
			var failed []error
			for _, name := range args {
				_, err := client.Kernels.DeleteKernel(ctx, connect.NewRequest(&bangerv1.DeleteKernelRequest{Name: name}))
				if err != nil {
					failed = append(failed, err)
				} else if err := a.printLine(name); err != nil {
					return err
				}
			}
			return errors.Join(failed...)
		},
	}
}
