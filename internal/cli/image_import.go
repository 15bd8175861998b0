package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/rpcclient"
)

func newImageImport(a *app) *cobra.Command {
	start := &bangerv1.ImportImageStart{}
	cmd := &cobra.Command{
		Use:   "import <file|directory|->",
		Short: "Make an image of an archive",
		Long: `Make an image of an archive: what docker save or podman save writes, an OCI archive or layout directory, or a tar of a root
file system; compressed by gzip, xz or zstd, or not at all. A dash stands for standard input. An archive that holds several
images needs --tag to say which. A name that is taken is given to the new image; VMs keep the one that they have.`,
		Example: "  docker save app:dev | banger image import -\n  banger image import rootfs.tar.gz --name mine",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("%s takes one archive, not %d", cmd.CommandPath(), len(args)).withHint("%s", cmd.UseLine())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return runImageImport(cmd.Context(), a, args[0], start)
		},
	}
	cmd.Flags().StringVar(&start.Name, "name", "", "what to call it (default: as the archive says)")
	cmd.Flags().StringVar(&start.Tag, "tag", "", "which of several images in the archive")
	complete(cmd, "name", noCompletion)
	complete(cmd, "tag", noCompletion)
	return cmd
}

func runImageImport(ctx context.Context, a *app, from string, start *bangerv1.ImportImageStart) error {
	in, err := importFrom(a, from, start)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // only read
	d := a.newDisplay()
	defer d.keep()
	client, err := a.connectTimed(ctx, d)
	if err != nil {
		return err
	}
	im, err := importImage(ctx, client, d, in, start)
	d.keep()
	if err != nil {
		return err
	}
	return a.printLine(im.GetName() + " " + im.GetDigest())
}

// importFrom finds out how the archive gets to the daemon: it reads files and directories itself, and is sent all else, which
// is then returned.
func importFrom(a *app, from string, start *bangerv1.ImportImageStart) (io.ReadCloser, error) {
	nothing := io.NopCloser(nil)
	if from == "-" {
		if isTerminal(a.sys.Stdin) {
			return nil, usagef("the archive would be read from the terminal").withHint("docker save IMAGE | banger image import -")
		}
		return io.NopCloser(a.sys.Stdin), nil
	}
	info, err := os.Stat(from)
	if err != nil {
		return nil, fault.New(fault.NotFound, "import image: %w", err)
	}
	if info.Mode().IsRegular() || info.IsDir() {
		start.Path, err = filepath.Abs(from)
		return nothing, err
	}
	f, err := os.Open(from)
	if err != nil {
		return nil, fmt.Errorf("import image: %w", err)
	}
	return f, nil
}

// chunk is how much of an archive is sent at a time, in bytes.
const chunk = 1 << 20

func importImage(
	ctx context.Context, client *rpcclient.Client, d *display, in io.Reader, start *bangerv1.ImportImageStart,
) (*bangerv1.Image, error) {
	// The end of the call ends the work, and what was begun is undone.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := client.Images.ImportImage(ctx)
	sent := make(chan error, 1)
	if err := stream.Send(&bangerv1.ImportImageRequest{Kind: &bangerv1.ImportImageRequest_Start{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	go func() {
		var err error
		if start.GetPath() == "" {
			err = sendArchive(stream, in)
		}
		if err != nil {
			cancel()
		} else {
			err = stream.CloseRequest()
		}
		sent <- err
	}()
	var last *bangerv1.Event
	var err error
	for {
		var ev *bangerv1.Event
		if ev, err = stream.Receive(); err != nil {
			break
		}
		last = ev
		if p := last.GetProgress(); p != nil {
			d.update("", p)
		}
	}
	_ = stream.CloseResponse()
	if errors.Is(err, io.EOF) && last.GetImage() != nil {
		return last.GetImage(), nil
	}
	select {
	case serr := <-sent: // what kept the archive from being read is the reason of what came after
		if _, ok := errors.AsType[*readError](serr); ok {
			err = serr
		}
	default: // standard input may be blocked for ever
	}
	return nil, err
}

// readError says that the archive couldn't be read here.
type readError struct{ err error }

func (e *readError) Error() string { return "read archive: " + e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

func sendArchive(stream *connect.BidiStreamForClient[bangerv1.ImportImageRequest, bangerv1.Event], in io.Reader) error {
	buf := make([]byte, chunk)
	for {
		n, err := io.ReadFull(in, buf)
		if n > 0 {
			data := &bangerv1.ImportImageRequest_Data{Data: buf[:n]}
			if err := stream.Send(&bangerv1.ImportImageRequest{Kind: data}); err != nil {
				return nil //nolint:nilerr // Receive says why the daemon takes no more
			}
		}
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return &readError{err}
		}
	}
}
