package rpcapi

import (
	"context"
	"errors"
	"io"
	"slices"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/images"
	"banger/internal/kernels"
	"banger/internal/operations"
)

func (s imageServer) ListImages(
	ctx context.Context, _ *connect.Request[bangerv1.ListImagesRequest],
) (*connect.Response[bangerv1.ListImagesResponse], error) {
	items, err := s.images.Items(ctx)
	if err != nil {
		return nil, toError(err)
	}
	entries, err := s.images.Available(ctx)
	if err != nil {
		return nil, toError(err)
	}
	res := &bangerv1.ListImagesResponse{}
	for _, it := range items {
		res.Images = append(res.Images, toImageItem(it))
	}
	for _, e := range entries {
		res.Images = append(res.Images, &bangerv1.Image{Name: e.Name, Source: "catalog:" + e.Name, Description: e.Description})
	}
	return connect.NewResponse(res), nil
}

func (s imageServer) GetImage(
	ctx context.Context, req *connect.Request[bangerv1.GetImageRequest],
) (*connect.Response[bangerv1.GetImageResponse], error) {
	it, err := s.images.Item(ctx, req.Msg.GetImage())
	if err != nil {
		return nil, toError(err)
	}
	return connect.NewResponse(&bangerv1.GetImageResponse{Image: toImageItem(it)}), nil
}

func toImage(im images.Image) *bangerv1.Image {
	c := im.Config
	return &bangerv1.Image{
		Name: im.Name, Digest: im.Digest, Size: im.Size, CreatedAt: toTime(im.Created), Source: im.Source,
		Manifest: im.Manifest, Platform: im.Platform, HasSystemd: im.HasSystemd, Registered: im.Registered, Path: im.RootPath,
		Kernel: im.Kernel,
		Config: &bangerv1.ImageConfig{
			Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, Workdir: c.WorkDir, User: c.User, Labels: c.Labels,
			ExposedPorts: c.ExposedPorts, Volumes: c.Volumes, StopSignal: c.StopSignal,
		},
	}
}

func toImageItem(it images.Item) *bangerv1.Image {
	im := toImage(it.Image)
	im.UniqueSize, im.SharedSize, im.Users, im.Damaged = it.Unique, it.Shared, it.Users, it.Damaged
	return im
}

func imageEvent(im images.Image) *bangerv1.Event {
	return &bangerv1.Event{Kind: &bangerv1.Event_Image{Image: toImage(im)}}
}

func (s imageServer) PullImage(
	ctx context.Context, req *connect.Request[bangerv1.PullImageRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	if req.Msg.GetName() == "" {
		return toError(fault.New(fault.Invalid, "no image named"))
	}
	return operate(ctx, s.operations, stream, operations.Request{Kind: "pull", Name: req.Msg.GetName()},
		func(ctx context.Context, op *operations.Operation) (*bangerv1.Event, error) {
			im, err := s.images.Pull(ctx, req.Msg.GetName(), req.Msg.GetPlatform(), op.Report)
			return imageEvent(im), err
		})
}

func (s imageServer) RegisterImage(
	ctx context.Context, req *connect.Request[bangerv1.RegisterImageRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	if err := s.kernelExists(req.Msg.GetKernel()); err != nil {
		return toError(err)
	}
	return operate(ctx, s.operations, stream, operations.Request{Kind: "register", Name: req.Msg.GetName()},
		func(ctx context.Context, op *operations.Operation) (*bangerv1.Event, error) {
			im, err := s.images.Register(ctx, images.RegisterRequest{
				Name: req.Msg.GetName(), Root: req.Msg.GetRootfs(), Kernel: req.Msg.GetKernel(),
			}, op.Report)
			return imageEvent(im), err
		})
}

// kernelExists fails if a kernel is neither here nor in the catalogue. No name is none.
func (s imageServer) kernelExists(name string) error {
	if name == "" {
		return nil
	}
	_, err := s.kernels.Get(name)
	if !fault.Is(err, fault.NotFound) {
		return err
	}
	catalog, err := s.kernels.Catalog()
	if err != nil {
		return err
	}
	if slices.ContainsFunc(catalog, func(a kernels.Available) bool { return a.Name == name }) {
		return nil
	}
	return fault.New(fault.NotFound, "no kernel %q here or in the catalogue", name).
		WithHint("see which there are: banger kernel list --available; or import it: banger kernel import --name %s FILE...", name)
}

func (s imageServer) DeleteImage(
	ctx context.Context, req *connect.Request[bangerv1.DeleteImageRequest],
) (*connect.Response[bangerv1.DeleteImageResponse], error) {
	if err := s.images.Delete(ctx, req.Msg.GetImage()); err != nil {
		return nil, toError(err)
	}
	return connect.NewResponse(&bangerv1.DeleteImageResponse{}), nil
}

func (s imageServer) PruneImages(
	ctx context.Context, req *connect.Request[bangerv1.PruneImagesRequest],
) (*connect.Response[bangerv1.PruneImagesResponse], error) {
	pruned, err := s.images.Prune(ctx, req.Msg.GetDryRun())
	if err != nil {
		return nil, toError(err)
	}
	res := &bangerv1.PruneImagesResponse{Bytes: pruned.Bytes}
	for _, it := range pruned.Items {
		res.Items = append(res.Items, &bangerv1.PrunedItem{What: it.What, Bytes: it.Bytes})
	}
	return connect.NewResponse(res), nil
}

// ImportImage runs as an operation that ends with its client: without it there is no archive. A goroutine of the call
// takes what the client sends; it ends with the call.
func (s imageServer) ImportImage(
	ctx context.Context, stream *connect.BidiStream[bangerv1.ImportImageRequest, bangerv1.Event],
) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return toError(fault.New(fault.Invalid, "the first message of an import is its start"))
	}
	req := images.ImportRequest{Name: start.GetName(), Tag: start.GetTag(), Path: start.GetPath()}
	if req.Path == "" {
		pr, pw := io.Pipe()
		defer pr.CloseWithError(io.ErrClosedPipe)
		req.Stream = pr
		go func() { pw.CloseWithError(receiveArchive(stream, pw)) }()
	}
	var result *bangerv1.Event
	op, err := s.operations.Start(ctx, operations.Request{Kind: "import", Name: start.GetName()},
		func(work context.Context, op *operations.Operation) error {
			// The end of the call is the end of the work; and the end of the work must not wait for the client's next word.
			work, cancel := context.WithCancelCause(work)
			defer cancel(nil)
			defer context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })()
			if pr, ok := req.Stream.(*io.PipeReader); ok {
				defer context.AfterFunc(work, func() { pr.CloseWithError(context.Cause(work)) })()
			}
			im, err := s.images.Import(work, req, op.Report)
			result = imageEvent(im)
			return err
		})
	if err != nil {
		return toError(err)
	}
	send := func(ev *bangerv1.Event) error {
		ev.OperationId = op.ID()
		return stream.Send(ev)
	}
	if err := send(&bangerv1.Event{}); err != nil {
		return err
	}
	err = relay(ctx, op, func(p *bangerv1.Progress) error {
		return send(&bangerv1.Event{Kind: &bangerv1.Event_Progress{Progress: p}})
	})
	if err != nil {
		return err
	}
	return send(result)
}

// receiveArchive writes what a client sends, until its end.
func receiveArchive(stream *connect.BidiStream[bangerv1.ImportImageRequest, bangerv1.Event], w io.Writer) error {
	for {
		msg, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fault.New(fault.Canceled, "the client has gone away: %w", err)
		}
		if _, err := w.Write(msg.GetData()); err != nil {
			return err
		}
	}
}
