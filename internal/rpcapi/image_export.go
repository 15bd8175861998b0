package rpcapi

import (
	"context"
	"sync"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/operations"
)

// exportStream is one call that sends an archive. Sending is safe from any goroutine.
type exportStream struct {
	mu     sync.Mutex
	stream *connect.ServerStream[bangerv1.ExportImageResponse]
}

func (e *exportStream) send(m *bangerv1.ExportImageResponse) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.stream.Send(m)
}

// maxChunk is how many bytes of an archive go into one message.
const maxChunk = 256 << 10

// Write sends a piece of the archive.
func (e *exportStream) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n := min(len(p)-done, maxChunk)
		err := e.send(&bangerv1.ExportImageResponse{Kind: &bangerv1.ExportImageResponse_Data{Data: p[done : done+n]}})
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// progress drops what cannot be sent: the end of the client's context tells the work.
func (e *exportStream) progress(p *bangerv1.Progress) error {
	_ = e.send(&bangerv1.ExportImageResponse{Kind: &bangerv1.ExportImageResponse_Progress{Progress: p}})
	return nil
}

// ExportImage implements the call of the same name. It ends with its client.
func (s imageServer) ExportImage(
	ctx context.Context, req *connect.Request[bangerv1.ExportImageRequest],
	stream *connect.ServerStream[bangerv1.ExportImageResponse],
) error {
	out := &exportStream{stream: stream}
	var digest string
	op, err := s.operations.Start(ctx, operations.Request{Kind: "export", Name: req.Msg.GetName()},
		func(ctx context.Context, op *operations.Operation) (err error) {
			digest, err = s.images.Export(ctx, req.Msg.GetName(), req.Msg.GetFormat(), out, op.Report)
			return err
		})
	if err != nil {
		return toError(err)
	}
	defer context.AfterFunc(ctx, func() { op.Cancel(errClientGone()) })()
	if err := relay(context.WithoutCancel(ctx), op, out.progress); err != nil {
		return err
	}
	return out.send(&bangerv1.ExportImageResponse{Kind: &bangerv1.ExportImageResponse_Digest{Digest: digest}})
}

// PushImage implements the call of the same name.
func (s imageServer) PushImage(
	ctx context.Context, req *connect.Request[bangerv1.PushImageRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	if req.Msg.GetName() == "" || req.Msg.GetReference() == "" {
		return toError(fault.New(fault.Invalid, "push needs an image and a reference"))
	}
	return operate(ctx, s.operations, stream, operations.Request{Kind: "push", Name: req.Msg.GetName()},
		func(ctx context.Context, op *operations.Operation) (*bangerv1.Event, error) {
			digest, err := s.images.Push(ctx, req.Msg.GetName(), req.Msg.GetReference(), op.Report)
			return &bangerv1.Event{Kind: &bangerv1.Event_Image{Image: &bangerv1.Image{
				Name: req.Msg.GetReference(), Manifest: digest,
			}}}, err
		})
}
