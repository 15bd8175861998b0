package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/rpcclient"
)

func newWorkspaceDiff(a *app) *cobra.Command {
	req := &bangerv1.DiffWorkspaceRequest{}
	var exitCode bool
	cmd := &cobra.Command{
		Use:   "diff <vm>",
		Short: "Show what has changed in a VM's workspace",
		Long: `Write what has changed in a VM's workspace since it was put there (committed, staged or not, new files, binary files) as a patch
that git apply takes. Ignored files, submodules and repositories within the workspace are left out; a warning names them.`,
		Example:           "  banger vm workspace diff devbox\n  banger vm workspace diff devbox --stat",
		Args:              oneVM,
		ValidArgsFunction: completer{a}.oneVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Vm = args[0]
			return runWorkspaceDiff(cmd.Context(), a, req, exitCode)
		},
	}
	cmd.Flags().BoolVar(&req.Stat, "stat", false, "a summary by file, not the patch")
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "exit with 1 if anything has changed")
	return cmd
}

func runWorkspaceDiff(ctx context.Context, a *app, req *bangerv1.DiffWorkspaceRequest, exitCode bool) error {
	d := a.newDisplay()
	defer d.keep()
	client, err := a.connectTimed(ctx, d)
	if err != nil {
		return err
	}
	var held bytes.Buffer // on a terminal, until the display is off it
	out := io.Writer(&held)
	if !isTerminal(a.sys.Stdout) {
		out = a.sys.Stdout
	}
	changed, err := receiveDiff(ctx, client, d, req, out)
	d.erase()
	if err == nil && held.Len() > 0 {
		_, err = io.WriteString(a.sys.Stdout, visible(held.Bytes()))
	}
	if err != nil {
		return err
	}
	if changed && exitCode {
		return exitStatus(1)
	}
	return nil
}

// receiveDiff writes the patch of a VM to w and reports whether anything has changed.
func receiveDiff(
	ctx context.Context, client *rpcclient.Client, d *display, req *bangerv1.DiffWorkspaceRequest, w io.Writer,
) (changed bool, err error) {
	ctx, cancel := context.WithCancel(ctx) // the end of the call ends the work
	defer cancel()
	stream, err := client.Workspaces.Diff(ctx, connect.NewRequest(req))
	if err != nil {
		return false, err
	}
	defer func() { _ = stream.Close() }()
	out := bufio.NewWriterSize(w, 64<<10)
	whole := false
	for stream.Receive() {
		switch m := stream.Msg().GetKind().(type) {
		case *bangerv1.DiffWorkspaceResponse_Progress:
			d.update("", m.Progress)
		case *bangerv1.DiffWorkspaceResponse_Data:
			if _, err := out.Write(m.Data); err != nil {
				return false, fmt.Errorf("write the patch: %w", err)
			}
		case *bangerv1.DiffWorkspaceResponse_Changed:
			whole, changed = true, m.Changed
		}
	}
	if err := stream.Err(); err != nil {
		return false, err
	}
	if !whole {
		return false, errors.New("the daemon ended before the patch was whole")
	}
	if err := out.Flush(); err != nil {
		return false, fmt.Errorf("write the patch: %w", err)
	}
	return changed, nil
}

// visible makes a patch fit for a terminal: what a guest wrote must not move the cursor or set titles.
func visible(p []byte) string {
	var b strings.Builder
	for len(p) > 0 {
		r, n := utf8.DecodeRune(p)
		switch {
		case r == '\n' || r == '\t' || r != utf8.RuneError && unicode.IsPrint(r):
			b.Write(p[:n])
		case r < 0x20:
			b.WriteByte('^')
			b.WriteByte(byte(r) + '@')
		default:
			b.WriteByte('?')
		}
		p = p[n:]
	}
	return b.String()
}
