package cli

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
)

func newWorkspaceApply(a *app) *cobra.Command {
	req := &bangerv1.ApplyWorkspaceRequest{}
	cmd := &cobra.Command{
		Use:   "apply <vm>",
		Short: "Merge what has changed in a VM's workspace into the host's files",
		Long: `Merge what has changed in a VM's workspace into the working tree that it came from, also if that has changed meanwhile. Conflicts
are in the files as git writes them, and the exit status is 1. Index and HEAD stay as they are. Nothing is written if a file
that git does not know would be overwritten.`,
		Example:           "  banger vm workspace apply devbox --dry-run\n  banger vm workspace apply devbox",
		Args:              oneVM,
		ValidArgsFunction: completer{a}.oneVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Vm = args[0]
			return runWorkspaceApply(cmd.Context(), a, req)
		},
	}
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "only say what would change")
	return cmd
}

func runWorkspaceApply(ctx context.Context, a *app, req *bangerv1.ApplyWorkspaceRequest) error {
	d := a.newDisplay()
	defer d.keep()
	client, err := a.connectTimed(ctx, d)
	if err != nil {
		return err
	}
	last, err := followOrCancel(ctx, client, d, "", func(ctx context.Context) (*connect.ServerStreamForClient[bangerv1.Event], error) {
		return client.Workspaces.Apply(ctx, connect.NewRequest(req))
	})
	d.keep()
	if err != nil {
		return err
	}
	conflicts := map[string]bool{}
	for _, p := range last.GetMerge().GetConflicts() {
		conflicts[string(p)] = true
		if err := a.printLine("conflict " + pathText(p)); err != nil {
			return err
		}
	}
	for _, p := range last.GetMerge().GetChanged() {
		if conflicts[string(p)] {
			continue
		}
		if err := a.printLine("changed " + pathText(p)); err != nil {
			return err
		}
	}
	if len(conflicts) > 0 {
		return exitStatus(1)
	}
	return nil
}

// pathText is a path on one line: one that could do harm to a terminal is quoted.
func pathText(p []byte) string {
	if q := fmt.Sprintf("%q", p); q != `"`+string(p)+`"` {
		return q
	}
	return string(p)
}
