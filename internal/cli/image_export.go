package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/rpcclient"
)

func newImageExport(a *app) *cobra.Command {
	req := &bangerv1.ExportImageRequest{}
	var file string
	cmd := &cobra.Command{
		Use:   "export <image>",
		Short: "Write an image to an archive",
		Long: `Write an image to an archive that docker load, podman load and skopeo read, and banger image import. It has one layer. The
same image gives the same archive. A dash stands for standard output.`,
		Example:           "  banger image export devtools -o devtools.tar\n  banger image export devtools -o - | docker load",
		Args:              oneImage,
		ValidArgsFunction: completer{a}.oneImage,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[0]
			return runImageExport(cmd.Context(), a, req, file)
		},
	}
	cmd.Flags().StringVarP(&file, "file", "o", "-", "where to write it")
	cmd.Flags().StringVar(&req.Format, "format", "oci", "oci, or docker as docker save writes it")
	complete(cmd, "format", cobra.FixedCompletions([]string{"oci", "docker"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func oneImage(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usagef("%s takes one image, not %d", cmd.CommandPath(), len(args)).withHint("%s", cmd.UseLine())
	}
	return nil
}

func (c completer) oneImage(cmd *cobra.Command, used []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(used) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.images(cmd, used, prefix)
}

func runImageExport(ctx context.Context, a *app, req *bangerv1.ExportImageRequest, file string) (err error) {
	out := io.Writer(a.sys.Stdout)
	commit := func() error { return nil }
	if file == "-" {
		if isTerminal(a.sys.Stdout) {
			return usagef("the archive would be written to the terminal").withHint("%s -o FILE", "banger image export "+req.GetName())
		}
	} else {
		// The file appears when it is whole.
		tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-")
		if err != nil {
			return fmt.Errorf("export image %s: %w", req.GetName(), err)
		}
		defer os.Remove(tmp.Name()) //nolint:errcheck // gone if it has been renamed
		defer tmp.Close()           //nolint:errcheck // closed before
		out = tmp
		commit = func() error { return errors.Join(tmp.Chmod(0o644), tmp.Close(), os.Rename(tmp.Name(), file)) }
	}
	d := a.newDisplay()
	defer d.keep()
	client, err := a.connectTimed(ctx, d)
	if err != nil {
		return err
	}
	digest, err := receiveArchive(ctx, client, d, req, out)
	if err == nil {
		err = commit()
	}
	d.keep()
	if err != nil || file == "-" {
		return err
	}
	return a.printLine(file + " " + digest)
}

func receiveArchive(
	ctx context.Context, client *rpcclient.Client, d *display, req *bangerv1.ExportImageRequest, out io.Writer,
) (digest string, err error) {
	ctx, cancel := context.WithCancel(ctx) // the end of the call ends the work
	defer cancel()
	stream, err := client.Images.ExportImage(ctx, connect.NewRequest(req))
	if err != nil {
		return "", err
	}
	defer func() { _ = stream.Close() }()
	w := bufio.NewWriterSize(out, 256<<10)
	for stream.Receive() {
		switch m := stream.Msg().GetKind().(type) {
		case *bangerv1.ExportImageResponse_Progress:
			d.update("", m.Progress)
		case *bangerv1.ExportImageResponse_Data:
			if _, err := w.Write(m.Data); err != nil {
				return "", fmt.Errorf("write archive: %w", err)
			}
		case *bangerv1.ExportImageResponse_Digest:
			digest = m.Digest
		}
	}
	if err := stream.Err(); err != nil {
		return "", err
	}
	if digest == "" {
		return "", errors.New("the daemon ended before the archive was whole")
	}
	return digest, w.Flush()
}
