package cli

import (
	"context"
	"errors"
	"path/filepath"
	"strconv"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
)

// workspaceFlags say what goes into a VM, for run and prepare.
type workspaceFlags struct {
	full      bool
	untracked bool
	branch    string
	from      string
	copied    bool
	dryRun    bool
	bootstrap bool
}

func (w *workspaceFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&w.full, "full", false, "send the whole history of the repository, and its tags")
	f.BoolVar(&w.untracked, "include-untracked", false, "send files that git does not track, too; ignored ones never")
	f.StringVar(&w.branch, "branch", "", "make a new branch of this `name` in the VM")
	f.StringVar(&w.from, "from", "", "with --branch: send the files of this `commit` and begin there")
	f.BoolVar(&w.copied, "copy", false, "send the directory as it is, with all that is in it")
	f.BoolVar(&w.dryRun, "dry-run", false, "list the files that would be sent, and do nothing")
	f.BoolVar(&w.bootstrap, "bootstrap", false, bootstrapUsage)
	complete(cmd, "branch", noCompletion)
	complete(cmd, "from", noCompletion)
}

// source makes a request of the flags; nil without a path, which the flags then need.
func (w *workspaceFlags) source(cmd *cobra.Command, path string) (*bangerv1.WorkspaceSource, error) {
	if path == "" {
		for _, name := range []string{"full", "include-untracked", "branch", "from", "copy", "dry-run", "bootstrap"} {
			if cmd.Flags().Changed(name) {
				return nil, usagef("--%s is about a repository, and no path is given", name).withHint("%s . --%s", cmd.CommandPath(), name)
			}
		}
		return nil, nil
	}
	switch {
	case w.copied && (w.full || w.untracked || w.branch != "" || w.from != "" || w.dryRun):
		return nil, usagef("--copy sends a directory as it is: --full, --include-untracked, --branch, --from and --dry-run are about repositories")
	case w.from != "" && w.branch == "":
		return nil, usagef("--from needs the name of a new branch").withHint("--branch NAME --from %s", w.from)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	return &bangerv1.WorkspaceSource{
		Path: abs, Full: w.full, IncludeUntracked: w.untracked, Branch: w.branch, From: w.from, Copy: w.copied,
	}, nil
}

func newWorkspacePrepare(a *app) *cobra.Command {
	o := &workspaceFlags{}
	cmd := &cobra.Command{
		Use:   "prepare <vm> [path] [flags]",
		Short: "Put a git repository, or a directory, into a running VM",
		Long: `Put the git repository around a path (default: the current directory) into /root/NAME of a running VM, and print where
it is. Commands of root then run there unless told otherwise.

What goes: the newest commit (the history with --full) and the tracked files as they are: modified, staged, deleted, renamed,
of submodules and of git-lfs, too. Untracked files stay behind unless --include-untracked is given, ignored ones always. The
guest needs no git to receive it. Hooks, credentials and other settings of the repository stay behind.

The repository of this machine is only read. A directory that is in the VM already is not touched.`,
		Example: "  banger vm workspace prepare devbox\n  banger vm workspace prepare devbox ./repo --dry-run\n  banger vm workspace prepare devbox --copy ./data",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return usagef("%s takes a VM and a path, not %d arguments", cmd.CommandPath(), len(args)).withHint("%s", cmd.UseLine())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "."
			if len(args) > 1 {
				path = args[1]
			}
			source, err := o.source(cmd, path)
			if err != nil {
				return err
			}
			if o.dryRun {
				return runWorkspacePlan(cmd.Context(), a, source)
			}
			tools, err := bootstrapOf(a, source, o.bootstrap)
			if err != nil {
				return err
			}
			return runWorkspacePrepare(cmd.Context(), a, &bangerv1.PrepareWorkspaceRequest{Vm: args[0], Source: source}, tools)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveFilterDirs
			}
			return completer{a}.oneVM(cmd, args, prefix)
		},
	}
	o.register(cmd)
	return cmd
}

func runWorkspacePrepare(ctx context.Context, a *app, req *bangerv1.PrepareWorkspaceRequest, tools []bootstrap) error {
	d := a.newDisplay()
	defer d.keep()
	client, err := a.connectTimed(ctx, d)
	if err != nil {
		return err
	}
	var vm *bangerv1.VM
	if len(tools) > 0 {
		if vm, err = runningVM(ctx, client, req.GetVm()); err != nil {
			return err
		}
		if err := needsNetwork(tools, vm.GetSpec().GetNet()); err != nil {
			return err
		}
	}
	last, err := followOrCancel(ctx, client, d, "", func(ctx context.Context) (*connect.ServerStreamForClient[bangerv1.Event], error) {
		return client.Workspaces.Prepare(ctx, connect.NewRequest(req))
	})
	d.keep()
	if err != nil {
		return err
	}
	beginBootstrap(ctx, a, client, vm, tools)
	return a.printLine(last.GetWorkspace().GetGuestDir())
}

// runWorkspacePlan lists what would be sent: the files on standard output, one a line, and what else there is to know on
// standard error.
func runWorkspacePlan(ctx context.Context, a *app, source *bangerv1.WorkspaceSource) (err error) {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	stream, err := client.Workspaces.Plan(ctx, connect.NewRequest(&bangerv1.PlanWorkspaceRequest{Source: source}))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stream.Close()) }()
	var plan *bangerv1.PlanWorkspaceResponse
	var files, bytes int64
	for stream.Receive() {
		if plan == nil {
			plan = stream.Msg()
		}
		for _, f := range stream.Msg().GetFiles() {
			files++
			bytes += f.GetSize()
			if err := a.printLine(asListed(string(f.GetPath()))); err != nil {
				return err
			}
		}
	}
	if err := stream.Err(); err != nil || a.quiet {
		return err
	}
	for _, text := range plan.GetNotices() {
		a.say("%s", text)
	}
	what := "no commit"
	if head := plan.GetHead(); head != "" {
		what = "commit " + head[:min(len(head), 12)]
	}
	if plan.GetBranch() != "" {
		what += " of branch " + plan.GetBranch()
	}
	a.say("%d files of %s and %s would go to %s", files, size(bytes), what, plan.GetGuestDir())
	return nil
}

// asListed quotes a path that would not be one line of plain text.
func asListed(path string) string {
	if quoted := strconv.Quote(path); quoted != `"`+path+`"` {
		return quoted
	}
	return path
}
