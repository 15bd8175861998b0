package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
)

type workspaceExportOptions struct {
	vm, file, branch string
	force            bool
}

func newWorkspaceExport(a *app) *cobra.Command {
	o := &workspaceExportOptions{}
	cmd := &cobra.Command{
		Use:   "export <vm> (-o file | --branch name)",
		Short: "Get what has changed in a VM's workspace as a patch file or a branch",
		Long: `Write what has changed in a VM's workspace to a file, as a patch, or make a branch of it in the repository that the workspace came
from. The branch has the commits that were made in the VM as they are, and one commit with what was not committed there. If
nothing was committed in the VM, local modifications that were put into it come first, as a commit of their own. Of the host's
repository only objects, which git has checked, and the branch are written; index, HEAD and files stay as they are.`,
		Example: `  banger vm workspace export devbox -o devbox.patch
  banger vm workspace export devbox --branch from-devbox`,
		Args:              oneVM,
		ValidArgsFunction: completer{a}.oneVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.vm = args[0]; (o.file == "") == (o.branch == "") {
				return usagef("%s takes either --output or --branch", cmd.CommandPath()).withHint("%s", cmd.UseLine())
			}
			if o.branch != "" {
				return runWorkspaceBranch(cmd.Context(), a, o)
			}
			return runWorkspacePatch(cmd.Context(), a, o)
		},
	}
	cmd.Flags().StringVarP(&o.file, "output", "o", "", "`file` for the patch")
	cmd.Flags().StringVar(&o.branch, "branch", "", "`name` of a branch to make in the host's repository")
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "replace the file, or move the branch, if it is there already")
	complete(cmd, "branch", noCompletion)
	return cmd
}

func runWorkspaceBranch(ctx context.Context, a *app, o *workspaceExportOptions) error {
	d := a.newDisplay()
	defer d.keep()
	client, err := a.connectTimed(ctx, d)
	if err != nil {
		return err
	}
	req := &bangerv1.ExportWorkspaceRequest{Vm: o.vm, Branch: o.branch, Force: o.force}
	last, err := followOrCancel(ctx, client, d, "", func(ctx context.Context) (*connect.ServerStreamForClient[bangerv1.Event], error) {
		return client.Workspaces.Export(ctx, connect.NewRequest(req))
	})
	d.keep()
	if err != nil {
		return err
	}
	b := last.GetBranch()
	return a.printLine(fmt.Sprintf("%s %s, commits: %d", o.branch, b.GetCommit(), b.GetCommits()))
}

func runWorkspacePatch(ctx context.Context, a *app, o *workspaceExportOptions) error {
	if _, err := os.Lstat(o.file); err == nil && !o.force {
		return usagef("the file %s exists", o.file).withHint("give another name, or --force to replace it")
	}
	d := a.newDisplay()
	defer d.keep()
	client, err := a.connectTimed(ctx, d)
	if err != nil {
		return err
	}
	// The file appears when it is whole.
	tmp, err := os.CreateTemp(filepath.Dir(o.file), "."+filepath.Base(o.file)+"-")
	if err != nil {
		return fmt.Errorf("export the workspace of %s: %w", o.vm, err)
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // gone if it has been renamed
	defer tmp.Close()           //nolint:errcheck // closed before
	if _, err := receiveDiff(ctx, client, d, &bangerv1.DiffWorkspaceRequest{Vm: o.vm}, tmp); err != nil {
		return err
	}
	if err := tmp.Close(); err != nil {
		return fmt.Errorf("write %s: %w", o.file, err)
	}
	if o.force {
		return os.Rename(tmp.Name(), o.file)
	}
	// A link is refused if there is a file by now, as a rename is not.
	if err := os.Link(tmp.Name(), o.file); err != nil {
		return fmt.Errorf("write %s: %w", o.file, errors.Unwrap(err))
	}
	return nil
}
