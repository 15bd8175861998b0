package rpcapi

import (
	"bufio"
	"context"
	"errors"
	"io"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/guestlink"
	"banger/internal/guestproto"
)

// PutFiles implements the call of the same name.
func (g guests) PutFiles(
	ctx context.Context, stream *connect.ClientStream[bangerv1.PutFilesRequest],
) (*connect.Response[bangerv1.PutFilesResponse], error) {
	if !stream.Receive() {
		return nil, toError(fault.New(fault.Invalid, "the stream holds no request: %w", errors.Join(stream.Err(), io.EOF)))
	}
	start := stream.Msg().GetStart()
	if start == nil {
		return nil, toError(fault.New(fault.Invalid, "the first message is not the start message"))
	}
	vm, guest, err := g.machines.Guest(ctx, start.GetVm())
	if err != nil {
		return nil, toError(err)
	}
	how := guestproto.CopyPlace
	if start.GetInto() {
		how = guestproto.CopyInto
	}
	err = guest.PutCopy(ctx, start.GetPath(), how, &putReader{stream: stream}, guestlink.PutOptions{
		User: start.GetUser(), KeepOwner: start.GetArchiveOwner(),
	})
	if err != nil {
		return nil, toError(fault.New(fault.KindOf(err), "VM %s: %w", vm.Name, err))
	}
	return connect.NewResponse(&bangerv1.PutFilesResponse{}), nil
}

// putReader reads the archive that a client sends, up to the message that ends it.
type putReader struct {
	stream *connect.ClientStream[bangerv1.PutFilesRequest]
	rest   []byte
	ended  bool
}

func (p *putReader) Read(b []byte) (int, error) {
	for len(p.rest) == 0 {
		if p.ended {
			return 0, io.EOF
		}
		if !p.stream.Receive() {
			return 0, fault.New(fault.Canceled, "its client went away: %w", errors.Join(p.stream.Err(), io.ErrUnexpectedEOF))
		}
		p.rest, p.ended = p.stream.Msg().GetData(), p.stream.Msg().GetEnd()
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// GetFiles implements the call of the same name.
func (g guests) GetFiles(
	ctx context.Context, req *connect.Request[bangerv1.GetFilesRequest], stream *connect.ServerStream[bangerv1.GetFilesResponse],
) error {
	vm, guest, err := g.machines.Guest(ctx, req.Msg.GetVm())
	if err != nil {
		return toError(err)
	}
	if req.Msg.GetName() == "" {
		return toError(fault.New(fault.Invalid, "the request does not say how the copy's first entry is to be named"))
	}
	out := bufio.NewWriterSize(filesWriter{stream}, maxChunk)
	err = guest.GetCopy(ctx, guestproto.GetSpec{
		Path: req.Msg.GetPath(), Name: req.Msg.GetName(), User: req.Msg.GetUser(), Follow: req.Msg.GetFollow(),
	}, out)
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		return toError(fault.New(fault.KindOf(err), "VM %s: %w", vm.Name, err))
	}
	return nil
}

// filesWriter sends each piece as one message.
type filesWriter struct {
	stream *connect.ServerStream[bangerv1.GetFilesResponse]
}

func (f filesWriter) Write(b []byte) (int, error) {
	if err := f.stream.Send(&bangerv1.GetFilesResponse{Data: b}); err != nil {
		return 0, err
	}
	return len(b), nil
}
