package rpcclient

import (
	"context"
	"errors"
	"fmt"
	"io"

	"connectrpc.com/connect"

	bangerv1 "banger/internal/gen/banger/v1"
)

// PutFiles copies a tar stream into a guest. It returns when all is in place, or as soon as the copy has failed: a Read of the
// archive may still be under way then. An error of the archive's reader is returned as it is. Nothing then has its name in the
// guest that is not whole.
func (c *Client) PutFiles(ctx context.Context, start *bangerv1.PutFilesStart, archive io.Reader) error {
	ctx, cancel := context.WithCancel(ctx) // what ends without the message that says so has failed
	defer cancel()
	stream := c.VMs.PutFiles(ctx)
	if err := stream.Send(&bangerv1.PutFilesRequest{Kind: &bangerv1.PutFilesRequest_Start{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	conn, err := stream.Conn()
	if err != nil {
		return err
	}
	read, answered := make(chan error, 1), make(chan error, 1)
	go func() { read <- sendFiles(stream, archive) }()
	go func() { answered <- conn.Receive(&bangerv1.PutFilesResponse{}) }()
	select {
	case err := <-answered:
		return err
	case err := <-read:
		if err != nil {
			return fmt.Errorf("read what is to be copied: %w", err)
		}
	}
	return <-answered
}

// sendFiles sends the archive and then its end. It returns errors of the archive only: what keeps the daemon from taking it, the
// daemon says.
func sendFiles(stream *connect.ClientStreamForClient[bangerv1.PutFilesRequest, bangerv1.PutFilesResponse], archive io.Reader) error {
	buf := make([]byte, 4*maxMessage)
	for {
		n, err := archive.Read(buf)
		if n > 0 {
			if stream.Send(&bangerv1.PutFilesRequest{Kind: &bangerv1.PutFilesRequest_Data{Data: buf[:n]}}) != nil {
				return nil
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			_ = stream.Send(&bangerv1.PutFilesRequest{Kind: &bangerv1.PutFilesRequest_End{End: true}})
			if conn, err := stream.Conn(); err == nil {
				_ = conn.CloseRequest()
			}
			return nil
		case err != nil:
			return err
		}
	}
}

// GetFiles copies out of a guest and writes the tar stream to w. The bytes are the guest's: whoever unpacks them handles a
// hostile archive of any length. If it fails, what has been written is not all.
func (c *Client) GetFiles(ctx context.Context, req *bangerv1.GetFilesRequest, w io.Writer) error {
	ctx, cancel := context.WithCancel(ctx) // ends the copy in the guest if w fails
	defer cancel()
	stream, err := c.VMs.GetFiles(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	defer stream.Close() //nolint:errcheck // Err tells
	for stream.Receive() {
		if _, err := w.Write(stream.Msg().GetData()); err != nil {
			return err
		}
	}
	return stream.Err()
}
